// localclient asks a daemon through upstream's own client library, and prints one JSON object of what it was told.
//
//	localclient SOCKET PEER
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"os"
	"time"

	"tailscale.com/client/local"
	"tailscale.com/ipn"
	"tailscale.com/tailcfg"
)

func main() {
	if len(os.Args) != 3 {
		log.Fatal("usage: localclient SOCKET PEER")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	lc := &local.Client{Socket: os.Args[1], UseSocketOnly: true}
	told := map[string]any{}

	st, err := lc.Status(ctx)
	check("Status", err)
	told["state"], told["self"], told["peers"] = st.BackendState, st.Self.HostName, len(st.Peer)
	without, err := lc.StatusWithoutPeers(ctx)
	check("StatusWithoutPeers", err)
	told["peers without peers"] = len(without.Peer)

	for _, peer := range st.Peer {
		if peer.HostName != os.Args[2] {
			continue
		}
		who, err := lc.WhoIs(ctx, peer.TailscaleIPs[0].String()+":1")
		check("WhoIs", err)
		told["whois"], told["user"] = who.Node.ComputedName, who.UserProfile.LoginName
		pong, err := lc.Ping(ctx, peer.TailscaleIPs[0], tailcfg.PingTSMP)
		check("Ping", err)
		told["ping"] = pong.Err
	}

	prefs, err := lc.GetPrefs(ctx)
	check("GetPrefs", err)
	told["hostname"] = prefs.Hostname
	prefs, err = lc.EditPrefs(ctx, &ipn.MaskedPrefs{Prefs: ipn.Prefs{ShieldsUp: true}, ShieldsUpSet: true})
	check("EditPrefs", err)
	told["shields"] = prefs.ShieldsUp
	derp, err := lc.CurrentDERPMap(ctx)
	check("CurrentDERPMap", err)
	told["regions"] = len(derp.Regions)
	current, all, err := lc.ProfileStatus(ctx)
	check("ProfileStatus", err)
	told["profile"], told["profiles"] = current.Name, len(all)

	watcher, err := lc.WatchIPNBus(ctx, ipn.NotifyInitialState|ipn.NotifyInitialPrefs|ipn.NotifyInitialNetMap)
	check("WatchIPNBus", err)
	first, err := watcher.Next()
	check("Next", err)
	told["bus state"], told["bus hostname"] = first.State.String(), first.Prefs.Hostname()
	told["bus peers"] = len(first.NetMap.Peers)
	watcher.Close()

	conn, err := lc.DialTCP(ctx, os.Args[2], 7)
	check("DialTCP", err)
	fmt.Fprint(conn, "hello")
	answer := make([]byte, 5)
	_, err = io.ReadFull(conn, answer)
	check("ReadFull", err)
	told["echo"] = string(answer)
	conn.Close()

	check("Encode", json.NewEncoder(os.Stdout).Encode(told))
}

func check(what string, err error) {
	if err != nil {
		log.Fatalf("%s: %v", what, err)
	}
}
