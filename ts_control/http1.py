"""One HTTP/1.1 connection as a client, sans-IO over h11: key request, protocol upgrade, CONNECT, ping answers.

Owns: one request at a time and its whole, bounded answer. Refuses to know: sockets, TLS, what the answer means.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import h11

from ts_base.errors import BadPacket

BODY_LIMIT = 65536
UPGRADE_NAME = "tailscale-control-protocol"


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes = b""
    rest: bytes = field(default=b"", repr=False)
    """What followed a 101 or a CONNECT's 200: already the next protocol."""
    can_continue: bool = False
    """Whether another request may use the connection."""


class Http1Client:
    """Ask with `request`, feed `receive_untrusted` until it returns the Reply."""

    def __init__(self) -> None:
        self._h11 = h11.Connection(h11.CLIENT)
        self._response: h11.Response | h11.InformationalResponse | None = None
        self._body: list[bytes] = []
        self._size = 0

    def request(self, method: str, target: str, headers: Sequence[tuple[str, str]], body: bytes = b"") -> bytes:
        if self._h11.our_state is h11.DONE:
            self._h11.start_next_cycle()
        self._response, self._body, self._size = None, [], 0
        try:
            head = self._h11.send(h11.Request(method=method, target=target, headers=list(headers))) or b""
        except (h11.LocalProtocolError, UnicodeError):  # made of what somebody else told us
            raise BadPacket("HTTP: the target or a header cannot be written") from None
        sent = self._h11.send(h11.Data(data=body)) if body else None
        return head + (sent or b"") + (self._h11.send(h11.EndOfMessage()) or b"")

    def receive_untrusted(self, data: bytes) -> Reply | None:
        """b"" is the end of the connection. None: the answer is not complete yet."""
        try:
            self._h11.receive_data(data)
            return self._next_reply()
        except h11.RemoteProtocolError as problem:
            raise BadPacket(f"HTTP: {problem}") from None

    def _next_reply(self) -> Reply | None:
        while True:
            event = self._h11.next_event()
            if event is h11.NEED_DATA:
                return None
            if event is h11.PAUSED:  # the other protocol has begun
                return self._reply(self._h11.trailing_data[0])
            if isinstance(event, h11.InformationalResponse):
                if event.status_code == 101:
                    self._response = event
            elif isinstance(event, h11.Response):
                self._response = event
            elif isinstance(event, h11.Data):
                self._size += len(event.data)
                if self._size > BODY_LIMIT:
                    raise BadPacket(f"HTTP answer of more than {BODY_LIMIT} bytes")
                self._body.append(bytes(event.data))
            elif isinstance(event, h11.EndOfMessage):
                return self._reply(b"")
            elif isinstance(event, h11.ConnectionClosed):
                raise BadPacket("HTTP: the connection ended before the answer")

    def _reply(self, rest: bytes) -> Reply:
        if self._response is None:
            raise BadPacket("HTTP: no answer")
        headers = {
            bytes(name).decode("latin-1"): bytes(value).decode("latin-1") for name, value in self._response.headers
        }
        done = self._h11.our_state is h11.DONE and self._h11.their_state is h11.DONE
        return Reply(self._response.status_code, headers, b"".join(self._body), bytes(rest), done)


def is_web_page(reply: Reply) -> bool:
    """Whether it is for people."""
    return reply.body.lstrip()[:1] == b"<" or "html" in reply.headers.get("content-type", "")


def words_of(reply: Reply) -> str:
    """What a refusal says, fit for the end of a sentence: one line, and of a web page no more than that it is one."""
    if is_web_page(reply):
        return " and a web page"
    text = " ".join(reply.body[:200].decode("utf-8", "replace").split())
    return f": {text}" if text else ""


def upgrade_headers(host: str, handshake_base64: str) -> list[tuple[str, str]]:
    """The request headers of `POST /ts2021`."""
    return [
        ("Host", host),
        ("Upgrade", UPGRADE_NAME),
        ("Connection", "upgrade"),
        ("X-Tailscale-Handshake", handshake_base64),
        ("Content-Length", "0"),
    ]


def check_upgrade_untrusted(reply: Reply) -> None:
    if reply.status != 101:
        raise BadPacket(f"the upgrade was answered with HTTP {reply.status}{words_of(reply)}")
    if reply.headers.get("upgrade", "").lower() != UPGRADE_NAME:
        raise BadPacket("the server switched to another protocol than ours")
