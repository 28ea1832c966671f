"""How a device gets in: every path of registration, decided in the order real servers decide.

Owns auth-key rules, interactive logins waiting for a human, re-authentication, logout and tag permission. Tells the
server what happened by returning it; knows nothing of streams, views or HTTP.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ts_base.keys import MachinePublic
from ts_control.directory import TAGGED_DEVICES, AuthKeyRecord, Directory, DirectoryError, Enrolled
from ts_control.gojson import unix_time
from ts_control.policy import Policy, is_valid_tag
from ts_control.server_lock import ServedLock
from ts_control.wire_register import Login, RegisterRequest, RegisterResponse, User

LOGIN_LIFETIME = 15 * 60.0
MAX_LOGINS = 1024
LOGIN_PREFIX = "login-"


@dataclass(eq=False, slots=True)
class Parked:
    """A registration that waits for a human; `response` is None until the decision."""

    login_id: str
    owner: object
    response: RegisterResponse | None = None


@dataclass(slots=True)
class PendingLogin:
    """One interactive login: the machine asked, nobody answered yet."""

    id: str
    url: str
    machine: MachinePublic
    request: RegisterRequest
    expires: float
    approved_as: str = ""


class Logins:
    """Registration. What it did to the directory is fetched with `take_admitted` and `take_removed`."""

    def __init__(
        self,
        directory: Directory,
        *,
        url: str,
        entropy: Callable[[int], bytes],
        wall_clock: Callable[[], float],
        key_lifetime: float,
        lock: ServedLock,
    ) -> None:
        self._directory = directory
        self._lock = lock
        self._url = url
        self._entropy = entropy
        self._wall_clock = wall_clock
        self._key_lifetime = key_lifetime
        self._admitted: list[tuple[Enrolled, set[str]]] = []
        self._removed: list[Enrolled] = []
        self.policy = Policy.allow_all()
        self.asks_for_approval = False
        self.pending: dict[str, PendingLogin] = {}
        self.parked: list[Parked] = []

    def take_admitted(self) -> list[tuple[Enrolled, set[str]]]:
        """Devices let in or changed, with what changed, since last asked."""
        taken, self._admitted = self._admitted, []
        return taken

    def take_removed(self) -> list[Enrolled]:
        """Devices that have to go; they are still in the directory."""
        taken, self._removed = self._removed, []
        return taken

    # Requests

    def register(self, machine: MachinePublic, request: RegisterRequest, owner: object) -> RegisterResponse | Parked:
        wall = self._wall_clock()
        device = self._directory.by_key(request.node_key)
        if request.node_key.is_zero:
            return _refused("a node key is required")
        if device is not None and device.machine != machine:
            return _refused("node exists with a different machine key")
        asked_expiry = unix_time(request.expiry)
        if asked_expiry and asked_expiry <= wall:
            return self._log_out(device, wall)
        key = request.auth.auth_key if request.auth else ""
        if device is not None and not key and not request.followup:
            if device.expired:
                return RegisterResponse(node_key_expired=True)
            if not asked_expiry:
                return self._welcome(device)
            return _refused("extending key is not allowed")
        if device is not None and key and not device.expired:
            return self._welcome(device)  # a restart with the key still in the environment: it is not spent again
        if device is not None and device.expired:
            return RegisterResponse(node_key_expired=True)
        if not request.node_key_signature and (old := self._lock.old_signature(self._directory.by_machine(machine))):
            return RegisterResponse(node_key_signature=old)  # it asks again, with its new key signed on top of that
        if key:
            return self._register_with_key(machine, request, key, wall)
        if request.followup:
            return self._follow_up(machine, request, owner, wall)
        return self._start_login(machine, request, wall)

    def _log_out(self, device: Enrolled | None, wall: float) -> RegisterResponse:
        if device is not None and device.ephemeral:
            self._removed.append(device)
        elif device is not None and not device.expired:
            device.expires, device.expired = wall, True
            self._admitted.append((device, {"expires", "expired"}))
        return RegisterResponse(node_key_expired=True)

    def _register_with_key(
        self, machine: MachinePublic, request: RegisterRequest, secret: str, wall: float
    ) -> RegisterResponse:
        record = self._directory.find_auth_key(secret)
        if record is None:
            return _refused("invalid auth key: this control server did not issue it")
        refusal = record.refusal(wall)
        if refusal:
            return _refused(refusal)
        wanted = tuple(request.hostinfo.request_tags) if request.hostinfo else ()
        problem = self._tag_problem(wanted, record.login, record.tags)
        if problem:
            return _refused(problem)
        record.used = True
        return self._welcome(self._admit(machine, request, record.login, record.tags or wanted, record, wall))

    def _start_login(self, machine: MachinePublic, request: RegisterRequest, wall: float) -> RegisterResponse:
        self._forget_old_logins(wall)
        if len(self.pending) >= MAX_LOGINS:
            del self.pending[next(iter(self.pending))]
        login_id = LOGIN_PREFIX + self._entropy(12).hex()
        url = f"{self._url}/register/{login_id}"
        self.pending[login_id] = PendingLogin(login_id, url, machine, request, wall + LOGIN_LIFETIME)
        return RegisterResponse(auth_url=url)

    def _follow_up(
        self, machine: MachinePublic, request: RegisterRequest, owner: object, wall: float
    ) -> RegisterResponse | Parked:
        login = self.pending.get(request.followup.rpartition("/")[2])
        if login is None or login.machine != machine or login.expires <= wall:
            return self._start_login(machine, request, wall)
        login.request = request
        if login.approved_as:
            return self._complete(login, wall)
        parked = Parked(login.id, owner)
        self.parked.append(parked)
        return parked

    def _forget_old_logins(self, wall: float) -> None:
        for login in [login for login in self.pending.values() if login.expires <= wall]:
            del self.pending[login.id]

    # Decisions of a human

    def approve(self, login_id: str, user: str) -> list[Parked]:
        """Let the device in as `user`; returns the requests that have their answer now."""
        login = self._pending(login_id)
        self._directory.account(user)
        login.approved_as = user
        waiting = self._unpark(login_id)
        if waiting:
            response = self._complete(login, self._wall_clock())
            for parked in waiting:
                parked.response = response
        return waiting

    def reject(self, login_id: str) -> list[Parked]:
        login = self._pending(login_id)
        del self.pending[login.id]
        waiting = self._unpark(login_id)
        for parked in waiting:
            parked.response = _refused("the login was rejected")
        return waiting

    def abandon(self, owner: object) -> None:
        """The connection of `owner` is gone: nobody waits there any more."""
        self.parked = [parked for parked in self.parked if parked.owner is not owner]

    def _pending(self, login_id: str) -> PendingLogin:
        login = self.pending.get(login_id.rpartition("/")[2])
        if login is None or login.expires <= self._wall_clock():
            raise DirectoryError("no such login is waiting")
        return login

    def _unpark(self, login_id: str) -> list[Parked]:
        login_id = login_id.rpartition("/")[2]
        waiting = [parked for parked in self.parked if parked.login_id == login_id]
        self.parked = [parked for parked in self.parked if parked.login_id != login_id]
        return waiting

    def _complete(self, login: PendingLogin, wall: float) -> RegisterResponse:
        self.pending.pop(login.id, None)
        request = login.request
        wanted = tuple(request.hostinfo.request_tags) if request.hostinfo else ()
        problem = self._tag_problem(wanted, login.approved_as, ())
        if problem:
            return _refused(problem)
        return self._welcome(self._admit(login.machine, request, login.approved_as, wanted, None, wall))

    # Admission

    def _tag_problem(self, wanted: tuple[str, ...], login: str, key_tags: tuple[str, ...]) -> str:
        for tag in wanted:
            if not is_valid_tag(tag) or not (tag in key_tags or (not key_tags and self.policy.may_own(tag, login))):
                return f"requested tags [{tag}] are invalid or not permitted"
        return ""

    def _admit(
        self,
        machine: MachinePublic,
        request: RegisterRequest,
        login: str,
        tags: tuple[str, ...],
        record: AuthKeyRecord | None,
        wall: float,
    ) -> Enrolled:
        """Enroll a machine, or give the one it already is its new key: same id, same addresses."""
        hostname = request.hostinfo.hostname if request.hostinfo else ""
        device = self._directory.by_machine(machine)
        if device is not None and not device.tags and not tags and device.login != login:
            self._removed.append(device)  # another person's device now
            device = None
        changed = {"key", "expires", "expired"}
        if device is None:
            device = self._directory.enroll(machine, request.node_key, login, hostname, wall)
            device.is_authorized = not self.asks_for_approval
            changed = {"new"}
        else:
            self._directory.rekey(device, request.node_key)
            if set(tags) != set(device.tags):
                changed.add("tags")
            changed |= {"signature"} if self._lock.chain is not None else set()
        device.lock_key = request.nl_key
        self._lock.accept(device, request.node_key_signature)
        device.login, device.tags = login, tuple(sorted(set(tags)))
        device.ephemeral = request.ephemeral or (record is not None and record.ephemeral)
        device.version = request.version
        device.expired = False
        device.expires = self._expiry(request, bool(tags), wall)
        if request.hostinfo is not None:
            device.hostinfo = request.hostinfo
        self._admitted.append((device, changed))
        return device

    def _expiry(self, request: RegisterRequest, is_tagged: bool, wall: float) -> float:
        """Tagged devices never expire; a device may ask for less than the tailnet's lifetime, not for more."""
        if is_tagged:
            return 0.0
        asked = unix_time(request.expiry)
        own = wall + self._key_lifetime if self._key_lifetime else 0.0
        return min(asked, own) if asked and own else asked or own

    def _welcome(self, device: Enrolled) -> RegisterResponse:
        account = self._directory.account(device.login)
        number = TAGGED_DEVICES if device.tags else account.id
        login_name = "tagged-devices" if device.tags else account.login
        return RegisterResponse(
            user=User(id=number, display_name=account.display_name),
            login=Login(id=number, provider="embedded", login_name=login_name, display_name=account.display_name),
            machine_authorized=device.is_authorized,
        )


def _refused(reason: str) -> RegisterResponse:
    return RegisterResponse(error=reason)
