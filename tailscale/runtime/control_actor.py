"""The control actor: keeps this device registered, its netmap fresh, and control informed.

Owns: the ControlMachine, the connection, the saved credentials. Hears: PreferencesChanged, EndpointsChanged,
NetInfoChanged, ServicesOffered, NetworkChanged. Says: NetMapChanged, RelaysRemembered, ControlStateChanged,
ControlInformed, NodeKeyChanged, health.
Refuses to know: what a netmap is good for. The last netmap stays published whatever happens to control.
"""

from __future__ import annotations

import logging
import math
import os
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import trio

from tailscale._config import Config
from tailscale.errors import ControlProtocolError, ControlUnreachable, LoginRequired, StateCorrupt, TailscaleError
from tailscale.runtime.bus import Bus
from tailscale.runtime.control_announcements import Announcements
from tailscale.runtime.control_facts import Traffic, facts_for_control
from tailscale.runtime.control_line import ControlLine, Jobs, JobStatistics
from tailscale.runtime.control_pings import PingPeer, Pings, PingStatistics, no_ping
from tailscale.runtime.hidden_news import HiddenNews
from tailscale.runtime.key_maker import KeyMaker
from tailscale.runtime.lock_keeper import LockKeeper, LockStatistics
from tailscale.runtime.messages import (
    ControlStateChanged,
    EndpointsChanged,
    NetInfoChanged,
    NetworkChanged,
    NodeKeyChanged,
    PreferencesChanged,
    ServicesOffered,
)
from tailscale.runtime.netmap_believed import BelievedNetMap
from tailscale.runtime.network import HostNetwork, Network
from tailscale.runtime.renewal import REGISTER, Renewal, renew_key
from tailscale.runtime.saved_relays import remembered_relays
from tailscale.runtime.saved_state import SavedState
from tailscale.runtime.self_report import SelfReport
from tailscale.runtime.supervision import Supervision
from ts_base.errors import BadPacket
from ts_base.keys import DiscoPublic
from ts_control.client import ControlClient
from ts_control.connection import REQUEST_TIMEOUT, ControlConnection, MapStream
from ts_control.errors import ControlLost, KeyNotMade, NotControl, RequestRefused
from ts_control.gojson import encode_json
from ts_control.netmap import NetMap
from ts_control.session import (
    ControlMachine,
    Credentials,
    CredentialsChanged,
    Phase,
    PhaseChanged,
    Poll,
    Register,
    SessionStatistics,
    Step,
    Wait,
)
from ts_control.wire import MapResponse

if TYPE_CHECKING:
    from tailscale.state_file import NamedStore, State

log = logging.getLogger("tailscale.control")

KEEP_CONNECTION = 1.0  # a pause this short is not worth a new connection
LEAVE_TIMEOUT = 1.5
LONGEST_ASKED_SLEEP = 300.0  # a server may ask its clients to read on more slowly; upstream's bound
TALK = "control-conversation"  # the task that talks
DAY = 86400.0  # the longest sleep: wall clocks jump


class ControlStatistics(NamedTuple):
    """The conversation, what was asked of us in it, and the small jobs beside it."""

    session: SessionStatistics
    pings: PingStatistics
    jobs: JobStatistics
    lock: LockStatistics


class ControlActor:
    """One device's dealings with its control server, for whoever wants to log in, log out or leave."""

    def __init__(
        self,
        config: Config,
        network: Network,
        store: NamedStore,
        state: State,
        disco: DiscoPublic,
        bus: Bus,
        ping_peer: PingPeer = no_ping,
        supervision: Supervision | None = None,
        traffic: Traffic | None = None,
    ) -> None:
        self.config = config
        self._supervision = supervision or Supervision(bus)
        self.network = network
        self.saved = SavedState(store, state)
        self.report = SelfReport(config.preferences, disco, state.home_region)
        # Another server has never heard of us: what the state says of registration is about the old one.
        known_here = state.registered and state.control_url in {"", config.control_url}
        tried = state.next_node_key if known_here else None
        credentials = Credentials(state.machine_key, state.node_key, state.old_node_key, known_here, tried)
        self._bus = bus
        self._line = ControlLine()
        self._jobs = Jobs(self._supervision)
        self._announcements = Announcements(bus, self._jobs, config.on_login_url)
        health = self._announcements.health
        self.lock = LockKeeper(self.saved, self._line.ask, health, network.entropy, known_here=known_here)
        self.machine = ControlMachine(
            credentials,
            self.report.hostinfo(),
            entropy=network.entropy,
            wall_clock=network.wall_clock,
            ephemeral=config.ephemeral,
            lock_key=self.lock.key,
        )
        if config.force_login and known_here:
            self.machine.login(trio.current_time())
        environment = os.environ if isinstance(network, HostNetwork) else {}
        node_key = lambda: self.machine.node_key.public  # noqa: E731
        self._believed = BelievedNetMap(bus, health, self.saved, self.lock, self.report, network, node_key, environment)
        self.client = ControlClient(
            config.control_url, network, state.machine_key, tls=config.tls, environment=environment
        )
        self._keys = KeyMaker(config, network, environment)
        can_log_in = bool(config.auth_key or config.client_id)
        self._renewal = Renewal(bus, network, can_log_in=can_log_in, renew=self._renew)
        look = lambda: facts_for_control(bus, self.report.preferences, network.wall_clock(), self.lock.chain, traffic)  # noqa: E731
        self.pings = Pings(self.client, self._line, self._jobs, ping_peer, look)
        self._conversation: trio.CancelScope | None = None
        self._wake = trio.Event()
        self._is_leaving = False
        self._hidden_news = HiddenNews()

    # What the Device asks

    def statistics(self) -> ControlStatistics:
        return ControlStatistics(
            self.machine.statistics(), self.pings.statistics(), self._jobs.statistics(), self.lock.statistics()
        )

    async def login(self) -> None:
        """Authenticate again with a new node key. Returns when control has accepted it."""
        with self._bus.subscribe(ControlStateChanged, name="login") as inbox:
            while len(inbox):
                inbox.take()
            self.machine.login(trio.current_time())
            self._interrupt()
            url = ""
            with trio.move_on_after(self.config.login_timeout):
                while True:
                    message = await inbox.receive()
                    assert isinstance(message, ControlStateChanged)
                    url = message.url or url
                    if message.error is not None:
                        raise message.error
                    if message.state in {Phase.RUNNING, Phase.NEEDS_APPROVAL}:
                        return
        if url:
            refusal = self.machine.key_refusal
            why = f"the control server refused the auth key ({refusal}): open {url} to log this device in"
            raise LoginRequired(url, why if refusal else None)
        raise ControlUnreachable(f"{self.config.control_url} did not let us in within {self.config.login_timeout:g} s")

    async def logout(self) -> None:
        """Give the node key up; control expires the node, or removes it when it is ephemeral."""
        self._is_leaving = True
        try:
            await self._send_logout()
        finally:
            self.lock.forget()
            self._believed.kept.forget()
            self.machine.on_logged_out(self.lock.key)
            self._is_leaving = False
            self._tell()
            self._interrupt()

    async def leave(self) -> None:
        """The device ends: an ephemeral node tells control, so that nobody waits for it."""
        self._is_leaving = True
        if self.config.ephemeral and self.machine.credentials.is_registered:
            with trio.move_on_after(LEAVE_TIMEOUT):
                try:
                    await self._send_logout()
                except (ControlLost, RequestRefused, BadPacket) as problem:
                    log.info("the control server was not told that this node leaves: %s", problem)
        self.lock.keep_verdicts()
        self._believed.kept.keep_now()
        self.saved.write_now()

    async def _send_logout(self) -> None:
        request = encode_json(self.machine.logout_request())
        if self._line.is_live:
            await self.ask("POST", REGISTER, request)
            return
        async with self.client.connect() as connection:
            await connection.request("POST", REGISTER, request)

    async def ask(self, method: str, path: str, body: bytes = b"", *, timeout: float = REQUEST_TIMEOUT) -> bytes:
        """Ask control anything, over the live connection or the next one. Raises ControlLost, RequestRefused (with the
        status and what it said) or BadPacket.
        """
        return await self._line.ask(method, path, body, timeout=timeout)

    # The conversation

    async def converse(self) -> None:
        """Do what the machine says, for ever."""
        machine = self.machine
        while True:
            step = machine.next_step(trio.current_time()) if not self._is_leaving else Wait(math.inf)
            self._tell()
            if isinstance(step, Wait):
                await self._wait(step.until)
                continue
            is_over = False
            with trio.CancelScope() as self._conversation, self._supervision.contained(TALK, passing=(StateCorrupt,)):
                await self._talk(step)
                is_over = True
            if not is_over and not self._conversation.cancelled_caught:
                self._on_lost(ControlLost("the conversation failed"))  # the last netmap serves until the next attempt
            self._conversation = None

    async def _talk(self, step: Step) -> None:
        """One connection, and how it ended."""
        try:
            async with self.client.connect() as connection:
                with self._line.carried_by(connection):
                    await self._do(step, connection)
        except NotControl as problem:
            sentence = f"{problem}. Check control_url= (or TS_CONTROL_URL)"
            self._on_lost(problem, ControlProtocolError(sentence))
        except (ControlLost, BadPacket) as problem:
            self._on_lost(problem)

    async def _do(self, step: Step, connection: ControlConnection) -> None:
        """Steps on one connection, until one of them wants a real pause or fails."""
        machine = self.machine
        while True:
            try:
                if isinstance(step, Register) and machine.has_map_meanwhile:
                    await self._register_beside_map(step.timeout, connection)
                elif isinstance(step, Register):
                    await self._register(step.timeout, connection)
                elif isinstance(step, Poll):
                    await self._poll(connection)
            except RequestRefused as problem:
                machine.on_refused(problem, trio.current_time())
                self._announcements.say_failure(str(problem))
            except KeyNotMade as problem:
                machine.on_no_key(problem, trio.current_time())
            self._tell()
            if self._is_leaving:
                await self._wait(math.inf)  # the connection still carries our goodbye
            step = machine.next_step(trio.current_time())
            while isinstance(step, Wait):
                if step.until > trio.current_time() + KEEP_CONNECTION:
                    return
                await self._wait(step.until)
                step = machine.next_step(trio.current_time())

    async def _register(self, timeout: float, connection: ControlConnection) -> None:
        machine = self.machine
        if machine.wants_auth_key:
            await self._fetch_auth_key()
        if not machine.credentials.is_registered or machine.credentials.next_node is not None:
            await self.saved.write()  # a node key that control knows and we forget is a node lost
        response = await connection.register(machine.register_request(), timeout=timeout)
        is_settled = machine.wants_auth_key or machine.asks_about_next_key or machine.key_refusal
        if response.auth_url and not is_settled:
            await self._fetch_auth_key()  # the stored keys were not enough
        if machine.wants_auth_key:
            self._keys.forget()
        machine.on_registered(response, trio.current_time())

    async def _register_beside_map(self, timeout: float, connection: ControlConnection) -> None:
        """Somebody is asked to open a page, which may take long: under the old key we stay who we are."""
        problem: Exception | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._poll_quietly, connection)
            try:
                await self._register(timeout, connection)
            except (ControlLost, RequestRefused, BadPacket) as error:
                problem = error
            nursery.cancel_scope.cancel()
        if problem is not None:
            raise problem

    async def _poll_quietly(self, connection: ControlConnection) -> None:
        with suppress(ControlLost, RequestRefused, BadPacket):  # the login meets the same, and tells it
            await self._poll(connection)

    async def _poll(self, connection: ControlConnection) -> None:
        """Hold the map stream; a map stream has no good end, so this ends by raising what broke it."""
        problem: Exception | None = None
        request = self.report.map_request(self.machine, stream=True)
        async with trio.open_nursery() as nursery, connection.map_stream(request) as stream:
            try:
                await self._follow(stream, nursery)
            except (ControlLost, RequestRefused, BadPacket) as error:
                problem = error
            nursery.cancel_scope.cancel()
        if problem is not None:
            raise problem

    async def _follow(self, stream: MapStream, nursery: trio.Nursery) -> None:
        netmap = NetMap.empty()
        is_first, is_asking = True, False
        async for response in stream:
            self._hear(response)
            if response.debug is not None and response.debug.sleep_seconds > 0:
                await trio.sleep(min(response.debug.sleep_seconds, LONGEST_ASKED_SLEEP))
            if response.keep_alive:
                continue
            netmap = netmap.apply(response, self.network.wall_clock())
            await self._believed.hear(netmap)
            self._announcements.say_success()
            if self._is_leaving:
                continue  # that we are leaving is no news
            self.machine.on_self(netmap.self_node)
            self._tell()
            if is_first:
                is_first = False
                nursery.start_soon(self.lock.retry, self._believed.look_again)
                nursery.start_soon(self.report.keep_told, self._line, self.machine, self._bus, self.network)
                self._hidden_news.begin(netmap, self.machine.hostinfo)
                continue
            ask_at = self._hidden_news.ask_at(response, netmap, self.machine.hostinfo, trio.current_time())
            if ask_at is not None and not is_asking:
                is_asking = True
                nursery.start_soon(self._end_stream_at, nursery.cancel_scope, ask_at)

    async def _end_stream_at(self, stream: trio.CancelScope, deadline: float) -> None:
        """The next one begins with our own node."""
        await trio.sleep_until(deadline)
        self._hidden_news.asked(trio.current_time())
        stream.cancel()

    def _hear(self, response: MapResponse) -> None:
        """What a message asks beside the netmap; keep-alives may carry it too."""
        if response.ping_request is not None:
            self.pings.hear(response.ping_request)
        if response.pop_browser_url:
            self._announcements.say_page(response.pop_browser_url)

    # Telling control about us

    @trio.lowlevel.enable_ki_protection
    async def listen(self) -> None:
        """Fold what others say into what control is told."""
        kinds = (PreferencesChanged, EndpointsChanged, NetInfoChanged, ServicesOffered, NetworkChanged)
        with self._bus.subscribe(*kinds, name="control") as inbox:
            while True:
                while len(inbox):
                    self._note(inbox.take())
                self._refresh()
                self._note(await inbox.receive())

    def _note(self, message: object) -> None:
        self.report.note(message)
        if isinstance(message, NetworkChanged):
            self.machine.retry_now(trio.current_time())
            if message.rebound:
                self._interrupt()  # the connection may be dead without knowing
            self._wake.set()

    def _refresh(self) -> None:
        self.machine.describe(self.report.hostinfo())
        self.saved.change(home_region=self.report.home_region)
        self.report.look_again()

    # Expiry by the clock

    async def _renew(self) -> str:
        refusal = await renew_key(self.machine, self._keys, self.saved, self.ask, self._tell)
        if not refusal:
            self._interrupt()  # the map is asked for under the new key
        return refusal

    @trio.lowlevel.enable_ki_protection
    async def watch_expiry(self) -> None:
        """Keys run out whether or not control can be reached."""
        believed = self._believed
        while True:
            believed.arrived = trio.Event()
            pause = min(believed.until_next_expiry(), DAY)
            if pause <= 0:
                await believed.expire()
                if believed.told.self_node.expired and not believed.is_remembered:
                    self.machine.on_self(believed.told.self_node)
                    self._tell()
                await trio.lowlevel.checkpoint()
                continue
            with trio.move_on_after(pause) as sleep:
                await believed.arrived.wait()
            if sleep.cancelled_caught:
                believed.repeat()

    # Saying how it stands

    def _tell(self) -> None:
        """Pass the machine's messages on."""
        for message in self.machine.take_messages():
            match message:
                case PhaseChanged():
                    self._announcements.say_phase(message)
                case CredentialsChanged(credentials=credentials):
                    self._on_credentials(credentials)

    def _on_credentials(self, credentials: Credentials) -> None:
        if credentials.node != self.saved.state.node_key:
            self._bus.publish(NodeKeyChanged(credentials.node))
        self.saved.change(
            node_key=credentials.node,
            old_node_key=credentials.old_node,
            next_node_key=credentials.next_node,
            registered=credentials.is_registered,
            control_url=self.config.control_url,
        )

    def _on_lost(self, problem: Exception, error: TailscaleError | None = None) -> None:
        if self._is_leaving:
            return  # what breaks now is part of the goodbye
        log.info("%s", problem)
        self.machine.on_lost(str(problem), trio.current_time())
        self._tell()
        self._announcements.say_failure(str(problem))
        if error is not None and self._believed.shown is None:
            # Nothing to live on yet, and waiting will not turn it into a coordination server.
            self._bus.publish(ControlStateChanged(Phase.FAILED, str(problem), error=error))

    async def _fetch_auth_key(self) -> None:
        """A fresh one for each time that one is needed, where more than a key's text was given."""
        self.machine.use_auth_key(await self._keys.take(self.machine.hostinfo.request_tags))

    async def _wait(self, until: float) -> None:
        self._wake = trio.Event()
        with trio.move_on_at(until):
            await self._wake.wait()

    def _interrupt(self) -> None:
        """Whatever is under way is out of date: look at the machine again."""
        self._wake.set()
        if self._conversation is not None:
            self._conversation.cancel()

    @trio.lowlevel.enable_ki_protection
    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Until cancelled. Everything control said last stays on the bus whatever happens here."""
        async with trio.open_nursery() as nursery:
            if self._bus.latest(ControlStateChanged) is None:  # else we failed, and the session is where it was
                self._bus.publish(ControlStateChanged(Phase.CONNECTING))
                remembered = remembered_relays(self.saved) if self.machine.credentials.is_registered else None
                if remembered is not None:
                    self._bus.publish(remembered)
                if self.machine.credentials.is_registered:
                    await self._believed.remember()
            keep = self._supervision.keep_running
            nursery.start_soon(keep, "control-answers", self._jobs.run)
            nursery.start_soon(keep, "self-report", self.listen)
            nursery.start_soon(keep, "key-expiry", self.watch_expiry)
            nursery.start_soon(keep, "saved-state", partial(self.saved.run, self._announcements.health))
            nursery.start_soon(keep, "key-renewal", self._renewal.run)
            nursery.start_soon(keep, "saved-netmap", self._believed.kept.run)
            await trio.lowlevel.checkpoint()
            task_status.started()
            await self.converse()


@trio.lowlevel.enable_ki_protection
async def run_control(control: ControlActor, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    """The actor: see the head of this file for what it owns, hears and says."""
    await control.run(task_status=task_status)
