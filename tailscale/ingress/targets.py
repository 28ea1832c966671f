"""Which node a name leads to, and whether it takes a connection: `POST /v0/ingress` of its peer API.

Owns the names that the operator gave and what is known of their nodes. A target judges for itself whether the name is
published and whether we may bring anything; what it answers is read with bounds, and never repeated to the client.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from tailscale.errors import TailscaleError
from tailscale.nodes import Node, clean_name, named, peerapi_of
from ts_base.errors import BadPacket

if TYPE_CHECKING:
    from tailscale.device import Device
    from tailscale.sockets.tcp import TcpStream
    from ts_control.netmap import NetMap

LONGEST_ANSWER = 8 << 10  # the head of it
SHOWN = 200  # bytes of what a target says, in our log
KEEPALIVE = 60.0  # a silent target is asked this often whether it still exists
NAMES = 4096  # in one mapping
ANY = "*."
NO_CAPABILITY = "no ingress cap"  # as upstream says it, and ours

To = str | Node | Mapping[str, str | Node]


class Refused(TailscaleError):
    """A target took the request and said no; `status` is its answer. `is_for_us`: it takes none of us at all."""

    def __init__(self, status: int, sentence: str) -> None:
        self.status = status
        self.is_for_us = NO_CAPABILITY in sentence
        super().__init__(f"it answered {status} {sentence}".rstrip())


class Target(NamedTuple):
    """Where a node's peer API is."""

    host: str
    address: str
    port: int

    @property
    def authority(self) -> str:
        """As a Host header says it."""
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


class Targets:
    """The names of one relay. `*.example.com` stands for one label in front of it; the exact name wins."""

    def __init__(self, device: Device, to: To) -> None:
        self._device = device
        if isinstance(to, str | Node):
            self._all, self._named = _wanted(to), dict[str, str]()
        else:
            self._all, self._named = "", {_clean(name): _wanted(node) for name, node in to.items()}
            if not self._named:
                raise ValueError("a relay leads somewhere: to= is a node, or a mapping of names to nodes")
        if len(self._named) > NAMES:
            raise ValueError(f"a relay has at most {NAMES} names")
        self._netmap: NetMap | None = None
        self._found: dict[str, Target | None] = {}

    def node_for(self, name: str) -> str:
        """Which node is meant to have this name; "" for none."""
        wildcard = ANY + name.partition(".")[2]
        return self._named.get(name) or self._named.get(wildcard) or self._all

    def nodes(self) -> list[str]:
        """All that are led to, as the operator called them."""
        return sorted({self._all, *self._named.values()} - {""})

    def find(self, node: str) -> Target | None:
        """Where that node takes connections now; None where there is none, or it answers no peers."""
        netmap = self._device.netmap
        if netmap is not self._netmap:
            self._netmap, self._found = netmap, {}
        if node not in self._found:
            peer = named(node, netmap.peers.values()) if netmap is not None else None
            where = peerapi_of(peer) if peer is not None else None
            self._found[node] = Target(node, *where) if where is not None else None
        return self._found[node]

    async def open(self, target: Target, source: tuple[str, int], name: str, port: int) -> tuple[TcpStream, bytes]:
        """A connection that the target has taken, and what it has sent already. Raises Refused, or what a dial does."""
        stream = await self._device.tcp_connect(target.address, target.port)
        try:
            stream.set_keepalive(KEEPALIVE)
            host, source_port = source
            written = f"[{host}]:{source_port}" if ":" in host else f"{host}:{source_port}"
            await stream.send_all(
                f"POST /v0/ingress HTTP/1.1\r\nHost: {target.authority}\r\nTailscale-Ingress-Src: {written}\r\n"
                f"Tailscale-Ingress-Target: {name}:{port}\r\nContent-Length: 0\r\n\r\n".encode("ascii")
            )
            return stream, await _answer(stream)
        except BaseException:
            stream.abort()
            raise


async def _answer(stream: TcpStream) -> bytes:
    """What follows the head of an answer that is 101."""
    head = bytearray()
    while (end := head.find(b"\r\n\r\n")) < 0:
        if len(head) > LONGEST_ANSWER:
            raise BadPacket("its answer has no end")
        data = await stream.receive_some()
        if not data:
            raise BadPacket("it hung up without an answer")
        head += data
    status = status_of_untrusted(bytes(head[:end]))
    if status != 101:
        raise Refused(status, head[end + 4 : end + 4 + SHOWN].decode("utf-8", "replace").strip())
    return bytes(head[end + 4 :])


def status_of_untrusted(head: bytes) -> int:
    """Of the first line of an answer."""
    words = head.split(b"\r\n", 1)[0].split(b" ", 2)
    if len(words) < 2 or words[0] not in (b"HTTP/1.1", b"HTTP/1.0") or len(words[1]) != 3 or not words[1].isdigit():
        raise BadPacket("its answer is no HTTP")
    return int(words[1])


def _wanted(node: str | Node) -> str:
    text = node.stable_id if isinstance(node, Node) else node
    if not text:
        raise ValueError("a relay leads to a node: its name is empty")
    return text


def _clean(name: str) -> str:
    cleaned = clean_name(name)
    if not cleaned.removeprefix(ANY) or "*" in cleaned.removeprefix(ANY) or not cleaned.isascii() or ":" in cleaned:
        raise ValueError(f"{name!r} is no name that a relay can lead: write web.example.com, or *.example.com")
    return cleaned
