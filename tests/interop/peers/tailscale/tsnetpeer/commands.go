package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"pytailscale.test/peers/tailscale/pattern"
	"tailscale.com/ipn"
	"tailscale.com/tailcfg"
)

// command is one line of standard input. Which fields count depends on Cmd; see README.md.
type command struct {
	ID      int64    `json:"id"`
	Cmd     string   `json:"cmd"`
	Host    string   `json:"host"`
	Port    int      `json:"port"`
	Bytes   int64    `json:"bytes"`   // pattern bytes to send
	Data    []byte   `json:"data"`    // or these, base64
	Read    int64    `json:"read"`    // reply bytes to wait for; -1: until EOF; 0: none
	End     string   `json:"end"`     // "half": FIN after sending; "reset": RST at the end; "": plain close
	Count   int      `json:"count"`   // repetitions (udp, ping, connects)
	Kind    string   `json:"kind"`    // ping: disco, TSMP, ICMP, peerapi; debug action; bench kind
	Size    int      `json:"size"`    // ping size
	Seconds float64  `json:"seconds"` // bench duration
	Timeout float64  `json:"timeout"` // seconds; 0 means 30
	Value   string   `json:"value"`
	Values  []string `json:"values"`
}

func (n *node) run(c command) {
	if c.Timeout == 0 {
		c.Timeout = 30
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(c.Timeout*float64(time.Second)))
	defer cancel()
	started := time.Now()
	v, err := n.answer(ctx, c)
	if v == nil {
		v = object{}
	}
	v["id"], v["ok"] = c.ID, err == nil
	v["elapsed_ms"] = milliseconds(started)
	if err != nil {
		v["error"] = err.Error()
	}
	n.say(v)
}

func milliseconds(since time.Time) float64 { return float64(time.Since(since).Microseconds()) / 1000 }

func target(c command) string { return net.JoinHostPort(c.Host, strconv.Itoa(c.Port)) }

func (n *node) answer(ctx context.Context, c command) (object, error) {
	switch c.Cmd {
	case "dial":
		return n.dial(ctx, c)
	case "udp":
		return n.udp(ctx, c)
	case "ping":
		return n.ping(ctx, c)
	case "bench":
		return n.bench(ctx, c)
	case "status":
		st, err := n.local.Status(ctx)
		return object{"status": st}, err
	case "whois":
		who, err := n.local.WhoIs(ctx, c.Host)
		return object{"whois": who}, err
	case "dns":
		answer, _, err := n.local.QueryDNS(ctx, c.Host, c.Kind)
		return object{"message": answer}, err
	case "debug": // restun, rebind, break-derp-conns, break-tcp-conns, rotate-disco-key, pick-new-derp ...
		return nil, n.local.DebugAction(ctx, c.Kind)
	case "hostname":
		p := &ipn.MaskedPrefs{HostnameSet: true}
		p.Hostname = c.Value
		_, err := n.local.EditPrefs(ctx, p)
		return nil, err
	case "advertise":
		p := &ipn.MaskedPrefs{AdvertiseRoutesSet: true}
		for _, r := range c.Values {
			prefix, err := netip.ParsePrefix(r)
			if err != nil {
				return nil, err
			}
			p.AdvertiseRoutes = append(p.AdvertiseRoutes, prefix)
		}
		_, err := n.local.EditPrefs(ctx, p)
		return nil, err
	case "shields":
		p := &ipn.MaskedPrefs{ShieldsUpSet: true}
		p.ShieldsUp = c.Value == "up"
		_, err := n.local.EditPrefs(ctx, p)
		return nil, err
	case "accept-routes":
		p := &ipn.MaskedPrefs{RouteAllSet: true}
		p.RouteAll = true
		_, err := n.local.EditPrefs(ctx, p)
		return nil, err
	case "relogin": // a new node key
		return nil, n.local.StartLoginInteractive(ctx)
	case "logout":
		return nil, n.local.Logout(ctx)
	case "usage":
		return usage(), nil
	}
	return nil, fmt.Errorf("unknown command %q", c.Cmd)
}

// dial sends bytes, ends its side as asked, and reports what came back.
func (n *node) dial(ctx context.Context, c command) (object, error) {
	started := time.Now()
	conn, err := n.server.Dial(ctx, "tcp", target(c))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	conn.SetDeadline(deadline)
	v := object{"connect_ms": milliseconds(started), "local": conn.LocalAddr().String(), "remote": conn.RemoteAddr().String()}

	type sent struct {
		n   int64
		err error
	}
	done := make(chan sent, 1)
	go func() {
		source := pattern.Reader(c.Bytes)
		if len(c.Data) > 0 {
			source = bytes.NewReader(c.Data)
		}
		count, err := io.CopyBuffer(struct{ io.Writer }{conn}, source, make([]byte, 128<<10))
		if err == nil && c.End == "half" {
			if h, ok := conn.(interface{ CloseWrite() error }); ok {
				err = h.CloseWrite()
			} else {
				err = fmt.Errorf("%T cannot half-close", conn)
			}
		}
		done <- sent{count, err}
	}()

	h := sha256.New()
	var head bytes.Buffer
	var reply io.Reader = conn
	if c.Read >= 0 {
		reply = io.LimitReader(conn, c.Read)
	}
	first := &firstByte{r: reply}
	count, err := io.CopyBuffer(io.MultiWriter(h, &limited{&head, 4096}), first, make([]byte, 128<<10))
	v["received"], v["sha256"], v["head"] = count, hex.EncodeToString(h.Sum(nil)), head.Bytes()
	if !first.at.IsZero() {
		v["first_byte_ms"] = float64(first.at.Sub(started).Microseconds()) / 1000
	}
	if err == nil && c.Read >= 0 && count < c.Read {
		err = io.ErrUnexpectedEOF
	}
	if c.End == "reset" && err == nil {
		s := <-done
		v["sent"] = s.n
		abort(conn)
		return v, s.err
	}
	if err != nil {
		conn.SetDeadline(time.Now())
	}
	s := <-done
	v["sent"] = s.n
	if err == nil {
		err = s.err
	}
	return v, err
}

type firstByte struct {
	r  io.Reader
	at time.Time
}

func (f *firstByte) Read(p []byte) (int, error) {
	n, err := f.r.Read(p)
	if n > 0 && f.at.IsZero() {
		f.at = time.Now()
	}
	return n, err
}

type limited struct {
	b   *bytes.Buffer
	max int
}

func (l *limited) Write(p []byte) (int, error) {
	if room := l.max - l.b.Len(); room > 0 {
		l.b.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

// udp sends Count datagrams one after the other and waits for an answer to each.
func (n *node) udp(ctx context.Context, c command) (object, error) {
	conn, err := n.server.Dial(ctx, "udp", target(c))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	payload := c.Data
	if payload == nil {
		payload, _ = io.ReadAll(pattern.Reader(c.Bytes))
	}
	buf := make([]byte, 65536)
	answered, same := 0, 0
	var took []float64
	for range max(c.Count, 1) {
		at := time.Now()
		if _, err := conn.Write(payload); err != nil {
			return nil, err
		}
		conn.SetReadDeadline(time.Now().Add(time.Second))
		count, err := conn.Read(buf)
		if err != nil {
			if ctx.Err() != nil {
				break
			}
			continue
		}
		took = append(took, milliseconds(at))
		answered++
		if bytes.Equal(buf[:count], payload) {
			same++
		}
	}
	return object{"answered": answered, "same": same, "rtt_ms": took}, nil
}

func (n *node) ping(ctx context.Context, c command) (object, error) {
	var out []any
	for range max(c.Count, 1) {
		kind := tailcfg.PingType(c.Kind)
		if strings.EqualFold(c.Kind, "disco") || c.Kind == "" {
			kind = tailcfg.PingDisco
		}
		ip, err := netip.ParseAddr(c.Host)
		if err != nil {
			return nil, err
		}
		res, err := n.local.PingWithOpts(ctx, ip, kind, pingOptions(c.Size))
		if err != nil {
			return object{"pings": out}, err
		}
		out = append(out, res)
	}
	return object{"pings": out}, nil
}

func usage() object {
	var r syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &r)
	v := object{"cpu_s": float64(r.Utime.Nano()+r.Stime.Nano()) / 1e9}
	status, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			v["rss_kb"], _ = strconv.Atoi(strings.Fields(rest)[0])
		}
	}
	return v
}
