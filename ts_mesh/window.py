"""What is under way between two processes of one mesh: numbers, acknowledgements, credit, and what is sent again.

Owns the order of everything numbered, and when a message counts as delivered. Refuses to know sockets, peers' names and
who subscribes: what arrives is handed up, and whoever takes it says so.

Each direction numbers its messages from 1 without a gap; they arrive in order, so how far a peer has read is one
number. An ack tells it, together with those that are here but in nobody's queue yet (`held`), and gives credit back as
messages are taken. Refusals and cancellations are numbered too: an ack never overtakes the refusal that it covers.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from typing import NamedTuple

import msgspec

from ts_base.errors import BadPacket
from ts_mesh.envelope import OURS, Envelope
from ts_mesh.facts import (
    GONE,
    NOBODY,
    REASONS,
    UNREACHED,
    Answered,
    Arrived,
    Cancelled,
    Credit,
    Fact,
    Parcel,
    Restarted,
    Settled,
    WindowStatistics,
)
from ts_mesh.hello import Seen
from ts_mesh.limits import MeshLimits
from ts_mesh.words import ACK, CANCEL, NACK, Ack, Cancel, Nack, decode_ack, decode_cancel, decode_nack

MOST_CONTROL = 4096  # refusals and cancellations under way; an honest peer has at most one per message of its window
BURST = 256 << 10  # bytes of messages handed down at a time
LIGHT = 4 << 10

_encode = msgspec.json.Encoder().encode


class _Held(NamedTuple):
    envelope: Envelope
    deadline: float


class Window:
    """One peer's messages, both ways, over however many connections."""

    def __init__(self, limits: MeshLimits, epoch: str) -> None:
        self._limits = limits
        self._epoch = epoch
        self._peer_epoch = ""
        self._is_connected = False
        self._acks = False
        self.life = 0  # of the peer's process; what was taken of an earlier one gives no credit to this one
        # Ours to it.
        self._next = 1
        self._queue: deque[Parcel] = deque()
        self._control: deque[Parcel] = deque()
        self._again: deque[Parcel] = deque()
        self._unacked: dict[int, Parcel] = {}
        self._out = self._out_bytes = 0  # messages that are queued or unacked
        self._asked: dict[int, Parcel] = {}  # whose answers have not come
        self._control_out = 0  # of the unacked, those that are no messages
        self._credit: dict[str, Credit] = {}
        # Its to us.
        self._seen = 0
        self._is_fresh = True  # nothing numbered has come from this process of the peer's
        self._ack_due = self._ack_whole = self._is_whole_awaited = False
        self._took: Counter[str] = Counter()
        self._waiting: Counter[str] = Counter()
        self._large: set[str] = set()  # namespaces whose credit may run out in bytes
        self._held: dict[int, _Held] = {}
        self._unnumbered = 0
        self._facts: list[Fact] = []
        self._sent = self._resent = self._received = 0
        self._bytes_sent = self._bytes_received = 0
        self._drops: Counter[str] = Counter()

    # From above

    def has_room(self, namespace: str, size: int) -> bool:
        """Whether `send` may be called for such a message."""
        limits = self._limits
        if self._out and (self._out >= limits.unacked or self._out_bytes + size > limits.unacked_bytes):
            return False
        credit = self._credit.get(namespace)
        if credit is None or not credit.sizes:
            return True
        return len(credit.sizes) < limits.credit and credit.total + size <= limits.credit_bytes

    def send(self, parcel: Parcel) -> None:
        """Queue it. There is room, or it is free."""
        size = parcel.size
        self._out += 1
        self._out_bytes += size
        if not parcel.is_free:
            self._credit.setdefault(parcel.envelope.namespace, Credit()).add(size)
        self._queue.append(parcel)

    def withdraw(self, parcel: Parcel) -> bool:
        """Take it back, if it has never left. What has left may arrive."""
        if parcel.sent or parcel not in self._queue:
            return False
        self._queue.remove(parcel)
        self._forget(parcel, gives_credit=True)
        return True

    def cancel(self, parcel: Parcel) -> None:
        """Nobody waits for the answer any more."""
        if not self.withdraw(parcel) and self._asked.pop(parcel.envelope.n, None) is not None:
            self._say(CANCEL, Cancel(parcel.envelope.n))

    def took(self, namespace: str, life: int, count: int = 1) -> None:
        """Messages of this namespace were taken: the peer may send as many more.

        It is told with the next ack; at once where it may be waiting for that, or where much has come together.
        """
        if life != self.life or not self._waiting[namespace]:
            return
        self._lower(namespace, count)
        if self._acks:
            self._took[namespace] += count
            told, credit = self._took[namespace], self._limits.credit
            if 4 * told >= credit or self._waiting[namespace] + told >= credit or namespace in self._large:
                self._ack_due = True

    def hold(self, envelope: Envelope, now: float, *, for_listener: bool) -> None:
        """Nobody can take it yet: for want of a listener, or of room in its queue. Only the former has a deadline."""
        waiting = sum(held.deadline < math.inf for held in self._held.values())
        if for_listener and waiting >= self._limits.held:
            self._drops["mesh.nobody_listens"] += 1
            self.refuse(envelope, NOBODY)
            return
        self._unnumbered -= not envelope.n
        deadline = now + self._limits.held_time if for_listener else math.inf
        self._held[envelope.n or self._unnumbered] = _Held(envelope, deadline)
        self._ack_due = self._acks

    def release(self, namespace: str, count: int | None = None) -> list[Envelope]:
        """What is held for a namespace, in order: somebody can take it now."""
        found = [key for key, held in self._held.items() if held.envelope.namespace == namespace][:count]
        if found:
            self._ack_due = self._acks
        return [self._held.pop(key).envelope for key in found]

    def refuse(self, envelope: Envelope, why: str) -> None:
        """It cannot be had here; its sender is told, and has its credit back."""
        self._lower(envelope.namespace, 1)
        if envelope.n:
            self._say(NACK, Nack(envelope.n, why))

    # From below

    def seen(self) -> Seen | None:
        """For our next hello: how far we have read."""
        return Seen(self._peer_epoch, self._seen) if self._peer_epoch else None

    def connect(self, epoch: str, seen: Seen | None, *, acks: bool) -> None:
        """A connection stands, and this is what the peer's hello said.

        Its `seen` may be older than what we know: two connections are begun at once. What comes twice is dropped.
        """
        if epoch != self._peer_epoch:
            self._meet(epoch)
        self._acks, self._is_connected = acks, True
        has_read = seen.n if seen is not None and seen.epoch == self._epoch else 0
        self._next = max(self._next, has_read + 1)  # it remembers more of us than we do
        self._again = deque(parcel for n, parcel in self._unacked.items() if n > has_read)
        self._ack_due = self._ack_whole = self._is_whole_awaited = acks

    def disconnect(self) -> None:
        self._is_connected = False
        self._again.clear()

    def receive(self, envelope: Envelope, *, is_current: bool = True) -> None:
        """One message of the peer. Raises BadPacket for what no honest peer sends; the session ends then."""
        n = envelope.n
        if n and self._acks:
            self._ack_due = True
            if n <= self._seen:
                self._drops["mesh.duplicate"] += 1
                return
            if n != self._seen + 1 and not self._is_fresh:  # fresh: it may remember more of itself than we do
                raise BadPacket(f"message {n} came after {self._seen}")
            self._seen, self._is_fresh = n, False
        if envelope.namespace == OURS:
            self._receive_control(envelope, is_current)
            return
        self._received += 1
        self._bytes_received += envelope.size
        if envelope.re:
            parcel = self._asked.pop(envelope.re, None)
            if parcel is None:
                self._drops["mesh.stray_answer"] += 1
            else:
                self._facts.append(Answered(parcel, envelope))
        else:
            self._admit(envelope)

    def _admit(self, envelope: Envelope) -> None:
        waiting = self._waiting[envelope.namespace] = self._waiting[envelope.namespace] + 1
        if waiting > 2 * self._limits.credit:  # twice: what both ends believe may differ by what was lost
            raise BadPacket("more messages than there was credit for")
        if len(self._control) + self._control_out > MOST_CONTROL:
            raise BadPacket("more messages to nobody than are ever under way")
        if envelope.size > self._limits.credit_bytes // self._limits.credit:
            self._large.add(envelope.namespace)
        self._facts.append(Arrived(envelope, self.life))

    def _receive_control(self, envelope: Envelope, is_current: bool) -> None:
        try:
            if envelope.msg_type == ACK:
                if is_current:  # one of a connection that is over knows less than we do
                    self._receive_ack(decode_ack(envelope.payload or b""))
            elif envelope.msg_type == NACK:
                nack = decode_nack(envelope.payload or b"")
                self._receive_nack(nack.n, nack.why if nack.why in REASONS else NOBODY)
            elif envelope.msg_type == CANCEL:
                self._facts.append(Cancelled(decode_cancel(envelope.payload or b"").n))
            else:
                self._drops["mesh.unknown_word"] += 1
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as problem:
            raise BadPacket(f"no {envelope.msg_type}: {problem}") from None

    def _receive_ack(self, ack: Ack) -> None:
        if ack.n >= self._next:
            raise BadPacket("an acknowledgement of what was never sent")
        held, done = set(ack.held), []
        for n in self._unacked:
            if n > ack.n:
                break
            if n not in held:
                done.append(n)
        for n in done:
            self._settle(n, "")
        if self._is_whole_awaited:
            self._is_whole_awaited = False
            self._compare_credit(ack.waiting or {}, ack.n)
        for namespace, count in ack.took.items():
            self._give_credit(namespace, count)

    def _receive_nack(self, n: int, why: str) -> None:
        if n >= self._next:
            raise BadPacket("a refusal of what was never sent")
        parcel = self._unacked.get(n)
        if parcel is None:
            self._drops["mesh.refused_twice"] += 1
            return
        self._settle(n, why)

    # Down

    def transmit(self) -> list[Envelope]:
        """What is to be written now, in this order; [] when all is written."""
        if not self._is_connected:
            return []
        out: list[Envelope] = []
        while self._again:
            self._resent += 1
            out.append(self._again.popleft().envelope)
        while self._control:
            out.append(self._launch(self._control.popleft()))
        if self._ack_due:
            out.append(self._make_ack())
        size = 0
        while self._queue and size < BURST:
            parcel = self._queue.popleft()
            size += parcel.size + 64
            out.append(self._launch(parcel))
        return out

    def _launch(self, parcel: Parcel) -> Envelope:
        parcel.sent = True
        if parcel.envelope.namespace != OURS:
            self._sent += 1
            self._bytes_sent += parcel.size
        if self._acks:
            parcel.envelope.n = self._next
            self._unacked[self._next] = parcel
            self._control_out += parcel.envelope.namespace == OURS
            if parcel.envelope.ask:
                self._asked[self._next] = parcel
            self._next += 1
        else:  # towards such a peer, written is all that can be said
            self._forget(parcel, gives_credit=True)
            self._facts.append(Settled(parcel, ""))
        return parcel.envelope

    def _make_ack(self) -> Envelope:
        ack = Ack(self._seen, dict(self._took), tuple(n for n in self._held if n > 0))
        if self._ack_whole:
            ack.took, ack.waiting = {}, dict(self._waiting)
        self._took.clear()
        self._large.clear()
        self._ack_due = self._ack_whole = False
        return Envelope(OURS, ACK, msgspec.Raw(_encode(ack)))

    # Time

    def next_timer(self) -> float:
        """When the first held message is given up."""
        return min((held.deadline for held in self._held.values()), default=math.inf)

    def handle_timer(self, now: float) -> None:
        """Nobody came for these."""
        for key in [key for key, held in self._held.items() if held.deadline <= now]:
            self._drops["mesh.nobody_listens"] += 1
            self.refuse(self._held.pop(key).envelope, NOBODY)

    def take_messages(self) -> list[Fact]:
        """What happened since the last call."""
        facts, self._facts = self._facts, []
        return facts

    @property
    def is_quiet(self) -> bool:
        """Nothing of ours is under way."""
        return not (self._queue or self._control or self._unacked)

    @property
    def is_light(self) -> bool:
        """All that is to be written is an ack, or one small message with nothing under way before it."""
        if self._again or self._control or len(self._queue) > 1:
            return False
        return not self._queue or (not self._unacked and self._queue[0].size <= LIGHT)

    @property
    def has_output(self) -> bool:
        return self._is_connected and bool(self._again or self._control or self._queue or self._ack_due)

    def give_up(self) -> None:
        """The peer left for good: nothing of ours will arrive, and nothing will be answered."""
        under_way = {id(parcel): parcel for parcel in (*self._asked.values(), *self._unacked.values(), *self._queue)}
        for parcel in under_way.values():
            if parcel.envelope.namespace != OURS:
                self._facts.append(Settled(parcel, GONE))
        self._asked.clear()
        self._queue.clear()
        self._control.clear()
        self._again.clear()
        self._unacked.clear()
        self._credit.clear()
        self._out = self._out_bytes = self._control_out = 0

    def give_up_unsent(self) -> None:
        """The peer was not reached: what never left has failed for sure."""
        for parcel in tuple(self._queue):
            if self.withdraw(parcel):
                self._facts.append(Settled(parcel, UNREACHED))

    def statistics(self) -> WindowStatistics:
        return WindowStatistics(
            self._sent,
            self._resent,
            self._received,
            self._bytes_sent,
            self._bytes_received,
            len(self._unacked),
            len(self._held),
            dict(self._drops),
        )

    # Inside

    def _say(self, word: str, what: msgspec.Struct) -> None:
        """A word of the protocol's own that must arrive."""
        if self._acks:
            self._control.append(Parcel(Envelope(OURS, word, msgspec.Raw(_encode(what))), is_free=True))

    def _lower(self, namespace: str, count: int) -> None:
        left = self._waiting[namespace] - count
        if left > 0:
            self._waiting[namespace] = left
        else:
            del self._waiting[namespace]

    def _settle(self, n: int, why: str) -> None:
        parcel = self._unacked.pop(n)
        if parcel.envelope.namespace == OURS:
            self._control_out -= 1
            return
        self._forget(parcel, gives_credit=bool(why))
        if why:
            self._asked.pop(n, None)
        self._facts.append(Settled(parcel, why))

    def _forget(self, parcel: Parcel, *, gives_credit: bool) -> None:
        """It counts no longer as under way; what was delivered keeps its credit until it is taken."""
        self._out -= 1
        self._out_bytes -= parcel.size
        credit = self._credit.get(parcel.envelope.namespace)
        if gives_credit and credit is not None and not parcel.is_free:
            credit.remove(parcel.size)
            if not credit.sizes:
                del self._credit[parcel.envelope.namespace]

    def _give_credit(self, namespace: str, count: int) -> None:
        credit = self._credit.get(namespace)
        if credit is not None:
            credit.pop(count)
            if not credit.sizes:
                del self._credit[namespace]

    def _compare_credit(self, waiting: dict[str, int], read: int) -> None:
        """The first ack of a connection says what is really waiting: what was taken meanwhile nobody told us."""
        under_way: Counter[str] = Counter()
        for parcel in (*self._queue, *(p for n, p in self._unacked.items() if n > read)):
            under_way[parcel.envelope.namespace] += not parcel.is_free
        for namespace in tuple(self._credit):
            excess = len(self._credit[namespace].sizes) - under_way[namespace] - waiting.get(namespace, 0)
            self._give_credit(namespace, max(0, excess))

    def _meet(self, epoch: str) -> None:
        """Another process than before, if there was one. It has nothing of ours, so what is unacked is new to it."""
        if self._peer_epoch:
            self.life += 1
            self._facts.append(Restarted())
        self._peer_epoch = epoch
        self._seen, self._is_fresh = 0, True
        self._took.clear()
        self._waiting.clear()
        self._held.clear()
        self._control.clear()  # these speak of numbers that mean nothing any more
        for parcel in reversed([each for each in self._unacked.values() if each.envelope.namespace != OURS]):
            parcel.envelope.n = 0
            self._queue.appendleft(parcel)
        lost = [parcel for n, parcel in self._asked.items() if n not in self._unacked]
        self._facts.extend(Settled(parcel, GONE) for parcel in lost)  # whoever read the question is no more
        self._asked.clear()
        self._unacked.clear()
        self._control_out, self._next = 0, 1
        self._credit.clear()
        for parcel in self._queue:
            if not parcel.is_free:
                self._credit.setdefault(parcel.envelope.namespace, Credit()).add(parcel.size)
