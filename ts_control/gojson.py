"""JSON as Go reads and writes it, on msgspec Structs.

Owns: Go's names for our snake_case fields, `null` meaning "leave the zero value", keys and zero times as values, and
that nothing but BadPacket comes out of hostile text. Refuses to know: any message of the protocol (`wire.py` has them).
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any, TypeVar

import msgspec

from ts_base.errors import BadPacket
from ts_base.keys import PublicKey

ZERO_TIME = datetime(1, 1, 1, tzinfo=UTC)  # what Go writes for a time that was never set

# Words Go spells in capitals; everything else gets one capital letter.
_CAPITALS = "API AUM CPU DERP DNS HTTP ID IP IPN NL OS PCP PMP SSH STUN TCP TKA TLS UDP URL"
_MIXED = "AUMs IDs IPs IPv4 IPv6 ICMPv4 MACs UPnP WireGuard WoL"
_GO_WORDS = {word.lower(): word for word in f"{_CAPITALS} {_MIXED}".split()}

T = TypeVar("T")
S = TypeVar("S", bound="GoStruct")


def go_name(name: str) -> str:
    """`allowed_ips` -> `AllowedIPs`, `url_is_noise` -> `URLIsNoise`."""
    return "".join(_GO_WORDS.get(word, word.capitalize()) for word in name.split("_"))


class GoStruct(msgspec.Struct, frozen=True, omit_defaults=True, gc=False, rename=go_name):
    """A frozen message: unknown fields ignored, absent and null fields take their default, defaults are not written.

    A field whose default is None keeps null apart from empty, because upstream does so there.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        # msgspec resolves these lazily: the type checker sees the honest type, the decoder also takes null.
        cls.__annotations__ = {
            name: hint if hint.startswith("ClassVar") or hint.endswith("| None") or hint == "Any" else f"{hint} | None"
            for name, hint in cls.__annotations__.items()
        }

    def __post_init__(self) -> None:
        kind = type(self)
        zeros = _ZEROS.get(kind)
        if zeros is None:
            zeros = _ZEROS[kind] = _zeros_of(kind)
        for name, zero in zeros:
            if getattr(self, name) is None:
                msgspec.structs.force_setattr(self, name, zero)


_ZEROS: dict[type[GoStruct], tuple[tuple[str, Any], ...]] = {}


def _zeros_of(kind: type[GoStruct]) -> tuple[tuple[str, Any], ...]:
    zeros = []
    for field in msgspec.structs.fields(kind):
        make: Any = field.default_factory
        zero = make() if field.default is msgspec.NODEFAULT else field.default
        if zero is not None:
            zeros.append((field.name, zero))
    return tuple(zeros)


def _decode_key(kind: type[Any], value: Any) -> Any:
    if issubclass(kind, PublicKey) and isinstance(value, str):
        return kind.parse(value)
    raise BadPacket("a key is text")


def _encode_key(value: Any) -> Any:
    if isinstance(value, PublicKey):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


_encoder = msgspec.json.Encoder(enc_hook=_encode_key)
_decoders: dict[Any, msgspec.json.Decoder[Any]] = {}


def encode_json(value: GoStruct) -> bytes:
    return _encoder.encode(value)


def decode_json_untrusted(kind: type[S], data: bytes | msgspec.Raw) -> S:
    """Read one message; BadPacket on anything Go would refuse."""
    decoder = _decoders.get(kind)
    if decoder is None:
        decoder = _decoders[kind] = msgspec.json.Decoder(kind, dec_hook=_decode_key)
    try:
        value = decoder.decode(data)
    except (msgspec.MsgspecError, RecursionError, ValueError, OverflowError) as problem:
        raise BadPacket(f"bad {kind.__name__}: {_without_text(problem)}") from None
    if not isinstance(value, kind):
        raise BadPacket(f"bad {kind.__name__}: null")
    return value


def decode_parts_untrusted(kind: type[T], data: bytes | msgspec.Raw) -> T:
    """The outer shape alone, as `dict[str, Raw]` or `tuple[Raw, ...]`; what is inside stays text."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, RecursionError, ValueError) as problem:
        raise BadPacket(f"bad message: {_without_text(problem)}") from None


def _without_text(problem: Exception) -> str:
    """The complaint without quoted input, which may be a secret that landed in the wrong field."""
    return re.sub(r"'[^']*'", "'...'", str(problem))[:200]


def unix_time(moment: datetime | None) -> float:
    """Seconds since 1970; 0.0 for "never"."""
    if moment is None or moment.year == 1:
        return 0.0
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def from_unix_time(seconds: float) -> datetime:
    """The other way; 0.0 gives Go's zero time."""
    return datetime.fromtimestamp(seconds, UTC) if seconds else ZERO_TIME
