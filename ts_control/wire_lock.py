"""What is asked about a tailnet's lock: eight questions under `/machine/tka/`, each a GET with a JSON body.

Owns: their shapes. Updates and signatures are base64 in them; `ts_lock` reads those. Refuses to know: who asks when
(`tailscale/runtime/lock_keeper.py`) and what is answered (`server_lock.py`).
"""

from __future__ import annotations

import base64
from collections.abc import Iterable

from msgspec import field

from ts_base.errors import BadPacket
from ts_base.keys import NodePublic
from ts_control.gojson import GoStruct
from ts_control.wire import NO_NODE_KEY
from ts_lock.updates import Update, decode_update_untrusted

LOCK_VERSION = 142  # servers compare it with their own, unlike the one of the map
ROOT = "/machine/tka/"
CAPABILITY = "https://tailscale.com/cap/tailnet-lock"


class LockRequest(GoStruct, frozen=True, omit_defaults=False):
    """Any of the questions: each uses some of these. The version is always said."""

    version: int = LOCK_VERSION
    node_key: NodePublic = NO_NODE_KEY
    head: str = ""
    ancestors: tuple[str, ...] = ()
    genesis_aum: str = ""
    missing_aums: tuple[str, ...] = ()
    interactive: bool = False
    signature: str = ""
    signatures: dict[str, str] = field(default_factory=dict)  # by node id
    support_disablement: str = ""
    disablement_secret: str = ""
    key_id: str = field(default="", name="KeyID")

    def __repr__(self) -> str:
        return f"LockRequest(node_key={self.node_key!r}, head={self.head!r})"


class SignInfo(GoStruct, frozen=True, omit_defaults=False):
    """A node that needs a signature before a lock can begin."""

    node_id: int = 0
    node_public: NodePublic = NO_NODE_KEY
    rotation_pubkey: str = ""


class LockAnswer(GoStruct, frozen=True):
    """Any of the answers."""

    need_signatures: tuple[SignInfo, ...] = ()
    head: str = ""
    ancestors: tuple[str, ...] = ()
    missing_aums: tuple[str, ...] = ()
    genesis_aum: str = ""
    disablement_secret: str = ""
    signatures: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"LockAnswer(head={self.head!r}, missing_aums={len(self.missing_aums)})"


def to_text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def from_text_untrusted(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise BadPacket("not base64") from None


def updates_to_text(updates: Iterable[Update]) -> tuple[str, ...]:
    return tuple(to_text(update.data) for update in updates)


def updates_from_text_untrusted(texts: Iterable[str]) -> list[Update]:
    return [decode_update_untrusted(from_text_untrusted(text)) for text in texts]
