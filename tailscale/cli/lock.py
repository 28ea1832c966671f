"""The command `lock`: whether the tailnet has a lock, who is signed and who is not, signing, and what was changed."""

from __future__ import annotations

import argparse

from tailscale.cli.exit_codes import OK
from tailscale.cli.screen import Screen
from tailscale.cli.session import joined


async def lock(options: argparse.Namespace, screen: Screen) -> int:
    if (options.node is None) == (options.verb == "sign"):
        raise ValueError("lock sign NODE [tlpub:...]; lock status and lock log take nothing more")
    async with joined(options, screen) as device:
        if options.verb == "sign":
            await device.lock.sign(options.node, options.rotation_key)
            screen.say(f"signed {options.node}")
            return OK
        status = device.lock
        if options.json:
            found = status.to_dict()
            screen.json(found["log"] if options.verb == "log" else {k: v for k, v in found.items() if k != "log"})
        elif options.verb == "status":
            for line in str(status).splitlines():
                screen.say(line)
        else:
            for change in status.log:
                screen.say((change.hash, "bold"), f"  {change.kind}  {change.detail}")
                for signer in change.signed_by:
                    screen.say((f"  signed by {signer}", "dim"))
    return OK
