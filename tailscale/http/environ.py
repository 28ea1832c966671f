"""A request as WSGI has it: the environ of PEP 3333, made of an ASGI scope.

Knows no threads and no streams. Headers whose name has an underscore are left out: in the environ they could not be
told from those with a dash, which we may have set ourselves.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote_to_bytes

from tailscale.http.caller import Caller, identity_headers, plain_name
from tailscale.http1.asgi import Scope

Environ = dict[str, Any]
NOT_PREFIXED = {"content-type": "CONTENT_TYPE", "content-length": "CONTENT_LENGTH"}
JOINED_BY = {"cookie": "; "}  # RFC 9113, 8.2.3; what else is repeated is a list (RFC 9110, 5.2)
NEVER_PASSED = {"proxy"}  # as HTTP_PROXY, programs take it for a setting of this machine (CVE-2016-5385)
OURS = "tailscale."
OURS_AS_HEADER = b"http-tailscale-"


def environ_of(scope: Scope) -> Environ:
    """All but `wsgi.*`."""
    raw_path = bytes(scope["raw_path"])
    environ: Environ = {
        "REQUEST_METHOD": scope["method"],
        "SCRIPT_NAME": "",
        "PATH_INFO": unquote_to_bytes(raw_path).decode("latin-1"),
        "QUERY_STRING": scope["query_string"].decode("latin-1"),
        "RAW_URI": (raw_path + (b"?" + scope["query_string"] if scope["query_string"] else b"")).decode("latin-1"),
        "SERVER_NAME": scope["server"][0],
        "SERVER_PORT": str(scope["server"][1]),
        "SERVER_PROTOCOL": f"HTTP/{scope['http_version']}",
        "REMOTE_ADDR": scope["client"][0],
        "REMOTE_PORT": str(scope["client"][1]),
        "wsgi.url_scheme": scope["scheme"],
    }
    for name, value in scope["headers"]:
        _add_header(environ, name.decode("latin-1"), value.decode("latin-1"))
    return environ | _identity(scope["extensions"].get("tailscale"))


def _add_header(environ: Environ, name: str, value: str) -> None:
    if "_" in name or name in NEVER_PASSED:
        return
    key = NOT_PREFIXED.get(name) or "HTTP_" + name.upper().replace("-", "_")
    environ[key] = environ[key] + JOINED_BY.get(name, ",") + value if key in environ else value


def with_identity(environ: Environ, caller: Caller | None) -> Environ:
    """An environ of another server: what a client could have said of itself is out, and what is true is in."""
    kept = {key: value for key, value in environ.items() if not _is_ours(key)}
    for name, value in identity_headers(caller):
        _add_header(kept, name.decode(), value.decode())
    return kept | _identity(caller)


def _is_ours(key: str) -> bool:
    return key.startswith(OURS) or plain_name(key.encode("latin-1", "replace")).startswith(OURS_AS_HEADER)


def _identity(caller: Caller | None) -> Environ:
    """`tailscale.user`, `tailscale.node` and so on, and all of it under `tailscale.caller`; nothing for nobody."""
    if caller is None:
        return {}
    return {"tailscale.caller": caller} | {OURS + name: value for name, value in caller.items()}
