"""`login` and `logout`: becoming and ceasing to be a device of the tailnet."""

from __future__ import annotations

import argparse

from tailscale.cli.exit_codes import OK
from tailscale.cli.screen import Screen
from tailscale.cli.session import joined, state_path
from tailscale.state_file import FileStore


async def login(options: argparse.Namespace, screen: Screen) -> int:
    async with joined(options, screen) as device:
        node, tailnet = device.node, device.status().tailnet
        where = state_path(options)
        if options.json:
            screen.json(node.to_dict() | {"tailnet": tailnet, "state": str(where) if where is not None else None})
            return OK
        screen.say(("logged in as ", "green"), (node.name, "bold"), f" ({', '.join(node.addresses)})")
        screen.say(f"user {node.user or '-'}, tailnet {tailnet}")
        if node.key_expiry is not None:
            screen.say(f"the key is good until {node.key_expiry:%Y-%m-%d %H:%M} UTC")
        if where is not None:
            screen.say((f"kept in {FileStore(where).path}", "dim"))
    return OK


async def logout(options: argparse.Namespace, screen: Screen) -> int:
    where = state_path(options)
    saved = FileStore(where).load() if where is not None else None
    if saved is None or not saved.registered:
        screen.say("not logged in: nothing to do")
        return OK
    async with joined(options, screen) as device:
        name = device.name
        await device.logout()
    screen.say(f"logged out: {name} has given its key back")
    return OK
