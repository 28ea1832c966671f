"""From a name to addresses: the tailnet's own names first, then its resolvers, over the tailnet.

Owns the choice of resolver (split DNS by longest suffix), the cache and the fallbacks. A name in the tailnet's domain
never leaves the tailnet, and one that is dialled through an exit node is asked of nobody but that exit. DNS over UDP
with TCP for long answers; DoH where the tailnet says so.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING, Protocol, TypeVar

import trio

from tailscale.dns import wire
from tailscale.dns.forwarding import CallableUpstream, ask_over_stream, ask_upstreams
from tailscale.dns.local import LocalZone
from tailscale.dns.messages import (
    MAX_NAME,
    NAME_ERROR,
    NO_ERROR,
    TYPES,
    Answer,
    NotOurs,
    decode_answer_untrusted,
    encode_query,
)
from tailscale.dns.names import TailnetNames, address_of_arpa, address_texts, arpa_name, literal_address
from tailscale.errors import NameNotFound
from tailscale.nodes import clean_name
from ts_base.errors import BadPacket
from ts_base.ip import is_tailscale_address, parse_address

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from tailscale.dns.forwarding import Upstream
    from tailscale.dns.wire import Question
    from ts_base.who import PeerId
    from ts_control.netmap import NetMap
    from ts_control.wire import Resolver as WireResolver

CACHE_LIMIT = 1024
UDP_TIMEOUT = 2.0
TCP_TIMEOUT = 5.0
EXIT_TIMEOUT = 2.0  # then it is said so: no other resolver may hear of a name that is dialled through an exit
ATTEMPTS = 2
DNS_PORT = 53

T = TypeVar("T")
CacheKey = tuple[str, str, int]  # name, type, and the exit that was asked, 0 for the tailnet's resolvers


class NoAnswer(OSError):
    """An exit node that does not look names up for us, and why: the rest of a sentence about it."""


class ResolverDevice(Protocol):
    """What resolving needs of a device."""

    @property
    def netmap(self) -> NetMap | None: ...
    def now(self) -> float: ...
    def random_id(self) -> int: ...
    def routes_to(self, address: bytes) -> bool: ...
    async def exchange_datagram(
        self, address: bytes, port: int, question: bytes, read: Callable[[bytes], T | None]
    ) -> T: ...
    async def open_stream(self, address: bytes, port: int) -> trio.abc.Stream: ...
    @property
    def chosen_exit(self) -> PeerId:
        """The exit that the whole device goes out by; 0 for none, and while it is missing."""

    @property
    def must_use_exit(self) -> bool:
        """Whether an exit is wished for, there or not: nothing may then go by this machine's own network."""

    def exit_name(self, exit_node: PeerId) -> str: ...
    async def ask_exit(self, exit_node: PeerId, question: bytes, read: Callable[[bytes], T | None]) -> T: ...
    def tell_exit_names(self, problem: str) -> None:
        """Why the chosen exit did not look a name up, and the tailnet's resolvers did; "" when it does again."""


class NameResolver:
    """One device's names."""

    def __init__(self, device: ResolverDevice) -> None:
        self._device = device
        self._names: tuple[NetMap, TailnetNames] | None = None
        self.exit_problem = ""
        """Why the exit that everything goes by did not look the last name up; "" when it did."""
        self._zone: tuple[NetMap, LocalZone] | None = None
        self._cache: OrderedDict[CacheKey, tuple[float, tuple[str, ...] | None]] = OrderedDict()

    @property
    def names(self) -> TailnetNames:
        """The current netmap's own names, built when first asked."""
        netmap = self._device.netmap
        if netmap is None:
            raise NameNotFound("", detail="no netmap yet")
        if self._names is None or self._names[0] is not netmap:
            if self._names is None or self._names[0].dns is not netmap.dns:
                self._cache.clear()
            self._names = netmap, TailnetNames(netmap)
        return self._names[1]

    @property
    def zone(self) -> LocalZone | None:
        """The same names as the tailnet answers them on the wire; None before the first netmap."""
        netmap = self._device.netmap
        if netmap is not None and (self._zone is None or self._zone[0] is not netmap):
            self._zone = netmap, LocalZone(netmap)
        return self._zone[1] if self._zone is not None else None

    async def forward(self, query: bytes, question: Question) -> bytes:
        """The reply of those who know more than the tailnet itself; SERVFAIL where nobody is to be asked."""
        await trio.lowlevel.checkpoint()
        if self._device.netmap is None:
            return wire.encode_failure(question, wire.SERVER_FAILURE)
        name = question.name
        servers, exit_node = self.servers_for(name), self.exit_for(name)
        if self._own_servers_for(name) == ():
            return wire.encode_reply(question, wire.NAME_ERROR)
        if exit_node:
            reply = await self._forward_to_exit(exit_node, query, question)
            if reply is not None or not servers:
                return reply or wire.encode_failure(question, wire.SERVER_FAILURE)
        upstreams = [self._upstream(server) for server in servers]
        return await ask_upstreams([one for one in upstreams if one], query, question, self._device.random_id)

    async def _forward_to_exit(self, exit_node: PeerId, query: bytes, question: Question) -> bytes | None:
        identifier = self._device.random_id()

        def read(reply: bytes) -> bytes | None:
            if wire.is_answer(reply, question, identifier):
                return reply
            raise BadPacket("an answer to another question")

        found = await self._exchange_with_exit(exit_node, wire.for_resolvers(query, identifier), read)
        if isinstance(found, bytes) and wire.code_of(found) not in (NO_ERROR, NAME_ERROR):
            found = f"the exit {self._device.exit_name(exit_node)} answered with code {wire.code_of(found)}"
        self._tell_exit(found if isinstance(found, str) else "")
        return wire.under_number(found, question) if isinstance(found, bytes) else None

    def _upstream(self, server: WireResolver) -> Upstream | None:
        if server.addr.startswith("https://"):
            return HttpsUpstream(server.addr, self._device)
        try:
            address, port = server_address(server.addr)
        except BadPacket:
            return None
        return CallableUpstream(
            partial(self._device.exchange_datagram, address, port), partial(self._device.open_stream, address, port)
        )

    async def address_bytes(self, host: str, via: PeerId = 0) -> list[bytes]:
        """Every address of a host, raw, IPv4 first; what the tailnet does not know, as the exit `via` sees it."""
        literal = literal_address(host)
        if literal is not None:
            await trio.lowlevel.checkpoint()
            return [literal]
        found = self.names.addresses(host)
        if found:
            await trio.lowlevel.checkpoint()
            return found
        return await self._first_known(host, lambda full: self._ask_addresses(full, via))

    async def addresses(self, host: str, via: PeerId = 0) -> list[str]:
        return address_texts(await self.address_bytes(host, via))

    async def records(self, name: str, kind: str, via: PeerId = 0) -> list[str]:
        """Every record of one type. NameNotFound when nothing knows the name; [] when it has no such record."""
        kind = kind.upper()
        if kind not in TYPES:
            raise ValueError(f"record type {kind!r} is not one of {', '.join(TYPES)}")
        literal = literal_address(name)
        if literal is not None or kind == "PTR":
            return await self._reverse(name, literal, via)
        own = self.names.records(name, kind)
        if own is not None:
            await trio.lowlevel.checkpoint()
            return own
        return await self._first_known(name, lambda full: self._ask(full, kind, via))

    async def _first_known(self, name: str, ask: Callable[[str], Awaitable[list[T]]]) -> list[T]:
        """What the resolvers say of a name; of a short one under each search domain in turn."""
        unknown = NameNotFound(name, self.names.close_to(name))
        for full in self._full_names(name):
            try:
                return await ask(full)
            except NameNotFound as problem:
                unknown = problem if problem.is_temporary else unknown
        raise unknown

    def _full_names(self, name: str) -> list[str]:
        name = wire_name(name)
        if "." in name:
            return [name]
        return [full for full in (f"{name}.{suffix}" for suffix in self.names.suffixes) if self.servers_for(full)]

    async def _ask_addresses(self, name: str, via: PeerId) -> list[bytes]:
        """Both families at once; one of them is enough."""
        texts: dict[str, list[str]] = {"A": [], "AAAA": []}
        problems: list[NameNotFound] = []

        async def ask(kind: str) -> None:
            try:
                texts[kind] = await self._ask(name, kind, via)
            except NameNotFound as problem:
                problems.append(problem)

        async with trio.open_nursery() as nursery:
            for kind in texts:
                nursery.start_soon(ask, kind)
        found = [parse_address(text) for kind in ("A", "AAAA") for text in texts[kind]]
        if not found:
            raise problems[0] if problems else NameNotFound(name, self.names.close_to(name))
        return found

    async def _reverse(self, name: str, literal: bytes | None, via: PeerId) -> list[str]:
        address = literal or address_of_arpa(name)
        known = self.names.name_of(address) if address else None
        if known is not None:
            await trio.lowlevel.checkpoint()
            return [known]
        if address is not None and is_tailscale_address(address):
            raise NameNotFound(name, detail="no node of this tailnet has that address")
        return await self._ask(arpa_name(address) if address else name, "PTR", via)

    async def _ask(self, name: str, kind: str, via: PeerId) -> list[str]:
        name = wire_name(name)
        servers = self.servers_for(name)
        asks_exit = bool(via) and self._own_servers_for(name) is None
        chosen = 0 if via else self.exit_for(name)
        if not servers and not asks_exit and not chosen:
            raise NameNotFound(name, self.names.close_to(name))
        key = name, kind, via if asks_exit else chosen
        cached = self._cached(key)
        if cached is not None:
            await trio.lowlevel.checkpoint()
            values = cached[1]
        else:
            if asks_exit:
                answer = await self._ask_exit(via, name, kind)
            elif chosen:
                answer = await self._ask_exit_first(chosen, servers, name, kind)
            else:
                answer = await self._ask_servers(servers, name, kind)
            values = None if answer.code == NAME_ERROR else answer.values
            self._remember(key, values, answer.ttl)
        if values is None:
            raise NameNotFound(name, self.names.close_to(name))
        return list(values)

    def exit_for(self, name: str) -> PeerId:
        """The exit that is to be asked for a name of the world outside, as everything goes by it; 0 for none.

        Not where control names a resolver that is to be used with exits too.
        """
        netmap, exit_node = self._device.netmap, self._device.chosen_exit
        if not exit_node:
            self._tell_exit("")
        if not exit_node or netmap is None or self._own_servers_for(name) is not None:
            return 0
        return 0 if any(resolver.use_with_exit_node for resolver in netmap.dns.resolvers) else exit_node

    def exit_text(self, exit_node: PeerId) -> str:
        """How an exit is named among resolvers."""
        return f"exit node {self._device.exit_name(exit_node)}"

    def servers_for(self, name: str) -> Sequence[WireResolver]:
        """Whom the tailnet asks for a name; nobody means "only what the tailnet knows"."""
        own, netmap = self._own_servers_for(name), self._device.netmap
        assert netmap is not None
        if own is not None:
            return own
        if self._device.chosen_exit:
            marked = tuple(one for one in netmap.dns.resolvers if one.use_with_exit_node)
            if marked:
                return marked
        return netmap.dns.resolvers or netmap.dns.fallback_resolvers

    def _own_servers_for(self, name: str) -> Sequence[WireResolver] | None:
        """Split DNS: the longest matching suffix wins. None for a name that is of the world outside."""
        names, netmap = self.names, self._device.netmap
        assert netmap is not None
        best: Sequence[WireResolver] | None = None
        best_length = -1
        for suffix, servers in netmap.dns.routes.items():
            clean = clean_name(suffix)
            if (name == clean or name.endswith(f".{clean}")) and len(clean) > best_length:
                best, best_length = servers or (), len(clean)
        if best is not None:
            return best
        return () if names.owns(name) else None

    def _cached(self, key: CacheKey) -> tuple[float, tuple[str, ...] | None] | None:
        entry = self._cache.get(key)
        return entry if entry is not None and entry[0] > self._device.now() else None

    def _remember(self, key: CacheKey, values: tuple[str, ...] | None, ttl: int) -> None:
        self._cache[key] = (self._device.now() + ttl, values)
        self._cache.move_to_end(key)
        while len(self._cache) > CACHE_LIMIT:
            self._cache.popitem(last=False)

    async def _ask_exit(self, exit_node: PeerId, name: str, kind: str) -> Answer:
        """What the exit knows of a name. Whatever goes wrong, nobody else is asked."""
        found = await self._try_exit(exit_node, name, kind)
        if isinstance(found, str):
            raise NameNotFound(name, detail=found, is_temporary=True)
        return found

    async def _ask_exit_first(self, exit_node: PeerId, servers: Sequence[WireResolver], name: str, kind: str) -> Answer:
        """The exit that everything goes by; where it fails, the tailnet's resolvers, which are reached through it."""
        found = await self._try_exit(exit_node, name, kind)
        if isinstance(found, Answer):
            self._tell_exit("")
            return found
        if not servers:
            raise NameNotFound(name, detail=found, is_temporary=True)
        answer = await self._ask_servers(servers, name, kind)
        self._tell_exit(found)
        return answer

    async def _try_exit(self, exit_node: PeerId, name: str, kind: str) -> Answer | str:
        """Its answer, or what went wrong."""
        identifier = self._device.random_id()
        question = encode_query(identifier, name, kind)
        found = await self._exchange_with_exit(
            exit_node, question, lambda reply: decode_answer_untrusted(reply, identifier, name, kind)
        )
        if isinstance(found, str) or found.code in (NO_ERROR, NAME_ERROR):
            return found
        return f"the exit {self._device.exit_name(exit_node)} answered with code {found.code}"

    async def _exchange_with_exit(
        self, exit_node: PeerId, question: bytes, read: Callable[[bytes], T | None]
    ) -> T | str:
        who = f"the exit {self._device.exit_name(exit_node)}"
        try:
            with trio.fail_after(EXIT_TIMEOUT):
                return await self._device.ask_exit(exit_node, question, read)
        except trio.TooSlowError:
            return f"{who} did not answer within {EXIT_TIMEOUT:g} s"
        except NoAnswer as reason:
            return f"{who} {reason}"
        except (OSError, BadPacket, trio.BrokenResourceError) as error:
            return f"{who} failed: {str(error) or 'no answer'}"

    def _tell_exit(self, problem: str) -> None:
        if problem != self.exit_problem:
            self.exit_problem = problem
            self._device.tell_exit_names(problem)

    async def _ask_servers(self, servers: Sequence[WireResolver], name: str, kind: str) -> Answer:
        problem = "no resolver answered"
        for _ in range(ATTEMPTS):
            for server in servers:
                try:
                    answer = await self._ask_one(server.addr, name, kind)
                except (OSError, BadPacket, trio.TooSlowError, trio.BrokenResourceError) as error:
                    problem = f"the resolver {server.addr} failed: {str(error) or 'no answer'}"
                    continue
                if answer.code in (NO_ERROR, NAME_ERROR):
                    return answer
                problem = f"the resolver {server.addr} answered with code {answer.code}"
        raise NameNotFound(name, detail=problem, is_temporary=True)

    async def _ask_one(self, server: str, name: str, kind: str) -> Answer:
        identifier = self._device.random_id()
        question = encode_query(identifier, name, kind)
        if server.startswith("https://"):
            check_https(self._device)
            return decode_answer_untrusted(await ask_over_https(server, question), identifier, name, kind)
        address, port = server_address(server)

        def read(reply: bytes) -> Answer | None:
            try:
                return decode_answer_untrusted(reply, identifier, name, kind)
            except NotOurs:
                return None

        with trio.fail_after(UDP_TIMEOUT):
            answer = await self._device.exchange_datagram(address, port, question, read)
        if not answer.truncated:
            return answer
        with trio.fail_after(TCP_TIMEOUT):
            reply = await ask_over_stream(await self._device.open_stream(address, port), question)
        return decode_answer_untrusted(reply, identifier, name, kind)


def wire_name(name: str) -> str:
    """A name as DNS carries it. NameNotFound if no server could ever know it."""
    try:
        clean = clean_name(name)
        text = clean if clean.isascii() else clean.encode("idna").decode()
    except UnicodeError:
        raise NameNotFound(name, detail="it cannot be a DNS name") from None
    if len(text) > MAX_NAME or not all(0 < len(label) < 64 for label in text.split(".")):
        raise NameNotFound(name[:MAX_NAME], detail="it cannot be a DNS name")
    return text


class HttpsUpstream:
    """A resolver that is asked by DoH; it has no datagrams."""

    def __init__(self, url: str, device: ResolverDevice) -> None:
        self._url, self._device = url, device

    async def datagram(self, query: bytes, read: Callable[[bytes], bytes | None]) -> bytes:
        check_https(self._device)
        reply = read(await ask_over_https(self._url, query))
        if reply is None:
            raise NotOurs("an answer to another question")
        return reply

    async def stream(self, query: bytes) -> bytes:
        await trio.lowlevel.checkpoint()
        raise BadPacket("asked already")


def check_https(device: ResolverDevice) -> None:
    """DoH goes by this machine's own network: never while everything has to go by an exit."""
    if device.must_use_exit:
        raise OSError("a resolver of DNS over HTTPS is not asked while an exit node is used: it would go past it")


async def ask_over_https(url: str, question: bytes) -> bytes:
    """DNS over HTTPS (RFC 8484)."""
    import httpx  # only tailnets with DoH resolvers pay for it

    headers = {"content-type": "application/dns-message", "accept": "application/dns-message"}
    try:
        async with httpx.AsyncClient(timeout=TCP_TIMEOUT) as client:
            response = await client.post(url, content=question, headers=headers)
            response.raise_for_status()
            return response.content
    except httpx.HTTPError as error:
        raise ConnectionError(f"DNS over HTTPS failed: {type(error).__name__}") from error


def server_address(server: str) -> tuple[bytes, int]:
    """`1.2.3.4`, `1.2.3.4:5353`, `fd7a::53` or `[fd7a::53]:5353`."""
    literal = literal_address(server)
    if literal is not None:
        return literal, DNS_PORT
    host, _, port = server.rpartition(":")
    literal = literal_address(host)
    if literal is None or not port.isascii() or not port.isdigit() or len(port) > 5 or not 0 < int(port) <= 0xFFFF:
        raise BadPacket(f"not a resolver address: {server[:64]!r}")
    return literal, int(port)
