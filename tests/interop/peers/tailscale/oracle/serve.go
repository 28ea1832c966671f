package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"

	"tailscale.com/net/packet"
	"tailscale.com/net/stun"
	"tailscale.com/types/key"
)

// serve answers questions: {"op": "filter", ...a case...}, {"op": "packet" | "disco" | "stun", "hex": ...},
// {"op": "key", "text": ...}. One line in, one line out, in order.
func serve() {
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(nil, 64<<20)
	out := json.NewEncoder(os.Stdout)
	for in.Scan() {
		out.Encode(answer(in.Bytes()))
	}
}

func answer(line []byte) (v any) {
	defer func() {
		if p := recover(); p != nil {
			v = object{"error": fmt.Sprint(p)}
		}
	}()
	var q struct {
		Op   string `json:"op"`
		Hex  string `json:"hex"`
		Text string `json:"text"`
		filterCase
	}
	if err := json.Unmarshal(line, &q); err != nil {
		return object{"error": err.Error()}
	}
	switch q.Op {
	case "filter":
		if err := q.judge(); err != nil {
			return object{"error": err.Error()}
		}
		verdicts := make([]bool, len(q.Steps))
		for i, s := range q.Steps {
			verdicts[i] = s.Accept
		}
		return object{"accept": verdicts}
	case "packet":
		var p packet.Parsed
		p.Decode(unhex(q.Hex))
		return object{"version": p.IPVersion, "protocol": int(p.IPProto), "src": p.Src.String(), "dst": p.Dst.String(), "tcp_flags": int(p.TCPFlags)}
	case "disco":
		return parseDisco(unhex(q.Hex))
	case "stun":
		b := unhex(q.Hex)
		v := parseStun(b)
		_, err := stun.ParseBindingRequest(b)
		v["is_request"] = err == nil
		return v
	case "key":
		var n key.NodePublic
		var m key.MachinePublic
		var d key.DiscoPublic
		t := []byte(q.Text)
		return object{"node": n.UnmarshalText(t) == nil, "machine": m.UnmarshalText(t) == nil, "disco": d.UnmarshalText(t) == nil}
	}
	return object{"error": "unknown op"}
}
