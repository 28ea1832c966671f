"""The servers of a test tailnet as things that can be stopped and started again at the same address.

Owns their lifetime and identity across restarts. What they serve is in `control.py` and `relay.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import trio

from tailscale.testing.control import ControlService
from tailscale.testing.relay import Certificate, RelayService, answer_stun, region
from tailscale.testing.served_tls import ServedTls
from tailscale.testing.worlds import Place, VirtualPlace
from ts_base.keys import MachinePrivate, NodePrivate
from ts_control.server import ControlServer, PublishText
from ts_control.wire import DERPMap

CONTROL, RELAY, SECOND_STUN = "control", "relay", "second stun"
REGION = 900
CONTROL_PORT, RELAY_PORT, STUN_PORT = 80, 443, 3478  # on the virtual network; on loopback any that are free


class Running(ABC):
    """Something with listeners that can be stopped and started again at the same address."""

    def __init__(self, place: Place, name: str, port: int) -> None:
        self._place = place
        self._name = name
        self.port = port
        self._nursery: trio.Nursery | None = None
        self._scope: trio.CancelScope | None = None
        self._stopped = trio.Event()

    @property
    def is_running(self) -> bool:
        return self._scope is not None

    @abstractmethod
    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen, say started, run until cancelled."""

    async def start(self) -> None:
        if self._nursery is None:
            raise RuntimeError("the Tailnet is not running: use it inside `async with`")
        if not self.is_running:
            self._stopped = trio.Event()
            await self._nursery.start(self._run)

    async def _run(self, *, task_status: trio.TaskStatus[None]) -> None:
        with trio.CancelScope() as self._scope:
            try:
                await self.serve(task_status=task_status)
            finally:
                self._scope = None
                self._place.unlisten(self._name, self.port)
                self._stopped.set()

    async def stop(self) -> None:
        """Gone like a process that was killed: connections break, the port refuses."""
        if self._scope is not None:
            self._scope.cancel()
            await self._stopped.wait()

    async def restart(self) -> None:
        await self.stop()
        await self.start()


class Control(Running):
    """The coordination server of a Tailnet. `server` is the machine itself, with everything an administrator can do."""

    server: ControlServer

    def __init__(self, place: Place, nursery: trio.Nursery, domain: str, policy: Any, key_lifetime: float) -> None:
        super().__init__(place, CONTROL, CONTROL_PORT if isinstance(place, VirtualPlace) else 0)
        self._nursery = nursery
        self._domain = domain
        self._policy = policy
        self._key_lifetime = key_lifetime
        self._machine = MachinePrivate.generate(place.entropy(32))
        self._derp_map = DERPMap()
        self._service: ControlService | None = None
        self._publish: PublishText | None = None

    @property
    def url(self) -> str:
        return f"http://{self._place.address(CONTROL)}:{self.port}"

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        listeners, self.port = await self._place.listen(CONTROL, self.port)
        if self._service is None:
            self._service = self._make()
        service = self._service
        async with trio.open_nursery() as nursery:
            nursery.start_soon(service.run_timers)
            nursery.start_soon(trio.serve_listeners, service.serve_stream, listeners)
            task_status.started()

    def _make(self) -> ControlService:
        place = self._place
        self.server = ControlServer(
            entropy=place.entropy,
            wall_clock=place.wall_clock,
            url=self.url,
            domain=self._domain,
            machine=self._machine,
            key_lifetime=self._key_lifetime,
        )
        self.server.set_policy(self._policy, trio.current_time())
        self.server.set_derp_map(self._derp_map, trio.current_time())
        if self._publish is not None:
            self.server.serve_certificates(self._publish, trio.current_time())
        return ControlService(self.server, entropy=place.entropy)

    async def restart(self, *, forget_devices: bool = False, new_key: bool = False) -> None:
        """Stop and start; with an empty database, or as a server with another identity, if asked.

        Auth keys stay valid, so that forgotten devices can come back.
        """
        await self.stop()
        forgotten = self.server.directory
        if new_key:
            self._machine = MachinePrivate.generate(self._place.entropy(32))
        if forget_devices:
            self._service = self._make()
            self.server.directory.adopt_auth_keys(forgotten)
        self.server.appear_as(self._machine)
        await self.start()

    def poke(self) -> None:
        """After calling a method of `server` yourself: let what it queued go out."""
        if self._service is not None:
            self._service.poke()

    def set_policy(self, policy: Any) -> None:
        self.server.set_policy(policy, trio.current_time())
        self._policy = policy
        self.poke()

    def set_derp_map(self, derp_map: DERPMap) -> None:
        self._derp_map = derp_map
        if self._service is not None:
            self.server.set_derp_map(derp_map, trio.current_time())
            self.poke()

    def serve_certificates(self, publish: PublishText) -> None:
        """Let devices write the records of their challenges; also after a restart."""
        self._publish = publish
        self.do(self.server.serve_certificates, publish)

    def do(self, verb: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Call `verb(*arguments, now, **options)` of `server` and let the consequences go out."""
        result = verb(*arguments, trio.current_time(), **options)
        self.poke()
        return result


class Relay(Running):
    """The relay of a Tailnet, with its STUN server."""

    server: RelayService

    def __init__(self, place: Place, nursery: trio.Nursery, admit: Callable[[bytes], bool]) -> None:
        is_virtual = isinstance(place, VirtualPlace)
        super().__init__(place, RELAY, RELAY_PORT if is_virtual else 0)
        self._nursery = nursery
        self._admit = admit
        self._private = NodePrivate.generate(place.entropy(32))
        self._certificate = Certificate(place.address(RELAY))
        self.stun_port = STUN_PORT if is_virtual else 0
        self.second_stun = ""

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        listeners, self.port = await self._place.listen(RELAY, self.port)
        udp = await self._place.open_udp(RELAY, self.stun_port)
        self.stun_port = udp.local_port
        self.server = RelayService(self._private, entropy=self._place.entropy, admit=self._admit)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.server.run_timers)
                nursery.start_soon(trio.serve_listeners, self._serve_tls, listeners)
                nursery.start_soon(answer_stun, udp)
                task_status.started()
        finally:
            udp.close()

    async def _serve_tls(self, stream: trio.abc.Stream) -> None:
        await self.server.serve_stream(ServedTls(stream, self._certificate.context))

    def derp_map(self) -> DERPMap:
        address = self._place.address(RELAY)
        listed = region(REGION, address, self.port, self.stun_port, self._certificate.pin)
        if not self.second_stun:
            return DERPMap(regions={REGION: listed})
        pin = self._certificate.pin
        second = region(REGION + 1, self.second_stun, self.port, self.stun_port, pin, stun_only=True)
        return DERPMap(regions={REGION: listed, REGION + 1: second})

    async def add_stun(self) -> None:
        """A second place that says where one is seen from: only two can show that a NAT is hard."""
        udp = await self._place.open_udp(SECOND_STUN, self.stun_port)
        self.second_stun = self._place.address(SECOND_STUN)
        assert self._nursery is not None
        self._nursery.start_soon(answer_stun, udp)
