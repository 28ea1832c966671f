"""A notebook runs the cell that joins once more: what the device of the earlier run has to do with the new one.

Owns the rule, which holds under IPython alone: a device gives way to one that a later cell opens by the same name at
the same control server, or with the same state. Two of one cell are both wanted, as are two of a plain program. Refuses
to know how a device leaves.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Mapping
from typing import Any, NamedTuple

from tailscale._config import control_url_from_environment
from tailscale._spelling import clean_hostname, default_hostname


class Claim(NamedTuple):
    """What a device takes for itself, and which run of a cell took it."""

    hostname: str
    control_url: str
    state: str | int | None
    """The file or folder; for a store of the program's own its id; None for one that is kept nowhere."""
    cell: int | None = None
    """IPython's counter, which grows from cell to cell; None outside of cells."""

    def gives_way_to(self, other: Claim) -> bool:
        """Whether both cannot be meant at once."""
        if self.cell is None or other.cell is None or self.cell == other.cell:
            return False
        is_same_name = (self.hostname, self.control_url) == (other.hostname, other.control_url)
        return is_same_name or (self.state is not None and self.state == other.state)


def claim_of(hostname: str | None, options: Mapping[str, Any]) -> Claim:
    """What a device of these arguments takes, with the environment read as the Device itself reads it."""
    state = options.get("state")
    where = os.path.abspath(os.fspath(state)) if isinstance(state, str | os.PathLike) else state and id(state)
    return Claim(
        clean_hostname(hostname) if hostname else default_hostname(),
        (options.get("control_url") or control_url_from_environment()).rstrip("/"),
        where,
    )


def running_cell() -> int | None:
    """IPython's counter while a cell runs; None where none does, and in threads that a cell has left running."""
    ipython: Any = sys.modules.get("IPython")  # who has not imported it sits in no notebook
    get_shell = getattr(ipython, "get_ipython", None)
    shell = get_shell() if get_shell is not None else None
    is_cell = shell is not None and threading.current_thread() is threading.main_thread()
    return getattr(shell, "execution_count", None) if is_cell else None
