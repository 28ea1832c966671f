// Command control is upstream's in-memory control server with tailnet lock: every node may use it.
//
// It cannot take changes of a lock (lock add, remove, disable end the process), and tells nodes of a lock with
// their next whole map.
package main

import (
	"encoding/json"
	"flag"
	"log"
	"net/http"
	"os"

	"tailscale.com/tailcfg"
	"tailscale.com/tstest/integration/testcontrol"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:0", "control address")
	derpMap := flag.String("derp-map", "", "file with the DERP map")
	flag.Parse()
	server := &testcontrol.Server{
		AllOnline: true, AllNodesSameUser: true, MagicDNSDomain: "rig.test", ExplicitBaseURL: "http://" + *listen,
		DERPMap:   &tailcfg.DERPMap{},
		DNSConfig: &tailcfg.DNSConfig{Proxied: true, Domains: []string{"rig.test"}},
		DefaultNodeCapabilities: &tailcfg.NodeCapMap{
			"https://tailscale.com/cap/tailnet-lock": nil, "https://tailscale.com/cap/file-sharing": nil,
		},
	}
	text, err := os.ReadFile(*derpMap)
	if err == nil {
		err = json.Unmarshal(text, server.DERPMap)
	}
	if err != nil {
		log.Fatal(err)
	}
	log.Fatal(http.ListenAndServe(*listen, server))
}
