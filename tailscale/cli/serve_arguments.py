"""What may be typed after `serve` and `funnel`, in upstream's words. Owns that part of the parser; knows no device."""

from __future__ import annotations

import argparse
from typing import Any

from tailscale.cli.ports import port

VERBS = ("status", "reset", "get-config", "set-config", "set-raw")
OF_SERVICES = ("drain", "advertise", "clear")


def add_serve(adder: Any) -> None:
    serve = adder.add("serve", "publish a web server, a folder, a text or a TCP port of this machine", json=True)
    serve.set_defaults(funnel=False)
    _add_common(serve, f"or {', '.join(OF_SERVICES)} and a Service; ")
    serve.add_argument(
        "--service",
        metavar="svc:NAME",
        type=_service,
        help="at the addresses of this Service, from now on, by the daemon",
    )
    serve.add_argument(
        "--accept-app-caps",
        metavar="NAMES",
        type=_names,
        default=(),
        help="capabilities of callers that it is told of",
    )


def add_funnel(adder: Any) -> None:
    funnel = adder.add("funnel", "publish the same on the internet, for everybody", json=True)
    funnel.set_defaults(funnel=True, http=None, accept_app_caps=(), service=None)
    _add_common(funnel, "")


def _add_common(parser: Any, more: str) -> None:
    parser.add_argument(
        "what",
        nargs="+",
        metavar="TARGET",
        help=f"a port, URL, unix:/path, folder, file or text:words; then `off` to end it; {more}"
        f"or one of {', '.join(VERBS)}, of which the files are read or written",
    )
    add_kinds(parser, has_http=not parser.get_default("funnel"))
    parser.add_argument("--bg", action="store_true", help="have the daemon serve it from now on")
    parser.add_argument("--set-path", metavar="PATH", default="/", help="of the web server, where it stands (/)")
    parser.add_argument(
        "--proxy-protocol", type=int, choices=(1, 2), default=0, help="of TCP: say first who calls, by a PROXY header"
    )


def add_kinds(parser: argparse.ArgumentParser, *, has_http: bool) -> None:
    """How a port is served; one of them, or HTTPS at 443."""
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--https", type=port, metavar="PORT", help="HTTPS, with the tailnet's certificate (443)")
    if has_http:
        kinds.add_argument("--http", type=port, metavar="PORT", help="HTTP, which is private inside the tailnet too")
    kinds.add_argument("--tcp", type=port, metavar="PORT", help="bytes as they come")
    kinds.add_argument("--tls-terminated-tcp", type=port, metavar="PORT", help="the same with TLS taken off")


def _service(text: str) -> str:
    from ts_control.services import PREFIX, label_of  # --help should not wait for it

    try:
        return f"{PREFIX}{label_of(text)}"
    except ValueError as problem:
        raise argparse.ArgumentTypeError(str(problem)) from None


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.split(",") if name)
