package main

import (
	"strings"

	"go4.org/mem"
	"golang.org/x/crypto/curve25519"
	"tailscale.com/types/key"
)

func machineFromRaw(raw []byte) (k key.MachinePrivate) {
	must(k.UnmarshalText([]byte("privkey:" + hx(raw))))
	return k
}

func clamped() []byte {
	b := randomness.bytes(32)
	b[0] &= 248
	b[31] = b[31]&127 | 64
	return b
}

func text(v interface{ MarshalText() ([]byte, error) }) string { return string(must1(v.MarshalText())) }

// keys: text forms of every kind, NaCl boxes between them, and texts that must be refused.
func keys() any {
	var forms []object
	for range 4 {
		raw := clamped()
		pub := must1(curve25519.X25519(raw, curve25519.Basepoint))
		node := key.NodePrivateFromRaw32(mem.B(raw))
		machine := machineFromRaw(raw)
		disco := key.DiscoPrivateFromRaw32(mem.B(raw))
		forms = append(forms, object{
			"private": hx(raw), "public": hx(pub),
			"node_private_text":    text(node),
			"machine_private_text": text(machine),
			"node_text":            text(node.Public()),
			"machine_text":         text(machine.Public()),
			"disco_text":           text(disco.Public()),
			"node_short":           node.Public().ShortString(),
			"machine_short":        machine.Public().ShortString(),
			"disco_short":          disco.Public().ShortString(),
		})
	}
	var boxes []object
	for i, n := range []int{0, 1, 16, 100, 1000} {
		a, b := clamped(), clamped()
		na, nb := key.NodePrivateFromRaw32(mem.B(a)), key.NodePrivateFromRaw32(mem.B(b))
		clear := randomness.bytes(n)
		sealed := na.SealTo(nb.Public(), clear)
		da, db := key.DiscoPrivateFromRaw32(mem.B(a)), key.DiscoPrivateFromRaw32(mem.B(b))
		discoSealed := da.Shared(db.Public()).Seal(clear)
		pa, pb := na.Public().Raw32(), nb.Public().Raw32()
		bad := append([]byte(nil), sealed...)
		bad[(i*7)%len(bad)] ^= 1
		_, opened := nb.OpenFrom(na.Public(), bad)
		boxes = append(boxes, object{
			"from_private": hx(a), "from_public": hx(pa[:]), "to_private": hx(b), "to_public": hx(pb[:]),
			"clear": hx(clear), "nonce": hx(sealed[:24]), "sealed": hx(sealed),
			"disco_nonce": hx(discoSealed[:24]), "disco_sealed": hx(discoSealed),
			"tampered": hx(bad), "tampered_opens": opened,
		})
	}
	good := strings.Repeat("0123456789abcdef", 4)
	var texts []object
	for _, s := range []string{
		"nodekey:" + good, "mkey:" + good, "discokey:" + good, "privkey:" + good,
		"nodekey:" + strings.ToUpper(good), "nodekey:" + good[:62], "nodekey:" + good + "00", "nodekey:" + good[:63] + "g",
		"nodekey " + good, "nodeKey:" + good, "mkey:" + good[1:], good, "", "nodekey:", "nodekey:" + strings.Repeat("0", 64),
		" nodekey:" + good, "nodekey:" + good + "\n", "nodekey:0x" + good[2:],
	} {
		var n key.NodePublic
		var m key.MachinePublic
		var d key.DiscoPublic
		var p key.NodePrivate
		texts = append(texts, object{
			"text":         s,
			"node_public":  n.UnmarshalText([]byte(s)) == nil,
			"machine":      m.UnmarshalText([]byte(s)) == nil,
			"disco":        d.UnmarshalText([]byte(s)) == nil,
			"node_private": p.UnmarshalText([]byte(s)) == nil,
		})
	}
	return object{"forms": forms, "boxes": boxes, "texts": texts}
}
