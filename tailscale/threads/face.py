"""What the asyncio and the threaded face share: their options, and everything that needs no waiting.

Each face waits in its own way: asyncio awaits, threads block. A verb that only differs in that is not written again:
the face wraps the trio Device's, signature and docstring included.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import logging
import warnings
import weakref
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Concatenate, Generic, Literal, ParamSpec, TypedDict, TypeVar

from tailscale.device import Device
from tailscale.errors import TailscaleError
from tailscale.foreign_text import for_terminal
from tailscale.nodes import OwnNode
from tailscale.sockets.udp import UdpSocket
from tailscale.threads.cells import claim_of, running_cell

if TYPE_CHECKING:
    import os
    import ssl

    from tailscale._config import AuthKey, Preferences
    from tailscale.capturing import Capture, CaptureStatistics
    from tailscale.certificates.source import CertificateSource
    from tailscale.forwarding import Forwarding, ForwardLimits, IncomingFlow
    from tailscale.hard_nats import HardNats
    from tailscale.nodes import Node, Peers
    from tailscale.sockets.socket_device import Address
    from tailscale.state_file import NamedStore, Store
    from tailscale.status import FileTransfer, HealthWarning, Identity
    from tailscale.threads.loop_thread import Job, LoopThread
    from tailscale.tun_options import TunOptions, TunStatus
    from tailscale.uplinks import Uplink
    from ts_control.netmap import NetMap
    from ts_dataplane.strategies import Strategy

P = ParamSpec("P")
T = TypeVar("T")
X = TypeVar("X")
log = logging.getLogger("tailscale")
LOOK = 2.0  # seconds that showing a device may take of a notebook's time
F = TypeVar("F", bound=Callable[..., None])


class DeviceOptions(TypedDict, total=False):
    """The keyword arguments of `tailscale.Device`."""

    auth_key: AuthKey
    client_id: str | None
    id_token: AuthKey
    audience: str | None
    control_url: str | None
    state: str | os.PathLike[str] | Store | NamedStore | None
    ephemeral: bool | None
    tags: Sequence[str]
    accept_routes: bool
    exit_node: str | None
    advertise_routes: Sequence[str]
    advertise_exit_node: bool
    forward: ForwardLimits | None
    on_flow: Callable[[IncomingFlow], Any] | None
    shields_up: bool
    on_login_url: Callable[[str], Any] | None
    login_timeout: float
    ready_timeout: float
    udp_port: int
    tls: ssl.SSLContext | None
    handle_sigterm: bool
    peerapi: bool
    uplinks: Sequence[str] | Literal["all"] | None
    paths: Strategy | Mapping[str, Strategy] | None
    overlay: TunOptions | None
    hard_nats: bool | HardNats
    certificates: CertificateSource | None


def takes_options_of(other: Callable[..., None]) -> Callable[[F], F]:
    """Show the options of `other` by name, type and default where `help` and editors look."""

    def mark(init: F) -> F:
        vars(init)["__wrapped__"] = other
        return init

    return mark


class Face(Generic[X]):
    """Stands outside the loop for an `X` inside it."""

    _thread: LoopThread

    def _inside(self) -> X:
        """What it stands for. Touch it only inside the loop, but for what never changes."""
        raise NotImplementedError


def asked(face: Face[X], verb: Callable[Concatenate[X, P], Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> Job[T]:
    """`verb` of what the face stands for, as a job of the loop. How to wait for it is the face's own."""
    return face._thread.submit(lambda: verb(face._inside(), *args, **kwargs))


def leave_now(face: Face[Any]) -> None:
    """Have the Device behind a face leave, and wait until it has. What it failed of, if anything, was its user's."""
    face._thread.stop()
    face._thread.join()


def thread_of(face: Face[Any]) -> LoopThread:
    """The loop behind a face, for a face of another kind over the same Device."""
    return face._thread


_open: weakref.WeakSet[DeviceFace] = weakref.WeakSet()


class DeviceFace(Face[Device], OwnNode):
    """Who we are and who is there. A netmap never changes, so it can be read from any thread."""

    def __init__(self, hostname: str | None, options: DeviceOptions, thread: LoopThread) -> None:
        unknown = sorted(options.keys() - DeviceOptions.__annotations__.keys())
        if unknown:
            raise TypeError(f"a Device takes no {unknown[0]}=: it takes {', '.join(DeviceOptions.__annotations__)}")
        self._claim = claim_of(hostname, options)
        self._thread = thread

    def _is_open_already(self) -> bool:
        """Somebody may open it once more: a cell is run again. Said, since a device is rarely meant twice."""
        if self.is_open:
            log.warning("%r is open already: open() has nothing to do", self)
        return self.is_open

    def _forerunners(self) -> list[DeviceFace]:
        """The devices of earlier cells that have to leave before this one may join."""
        self._claim = self._claim._replace(cell=running_cell())
        found = [other for other in _open if other.is_open and other._claim.gives_way_to(self._claim)]
        for other in found:
            other._let_go()
            log.warning(
                "%s of an earlier cell is closed now: this one opens a device of the same name or state", other.hostname
            )
        return found

    def _let_go(self) -> None:
        """End what of it lives in the program's own loop."""

    def _start(self) -> None:
        """Begin to join; until it is left, the end of the process says goodbye for it."""
        self._thread.start()
        _open.add(self)

    def __del__(self) -> None:
        thread = getattr(self, "_thread", None)  # None: its arguments were refused
        if thread is not None and thread.is_left_open:
            message = f"{self!r} was lost without being closed; it leaves now"
            thread.stop()  # first: a warning may be an error
            warnings.warn(message, ResourceWarning, stacklevel=1, source=self)

    def _inside(self) -> Device:
        return self._thread.device

    @property
    def node(self) -> Node:
        """Ourselves, as the tailnet sees us right now."""
        return self._inside().node

    @property
    def state(self) -> str:
        """Where we stand with the control server: starting, needs_login, running, offline, ..."""
        return self._inside().state

    @property
    def preferences(self) -> Preferences:
        """What this device was asked to be, with what `set` has changed since."""
        return self._inside().preferences

    @property
    def netmap(self) -> NetMap | None:
        """Everything the control server has said, in its own words."""
        return self._inside().netmap

    @property
    def peers(self) -> Peers:
        """Every other node we are allowed to see, right now."""
        return self._inside().peers

    @property
    def forwarding(self) -> Forwarding:
        """What is carried for others at this moment: which routes, how much, and what was refused and why."""
        return self._inside().forwarding

    @property
    def uplinks(self) -> tuple[Uplink, ...]:
        """The interfaces by which this device reaches its peers; none where the system chooses."""
        return self._inside().uplinks

    @property
    def tun(self) -> TunStatus | None:
        """The TUN device by which this machine's other programs reach the tailnet; None where there is none."""
        return self._inside().tun

    @property
    def transfers(self) -> tuple[FileTransfer, ...]:
        """Files on their way that whoever carries them has shown."""
        return self._inside().transfers

    @property
    def health(self) -> tuple[HealthWarning, ...]:
        """What is wrong right now; empty when all is well."""
        return self._inside().health

    def granted(self, peer: str | Node) -> Mapping[str, Any]:
        """What the policy grants a peer towards us, by capability. NoSuchPeer for a stranger."""
        return self._inside().granted(peer)

    def caller_at(self, address: Address, door: Address | None = None) -> Identity | None:
        """Who is behind a connection that a server of this process has accepted; None for nobody of the tailnet.

        `address` is the peer's as the server's socket shows it, `door` the socket's own. They are known while the
        connection lasts, behind `expose` and the listening sockets of a device. Waits for nothing.
        """
        return self._inside().caller_at(address, door)

    def known_way(self, host: str) -> bool | None:
        """`way_to` as far as nobody has to be asked: None where only the address of a name decides."""
        return self._inside().known_way(host)

    @property
    def is_open(self) -> bool:
        """It has joined and was not closed."""
        return self._thread.is_open

    def __repr__(self) -> str:
        kind = f"{type(self).__module__}.{type(self).__name__}"
        if not self.is_open:
            return f"<{kind} {self._claim.hostname} {'closed' if self._thread.ended.done() else 'not open'}>"
        node = self.node
        return for_terminal(f"<{kind} {node.hostname} {', '.join(node.addresses)} {self.state}>")

    def _repr_html_(self) -> str:
        from tailscale.as_html import page

        if self.is_open:
            look = self._thread.submit(as_work(lambda: self._inside().status()._repr_html_()))
            with contextlib.suppress(TailscaleError, TimeoutError):  # it leaves at this moment
                return look.future.result(LOOK)
        return page(repr(self), {})


class CaptureFace(Face["Capture"]):
    """Packets inside the tunnel, being written to a file."""

    def __init__(self, capture: Capture, thread: LoopThread) -> None:
        self._capture = capture
        self._thread = thread

    def _inside(self) -> Capture:
        return self._capture

    def statistics(self) -> CaptureStatistics:
        """Packets and bytes so far."""
        return self._capture.statistics()


class UdpFace(Face[UdpSocket]):
    """Whole datagrams to and from the tailnet."""

    def __init__(self, udp: UdpSocket, thread: LoopThread) -> None:
        self._udp = udp
        self._thread = thread

    def _inside(self) -> UdpSocket:
        return self._udp

    @property
    def local_address(self) -> Address:
        """Our `(ip, port)`; the ip is "" when it is all of our addresses."""
        return self._udp.local_address


def as_work(function: Callable[P, T]) -> Callable[P, Awaitable[T]]:
    """A plain function as something the loop can be given to do."""

    @functools.wraps(function)
    async def work(*args: P.args, **kwargs: P.kwargs) -> T:
        return function(*args, **kwargs)

    return work


@atexit.register
def _leave_all() -> None:
    """A program that ends says goodbye for the devices it forgot."""
    for face in tuple(_open):
        thread = thread_of(face)
        if thread.is_left_open:
            thread.stop()
            thread.join()
