package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	"pytailscale.test/peers/tailscale/pattern"
	"tailscale.com/client/local"
)

func pingOptions(size int) local.PingOpts { return local.PingOpts{Size: size} }

// bench measures one figure against a peer that serves :7, :9 and :19.
// Kinds: up, down (Mbit/s of one stream), rtt (64-byte echo, microseconds), connect (per second).
func (n *node) bench(ctx context.Context, c command) (object, error) {
	if c.Seconds == 0 {
		c.Seconds = 5
	}
	span := time.Duration(c.Seconds * float64(time.Second))
	before := usage()["cpu_s"].(float64)
	started := time.Now()
	v := object{"kind": c.Kind}
	rate := func(count int64) {
		took := time.Since(started).Seconds()
		v["bytes"], v["seconds"], v["mbit_s"] = count, took, float64(count)*8/took/1e6
	}
	switch c.Kind {
	case "up":
		c.Port = 9
		conn, err := n.server.Dial(ctx, "tcp", target(c))
		if err != nil {
			return nil, err
		}
		defer conn.Close()
		started = time.Now()
		chunk := pattern.Block
		var count int64
		for time.Since(started) < span {
			sent, err := conn.Write(chunk)
			count += int64(sent)
			if err != nil {
				return nil, err
			}
		}
		conn.(interface{ CloseWrite() error }).CloseWrite()
		if _, err := io.ReadAll(conn); err != nil { // the hash: all of it has arrived
			return nil, err
		}
		rate(count)
	case "down":
		c.Port = 19
		conn, err := n.server.Dial(ctx, "tcp", target(c))
		if err != nil {
			return nil, err
		}
		defer conn.Close()
		fmt.Fprintf(conn, "%d\n", int64(1)<<40)
		started = time.Now()
		conn.SetReadDeadline(started.Add(span))
		count, _ := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{conn}, make([]byte, 128<<10))
		rate(count)
		abort(conn)
	case "rtt":
		c.Port = 7
		conn, err := n.server.Dial(ctx, "tcp", target(c))
		if err != nil {
			return nil, err
		}
		defer conn.Close()
		buf := make([]byte, 64)
		var took []float64
		for time.Since(started) < span {
			at := time.Now()
			if _, err := conn.Write(buf); err != nil {
				return nil, err
			}
			if _, err := io.ReadFull(conn, buf); err != nil {
				return nil, err
			}
			took = append(took, float64(time.Since(at).Nanoseconds())/1000)
		}
		slices.Sort(took)
		v["count"], v["median_us"], v["p99_us"] = len(took), took[len(took)/2], took[len(took)*99/100]
	case "connect":
		c.Port = 7
		count := 0
		buf := make([]byte, 1)
		for time.Since(started) < span {
			conn, err := n.server.Dial(ctx, "tcp", target(c))
			if err != nil {
				return nil, err
			}
			conn.Write(buf)
			if _, err := io.ReadFull(conn, buf); err != nil {
				return nil, err
			}
			conn.Close()
			count++
		}
		v["count"], v["per_s"] = count, float64(count)/time.Since(started).Seconds()
	default:
		return nil, fmt.Errorf("unknown bench %q", c.Kind)
	}
	u := usage()
	v["cpu_s"], v["rss_kb"] = u["cpu_s"].(float64)-before, u["rss_kb"]
	return v, nil
}
