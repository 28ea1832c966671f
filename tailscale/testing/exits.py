"""An exit node for tests: a Device that forwards to the virtual internet, at a place of the world, with DNS of its own.

Owns what its resolver knows and how it misbehaves. The forwarding is the Device's own; hosts behind it are those of
`Tailnet.host(name, "198.51.100.7")`.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import h11
import trio

from ts_base.errors import BadPacket
from ts_base.ip import parse_address

if TYPE_CHECKING:
    from tailscale.device import Device
    from tailscale.sockets.tcp import TcpStream

EVERYWHERE = ("0.0.0.0/0", "::/0")
DNS_MESSAGE = "application/dns-message"
READ_SIZE = 64 << 10
NAME_ERROR = 3


class PlayedExit:
    """One exit node of a test tailnet. What its resolver does may be changed at any moment.

    - `records`: names, and the addresses that its resolver knows for each.
    - `ttl`: of every answer.
    - `status`: the HTTP status it answers with; anything but 200 carries no answer.
    - `is_silent`: it hears questions, and never answers.
    - `answer`: a function from question to answer, as bytes, in place of all that.
    - `asked`: how often it heard of each name.
    """

    def __init__(self, device: Device, records: dict[str, list[str]]) -> None:
        self.device = device
        self.records = records
        self.ttl = 60
        self.status = 200
        self.is_silent = False
        self.answer: Callable[[bytes], bytes] | None = None
        self.asked: Counter[str] = Counter()

    @property
    def hostname(self) -> str:
        """What `via=` and `nodes=` call it."""
        return self.device.hostname

    async def serve_dns(self, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED) -> None:
        """The part of a peer API that resolves names (RFC 8484). Says its port."""
        async with await self.device.listen(0) as listener, trio.open_nursery() as visits:
            task_status.started(listener.port)
            with contextlib.suppress(trio.ClosedResourceError):  # the device leaves
                while True:
                    visits.start_soon(self._visit, await listener.accept())
            visits.cancel_scope.cancel()

    async def _visit(self, stream: TcpStream) -> None:
        http = h11.Connection(h11.SERVER)
        try:
            async with stream:
                question = await self._read_question(stream, http)
                if self.is_silent:
                    await trio.sleep_forever()
                body = b"" if self.status != 200 else (self.answer or self.answer_question)(question)
                headers = [("Content-Type", DNS_MESSAGE), ("Content-Length", str(len(body)))]
                head = http.send(h11.Response(status_code=self.status, headers=headers)) or b""
                data = http.send(h11.Data(data=body)) or b""
                await stream.send_all(head + data + (http.send(h11.EndOfMessage()) or b""))
                await stream.send_eof()
                await stream.receive_some()
        except (OSError, trio.BrokenResourceError, h11.RemoteProtocolError):
            return  # whoever asked has gone

    async def _read_question(self, stream: TcpStream, http: h11.Connection) -> bytes:
        body = bytearray()
        while not isinstance(event := http.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                http.receive_data(bytes(await stream.receive_some(READ_SIZE)))
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.ConnectionClosed):
                raise h11.RemoteProtocolError("the question ended early")
        return bytes(body)

    def answer_question(self, question: bytes) -> bytes:
        """What an honest resolver that knows `records` says."""
        from dpkt import dns as wire

        message = wire.DNS(question)
        (asked,) = message.qd
        name = asked.name.lower()
        self.asked[name] += 1
        reply = wire.DNS(id=message.id, op=wire.DNS_QR | wire.DNS_RD | wire.DNS_RA, qd=message.qd)
        if name not in self.records:
            reply.rcode = NAME_ERROR
        reply.an = [
            self._record(asked, address)
            for address in map(_raw, self.records.get(name, ()))
            if len(address) == {1: 4, 28: 16}.get(asked.type)
        ]
        return bytes(reply)

    def _record(self, asked: Any, address: bytes) -> Any:
        from dpkt import dns as wire

        record = wire.DNS.RR(name=asked.name, type=asked.type, cls=wire.DNS_IN, ttl=self.ttl)
        record.rdata = address
        return record


def _raw(text: str) -> bytes:
    try:
        return parse_address(text)
    except BadPacket:
        raise ValueError(f"{text!r} in records= is not an IP address") from None
