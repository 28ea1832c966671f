"""A way out of the tailnet as an object: which exits may be used, and which one the next connection takes.

Owns one policy's live choice. What the tailnet itself has is reached over the tailnet; only what is left goes to an
exit. Refuses to know the protocols of clients.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Self, TypedDict

import trio

from tailscale.errors import ConnectionTimedOut, DeviceNotReady, NoRoute
from tailscale.proxy.exit_dial import DIAL_TIMEOUT, Dns, Race, udp_socket
from tailscale.proxy.exits_status import ExitsStatus, describe
from tailscale.proxy.live import LiveChoice
from tailscale.proxy.pool_file import PoolFile
from ts_proxy.breaker import USUAL, Breaker
from ts_proxy.choice import Choice
from ts_proxy.policy import BadPolicy, Policy, Reconnect, make_policy
from ts_proxy.spec import Kind, parse_spec

if TYPE_CHECKING:
    from tailscale.device import Device
    from tailscale.events import EventStream
    from tailscale.sockets.tcp import TcpStream
    from tailscale.sockets.udp import UdpSocket
    from tailscale.status import ExitNode


class ExitsOptions(TypedDict, total=False):
    """The keyword arguments of `Exits`."""

    nodes: Sequence[str]
    country: str
    city: str
    tag: str
    where: Callable[[ExitNode], bool] | None
    direct_only: bool
    sticky: bool
    pool: int
    fallback: bool
    reconnect: Reconnect
    hedge: float
    dns: Dns
    state: str | os.PathLike[str] | None
    breaker: Breaker


EXIT = "exit"  # `way_by` hands back the exit that it is given: here that only means some exit


class Exits:
    """Exit nodes by policy, as an object: made once, used for any number of connections.

    ```python
    dutch = Exits(device, country="NL")
    async with await dutch.tcp_connect("example.com", 443) as stream:
        print(stream.exit.hostname, dutch.current)
    ```

    Lives as long as its device; nothing has to be closed. Raises `BadPolicy` for a wish that can never be met.

    - `nodes`: names of exits in order of preference, and nobody else; `fallback` lets the filters choose after them.
    - `country`, `city`, `tag`: filters: `"NL"` or a name, `"ams"` or a name, `"tag:exit"`.
    - `where`: a function of an `ExitNode` that says whether it may be used.
    - `direct_only`: never by a relay.
    - `sticky`: stay with the exit used last; without it, with the best by path and latency.
    - `pool`: of so many exits sessions choose, and so many are remembered.
    - `reconnect`: after a silence the same exit again after 1, 2 and 4 s ("backoff"), or the next at once ("fast").
    - `hedge`: seconds of silence after which the next exit is dialled beside; `math.inf` for never.
    - `dns`: names are looked up by the exit they are dialled through, or by the tailnet's own resolvers.
    - `state`: a directory or file that keeps the pool between runs.
    - `breaker`: how much an exit may fail before it is left alone.
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
        dns: Dns = "exit",
        state: str | os.PathLike[str] | None = None,
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
        self._begin("policy", device, policy, where, breaker, dns, state)

    def _begin(
        self,
        kind: Kind,
        device: Device | None,
        policy: Policy,
        where: Callable[[ExitNode], bool] | None = None,
        breaker: Breaker = USUAL,
        dns: Dns = "exit",
        state: str | os.PathLike[str] | None = None,
    ) -> None:
        if dns not in ("exit", "tailnet"):
            raise BadPolicy(f"dns={dns!r} is neither 'exit' nor 'tailnet'", str(dns))
        self.kind: Kind = kind
        """"policy", or "none" and "direct" for the two constants."""
        self._device = device
        self._policy = policy
        self._dns: Dns = dns
        pool_file = PoolFile(state, policy.fingerprint) if state is not None else None
        live = LiveChoice(device, Choice(policy, breaker), where, pool_file) if device is not None else None
        self._live = live if kind == "policy" else None

    @classmethod
    def _fixed(cls, kind: Kind, device: Device | None = None) -> Self:
        made = cls.__new__(cls)
        made._begin(kind, device, Policy())
        return made

    @classmethod
    def from_spec(cls, device: Device, text: str) -> Exits:
        """What `--exit` says in one word: `NL`, `NL/ams`, `node:hq,hq-backup`, `tag:exit`, `any`, `none`, `direct`.

        ```python
        exits = Exits.from_spec(device, "NL/ams")
        ```
        """
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

    # What is chosen

    @property
    def candidates(self) -> tuple[ExitNode, ...]:
        """The exits that the policy lets in and that are not broken, best first."""
        return self._live.exits_in_order() if self._live is not None else ()

    @property
    def current(self) -> ExitNode | None:
        """The exit that the next connection without a session takes; None when there is nobody it could go by."""
        if self._live is None:
            return None
        with self._live.turn():
            return self._live.exit_of(self._live.choice.current)

    async def pin(self, node: str | None) -> None:
        """Use this exit and nobody else from the next connection on; None goes back to the policy.

        Any exit node of the tailnet will do, also one that the policy does not want. Open connections stay.

        ```python
        exits = Exits(device, country="NL")
        await exits.pin("exit-nl")
        ```
        """
        if self._live is None:
            raise BadPolicy(f"nothing can be pinned: these exits are {self.kind!r}")
        await self._live.ready()
        await trio.lowlevel.checkpoint()
        name = self._live.key_named(node) if node is not None else ""
        with self._live.turn() as now:
            self._live.choice.pin(name, now)

    def status(self) -> ExitsStatus:
        """What is used, what could be, and why the others are not. `to_dict()` of it is ready for JSON.

        ```python
        for standing in Exits(device).status().exits:
            print(standing.exit.node.hostname, standing.state, standing.reason)
        ```
        """
        return describe(self.kind, self._policy, self._live)

    def events(self) -> EventStream:
        """What happens from now on: `ExitChosen`, `ExitLost`, `ExitBroken`, `ExitRecovered`, and `Lagged`.

        Ends when the device is closed.

        ```python forever
        async for event in Exits(device).events():
            print(event)
        ```
        """
        if self._live is None:
            raise BadPolicy(f"nothing ever happens to exits that are {self.kind!r}")
        return self._live.open_stream()

    # Connections

    async def tcp_connect(self, host: str, port: int, *, timeout: float | None = None, session: str = "") -> TcpStream:
        """Connect by the exit of this moment; the tailnet's own names and routes directly.

        `session` is any word: connections of one session go through one exit, as long as that lives. Where no exit
        can be used, it waits for one for 10 s, then raises `NoExit`, which says of each why. What else can go wrong is
        what `Device.tcp_connect` raises.

        ```python
        exits = Exits(device, city="Amsterdam")
        async with await exits.tcp_connect("example.com", 443, session="shop") as stream:
            print(stream.exit.hostname)
        ```
        """
        device = self._bound()
        patience = DIAL_TIMEOUT if timeout is None else timeout
        is_tailnet, destination, via = False, host, None
        began = trio.current_time()
        with trio.move_on_after(patience) as looking_up:
            is_tailnet, destination, via = await device.way_by(host, EXIT)
        if looking_up.cancelled_caught:
            raise ConnectionTimedOut(f"{host} could not be looked up within {patience:g} s")
        patience -= trio.current_time() - began
        if is_tailnet and via is None:
            return await device.tcp_connect(destination, port, timeout=patience)
        if not is_tailnet:
            raise NoRoute(f"{host} is this machine itself: exits lead away from it")
        if self._live is None:
            raise NoRoute(f"{host} is not in the tailnet, and no exit is to be used: these exits are {self.kind!r}")
        await self._live.ready()
        race = Race(self._live, destination, port, timeout=patience, session=session, dns=self._dns)
        return await race.run()

    async def connect_anywhere(
        self, host: str, port: int, *, timeout: float | None = None, session: str = ""
    ) -> trio.abc.HalfCloseableStream:
        """`tcp_connect`; with DIRECT, what the tailnet does not have goes by this machine's own network.

        ```python
        async with await DIRECT.on(device).connect_anywhere("db", 5432) as stream:
            await stream.send_all(b"hello")
        ```
        """
        if self.kind == "direct":
            return await self._bound().connect_anywhere(host, port, timeout=timeout)
        return await self.tcp_connect(host, port, timeout=timeout, session=session)

    async def udp(self, *, session: str = "") -> UdpSocket:
        """A UDP socket through the exit of this moment, and that one only; with NO_EXIT and DIRECT, one on the tailnet.

        ```python
        async with await Exits(device).udp() as socket:
            await socket.send_to(b"hello", ("example.com", 7))
        ```
        """
        if self._live is None:
            return await self._bound().udp()
        await self._live.ready()
        return await udp_socket(self._live, session)

    def __repr__(self) -> str:
        return f"<Exits {self._policy if self.kind == 'policy' else self.kind}>"


NO_EXIT = Exits._fixed("none")
"""Tailnet and accepted subnets only."""

DIRECT = Exits._fixed("direct")
"""What the tailnet does not have goes by this machine's own network."""
