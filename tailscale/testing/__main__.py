"""`python -m tailscale.testing`: a tailnet on this machine's loopback to play with, until Ctrl-C or for one command.

Prints what a client needs: control URL and a reusable auth key. Any client may join: ours, tailscaled, tsnet. A
command, as in `python -m tailscale.testing -- python x.py`, has them in its environment; the tailnet ends with it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import trio

from tailscale.testing.tailnet import Tailnet


async def serve(policy: str | None, as_json: bool, command: Sequence[str]) -> int:
    async with Tailnet(real=True, policy=policy) as net:
        url, key = net.control.url, net.auth_key(reusable=True, lifetime=0.0)
        if command:
            environment = os.environ | {"TS_CONTROL_URL": url, "TS_AUTHKEY": key}
            return (await trio.run_process(command, env=environment, check=False, stdin=None)).returncode
        if as_json:
            print(json.dumps({"control_url": url, "auth_key": key}), flush=True)
        else:
            print(f"export TS_CONTROL_URL={url} TS_AUTHKEY={key}", flush=True)
            print(f"# or: tailscale up --login-server={url} --auth-key={key}\n# Ctrl-C ends it.", flush=True)
        await trio.sleep_forever()
    return 0


def stay_behind(arguments: Sequence[str]) -> int:
    """Leave a tailnet running for the shell that evaluates what is printed, as ssh-agent does."""
    command = [sys.executable, "-m", "tailscale.testing", "--json", *arguments]
    nowhere = subprocess.DEVNULL  # whoever reads our output must not wait for the end of theirs
    server = subprocess.Popen(  # noqa: S603
        command, stdin=nowhere, stdout=subprocess.PIPE, stderr=nowhere, start_new_session=True, text=True
    )
    assert server.stdout is not None
    line = server.stdout.readline()
    if not line:
        print(f"the tailnet did not start: {' '.join(command)} says why", file=sys.stderr)
        return 1
    told = json.loads(line)
    print(f"export TS_CONTROL_URL={told['control_url']} TS_AUTHKEY={told['auth_key']} TS_TAILNET_PID={server.pid};")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tailscale.testing", description=__doc__)
    parser.add_argument("--policy", type=Path, help="a policy file (HuJSON); without one everything is allowed")
    parser.add_argument("--json", action="store_true", help="print one JSON line instead of a line for the shell")
    parser.add_argument(
        "--export",
        action="store_true",
        help='for `eval "$(python -m tailscale.testing --export)"`: it stays until `kill $TS_TAILNET_PID`',
    )
    parser.add_argument("command", nargs="*", help="what to run in it, after --")
    options = parser.parse_args()
    if options.export:
        return stay_behind(["--policy", str(options.policy)] if options.policy else [])
    policy = options.policy.read_text() if options.policy else None
    if options.command and shutil.which(options.command[0]) is None:
        print(f"{parser.prog}: there is no command {options.command[0]!r}", file=sys.stderr)
        return 127
    code = 130
    try:
        code = trio.run(serve, policy, options.json, options.command)
    except* KeyboardInterrupt:
        print()
    return code


if __name__ == "__main__":
    sys.exit(main())
