"""What the devices of a soak say to each other: transfers with hashes, datagrams, one conversation that never ends.

Every device serves; every flow checks what came back. A flow that fails is a failure of the soak, so the caller only
starts flows that must succeed.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from struct import Struct

import trio

from tailscale import Device, TcpStream

TRANSFER_PORT, REFUSED_PORT, ECHO_PORT, TALK_PORT = 7, 8, 9, 10
HEAD = Struct(">QQQ")  # bytes up, bytes down, seed of what comes down
PIECE = 1 << 16
PATIENCE = 300.0  # seconds for one flow, disturbances included
TALK_EVERY = 45.0
GRACE = 60.0  # seconds in which a device that is being disturbed may refuse a dial


class Failures:
    """What went wrong, when, and while what was being done to the tailnet."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.doing = "nothing"
        self.flows: Counter[str] = Counter()
        self.bytes = 0

    def note(self, what: str, error: BaseException | str) -> None:
        text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
        self.seen.append(f"at {trio.current_time():,.0f} s, during {self.doing}: {what}: {text}")


async def serve(device: Device, failures: Failures) -> None:
    """Answer on every port until cancelled."""
    async with trio.open_nursery() as nursery:
        for port, answer in ((TRANSFER_PORT, _answer_transfer), (REFUSED_PORT, _echo), (TALK_PORT, _echo)):
            nursery.start_soon(trio.serve_listeners, answer, [await device.listen(port)])
        echo = await device.udp(ECHO_PORT)
        while True:
            data, sender = await echo.receive_from()
            await echo.send_to(data, sender)


async def _answer_transfer(stream: TcpStream) -> None:
    async with stream:
        try:
            up, down, seed = HEAD.unpack(await _exactly(stream, HEAD.size))
            digest = hashlib.sha256()
            while up:
                piece = await stream.receive_some(min(up, PIECE))
                if not piece:
                    return
                digest.update(piece)
                up -= len(piece)
            await stream.send_all(digest.digest() + random.Random(seed).randbytes(down))
        except (trio.BrokenResourceError, EOFError):
            return  # the client says what went wrong


async def _echo(stream: TcpStream) -> None:
    async with stream:
        try:
            while data := await stream.receive_some(PIECE):
                await stream.send_all(data)
        except trio.BrokenResourceError:
            return


async def _exactly(stream: TcpStream, count: int) -> bytes:
    got = bytearray()
    while len(got) < count:
        piece = await stream.receive_some(count - len(got))
        if not piece:
            raise EOFError(f"the stream ended after {len(got)} of {count} bytes")
        got += piece
    return bytes(got)


async def dial(left: Device, right: Device, port: int, failures: Failures) -> TcpStream:
    """Connect; a refusal is tried again for a while, as a careful program would, and counted."""
    give_up = trio.current_time() + GRACE
    while True:
        try:
            return await left.tcp_connect(str(right.ipv4), port, timeout=PATIENCE)
        except OSError:
            if trio.current_time() >= give_up:
                raise
        failures.flows["dials tried again"] += 1
        await trio.sleep(1.0)


async def transfer(left: Device, right: Device, dice: random.Random, failures: Failures) -> None:
    """Bytes up, their hash and bytes down."""
    up, down, seed = _size(dice), _size(dice), dice.randrange(1 << 32)
    where = f"transfer of {up}+{down} bytes from {left.hostname} to {right.hostname}"
    try:
        with trio.fail_after(PATIENCE):
            stream = await dial(left, right, TRANSFER_PORT, failures)
            async with stream:
                sent = dice.randbytes(up)
                await stream.send_all(HEAD.pack(up, down, seed) + sent)
                digest = await _exactly(stream, 32)
                got = await _exactly(stream, down)
        if digest != hashlib.sha256(sent).digest() or got != random.Random(seed).randbytes(down):
            failures.note(where, "the bytes are not those that were sent")
    except (OSError, trio.TooSlowError, trio.BrokenResourceError, EOFError) as error:
        failures.note(where, error)
    failures.flows["tcp"] += 1
    failures.bytes += up + down


def _size(dice: random.Random) -> int:
    return dice.choice((0, 1, 700, 5_000, 60_000, 60_000, 300_000, dice.choice((1 << 20, 4 << 20))))


async def datagrams(left: Device, right: Device, dice: random.Random, failures: Failures) -> None:
    """Echoes; one of several must come back, whatever the loss."""
    wanted = dice.randbytes(dice.randrange(1, 1100))
    async with await left.udp() as socket:
        for _ in range(20):
            with trio.move_on_after(5.0):
                try:
                    await socket.send_to(wanted, (str(right.ipv4), ECHO_PORT))
                except OSError:
                    await trio.sleep_forever()  # the next one will do
                while (await socket.receive_from())[0] != wanted:
                    pass
                failures.flows["udp"] += 1
                return
    failures.note(f"datagrams from {left.hostname} to {right.hostname}", "no echo of 20")


async def talk_for_ever(left: Device, right: Device, every: float, failures: Failures) -> None:
    """One connection that lives through everything; should it break, that is a failure, and the next one begins."""
    while True:
        await _talk(left, right, every, failures)
        await trio.sleep(every)


async def _talk(left: Device, right: Device, every: float, failures: Failures) -> None:
    try:
        async with await dial(left, right, TALK_PORT, failures) as stream:
            for number in range(1 << 30):
                line = b"%032d" % number
                with trio.fail_after(PATIENCE):
                    await stream.send_all(line)
                    if await _exactly(stream, len(line)) != line:
                        failures.note("the long conversation", "another line came back")
                failures.flows["lines"] += 1
                await trio.sleep(every)
    except (OSError, trio.TooSlowError, trio.BrokenResourceError, EOFError) as error:
        failures.note("the long conversation", error)


async def must_be_refused(left: Device, right: Device, failures: Failures) -> None:
    """The policy says no."""
    failures.flows["refused"] += 1
    try:
        stream = await left.tcp_connect(str(right.ipv4), REFUSED_PORT, timeout=10.0)
    except OSError:
        return
    await stream.aclose()
    failures.note(f"port {REFUSED_PORT} of {right.hostname}", "the policy forbids it, and it opened")
