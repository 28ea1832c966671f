// Command scripted is upstream's in-memory control server with an admin port, for what Headscale does
// not offer: raw map responses, jailing, masquerading, machine approval, rate limits, expiry of all.
//
// Admin: POST /<verb> with a JSON body, answered with JSON. Nodes are named by their "nodekey:..." text
// or by host name. An unknown path or undecodable request on the control port ends the process: that is
// upstream's strictness, and the harness reports it.
package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/netip"
	"os"
	"sync"
	"time"

	"tailscale.com/tailcfg"
	"tailscale.com/tstest/integration/testcontrol"
	"tailscale.com/types/key"
)

var (
	listen      = flag.String("listen", "127.0.0.1:0", "control address")
	admin       = flag.String("admin", "127.0.0.1:0", "admin address")
	derpMap     = flag.String("derp-map", "", "file with the DERP map")
	requireAuth = flag.Bool("require-auth", false, "logins need complete-auth")
	authKey     = flag.String("auth-key", "", "the one auth key that is accepted (empty: any)")
	machineAuth = flag.Bool("machine-auth", false, "machines need approval")
	allOnline   = flag.Bool("all-online", true, "peers are told online")
	sameUser    = flag.Bool("same-user", false, "all nodes have one user")
	magicDNS    = flag.String("magic-dns", "rig.test", "MagicDNS domain")
	verbose     = flag.Bool("verbose", true, "log requests")
	setDNS      = flag.String("set-dns", "", "where records of certificates go (challtestsrv's /set-txt)")
)

type request struct {
	Node     string          `json:"node"`
	Peer     string          `json:"peer"`
	Response json.RawMessage `json:"response"`
	On       bool            `json:"on"`
	URL      string          `json:"url"`
	IP       netip.Addr      `json:"ip"`
	Routes   []netip.Prefix  `json:"routes"`
	Types    string          `json:"types"`
	Method   string          `json:"method"`
	Path     string          `json:"path"`
	Count    int             `json:"count"`
	Text     string          `json:"text"`
	After    string          `json:"after"`
}

type scripted struct {
	*testcontrol.Server
	mu         sync.Mutex
	rateLimits int // registrations still to refuse
	retryAfter string
	rateText   string
	firstPatch json.RawMessage // merged into the first map response of each stream
}

func main() {
	flag.Parse()
	s := &scripted{Server: &testcontrol.Server{
		RequireAuth: *requireAuth, RequireAuthKey: *authKey, RequireMachineAuth: *machineAuth, Verbose: *verbose,
		MagicDNSDomain: *magicDNS, AllOnline: *allOnline, AllNodesSameUser: *sameUser,
		ExplicitBaseURL: "http://" + *listen, DERPMap: &tailcfg.DERPMap{},
		DNSConfig: &tailcfg.DNSConfig{Proxied: true, Domains: []string{*magicDNS}},
	}}
	if *setDNS != "" {
		s.OnSetDNS = publish
	}
	if *derpMap != "" {
		text, err := os.ReadFile(*derpMap)
		if err != nil {
			log.Fatal(err)
		}
		if err := json.Unmarshal(text, s.DERPMap); err != nil {
			log.Fatal(err)
		}
	}
	s.MaybeRateLimitRegister = func() (bool, string, string) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.rateLimits == 0 {
			return false, "", ""
		}
		s.rateLimits--
		return true, s.retryAfter, s.rateText
	}
	s.ModifyFirstMapResponse = func(m *tailcfg.MapResponse, _ *tailcfg.MapRequest) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.firstPatch != nil {
			json.Unmarshal(s.firstPatch, m)
		}
	}
	go func() { log.Fatal(http.ListenAndServe(*admin, http.HandlerFunc(s.admin))) }()
	log.Fatal(http.ListenAndServe(*listen, s.Server))
}

// publish gives a record to pebble-challtestsrv.
func publish(q *tailcfg.SetDNSRequest) error {
	body, err := json.Marshal(map[string]string{"host": q.Name + ".", "value": q.Value})
	if err != nil {
		return err
	}
	answer, err := http.Post(*setDNS, "application/json", bytes.NewReader(body))
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("set-txt: %s", answer.Status)
	}
	return nil
}

func (s *scripted) admin(w http.ResponseWriter, r *http.Request) {
	var q request
	body, err := io.ReadAll(r.Body)
	if err == nil && len(body) > 0 {
		err = json.Unmarshal(body, &q)
	}
	var v any = map[string]any{}
	if err == nil {
		var answer any
		if answer, err = s.do(r.URL.Path[1:], q); answer != nil {
			v = answer
		}
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	json.NewEncoder(w).Encode(v)
}

func (s *scripted) find(name string) (*tailcfg.Node, error) {
	for _, n := range s.AllNodes() {
		if n.Key.String() == name || n.Hostinfo.Hostname() == name {
			return n, nil
		}
	}
	return nil, fmt.Errorf("no node %q", name)
}

func enqueued(ok bool) error {
	if !ok {
		return fmt.Errorf("the node is not connected")
	}
	return nil
}

// do answers one verb.
func (s *scripted) do(verb string, q request) (any, error) {
	var node, peer *tailcfg.Node
	var err error
	if q.Node != "" {
		if node, err = s.find(q.Node); err != nil {
			return nil, err
		}
	}
	if q.Peer != "" {
		if peer, err = s.find(q.Peer); err != nil {
			return nil, err
		}
	}
	need := func(nodes ...*tailcfg.Node) error {
		for _, n := range nodes {
			if n == nil {
				return fmt.Errorf("%s needs a node it was not given", verb)
			}
		}
		return nil
	}
	switch verb {
	case "ping":
		return nil, nil
	case "nodes":
		return map[string]any{"nodes": s.AllNodes(), "polling": s.InServeMap()}, nil
	case "fake-node":
		s.AddFakeNode()
		return nil, nil
	case "raw": // response: a MapResponse; from then on the node gets only raw ones
		if err := need(node); err != nil {
			return nil, err
		}
		m := new(tailcfg.MapResponse)
		if err := json.Unmarshal(q.Response, m); err != nil {
			return nil, err
		}
		return nil, enqueued(s.AddRawMapResponse(node.Key, m))
	case "first": // response: merged into the first map response of every later stream; null ends it
		s.mu.Lock()
		s.firstPatch = q.Response
		s.mu.Unlock()
		return nil, nil
	case "expire-all":
		s.SetExpireAllNodes(q.On)
		return nil, nil
	case "jail": // peer is jailed in the eyes of node
		if err := need(node, peer); err != nil {
			return nil, err
		}
		s.SetJailed(node.Key, peer.Key, q.On)
		return nil, nil
	case "masquerade": // node appears to peer as ip
		if err := need(node, peer); err != nil {
			return nil, err
		}
		s.SetMasqueradeAddresses([]testcontrol.MasqueradePair{{Node: node.Key, Peer: peer.Key, NodeMasqueradesAs: q.IP}})
		return nil, nil
	case "complete-auth":
		return map[string]any{"done": s.CompleteAuth(q.URL)}, nil
	case "approve":
		if err := need(node); err != nil {
			return nil, err
		}
		base := s.BaseURL()
		return map[string]any{"done": s.CompleteDeviceApproval(base, base+"/admin", &node.Key)}, nil
	case "routes":
		if err := need(node); err != nil {
			return nil, err
		}
		s.SetSubnetRoutes(node.Key, q.Routes)
		return nil, nil
	case "cap-map":
		if err := need(node); err != nil {
			return nil, err
		}
		caps := tailcfg.NodeCapMap{}
		if err := json.Unmarshal(q.Response, &caps); err != nil {
			return nil, err
		}
		s.SetNodeCapMap(node.Key, caps)
		return nil, nil
	case "app-caps":
		caps := tailcfg.PeerCapMap{}
		if err := json.Unmarshal(q.Response, &caps); err != nil {
			return nil, err
		}
		s.SetGlobalAppCaps(caps)
		return nil, nil
	case "dns-records":
		var records []tailcfg.DNSRecord
		if err := json.Unmarshal(q.Response, &records); err != nil {
			return nil, err
		}
		s.AddDNSRecords(records...)
		return nil, nil
	case "ping-request":
		if err := need(node); err != nil {
			return nil, err
		}
		return nil, enqueued(s.AddPingRequest(node.Key, &tailcfg.PingRequest{URL: q.URL, Types: q.Types, IP: q.IP, Log: true}))
	case "c2n": // an HTTP request through the node's control connection
		if err := need(node); err != nil {
			return nil, err
		}
		return s.c2n(node.Key, q)
	case "rate-limit": // refuse the next count registrations
		s.mu.Lock()
		s.rateLimits, s.retryAfter, s.rateText = q.Count, q.After, q.Text
		s.mu.Unlock()
		return nil, nil
	case "update-node":
		n := new(tailcfg.Node)
		if node != nil {
			n = node.Clone()
		}
		if err := json.Unmarshal(q.Response, n); err != nil {
			return nil, err
		}
		s.UpdateNode(n)
		return nil, nil
	}
	return nil, fmt.Errorf("unknown verb %q", verb)
}

func (s *scripted) c2n(node key.NodePublic, q request) (any, error) {
	req, err := http.NewRequest(q.Method, "http://unused"+q.Path, nil)
	if err != nil {
		return nil, err
	}
	got := make(chan map[string]any, 1)
	err = s.SendC2N(node, req, func(r *http.Response) {
		body, _ := io.ReadAll(r.Body)
		got <- map[string]any{"status": r.StatusCode, "body": string(body)}
	})
	if err != nil {
		return nil, err
	}
	select {
	case v := <-got:
		return v, nil
	case <-time.After(15 * time.Second):
		return nil, fmt.Errorf("the node did not answer")
	}
}
