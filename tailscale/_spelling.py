"""What a user may write for a hostname, tags, routes and kinds of pings, and what they are when nothing is written.

Apart from `_config.py`, so that a command line is read and its help shown without loading what a Device is made of.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterable
from typing import Literal, get_args

from ts_base.errors import BadPacket
from ts_base.ip import format_prefix, parse_prefix

PingKind = Literal["disco", "tsmp", "icmp", "peerapi"]
PING_KINDS = get_args(PingKind)
DEFAULT_TUN_NAME = "ts0"


def default_hostname() -> str:
    """`TS_HOSTNAME`, or a clean form of the machine's name."""
    return os.environ.get("TS_HOSTNAME") or clean_hostname(socket.gethostname())


def clean_hostname(text: str) -> str:
    """Lower-case letters, digits and dashes, at most 63: what a tailnet accepts as a name."""
    if not isinstance(text, str):
        raise TypeError(f'hostname is text, such as "worker", not {text!r}')
    label = re.sub(r"[^a-z0-9-]+", "-", text.split(".")[0].lower()).strip("-")
    return label[:63].strip("-") or "python"


def clean_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """Tags as the policy writes them; the error for what is none."""
    if isinstance(tags, str):
        raise TypeError(f'tags takes a list of names, such as ["tag:ci"], not the text {tags!r}')
    found = tuple(tags)
    for tag in found:
        if not re.fullmatch(r"tag:[A-Za-z][A-Za-z0-9-]*", tag):
            raise ValueError(
                f'tags takes names such as "tag:ci" (tag:, a letter, letters, digits and dashes), not {tag!r}'
            )
    return found


def clean_routes(texts: Iterable[str]) -> tuple[str, ...]:
    """Prefixes as control writes them; ValueError for what is none."""
    if isinstance(texts, str):
        raise TypeError(
            f'advertise_routes takes a list of prefixes, such as ["192.168.7.0/24"], not the text {texts!r}'
        )
    routes = []
    for text in texts:
        try:
            routes.append(format_prefix(parse_prefix(text)))
        except BadPacket as problem:
            raise ValueError(f"advertise_routes takes prefixes such as 192.168.7.0/24: {problem}") from None
    return tuple(routes)
