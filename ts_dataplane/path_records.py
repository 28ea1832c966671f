"""What is known of one path's quality: round trips, loss and rate, in the fewest numbers that schedulers need.

Owns the estimators. Refuses to know what a path is, what follows from its quality, and any clock: `now` is monotonic.
RFC 6298 for the smoothed round trip; the smallest of a minute says what the path can do when it is not loaded.
"""

from __future__ import annotations

from collections import deque

LOSS_GAIN = 1 / 32  # of one verdict on the average
DATAGRAM = 1280
BATCH, BATCH_GAIN = 64 * DATAGRAM, 1 / 4  # bytes that are judged together, by what of them TCP sent again
MINIMUM_WINDOW = 60.0
MINIMA_LIMIT = 256
FIRST_PATIENCE = 1.0  # while no round trip was measured
RATE_STEP = 0.1
RATE_WINDOW = 2.0


class Record:
    """One path's. Everything is None or zero until something was measured."""

    __slots__ = (
        "_busiest",
        "_minima",
        "_resent",
        "_step",
        "_step_began",
        "_unjudged",
        "judged",
        "loss",
        "rtt",
        "rtt_var",
        "sent",
    )

    def __init__(self) -> None:
        self.rtt: float | None = None  # SRTT
        self.rtt_var: float | None = None  # RTTVAR
        self.loss = 0.0
        self.judged = 0  # verdicts so far: a share of few says nothing
        self.sent = 0  # bytes of the tunnel
        self._minima: deque[tuple[float, float]] = deque(maxlen=MINIMA_LIMIT)  # (round trip, when), both rising
        self._busiest: deque[tuple[float, float]] = deque()  # (bytes a second, when), the first falling
        self._step, self._step_began = 0, 0.0
        self._unjudged = self._resent = 0

    # ---- round trips

    def on_round_trip(self, sample: float, now: float) -> None:
        """RFC 6298 section 2, without its clock granularity: ours is fine enough."""
        if self.rtt is None or self.rtt_var is None:
            self.rtt, self.rtt_var = sample, sample / 2
        else:
            self.rtt_var += (abs(self.rtt - sample) - self.rtt_var) / 4
            self.rtt += (sample - self.rtt) / 8
        minima = self._minima
        while minima and minima[-1][0] >= sample:
            minima.pop()
        minima.append((sample, now))

    def rtt_min(self, now: float) -> float | None:
        """The smallest of the last minute; of the newest where nothing was measured in it."""
        minima = self._minima
        while len(minima) > 1 and now - minima[0][1] > MINIMUM_WINDOW:
            minima.popleft()
        return minima[0][0] if minima else None

    def patience(self, least: float, trips: float, variations: float = 0.0) -> float:
        """How long an answer may take: so many round trips and variations, and never less than `least`."""
        if self.rtt is None or self.rtt_var is None:
            return max(least, FIRST_PATIENCE)
        return max(least, trips * self.rtt + variations * self.rtt_var)

    # ---- loss

    def on_verdicts(self, lost: int, total: int) -> None:
        """Of `total` things that were sent here, `lost` did not arrive: an average over the latest few dozen."""
        if total > 0:
            weight = 1 - (1 - LOSS_GAIN) ** total
            self.loss += weight * (min(lost / total, 1.0) - self.loss)
            self.judged += total

    def on_resent(self, count: int) -> None:
        """So many bytes that were sent here had to be sent again."""
        self._resent += count

    def _judge_bytes(self) -> None:
        """TCP's verdicts on what was sent since the last: one batch weighs as a few pings do, or chance would rule."""
        total = self._unjudged // DATAGRAM
        share = min(self._resent / self._unjudged, 1.0)
        self.loss += BATCH_GAIN * (share - self.loss)
        self.judged += total
        self._unjudged = self._resent = 0

    def forget_losses(self) -> None:
        """The path was dead: what was lost then says nothing of how it is now."""
        self.loss, self.judged = 0.0, 0
        self._unjudged = self._resent = 0

    def on_late(self) -> None:
        """What was given up has arrived after all."""
        self.loss = max(0.0, self.loss - LOSS_GAIN)

    # ---- rate

    def on_sent(self, count: int, now: float) -> None:
        """The tunnel's bytes that were handed to the path."""
        self.sent += count
        self._unjudged += count
        if self._unjudged >= BATCH:
            self._judge_bytes()
        if now - self._step_began >= RATE_STEP:
            self._close_step(now)
        self._step += count

    def _close_step(self, now: float) -> None:
        if self._step:
            lasted = max(RATE_STEP, min(now - self._step_began, 10 * RATE_STEP))
            rate = self._step / lasted
            while self._busiest and self._busiest[-1][0] <= rate:
                self._busiest.pop()
            self._busiest.append((rate, self._step_began + lasted))
        self._step, self._step_began = 0, now

    def rate(self, now: float) -> float | None:
        """Bytes a second that arrived in the busiest tenth of the last two seconds, as far as losses tell."""
        if now - self._step_began >= RATE_STEP:
            self._close_step(now)
        while self._busiest and now - self._busiest[0][1] > RATE_WINDOW:
            self._busiest.popleft()
        return self._busiest[0][0] * (1 - self.loss) if self._busiest else None
