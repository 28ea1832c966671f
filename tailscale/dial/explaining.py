"""The way to one port, walked step by step: what each step finds, and one verdict in the words of the dial's own error.

Owns the order of the steps. The last one is a dial like any other, and what it raises is the verdict: nothing here
guesses what the Device would say. While that runs, the path is probed with a small and a full packet, and the tunnel.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING

import trio

from tailscale.dial import failures
from tailscale.dns.names import literal_address
from tailscale.errors import ConnectionRefused, NameNotFound, TailscaleError
from tailscale.explanation import Explanation, Step
from tailscale.faults import REACHABLE
from ts_base.ip import format_address
from ts_control.session import Phase

if TYPE_CHECKING:
    from tailscale.dial.dialing import Dialer, Via
    from tailscale.nodes import Node
    from tailscale.status import HealthWarning, NetcheckReport, PathInfo
    from ts_base.who import PeerId

PROTOCOLS = ("tcp", "udp")
FULL = 1200  # bytes of padding: with the headers around it what a full packet needs
PROBE_PATIENCE = 3.0
UDP_PATIENCE = 2.0  # for the answer to an empty datagram, which need not come
REMAINING = ("name", "route", "peer", "path", "tunnel", "policy here", "policy there")
SKIPPED = "not looked at"


class Explainer:
    """One walk. Made for one question, and asked once."""

    def __init__(
        self,
        dialer: Dialer,
        warnings: Iterable[HealthWarning],
        measure: Callable[[], Awaitable[NetcheckReport]],
        host: str,
        port: int | None,
        protocol: str,
        via: Via,
    ) -> None:
        if protocol not in PROTOCOLS:
            raise ValueError(f"protocol {protocol!r} is not one of {', '.join(PROTOCOLS)}")
        self._dialer = dialer
        self._warnings = {warning.code: warning for warning in warnings}
        self._measure = measure
        self._host, self._port, self._protocol = host, port, protocol
        self._via_named, self._via = via, 0
        self._steps: dict[str, Step] = {}
        self._failure: TailscaleError | OSError | None = None
        self._path: PathInfo | None = None
        self._latency = 0.0

    async def explain(self, timeout: float) -> Explanation:
        """Walk until something fails; what lies behind that is not looked at."""
        self._look_at_ourselves()
        addresses = await self._look_up(timeout)
        if addresses and self._dialer.directory.is_ours(addresses[0]):
            return await self._explain_ourselves(addresses[0], timeout)
        if addresses:
            await self._try(addresses[0], timeout)
        return self._conclude(addresses[0] if addresses else None)

    # The steps

    def _note(self, name: str, outcome: str, sentence: str, fault: str = "") -> None:
        self._steps[name] = Step(name, outcome, sentence, fault)  # type: ignore[arg-type]

    def _look_at_ourselves(self) -> None:
        directory, us = self._dialer.directory, self._dialer.ourselves()
        if us.standing in failures.OUR_FAULT:
            self._note("this device", "bad", failures.OUR_FAULT[us.standing], failures.CODES[us.standing])
        elif us.standing is not Phase.RUNNING:
            warning = self._warnings.get("control-unreachable")
            why = warning.sentence if warning is not None else "the control server cannot be reached at the moment"
            self._note("this device", "warn", f"{why}; peers are used as they were last known", "control-unreachable")
        elif abs(us.clock_behind) > failures.CLOCK_TOLERANCE:
            side = "behind" if us.clock_behind > 0 else "ahead of"
            by = failures.in_words(abs(us.clock_behind))
            self._note("this device", "warn", f"the clock is {by} {side} the control server's", "clock-wrong")
        else:
            node = directory.self_node()
            self._note("this device", "ok", f"{node.hostname} ({', '.join(node.addresses)}) is known to control")

    async def _look_up(self, timeout: float) -> list[bytes]:
        """Name and route, as the dial does it; none where one of them failed."""
        dialer, host = self._dialer, self._host
        try:
            self._via = dialer.peer_named(self._via_named)
            with trio.fail_after(timeout):
                addresses = await dialer.destinations(host, self._via)
        except NameNotFound as problem:
            self._fail("name", problem)
            return []
        except trio.TooSlowError:
            self._fail("name", dialer.silence(literal_address(host), host, self._port or 0, timeout, self._via))
            return []
        except TailscaleError as problem:
            self._note_name()
            self._fail("route", problem)
            return []
        self._note_name(addresses)
        self._note_route(addresses[0])
        return addresses

    def _note_name(self, addresses: Iterable[bytes] = ()) -> None:
        if literal_address(self._host) is not None:
            self._note("name", "ok", f"{self._host} is an address")
        else:
            texts = ", ".join(map(format_address, addresses))
            sentence = f"{self._host} is {texts}" if texts else f"{self._host} is known"
            problem = "" if self._via else self._dialer.resolver.exit_problem
            if problem:
                self._note("name", "warn", f"{sentence}, say the tailnet's resolvers, not the exit node: {problem}")
            else:
                self._note("name", "ok", sentence)

    def _note_route(self, address: bytes) -> None:
        directory, text = self._dialer.directory, format_address(address)
        node = directory.node(self._via) if self._via else directory.identify(address)
        if directory.is_ours(address):
            self._note("route", "ok", f"{text} is this device's own address")
        elif node is None:
            self._note("route", "ok", f"{text} is routed")
        elif self._via:
            self._note("route", "ok", f"{text} goes by {node.hostname}, as via= says")
        elif text in node.addresses:
            self._note("route", "ok", f"{text} is {node.hostname}'s own address")
        else:
            self._note("route", "ok", f"{text} is behind {node.hostname}")

    async def _try(self, address: bytes, timeout: float) -> None:
        """The peer, the way to it and the port: all at once, since each has its own patience."""
        peer = self._dialer.reach.peer_for(address, self._via)
        node = self._dialer.directory.node(peer) if peer is not None else None
        self._note_peer(node)
        if not self._via:
            self._note_policy_here(address, node)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._try_path, node)
            nursery.start_soon(self._try_tunnel, node)
            if self._port is not None:
                nursery.start_soon(self._try_port, address, self._port, timeout)
        if peer is not None:
            self._look_back_at_path(peer)
        port = self._steps.get(self._protocol)
        if port is not None and port.outcome == "ok":
            self._forgive_silence()

    def _forgive_silence(self) -> None:
        """The port answers, so there is a way: a plain WireGuard peer knows no pings of ours."""
        for name in ("path", "tunnel"):
            step = self._steps.get(name)
            if step is not None and step.outcome == "bad":
                self._note(name, "warn", "does not answer our pings, and carries what we send all the same")

    def _note_peer(self, node: Node | None) -> None:
        if node is None:
            self._note("peer", "warn", "it has left the tailnet meanwhile")
        elif node.online is False:
            self._note("peer", "warn", f"the control server says that {node.hostname} is offline", "peer-offline")
        elif node.online is None:
            self._note("peer", "ok", f"the control server does not say whether {node.hostname} is online")
        else:
            self._note("peer", "ok", f"{node.hostname} is online")

    def _note_policy_here(self, address: bytes, node: Node | None) -> None:
        """What it may open here stops nothing that we open; whoever looks at a policy wants to know it all the same."""
        ours = next((own for own in self._own_addresses() if len(own) == len(address)), None)
        if node is None or ours is None or self._port is None:
            return
        may = self._dialer.reach.admits(address, ours, self._port)
        verb = "may" if may else "may not"
        self._note(
            "policy here", "ok", f"answers are let in; {node.hostname} {verb} open port {self._port} here itself"
        )

    def _own_addresses(self) -> list[bytes]:
        found = map(literal_address, self._dialer.directory.self_node().addresses)
        return [address for address in found if address is not None]

    # The probes

    async def _try_path(self, node: Node | None) -> None:
        """A small packet, then a full one: some networks swallow what is large without a word."""
        if node is None or not node.addresses:
            return
        name, dialer = node.addresses[0], self._dialer
        try:
            small = await dialer.ping(name, "disco", 0, PROBE_PATIENCE)
        except TailscaleError:
            self._note("path", "bad", "no answer by any path", failures.no_session(dialer.ourselves())[1])
            return
        self._path, self._latency = small.path, small.latency
        self._note("path", "ok", f"answers by {small.path}")
        if small.path.kind == "relay":
            await self._look_at_relay(small.path, node)
            return
        try:
            await dialer.ping(name, "disco", FULL, PROBE_PATIENCE)
        except TailscaleError:
            self._note_black_hole(small.path)
        else:
            self._note("path", "ok", f"full packets pass by {small.path}")

    async def _look_at_relay(self, path: PathInfo, node: Node) -> None:
        """Why it is not direct, as far as that is this side's business."""
        if not (await self._measure()).udp:
            self._note("path", "warn", "UDP is blocked here, so that no path can be direct", "udp-blocked")
        else:
            why = self._dialer.reach.about_hard_nats(node.id) or "no direct path has been found so far"
            self._note("path", "ok", f"by {path}; {why}")

    def _note_black_hole(self, where: object) -> None:
        sentence = f"small packets pass by {where}, full ones vanish there"
        self._note("path", "warn", sentence, "black-hole")

    def _look_back_at_path(self, peer: PeerId) -> None:
        """A direct path that the finder has left for what it swallows."""
        left = self._dialer.reach.left_paths(peer)
        path = self._steps.get("path")
        if left and path is not None and path.outcome == "ok" and (self._path is None or self._path.kind == "relay"):
            self._note_black_hole(self._dialer.reach.describe(left[0]))

    async def _try_tunnel(self, node: Node | None) -> None:
        if node is None or not node.addresses:
            return
        try:
            pong = await self._dialer.ping(node.addresses[0], "tsmp", 0, PROBE_PATIENCE)
        except TailscaleError:
            why, fault = failures.no_session(self._dialer.ourselves())
            if self._dialer.reach.has_session(node.id):
                self._note("tunnel", "warn", f"{node.hostname} does not answer inside the tunnel at the moment")
            else:
                self._note("tunnel", "bad", f"no encrypted session with {node.hostname}. {why}", fault)
        else:
            self._note("tunnel", "ok", f"{node.hostname} answers inside it in {pong.latency * 1000:.1f} ms")

    async def _try_port(self, address: bytes, port: int, timeout: float) -> None:
        try:
            if self._protocol == "udp":
                await self._try_udp(address, port)
                return
            # The very addresses that a program's own dial would try, by name where there is one.
            stream = await self._dialer.tcp_connect(self._host, port, timeout=timeout, via=self._via_named)
        except (TailscaleError, OSError) as problem:
            self._judge_port(port, problem)
        else:
            await stream.aclose()  # a FIN: a reset would stand in somebody's log
            self._note("policy there", "ok", "lets this device in")
            self._note("tcp", "ok", f"port {port} accepts connections")

    async def _try_udp(self, address: bytes, port: int) -> None:
        answered = False
        async with self._dialer.bind_udp(0, None, self._via) as socket:
            await socket.connect((format_address(address), port))
            await socket.send(b"")
            with trio.move_on_after(UDP_PATIENCE):
                await socket.receive()
                answered = True
        if answered:
            self._note("policy there", "ok", "lets this device in")
            self._note("udp", "ok", f"port {port} answers")
        else:
            self._note("udp", "warn", f"port {port} says nothing to an empty datagram", "port-unanswered")

    def _judge_port(self, port: int, problem: TailscaleError | OSError) -> None:
        """Who refused decides which step failed."""
        fault = fault_of(problem)
        if fault == "policy-there":
            self._fail("policy there", problem)
            return
        if isinstance(problem, ConnectionRefused):
            self._note("policy there", "ok", "lets this device in")
        elif fault == "port-silent":
            self._note("policy there", "warn", "says nothing: it may drop what this device opens without a word")
        self._fail(self._protocol, problem)

    # Ourselves, as the others see us

    async def _explain_ourselves(self, address: bytes, timeout: float) -> Explanation:
        """A port of our own: whether something listens on it, and whom the policy lets in."""
        if self._port is None:
            return self._conclude(address)
        self._note_visitors(address, self._port)
        await self._try_port(address, self._port, timeout)
        self._steps.pop("policy there", None)  # nothing is asked there on the way to ourselves
        return self._conclude(address)

    def _note_visitors(self, address: bytes, port: int) -> None:
        dialer = self._dialer
        peers = [peer for peer in dialer.directory.peers() if not peer.expired]
        admitted = [
            peer.hostname
            for peer in peers
            if any(
                dialer.reach.admits(theirs, address, port)
                for theirs in map(literal_address, peer.addresses)
                if theirs is not None and len(theirs) == len(address)
            )
        ]
        if peers and not admitted:
            shut = dialer.directory.preferences.shields_up
            who = "shields_up=True lets no peer" if shut else "the tailnet policy lets no peer"
            self._note("policy here", "bad", f"{who} open port {port} of this device", "policy-here")
        else:
            self._note("policy here", "ok", f"lets {len(admitted)} of {len(peers)} peers open port {port} here")

    # The verdict

    def _fail(self, step: str, problem: TailscaleError | OSError) -> None:
        self._note(step, "bad", str(problem), fault_of(problem))
        self._failure = problem

    def _conclude(self, address: bytes | None) -> Explanation:
        is_own = address is not None and self._dialer.directory.is_ours(address)
        names = ("name", "route", "policy here") if is_own else REMAINING
        order = ["this device", *names, *((self._protocol,) if self._port is not None else ())]
        steps = [self._steps.get(name, Step(name, "skip", SKIPPED)) for name in order]
        if self._port is None:
            steps = [step for step in steps if not step.name.startswith("policy")]
        verdict, code, reachable = self._verdict(steps)
        error = type(self._failure).__name__ if self._failure is not None else ""
        return Explanation(self._host, self._port, self._protocol, tuple(steps), verdict, code, reachable, error)

    def _verdict(self, steps: list[Step]) -> tuple[str, str, bool | None]:
        """The sentence, its code, and whether the port can be reached."""
        bad = next((step for step in steps if step.outcome == "bad" and step.name != "this device"), None)
        if self._failure is not None:
            return str(self._failure), fault_of(self._failure), False
        if bad is not None:
            return bad.sentence, bad.fault, False
        doubts = [step for step in steps if step.outcome == "warn" and step.fault]
        silent = next((step for step in doubts if step.fault == "port-unanswered"), None)
        if silent is not None:
            return f"{self._host}: {silent.sentence}, which a UDP service need not", silent.fault, None
        what = f"port {self._port} can be reached" if self._port is not None else "can be reached"
        way = f", by {self._path} in {self._latency * 1000:.1f} ms" if self._path is not None else ""
        said = "".join(f"; but {step.sentence}" for step in doubts)
        return f"{self._host} {what}{way}{said}", doubts[0].fault if doubts else REACHABLE, True


def fault_of(problem: TailscaleError | OSError) -> str:
    """Its code; what the stack itself refuses before a packet left has none of its own."""
    return problem.fault if isinstance(problem, TailscaleError) else "no-socket"
