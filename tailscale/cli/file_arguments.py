"""What may be typed of `file`: upstream's words for Taildrop. Knows no device."""

from __future__ import annotations

from typing import Any

CONFLICTS = ("skip", "overwrite", "rename")


def add_file(adder: Any) -> None:
    """`adder.add` makes a command with the common options, `adder.below` those that follow its name."""
    file = adder.add("file", "send files to devices of the tailnet, and fetch what they sent (Taildrop)", json=True)
    deeds = adder.below(file, "deed", "cp|get")
    cp = deeds.add("cp", "send files to a device", json=True)
    cp.add_argument("what", nargs="*", metavar="FILE... NODE:", help="a device of `--targets`; - is standard input")
    cp.add_argument("--name", metavar="NAME", help="what a single file is called there")
    cp.add_argument("--targets", action="store_true", help="print who can be sent to")
    get = deeds.add("get", "fetch the files that were sent here", json=True)
    get.add_argument("what", nargs="?", default=".", metavar="DIR", help="into this folder (.)")
    get.add_argument("--wait", action="store_true", help="wait for a file if none waits")
    get.add_argument("--loop", action="store_true", help="fetch all that come, until Ctrl-C")
    get.add_argument(
        "--conflict", choices=CONFLICTS, default="skip", help="what becomes of a file whose name is taken (skip)"
    )
