package main

import (
	"bytes"
	"crypto/hmac"
	"encoding/binary"
	"fmt"
	"hash"
	"net/netip"
	"sync"

	"github.com/tailscale/wireguard-go/conn"
	"github.com/tailscale/wireguard-go/conn/bindtest"
	"github.com/tailscale/wireguard-go/device"
	"github.com/tailscale/wireguard-go/tun/tuntest"
	"golang.org/x/crypto/blake2s"
	"golang.org/x/crypto/chacha20poly1305"
	"golang.org/x/crypto/curve25519"
)

// tapBind records what one device sends.
type tapBind struct {
	conn.Bind
	name string
	tape *tape
}

type tape struct {
	mu      sync.Mutex
	entries []object
	cond    *sync.Cond
}

func (b *tapBind) Send(bufs [][]byte, ep conn.Endpoint, offset int) error {
	b.tape.mu.Lock()
	for _, p := range bufs {
		b.tape.entries = append(b.tape.entries, object{"from": b.name, "datagram": hx(p[offset:])})
	}
	b.tape.cond.Broadcast()
	b.tape.mu.Unlock()
	return b.Bind.Send(bufs, ep, offset)
}

func (t *tape) wait(n int) []object {
	t.mu.Lock()
	defer t.mu.Unlock()
	for len(t.entries) < n {
		t.cond.Wait()
	}
	return t.entries
}

func ip4Packet(src, dst string, total int) []byte {
	p := make([]byte, total)
	p[0], p[8], p[9] = 0x45, 64, 17
	binary.BigEndian.PutUint16(p[2:], uint16(total))
	copy(p[12:], netip.MustParseAddr(src).AsSlice())
	copy(p[16:], netip.MustParseAddr(dst).AsSlice())
	copy(p[20:], randomness.bytes(total-20))
	return p
}

// wireguard: two wireguard-go devices talk; every datagram, the secrets behind them, and the
// intermediate values recomputed here from the paper and checked against those datagrams.
func wireguard() any {
	var sessions []object
	for _, psk := range [][]byte{make([]byte, 32), randomness.bytes(32)} {
		sessions = append(sessions, wireguardSession(psk))
	}
	return object{"sessions": sessions, "cookies": cookies()}
}

func wireguardSession(psk []byte) object {
	randomness.mu.Lock()
	randomness.draws = nil
	randomness.mu.Unlock()
	a, b := clamped(), clamped()
	pa, pb := must1(curve25519.X25519(a, curve25519.Basepoint)), must1(curve25519.X25519(b, curve25519.Basepoint))
	t := &tape{}
	t.cond = sync.NewCond(&t.mu)
	binds := bindtest.NewChannelBinds()
	ta, tb := tuntest.NewChannelTUN(), tuntest.NewChannelTUN()
	quiet := device.NewLogger(device.LogLevelSilent, "")
	da := device.NewDevice(ta.TUN(), &tapBind{binds[0], "initiator", t}, quiet)
	db := device.NewDevice(tb.TUN(), &tapBind{binds[1], "responder", t}, quiet)
	config := func(own, peer []byte, ip string, endpoint int) string {
		return fmt.Sprintf("private_key=%x\nlisten_port=0\npublic_key=%x\npreshared_key=%x\nprotocol_version=1\nreplace_allowed_ips=true\nallowed_ip=%s/32\nendpoint=127.0.0.1:%d\n",
			own, peer, psk, ip, endpoint)
	}
	must(da.IpcSet(config(a, pb, "1.0.0.2", 1)))
	must(db.IpcSet(config(b, pa, "1.0.0.1", 2)))
	must(da.Up())
	must(db.Up())

	var inner []object
	send := func(from, to *tuntest.ChannelTUN, name, src, dst string, size int) {
		p := ip4Packet(src, dst, size)
		from.Outbound <- p
		got := <-to.Inbound
		if !bytes.Equal(got, p) {
			panic("packet changed on the way")
		}
		inner = append(inner, object{"from": name, "packet": hx(p)})
	}
	for i, size := range []int{28, 32, 33, 1280, 1420, 1415, 60} {
		if i%3 == 2 {
			send(tb, ta, "responder", "1.0.0.2", "1.0.0.1", size)
		} else {
			send(ta, tb, "initiator", "1.0.0.1", "1.0.0.2", size)
		}
	}
	t.wait(2 + len(inner))
	db.SendKeepalivesToPeersWithCurrentKeypair()
	tapes := t.wait(3 + len(inner))
	v := object{
		"initiator_private": hx(a), "initiator_public": hx(pa), "responder_private": hx(b), "responder_public": hx(pb),
		"preshared_key": hx(psk), "tun_mtu": tuntest.DefaultMTU, "packets": inner, "datagrams": tapes[:3+len(inner)],
	}
	explain(v, a, b, pa, pb, psk)
	da.Close()
	db.Close()
	return v
}

func h(parts ...[]byte) []byte {
	s, _ := blake2s.New256(nil)
	for _, p := range parts {
		s.Write(p)
	}
	return s.Sum(nil)
}

func mac(k []byte, parts ...[]byte) []byte {
	m := hmac.New(func() hash.Hash { s, _ := blake2s.New256(nil); return s }, k)
	for _, p := range parts {
		m.Write(p)
	}
	return m.Sum(nil)
}

func kdf(n int, k, in []byte) (out [][]byte) {
	secret := mac(k, in)
	var last []byte
	for i := range n {
		last = mac(secret, last, []byte{byte(i + 1)})
		out = append(out, last)
	}
	return out
}

func open(k []byte, counter uint64, sealed, ad []byte) []byte {
	nonce := make([]byte, 12)
	binary.LittleEndian.PutUint64(nonce[4:], counter)
	return must1(must1(chacha20poly1305.New(k)).Open(nil, nonce, sealed, ad))
}

// explain walks the handshake as the paper tells it and adds every value a test may want.
func explain(v object, a, b, pa, pb, psk []byte) {
	tapes := v["datagrams"].([]object)
	first, second := unhex(tapes[0]["datagram"].(string)), unhex(tapes[1]["datagram"].(string))
	dh := func(priv, pub []byte) []byte { return must1(curve25519.X25519(priv, pub)) }
	ea, eb := first[8:40], second[12:44]
	pea, peb := privateOf(ea), privateOf(eb)
	ck := h([]byte("Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s"))
	hh := h(h(ck, []byte("WireGuard v1 zx2c4 Jason@zx2c4.com")), pb)
	ck = kdf(1, ck, ea)[0]
	hh = h(hh, ea)
	ks := kdf(2, ck, dh(pea, pb))
	ck = ks[0]
	static := open(ks[1], 0, first[40:88], hh)
	if !bytes.Equal(static, pa) {
		panic("static key")
	}
	hh = h(hh, first[40:88])
	ks = kdf(2, ck, dh(a, pb))
	ck = ks[0]
	timestamp := open(ks[1], 0, first[88:116], hh)
	hh = h(hh, first[88:116])
	v["timestamp"], v["chain_key_after_initiation"], v["hash_after_initiation"] = hx(timestamp), hx(ck), hx(hh)
	ck = kdf(1, ck, eb)[0]
	hh = h(hh, eb)
	ck = kdf(1, ck, dh(peb, ea))[0]
	ck = kdf(1, ck, dh(peb, pa))[0]
	ks = kdf(3, ck, psk)
	ck = ks[0]
	hh = h(hh, ks[1])
	open(ks[2], 0, second[44:60], hh)
	hh = h(hh, second[44:60])
	v["chain_key_after_response"], v["hash_after_response"] = hx(ck), hx(hh)
	ks = kdf(2, ck, nil)
	v["initiator_ephemeral_private"], v["responder_ephemeral_private"] = hx(pea), hx(peb)
	v["initiator_index"], v["responder_index"] = binary.LittleEndian.Uint32(first[4:]), binary.LittleEndian.Uint32(second[4:])
	v["initiator_sends_key"], v["responder_sends_key"] = hx(ks[0]), hx(ks[1])
	for _, e := range tapes[2:] {
		d := unhex(e["datagram"].(string))
		k := ks[0]
		if e["from"] == "responder" {
			k = ks[1]
		}
		counter := binary.LittleEndian.Uint64(d[8:])
		e["counter"], e["padded"] = counter, hx(open(k, counter, d[16:], nil))
	}
}

// cookies: mac1 and mac2 on a message, and the cookie reply between.
func cookies() (out []object) {
	for _, src := range []string{"192.0.2.1:51820", "[2001:db8::1]:41641"} {
		randomness.mu.Lock()
		randomness.draws = nil
		randomness.mu.Unlock()
		raw := clamped()
		pub := must1(curve25519.X25519(raw, curve25519.Basepoint))
		var pk device.NoisePublicKey
		copy(pk[:], pub)
		at := netip.MustParseAddrPort(src)
		source := must1(at.MarshalBinary())
		var checker device.CookieChecker
		var generator device.CookieGenerator
		checker.Init(pk)
		generator.Init(pk)
		message := randomness.bytes(148)
		generator.AddMacs(message)
		randomness.mu.Lock()
		before := len(randomness.draws)
		randomness.mu.Unlock()
		reply := must1(checker.CreateReply(message, 0x11223344, source))
		var wire bytes.Buffer
		must(binary.Write(&wire, binary.LittleEndian, reply))
		secret := randomness.draws[before]
		if !generator.ConsumeReply(reply) {
			panic("cookie reply refused")
		}
		again := append([]byte(nil), message...)
		generator.AddMacs(again)
		out = append(out, object{
			"responder_public": hx(pub), "source": src, "source_bytes": hx(source), "secret": hx(secret),
			"message_with_mac1": hx(message), "receiver_index": 0x11223344, "reply": hx(wire.Bytes()), "nonce": hx(reply.Nonce[:]),
			"message_with_mac2": hx(again), "mac1_ok": checker.CheckMAC1(again), "mac2_ok": checker.CheckMAC2(again, source),
		})
	}
	return out
}
