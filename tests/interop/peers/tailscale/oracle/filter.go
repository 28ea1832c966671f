package main

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"

	"go4.org/netipx"
	"tailscale.com/net/packet"
	"tailscale.com/tailcfg"
	"tailscale.com/types/ipproto"
	"tailscale.com/wgengine/filter"
)

// filterCase is a question: rules, own addresses, capabilities of sources, and packets in order.
type filterCase struct {
	Name  string                  `json:"name"`
	Rules []tailcfg.FilterRule    `json:"rules"`
	Local []netip.Prefix          `json:"local"`
	Caps  map[netip.Addr][]string `json:"caps"`
	Steps []filterStep            `json:"steps"`
}

type filterStep struct {
	Direction string `json:"direction"` // "in" or "out"
	Packet    string `json:"packet"`
	Accept    bool   `json:"accept"`
}

func (c *filterCase) judge() error {
	matches, err := filter.MatchesFromFilterRules(c.Rules)
	if err != nil {
		return err
	}
	var local netipx.IPSetBuilder
	for _, p := range c.Local {
		local.AddPrefix(p)
	}
	set := must1(local.IPSet())
	has := func(ip netip.Addr, cap tailcfg.NodeCapability) bool { return slices.Contains(c.Caps[ip], string(cap)) }
	f := filter.New(matches, has, set, set, nil, func(string, ...any) {})
	for i := range c.Steps {
		var q packet.Parsed
		q.Decode(unhex(c.Steps[i].Packet))
		var r filter.Response
		if c.Steps[i].Direction == "out" {
			r, _ = f.RunOut(&q, 0)
		} else {
			r = f.RunIn(&q, 0)
		}
		c.Steps[i].Accept = r == filter.Accept
	}
	return nil
}

// ipPacket makes one packet; flags are TCP's, kind ICMP's type.
func ipPacket(src, dst netip.Addr, proto ipproto.Proto, sport, dport uint16, flags, kind byte) []byte {
	var body []byte
	switch proto {
	case ipproto.TCP:
		body = make([]byte, 20)
		body[12], body[13] = 0x50, flags
	case ipproto.UDP:
		body = make([]byte, 8+4)
		binary.BigEndian.PutUint16(body[4:], uint16(len(body)))
	case ipproto.SCTP:
		body = make([]byte, 16)
	case ipproto.ICMPv4, ipproto.ICMPv6:
		body = make([]byte, 8)
		body[0] = kind
	default:
		body = make([]byte, 12)
	}
	if proto == ipproto.TCP || proto == ipproto.UDP || proto == ipproto.SCTP {
		binary.BigEndian.PutUint16(body, sport)
		binary.BigEndian.PutUint16(body[2:], dport)
	}
	if src.Is4() {
		p := make([]byte, 20, 20+len(body))
		p[0], p[8], p[9] = 0x45, 64, byte(proto)
		binary.BigEndian.PutUint16(p[2:], uint16(20+len(body)))
		copy(p[12:], src.AsSlice())
		copy(p[16:], dst.AsSlice())
		return append(p, body...)
	}
	p := make([]byte, 40, 40+len(body))
	p[0], p[6], p[7] = 0x60, byte(proto), 64
	binary.BigEndian.PutUint16(p[4:], uint16(len(body)))
	copy(p[8:], src.AsSlice())
	copy(p[24:], dst.AsSlice())
	return append(p, body...)
}

// filterVectors: rules and packets drawn at random (seeded), judged by upstream's filter.
func filterVectors() any {
	r := rand.New(rand.NewPCG(20260801, 6))
	pick := func(s []string) string { return s[r.IntN(len(s))] }
	sources := []string{"100.64.0.2", "100.64.0.3", "100.64.0.0/24", "100.64.0.0/10", "*", "fd7a:115c:a1e0::2", "fd7a:115c:a1e0::/48", "100.64.0.5-100.64.0.9", "cap:example.com/cap/x", "10.20.0.0/16"}
	dests := []string{"100.64.0.1", "fd7a:115c:a1e0::1", "*", "10.20.0.0/16", "100.64.0.0/30", "0.0.0.0/0", "::/0"}
	ports := []tailcfg.PortRange{{First: 0, Last: 65535}, {First: 22, Last: 22}, {First: 80, Last: 90}, {First: 443, Last: 443}, {First: 0, Last: 0}, {First: 53, Last: 53}}
	protos := [][]int{nil, nil, nil, {6}, {17}, {6, 17}, {1, 58}, {47}, {132}, {}}
	hosts4 := []string{"100.64.0.1", "100.64.0.2", "100.64.0.3", "100.64.0.7", "10.20.1.2", "10.21.0.1", "224.0.0.1", "169.254.1.1", "127.0.0.1", "8.8.8.8"}
	hosts6 := []string{"fd7a:115c:a1e0::1", "fd7a:115c:a1e0::2", "fd7a:115c:a1e0::77", "2001:db8::1", "ff02::1", "fe80::1"}
	numbers := []uint16{0, 22, 53, 79, 80, 85, 90, 91, 443, 40000}
	var cases []filterCase
	for n := range 50 {
		c := filterCase{Name: "random " + itoa(n), Rules: []tailcfg.FilterRule{}, Caps: map[netip.Addr][]string{netip.MustParseAddr("100.64.0.3"): {"example.com/cap/x"}}}
		c.Local = []netip.Prefix{netip.MustParsePrefix("100.64.0.1/32"), netip.MustParsePrefix("fd7a:115c:a1e0::1/128")}
		if n%3 == 0 {
			c.Local = append(c.Local, netip.MustParsePrefix("10.20.0.0/16"))
		}
		for range r.IntN(4) {
			rule := tailcfg.FilterRule{IPProto: protos[r.IntN(len(protos))]}
			for range 1 + r.IntN(2) {
				rule.SrcIPs = append(rule.SrcIPs, pick(sources))
			}
			for range 1 + r.IntN(2) {
				rule.DstPorts = append(rule.DstPorts, tailcfg.NetPortRange{IP: pick(dests), Ports: ports[r.IntN(len(ports))]})
			}
			c.Rules = append(c.Rules, rule)
		}
		for range 40 {
			hosts := hosts4
			icmp := ipproto.ICMPv4
			if r.IntN(4) == 0 {
				hosts, icmp = hosts6, ipproto.ICMPv6
			}
			own, other := netip.MustParseAddr(hosts[0]), netip.MustParseAddr(pick(hosts))
			if r.IntN(5) == 0 {
				own = netip.MustParseAddr(pick(hosts))
			}
			proto := []ipproto.Proto{ipproto.TCP, ipproto.TCP, ipproto.UDP, ipproto.UDP, ipproto.UDP, icmp, ipproto.SCTP, ipproto.TSMP, ipproto.GRE, 255}[r.IntN(10)]
			flags := []byte{2, 2, 2, 0x12, 0x10, 4, 0, 0xc2}[r.IntN(8)]
			kind := []byte{0, 8, 3, 11, 5, 128, 129, 1, 2, 135}[r.IntN(10)]
			a, b := numbers[r.IntN(len(numbers))], numbers[r.IntN(len(numbers))]
			step := filterStep{Direction: "in", Packet: hx(ipPacket(other, own, proto, a, b, flags, kind))}
			if r.IntN(4) == 0 {
				step = filterStep{Direction: "out", Packet: hx(ipPacket(own, other, proto, b, a, flags, kind))}
			}
			c.Steps = append(c.Steps, step)
			if step.Direction == "out" { // and its answer
				c.Steps = append(c.Steps, filterStep{Direction: "in", Packet: hx(ipPacket(other, own, proto, a, b, flags, kind))})
			}
		}
		must(c.judge())
		cases = append(cases, c)
	}
	cases = append(cases, fragments())
	return object{"cases": cases}
}

// fragments: IPv4 fragments, runts, options and IPv6 extension headers under "allow TCP and UDP 80 from anyone".
func fragments() filterCase {
	src, dst := netip.MustParseAddr("100.64.0.2"), netip.MustParseAddr("100.64.0.1")
	c := filterCase{Name: "fragments and odd shapes", Local: []netip.Prefix{netip.MustParsePrefix("100.64.0.1/32"), netip.MustParsePrefix("fd7a:115c:a1e0::1/128")},
		Rules: []tailcfg.FilterRule{{SrcIPs: []string{"*"}, DstPorts: []tailcfg.NetPortRange{{IP: "*", Ports: tailcfg.PortRange{First: 80, Last: 80}}}}}}
	add := func(p []byte) { c.Steps = append(c.Steps, filterStep{Direction: "in", Packet: hx(p)}) }
	for _, port := range []uint16{80, 81} {
		for _, proto := range []ipproto.Proto{ipproto.TCP, ipproto.UDP} {
			whole := ipPacket(src, dst, proto, 1000, port, 2, 0)
			add(whole)
			for _, field := range []uint16{0x2000, 0x2001, 0x0001, 0x0002, 0x1fff, 0x000a, 0x4000, 0x8000, 0x2004} {
				p := append([]byte(nil), whole...)
				binary.BigEndian.PutUint16(p[6:], field)
				add(p)
				if proto == ipproto.UDP {
					add(append(p, make([]byte, 80)...))
				}
			}
			for _, n := range []int{0, 1, 4, 19, 20, 21, 24, 27, 28, 31, 39} {
				if n < len(whole) {
					add(whole[:n])
					short := append([]byte(nil), whole[:n]...)
					if n >= 20 {
						binary.BigEndian.PutUint16(short[2:], uint16(n))
						add(short)
					}
				}
			}
			long := append([]byte(nil), whole...)
			binary.BigEndian.PutUint16(long[2:], uint16(len(long)+1))
			add(long)
			options := append(append(append([]byte{0x46}, whole[1:20]...), 1, 1, 1, 0), whole[20:]...)
			binary.BigEndian.PutUint16(options[2:], uint16(len(options)))
			add(options)
			for _, first := range []byte{0x44, 0x40, 0x4f, 0x55, 0x65} {
				p := append([]byte(nil), whole...)
				p[0] = first
				add(p)
			}
			s6, d6 := netip.MustParseAddr("fd7a:115c:a1e0::2"), netip.MustParseAddr("fd7a:115c:a1e0::1")
			six := ipPacket(s6, d6, proto, 1000, port, 2, 0)
			add(six)
			for _, n := range []int{39, 40, 41, 44, 47, 48} {
				add(six[:n])
			}
			fragment := append(append([]byte(nil), six[:40]...), byte(proto), 0, 0, 1, 0, 0, 0, 1)
			fragment = append(fragment, six[40:]...)
			fragment[6] = 44
			binary.BigEndian.PutUint16(fragment[4:], uint16(len(fragment)-40))
			add(fragment)
			hop := append(append([]byte(nil), six[:40]...), byte(proto), 0, 1, 4, 0, 0, 0, 0)
			hop = append(hop, six[40:]...)
			hop[6] = 0
			binary.BigEndian.PutUint16(hop[4:], uint16(len(hop)-40))
			add(hop)
		}
	}
	must(c.judge())
	return c
}
