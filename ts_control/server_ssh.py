"""Logins over SSH that a person has to approve: what the node that was logged in to asks, and what it is told.

Owns the checks that wait, and how long an approval counts. Refuses to know HTTP, pages, and who the person is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import parse_qs

from ts_base.keys import MachinePublic
from ts_control.directory import Directory, DirectoryError
from ts_control.policy import Policy
from ts_control.ssh_policy import SSHAction
from ts_control.ssh_rules import ACCEPT, CHECK_PATH, sources_of

CHECK_LIFETIME = 15 * 60.0
MAX_CHECKS = 1024
AUTH_ID = "hskey-authreq-"


@dataclass(eq=False, slots=True)
class Asked:
    """One request for what came of a check; `response` is None while nobody has decided."""

    owner: object
    response: SSHAction | None = None


@dataclass(eq=False, slots=True)
class SshCheck:
    """One login that waits for somebody."""

    id: str
    source: int
    destination: int
    user: str
    url: str
    """The page where it is approved."""
    expires: float
    is_approved: bool | None = None
    asked: list[Asked] = field(default_factory=list)


class SshChecks:
    """`ask` for an action, then `decide`."""

    def __init__(
        self, directory: Directory, *, url: str, entropy: Callable[[int], bytes], wall_clock: Callable[[], float]
    ) -> None:
        self._directory = directory
        self._url = url
        self._entropy = entropy
        self._wall_clock = wall_clock
        self._approved: dict[tuple[int, int], float] = {}
        self.pending: dict[str, SshCheck] = {}
        self.drops: Counter[str] = Counter()

    def ask(self, machine: MachinePublic, path: str, query: str, policy: Policy, owner: object) -> SSHAction | Asked:
        """What is to happen to a login, or an Asked that is answered later. DirectoryError: nobody knows of it."""
        source, destination = _numbers(path)
        if destination not in self._directory.devices or source not in self._directory.devices:
            raise DirectoryError("no such node")
        if self._directory.devices[destination].machine != machine:
            raise PermissionError("this node may ask about logins to itself")
        now = self._wall_clock()
        self._forget_old(now)
        asked_for = parse_qs(query)
        check = self.pending.get(asked_for.get("auth_id", [""])[0])
        if check is not None and (check.source, check.destination) != (source, destination):
            raise PermissionError("that check is about other nodes")
        if check is not None:
            return self._told(check, owner)
        period = self._period(policy, source, destination)
        if period is None:
            raise DirectoryError("no rule asks to check this login")
        if period and now < self._approved.get((source, destination), 0.0) + period:
            return ACCEPT
        return self._begin(source, destination, asked_for.get("ssh_user", [""])[0], path, now)

    def decide(self, check_id: str, *, approved: bool) -> list[Asked]:
        """Somebody has looked at it; those who wait for it have their answer."""
        check = self.pending.get(check_id.rpartition("/")[2])
        if check is None:
            raise DirectoryError("no such check is waiting")
        check.is_approved = approved
        if approved:
            self._approved[check.source, check.destination] = self._wall_clock()
        for asked in check.asked:
            asked.response = _outcome(check)
        answered, check.asked = check.asked, []
        if answered:
            del self.pending[check.id]
        return answered

    def abandon(self, owner: object) -> None:
        """A connection ended."""
        for check in self.pending.values():
            check.asked = [asked for asked in check.asked if asked.owner is not owner]

    def give_up(self, gone: Asked) -> None:
        """A request ended."""
        for check in self.pending.values():
            check.asked = [asked for asked in check.asked if asked is not gone]

    def _told(self, check: SshCheck, owner: object) -> SSHAction | Asked:
        if check.is_approved is not None:
            del self.pending[check.id]
            return _outcome(check)
        asked = Asked(owner)
        check.asked.append(asked)
        return asked

    def _begin(self, source: int, destination: int, user: str, path: str, now: float) -> SSHAction:
        while len(self.pending) >= MAX_CHECKS:
            del self.pending[next(iter(self.pending))]
            self.drops["control.ssh_checks_full"] += 1
        check_id = AUTH_ID + self._entropy(12).hex()
        page = f"{self._url}/auth/{check_id}"
        self.pending[check_id] = SshCheck(check_id, source, destination, user, page, now + CHECK_LIFETIME)
        return SSHAction(
            message=f"# This login has to be approved. Open:\n{page}\n",
            hold_and_delegate=f"{self._url}{path}?auth_id={check_id}",
        )

    def _period(self, policy: Policy, source: int, destination: int) -> float | None:
        """How long an approval of this pair counts; None where no rule checks it."""
        own = self._directory.devices[destination].subject()
        caller = self._directory.devices[source].subject()
        checks = (entry for entry in policy.ssh if entry.check is not None)
        return next((entry.check for entry in checks if sources_of(entry, own, [caller])), None)

    def _forget_old(self, now: float) -> None:
        for check in [check for check in self.pending.values() if check.expires <= now and not check.asked]:
            del self.pending[check.id]


def _outcome(check: SshCheck) -> SSHAction:
    return ACCEPT if check.is_approved else SSHAction(reject=True, message="This login was rejected.\n")


def _numbers(path: str) -> tuple[int, int]:
    source, _, destination = path.removeprefix(CHECK_PATH).partition("/to/")
    if not (source.isascii() and source.isdigit() and destination.isascii() and destination.isdigit()):
        raise DirectoryError("no such node")
    return int(source[:20]), int(destination[:20])
