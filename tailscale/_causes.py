"""Errors inside groups: what failed, without the wrapping that nurseries put around it."""

from __future__ import annotations

from ts_base.errors import TailscaleError


def causes(error: BaseException) -> list[BaseException]:
    """Every error inside, in order; the error itself where it is no group."""
    if not isinstance(error, BaseExceptionGroup):
        return [error]
    return [cause for inside in error.exceptions for cause in causes(inside)]


def sole_cause(error: BaseException) -> BaseException:
    """The first named error of ours inside, else the first of all."""
    found = causes(error)
    return next((cause for cause in found if isinstance(cause, TailscaleError)), found[0])
