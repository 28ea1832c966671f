"""What an app that was written for another event loop runs into, and the sentence that says so.

Owns the signs of it: trio and asyncio name them in words of their own, which say nothing to who wrote the app.
"""

from __future__ import annotations

import logging

WANTS_ASYNCIO = (
    "the app wants asyncio, and a tailscale.Device serves apps under trio: give `serve` a tailscale.aio.Device, or a "
    "tailscale.sync.Device"
)
WANTS_TRIO = "the app wants trio, and this one serves apps under asyncio: give `serve` a tailscale.Device"
SIGNS = {
    "trio.run received unrecognized yield message": WANTS_ASYNCIO,
    "no running event loop": WANTS_ASYNCIO,
    "There is no current event loop": WANTS_ASYNCIO,
    "must be called from async context": WANTS_TRIO,
    "Task got bad yield": WANTS_TRIO,
    "'RunContext' object has no attribute": WANTS_TRIO,
}
DEEPEST = 8  # causes of causes that are looked at


def wrong_loop(error: BaseException | None, depth: int = DEEPEST) -> str | None:
    """The sentence, where that is what happened."""
    if error is None or not depth:
        return None
    if isinstance(error, BaseExceptionGroup):
        found = (wrong_loop(each, depth - 1) for each in error.exceptions)
        return next((sentence for sentence in found if sentence), None)
    if isinstance(error, TypeError | RuntimeError | AttributeError):
        for sign, sentence in SIGNS.items():
            if sign in str(error):
                return sentence
    return wrong_loop(error.__cause__, depth - 1)


def tell_failure(log: logging.Logger, error: BaseException, what: str) -> None:
    """An app that failed: with its traceback, or, where it is in the wrong loop, with what to do."""
    sentence = wrong_loop(error)
    if sentence is not None:
        log.error("the app failed on %s: %s", what, sentence)
    else:
        log.error("the app failed on %s", what, exc_info=error)
