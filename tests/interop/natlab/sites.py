"""The lab: an internet, and sites on it, each a client behind a router of some kind.

Which rules make a kind stands in `kinds.py`.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass

from tests.interop.natlab.kinds import HOSTS, HOSTS6, KINDS6, chain, rules_of
from tests.interop.natlab.namespaces import LabError, inside, nft, run
from tests.interop.processes import poll_until
from tests.interop.rig import Headscale, Rig

_LABS = itertools.count(1)


@dataclass
class Site:
    """One place on the lab's internet; `client` is the namespace a node runs in."""

    number: int
    kind: str
    client: str
    router: str
    address: str

    def udp_bytes(self) -> tuple[int, int]:
        """UDP payload-and-header bytes (in, out) that were neither to nor from the relays."""
        return self._tally("bytes")

    def udp_datagrams(self) -> tuple[int, int]:
        """The same as a number of datagrams."""
        return self._tally("packets")

    def _tally(self, unit: str) -> tuple[int, int]:
        text = run("ip", "netns", "exec", self.client, "nft", "list", "table", "inet", "tally")
        found = dict(re.findall(rf"counter (\w+) \{{[^}}]*?{unit} (\d+)", text))
        return int(found["inward"]), int(found["outward"])

    def block_udp(self, blocked: bool) -> None:
        """Drops (or passes again) all UDP at the client, as when a network changes its mind."""
        with contextlib.suppress(LabError):
            run("ip", "netns", "exec", self.client, "nft", "delete", "table", "inet", "block")
        if blocked:
            for hook in ("input", "output"):
                nft(self.client, chain("inet block", "filter", hook, -1, "meta l4proto udp drop"))

    def pull_cable(self, pulled: bool) -> None:
        """Drops everything at the client without a word to anybody, or passes it again."""
        with contextlib.suppress(LabError):
            run("ip", "netns", "exec", self.client, "nft", "delete", "table", "inet", "cable")
        if pulled:
            for hook in ("input", "output"):
                device = "iifname" if hook == "input" else "oifname"
                nft(self.client, chain("inet cable", "filter", hook, -1, f'{device} != "lo" drop'))

    def forget_mappings(self) -> None:
        """Empties the router's connection table, as a reboot does."""
        if shutil.which("conntrack"):
            subprocess.run(["ip", "netns", "exec", self.router, "conntrack", "-F"], capture_output=True, check=False)


class Lab:
    """Builds sites; all its namespaces carry one prefix and vanish with it."""

    def __init__(self) -> None:
        self._prefix = f"pt{os.getpid()}n{next(_LABS)}"
        self._made: list[str] = []
        self._numbers = itertools.count(1)
        self.inet = self._namespace("inet")
        for host in HOSTS:
            run("ip", "-n", self.inet, "addr", "add", f"{host}/32", "dev", "lo")
        for host in HOSTS6:
            run("ip", "-n", self.inet, "addr", "add", f"{host}/128", "dev", "lo", "nodad")

    def _namespace(self, name: str) -> str:
        full = f"{self._prefix}{name}"
        run("ip", "netns", "add", full)
        self._made.append(full)
        run("ip", "-n", full, "link", "set", "lo", "up")
        forwarding = ("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        run("ip", "netns", "exec", full, "sysctl", "-qw", *forwarding)
        return full

    def _wire(self, a: str, a_name: str, a_address: str, b: str, b_name: str, b_address: str) -> None:
        run("ip", "link", "add", a_name, "netns", a, "type", "veth", "peer", "name", b_name, "netns", b)
        for namespace, name, address in ((a, a_name, a_address), (b, b_name, b_address)):
            if ":" in address:
                run("ip", "-n", namespace, "addr", "add", f"{address}/64", "dev", name, "nodad")
            elif address:
                run("ip", "-n", namespace, "addr", "add", f"{address}/24", "dev", name)
            run("ip", "-n", namespace, "link", "set", name, "up")

    def _client(self, name: str) -> str:
        client = self._namespace(name)
        rules = "add table inet tally\nadd counter inet tally inward\nadd counter inet tally outward\n"
        for hook, device, side, counter in (
            ("input", "iifname", "saddr", "inward"),
            ("output", "oifname", "daddr", "outward"),
        ):
            matches = [
                f"{device} eth0 {family} {side} != {{ {', '.join(relays)} }} meta l4proto udp counter name {counter}"
                for family, relays in (("ip", HOSTS), ("ip6", HOSTS6))
            ]
            rules += chain("inet tally", "filter", hook, 0, *matches)
        nft(client, rules)
        return client

    def site(self, kind: str) -> Site:
        """A new client behind a router of this kind."""
        n = next(self._numbers)
        client = self._client(f"c{n}")
        if kind in KINDS6:
            return self._site6(n, kind, client)
        if kind == "none":
            address = f"10.99.{n}.10"
            self._wire(self.inet, f"v{n}", f"10.99.{n}.1", client, "eth0", address)
            run("ip", "-n", client, "route", "add", "default", "via", f"10.99.{n}.1")
            return Site(n, kind, client, client, address)
        router = self._namespace(f"r{n}")
        above, wan_net = self.inet, f"10.99.{n}"
        if kind == "double":
            above, wan_net = self._namespace(f"x{n}"), f"172.20.{n}"
            self._wire(self.inet, f"v{n}", f"10.99.{n}.1", above, "wan", f"10.99.{n}.2")
            run("ip", "-n", above, "route", "add", "default", "via", f"10.99.{n}.1")
            nft(above, rules_of("easy", "", ""))
        self._wire(above, f"v{n}" if above == self.inet else "lan", f"{wan_net}.1", router, "wan", f"{wan_net}.2")
        run("ip", "-n", router, "route", "add", "default", "via", f"{wan_net}.1")
        run("ip", "-n", router, "link", "add", "lan", "type", "bridge")
        run("ip", "-n", router, "addr", "add", f"192.168.{n}.1/24", "dev", "lan")
        run("ip", "-n", router, "link", "set", "lan", "up")
        self._join_lan(n, router, client, 10)
        nft(router, rules_of(kind, f"192.168.{n}.10", f"{wan_net}.2"))
        return Site(n, kind, client, router, f"192.168.{n}.10")

    def _site6(self, n: int, kind: str, client: str) -> Site:
        run("ip", "-n", client, "addr", "flush", "dev", "lo", "to", "127.0.0.0/8")
        above, above_name, router, net = self.inet, f"v{n}", client, f"fd00:99:{n}:0"
        if KINDS6[kind]:
            router, uplink = self._namespace(f"r{n}"), f"fd00:99:{n}:f"
            self._wire(self.inet, f"v{n}", f"{uplink}::1", router, "wan", f"{uplink}::2")
            run("ip", "-n", self.inet, "route", "add", f"{net}::/64", "via", f"{uplink}::2")
            run("ip", "-n", router, "route", "add", "default", "via", f"{uplink}::1")
            nft(router, KINDS6[kind])
            above, above_name = router, "lan"
        self._wire(above, above_name, f"{net}::1", client, "eth0", f"{net}::10")
        run("ip", "-n", client, "route", "add", "default", "via", f"{net}::1")
        return Site(n, kind, client, router, f"{net}::10")

    def neighbour(self, site: Site) -> Site:
        """A second client on the same LAN."""
        client = self._client(f"d{site.number}")
        self._join_lan(site.number, site.router, client, 11)
        return Site(site.number, "same LAN", client, site.router, f"192.168.{site.number}.11")

    def _join_lan(self, n: int, router: str, client: str, last: int) -> None:
        self._wire(router, f"p{last}", "", client, "eth0", f"192.168.{n}.{last}")
        run("ip", "-n", router, "link", "set", f"p{last}", "master", "lan")
        run("ip", "-n", client, "route", "add", "default", "via", f"192.168.{n}.1")

    async def second_uplink(self, site: Site) -> None:
        """Another wire from a client without a router to the internet, as eth1; the system itself goes on by eth0.

        A busy kernel says up to a second late that a new wire has another end: until then it is no uplink.
        """
        n = site.number
        self._wire(self.inet, f"w{n}", f"10.98.{n}.1", site.client, "eth1", f"10.98.{n}.10")
        run("ip", "-n", site.client, "route", "add", "default", "via", f"10.98.{n}.1", "dev", "eth1", "metric", "50")
        for namespace in (site.client, self.inet):
            for scope in ("all", "default", *(("eth0", "eth1") if namespace == site.client else ())):
                run("ip", "netns", "exec", namespace, "sysctl", "-qw", f"net.ipv4.conf.{scope}.rp_filter=0")

        async def are_up() -> bool:
            return run("ip", "-n", site.client, "-o", "link", "show", "up").count("state UP") == 2

        await poll_until("eth0 and eth1 to have carrier", are_up)

    def silence(self, site: Site, uplink: str, silent: bool) -> None:
        """One of a client's wires swallows all UDP that is no relay's, both ways, or passes it again."""
        with contextlib.suppress(LabError):
            run("ip", "netns", "exec", site.client, "nft", "delete", "table", "inet", uplink)
        if silent:
            for hook, device in (("input", "iifname"), ("output", "oifname")):
                swallowed = f"{device} {uplink} meta l4proto udp drop"
                nft(site.client, chain(f"inet {uplink}", "filter", hook, -1, swallowed))

    def leg(self, site: Site, name: str, ours: str, theirs: str) -> str:
        """A host behind a site's client that only it is wired to, by an interface `name` of it; its namespace."""
        host = self._namespace(f"h{site.number}{name}")
        self._wire(site.client, name, ours, host, "eth0", theirs)
        run("ip", "-n", host, "route", "add", "default", "via", ours)
        return host

    def close(self) -> None:
        for name in reversed(self._made):
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


@contextlib.asynccontextmanager
async def lab(r: Rig, hosts: tuple[str, str] = HOSTS) -> AsyncIterator[tuple[Lab, Headscale]]:
    """An internet with a control server and two relays in two regions; the caller adds sites."""
    made = Lab()
    try:
        with inside(made.inet):
            async with (
                r.derper(host=hosts[0], region_id=900) as one,
                r.derper(host=hosts[1], region_id=901) as two,
                r.headscale(host=hosts[0], regions=[one.region, two.region]) as hs,
            ):
                yield made, hs
    finally:
        made.close()
