package main

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"

	"pytailscale.test/peers/tailscale/pattern"
)

func addr(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

func (n *node) serve() {
	n.tcp(7, echo)
	n.tcp(9, discard)
	n.tcp(11, resetAfterLine)
	n.tcp(19, generate)
	web, err := n.server.Listen("tcp", ":80")
	if err != nil {
		log.Fatal(err)
	}
	go http.Serve(web, http.HandlerFunc(n.page))
	ip4, ip6 := n.server.TailscaleIPs()
	for _, ip := range []netip.Addr{ip4, ip6} {
		if ip.IsValid() {
			n.udpEcho(netip.AddrPortFrom(ip, 7).String())
		}
	}
}

func (n *node) tcp(port int, handle func(net.Conn)) {
	l, err := n.server.Listen("tcp", ":"+strconv.Itoa(port))
	if err != nil {
		log.Fatal(err)
	}
	go accept(l, handle)
}

func accept(l net.Listener, handle func(net.Conn)) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go handle(c)
	}
}

// echo returns every byte; after the caller's EOF it sends its own.
func echo(c net.Conn) {
	defer c.Close()
	io.CopyBuffer(struct{ io.Writer }{c}, struct{ io.Reader }{c}, make([]byte, 128<<10))
}

// discard hashes what it gets; at EOF it answers "<count> <sha256 hex>\n" and closes.
func discard(c net.Conn) {
	defer c.Close()
	h := sha256.New()
	count, err := io.CopyBuffer(h, struct{ io.Reader }{c}, make([]byte, 128<<10))
	if err == nil {
		fmt.Fprintf(c, "%d %s\n", count, hex.EncodeToString(h.Sum(nil)))
	}
}

// generate answers each "N\n" with N bytes of the pattern; it closes at EOF.
func generate(c net.Conn) {
	defer c.Close()
	lines := bufio.NewReader(c)
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			return
		}
		count, err := strconv.ParseInt(strings.TrimSpace(line), 10, 64)
		if err != nil || count < 0 {
			return
		}
		if _, err := io.CopyBuffer(struct{ io.Writer }{c}, pattern.Reader(count), make([]byte, 128<<10)); err != nil {
			return
		}
	}
}

// resetAfterLine reads one line, then drops the connection with bytes unread, which makes it a reset.
func resetAfterLine(c net.Conn) {
	bufio.NewReaderSize(c, 16).ReadString('\n')
	abort(c)
}

func (n *node) udpEcho(at string) {
	pc, err := n.server.ListenPacket("udp", at)
	if err != nil {
		log.Fatal(err)
	}
	go func() {
		buf := make([]byte, 65536)
		for {
			count, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			pc.WriteTo(buf[:count], from)
		}
	}()
}
