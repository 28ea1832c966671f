"""What h11 forgives and this server must not: it tells callers apart by their connections.

A reverse proxy of one peer may carry several people over one connection. Where it and we could disagree about where a
request ends, one of them could speak as another: such a request is refused and the connection closed. RFC 9112.
"""

from __future__ import annotations

from typing import NamedTuple

OPTIONAL_WHITESPACE = b" \t"
SCHEMES = (b"http", b"https")


class Target(NamedTuple):
    """What a request line asks for."""

    authority: bytes
    """The host it names itself; b"" when the Host header says it."""
    path: bytes
    query: bytes


def objection_to_lines(part: bytes) -> str:
    """Why the lines of a request head or of a trailer section may not be believed; "" if they may."""
    if not part.count(b"\n") == part.count(b"\r\n") == part.count(b"\r"):
        return "a line does not end in CR LF"  # RFC 9112, 2.2
    if b"\r\n " in part or b"\r\n\t" in part:
        return "a field is folded over two lines"  # RFC 9112, 5.2
    return ""


def objection(head: bytes, version: bytes) -> str:
    """Why this request head may not be believed; "" if it may."""
    if problem := objection_to_lines(head):
        return problem
    lines = head.split(b"\r\n")[1:]
    lengths: list[bytes] = []
    is_coded = False
    for line in lines:
        name, _, value = line.partition(b":")
        name = name.lower()
        if name == b"content-length":
            lengths.append(value.strip(OPTIONAL_WHITESPACE))
        is_coded = is_coded or name == b"transfer-encoding"
    if len(lengths) > 1 or not all(length.isdigit() for length in lengths):
        return "Content-Length is not one number"  # RFC 9112, 6.3, rule 5
    if is_coded and lengths:
        return "both Content-Length and Transfer-Encoding were sent"  # RFC 9112, 6.3, rule 3
    if is_coded and version == b"1.0":
        return "HTTP/1.0 has no Transfer-Encoding"  # RFC 9112, 6.1
    return ""


def read_target(method: bytes, target: bytes) -> Target | None:
    """RFC 9112, 3.2, without the form of CONNECT; None for what is none of it."""
    if target == b"*" and method == b"OPTIONS":
        return Target(b"", target, b"")
    if b"#" in target:
        return None
    if target.startswith(b"/"):
        return Target(b"", *_path_and_query(target))
    scheme, separator, rest = target.partition(b"://")
    if not separator or scheme.lower() not in SCHEMES:
        return None
    end = min((at for at in (rest.find(b"/"), rest.find(b"?")) if at >= 0), default=len(rest))
    authority, rest = rest[:end], rest[end:]
    if not authority or b"@" in authority:  # RFC 9110, 4.2.4: a user name in front of a host is there to deceive
        return None
    return Target(authority, *_path_and_query(rest if rest.startswith(b"/") else b"/" + rest))


def _path_and_query(target: bytes) -> tuple[bytes, bytes]:
    path, _, query = target.partition(b"?")
    return path, query


def expects_the_impossible(headers: list[tuple[bytes, bytes]]) -> bool:
    """Whether something but `100-continue` is expected of us (RFC 9110, 10.1.1)."""
    expected = b",".join(value for name, value in headers if name == b"expect").lower()
    return any(word.strip(OPTIONAL_WHITESPACE) not in (b"", b"100-continue") for word in expected.split(b","))
