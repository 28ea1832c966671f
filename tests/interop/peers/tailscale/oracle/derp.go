package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"net"
	"time"

	"tailscale.com/derp"
	"tailscale.com/derp/derpserver"
	"tailscale.com/disco"
	"tailscale.com/net/memnet"
	"tailscale.com/types/key"
	"tailscale.com/types/logger"
)

func splitFrames(b []byte) (out []object) {
	for len(b) >= 5 {
		n := int(binary.BigEndian.Uint32(b[1:5]))
		out = append(out, object{"type": int(b[0]), "payload": hx(b[5 : 5+n])})
		b = b[5+n:]
	}
	if len(b) != 0 {
		panic("trailing bytes")
	}
	return out
}

type derpEnd struct {
	client *derp.Client
	up     *tapped // what the client sends
	down   *tapped // what the server sends
}

func derpConnect(s *derpserver.Server, k key.NodePrivate, opts ...derp.ClientOpt) *derpEnd {
	a, b := memnet.NewConn("derp", 1<<20)
	up, down := &tapped{Conn: a}, &tapped{Conn: b}
	go s.Accept(context.Background(), down, bufio.NewReadWriter(bufio.NewReader(down), bufio.NewWriter(down)), "127.0.0.1:1")
	c := must1(derp.NewClient(k, derpConn{up}, bufio.NewReadWriter(bufio.NewReader(up), bufio.NewWriter(up)), logger.Discard, opts...))
	return &derpEnd{c, up, down}
}

type derpConn struct{ net.Conn }

// next reads messages until one is of the wanted kind.
func next[T derp.ReceivedMessage](c *derp.Client) T {
	for {
		m := must1(c.Recv())
		if v, ok := m.(T); ok {
			return v
		}
	}
}

// derpVectors: two of upstream's clients at upstream's server, every frame either side wrote;
// and frames that only appear in rare moments, made by upstream's encoder.
func derpVectors() any {
	serverKey, ka, kb := key.NewNode(), key.NewNode(), key.NewNode()
	s := derpserver.New(serverKey, logger.Discard)
	a := derpConnect(s, ka, derp.CanAckPings(true))
	next[derp.ServerInfoMessage](a.client)
	b := derpConnect(s, kb)
	next[derp.ServerInfoMessage](b.client)
	for !s.IsClientConnectedForTest(kb.Public()) {
		time.Sleep(time.Millisecond)
	}
	must(a.client.NotePreferred(true))
	for _, n := range []int{1, 148, 1300} {
		must(a.client.Send(kb.Public(), randomness.bytes(n)))
		next[derp.ReceivedPacket](b.client)
	}
	must(b.client.Send(ka.Public(), randomness.bytes(64)))
	next[derp.ReceivedPacket](a.client)
	must(a.client.SendPing([8]byte{1, 2, 3, 4, 5, 6, 7, 8}))
	next[derp.PongMessage](a.client)
	b.up.Conn.Close()
	next[derp.PeerGoneMessage](a.client) // because a has had packets from b
	// Only a disco message to an absent peer is answered.
	must(a.client.Send(kb.Public(), append([]byte(disco.Magic), randomness.bytes(80)...)))
	next[derp.PeerGoneMessage](a.client)
	raw := func(k key.NodePrivate) (string, string) {
		priv, pub := k.Raw32(), k.Public().Raw32()
		return hx(priv[:]), hx(pub[:])
	}
	sp, sq := raw(serverKey)
	ap, aq := raw(ka)
	bp, bq := raw(kb)

	frame := func(name string, t derp.FrameType, body []byte) object {
		var buf bytes.Buffer
		w := bufio.NewWriter(&buf)
		must(derp.WriteFrame(w, t, body))
		w.Flush()
		return object{"name": name, "type": int(t), "payload": hx(body), "wire": hx(buf.Bytes())}
	}
	pub := kb.Public().Raw32()
	rare := []object{
		frame("keep_alive", derp.FrameKeepAlive, nil),
		frame("health_bad", derp.FrameHealth, []byte("you are connected twice")),
		frame("health_good", derp.FrameHealth, nil),
		frame("restarting", derp.FrameRestarting, binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, 250), 5000)),
		frame("peer_gone_disconnected", derp.FramePeerGone, append(pub[:len(pub):len(pub)], byte(derp.PeerGoneReasonDisconnected))),
		frame("peer_gone_not_here", derp.FramePeerGone, append(pub[:len(pub):len(pub)], byte(derp.PeerGoneReasonNotHere))),
		frame("peer_gone_short", derp.FramePeerGone, pub[:]),
		frame("unknown", derp.FrameType(0x7e), []byte("ignored")),
		frame("not_preferred", derp.FrameNotePreferred, []byte{0}),
	}
	return object{
		"server_private": sp, "server_public": sq, "a_private": ap, "a_public": aq, "b_private": bp, "b_public": bq,
		"a_sent": splitFrames(a.up.take()), "a_received": splitFrames(a.down.take()),
		"b_sent": splitFrames(b.up.take()), "b_received": splitFrames(b.down.take()),
		"frames": rare,
	}
}
