"""A NAT lab from network namespaces: an internet, routers of several kinds, and nodes behind them.

    python -m tests.interop.natlab                      # every pair, two tsnet nodes: the baseline
    python -m tests.interop.natlab --ours               # the baseline, then the same pairs with two of our Devices
    python -m tests.interop.natlab easy,hard none       # only these kinds on the left, only those on the right

Needs root, iproute2 and nftables; touches nothing outside namespaces of its own. The process that makes a
lab moves into its internet, so control server and relays started there are on that internet.
For each pair it reports when the first byte arrived, when each side was direct, and how many bytes really
travelled by UDP between the two, counted by the kernel on both sides (neither side's word is trusted).
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, dataclass

import trio

from tests.interop import build
from tests.interop.pattern import pattern_sha256
from tests.interop.processes import RigError, poll_until
from tests.interop.rig import Headscale, Rig, TsnetPeer, rig

HOSTS = ("10.99.0.1", "10.99.0.2")  # control and the first relay; the second relay (two regions reveal a hard NAT)
HOSTS6 = ("fd00:99::1", "fd00:99::2")  # the same where there is no IPv4 at all
NODE_PORT = 41641
CLONE_NEWNET = 0x40000000


def _chain(table: str, kind: str, hook: str, priority: int, *rules: str) -> str:
    """One nft base chain with its rules, as flat commands."""
    name = f"{hook}{abs(priority)}"
    lines = [f"add table {table}", f"add chain {table} {name} {{ type {kind} hook {hook} priority {priority}; }}"]
    return "\n".join([*lines, *(f"add rule {table} {name} {rule}" for rule in rules)]) + "\n"


def _source_nat(how: str) -> str:
    return _chain("ip nat", "nat", "postrouting", 100, f"oifname wan {how}")


def _destination_nat(match: str) -> str:
    return _chain("ip mapped", "nat", "prerouting", -100, f"iifname wan {match} dnat to <client>")


# What a router drops from outside unless it answers something from inside. The input rule matters too:
# an unsolicited packet that reached the connection table would make the next mapping take another port.
_GUARD_ITSELF = _chain("inet guard", "filter", "input", 0, "iifname wan ct state new drop")
_FILTER = _GUARD_ITSELF + _chain("inet guard", "filter", "forward", 0, "iifname wan ct state new drop")
_SEEN_ADDRESSES_ONLY = (
    "add table ip mapped\nadd set ip mapped seen { type ipv4_addr; flags dynamic; timeout 2m; }\n"
    + _chain("ip mapped", "filter", "forward", 1, "oifname wan meta l4proto udp update @seen { ip daddr }")
    + _destination_nat(f"udp dport {NODE_PORT} ip saddr @seen")
    + _GUARD_ITSELF
)
_NO_UDP = _chain("inet guard", "filter", "forward", 0, "meta l4proto udp drop")

# kind -> the rules of its router
KINDS: dict[str, str] = {
    "none": "",  # no router: a public address
    "easy": _source_nat("masquerade") + _FILTER,
    "hard": _source_nat("masquerade fully-random") + _FILTER,
    "cone": _source_nat("masquerade") + _destination_nat(f"udp dport {NODE_PORT}"),
    "one2one": _source_nat("snat to <wan>") + _destination_nat(""),
    "address": _source_nat("masquerade") + _SEEN_ADDRESSES_ONLY,
    "double": _source_nat("masquerade") + _FILTER,  # and a second such router above
    "blocked": _source_nat("masquerade") + _NO_UDP,
}

# Clients without any IPv4 address, public as IPv6 is; these kinds meet only each other (the control URL is a literal).
KINDS6: dict[str, str] = {"v6": "", "v6wall": _FILTER}  # "v6wall": a router lets in only answers


def expected(left: str, right: str) -> str:
    """What two tsnet nodes were measured to reach; `natlab` measures it again in each run."""
    kinds = {left, right}
    if "blocked" in kinds:
        return "relay"
    hard = [k for k in (left, right) if k == "hard"]
    if len(hard) == 2 or (hard and kinds & {"easy", "double"}):
        return "relay"
    return "direct"


class LabError(Exception):
    """The kernel did not do what the lab needs."""


def why_not() -> str:
    """Why there can be no lab here; empty when there can."""
    if os.geteuid() != 0:
        return "the NAT lab needs root"
    for tool in ("ip", "nft"):
        if shutil.which(tool) is None:
            return f"the NAT lab needs `{tool}`"
    probe = f"pt{os.getpid()}p"
    done = subprocess.run(["ip", "netns", "add", probe], capture_output=True, check=False)
    if done.returncode != 0:
        return "the NAT lab needs network namespaces"
    ruled = subprocess.run(
        ["ip", "netns", "exec", probe, "nft", "-f", "-"],
        input=_source_nat("masquerade fully-random"),
        text=True,
        capture_output=True,
        check=False,
    )
    subprocess.run(["ip", "netns", "del", probe], check=False)
    return (
        "" if ruled.returncode == 0 else f"the NAT lab needs nftables masquerade in the kernel ({ruled.stderr.strip()})"
    )


def _run(*command: str, stdin: str = "") -> str:
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise LabError(f"{' '.join(command)}: {done.stderr.strip()}\n{stdin}")
    return done.stdout


def _nft(namespace: str, rules: str) -> None:
    _run("ip", "netns", "exec", namespace, "nft", "-f", "-", stdin=rules)


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
        text = _run("ip", "netns", "exec", self.client, "nft", "list", "table", "inet", "tally")
        found = dict(re.findall(r"counter (\w+) \{[^}]*?bytes (\d+)", text))
        return int(found["inward"]), int(found["outward"])

    def block_udp(self, blocked: bool) -> None:
        """Drops (or passes again) all UDP at the client, as when a network changes its mind."""
        with contextlib.suppress(LabError):
            _run("ip", "netns", "exec", self.client, "nft", "delete", "table", "inet", "block")
        if blocked:
            for hook in ("input", "output"):
                _nft(self.client, _chain("inet block", "filter", hook, -1, "meta l4proto udp drop"))

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
            _run("ip", "-n", self.inet, "addr", "add", f"{host}/32", "dev", "lo")
        for host in HOSTS6:
            _run("ip", "-n", self.inet, "addr", "add", f"{host}/128", "dev", "lo", "nodad")

    def _namespace(self, name: str) -> str:
        full = f"{self._prefix}{name}"
        _run("ip", "netns", "add", full)
        self._made.append(full)
        _run("ip", "-n", full, "link", "set", "lo", "up")
        forwarding = ("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        _run("ip", "netns", "exec", full, "sysctl", "-qw", *forwarding)
        return full

    def _wire(self, a: str, a_name: str, a_address: str, b: str, b_name: str, b_address: str) -> None:
        _run("ip", "link", "add", a_name, "netns", a, "type", "veth", "peer", "name", b_name, "netns", b)
        for namespace, name, address in ((a, a_name, a_address), (b, b_name, b_address)):
            if ":" in address:
                _run("ip", "-n", namespace, "addr", "add", f"{address}/64", "dev", name, "nodad")
            elif address:
                _run("ip", "-n", namespace, "addr", "add", f"{address}/24", "dev", name)
            _run("ip", "-n", namespace, "link", "set", name, "up")

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
            rules += _chain("inet tally", "filter", hook, 0, *matches)
        _nft(client, rules)
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
            _run("ip", "-n", client, "route", "add", "default", "via", f"10.99.{n}.1")
            return Site(n, kind, client, client, address)
        router = self._namespace(f"r{n}")
        above, wan_net = self.inet, f"10.99.{n}"
        if kind == "double":
            above, wan_net = self._namespace(f"x{n}"), f"172.20.{n}"
            self._wire(self.inet, f"v{n}", f"10.99.{n}.1", above, "wan", f"10.99.{n}.2")
            _run("ip", "-n", above, "route", "add", "default", "via", f"10.99.{n}.1")
            _nft(above, _rules("easy", "", ""))
        self._wire(above, f"v{n}" if above == self.inet else "lan", f"{wan_net}.1", router, "wan", f"{wan_net}.2")
        _run("ip", "-n", router, "route", "add", "default", "via", f"{wan_net}.1")
        _run("ip", "-n", router, "link", "add", "lan", "type", "bridge")
        _run("ip", "-n", router, "addr", "add", f"192.168.{n}.1/24", "dev", "lan")
        _run("ip", "-n", router, "link", "set", "lan", "up")
        self._join_lan(n, router, client, 10)
        _nft(router, _rules(kind, f"192.168.{n}.10", f"{wan_net}.2"))
        return Site(n, kind, client, router, f"192.168.{n}.10")

    def _site6(self, n: int, kind: str, client: str) -> Site:
        _run("ip", "-n", client, "addr", "flush", "dev", "lo", "to", "127.0.0.0/8")
        above, above_name, router, net = self.inet, f"v{n}", client, f"fd00:99:{n}:0"
        if KINDS6[kind]:
            router, uplink = self._namespace(f"r{n}"), f"fd00:99:{n}:f"
            self._wire(self.inet, f"v{n}", f"{uplink}::1", router, "wan", f"{uplink}::2")
            _run("ip", "-n", self.inet, "route", "add", f"{net}::/64", "via", f"{uplink}::2")
            _run("ip", "-n", router, "route", "add", "default", "via", f"{uplink}::1")
            _nft(router, KINDS6[kind])
            above, above_name = router, "lan"
        self._wire(above, above_name, f"{net}::1", client, "eth0", f"{net}::10")
        _run("ip", "-n", client, "route", "add", "default", "via", f"{net}::1")
        return Site(n, kind, client, router, f"{net}::10")

    def neighbour(self, site: Site) -> Site:
        """A second client on the same LAN."""
        client = self._client(f"d{site.number}")
        self._join_lan(site.number, site.router, client, 11)
        return Site(site.number, "same LAN", client, site.router, f"192.168.{site.number}.11")

    def _join_lan(self, n: int, router: str, client: str, last: int) -> None:
        self._wire(router, f"p{last}", "", client, "eth0", f"192.168.{n}.{last}")
        _run("ip", "-n", router, "link", "set", f"p{last}", "master", "lan")
        _run("ip", "-n", client, "route", "add", "default", "via", f"192.168.{n}.1")

    def close(self) -> None:
        for name in reversed(self._made):
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


_LABS = itertools.count(1)


def _rules(kind: str, client: str, wan: str) -> str:
    return KINDS[kind].replace("<client>", client).replace("<wan>", wan)


@contextlib.contextmanager
def inside(namespace: str) -> Iterator[None]:
    """This thread, and what it starts, live in the namespace while the body runs."""
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    there = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    try:
        if libc.setns(there, CLONE_NEWNET) != 0:
            raise LabError(os.strerror(ctypes.get_errno()))
        try:
            yield
        finally:
            libc.setns(before, CLONE_NEWNET)
    finally:
        os.close(before)
        os.close(there)


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


# --- measuring ------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """What one pair of nodes reached."""

    left: str
    right: str
    who: str
    path: str
    first_byte_ms: float
    left_direct_s: float | None
    right_direct_s: float | None
    left_udp_bytes: int
    right_udp_bytes: int
    join_ms: tuple[float, float]

    def row(self) -> str:
        times = [f"{t:5.2f} s" if t is not None else "   -   " for t in (self.left_direct_s, self.right_direct_s)]
        return (
            f"{self.left:>8} - {self.right:<8} {self.who:<5} {self.path:<7} first byte {self.first_byte_ms:6.1f} ms"
            f"  direct after {times[0]} / {times[1]}"
            f"  udp {self.left_udp_bytes >> 10:5} / {self.right_udp_bytes >> 10:5} KiB"
        )


SIZE = 1 << 20
PATIENCE = 8.0  # tsnet needs 5.05 s where the dialled side filters


async def measure(
    made: Lab, hs: Headscale, r: Rig, left: str, right: str, *, ours: bool = False, patience: float = PATIENCE
) -> Outcome:
    """Joins two nodes at fresh sites of these kinds, lets the left call the right, and watches the path."""
    a_site = made.site(left)
    b_site = made.neighbour(a_site) if right == "same LAN" else made.site(right)
    key = await hs.auth_key(ephemeral=False)
    name = f"{left}-{right}".replace(" ", "").lower()
    start = r.ours if ours else r.tsnet
    async with (
        start(hs, key, f"{name}-b{b_site.number}", namespace=b_site.client, port=NODE_PORT, timeout=40) as b,
        start(hs, key, f"{name}-a{a_site.number}", namespace=a_site.client, port=NODE_PORT, timeout=40) as a,
    ):
        await _sees(a, b)
        began = trio.current_time()
        first = await a.dial(b.ip4, 7, bytes=1, end="half", read=-1, timeout=20)
        times: dict[str, float | None] = {"a": None, "b": None}

        async def watch(which: str, peer: TsnetPeer, other: TsnetPeer) -> None:
            # Only looking: asking for a ping would make the peer try again sooner than it does by itself.
            while times[which] is None:
                if (await peer.path_to(other.ip4)).get("CurAddr"):
                    times[which] = trio.current_time() - began
                await trio.sleep(0.02)

        async def trickle() -> None:
            while True:
                await a.ask("udp", check=False, host=b.ip4, port=7, bytes=100, timeout=2)
                await trio.sleep(0.1)

        with trio.move_on_after(patience):
            async with trio.open_nursery() as traffic:
                traffic.start_soon(trickle)
                async with trio.open_nursery() as watchers:
                    watchers.start_soon(watch, "a", a, b)
                    watchers.start_soon(watch, "b", b, a)
                traffic.cancel_scope.cancel()
        before = (a_site.udp_bytes(), b_site.udp_bytes())
        echoed = await a.dial(b.ip4, 7, bytes=SIZE, end="half", read=-1, timeout=30)
        if echoed["sha256"] != pattern_sha256(SIZE):
            raise RigError(f"{left} - {right}: bytes were lost")
        after = (a_site.udp_bytes(), b_site.udp_bytes())
        moved = [min(n[0] - m[0], n[1] - m[1]) for m, n in zip(before, after, strict=True)]
        path = "direct" if min(moved) >= SIZE else "relay" if max(moved) < SIZE // 8 else "one way"
        return Outcome(
            left, right, "ours" if ours else "tsnet", path, first["first_byte_ms"], times["a"], times["b"],
            moved[0], moved[1], (a.join_ms, b.join_ms),
        )  # fmt: skip


async def _sees(peer: TsnetPeer, other: TsnetPeer) -> None:
    async def probe() -> bool:
        with contextlib.suppress(RigError):
            return bool(await peer.path_to(other.ip4))
        return False

    await poll_until(f"{peer.name} to know {other.name}", probe, 20)


PAIRS = [
    *itertools.product(KINDS, KINDS),
    *[("easy", "same LAN"), ("hard", "same LAN")],
    *itertools.product(KINDS6, KINDS6),
]


def hosts_for(left: str) -> tuple[str, str]:
    """Where control and relays must be for this kind to reach them."""
    return HOSTS6 if left in KINDS6 else HOSTS


def _choose(options: argparse.Namespace) -> list[tuple[str, str]]:
    wanted = [set(side.split(",")) if side else None for side in (options.left, options.right)]
    return [p for p in PAIRS if all(w is None or kind in w for w, kind in zip(wanted, p, strict=True))]


async def _main(options: argparse.Namespace) -> int:
    outcomes: list[Outcome] = []
    worse = 0
    for left, right in _choose(options):
        async with rig("nat") as r, lab(r, hosts_for(left)) as (made, hs):
            base = await measure(made, hs, r, left, right)
            note = "" if base.path == expected(left, right) else f"   (expected {expected(left, right)})"
            print(base.row() + note, flush=True)
            outcomes.append(base)
            if options.ours:
                mine = await measure(made, hs, r, left, right, ours=True)
                bad = mine.path != base.path and mine.path != "direct"
                worse += bad
                print(mine.row() + ("   WORSE" if bad else ""), flush=True)
                outcomes.append(mine)
    if options.json:
        await trio.Path(options.json).write_text(json.dumps([asdict(o) for o in outcomes], indent=1) + "\n")
    direct = sum(o.path == "direct" for o in outcomes if o.who == "tsnet")
    print(
        f"nat lab: {len(outcomes)} runs, tsnet direct on {direct} pairs"
        + (f", ours worse on {worse}" if options.ours else "")
    )
    return 1 if worse else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.interop.natlab", description=__doc__.splitlines()[0])
    parser.add_argument("left", nargs="?", default="", help=f"kinds, comma-separated: {', '.join([*KINDS, *KINDS6])}")
    parser.add_argument("right", nargs="?", default="", help="the same, or `same LAN`")
    parser.add_argument("--ours", action="store_true", help="measure our Device on each pair too")
    parser.add_argument("--json", help="write all outcomes to this file")
    options = parser.parse_args()
    reason = why_not()
    if reason or build.missing(("headscale-0.29.2", "derper", "tsnetpeer")):
        print(f"nat lab: SKIPPED, {reason or 'peers not built (python tests/interop/build.py)'}")
        return 0
    return trio.run(_main, options)


if __name__ == "__main__":
    sys.exit(main())
