"""Answering requests: who runs the handlers of one namespace, how many at once, and what becomes of what they raise.

A request that its asker gave up ends its handler. What a handler raises is told to the asker and ends nothing here.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, cast

import trio

from tailscale.mesh.errors import MeshError, MessageTooLarge
from tailscale.mesh.lines import Line
from tailscale.mesh.subscriptions import Message, Question, Server
from tailscale.mesh.tickets import encoded
from ts_mesh.envelope import ERROR, REPLY, Envelope

log = logging.getLogger("tailscale.mesh")
Handler = Callable[[Message[Any]], Awaitable[object]]
LONGEST_SENTENCE = 1024


async def answer_all(server: Server, handler: Handler, at_once: trio.CapacityLimiter, largest: int) -> None:
    """Hand each question to the handler, as many at once as allowed."""
    async with trio.open_nursery() as nursery:
        while True:
            await at_once.acquire_on_behalf_of(turn := object())
            try:
                question = await server.next()
            except trio.EndOfChannel:
                nursery.cancel_scope.cancel()
                return
            except BaseException:
                at_once.release_on_behalf_of(turn)
                raise
            nursery.start_soon(_answer, server, question, handler, largest, at_once, turn)


async def _answer(
    server: Server, question: Question, handler: Handler, largest: int, at_once: trio.CapacityLimiter, turn: object
) -> None:
    try:
        with trio.CancelScope() as scope:
            server.running[question] = scope
            answer = await _asked(question, handler, largest)
            line = cast(Line, question.line)
            ticket = line.reply(question.life, answer)
            if ticket is not None:
                await line.settle(ticket)
    finally:
        del server.running[question]
        at_once.release_on_behalf_of(turn)


async def _asked(question: Question, handler: Handler, largest: int) -> Envelope:
    """What the handler says, or that it failed."""
    namespace, number, moment = question.envelope.namespace, question.envelope.n, int(time.time() * 1000)
    try:
        value = await handler(question.message)
        answer = encoded(namespace, value, REPLY, moment, re=number)
        if answer.size > largest:
            raise MessageTooLarge(f"the answer has {answer.size} bytes: {largest} at most")
    except Exception as problem:
        if not isinstance(problem, MeshError):
            log.warning("the handler of %s failed: %s: %s", namespace, type(problem).__name__, problem)
        told = {"kind": type(problem).__name__[:LONGEST_SENTENCE], "message": str(problem)[:LONGEST_SENTENCE]}
        return encoded(namespace, told, ERROR, moment, re=number)
    return answer
