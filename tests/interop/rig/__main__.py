"""A tailnet of the rig kept running for a human: `python -m tests.interop.rig up --json FILE`."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import time

import trio

from tests.interop import build
from tests.interop.processes import Json
from tests.interop.rig import rig


async def _up(options: argparse.Namespace) -> None:
    # The receiver is open to the very end: a second Ctrl-C must not interrupt the clearing up.
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with contextlib.AsyncExitStack() as stack:
            await _serve(options, stack)
            async for _ in signals:
                break


async def _serve(options: argparse.Namespace, stack: contextlib.AsyncExitStack) -> None:
    r = await stack.enter_async_context(rig("up", keep=options.keep))
    relay = await stack.enter_async_context(r.derper(tls=not options.derp_http))
    hs = await stack.enter_async_context(
        r.headscale(options.headscale, regions=[] if options.embedded_derp else [relay.region],
                    tls=options.tls, embedded_derp=options.embedded_derp)
    )  # fmt: skip
    key = await hs.auth_key()
    db = await stack.enter_async_context(
        r.tsnet(hs, key, "db", derp_http=options.derp_http, relay_only=options.relay_only)
    )
    said: Json = {
        "control_url": hs.url,
        "auth_key": key,
        "ca_file": str(hs.ca or ""),
        "metrics_url": hs.metrics_url,
        "domain": hs.domain,
        "derp_region": relay.region,
        "derp_http": options.derp_http,
        "headscale": [str(hs.binary), "-c", str(hs.folder / "hs.yaml")],
        "logs": str(r.folder),
        "peers": {db.name: {"ip4": db.ip4, "ip6": db.ip6, "join_ms": db.join_ms}},
        "pid": os.getpid(),
    }
    if options.json:
        partial = trio.Path(f"{options.json}.{os.getpid()}")
        await partial.write_text(json.dumps(said, indent=1) + "\n")
        await partial.rename(options.json)
    print(json.dumps(said, indent=1), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.interop.rig", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="one Headscale, one derper and a tsnet peer named db, until killed")
    up.add_argument("--json", help="write the control URL, an auth key and the rest to this file once ready")
    up.add_argument("--headscale", default="0.29.2", help="version (0.29.2 or 0.28.0)")
    up.add_argument("--tls", action="store_true", help="control over https with a private CA (ca_file)")
    up.add_argument("--derp-http", action="store_true", help="the relay speaks plain HTTP")
    up.add_argument("--embedded-derp", action="store_true", help="Headscale's own relay (plain unless --tls)")
    up.add_argument("--relay-only", action="store_true", help="db refuses direct paths")
    up.add_argument("--keep", action="store_true", help="keep logs and keys at the end")
    options = parser.parse_args()
    started = time.monotonic()
    lacking = build.missing((f"headscale-{options.headscale}", "derper", "tsnetpeer"))
    if (lacking and build.main(lacking) != 0) or build.missing(tuple(lacking)):
        return 1
    print(f"starting (peers ready after {time.monotonic() - started:.0f} s) ...", file=sys.stderr, flush=True)
    trio.run(_up, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
