"""Packages whose names are imported when they are first used: importing one costs next to nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazily(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a package whose public names live in the modules that `homes` says."""

    def load(name: str) -> Any:
        home = homes.get(name)
        if home is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = vars(sys.modules[package])[name] = getattr(import_module(home), name)
        return value

    return load


def names_of(homes: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """The home of each name, where each home lists its names."""
    return {name: home for home, names in homes.items() for name in names}
