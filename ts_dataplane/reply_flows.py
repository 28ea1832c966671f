"""The flows whose replies need no rule: what we send by UDP or SCTP may be answered (dataplane notes E.4).

Owns what is remembered of them and for how long: the newest REPLY_FLOWS, by use. Refuses to know rules and time.
"""

from __future__ import annotations

from typing import NamedTuple

from ts_base.who import PeerId

REPLY_FLOWS = 16_384  # upstream keeps 512, which a busy resolver outlives in seconds

ReplyFlow = tuple[PeerId, int, bytes]  # whom we sent to, protocol, flow bytes of the answer


class ReplyFlows:
    """UDP and SCTP flows we have sent on, least recently used first; an answer on one needs no rule.

    The peer we sent to is part of a flow: nobody else answers in it, whoever else may speak for the address.
    """

    __slots__ = ("_flows", "_limit", "forgotten")

    def __init__(self, limit: int = REPLY_FLOWS) -> None:
        self._flows: dict[ReplyFlow, None] = {}
        self._limit = limit
        self.forgotten = 0

    def record(self, flow: ReplyFlow) -> None:
        """We sent on it."""
        flows = self._flows
        if flow in flows:
            del flows[flow]
        elif len(flows) >= self._limit:
            del flows[next(iter(flows))]
            self.forgotten += 1
        flows[flow] = None

    def admits(self, flow: ReplyFlow) -> bool:
        """Whether this inbound flow answers one of ours; asking keeps it fresh."""
        if flow not in self._flows:
            return False
        del self._flows[flow]
        self._flows[flow] = None
        return True

    def __len__(self) -> int:
        return len(self._flows)

    def statistics(self) -> ReplyFlowStatistics:
        return ReplyFlowStatistics(remembered=len(self._flows), limit=self._limit, forgotten=self.forgotten)


class ReplyFlowStatistics(NamedTuple):
    remembered: int
    limit: int
    forgotten: int  # to make room; an answer on one of these was not known as such any more
