"""A service that decides by identity: machines with a tag, people by name, and a capability from the policy.

TS_AUTHKEY=... python whois_auth.py tag:ci alice@example.com
A grant in the policy may say more: {"app": {"example.com/cap/greeter": [{"greeting": "welcome back"}]}}
"""

from __future__ import annotations

import sys
from contextlib import suppress
from functools import partial

import trio

import tailscale

CAPABILITY = "example.com/cap/greeter"


async def answer(device: tailscale.Device, allowed: frozenset[str], stream: tailscale.TcpStream) -> None:
    async with stream:
        caller = await device.whois(stream.remote_address)
        if allowed & {caller.user, *caller.node.tags}:
            granted = caller.capabilities.get(CAPABILITY) or [{}]
            words = f"{granted[0].get('greeting', 'welcome')}, {caller.node.hostname}\n"
        else:
            words = "not for you\n"
        print(f"{caller.node.hostname}: {words}", end="", flush=True)
        with suppress(trio.BrokenResourceError):  # a caller may vanish; the door stays open
            await stream.send_all(words.encode())


async def main(allowed: frozenset[str]) -> None:
    async with tailscale.Device("club") as device:
        listener = await device.listen(4000)
        print("the door is open", flush=True)
        await trio.serve_listeners(partial(answer, device, allowed), [listener])


if __name__ == "__main__":
    trio.run(main, frozenset(sys.argv[1:]))
