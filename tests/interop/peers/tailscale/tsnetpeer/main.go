// Command tsnetpeer is a tsnet node that a test drives over its standard input and output.
//
// It serves, on the tailnet: TCP echo :7, discard-and-hash :9, generator :19, HTTP :80,
// a reset-after-one-line service :11, and UDP echo :7.
// It prints one JSON object per line on stdout (events and replies) and reads one command per line
// on stdin. It ends when stdin ends, so it never outlives its harness.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"tailscale.com/client/local"
	"tailscale.com/ipn"
	_ "tailscale.com/net/portmapper"
	"tailscale.com/tsnet"
)

var (
	control   = flag.String("control", "", "control server URL")
	authKey   = flag.String("authkey", "", "pre-auth key (empty: a login URL is printed as an event)")
	hostname  = flag.String("hostname", "peer", "host name to ask for")
	dir       = flag.String("dir", "", "state directory")
	port      = flag.Uint("port", 0, "UDP port of the node (0: any)")
	ephemeral = flag.Bool("ephemeral", false, "register as ephemeral")
	tags      = flag.String("tags", "", "comma-separated tags to advertise")
	verbose   = flag.Bool("verbose", false, "log the backend to stderr")
	timeout   = flag.Duration("timeout", 60*time.Second, "how long joining may take")
)

type node struct {
	server *tsnet.Server
	local  *local.Client
	mu     sync.Mutex
	out    *json.Encoder
}

type object map[string]any

func (n *node) say(v object) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.out.Encode(v)
}

func (n *node) event(name string, v object) {
	if v == nil {
		v = object{}
	}
	v["event"] = name
	n.say(v)
}

func main() {
	flag.Parse()
	os.Setenv("TS_NO_LOGS_NO_SUPPORT", "1")
	n := &node{out: json.NewEncoder(os.Stdout)}
	logf := func(string, ...any) {}
	if *verbose {
		logf = log.New(os.Stderr, "", log.Lmicroseconds|log.Ltime).Printf
	}
	n.server = &tsnet.Server{
		Dir: *dir, Hostname: *hostname, ControlURL: *control, AuthKey: *authKey,
		Ephemeral: *ephemeral, Port: uint16(*port), Logf: logf,
		UserLogf: func(format string, args ...any) {
			line := fmt.Sprintf(format, args...)
			logf("%s", line)
			if i := strings.Index(line, "http"); i >= 0 && strings.Contains(line, "To start this tsnet server") {
				n.event("login", object{"url": strings.Fields(line[i:])[0]})
			}
		},
	}
	if *tags != "" {
		n.server.AdvertiseTags = strings.Split(*tags, ",")
	}
	started := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), *timeout)
	if _, err := n.server.Up(ctx); err != nil {
		n.event("failed", object{"error": err.Error()})
		os.Exit(1)
	}
	cancel()
	var err error
	if n.local, err = n.server.LocalClient(); err != nil {
		log.Fatal(err)
	}
	ip4, ip6 := n.server.TailscaleIPs()
	n.serve()
	n.event("up", object{"ip4": addr(ip4), "ip6": addr(ip6), "hostname": *hostname,
		"elapsed_ms": float64(time.Since(started).Microseconds()) / 1000})
	go n.watch()

	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		<-signals
		n.quit()
	}()
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var c command
		if err := json.Unmarshal(lines.Bytes(), &c); err != nil {
			n.event("error", object{"error": err.Error()})
			continue
		}
		if c.Cmd == "quit" {
			break
		}
		go n.run(c)
	}
	n.quit()
}

// quit leaves in good order, but does not wait the five seconds in which tsnet would flush its logs
// to a server that is not there. An ephemeral node gets the time to say goodbye.
func (n *node) quit() {
	done := make(chan struct{})
	go func() { n.server.Close(); close(done) }()
	patience := 300 * time.Millisecond
	if *ephemeral {
		patience = 2 * time.Second
	}
	select {
	case <-done:
	case <-time.After(patience):
	}
	n.event("down", nil)
	os.Exit(0)
}

// watch turns the backend's notifications into events: state changes and login URLs.
func (n *node) watch() {
	w, err := n.local.WatchIPNBus(context.Background(), ipn.NotifyInitialState)
	if err != nil {
		return
	}
	for {
		m, err := w.Next()
		if err != nil {
			return
		}
		if m.State != nil {
			n.event("state", object{"state": m.State.String()})
		}
		if m.BrowseToURL != nil {
			n.event("login", object{"url": *m.BrowseToURL})
		}
	}
}

func (n *node) page(w http.ResponseWriter, r *http.Request) {
	who, err := n.local.WhoIs(r.Context(), r.RemoteAddr)
	v := object{"path": r.URL.Path, "remote": r.RemoteAddr, "served_by": *hostname}
	if err != nil {
		v["error"] = err.Error()
	} else {
		v["node"], v["computed_name"] = who.Node.Name, who.Node.ComputedName
		v["user"], v["tags"], v["caps"] = who.UserProfile.LoginName, who.Node.Tags, who.CapMap
	}
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(v)
}
