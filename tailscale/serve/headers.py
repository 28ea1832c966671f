"""What a server behind us is told of the caller, in upstream's headers, and what no caller may say of himself.

Owns the names and their spelling (ipnlocal/serve.go: addProxyForwardedHeaders and what follows it). Anything that came
under one of these names is taken out, in every spelling that some reader takes for it.
"""

from __future__ import annotations

import json
from typing import Any

from tailscale.http.caller import OURS, Caller, plain_name
from tailscale.http1.asgi import Headers
from ts_proxy import http_rules

FORWARDED = b"x-forwarded"
NOT_THE_CLIENTS = (OURS, FORWARDED, b"forwarded", b"x-real-ip")  # and all that begin so
ABOUT = (b"tailscale-headers-info", b"https://tailscale.com/s/serve-headers")
FROM_FUNNEL = (b"tailscale-funnel-request", b"?1")
WORD_OPENS, WORD_ENDS = "=?utf-8?q?", "?="
LONGEST_WORD = 75 - len(WORD_OPENS) - len(WORD_ENDS)  # RFC 2047, 2


def head_for_server(
    came: Headers,
    *,
    host: bytes,
    is_modern: bool,
    is_secure: bool,
    client: str,
    caller: Caller | None,
    is_funnel: bool,
    accept_caps: tuple[str, ...],
) -> Headers:
    """A request's head for the server behind a mount. `host` is what it gets as Host; a Unix socket has none."""
    asked_for = next((value for name, value in came if name == b"host"), b"")
    kept = [(name, value) for name, value in came if not _is_ours(name) and name != b"host"]
    head = [(b"host", host or asked_for), *http_rules.relayed_head(kept, is_modern=is_modern)]
    head += [(b"x-forwarded-host", asked_for), (b"x-forwarded-for", client.encode())]
    if is_secure:
        head.append((b"x-forwarded-proto", b"https"))
    if is_funnel:
        return [*head, FROM_FUNNEL]
    return head + identity(caller) + capabilities(caller, accept_caps)


def _is_ours(name: bytes) -> bool:
    return plain_name(name).startswith(NOT_THE_CLIENTS)


def identity(caller: Caller | None) -> Headers:
    """Of people only: a tagged node is nobody's."""
    if caller is None or not caller["user"]:
        return []
    return [
        (b"tailscale-user-login", in_header(caller["user"])),
        (b"tailscale-user-name", in_header(caller["name"])),
        (b"tailscale-user-profile-pic", in_header(caller["picture"])),
        ABOUT,
    ]


def capabilities(caller: Caller | None, accepted: tuple[str, ...]) -> Headers:
    """Those of the caller that the mount wants to hear of."""
    if caller is None or not accepted:
        return []
    held: dict[str, Any] = caller["capabilities"]
    told = {name: held[name] for name in sorted(accepted) if name in held}
    text = json.dumps(told, separators=(",", ":"), ensure_ascii=False)
    return [(b"tailscale-app-capabilities", in_header(text))] if told else []


def in_header(text: str) -> bytes:
    """ASCII as it is; anything else in RFC 2047's Q encoding, cut between letters, as Go's mime package writes it."""
    if all(" " <= letter <= "~" or letter == "\t" for letter in text):
        return text.encode()
    try:
        letters = [letter.encode() for letter in text]
    except UnicodeEncodeError:
        return b""
    words, word = [], ""
    for letter in letters:
        coded = "".join(map(_q, letter))
        if len(word) + len(coded) > LONGEST_WORD:
            words.append(word)
            word = ""
        word += coded
    return " ".join(f"{WORD_OPENS}{each}{WORD_ENDS}" for each in (*words, word)).encode()


def _q(byte: int) -> str:
    if byte == 0x20:
        return "_"
    return chr(byte) if 0x21 <= byte <= 0x7E and chr(byte) not in "=?_" else f"={byte:02X}"
