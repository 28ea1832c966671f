"""What a mesh promises about messages, kept the slow way: every message that was ever sent, and what became of it."""

from __future__ import annotations

from collections import defaultdict


class Promises:
    """One direction between two devices. A life is one process."""

    def __init__(self) -> None:
        self._sent: dict[str, list[int]] = defaultdict(list)  # by namespace, in the order of `send`
        self._returned: set[int] = set()
        self._refused: set[int] = set()
        self._sender_of: dict[int, int] = {}
        self._got: dict[tuple[int, int, str], list[int]] = defaultdict(list)  # by both lives, and namespace
        self._times: dict[int, list[int]] = defaultdict(list)  # by message: the reader's lives that got it

    def sent(self, number: int, namespace: str, life: int) -> None:
        self._sent[namespace].append(number)
        self._sender_of[number] = life

    def returned(self, number: int) -> None:
        """Its `send` returned: it has to be in a queue by now."""
        assert self._times[number], f"message {number} was acknowledged before it was delivered"
        self._returned.add(number)

    def refused(self, number: int) -> None:
        assert number not in self._returned
        self._refused.add(number)

    def got(self, number: int, namespace: str, life: int) -> None:
        """Delivered to a queue of the reader's process `life`."""
        assert life not in self._times[number], f"message {number} came twice to one process"
        assert number not in self._returned, f"message {number} came again after it was acknowledged"
        before = self._got[life, self._sender_of[number], namespace]
        assert not before or before[-1] < number, f"message {number} overtook {before[-1]} in {namespace}"
        before.append(number)
        self._times[number].append(life)

    def over(self, sender: int) -> None:
        """Everything is quiet: whatever the living sender sent was delivered or refused."""
        for numbers in self._sent.values():
            for number in numbers:
                if self._sender_of[number] == sender:
                    assert number in self._returned | self._refused, f"message {number} was lost"
