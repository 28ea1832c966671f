package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"io"
	"net"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/crypto/curve25519"
	"tailscale.com/control/controlbase"
	"tailscale.com/net/memnet"
	"tailscale.com/types/key"
)

// tapped remembers what was written to a connection.
type tapped struct {
	net.Conn
	mu      sync.Mutex
	written []byte
}

func (t *tapped) Write(p []byte) (int, error) {
	t.mu.Lock()
	t.written = append(t.written, p...)
	t.mu.Unlock()
	return t.Conn.Write(p)
}

func (t *tapped) take() []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := t.written
	t.written = nil
	return out
}

// privateOf finds the drawn private key behind a public one.
func privateOf(public []byte) []byte {
	return randomness.find(func(d []byte) bool {
		if len(d) != 32 {
			return false
		}
		p, err := curve25519.X25519(d, curve25519.Basepoint)
		return err == nil && bytes.Equal(p, public)
	})
}

// controlNoise: the ts2021 handshake and transport records as upstream's two halves exchange them.
func controlNoise() any {
	var out []object
	for _, version := range []uint16{1, 133} {
		control, machine := key.NewMachine(), key.NewMachine()
		a, b := memnet.NewConn("noise", 1<<20)
		ta, tb := &tapped{Conn: a}, &tapped{Conn: b}
		type result struct {
			c   *controlbase.Conn
			err error
		}
		served := make(chan result, 1)
		go func() {
			c, err := controlbase.Server(context.Background(), tb, control, nil)
			served <- result{c, err}
		}()
		client := must1(controlbase.Client(context.Background(), ta, machine, control.Public(), version))
		r := <-served
		must(r.err)
		server := r.c
		initiation, response := ta.take(), tb.take()
		hash := client.HandshakeHash()
		v := object{
			"version": version, "prologue": hx([]byte("Tailscale Control Protocol v" + itoa(int(version)))),
			"control_private": hx(control.UntypedBytes()), "control_public": hx(control.Public().UntypedBytes()),
			"machine_private": hx(machine.UntypedBytes()), "machine_public": hx(machine.Public().UntypedBytes()),
			"initiation": hx(initiation), "response": hx(response), "handshake_hash": hx(hash[:]),
			"client_ephemeral_private": hx(privateOf(initiation[5:37])),
			"server_ephemeral_private": hx(privateOf(response[3:35])),
		}
		var records []object
		for i, n := range []int{1, 5, 300, 4077, 4078, 4079, 9000, 1} {
			payload := randomness.bytes(n)
			from, to, tap, direction := client, server, ta, "client"
			if i%3 == 2 {
				from, to, tap, direction = server, client, tb, "server"
			}
			done := make(chan error, 1)
			go func() {
				_, err := io.ReadFull(to, make([]byte, n))
				done <- err
			}()
			must1(from.Write(payload))
			must(<-done)
			records = append(records, object{"from": direction, "payload": hx(payload), "wire": hx(tap.take())})
		}
		v["records"] = records
		out = append(out, v)
	}
	// What the server says to an initiation it cannot use.
	var refusals []object
	for _, damage := range []int{0, 2, 4, 40, 100} {
		control, machine := key.NewMachine(), key.NewMachine()
		initiation, _, err := controlbase.ClientDeferred(machine, control.Public(), 113)
		must(err)
		initiation[damage] ^= 0x10
		a, b := memnet.NewConn("noise", 1<<20)
		tb := &tapped{Conn: b}
		done := make(chan error, 1)
		go func() {
			ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
			defer cancel()
			_, err := controlbase.Server(ctx, tb, control, nil)
			done <- err
		}()
		a.Write(initiation)
		a.SetReadDeadline(time.Now().Add(time.Second))
		err = <-done
		refusals = append(refusals, object{"initiation": hx(initiation), "control_private": hx(control.UntypedBytes()),
			"answer": hx(tb.take()), "error": err.Error()})
	}
	return object{"handshakes": out, "refusals": refusals}
}

func itoa(n int) string { b, _ := json.Marshal(n); return string(b) }

// frameMap is a map response as it travels: 4 bytes of little-endian length, then zstd.
func frameMap(v []byte) []byte {
	enc := must1(zstd.NewWriter(nil))
	packed := enc.EncodeAll(v, nil)
	return append(binary.LittleEndian.AppendUint32(nil, uint32(len(packed))), packed...)
}
