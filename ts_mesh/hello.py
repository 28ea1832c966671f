"""The first message of a session, in either direction: which app, which device, and what was seen before.

The format is Truffle's hello, version 2: JSON whose `identity` has five texts. Ours adds keys that its peers ignore.
Owns the codec and what a hello may say. Refuses to know whether it is true: that is for whoever knows the caller.
"""

from __future__ import annotations

import re
from typing import Annotated

import msgspec

from ts_base.errors import BadPacket

VERSION = 2
PATH = "/ws"  # of the WebSocket over which both say hello
LARGEST_NUMBER = (1 << 53) - 1  # what every JSON reader keeps exactly
LONGEST = {"app_id": 32, "device_id": 64, "device_name": 512, "os": 32, "tailscale_id": 256}  # bytes of UTF-8
MOST_FEATURES = 32
LONGEST_FEATURE = 32
EPOCH = re.compile(r"[0-9a-f]{16}")
APP = re.compile(r"[a-z0-9][a-z0-9._-]{0,31}")

# Close codes of a session: RFC 6455, 7.4.2 leaves 4000 to 4999 to those who speak it.
OTHER_APP = 4001
MALFORMED = 4002
WRONG_IDENTITY = 4003
DUPLICATE = 4004
TOO_LARGE = 4005
GOING_AWAY = 4006

Number = Annotated[int, msgspec.Meta(ge=0, le=LARGEST_NUMBER)]


class Identity(msgspec.Struct, frozen=True):
    """Who says hello, by its own word."""

    app_id: str
    device_id: str
    device_name: str
    os: str
    tailscale_id: str = ""


class Seen(msgspec.Struct, frozen=True):
    """How far somebody has read what the other sent in one life of its process."""

    epoch: str
    n: Number


class Hello(msgspec.Struct, frozen=True, omit_defaults=True):
    """One hello. `features`, `epoch` and `seen` are absent from peers that are not of this make."""

    kind: str
    version: Annotated[int, msgspec.Meta(ge=0, le=(1 << 32) - 1)]
    identity: Identity
    features: tuple[str, ...] = ()
    epoch: str = ""
    seen: Seen | None = None


_decoder = msgspec.json.Decoder(Hello)
_encoder = msgspec.json.Encoder()


def encode_hello(identity: Identity, features: tuple[str, ...], epoch: str, seen: Seen | None = None) -> str:
    """As the text of one frame."""
    return _encoder.encode(Hello("hello", VERSION, identity, features, epoch, seen)).decode()


def decode_hello_untrusted(data: bytes | str, *, largest: int = 8 << 10) -> Hello:
    """A hello whose every field is within its bounds. Raises BadPacket."""
    if len(data) > largest or (isinstance(data, str) and len(data.encode("utf-8", "replace")) > largest):
        raise BadPacket(f"a hello has at most {largest} bytes")
    try:
        hello = _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as problem:
        raise BadPacket(f"no hello: {problem}") from None
    if hello.kind != "hello":
        raise BadPacket("no hello: it is of another kind")
    if hello.version < VERSION:
        raise BadPacket(f"hello version {hello.version} is not spoken any more: {VERSION} is")
    _check_identity(hello.identity)
    features = hello.features
    if len(features) > MOST_FEATURES or any(len(feature.encode()) > LONGEST_FEATURE for feature in features):
        raise BadPacket("a hello with too many or too long features")
    if not _is_epoch(hello.epoch) or (hello.seen is not None and not _is_epoch(hello.seen.epoch)):
        raise BadPacket("an epoch is 16 hexadecimal digits")
    return hello


def _is_epoch(text: str) -> bool:
    return not text or EPOCH.fullmatch(text) is not None


def _check_identity(identity: Identity) -> None:
    for name, longest in LONGEST.items():
        if len(getattr(identity, name).encode()) > longest:
            raise BadPacket(f"{name} of a hello has more than {longest} bytes")
    if not identity.app_id or not identity.device_id:
        raise BadPacket("a hello without app_id or device_id")
    if identity.device_id == identity.tailscale_id:
        raise BadPacket("device_id and tailscale_id of a hello are one and the same")


def refusal(hello: Hello, *, app: str, own_id: str, stable_id: str) -> tuple[int, str] | None:
    """Why a session with this peer cannot be: a close code and a sentence. `stable_id` is what the tailnet says."""
    if hello.identity.app_id != app:
        return OTHER_APP, "this is another app's mesh"
    if not stable_id or hello.identity.tailscale_id != stable_id:
        return WRONG_IDENTITY, "tailscale_id is not that of the node at the other end"
    if hello.identity.device_id == own_id:
        return WRONG_IDENTITY, "device_id is ours: two devices have a copy of one state"
    return None


def common_features(ours: tuple[str, ...], hello: Hello) -> frozenset[str]:
    """What both ends speak. Without epochs nothing can be acknowledged across connections."""
    both = frozenset(ours) & frozenset(hello.features)
    return both if hello.epoch else both - {"ack"}
