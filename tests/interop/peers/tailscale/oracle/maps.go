package main

import (
	"encoding/json"
	"net/netip"
	"time"

	"go4.org/mem"
	"tailscale.com/tailcfg"
	"tailscale.com/types/dnstype"
	"tailscale.com/types/key"
	"tailscale.com/types/opt"
	"tailscale.com/types/ptr"
)

// mapResponse: one full map response and some deltas, in upstream's own JSON, plain and framed.
func mapResponse() any {
	node := func(id int64, name string) *tailcfg.Node {
		raw, disco := clamped(), clamped()
		machine := machineFromRaw(clamped())
		v4 := netip.AddrFrom4([4]byte{100, 64, 0, byte(id)})
		v6 := netip.MustParseAddr("fd7a:115c:a1e0::" + itoa(int(id)))
		online, seen := id%2 == 1, time.Date(2026, 1, 2, 3, 4, 5, 600, time.UTC)
		addresses := []netip.Prefix{netip.PrefixFrom(v4, 32), netip.PrefixFrom(v6, 128)}
		return &tailcfg.Node{
			ID: tailcfg.NodeID(id), StableID: tailcfg.StableNodeID("n" + itoa(int(id))), Name: name + ".rig.test.",
			User: 7, Key: key.NodePrivateFromRaw32(mem.B(raw)).Public(), KeyExpiry: time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC),
			Machine: machine.Public(), DiscoKey: key.DiscoPrivateFromRaw32(mem.B(disco)).Public(), Addresses: addresses,
			AllowedIPs: append(addresses, netip.MustParsePrefix("10.20.0.0/16")), Endpoints: addrPorts("192.0.2.1:41641", "[2001:db8::1]:41641"),
			HomeDERP: 900, Hostinfo: (&tailcfg.Hostinfo{OS: "linux", Hostname: name, Services: []tailcfg.Service{{Proto: "peerapi4", Port: 4242}}}).View(),
			Created: time.Date(2025, 5, 5, 5, 5, 5, 0, time.UTC), Cap: 113, Tags: []string{"tag:ci"}, PrimaryRoutes: []netip.Prefix{netip.MustParsePrefix("10.20.0.0/16")},
			LastSeen: &seen, Online: &online, MachineAuthorized: true,
			CapMap: tailcfg.NodeCapMap{"https://tailscale.com/cap/is-admin": nil, "example.com/cap/x": {`{"a":1}`}}, ComputedName: name,
		}
	}
	full := &tailcfg.MapResponse{
		MapSessionHandle: "handle", Seq: 1, Node: node(1, "self"), Peers: []*tailcfg.Node{node(2, "two"), node(3, "three")},
		DERPMap: &tailcfg.DERPMap{Regions: map[int]*tailcfg.DERPRegion{900: {RegionID: 900, RegionCode: "rig", RegionName: "Rig", Nodes: []*tailcfg.DERPNode{
			{Name: "900a", RegionID: 900, HostName: "127.0.0.1", IPv4: "127.0.0.1", IPv6: "none", DERPPort: 13340, STUNPort: 13478, CertName: "sha256-raw:00"}}}}},
		DNSConfig: &tailcfg.DNSConfig{Resolvers: []*dnstype.Resolver{{Addr: "1.1.1.1"}}, Routes: map[string][]*dnstype.Resolver{"corp.test.": {{Addr: "10.20.0.53"}}, "rig.test.": nil},
			Domains: []string{"rig.test"}, Proxied: true, ExtraRecords: []tailcfg.DNSRecord{{Name: "extra.rig.test", Type: "A", Value: "100.64.0.9"}}},
		Domain: "rig.test", CollectServices: opt.NewBool(false),
		PacketFilters: map[string][]tailcfg.FilterRule{"base": {{SrcIPs: []string{"100.64.0.0/10", "fd7a:115c:a1e0::/48"}, DstPorts: []tailcfg.NetPortRange{{IP: "*", Ports: tailcfg.PortRangeAny}}}}},
		UserProfiles:  []tailcfg.UserProfile{{ID: 7, LoginName: "alice@example.com", DisplayName: "Alice"}},
		Health:        []string{"something to know"}, ControlTime: ptr.To(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)),
	}
	deltas := []*tailcfg.MapResponse{
		{KeepAlive: true},
		{PeersChanged: []*tailcfg.Node{node(3, "three-renamed"), node(4, "four")}},
		{PeersRemoved: []tailcfg.NodeID{2}},
		{PeersChangedPatch: []*tailcfg.PeerChange{{NodeID: 3, DERPRegion: 901, Endpoints: addrPorts("192.0.2.3:1"), Online: ptr.To(false)}}},
		{OnlineChange: map[tailcfg.NodeID]bool{3: true, 4: false}},
		{PeerSeenChange: map[tailcfg.NodeID]bool{3: true, 4: false}},
		{PacketFilters: map[string][]tailcfg.FilterRule{"base": nil, "extra": {{SrcIPs: []string{"100.64.0.3"}, DstPorts: []tailcfg.NetPortRange{{IP: "100.64.0.1", Ports: tailcfg.PortRange{First: 22, Last: 22}}}}}}},
		{PingRequest: &tailcfg.PingRequest{URL: "https://example.com/ping", URLIsNoise: true, Types: "TSMP", IP: netip.MustParseAddr("100.64.0.3")}},
	}
	var out []object
	for _, m := range append([]*tailcfg.MapResponse{full}, deltas...) {
		text := must1(json.Marshal(m))
		out = append(out, object{"json": json.RawMessage(text), "framed": hx(frameMap(text))})
	}
	return object{"responses": out}
}
