"""ControlMachine: what to say to control next, and when.

Owns: the login policy (auth key, login URL, re-authentication, key rotation, expiry, logout), refusals and pauses.
Refuses to know: sockets, streams, how a map is folded. The shell asks `next_step`, does it, and tells how it went.
Rules: control/controlclient/auto.go and direct.go. Times are monotonic seconds; entropy and wall clock are injected.
"""

from __future__ import annotations

# How it goes
# -----------
# A session is one device's standing with one control server. It outlives every connection: the shell dials, does one
# step after another on the same connection, and dials again when that breaks. What to do is a value that the shell asks
# for (`next_step`), how it went is told by a call named after it, and nothing else moves the machine.
#
#              next_step()               an auth URL
#   CONNECTING -----------> REGISTERING --------------> NEEDS_LOGIN    registering again with `followup` is answered
#                             |    ^  |                      |         when somebody has opened the page
#                    accepted |    |  +---> FAILED           |
#                             |    |   said no in words      |
#                             |    | login(), from anywhere  |
#                             v    |                         |
#                NEEDS_APPROVAL or RUNNING <-----------------+
#                  |   ^     ^ |
#     lost, or an  |   |     | | a map calls our key expired, or not any more
#     HTTP status  v   |     | v
#                 OFFLINE   EXPIRED                      LOGGED_OUT: from anywhere, until login()
#
# Two questions are kept apart. `_must_register` says which request comes next: a registration, or the map. The phase
# says what users are told. A device that runs and loses its connection is OFFLINE without having to register again;
# one that control answers with 404 must register and is not told to anybody as offline, because control is there.
# NEEDS_LOGIN and FAILED survive a lost connection: that somebody must act is the better news.
#
# Keys. The node key that control has accepted is `credentials.node`. A new one (login, expiry) is first `next_node`,
# saved before it is sent, and becomes `node` when control accepts it. A crash in between leaves a question only
# control can answer: does it know the new key? The next run asks by registering with it (`asks_about_next_key`),
# without an auth key, and any refusal means no. Without this a device whose answer was lost would be a new device.
#
# A renewal does the same beside the map, which goes on under the old key: `begin_renewal`, and one of three outcomes.
# Until control accepts the new key nothing is lost but an attempt.
#
# An auth key is used when control has never accepted us, or when it asks for a login that nobody was sent to. It is
# refused once: after a person's login() its refusal is remembered (`key_refusal`) and the page is shown instead.
#
# Back-off. Four pauses, from the kindest to the longest, all ending in `_not_before`:
#   lost or answered with an HTTP status: n squared times 10 ms, spread by half, at most 20 s (`retry.py`); a map that
#     describes us starts it afresh, and `retry_now` (the network changed) ends it
#   asked for by Retry-After, or a 429 without it: as long as asked, whatever happens meanwhile
#   refused in words: 30 s doubled to 600 s, since words hardly change by themselves; no network change shortens it
#   logged out: for ever
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from msgspec.structs import replace as change

from ts_base.errors import BadPacket
from ts_base.keys import MachinePrivate, NodePrivate
from ts_control.errors import AuthKeyRefused, KeyNotMade, RegistrationRefused, RequestRefused
from ts_control.gojson import from_unix_time
from ts_control.key_making import CLIENT_SECRET
from ts_control.retry import Backoff, pause_asked_for
from ts_control.wire import CAPABILITY_VERSION, NO_NODE_KEY, Hostinfo, Node
from ts_control.wire_lock import to_text
from ts_control.wire_register import NO_LOCK_KEY, RegisterAuth, RegisterRequest, RegisterResponse
from ts_lock.keys import LockPrivate, registered_text
from ts_lock.signatures import decode_text_untrusted, rotate, unwrap_auth_key

REGISTER_TIMEOUT = 30.0
FOLLOWUP_TIMEOUT = 600.0  # the server answers when somebody has opened the page
REFUSAL_PAUSE = 30.0  # after words that will hardly change by themselves; doubled each time
LONGEST_REFUSAL_PAUSE = 600.0
LOGOUT_EXPIRY = from_unix_time(123.0)  # upstream's own choice of a moment in the past


class Phase(StrEnum):
    """Where the session stands, under the names that users see in `status().state`."""

    STARTING = "starting"
    CONNECTING = "connecting"
    REGISTERING = "registering"
    NEEDS_LOGIN = "needs_login"
    NEEDS_APPROVAL = "needs_approval"
    RUNNING = "running"
    OFFLINE = "offline"
    EXPIRED = "expired"
    LOGGED_OUT = "logged_out"
    FAILED = "failed"


class Credentials(NamedTuple):
    """The keys control knows us by, and whether it has accepted the node key."""

    machine: MachinePrivate
    node: NodePrivate
    old_node: NodePrivate | None = None
    is_registered: bool = False
    next_node: NodePrivate | None = None
    """Being tried; ours when control accepts it. If we died in between, only control knows whether it did."""


class Wait(NamedTuple):
    until: float


class Register(NamedTuple):
    """Send `register_request()`, and wait this long for the answer."""

    timeout: float


@dataclass(frozen=True, slots=True)
class Poll:
    pass


@dataclass(frozen=True, slots=True)
class PhaseChanged:
    phase: Phase
    detail: str = ""
    url: str = field(default="", repr=False)
    error: Exception | None = None


class CredentialsChanged(NamedTuple):
    """Save this before anything else happens."""

    credentials: Credentials


class SessionStatistics(NamedTuple):
    """Where the session stands, for whoever wants figures."""

    phase: Phase
    is_registered: bool
    refusals: int  # in a row, in control's own words
    next_attempt: float  # monotonic; in the past when nothing is waited for


Step = Wait | Register | Poll
SessionMessage = PhaseChanged | CredentialsChanged


class ControlMachine:
    """One device's standing with one control server."""

    def __init__(
        self,
        credentials: Credentials,
        hostinfo: Hostinfo,
        *,
        entropy: Callable[[int], bytes],
        wall_clock: Callable[[], float],
        auth_key: str | None = None,
        ephemeral: bool = False,
        version: int = CAPABILITY_VERSION,
        lock_key: LockPrivate | None = None,
    ) -> None:
        self.credentials = credentials
        self._lock_key = lock_key
        self._vouched = ""  # for the key that is tried, by the key before it
        self._own_signature = ""  # of the key that control knows, as it says
        self.hostinfo = hostinfo
        self.phase = Phase.CONNECTING
        self.auth_key = auth_key
        self._ephemeral = ephemeral
        self._version = version
        self._entropy = entropy
        self._wall_clock = wall_clock
        self._backoff = Backoff(entropy)
        self._messages: list[SessionMessage] = []
        self._not_before = self._asked_until = -math.inf  # the latter is control's own wish, and nothing shortens it
        self._must_register = True
        self._was_regenerated = False
        self.asks_about_next_key = credentials.next_node is not None  # left by a crash: a question, not a wish
        # Stored keys are enough for a device that control knows: the auth key stays unused, and its hashing unpaid.
        self._uses_auth_key = not credentials.is_registered
        self._was_asked_to_log_in = False  # by a person, then: what a key does not open, a page may
        self.key_refusal = ""  # what control said of the key since then
        self._followup = ""
        self._renewing: NodePrivate | None = None
        self._refusals = 0
        self._announced: PhaseChanged | None = None

    # --- what to do ---

    @property
    def node_key(self) -> NodePrivate:
        """The key the map is asked for with."""
        return self.credentials.node

    def next_step(self, now: float) -> Step:
        if self.phase is Phase.LOGGED_OUT:
            return Wait(math.inf)
        if now < self._not_before:
            return Wait(self._not_before)
        self._backoff.started(now)
        if not self._must_register:
            return Poll()
        if self.phase is Phase.CONNECTING:
            self._enter(Phase.REGISTERING)
        return Register(FOLLOWUP_TIMEOUT if self._followup else REGISTER_TIMEOUT)

    @property
    def wants_auth_key(self) -> bool:
        """Whether the next registration goes better with `auth_key` set."""
        is_pointless = self._followup or self.asks_about_next_key or self.key_refusal
        return self._uses_auth_key and not is_pointless

    @property
    def has_map_meanwhile(self) -> bool:
        """Whether a login waits for somebody while the key that control knows is good: its map goes on until then."""
        return bool(self._followup) and self.credentials.is_registered and self.phase is Phase.NEEDS_LOGIN

    def register_request(self) -> RegisterRequest:
        """What to ask control now. The order of the keys' choice is upstream's."""
        ours = self.credentials
        old = ours.node if ours.next_node is not None else ours.old_node
        tried = (ours.next_node or ours.node).public
        auth, vouched = None, self._vouched
        if self.wants_auth_key and self.auth_key:
            unwrapped = unwrap_auth_key(self.auth_key)
            auth = RegisterAuth(auth_key=unwrapped.auth_key)
            signature = unwrapped.vouch(tried.raw)
            vouched = to_text(signature.encode()) if signature is not None else vouched
        return RegisterRequest(
            version=self._version,
            node_key=tried,
            old_node_key=old.public if old is not None else NO_NODE_KEY,
            nl_key=registered_text(self._lock_key.public) if self._lock_key is not None else NO_LOCK_KEY,
            node_key_signature=vouched,
            auth=auth,
            followup=self._followup,
            hostinfo=self.hostinfo,
            ephemeral=self._ephemeral,
        )

    def take_messages(self) -> list[SessionMessage]:
        taken, self._messages = self._messages, []
        return taken

    def logout_request(self) -> RegisterRequest:
        """Makes control forget an ephemeral node and expire any other."""
        return change(self.register_request(), node_key=self.credentials.node.public, followup="", expiry=LOGOUT_EXPIRY)

    def statistics(self) -> SessionStatistics:
        return SessionStatistics(self.phase, self.credentials.is_registered, self._refusals, self._not_before)

    # --- what the user wants ---

    def use_auth_key(self, key: str | None) -> None:
        """The key that the next registration with one shows."""
        if key is not None and key.startswith(CLIENT_SECRET):
            raise ValueError("an OAuth client's secret is not for the control server: it makes keys")
        self.auth_key = key

    def describe(self, hostinfo: Hostinfo) -> None:
        """What control is told of this machine from now on."""
        self.hostinfo = hostinfo

    def login(self, now: float, auth_key: str | None = None) -> None:
        """Authenticate again, with a new node key; control keeps the node's id and addresses."""
        self.auth_key = auth_key or self.auth_key
        self._was_asked_to_log_in, self.key_refusal = True, ""
        self._start_over_with_new_key()
        self._not_before = max(now, self._asked_until)
        self._enter(Phase.REGISTERING)

    def begin_renewal(self, auth_key: str) -> RegisterRequest | None:
        """Ask for a new node key beside the map, which goes on under the old one; None when that is no time for it.

        What became of it is said by `on_renewed`, `on_renewal_refused` or `on_renewal_lost`.
        """
        ours = self.credentials
        if self._must_register or ours.next_node is not None:
            return None
        self._renewing = NodePrivate.generate(self._entropy(32))
        self._commit(ours._replace(next_node=self._renewing))
        unwrapped = unwrap_auth_key(auth_key)
        if not self._may_vouch_for_next_key(self._own_signature):
            signature = unwrapped.vouch(self._renewing.public.raw)
            self._vouched = to_text(signature.encode()) if signature is not None else ""
        auth = RegisterAuth(auth_key=unwrapped.auth_key)
        return change(self.register_request(), auth=auth, followup="")

    def on_renewed(self, response: RegisterResponse) -> str:
        """Control answered: "" when the new key is ours, else why not; then the old one stays."""
        if not self._is_renewing():
            return "another login came between"
        asks_for_signature = response.node_key_signature and not response.machine_authorized
        if response.error or response.node_key_expired or response.auth_url or asks_for_signature:
            self._give_up_renewal()
            return response.error or "it asks for somebody to log in, or to sign"
        self._on_accepted(response)
        return ""

    def on_renewal_refused(self) -> None:
        """An HTTP status instead of an answer: the old key stays."""
        if self._is_renewing():
            self._give_up_renewal()

    def _give_up_renewal(self) -> None:
        self._vouched = ""
        self._commit(self.credentials._replace(next_node=None))

    def on_renewal_lost(self) -> None:
        """The answer did not come: only control knows whether the new key is ours. The next connection asks."""
        if self._is_renewing():
            self._must_register = self.asks_about_next_key = True

    def _is_renewing(self) -> bool:
        return self._renewing is not None and self.credentials.next_node is self._renewing

    def on_logged_out(self, lock_key: LockPrivate | None = None) -> None:
        """Control was told; nothing more is done until `login`, which shows this lock key."""
        self._lock_key = lock_key
        node = NodePrivate.generate(self._entropy(32))
        self._commit(Credentials(self.credentials.machine, node))
        self._must_register = True
        self._uses_auth_key = True
        self.asks_about_next_key = False
        self._was_asked_to_log_in, self.key_refusal = False, ""
        self._followup = self._vouched = self._own_signature = ""
        self._enter(Phase.LOGGED_OUT)

    def retry_now(self, now: float) -> None:
        """Something in the world changed: a pause for back-off makes no sense any more."""
        if self.phase is not Phase.FAILED:
            self._not_before = max(min(self._not_before, now), self._asked_until)

    # --- how it went ---

    def on_registered(self, response: RegisterResponse, now: float) -> None:
        """Control answered. The order of the cases is upstream's."""
        if self.asks_about_next_key and (response.error or response.node_key_expired or response.auth_url):
            self.asks_about_next_key = False
            self._commit(self.credentials._replace(next_node=None))
        elif response.error:
            self._on_error(response.error, now)
        elif response.node_key_expired:
            self._on_key_expired(now)
        elif self._may_vouch_for_next_key(response.node_key_signature):
            pass  # the same question again, signed
        elif response.auth_url:
            self._on_login_needed(response.auth_url, now)
        else:
            self._on_accepted(response)

    def on_refused(self, problem: RequestRefused, now: float) -> None:
        """An HTTP status instead of an answer, to a registration or to a map request."""
        asked = pause_asked_for(problem, self._wall_clock(), self._backoff)
        if asked is not None:
            self._not_before = self._asked_until = self._backoff.failed(now, asked)
            self._enter_unless_waiting_for_login(Phase.OFFLINE, f"{problem}, and asks for {asked:.0f} s of peace")
            return
        if problem.status == 404 and not self._must_register:
            # The server does not know this node (any more).
            self._must_register = True
            self._backoff.succeeded()  # it is there and talks to us: earlier failures say nothing
            self._not_before = self._backoff.failed(now)
            return
        if problem.status == 400 and self._must_register:
            self._fail(RegistrationRefused(problem.text or str(problem)), now)
            return
        self._not_before = self._backoff.failed(now)
        self._enter_unless_waiting_for_login(Phase.OFFLINE, str(problem))

    def on_no_key(self, problem: KeyNotMade, now: float) -> None:
        """What was given instead of an auth key makes none."""
        self._followup = ""
        self._fail(problem, now)

    def on_lost(self, reason: str, now: float) -> None:
        """The server cannot be reached, or the connection ended."""
        self._not_before = self._backoff.failed(now)
        self._enter_unless_waiting_for_login(Phase.OFFLINE, reason)

    def on_self(self, node: Node) -> None:
        """Control described us in a map. Beside a login that is the old key's, and no news."""
        if self._must_register:
            return
        self._own_signature = node.key_signature
        self._backoff.succeeded()
        self._refusals = 0
        if node.expired:
            # The stream stays: control may extend the key. Renewing it is the user's decision, as it is upstream.
            self._enter(Phase.EXPIRED, "the node key has expired")
        else:
            self._enter(Phase.RUNNING if node.machine_authorized else Phase.NEEDS_APPROVAL)

    # --- inside ---

    def _on_accepted(self, response: RegisterResponse) -> None:
        ours = self.credentials
        if ours.next_node is not None:
            self._commit(Credentials(ours.machine, ours.next_node, ours.node, is_registered=True))
        elif not ours.is_registered:
            self._commit(ours._replace(is_registered=True))
        self.asks_about_next_key = False
        self._was_regenerated = False
        self._uses_auth_key = False
        self._was_asked_to_log_in, self.key_refusal = False, ""
        self._followup = self._vouched = ""
        self._must_register = False
        if not response.machine_authorized:
            self._enter(Phase.NEEDS_APPROVAL)

    def _may_vouch_for_next_key(self, signature: str) -> bool:
        """Control gave what vouched for the key before: our lock key may sign the next one on top of that, once."""
        if not signature or self._vouched or self._lock_key is None:
            return False
        ours = self.credentials
        try:
            old = decode_text_untrusted(signature)
            vouched = rotate(self._lock_key, (ours.next_node or ours.node).public.raw, old)
        except BadPacket:
            return False
        self._vouched = to_text(vouched.encode())
        return True

    def _on_error(self, reason: str, now: float) -> None:
        used_auth_key = self.wants_auth_key and bool(self.auth_key)
        self._followup = ""
        if not used_auth_key:
            self._fail(AuthKeyRefused(self.key_refusal) if self.key_refusal else RegistrationRefused(reason), now)
        elif self._was_asked_to_log_in:
            self.key_refusal = reason
        else:
            self._fail(AuthKeyRefused(reason), now)

    def _on_key_expired(self, now: float) -> None:
        if self._was_regenerated:
            self._not_before = self._backoff.failed(now)
            self._enter(Phase.EXPIRED, "the server calls a brand-new key expired")
            return
        self._start_over_with_new_key()
        self._was_regenerated = True

    def _on_login_needed(self, url: str, now: float) -> None:
        if self.auth_key and not self._uses_auth_key and not self._followup:
            self._uses_auth_key = True
            return
        if self._followup:
            # The page was not used, or its time was up.
            self._not_before = self._backoff.failed(now)
        self._followup = url
        detail = f"the auth key was refused: {self.key_refusal}" if self.key_refusal else ""
        self._enter(Phase.NEEDS_LOGIN, detail, url=url)

    def _start_over_with_new_key(self) -> None:
        self._must_register = True
        self._uses_auth_key = True
        self._followup = self._vouched = ""
        self.asks_about_next_key = False
        if self.credentials.is_registered:  # a key control never accepted is as good as a new one
            self._commit(self.credentials._replace(next_node=NodePrivate.generate(self._entropy(32))))

    def _fail(self, error: RegistrationRefused, now: float) -> None:
        pause = min(REFUSAL_PAUSE * 2**self._refusals, LONGEST_REFUSAL_PAUSE)
        self._refusals = min(self._refusals + 1, 16)
        self._not_before = now + pause
        self._enter(Phase.FAILED, error.reason, error=error)

    def _commit(self, credentials: Credentials) -> None:
        self.credentials = credentials
        self._messages.append(CredentialsChanged(credentials))

    def _enter_unless_waiting_for_login(self, phase: Phase, detail: str) -> None:
        if self.phase not in {Phase.NEEDS_LOGIN, Phase.FAILED}:
            self._enter(phase, detail)

    def _enter(self, phase: Phase, detail: str = "", *, url: str = "", error: Exception | None = None) -> None:
        """The one place where the phase changes."""
        self.phase = phase
        message = PhaseChanged(phase, detail, url, error)
        if message != self._announced or error is not None:
            self._announced = message
            self._messages.append(message)

    def __repr__(self) -> str:
        return f"ControlMachine({self.phase.value})"
