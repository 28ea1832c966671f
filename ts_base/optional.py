"""The one door for libraries that we use if they are there.

A library that is there but does not import (built for another machine, half removed, at odds with a third one) counts
as absent: what is optional may never be what keeps a program from starting.
"""

from __future__ import annotations

from importlib import import_module
from importlib.machinery import PathFinder
from typing import Any


def optional(name: str, *needed: str) -> Any:
    """The module, or None. An empty folder imports as well, so say what is `needed` of it."""
    try:
        module = import_module(name)
    except Exception:  # whatever its own code raises
        return None
    return module if all(hasattr(module, each) for each in needed) else None


def is_installed(name: str) -> bool:
    """Whether there is such a module: for what is imported later, and missed now. An empty folder is none."""
    spec = PathFinder.find_spec(name)
    return spec is not None and spec.origin is not None
