// Command oracle asks upstream's Go code for the truth.
//
//	oracle vectors DIR   writes DIR/*.json: messages upstream's code made from fixed keys and randomness
//	oracle serve         answers one JSON question per line of standard input (filter, packet, disco, stun, key)
//
// The formats are in tests/vectors/README.md.
package main

import (
	crand "crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
)

type object map[string]any

func main() {
	log.SetFlags(0)
	switch {
	case len(os.Args) == 3 && os.Args[1] == "vectors":
		writeVectors(os.Args[2])
	case len(os.Args) == 2 && os.Args[1] == "serve":
		serve()
	default:
		log.Fatal("usage: oracle vectors DIR | oracle serve")
	}
}

func writeVectors(dir string) {
	for _, v := range []struct {
		name string
		make func() any
	}{
		{"keys", keys}, {"disco", discoVectors}, {"stun", stunVectors}, {"control_noise", controlNoise},
		{"derp", derpVectors}, {"wireguard", wireguard}, {"filter", filterVectors}, {"mapresponse", mapResponse},
	} {
		randomness.restart(v.name)
		out, err := json.MarshalIndent(v.make(), "", " ")
		must(err)
		path := filepath.Join(dir, v.name+".json")
		must(os.WriteFile(path, append(out, '\n'), 0o644))
		fmt.Println(path)
	}
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func must1[T any](v T, err error) T {
	must(err)
	return v
}

func hx(b []byte) string { return hex.EncodeToString(b) }

func unhex(s string) []byte { return must1(hex.DecodeString(s)) }

// recorder stands in for the system's randomness: a seeded stream whose every draw is remembered,
// so that a vector can say which ephemeral key or nonce went into it.
type recorder struct {
	mu    sync.Mutex
	src   *rand.ChaCha8
	draws [][]byte
}

var randomness = func() *recorder {
	r := &recorder{}
	r.restart("")
	crand.Reader = r
	return r
}()

func (r *recorder) restart(seed string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var s [32]byte
	copy(s[:], "pytailscale vectors: "+seed)
	r.src, r.draws = rand.NewChaCha8(s), nil
}

func (r *recorder) Read(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.src.Read(p)
	r.draws = append(r.draws, append([]byte(nil), p...))
	return len(p), nil
}

// bytes draws n bytes for our own use (payloads, transaction ids).
func (r *recorder) bytes(n int) []byte {
	b := make([]byte, n)
	io.ReadFull(r, b)
	return b
}

// find returns the draw for which match is true.
func (r *recorder) find(match func([]byte) bool) []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, d := range r.draws {
		if match(d) {
			return d
		}
	}
	panic("no such draw")
}
