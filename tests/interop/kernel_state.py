"""What `ip` shows of this thread's network namespace, to be compared before and after; and our records about it."""

from __future__ import annotations

import os
import re
from pathlib import Path

from tests.interop.natlab.namespaces import run
from tests.interop.processes import poll_until

LOOKS = ("addr", "rule", "-6 rule", "route show table all", "-6 route show table all")
RECORDS = Path("/run/pytailscale")


async def picture() -> str:
    """All that `ip` shows of this namespace and the resolvers, once its links and addresses are settled."""

    def look() -> str:
        shown = "\n".join(run("ip", "-j", *what.split()) for what in LOOKS)
        return re.sub(r'"(?:valid|preferred)_life_time":\d+,?', "", shown) + Path("/etc/resolv.conf").read_text()

    async def settled() -> str | None:
        shown = look()
        return None if "tentative" in shown or "NO-CARRIER" in shown else shown

    shown = await poll_until("links and addresses to be settled", settled, 30)
    assert isinstance(shown, str)
    return shown


def pieces(shown: str) -> list[str]:
    """What was given anew stands elsewhere in the list."""
    return sorted(re.split(r"[\[\]{}]", shown))


def left_over() -> list[str]:
    inode = os.stat("/proc/thread-self/ns/net").st_ino
    return [path.name for path in RECORDS.glob(f"*@{inode}.json")]
