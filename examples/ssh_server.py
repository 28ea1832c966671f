"""A little service that is used by ssh: `ssh notes@notes list`, with no keys and no passwords.

    python ssh_server.py

The tailnet's policy says who may: {"ssh": [{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self"],
"users": ["notes"]}]}.
"""

import trio

import tailscale
from tailscale.ssh import Session, serve_ssh

NOTES: dict[str, list[str]] = {}


async def handler(session: Session) -> int:
    mine = NOTES.setdefault(session.peer.user, [])
    match (session.command or "").split(maxsplit=1):
        case ["list"]:
            await session.stdout.send_all("".join(f"{note}\n" for note in mine))
        case ["add", note] if len(mine) < 1000:
            mine.append(note[:1000])
        case []:
            await session.stdout.send_all(f"hello {session.peer.hostname}: list, or add TEXT\r\n")
        case _:
            await session.stderr.send_all("list, or add TEXT\n")
            return 2
    return 0


async def main() -> None:
    async with tailscale.Device("notes") as device, trio.open_nursery() as nursery:
        await nursery.start(serve_ssh, device, handler)
        print(f"ssh notes@{device.name} list", flush=True)


if __name__ == "__main__":
    trio.run(main)
