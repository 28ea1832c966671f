"""The scoreboard: what is in flight, as ranges of bytes sent together, and what became of each.

A range is split only where an acknowledgement demands it and merged again when its news is the same, so a loss-free
window is a handful of objects. Owns the byte counts of RFC 6675; RACK's verdicts are in tcp_recovery.
"""

from __future__ import annotations

from bisect import bisect_right

IN_FLIGHT, SACKED, LOST = 0, 1, 2
SPANS_LIMIT = 4096  # selective acknowledgements that would cut the flight finer are not listened to


class Span:
    """Bytes [start, end) that share a fate."""

    __slots__ = ("end", "fate", "resent", "sent_at", "start")

    def __init__(self, start: int, end: int, sent_at: float, fate: int = IN_FLIGHT, resent: bool = False) -> None:
        self.start, self.end, self.sent_at, self.fate, self.resent = start, end, sent_at, fate, resent

    def __repr__(self) -> str:
        return f"Span({self.start}, {self.end}, {self.sent_at}, {('in flight', 'sacked', 'lost')[self.fate]})"


def _span_start(span: Span) -> int:
    return span.start


class Flight:
    """Spans in sequence order, contiguous from SND.UNA to SND.NXT."""

    __slots__ = ("lost", "sacked", "spans")

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.sacked = 0
        self.lost = 0

    @property
    def outstanding(self) -> int:
        """Bytes that left and are not acknowledged, whatever their fate."""
        return self.spans[-1].end - self.spans[0].start if self.spans else 0

    @property
    def pipe(self) -> int:
        """Bytes believed to be on the way."""
        spans = self.spans
        return spans[-1].end - spans[0].start - self.sacked - self.lost if spans else 0

    def add(self, start: int, end: int, now: float) -> None:
        """New data left."""
        spans = self.spans
        last = spans[-1] if spans else None
        if last and last.sent_at == now and last.fate == IN_FLIGHT and not last.resent and last.end == start:
            last.end = end
        else:
            spans.append(Span(start, end, now))

    def acknowledge(self, una: int) -> list[Span]:
        """Forget everything before `una`; returns what of it had not been selectively acknowledged before."""
        spans = self.spans
        news: list[Span] = []
        done = 0
        for span in spans:
            if span.start >= una:
                break
            gone = span
            if span.end > una:
                gone = Span(span.start, una, span.sent_at, span.fate, span.resent)
                span.start = una
            else:
                done += 1
            self._uncount(gone)
            if gone.fate != SACKED:
                news.append(gone)
        del spans[:done]
        return news

    def _uncount(self, span: Span) -> None:
        if span.fate == SACKED:
            self.sacked -= span.end - span.start
        elif span.fate == LOST:
            self.lost -= span.end - span.start

    def _split(self, index: int, at: int) -> None:
        """Cut the span at `index` in two at sequence number `at`."""
        span = self.spans[index]
        self.spans.insert(index + 1, Span(at, span.end, span.sent_at, span.fate, span.resent))
        span.end = at

    def _isolate(self, start: int, end: int) -> tuple[int, int]:
        """Make span borders at `start` and `end`; returns the index range between them."""
        spans = self.spans
        first = bisect_right(spans, start, key=_span_start) - 1
        if first < 0:
            first = 0
        elif spans[first].start < start < spans[first].end:
            self._split(first, start)
            first += 1
        elif spans[first].end <= start:
            first += 1
        last = first
        while last < len(spans) and spans[last].start < end:
            if spans[last].end > end:
                self._split(last, end)
            last += 1
        return first, last

    def sack(self, start: int, end: int) -> list[Span]:
        """The peer holds [start, end); returns what of it is news, as it was before."""
        if not self.spans or len(self.spans) >= SPANS_LIMIT:
            return []
        first, last = self._isolate(max(start, self.spans[0].start), min(end, self.spans[-1].end))
        news: list[Span] = []
        for span in self.spans[first:last]:
            if span.fate == SACKED:
                continue
            news.append(Span(span.start, span.end, span.sent_at, span.fate, span.resent))
            self._uncount(span)
            self.sacked += span.end - span.start
            span.fate = SACKED
        self._merge_sacked(first, last)
        return news

    def _merge_sacked(self, first: int, last: int) -> None:
        spans = self.spans
        at = max(first - 1, 0)
        stop = min(last + 1, len(spans))
        merged: list[Span] = []
        for span in spans[at:stop]:
            if merged and span.fate == SACKED == merged[-1].fate and span.start == merged[-1].end:
                merged[-1].end = span.end
            else:
                merged.append(span)
        spans[at:stop] = merged

    def mark_lost(self, span: Span) -> None:
        if span.fate == IN_FLIGHT:
            span.fate = LOST
            self.lost += span.end - span.start

    def mark_all_lost(self) -> None:
        """After a timeout: all that was not selectively acknowledged."""
        for span in self.spans:
            self.mark_lost(span)

    def mark_lost_between(self, start: int, end: int) -> None:
        if self.spans and start < end:
            first, last = self._isolate(start, end)
            for span in self.spans[first:last]:
                self.mark_lost(span)

    def forget_sacks(self) -> None:
        """The peer went back on what it had selectively acknowledged (RFC 2018 section 8)."""
        for span in self.spans:
            if span.fate == SACKED:
                span.fate = IN_FLIGHT
        self.sacked = 0

    def revive(self) -> None:
        """Nothing was lost after all: what was not sent again is on its way."""
        for span in self.spans:
            if span.fate == LOST:
                self.lost -= span.end - span.start
                span.fate = IN_FLIGHT

    def first_lost(self) -> Span | None:
        if self.lost:
            for span in self.spans:
                if span.fate == LOST:
                    return span
        return None

    def resend(self, start: int, end: int, now: float) -> None:
        """[start, end), which must lie in the flight, leaves again."""
        first, last = self._isolate(start, end)
        for span in self.spans[first:last]:
            if span.fate != SACKED:
                self._uncount(span)
                span.fate, span.resent, span.sent_at = IN_FLIGHT, True, now
