"""The line to one member: its messages under way, its session, and the task that writes.

One task owns the writing, one per connection reads, whoever sends only waits. Decisions are `ts_mesh`'s.
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec
import trio

from tailscale.errors import ConnectionRefused, ConnectionTimedOut, TailscaleError
from tailscale.mesh.dialling import open_link
from tailscale.mesh.errors import MessageTooLarge, PeerGone
from tailscale.mesh.events import PeerConnected, PeerDisconnected, PeerJoined, PeerLeft
from tailscale.mesh.parting import ABNORMAL, NORMAL, LinkLost
from tailscale.mesh.peers import MeshPeer
from tailscale.mesh.shared import Shared
from tailscale.mesh.subscriptions import decoder_of
from tailscale.mesh.tickets import Admission, Ticket, encoded, error_of, remote_error, wrong_shape
from ts_base.errors import BadPacket
from ts_mesh import facts
from ts_mesh import hello as hellos
from ts_mesh import session as sessions
from ts_mesh.envelope import (
    ERROR,
    FILES,
    FOREIGN_FILES,
    MESSAGE,
    Envelope,
    decode_binary_untrusted,
    decode_payload,
    decode_text_untrusted,
    encode_envelope,
)
from ts_mesh.facts import Answered, Arrived, Cancelled, Restarted, Settled
from ts_mesh.hello import Hello, Identity
from ts_mesh.session import Close, Dial, Ping, Session
from ts_mesh.window import Window

if TYPE_CHECKING:
    from tailscale.mesh.file_seam import FileService
    from tailscale.mesh.links import Link
    from tailscale.nodes import Node
    from tailscale.sockets.tcp import TcpStream

log = logging.getLogger("tailscale.mesh")
CODES = {sessions.DUPLICATE: hellos.DUPLICATE, sessions.IDLE: NORMAL}
CALM_CODES = (NORMAL, hellos.DUPLICATE, hellos.GOING_AWAY)  # after which nobody dials only because it broke
_encode = msgspec.json.Encoder().encode


class Line:
    """To one node. There is one while it is a member."""

    def __init__(self, shared: Shared, node: Node, generation: int, on_lost: Callable[[Line], None]) -> None:
        self.shared = shared
        self._on_lost = on_lost
        self.node = node
        self.identity: Identity | None = None
        self.features: frozenset[str] = frozenset()
        self.process: tuple[str, int] = ("", 0)  # the peer's: its epoch; of one that tells none, each connection is one
        self.peer = MeshPeer(self, generation)
        self.window = Window(shared.limits, shared.epoch)
        self._session = Session(shared.identity().device_id)
        self._links: dict[int, Link] = {}
        self._last_link = 0
        self.admission = Admission(self.window)
        self._problem: Exception | None = None  # of the last dial
        self._was_open = False
        self.is_gone = False
        self.is_hidden = True  # not a member yet
        self._lot = trio.lowlevel.ParkingLot()
        self._is_due = False
        self._is_owned = False
        self.settled = trio.Event()  # a dial has ended, either way

    @property
    def files(self) -> FileService:
        """Who sends and takes files here."""
        assert self.shared.files is not None, "a mesh has one from its entering on"
        return self.shared.files

    @property
    def is_connected(self) -> bool:
        return self._session.current != 0

    # What users ask

    async def send(
        self, peer: MeshPeer, namespace: str, data: object, kind: str, *, wait: bool, timeout: float | None
    ) -> None:
        self._check(peer)
        ticket = Ticket(self._envelope(namespace, data, kind))
        await self._carry(ticket, lambda: ticket.why is not None or (ticket.is_admitted and not wait), timeout)

    async def request(self, peer: MeshPeer, namespace: str, data: object, *, type: Any, timeout: float | None) -> Any:
        self._check(peer)
        ticket = Ticket(self._envelope(namespace, data, MESSAGE, ask=True))
        await self._carry(ticket, lambda: ticket.answer is not None or bool(ticket.why), timeout)
        answer = ticket.answer
        assert answer is not None
        if answer.msg_type == ERROR:
            raise remote_error(answer)
        try:
            return decode_payload(answer, decoder_of(type))
        except BadPacket as problem:
            raise wrong_shape(problem, f"the answer of {self.node.hostname}") from None

    async def say(self, peer: MeshPeer, word: str, payload: object, *, timeout: float | None = None) -> None:
        """A word of the file service to its twin; returns when that has heard it."""
        self._check(peer)
        ticket = Ticket(Envelope(FILES, word, msgspec.Raw(_encode(payload))))
        await self._carry(ticket, lambda: ticket.why is not None, timeout)

    async def connect_port(self, *, timeout: float | None = None) -> TcpStream:
        """A bare connection to the peer's mesh port."""
        node = self.node
        address = node.ipv4 or node.ipv6 or node.name
        stream = await self.shared.device.tcp_connect(address, self.shared.port_of(node), timeout=timeout)
        if (owner := stream.peer) is None or owner.stable_id != node.stable_id:
            stream.abort()  # the address changed hands while we dialled: nothing of ours is for whoever has it now
            raise ConnectionRefused(f"{node.hostname} has another address now than {address}")
        return stream

    def reply(self, life: int, answer: Envelope) -> Ticket | None:
        """Answer a question, unless who asked is another process by now."""
        if life != self.window.life or not answer.re or self.is_gone:
            return None
        ticket = Ticket(answer, is_free=True)
        self.window.send(ticket)
        self.kick()
        return ticket

    async def settle(self, ticket: Ticket) -> None:
        while ticket.why is None:
            await ticket.changed.wait()

    def _check(self, peer: MeshPeer) -> None:
        if self.is_gone or peer != self.peer:
            raise PeerGone(f"{self.node.hostname} left the mesh; mesh.peer() finds it when it comes back")

    def _envelope(self, namespace: str, data: object, kind: str, *, ask: bool = False) -> Envelope:
        envelope = encoded(namespace, data, kind, int(time.time() * 1000), ask=ask)
        if envelope.size > self.shared.limits.message:
            raise MessageTooLarge(
                f"{envelope.size} bytes: a message has at most {self.shared.limits.message} (MeshLimits.message); "
                "push() sends files of any size"
            )
        return envelope

    async def _carry(self, ticket: Ticket, is_done: Callable[[], bool], timeout: float | None) -> None:
        """Admit it, and wait. Cancelled or late, it is taken back where that is possible."""
        await trio.lowlevel.checkpoint_if_cancelled()
        self.admission.admit(ticket)
        try:
            await self._write_soon()
            if timeout is None:
                while not is_done():
                    await ticket.changed.wait()
            else:
                with trio.move_on_after(timeout):
                    while not is_done():
                        await ticket.changed.wait()
        finally:
            if not is_done():
                self.admission.abandon(ticket)
                self.kick()
        if not is_done():
            raise ConnectionTimedOut(
                f"{self.node.hostname} did not {'answer' if ticket.envelope.ask else 'acknowledge'} within "
                f"{timeout:g} s: whether the message arrived is unknown"
            )
        if ticket.why:
            raise error_of(ticket.why, ticket.envelope.namespace, self.node.hostname, self._problem)

    # What the router asks

    def took(self, namespace: str, life: int) -> None:
        self.window.took(namespace, life)
        if self.window.has_output:
            self.kick()

    def hold(self, envelope: Envelope, *, for_listener: bool) -> None:
        if for_listener and envelope.namespace == FOREIGN_FILES and self._is_foreign_offer(envelope):
            return
        self.window.hold(envelope, trio.current_time(), for_listener=for_listener)
        self.kick()

    def _is_foreign_offer(self, envelope: Envelope) -> bool:
        """A file that is offered in Truffle's words: it is told that nobody here speaks them, instead of waiting."""
        from ts_mesh import truffle  # few meet it

        try:
            token = truffle.decode_asker_untrusted(envelope) if "ack" not in self.features else ""
        except BadPacket:
            token = ""
        if token:
            self.shared.drops["mesh.foreign_offer"] += 1
            self.refuse(envelope, facts.NOBODY)
            answer = truffle.refusal(token, "unsupported", int(time.time() * 1000))
            if self.window.has_room(answer.namespace, answer.size):  # else it asks and asks, and reads no answers
                self.window.send(Ticket(answer))
        return bool(token)

    def refuse(self, envelope: Envelope, why: str) -> None:
        self.window.refuse(envelope, why)
        self.kick()

    def look_again(self, namespace: str) -> None:
        for envelope in self.window.release(namespace):
            self.shared.router.deliver(self, envelope, self.window.life)
        self.kick()

    # The owner

    def kick(self) -> None:
        """Something is to be done."""
        self._is_due = True
        self._lot.unpark_all()
        if not self._is_owned:
            self._is_owned = True
            self.shared.start(self._own)

    def want(self) -> None:
        """Open a session, though nothing is to be sent."""
        if not self.is_connected:
            self.settled = trio.Event()
            self._session.want(trio.current_time())
            self.kick()

    def hope(self) -> None:
        """It came online."""
        self._session.hope()
        self.kick()

    def suspect(self) -> None:
        """Something says that it cannot be reached as before."""
        if self.is_connected:
            self._session.suspect(trio.current_time())
            self.kick()

    async def _own(self) -> None:
        try:
            while await self._turn():
                pass
        finally:
            self._is_owned = False

    async def _turn(self) -> bool:
        """Do what is due, then wait for more. False: there is nothing to wait for."""
        self._is_due = False
        now = trio.current_time()
        self.window.handle_timer(now)
        self._session.handle_timer(now)
        self._session.want(now, wanted=self._is_needed)
        for act in self._session.take_messages():
            self._do(act, now)
        self._hear()
        number = self._session.current
        link = self._links.get(number)
        if link is not None and (self.window.has_output or link.has_output):
            await self._write(number, link)
            return True
        if self._is_due:
            await trio.lowlevel.checkpoint()
            return True
        timer = min(self.window.next_timer(), self._session.next_timer())
        if timer == math.inf and not self._links and self._session.state is not sessions.State.DIALLING:
            await trio.lowlevel.checkpoint()
            return self._is_due
        with trio.move_on_at(timer):
            await self._lot.park()
        return True

    @property
    def _is_needed(self) -> bool:
        if self.is_gone or self.is_hidden:
            return False
        is_kept = bool(self.shared.keeps_open) and self.node.online is not False
        return self.admission.is_busy or not self.window.is_quiet or is_kept

    async def _write_soon(self) -> None:
        """A little is written by whoever made it: to wake the owner costs a turn of the loop, and a packet."""
        number = self._session.current
        link = self._links.get(number)
        if link is not None and link.is_free and self.window.is_light and self.window.has_output:
            with trio.CancelScope(shield=True):  # half a frame would end the connection; this waits for nobody
                await self._write(number, link)
        else:
            self.kick()

    async def _write(self, number: int, link: Link) -> None:
        is_binary = "bin" in self.features
        frames = [encode_envelope(envelope, binary=is_binary) for envelope in self.window.transmit()]
        self._hear()
        if frames:
            self._session.use(trio.current_time())
        try:
            await link.send(frames)
        except LinkLost as problem:
            self._lose(number, problem.code, str(problem))

    def _do(self, act: sessions.Act, now: float) -> None:
        match act:
            case Dial():
                self.shared.start(self._dial)
            case Ping(connection=number) if number in self._links:
                self._links[number].ask()
            case Close(connection=number, why=why) if number in self._links:
                link = self._links[number]
                link.abandon()
                if why == sessions.DEAD:
                    link.end()
                    self._lose(number, ABNORMAL, "the peer stopped answering")
                else:
                    self.shared.start(link.close, CODES[why], why)

    def _hear(self) -> None:
        while heard := self.window.take_messages():
            for fact in heard:
                match fact:
                    case Settled(parcel=Ticket() as ticket, why=why):
                        ticket.why = why
                        ticket.tell()
                    case Answered(parcel=Ticket() as ticket, envelope=answer):
                        ticket.answer = answer
                        ticket.tell()
                    case Arrived(envelope=envelope, life=life):
                        self._arrive(envelope, life)
                    case Cancelled(n=n):
                        for server in self.shared.router.servers.values():
                            server.cancel(self, n)
                    case Restarted():
                        for server in self.shared.router.servers.values():
                            server.cancel(self)
        self.admission.let_in()

    def _arrive(self, envelope: Envelope, life: int) -> None:
        if envelope.size > self.shared.limits.message:
            self.refuse(envelope, facts.TOO_LARGE)
        elif envelope.namespace != FILES:
            self.shared.router.deliver(self, envelope, life)
        elif self.shared.files is None:
            self.refuse(envelope, facts.NOBODY)
        else:
            try:
                self.shared.files.hear(self.peer, envelope.msg_type, decode_payload(envelope, None))
            except Exception:
                self.shared.drops["mesh.failed_word"] += 1
                log.exception("a word about files from %s was not understood", self.node.hostname)
            self.took(FILES, life)

    # Connections

    async def _dial(self) -> None:
        try:
            link, hello = await open_link(self)
        except (LinkLost, TailscaleError, OSError, trio.TooSlowError, trio.BrokenResourceError) as problem:
            self._dial_failed(problem)
        else:
            self.join(link, hello, is_ours=True)

    def greeting(self) -> str:
        """Our hello, as it stands now."""
        shared = self.shared
        return hellos.encode_hello(shared.identity(), shared.features, shared.epoch, self.window.seen())

    def objection(self, hello: Hello, caller: Node | None) -> tuple[int, str] | None:
        """Why a session with who sent this cannot be. Fails closed: without a node nobody is who they say."""
        stable_id = caller.stable_id if caller is not None and caller.stable_id == self.node.stable_id else ""
        own_id = self.shared.identity().device_id
        return hellos.refusal(hello, app=self.shared.app, own_id=own_id, stable_id=stable_id)

    def _dial_failed(self, problem: BaseException) -> None:
        host = self.node.hostname
        if isinstance(problem, LinkLost):
            problem = ConnectionRefused(f"{host} closed the session before it began: {problem} ({problem.code})")
        elif not isinstance(problem, TailscaleError):
            problem = ConnectionTimedOut(f"{host} took the connection and said nothing more")
        self._problem = problem
        again = not self.is_gone and (self._was_open or bool(self.shared.keeps_open))
        if not again:
            self.window.give_up_unsent()
            self.admission.fail(facts.UNREACHED)
        self._session.failed(trio.current_time(), random.random(), again=again)  # noqa: S311 - a pause, no secret
        self.settled.set()
        self.kick()

    def join(self, link: Link, hello: Hello, *, is_ours: bool) -> None:
        """A connection over which both have said hello, and both are who they say."""
        now = trio.current_time()
        self._last_link += 1
        number, identity = self._last_link, hello.identity
        was_connected = self.is_connected
        if self.is_gone or not self._session.opened(
            number, is_ours=is_ours, peer_id=identity.device_id, epoch=hello.epoch, now=now
        ):
            self.shared.start(link.close, hellos.DUPLICATE, "another connection is in use")
            self.settled.set()
            return
        self._links[number] = link
        self._was_open = True
        self.process = hello.epoch, 0 if hello.epoch else number
        self._recognize(identity)
        self.features = hellos.common_features(self.shared.features, hello)
        self.window.connect(hello.epoch, hello.seen, acks="ack" in self.features)
        if not was_connected:
            self.shared.sessions += 1
            self.shared.readers.put(PeerConnected(self.peer))
        self.shared.start(self._read, number, link, self.process)
        self.settled.set()
        self.kick()

    def _recognize(self, identity: Identity) -> None:
        """One that lost its state is another member on the same node."""
        before = self.identity
        self.identity = identity
        if before is not None and before.device_id != identity.device_id:
            old = self.peer
            self.peer = MeshPeer(self, old.generation + 1)
            self.shared.readers.put(PeerLeft(old))
            self.shared.readers.put(PeerJoined(self.peer))

    async def _read(self, number: int, link: Link, process: tuple[str, int]) -> None:
        code, reason = ABNORMAL, ""
        try:
            while True:
                frames = await link.receive()
                if process[0] != self.process[0]:
                    self.shared.drops["mesh.former_process"] += len(frames)
                    continue  # their numbers mean nothing to the process that speaks now
                self._take(frames, is_current=number == self._session.current)
                if self.window.has_output or link.has_output:
                    await self._write_soon()
        except LinkLost as problem:
            code, reason = link.parting or problem.code, str(problem)
            if problem.is_told:
                await link.close(code, reason, by_reader=True)
            await link.agree()
        except BadPacket as problem:
            code, reason = hellos.MALFORMED, str(problem)
            self.shared.drops["mesh.malformed"] += 1
            log.info("%s broke the rules: %s", self.node.hostname, problem)
            await link.close(code, reason, by_reader=True)
        finally:
            link.end()
            self._lose(number, code, reason)

    def _take(self, frames: list[str | bytes], *, is_current: bool) -> None:
        now = trio.current_time()
        if is_current:
            self._session.heard(now)
        for frame in frames:
            envelope = decode_text_untrusted(frame) if isinstance(frame, str) else decode_binary_untrusted(frame)
            self.window.receive(envelope, is_current=is_current)
        if frames:
            self._session.use(now)
            self._hear()

    def _lose(self, number: int, code: int, reason: str) -> None:
        link = self._links.pop(number, None)
        if link is None:
            return
        if self._session.current == number:
            self.shared.sessions -= 1
            self.window.disconnect()
            chance = random.random()  # noqa: S311 - a pause, no secret
            self._session.closed(number, trio.current_time(), chance, again=code not in CALM_CODES and not self.is_gone)
            self.shared.readers.put(PeerDisconnected(self.peer, reason))
            self._on_lost(self)
        self.kick()

    # The end

    def leave(self) -> None:
        """It is no member any more: whoever waits is told."""
        self.is_gone = True
        self.window.give_up()
        self.admission.fail(facts.GONE)
        for server in self.shared.router.servers.values():
            server.cancel(self)
        for link in self._links.values():
            self.shared.start(link.close, hellos.GOING_AWAY, "no member any more")
        self._hear()
        self.kick()

    async def close(self) -> None:
        """We leave: say so over every connection."""
        self.is_gone = True
        async with trio.open_nursery() as nursery:
            for link in self._links.values():
                link.abandon()
                nursery.start_soon(link.close, hellos.GOING_AWAY, "going away")
