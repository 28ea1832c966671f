"""The certificates of one device: had when they are first wanted, and renewed while it lives.

Owns which are held, one order at a time for each name, when to try again, and the warnings. Refuses to know where they
come from (`source.py`), and who shows them to whom (`contexts.py`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

import trio

from tailscale.certificates.challenges import Challenges
from tailscale.certificates.source import CertificateSource, Ground, Renewal
from tailscale.certificates.value import Certificate
from tailscale.errors import CertificateError, CertificateNameRefused, StateCorrupt
from tailscale.runtime.health import Health
from ts_acme.messages import NAME

log = logging.getLogger("tailscale.certificates")

NOT_RENEWED = "certificate-not-renewed"
IN_MEMORY = "certificates-in-memory"
FIRST_BACK_OFF, LONGEST_BACK_OFF = 60.0, 6 * 3600.0
LONGEST_SLEEP = 3600.0  # wall clocks jump
MOST_HELD = 64
WANTED_EVERY = 3600.0  # so often a client's wish for one name is an order: authorities allow few that fail
UNKNOWN_NAME = "certificates.unknown_name"


@dataclass(slots=True)
class Held:
    """One certificate, and what comes next with it."""

    certificate: Certificate
    renewal: Renewal
    failures: int = 0
    not_before: float = -math.inf  # by wall clock: no other attempt until then

    @property
    def due(self) -> float:
        return max(min(self.renewal.at, self.renewal.look_again), self.not_before)


class CertificateStatistics(NamedTuple):
    """How many certificates are held, were had anew, and fail to be renewed; and when the first of them expires."""

    held: int
    obtained: int
    failing: int
    soonest_expiry: int  # Unix time; 0 while there is none
    drops: dict[str, int]


class CertificateKeeper:
    """One device's. `run` renews until it is cancelled."""

    def __init__(
        self,
        source: CertificateSource,
        ground: Ground,
        health: Health,
        challenges: Challenges | None = None,
        tell: Callable[[Mapping[str, tuple[float, float]]], object] = lambda _: None,
    ) -> None:
        self.challenges = Challenges() if challenges is None else challenges  # one that proves nothing yet is false
        self._source = source
        self._ground = ground
        self._health = health
        self._tell = tell
        self._held: dict[str, Held] = {}
        self._refused: dict[str, CertificateError] = {}
        self._locks: dict[str, trio.Lock] = {}
        self._changed = trio.Event()
        self._wanted = ""
        self._wanted_at: dict[str, float] = {}
        self._call_soon = trio.lowlevel.current_trio_token().run_sync_soon  # handshakes may be in any thread
        self._obtained = 0
        self._drops = {"certificates.renewal_failed": 0, "certificates.names_full": 0, UNKNOWN_NAME: 0}

    def statistics(self) -> CertificateStatistics:
        soonest = min((held.certificate.chain.expires for held in self._held.values()), default=0.0)
        failing = sum(held.failures > 0 for held in self._held.values())
        drops = {**self._drops, **self._source.drops}
        return CertificateStatistics(len(self._held), self._obtained, failing, int(soonest), drops)

    # What users ask

    def names(self) -> tuple[str, ...]:
        """Those that there may be a certificate for, the usual one first. Raises CertificateNameRefused for none."""
        carried = sorted(filter(NAME.fullmatch, self.challenges.carried))
        try:
            return (*self._source.names(self._ground), *carried)
        except CertificateNameRefused:
            if not carried:
                raise
            return tuple(carried)

    async def certificate(self, name: str | None = None, min_validity: float = 0.0) -> Certificate:
        """One that is good for at least so many seconds: the one that is held or kept, else a new one."""
        await trio.lowlevel.checkpoint()
        name, least = self._checked(name), max(min_validity, 0.0)
        held = self._held.get(name)
        if held is not None and held.certificate.seconds_left(self._ground.wall_clock()) > least:
            return held.certificate
        async with self._locks.setdefault(name, trio.Lock()):
            held = self._held.get(name) or await self._take_kept(name)
            wall = self._ground.wall_clock()
            if held is not None and held.certificate.seconds_left(wall) > least:
                return held.certificate
            refused = self._refused.get(name)
            if refused is not None and refused.retry_at is not None and refused.retry_at > wall:
                raise refused  # asking again would only make it worse
            return await self._replace(name, held)

    def find(self, name: str | None) -> Certificate | None:
        """The one to show to who wants this name; the usual one to who wants none. Asks nobody."""
        wanted = (name or "").lower().rstrip(".")
        if not wanted:
            return next((held.certificate for held in self._held.values()), None)
        held = self._held.get(wanted)
        if held is not None:
            return held.certificate
        found = next((held.certificate for held in self._held.values() if held.certificate.covers(wanted)), None)
        if found is None:
            self._drops[UNKNOWN_NAME] += 1
            with suppress(trio.RunFinishedError):  # a server that outlives the device
                self._call_soon(self._want, wanted)
        return found

    def _want(self, name: str) -> None:
        """A client named a name for which nothing is held: after the device was renamed, the next one finds it."""
        try:
            name, wall = self._checked(name), self._ground.wall_clock()
        except CertificateError:
            return  # it is not ours
        except Exception:  # of a source that the program brought along
            log.exception("the source of certificates failed")
            return
        if name not in self._held and wall - self._wanted_at.get(name, -math.inf) >= WANTED_EVERY:
            self._wanted_at[name] = wall
            self._wanted = name
            self._changed.set()

    @property
    def ground(self) -> Ground:
        return self._ground

    def _checked(self, name: str | None) -> str:
        names = self.names()
        if name is None:
            return names[0]
        wanted = name.lower().rstrip(".")
        if wanted in names:
            return wanted
        above = wanted.partition(".")[2]
        if f"*.{above}" in names:
            return f"*.{above}"
        shown = ", ".join(names[:10])
        raise CertificateNameRefused(f"this device can have no certificate for {name[:253]!a}, only for {shown}")

    # Having and replacing

    async def _take_kept(self, name: str) -> Held | None:
        try:
            if self._ground.shelf.forgets:
                found = self._source.load(name, self._ground)
            else:
                found = await trio.to_thread.run_sync(self._source.load, name, self._ground)
        except StateCorrupt as problem:
            raise CertificateError(f"no certificate for {name}: {problem}") from problem
        return self._hold(name, found) if found is not None else None

    async def _replace(self, name: str, held: Held | None) -> Certificate:
        try:
            made = await self._source.obtain(name, self._ground, held.certificate if held is not None else None)
        except CertificateError as problem:
            self._refused[name] = problem
            raise
        self._refused.pop(name, None)
        if held is None or made.chain_pem != held.certificate.chain_pem:
            self._obtained += 1
        self._hold(name, made)
        if self._ground.shelf.forgets and self._source.is_scarce:
            self._health.show(
                IN_MEMORY,
                f"the certificate for {name} is gone when this program ends, and authorities issue few for one name",
                "keep the state between runs: Device(state=...) (--state)",
            )
        return made

    def _hold(self, name: str, certificate: Certificate) -> Held:
        if name not in self._held and len(self._held) >= MOST_HELD:
            self._drops["certificates.names_full"] += 1
            raise CertificateError(f"no certificate for {name}: this device holds {MOST_HELD} already")
        # When to replace it is asked soon: whoever wants it does not wait for that.
        held = self._held[name] = Held(certificate, Renewal(math.inf, self._ground.wall_clock()))
        self._health_of_all()
        chains = {name: held.certificate.chain for name, held in self._held.items()}
        self._tell({name: (chain.begins, chain.expires) for name, chain in chains.items()})
        self._changed.set()
        return held

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self._changed = trio.Event()
            if self._wanted:
                await self._obtain_wanted()
                continue
            name, due = self._next()
            left = due - self._ground.wall_clock()
            if left <= 0:
                await self._renew(name)
                continue
            with trio.move_on_after(min(left, LONGEST_SLEEP)):
                await self._changed.wait()

    async def _obtain_wanted(self) -> None:
        name, self._wanted = self._wanted, ""
        try:
            await self.certificate(name)
        except CertificateError as problem:
            log.warning("a client wanted %s: %s", name, problem)

    def _next(self) -> tuple[str, float]:
        found = min(((held.due, name) for name, held in self._held.items()), default=(math.inf, ""))
        return found[1], found[0]

    async def _renew(self, name: str) -> None:
        """One attempt, in the background: users go on with the old one as long as it is good."""
        async with self._locks.setdefault(name, trio.Lock()):
            held = self._held[name]
            wall = self._ground.wall_clock()
            if held.due > wall:
                return  # somebody wanted it meanwhile
            try:
                if held.renewal.look_again <= wall:
                    held.renewal = await self._source.renewal(held.certificate, self._ground)
                if held.renewal.at <= wall:
                    await self._replace(name, held)
                else:
                    await trio.lowlevel.checkpoint()
            except CertificateError as problem:
                self._put_off(name, held, problem)
            except Exception as problem:  # of a source that the program brought along
                log.exception("renewing the certificate for %s failed", name)
                failure = CertificateError(f"its source raised {type(problem).__name__}")
                self._refused[name] = failure
                self._put_off(name, held, failure)

    def _put_off(self, name: str, held: Held, problem: CertificateError) -> None:
        """Ever later, but never after half of what is left, and never before the server's own time."""
        wall = self._ground.wall_clock()
        pause = min(FIRST_BACK_OFF * 2**held.failures, LONGEST_BACK_OFF)
        held.failures += 1
        pause = max(min(pause, held.certificate.seconds_left(wall) / 2), FIRST_BACK_OFF)
        held.not_before = max(wall + pause, problem.retry_at or 0.0)
        self._drops["certificates.renewal_failed"] += 1
        log.warning("the certificate for %s was not renewed, next attempt in %.0f s: %s", name, pause, problem)
        self._health_of_all()

    def _health_of_all(self) -> None:
        failing = [(held.certificate.chain.expires, name) for name, held in self._held.items() if held.failures]
        if not failing:
            self._health.clear(NOT_RENEWED)
            return
        _, name = min(failing)
        refused, certificate = self._refused.get(name), self._held[name].certificate
        verb = "expires" if certificate.seconds_left(self._ground.wall_clock()) > 0 else "has expired:"
        sentence = f"the certificate for {name} {verb} {certificate.expires:%Y-%m-%d %H:%M} UTC and was not renewed"
        self._health.show(NOT_RENEWED, f"{sentence}: {refused}" if refused else sentence, self._source.remedy)
