"""An embedded coordination server: what devices ask of it and what an administrator does with it, as one machine.

Owns the front: requests are judged here and handed to those who know. Who is enrolled is in `directory`, who gets in
`server_login`, what changes over time `server_news`, what is shown `server_maps`, who may see whom `policy_index`.
Knows nothing of Noise or HTTP: `server_connection` does. Made for one machine: tests, demos, laptops.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from ts_base.errors import BadPacket
from ts_base.ip import parse_address, parse_prefix
from ts_base.keys import MachinePrivate, MachinePublic
from ts_control.directory import AuthKeyRecord, Directory, DirectoryError, Enrolled
from ts_control.gojson import encode_json
from ts_control.policy import Policy, PolicyError
from ts_control.policy_index import PolicyIndex
from ts_control.server_funnel import FeatureAnswer, FeatureRequest, FunnelRules, answer_feature
from ts_control.server_lock import ServedLock
from ts_control.server_login import Logins, Parked, PendingLogin
from ts_control.server_maps import MapWriter, ServedMap
from ts_control.server_news import News
from ts_control.server_services import QUESTION
from ts_control.server_ssh import Asked, SshCheck, SshChecks
from ts_control.ssh_policy import SSHAction
from ts_control.wire import DERPMap, DNSConfig, DNSRecord, Location, MapRequest, PingRequest, Resolver, Service
from ts_control.wire_lock import LockAnswer, LockRequest
from ts_control.wire_register import RegisterRequest, RegisterResponse, ServerKeys, SetDnsRequest

MINIMUM_VERSION = 111  # older clients do not know a peer's HomeDERP
MAX_PINGS = 1024
DEFAULT_USER = "user@tailnet.test"
LONGEST_TEXT_RECORD = 255

PublishText = Callable[[str, str], object]  # the name of a TXT record, and what it says


@dataclass(eq=False, slots=True)
class PingSent:
    """A question put to one device; `answer` is None until it came."""

    id: str
    device: int
    sent: float
    answer: bytes | None = None
    answered: float = 0.0


class ControlServerStatistics(NamedTuple):
    devices: int
    map_streams: int
    open_pings: int
    drops: dict[str, int]


class ControlServer:
    """One tailnet. A request comes with its connection, the `owner`; `take_ready()` names the owners with news."""

    def __init__(
        self,
        *,
        entropy: Callable[[int], bytes],
        wall_clock: Callable[[], float],
        url: str = "http://control.test",
        domain: str = "tailnet.test",
        machine: MachinePrivate | None = None,
        key_lifetime: float = 0.0,
    ) -> None:
        self.machine = machine or MachinePrivate.generate(entropy(32))
        self.url = url.rstrip("/")
        self.domain = domain
        self._entropy = entropy
        self._wall_clock = wall_clock
        self.directory = Directory(entropy)
        self._maps = MapWriter(self.directory, domain, PolicyIndex(Policy.allow_all()))
        self._maps.dns = DNSConfig(domains=(domain,), proxied=True, routes={domain: ()})
        self._news = News(self.directory, self._maps, wall_clock=wall_clock)
        self.lock = ServedLock(self.directory)
        self._logins = Logins(
            self.directory,
            url=self.url,
            entropy=entropy,
            wall_clock=wall_clock,
            key_lifetime=key_lifetime,
            lock=self.lock,
        )
        self._maps.url = self.url
        self._checks = SshChecks(self.directory, url=self.url, entropy=entropy, wall_clock=wall_clock)
        self.pings: dict[str, PingSent] = {}
        self._publish_text: PublishText | None = None
        self._policy = Policy.allow_all()
        self._funnel: FunnelRules | None = None

    def appear_as(self, machine: MachinePrivate) -> None:
        """Prove to be this machine on connections that are made from now on."""
        self.machine = machine

    @property
    def key(self) -> MachinePublic:
        return self.machine.public

    @property
    def drops(self) -> Counter[str]:
        return self._news.drops

    def statistics(self) -> ControlServerStatistics:
        pings = sum(sent.answer is None for sent in self.pings.values())
        return ControlServerStatistics(len(self.directory.devices), self._news.streams, pings, dict(self.drops))

    def keys_json(self) -> bytes:
        """The body of `GET /key`."""
        return encode_json(ServerKeys(public_key=self.key))

    def take_ready(self) -> list[object]:
        return self._news.take_ready()

    def next_timer(self) -> float:
        return self._news.next_timer()

    def handle_timer(self, now: float) -> None:
        self._news.handle_timer(now)

    # What devices ask

    def register(
        self, machine: MachinePublic, request: RegisterRequest, now: float, owner: object
    ) -> RegisterResponse | Parked:
        """The answer, or a Parked that gets its response later; its owner shows up in `take_ready` then."""
        answer = self._logins.register(machine, request, owner)
        self._take_over(now)
        return answer

    def request_map(self, machine: MachinePublic, request: MapRequest, now: float, owner: object) -> ServedMap | bytes:
        """A stream that already holds its first message, or the whole body of a one-shot answer.

        DirectoryError when the node key is not this machine's: the client has to register again.
        """
        device = self.directory.by_key(request.node_key)
        if device is None or device.machine != machine:
            raise DirectoryError("node not found")
        if not request.read_only:
            self._news.learn(device, request, now)
        compress = request.compress == "zstd"
        if request.stream:
            stream = self._news.open_stream(device, compress, owner, now)
            self._follow_services(device, now, is_stream=True)
            return stream
        self._follow_services(device, now, is_stream=False)
        self._news.settle(now)
        return b"" if request.omit_peers else self._news.one_map(device, compress)

    def visible_to(self, device_id: int) -> frozenset[int]:
        """Whom the policy lets this device know of, itself left out."""
        return self._maps.view(self.directory.find(device_id)) - {device_id}

    def close_map(self, stream: ServedMap, now: float) -> None:
        self._news.close_stream(stream, now)

    def abandon(self, owner: object, now: float) -> None:
        """A connection ended: everything that was waiting on it is forgotten."""
        self._logins.abandon(owner)
        self._checks.abandon(owner)
        self._news.abandon(owner, now)

    def ask_lock(self, machine: MachinePublic, what: str, request: LockRequest, now: float) -> LockAnswer:
        """What a device asks of the tailnet's lock. DirectoryError when the node key is not this machine's."""
        device = self.directory.by_key(request.node_key)
        if device is None or device.machine != machine:
            raise DirectoryError("node not found")
        answer = self.lock.answer(what, request)
        self.tell_lock(now)
        return answer

    def tell_lock(self, now: float) -> None:
        """What changed of the lock, and who has another signature, becomes news."""
        for device_id in sorted(self.lock.take_changed()):
            if device_id in self.directory.devices:
                self._news.note(self.directory.find(device_id), {"signature"}, now)
        if (info := self.lock.take_news()) is not None:
            self._maps.lock = info
            self._news.changes.facts["TKAInfo"] = msgspec.Raw(encode_json(info))
        self._news.settle(now)

    def serve_certificates(self, publish: PublishText | None, now: float) -> None:
        """Let every device have a certificate for its name: `publish` makes TXT records, as the tailnet's own DNS does.

        None takes that back.
        """
        self._publish_text = publish
        self._maps.has_certificates = publish is not None
        for device in self.directory:
            self._news.note(device, {"capabilities"}, now)
        self._news.changes.facts["DNSConfig"] = msgspec.Raw(encode_json(self._maps.shared_dns()))
        self._news.settle(now)

    @property
    def serves_certificates(self) -> bool:
        return self._publish_text is not None

    def publish_text(self, machine: MachinePublic, request: SetDnsRequest) -> None:
        """What a device asks for to prove its name to others. DirectoryError says why not."""
        device = self.directory.by_key(request.node_key)
        if device is None or device.machine != machine:
            raise DirectoryError("node not found")
        own = [f"_acme-challenge.{name}" for name in self._maps.names_of(device)]
        if request.type != "TXT" or request.name not in own or not 0 < len(request.value) <= LONGEST_TEXT_RECORD:
            raise DirectoryError(f"a device may only write the TXT records of {', '.join(own)}")
        if self._publish_text is not None:
            self._publish_text(request.name, request.value)

    def pretend_no_lock(self) -> None:
        """Say nothing of the lock in maps from now on, as a server that lies or has forgotten it."""
        self._maps.lock = None

    def answer_ping(self, ping_id: str, body: bytes, now: float) -> bool:
        """Somebody called the URL of a PingRequest."""
        ping = self.pings.get(ping_id)
        if ping is None or ping.answer is not None:
            self.drops["control.unasked_ping_answer"] += 1
            return False
        ping.answer, ping.answered = body, now
        self._learn_services(ping, now)
        return True

    def _follow_services(self, device: Enrolled, now: float, *, is_stream: bool) -> None:
        """Ask a device what it hosts where it told that there is news."""
        if self._maps.services.is_news(device, is_stream=is_stream):
            self._maps.services.note_asked(device, self.ping(device.id, now, types="c2n", payload=QUESTION).id)
        self._settle_services([device], now)

    def _learn_services(self, ping: PingSent, now: float) -> None:
        device = self.directory.devices.get(ping.device)
        if device is None:
            return
        try:
            if self._maps.services.learn(device, ping.id, ping.answer or b""):
                self._settle_services([device], now)
        except BadPacket:
            self.drops["control.bad_services_answer"] += 1

    def _settle_services(self, devices: Iterable[Enrolled], now: float) -> None:
        for device in devices:
            changed = self._maps.services.settle(device)
            if changed is not None:
                self._news.elect(changed)
                self._news.note(device, {"services"}, now)
        self._news.settle(now)

    def define_service(self, name: str, now: float, *, tags: Iterable[str] = ()) -> tuple[bytes, bytes]:
        """Let devices with one of these tags, or with any, host a service `svc:NAME`. Its two addresses."""
        addresses = self._maps.services.define(name, tags)
        self._news.changes.facts["DNSConfig"] = msgspec.Raw(encode_json(self._maps.shared_dns()))
        self._settle_services(self.directory, now)
        return addresses

    def ask_ssh_action(self, machine: MachinePublic, path: str, query: str, owner: object) -> SSHAction | Asked:
        """What is to happen to a login over SSH; an Asked gets its answer when somebody has decided."""
        return self._checks.ask(machine, path, query, self._news.policy, owner)

    def give_up_ssh_action(self, asked: Asked) -> None:
        """The request ended before there was an answer."""
        self._checks.give_up(asked)

    def _take_over(self, now: float) -> None:
        """What the login rules decided becomes news."""
        for device in self._logins.take_removed():
            self._news.remove(device)
        for device, changed in self._logins.take_admitted():
            self._news.note(device, changed, now)
        self._news.settle(now)

    # Who may come in

    def create_auth_key(
        self,
        user: str = DEFAULT_USER,
        *,
        reusable: bool = False,
        ephemeral: bool = False,
        tags: Sequence[str] = (),
        lifetime: float = 86_400.0,
    ) -> str:
        """A new key's secret text. `lifetime` 0 never expires."""
        expires = self._wall_clock() + lifetime if lifetime else 0.0
        return self.directory.create_auth_key(
            user, reusable=reusable, ephemeral=ephemeral, tags=tuple(tags), expires=expires
        ).secret

    def find_auth_key(self, secret: str) -> AuthKeyRecord:
        record = self.directory.find_auth_key(secret)
        if record is None:
            raise DirectoryError("no such auth key")
        return record

    @property
    def pending_logins(self) -> tuple[PendingLogin, ...]:
        return tuple(self._logins.pending.values())

    def approve_login(self, login: str, now: float, *, user: str = DEFAULT_USER) -> None:
        """Let a waiting device in; `login` is its id or its whole URL."""
        for parked in self._logins.approve(login, user):
            self._news.wake(parked.owner)
        self._take_over(now)

    def reject_login(self, login: str, now: float) -> None:
        for parked in self._logins.reject(login):
            self._news.wake(parked.owner)
        self._take_over(now)

    # What everybody gets

    @property
    def ssh_checks(self) -> tuple[SshCheck, ...]:
        """Logins over SSH that wait for somebody to approve them."""
        return tuple(self._checks.pending.values())

    def decide_ssh(self, check: str, now: float, *, approved: bool = True) -> None:
        """Let a login that waits in, or turn it away; `check` is its id or the URL of its page."""
        for asked in self._checks.decide(check, approved=approved):
            self._news.wake(asked.owner)
        self._news.settle(now)

    def set_policy(self, policy: Policy | str | Mapping[str, Any] | None, now: float) -> None:
        """Replace the policy; None opens everything but SSH. PolicyError leaves the old one in force."""
        chosen = Policy.allow_all() if policy is None else policy
        self._policy = chosen if isinstance(chosen, Policy) else Policy.parse(chosen)
        self._use_policy(now)

    def _use_policy(self, now: float) -> None:
        policy = self._policy if self._funnel is None else self._funnel.added_to(self._policy)
        self._logins.policy = policy
        self._news.use_policy(policy, now)
        self._news.settle(now)

    def allow_funnel(self, rules: FunnelRules | None, now: float) -> None:
        """Let nodes be published on the internet, and relays bring what comes, beside what the policy says."""
        before, self._funnel = self._funnel, rules
        try:
            self._use_policy(now)
        except PolicyError:
            self._funnel = before
            raise

    def answer_feature(self, machine: MachinePublic, request: FeatureRequest) -> FeatureAnswer:
        """What a device asks that is about to turn serve or Funnel on. DirectoryError where it is none of ours."""
        device = self.directory.by_key(request.node_key)
        if device is None or device.machine != machine:
            raise DirectoryError("node not found")
        return answer_feature(request.feature, self._maps.capabilities(device))

    def set_derp_map(self, derp_map: DERPMap, now: float) -> None:
        self._maps.derp_map = derp_map
        self._news.changes.facts["DERPMap"] = msgspec.Raw(encode_json(derp_map))
        self._news.settle(now)

    def set_dns(
        self,
        now: float,
        *,
        records: Iterable[tuple[str, str]] = (),
        nameservers: Sequence[str] = (),
        split: Mapping[str, Sequence[str]] | None = None,
        search: Sequence[str] = (),
        magic_dns: bool = True,
        filtered: Sequence[str] = (),
    ) -> None:
        """Replace the tailnet's DNS: extra (name, address) records, nameservers for everything and per suffix.

        `filtered` are names, or `.suffix` with what is below, that exits look up for nobody.
        """
        routes: dict[str, tuple[Resolver, ...] | None] = {self.domain: ()} if magic_dns else {}
        for suffix, servers in (split or {}).items():
            routes[suffix] = tuple(Resolver(addr=server) for server in servers)
        self._maps.dns = DNSConfig(
            domains=(self.domain, *search),
            proxied=magic_dns,
            routes=routes,
            resolvers=tuple(Resolver(addr=server) for server in nameservers),
            extra_records=tuple(DNSRecord(name=name, value=value) for name, value in records),
            exit_node_filtered_set=tuple(filtered),
        )
        self._news.changes.facts["DNSConfig"] = msgspec.Raw(encode_json(self._maps.shared_dns()))
        self._news.settle(now)

    # One device

    def expire(self, device_id: int, now: float) -> None:
        """The device's key is worth nothing from now on: peers drop it, and it has to log in again."""
        self.set_key_expiry(device_id, self._wall_clock(), now)

    def set_key_expiry(self, device_id: int, expires: float, now: float) -> None:
        """Unix seconds; 0.0 for never."""
        device = self.directory.find(device_id)
        device.expires = expires
        was_expired, device.expired = device.expired, bool(expires) and expires <= self._wall_clock()
        self._changed(device, {"expires", "expired"} if was_expired != device.expired else {"expires"}, now)

    def ask_for_approval(self, wanted: bool = True) -> None:
        """Whether machines that join from now on wait for `authorize`."""
        self._logins.asks_for_approval = wanted

    def authorize(self, device_id: int, now: float, *, approved: bool = True) -> None:
        """Approve a machine, or take that back: until then it sees nobody and nobody sees it."""
        device = self.directory.find(device_id)
        device.is_authorized = approved
        self._changed(device, {"authorized"}, now)

    def remove(self, device_id: int, now: float) -> None:
        self._news.remove(self.directory.find(device_id))
        self._news.settle(now)

    def rename(self, device_id: int, label: str, now: float) -> None:
        device = self.directory.find(device_id)
        device.renamed = True
        if self.directory.relabel(device, label):
            self._changed(device, {"name"}, now)

    def readdress(self, device_id: int, now: float, *, ipv4: str | None = None) -> None:
        """Give a device this address, or the next that is free; whoever had it before must have another by then."""
        device = self.directory.find(device_id)
        self.directory.readdress(device, parse_address(ipv4) if ipv4 is not None else None)
        self._changed(device, {"addresses"}, now)

    def set_tags(self, device_id: int, tags: Iterable[str], now: float) -> None:
        device = self.directory.find(device_id)
        device.tags = tuple(sorted(set(tags)))
        self._settle_services([device], now)
        if device.tags:
            device.expires = 0.0  # what is tagged does not expire
        self._changed(device, {"tags", "expires"}, now)

    def describe(
        self, device_id: int, now: float, *, location: Location | None = None, services: Iterable[Service] = ()
    ) -> None:
        """Tell its peers where a device is, and what it serves beside what it says itself."""
        device = self.directory.find(device_id)
        device.location, device.services = location, tuple(services)
        self._changed(device, {"hostinfo"}, now)

    def approve_routes(self, device_id: int, routes: Iterable[str], now: float) -> None:
        """Exactly these of the advertised routes are in force from now on."""
        device = self.directory.find(device_id)
        before, device.approved = device.approved, frozenset(parse_prefix(route) for route in routes)
        self._news.elect(before | device.approved)
        self._changed(device, {"routes"}, now)

    def ping(self, device_id: int, now: float, *, types: str = "", ip: str = "", payload: str = "") -> PingSent:
        """Ask a device to answer: no types is a HEAD of our URL, `c2n` carries a request, others ping `ip`."""
        if len(self.pings) >= MAX_PINGS:
            oldest = self.pings.pop(next(iter(self.pings)))
            if oldest.answer is None:
                self.drops["control.open_pings_full"] += 1
        ping = PingSent(self._entropy(8).hex(), self.directory.find(device_id).id, now)
        self.pings[ping.id] = ping
        in_noise = bool(types)
        path = f"/machine/{'ping-answer' if in_noise else 'ping-response'}?id={ping.id}"
        request = PingRequest(url=self.url + path, url_is_noise=in_noise, types=types, ip=ip, payload=payload)
        self._news.send(device_id, self._maps.ping(request), now)
        return ping

    def send_to(self, device_id: int, parts: Mapping[str, Any], now: float) -> None:
        """Any map message at all, to see how a client takes it."""
        self._news.send(device_id, msgspec.json.encode(parts), now)

    def _changed(self, device: Enrolled, changed: set[str], now: float) -> None:
        self._news.note(device, changed, now)
        self._news.settle(now)
