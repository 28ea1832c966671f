"""Which counters of a session were already accepted: a sliding window (RFC 6479's purpose, one int's shape).

Owns the window. It is asked only about counters whose packets have been authenticated, and once per run, because
shifting 8,192 bits per packet would cost a fifth of a decryption.
"""

from __future__ import annotations

from ts_tunnel.params import REJECT_AFTER_MESSAGES, REPLAY_WINDOW

_MASK = (1 << REPLAY_WINDOW) - 1


class ReplayWindow:
    """Bit i of the int stands for counter `newest - i`."""

    __slots__ = ("_newest", "_seen")

    def __init__(self) -> None:
        self._newest = -1
        self._seen = 0

    def refuse(self, counters: list[int]) -> list[int]:
        """Mark at least one counter, in order of arrival; returns the positions of those too old, too high or seen."""
        first, count = counters[0], len(counters)
        end = first + count
        if first > self._newest and end <= REJECT_AFTER_MESSAGES and counters == list(range(first, end)):
            self._advance(end - 1, (1 << count) - 1)
            return []
        lowest, highest = min(counters), max(counters)
        is_new_and_near = lowest > self._newest and highest < REJECT_AFTER_MESSAGES and highest - lowest < REPLAY_WINDOW
        if is_new_and_near and len(set(counters)) == count:
            self._advance(highest, sum([1 << (highest - counter) for counter in counters]))
            return []
        return [position for position, counter in enumerate(counters) if not self.accept(counter)]

    def _advance(self, newest: int, bits: int) -> None:
        """Slide up to `newest`; `bits` are the counters newly seen, none of which is older than the old newest."""
        shift = newest - self._newest
        # A peer may jump by 2**63: the shift itself must never be that long.
        self._seen = (self._seen << shift | bits) & _MASK if shift < REPLAY_WINDOW else bits & _MASK
        self._newest = newest

    def accept(self, counter: int) -> bool:
        """Mark one counter; False when it is too old, too high or was seen."""
        if counter >= REJECT_AFTER_MESSAGES:
            return False
        if counter > self._newest:
            self._advance(counter, 1)
            return True
        bit = 1 << (self._newest - counter) if self._newest - counter < REPLAY_WINDOW else 0
        if not bit or self._seen & bit:
            return False
        self._seen |= bit
        return True
