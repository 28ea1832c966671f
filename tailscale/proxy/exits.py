"""A way out of the tailnet as an object: which exits may be used, and which one the next connection takes.

Owns one policy's live choice. What the tailnet itself has is reached over the tailnet; only what is left goes to an
exit. Refuses to know the protocols of clients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

import trio

from tailscale.errors import DeviceNotReady, NoRoute
from tailscale.proxy.errors import NoExit
from tailscale.proxy.exits_status import ExitsStatus
from ts_proxy.breaker import USUAL, Breaker
from ts_proxy.filters import Candidate, fits, place_in
from ts_proxy.policy import Policy, Reconnect, make_policy
from ts_proxy.spec import Kind, parse_spec

if TYPE_CHECKING:
    from tailscale.device import Device
    from tailscale.sockets.tcp import TcpStream
    from tailscale.sockets.udp import UdpSocket
    from tailscale.status import ExitNode

ANY = "any"  # `way_by` asks for an exit's name only to hand it back


class Exits:
    """Exit nodes by policy, as an object: made once, used for any number of connections.

    ```python
    dutch = Exits(device, country="NL")
    stream = await dutch.tcp_connect("example.com", 443)
    print(stream.exit.hostname, dutch.current)
    ```
    """

    def __init__(
        self,
        device: Device,
        *,
        nodes: Sequence[str] = (),
        country: str = "",
        city: str = "",
        tag: str = "",
        where: Callable[[ExitNode], bool] | None = None,
        direct_only: bool = False,
        sticky: bool = True,
        pool: int = 4,
        fallback: bool = False,
        reconnect: Reconnect = "backoff",
        hedge: float = 1.0,
        dns: Literal["exit", "tailnet"] = "exit",
        state: Path | None = None,
        breaker: Breaker = USUAL,
    ) -> None:
        policy = make_policy(
            nodes=nodes,
            country=country,
            city=city,
            tag=tag,
            direct_only=direct_only,
            sticky=sticky,
            pool=pool,
            fallback=fallback,
            reconnect=reconnect,
            hedge=hedge,
            has_predicate=where is not None,
        )
        self._begin("policy", device, policy, where, breaker)

    def _begin(
        self,
        kind: Kind,
        device: Device | None,
        policy: Policy,
        where: Callable[[ExitNode], bool] | None = None,
        breaker: Breaker = USUAL,
    ) -> None:
        self.kind: Kind = kind
        self._device = device
        self._policy = policy
        self._where = where
        self._pinned = ""

    @classmethod
    def _fixed(cls, kind: Kind, device: Device | None = None) -> Self:
        made = cls.__new__(cls)
        made._begin(kind, device, Policy())
        return made

    @classmethod
    def from_spec(cls, device: Device, text: str) -> Exits:
        """What `--exit` says in one word: `NL`, `NL/ams`, `node:hq,hq-backup`, `tag:exit`, `any`, `none`, `direct`."""
        spec = parse_spec(text)
        if spec.kind != "policy":
            return (NO_EXIT if spec.kind == "none" else DIRECT).on(device)
        made = cls.__new__(cls)
        made._begin("policy", device, spec.policy)
        return made

    def on(self, device: Device) -> Exits:
        """These exits for connections of `device`: the constants NO_EXIT and DIRECT belong to none until asked so."""
        if self._device is device:
            return self
        if self._device is not None:
            raise ValueError("these exits belong to another Device")
        return self._fixed(self.kind, device)

    def _bound(self) -> Device:
        if self._device is None:
            raise DeviceNotReady("NO_EXIT and DIRECT belong to no device: NO_EXIT.on(device) says which")
        return self._device

    @property
    def candidates(self) -> tuple[ExitNode, ...]:
        """The exits that the policy lets in, best first."""
        if self.kind != "policy":
            return ()
        found = [(exit_node, self._as_candidate(exit_node)) for exit_node in self._bound().exit_nodes]
        fitting = [pair for pair in found if fits(self._policy, pair[1])]
        fitting.sort(key=lambda pair: place_in(self._policy, pair[1]) or 0)
        return tuple(exit_node for exit_node, _ in fitting)

    @property
    def current(self) -> ExitNode | None:
        """The exit that the next connection without a session takes."""
        return next(iter(self.candidates), None)

    async def tcp_connect(self, host: str, port: int, *, timeout: float | None = None, session: str = "") -> TcpStream:
        """Connect by the exit of this moment; the tailnet's own names and routes directly.

        `session` is any word: connections of one session go through one exit, as long as that lives.
        """
        device = self._bound()
        is_tailnet, destination, via = await device.way_by(host, ANY)
        if is_tailnet and via is None:
            return await device.tcp_connect(destination, port, timeout=timeout)
        if self.kind != "policy" or not is_tailnet:
            raise NoRoute(f"{host} is not in the tailnet, and no exit is to be used")
        return await device.tcp_connect(destination, port, timeout=timeout, via=self._chosen().node)

    async def connect_anywhere(
        self, host: str, port: int, *, timeout: float | None = None, session: str = ""
    ) -> trio.abc.HalfCloseableStream:
        """`tcp_connect`; with DIRECT, what the tailnet does not have goes by this machine's own network."""
        if self.kind == "direct":
            return await self._bound().connect_anywhere(host, port, timeout=timeout)
        return await self.tcp_connect(host, port, timeout=timeout, session=session)

    async def pin(self, node: str | None) -> None:
        """Use this exit and nobody else from the next connection on; None goes back to the policy."""
        if self.kind != "policy":
            raise NoExit(f"nothing can be pinned: these exits are {self.kind!r}")
        await trio.lowlevel.checkpoint()
        names = [node] if node is not None else []
        self._pinned = next(iter(make_policy(nodes=tuple(names)).nodes), "")

    def status(self) -> ExitsStatus:
        """What is used, what could be, and why the others are not."""
        return ExitsStatus(self.kind, str(self._policy), self.current, self._pinned)

    async def udp(self, *, session: str = "") -> UdpSocket:
        """A UDP socket through the exit of this moment; with NO_EXIT and DIRECT, one on the tailnet."""
        if self.kind != "policy":
            return await self._bound().udp()
        return await self._bound().udp(via=self._chosen().node)

    def _chosen(self) -> ExitNode:
        chosen = self.current
        if chosen is None:
            raise NoExit(f"no exit fits {self._policy}")
        return chosen

    def _as_candidate(self, exit_node: ExitNode) -> Candidate:
        node = exit_node.node
        return Candidate(
            key=node.stable_id,
            names=tuple(name.lower() for name in (node.hostname, node.name, *node.addresses, node.stable_id)),
            country=exit_node.country.lower(),
            country_code=exit_node.country_code.lower(),
            city=exit_node.city.lower(),
            city_code=exit_node.city_code.lower(),
            tags=tuple(tag.lower() for tag in node.tags),
            priority=exit_node.priority,
            is_online=exit_node.online is not False,
            is_direct=exit_node.path.kind == "direct",
            latency=exit_node.latency,
            is_welcome=self._where is None or bool(self._where(exit_node)),
        )

    def __repr__(self) -> str:
        return f"<Exits {self._policy if self.kind == 'policy' else self.kind}>"


NO_EXIT = Exits._fixed("none")
"""Tailnet and accepted subnets only."""

DIRECT = Exits._fixed("direct")
"""What the tailnet does not have goes by this machine's own network."""
