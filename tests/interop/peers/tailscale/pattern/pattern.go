// Package pattern makes the deterministic bytes both sides of the rig agree on.
//
// The stream is one block repeated for ever: the first 65521 bytes of
// SHA-256(0) || SHA-256(1) || ..., each counter an 8-byte big-endian number.
// 65521 is prime, so a shift by any packet size shows.
// The Python twin is tests/interop/pattern.py.
package pattern

import (
	"crypto/sha256"
	"encoding/binary"
	"io"
)

// BlockSize is the length of the repeated block.
const BlockSize = 65521

// Block is the repeated block.
var Block = func() []byte {
	var out []byte
	for i := uint64(0); len(out) < BlockSize; i++ {
		sum := sha256.Sum256(binary.BigEndian.AppendUint64(nil, i))
		out = append(out, sum[:]...)
	}
	return out[:BlockSize]
}()

var doubled = append(append([]byte(nil), Block...), Block...)

// Reader yields the first n bytes of the stream.
func Reader(n int64) io.Reader { return &reader{left: n} }

type reader struct {
	at   int
	left int64
}

func (r *reader) Read(p []byte) (int, error) {
	if r.left == 0 {
		return 0, io.EOF
	}
	if len(p) > BlockSize {
		p = p[:BlockSize]
	}
	if int64(len(p)) > r.left {
		p = p[:r.left]
	}
	n := copy(p, doubled[r.at:])
	r.at = (r.at + n) % BlockSize
	r.left -= int64(n)
	return n, nil
}
