"""Both ends of ACME joined by function calls: every Ask of a conversation is answered by a server machine."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TypeVar
from urllib.parse import urlsplit

from ts_acme.chains import new_request
from ts_acme.client import AcmeClient, AnswerTls, Conversation, Pause, PublishText, Wanted
from ts_acme.messages import Ask, Reply
from ts_acme.server import AcmeServer
from ts_acme.signing import ENTROPY_LENGTH, AccountKey, new_key

URL = "https://acme.test"
START = 1_800_000_000.0
T = TypeVar("T")

Answers = Callable[[Ask], Reply]


class World:
    """A clock, records of names, a server that believes them, and an account at it."""

    def __init__(self, seed: int = 1, lifetime: float = 90 * 86_400.0) -> None:
        self.now = START
        self.entropy = random.Random(seed).randbytes
        self.records: dict[str, list[str]] = {}
        self.shown_by_tls: list[AnswerTls] = []
        self.asked: list[Ask] = []
        self.server = AcmeServer(
            url=URL,
            records=lambda name: self.records.get(name, []),
            entropy=self.entropy,
            wall_clock=lambda: self.now,
            lifetime=lifetime,
        )
        self.answer: Answers = self.by_server
        self.client = self.new_client()

    def new_client(self) -> AcmeClient:
        """Another account."""
        account = AccountKey(new_key(self.entropy(ENTROPY_LENGTH)))
        return AcmeClient(f"{URL}/dir", account, wall_clock=lambda: self.now)

    def by_server(self, ask: Ask) -> Reply:
        return self.server.answer(ask.method, urlsplit(ask.url).path, ask.body)

    def hold(self, conversation: Conversation[T]) -> T:
        """From its first step to its result."""
        reply: Reply | None = None
        while True:
            try:
                step = conversation.send(reply)
            except StopIteration as end:
                result: T = end.value
                return result
            reply = None
            if isinstance(step, Ask):
                self.asked.append(step)
                assert len(self.asked) < 2000, "this conversation has no end"
                reply = self.answer(step)
            elif isinstance(step, Pause):
                self.now += step.seconds
            elif isinstance(step, PublishText):
                self.records.setdefault(step.name, []).append(step.value)
            else:
                self.shown_by_tls.append(step)

    def wanted(self, *names: str, replaces: str = "") -> Wanted:
        self.key = new_key(self.entropy(ENTROPY_LENGTH))
        return Wanted(names or ("web.test",), new_request(self.key, names or ("web.test",)), replaces=replaces)
