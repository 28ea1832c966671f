"""`/dns-query`: names looked up for peers that use this device as their exit, by this machine's own resolvers.

Owns who may ask, and what is never passed on. Answers come from outside only: peers know the tailnet's own names
themselves, and no resolver outside is told of them. RFC 8484; plain HTTP, for the tunnel encrypts.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING

import trio

from tailscale.dns import wire
from tailscale.dns.forwarding import CallableUpstream, ask_upstreams
from tailscale.dns.local import BONJOUR
from tailscale.forwarding import EXIT_ROUTES
from tailscale.nodes import clean_name
from ts_base.errors import BadPacket
from ts_base.ip import is_tailscale_address, parse_address

if TYPE_CHECKING:
    from tailscale.dns.resolvers import NameResolver
    from tailscale.dns.wire import Question
    from tailscale.peerapi.callers import PeerCaller
    from tailscale.peerapi.request import PeerRequest
    from tailscale.runtime.directory import Directory
    from tailscale.runtime.network import Network
    from tailscale.runtime.reach import Reach
    from ts_control.netmap import NetMap

PATH = "/dns-query"
MESSAGE = "application/dns-message"
LARGEST_QUERY = 256 << 10
PATIENCE = 5.0
QUERIES_LIMIT, QUERIES_LIMIT_PER_PEER = 128, 64  # under way at once
DNS_PORT = 53
# Whoever may reach this by the policy may use us to reach anything: upstream asks the filter the same.
PLACES = {4: parse_address("0.0.0.0"), 16: parse_address("2000::")}
DEBUG_TYPES = {"a": wire.A, "aaaa": wire.AAAA, "txt": wire.TXT}


class NamesForPeers:
    """The handler. `open_stream` and datagrams go by this machine's own network, never by the tailnet."""

    def __init__(
        self, directory: Directory, reach: Reach, resolver: NameResolver, network: Network, drops: Counter[str]
    ) -> None:
        self._directory, self._reach, self._resolver, self._network = directory, reach, resolver, network
        self._active: Counter[str] = Counter()
        self.drops = drops

    async def __call__(self, request: PeerRequest) -> None:
        if not self.may_ask(request.caller):
            self.drops["peerapi.dns_denied"] += 1
            await request.answer(403, "DNS access denied\n")
            return
        debug = request.parameter("q")
        if request.method == "GET" and debug:
            await self._answer_debug(request, debug)
            return
        query = await self._read_query(request)
        if query is None:
            return
        try:
            question = wire.decode_question_untrusted(query)
        except BadPacket:
            await request.answer(200, wire.encode_format_error(query) or b"", MESSAGE)
            return
        with trio.move_on_after(PATIENCE) as patience:
            reply = await self._bounded(request.caller, query, question)
        if patience.cancelled_caught:
            await request.answer(500, "the resolvers of this exit node did not answer in time\n")
        elif reply is None:
            await request.answer(503, "this exit node is looking up as many names as it can\n")
        else:
            await request.answer(200, reply, MESSAGE, [("cache-control", "no-store")])

    def may_ask(self, caller: PeerCaller) -> bool:
        """Whether names are looked up for this peer: our owner's own, and whoever may go out by us."""
        if caller.is_unsigned:
            return False
        if caller.is_same_user:
            return True
        if not set(self._directory.preferences.offered_routes) >= set(EXIT_ROUTES):
            return False
        source = parse_address(caller.address)
        return self._reach.admits(source, PLACES[len(source)], DNS_PORT)

    async def _read_query(self, request: PeerRequest) -> bytes | None:
        """The query as bytes; None after what is none was answered."""
        if request.method == "GET":
            text = request.parameter("dns")
            try:
                return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
            except (binascii.Error, ValueError):
                await request.answer(400, "dns= is no base64url\n")
        elif request.method != "POST":
            await request.answer(400, "bad HTTP method\n")
        elif request.header("content-type") != MESSAGE:
            await request.answer(400, "unexpected Content-Type\n")
        else:
            return await request.read(LARGEST_QUERY)
        return None

    async def _bounded(self, caller: PeerCaller, query: bytes, question: Question) -> bytes | None:
        who = caller.node.stable_id
        if self._active.total() >= QUERIES_LIMIT or self._active[who] >= QUERIES_LIMIT_PER_PEER:
            self.drops["peerapi.dns_too_many"] += 1
            return None
        self._active[who] += 1
        try:
            return await self._reply(query, question)
        finally:
            self._active[who] -= 1
            if not self._active[who]:
                del self._active[who]

    async def _reply(self, query: bytes, question: Question) -> bytes:
        await trio.lowlevel.checkpoint()
        name, netmap, zone = question.name, self._directory.netmap, self._resolver.zone
        if question.flags & wire.OPCODE:
            return wire.encode_failure(question, wire.NOT_IMPLEMENTED)
        if netmap is None or zone is None or is_filtered(name, netmap):
            return wire.encode_failure(question, wire.REFUSED)
        if name.startswith(BONJOUR) or zone.is_ours(name):
            return wire.encode_failure(question, wire.NAME_ERROR)
        upstreams = [self._upstream(server) for server in self._network.nameservers() if not _is_of_tailnet(server)]
        if not upstreams:
            return await self._resolver.forward(query, question)
        return await ask_upstreams(upstreams, query, question, self._random_id)

    def _random_id(self) -> int:
        return int.from_bytes(self._network.entropy(2), "big")

    def _upstream(self, server: str) -> CallableUpstream:
        open_stream: Callable[[], Awaitable[trio.abc.Stream]] = partial(self._network.open_tcp, server, DNS_PORT)
        return CallableUpstream(partial(self._ask, server), open_stream)

    async def _ask(self, server: str, query: bytes, read: Callable[[bytes], bytes | None]) -> bytes:
        """One datagram from a fresh port of its own, connected: answers from elsewhere do not arrive."""
        socket = await self._network.connect_udp(server, DNS_PORT)
        try:
            await socket.send(query)
            while (reply := read(await socket.recv(wire.LARGEST_EDNS + 1))) is None:
                pass
            return reply
        finally:
            socket.close()

    async def _answer_debug(self, request: PeerRequest, name: str) -> None:
        """What a person asks with `?q=NAME&t=TYPE`: texts as JSON."""
        kind = DEBUG_TYPES.get(request.parameter("t").lower() or "a")
        try:
            query = wire.encode_question(name, kind or wire.A, 0)
        except (ValueError, UnicodeError):
            kind = None
        if kind is None:
            await request.answer(400, "q= is a name, and t= one of a, aaaa, txt\n")
            return
        with trio.move_on_after(PATIENCE):
            reply = await self._bounded(request.caller, query, wire.decode_question_untrusted(query))
            if reply is not None:
                await request.answer(200, json.dumps(_texts(reply, kind)) + "\n", "application/json")
                return
        await request.answer(500, "the resolvers of this exit node did not answer in time\n")


def _texts(reply: bytes, kind: int) -> list[str] | dict[str, str]:
    try:
        code, records = wire.decode_records_untrusted(reply)
    except BadPacket as problem:
        return {"Error": str(problem)}
    if code:
        name = wire.CODES[code] if code < len(wire.CODES) else str(code)
        return {"Error": f"DNS RCode = RCode{name}"}
    return [record.body for record in records if record.kind == kind]


def is_filtered(name: str, netmap: NetMap) -> bool:
    """Whether control wants nobody to learn this name from an exit: exact names, or `.suffix` with what is below."""
    for entry in netmap.dns.exit_node_filtered_set:
        wanted = clean_name(entry)
        if name.endswith(wanted) if wanted.startswith(".") else name == wanted:
            return True
    return False


def _is_of_tailnet(server: str) -> bool:
    """A resolver of another client of this machine would answer with the names of its tailnet."""
    return is_tailscale_address(parse_address(server))
