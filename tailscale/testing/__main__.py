"""`python -m tailscale.testing`: a tailnet on this machine's loopback to play with, until Ctrl-C.

Prints what a client needs: control URL and a reusable auth key. Any client may join: ours, tailscaled, tsnet.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import trio

from tailscale.testing.tailnet import Tailnet


async def serve(policy: str | None, as_json: bool) -> None:
    async with Tailnet(real=True, policy=policy) as net:
        key = net.auth_key(reusable=True, lifetime=0.0)
        if as_json:
            print(json.dumps({"control_url": net.control.url, "auth_key": key}), flush=True)
        else:
            print(f"control  {net.control.url}\nauth key {key}\n", flush=True)
            print(f"  TS_CONTROL_URL={net.control.url} TS_AUTHKEY={key} python your_program.py", flush=True)
            print(f"  tailscale up --login-server={net.control.url} --auth-key={key}\n\nCtrl-C ends it.", flush=True)
        await trio.sleep_forever()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tailscale.testing", description=__doc__)
    parser.add_argument("--policy", type=Path, help="a policy file (HuJSON); without one everything is allowed")
    parser.add_argument("--json", action="store_true", help="print one JSON line instead of text")
    options = parser.parse_args()
    try:
        trio.run(serve, options.policy.read_text() if options.policy else None, options.json)
    except* KeyboardInterrupt:
        print()


if __name__ == "__main__":
    main()
