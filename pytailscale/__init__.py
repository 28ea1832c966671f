"""`import pytailscale` is `import tailscale`, under the name that was installed.

Owns the case where another distribution has overwritten the package `tailscale` after this one was installed: nothing
of ours is left there to notice it.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

try:
    from tailscale._ownership import check_import_name
except ImportError as error:  # the rival's files, or none
    if "keep one of them" in str(error):  # it is ours, and says so itself
        raise
    raise ImportError(
        "the package 'tailscale' is not the one of 'pytailscale': another distribution was installed over it, or "
        "removed it. Keep one of them: pip uninstall tailscale tailscale-py pytailscale, then pip install the one you "
        "want"
    ) from error
check_import_name()

import tailscale  # noqa: E402 - only now is it known to be ours

__version__ = tailscale.__version__


def __getattr__(name: str) -> Any:
    return getattr(tailscale, name)


def __dir__() -> list[str]:
    return dir(tailscale)


class _SameModule(MetaPathFinder, Loader):
    """`pytailscale.aio` is the very module `tailscale.aio`: classes must not exist twice."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, rest = name.partition(".")
        return ModuleSpec(name, self) if package == __name__ and rest and rest != "__main__" else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(f"tailscale.{spec.name.partition('.')[2]}")
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """It was, when it was imported under its own name, which it keeps."""
        if module.__spec__ is not None and isinstance(module.__spec__.loader, _SameModule):
            module.__spec__ = module.__spec__.loader_state


sys.meta_path.append(_SameModule())
