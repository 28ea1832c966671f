package main

import (
	"net/netip"
	"time"

	"go4.org/mem"
	"tailscale.com/disco"
	"tailscale.com/net/stun"
	"tailscale.com/types/key"
)

func addrPorts(ss ...string) (out []netip.AddrPort) {
	for _, s := range ss {
		out = append(out, netip.MustParseAddrPort(s))
	}
	return out
}

func discoKey() key.DiscoPublic { return key.DiscoPrivateFromRaw32(mem.B(clamped())).Public() }

// describeDisco gives a parsed message as JSON: its Go type name and fields, keys as raw hex.
func describeDisco(m disco.Message) object {
	k := func(p key.DiscoPublic) string { r := p.Raw32(); return hx(r[:]) }
	common := func(kind string, c disco.BindUDPRelayEndpointCommon) object {
		return object{"type": kind, "vni": c.VNI, "generation": c.Generation, "remote_key": k(c.RemoteKey), "challenge": hx(c.Challenge[:])}
	}
	endpoint := func(kind string, e disco.UDPRelayEndpoint) object {
		return object{"type": kind, "server_disco": k(e.ServerDisco),
			"client_disco": []string{k(e.ClientDisco[0]), k(e.ClientDisco[1])},
			"lamport_id":   e.LamportID, "vni": e.VNI, "bind_lifetime_ns": e.BindLifetime.Nanoseconds(),
			"steady_state_lifetime_ns": e.SteadyStateLifetime.Nanoseconds(), "addr_ports": e.AddrPorts}
	}
	switch m := m.(type) {
	case *disco.Ping:
		v := object{"type": "ping", "tx_id": hx(m.TxID[:]), "padding": m.Padding, "node_key": nil}
		if !m.NodeKey.IsZero() {
			r := m.NodeKey.Raw32()
			v["node_key"] = hx(r[:])
		}
		return v
	case *disco.Pong:
		return object{"type": "pong", "tx_id": hx(m.TxID[:]), "src": m.Src.String()}
	case *disco.CallMeMaybe:
		eps := m.MyNumber
		if eps == nil {
			eps = []netip.AddrPort{}
		}
		return object{"type": "call_me_maybe", "endpoints": eps}
	case *disco.BindUDPRelayEndpoint:
		return common("bind_udp_relay_endpoint", m.BindUDPRelayEndpointCommon)
	case *disco.BindUDPRelayEndpointChallenge:
		return common("bind_udp_relay_endpoint_challenge", m.BindUDPRelayEndpointCommon)
	case *disco.BindUDPRelayEndpointAnswer:
		return common("bind_udp_relay_endpoint_answer", m.BindUDPRelayEndpointCommon)
	case *disco.CallMeMaybeVia:
		return endpoint("call_me_maybe_via", m.UDPRelayEndpoint)
	case *disco.AllocateUDPRelayEndpointRequest:
		return object{"type": "allocate_udp_relay_endpoint_request", "generation": m.Generation,
			"client_disco": []string{k(m.ClientDisco[0]), k(m.ClientDisco[1])}}
	case *disco.AllocateUDPRelayEndpointResponse:
		v := endpoint("allocate_udp_relay_endpoint_response", m.UDPRelayEndpoint)
		v["generation"] = m.Generation
		return v
	}
	panic("unknown disco message")
}

func parseDisco(b []byte) object {
	m, err := disco.Parse(b)
	if err != nil {
		return object{"ok": false, "error": err.Error()}
	}
	return object{"ok": true, "message": describeDisco(m)}
}

// discoVectors: each kind of message, sealed and plain; and what upstream's parser says of damaged ones.
func discoVectors() any {
	var tx [12]byte
	copy(tx[:], randomness.bytes(12))
	nodeRaw := clamped()
	node := key.NodePrivateFromRaw32(mem.B(nodeRaw)).Public()
	common := disco.BindUDPRelayEndpointCommon{VNI: 0x00abcdef, Generation: 7, RemoteKey: discoKey()}
	copy(common.Challenge[:], randomness.bytes(32))
	relay := disco.UDPRelayEndpoint{
		ServerDisco: discoKey(), ClientDisco: [2]key.DiscoPublic{discoKey(), discoKey()},
		LamportID: 1 << 40, VNI: 77, BindLifetime: 30 * time.Second, SteadyStateLifetime: 5 * time.Minute,
		AddrPorts: addrPorts("192.0.2.10:7777", "[2001:db8::9]:7778"),
	}
	messages := []disco.Message{
		&disco.Ping{TxID: tx},
		&disco.Ping{TxID: tx, NodeKey: node},
		&disco.Ping{TxID: tx, NodeKey: node, Padding: 100},
		&disco.Ping{TxID: tx, Padding: 5},
		&disco.Pong{TxID: tx, Src: netip.MustParseAddrPort("198.51.100.7:41641")},
		&disco.Pong{TxID: tx, Src: netip.MustParseAddrPort("[2001:db8::1234]:1")},
		&disco.CallMeMaybe{},
		&disco.CallMeMaybe{MyNumber: addrPorts("10.1.2.3:41641", "[fe80::1]:65535", "203.0.113.9:0")},
		&disco.BindUDPRelayEndpoint{BindUDPRelayEndpointCommon: common},
		&disco.BindUDPRelayEndpointChallenge{BindUDPRelayEndpointCommon: common},
		&disco.BindUDPRelayEndpointAnswer{BindUDPRelayEndpointCommon: common},
		&disco.CallMeMaybeVia{UDPRelayEndpoint: relay},
		&disco.AllocateUDPRelayEndpointRequest{ClientDisco: relay.ClientDisco, Generation: 3},
		&disco.AllocateUDPRelayEndpointResponse{Generation: 3, UDPRelayEndpoint: relay},
	}
	var out, parses []object
	for _, m := range messages {
		from, to := clamped(), clamped()
		kf, kt := key.DiscoPrivateFromRaw32(mem.B(from)), key.DiscoPrivateFromRaw32(mem.B(to))
		plain := m.AppendMarshal(nil)
		sealed := kf.Shared(kt.Public()).Seal(plain)
		pf, pt := kf.Public().Raw32(), kt.Public().Raw32()
		datagram := append(append([]byte(disco.Magic), pf[:]...), sealed...)
		out = append(out, object{
			"from_private": hx(from), "from_public": hx(pf[:]), "to_private": hx(to), "to_public": hx(pt[:]),
			"nonce": hx(sealed[:24]), "message": describeDisco(m), "plain": hx(plain), "datagram": hx(datagram),
		})
		damaged := [][]byte{append(plain[:len(plain):len(plain)], 0), append(plain[:len(plain):len(plain)], randomness.bytes(17)...)}
		for _, n := range []int{0, 1, 2, 3, 13, 14, 15, 20, 31, 32, 33, 45, 46, 47, len(plain) - 1} {
			if n >= 0 && n < len(plain) {
				damaged = append(damaged, plain[:n])
			}
		}
		for version := byte(1); version < 3; version++ {
			d := append([]byte(nil), plain...)
			d[1] = version
			damaged = append(damaged, d)
		}
		d := append([]byte(nil), plain...)
		d[0] = 0x7f
		damaged = append(damaged, d)
		for _, d := range damaged {
			v := parseDisco(d)
			v["plain"] = hx(d)
			parses = append(parses, v)
		}
	}
	return object{"messages": out, "parses": parses}
}

// stunVectors: binding requests and responses, and what upstream's parser says of others.
func stunVectors() any {
	var requests, responses []object
	for range 3 {
		var tx stun.TxID
		copy(tx[:], randomness.bytes(12))
		requests = append(requests, object{"tx_id": hx(tx[:]), "packet": hx(stun.Request(tx))})
		for _, at := range []string{"203.0.113.77:54321", "[2001:db8:1:2:3:4:5:6]:1", "127.0.0.1:65535"} {
			packet := stun.Response(tx, netip.MustParseAddrPort(at))
			responses = append(responses, object{"tx_id": hx(tx[:]), "address": at, "packet": hx(packet)})
		}
	}
	base := unhex(responses[0]["packet"].(string))
	tx := base[8:20]
	attr := func(kind uint16, body []byte) []byte {
		b := []byte{byte(kind >> 8), byte(kind), byte(len(body) >> 8), byte(len(body))}
		b = append(b, body...)
		for len(b)%4 != 0 {
			b = append(b, 0)
		}
		return b
	}
	answer := func(attrs ...[]byte) []byte {
		var body []byte
		for _, a := range attrs {
			body = append(body, a...)
		}
		head := []byte{1, 1, byte(len(body) >> 8), byte(len(body)), 0x21, 0x12, 0xa4, 0x42}
		return append(append(head, tx...), body...)
	}
	mapped := []byte{0, 1, 0x12, 0x34, 192, 0, 2, 1}
	xor := []byte{0, 1, 0x12 ^ 0x21, 0x34 ^ 0x12, 192 ^ 0x21, 0 ^ 0x12, 2 ^ 0xa4, 1 ^ 0x42}
	var parses []object
	for _, p := range [][]byte{
		base, base[:19], base[:20], base[:len(base)-1], append(base[:len(base):len(base)], 1, 2, 3),
		answer(attr(1, mapped)), answer(attr(0x20, xor)), answer(attr(0x8020, xor)),
		answer(attr(1, mapped), attr(0x20, xor)), answer(attr(0x8022, []byte("some software")), attr(0x20, xor)),
		answer(attr(0x20, xor[:7])), answer(attr(0x20, nil)), answer(attr(0x20, []byte{0, 9, 1, 2, 3, 4, 5, 6})),
		answer(attr(0x20, xor), []byte{0, 1, 0xff, 0xff}), answer(), answer(attr(1, []byte{0, 2, 1, 2, 3, 4, 5, 6})),
		unhex(requests[0]["packet"].(string)),
	} {
		v := parseStun(p)
		v["packet"] = hx(p)
		parses = append(parses, v)
	}
	req := unhex(requests[0]["packet"].(string))
	flip := func(at int) []byte {
		b := append([]byte(nil), req...)
		b[at] ^= 1
		return b
	}
	var servers []object
	for _, p := range [][]byte{req, flip(0), flip(1), flip(3), flip(4), flip(len(req) - 1), req[:len(req)-1], req[:20], base} {
		id, err := stun.ParseBindingRequest(p)
		servers = append(servers, object{"packet": hx(p), "is_stun": stun.Is(p), "ok": err == nil, "tx_id": hx(id[:])})
	}
	return object{"requests": requests, "responses": responses, "parses": parses, "parses_as_request": servers}
}

func parseStun(p []byte) object {
	id, at, err := stun.ParseResponse(p)
	if err != nil {
		return object{"ok": false, "is_stun": stun.Is(p), "error": err.Error()}
	}
	return object{"ok": true, "is_stun": stun.Is(p), "tx_id": hx(id[:]), "address": at.String()}
}
