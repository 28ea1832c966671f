"""A chat without a server: presence, messages to everybody, and files dropped to one.

TS_AUTHKEY=... python mesh_chat.py alice ["what to say first"]

Then type: text goes to everybody, `/who` says who is there, `/drop NAME PATH` sends a file or folder, `/quit` leaves.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import trio

import tailscale
from tailscale.mesh import Inbox, Lagged, Mesh, PeerJoined, PeerLeft, Store


@dataclass
class Chat:
    text: str


@dataclass
class Presence:
    status: str = "here"


async def read_messages(mesh: Mesh) -> None:
    async with mesh.subscribe("chat", Chat) as inbox:
        async for message in inbox:
            if isinstance(message, Lagged):
                print(f"({message.missed} messages were missed)")
            else:
                print(f"{message.sender.name}: {message.data.text!r}")


async def read_events(mesh: Mesh) -> None:
    async for event in mesh.events():
        if isinstance(event, PeerJoined | PeerLeft):
            print(f"({event.peer.name} {'joined' if isinstance(event, PeerJoined) else 'left'})")


async def read_presence(presence: Store[Presence]) -> None:
    async for change in presence.changes():
        if change.slice is not None:
            print(f"({change.peer.name} is {change.slice.value.status!r})")


async def say(mesh: Mesh, text: str) -> None:
    report = await mesh.broadcast("chat", Chat(text))
    for peer, problem in report.failed.items():
        print(f"({peer.name} did not hear that: {problem})")


async def drop(mesh: Mesh, name: str, path: str) -> None:
    try:
        async with mesh.push(name, path) as transfer:
            async for progress in transfer:
                print(f"({progress.name}: {progress.fraction:.0%})")
        print(f"({name} has {path})")
    except (tailscale.TailscaleError, OSError) as problem:
        print(f"({problem})")


async def talk(mesh: Mesh, presence: Store[Presence]) -> None:
    """What is typed, until the end of it."""
    while line := await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
        match line.split():
            case []:
                continue
            case ["/quit"]:
                return
            case ["/who"]:
                for peer in mesh.peers.values():
                    slice = presence.of(peer)
                    print(f"  {peer.name:16} {slice.value.status if slice else 'no word yet'}")
            case ["/away"]:
                presence.mine = Presence("away")
            case ["/drop", name, path]:
                await drop(mesh, name, path)
            case _:
                await say(mesh, line.rstrip("\n"))


async def main(name: str, first: str) -> None:
    inbox = Inbox(Path(f"{name}-files"), accept=True)
    async with (
        tailscale.Device(name) as device,
        Mesh(device, "chat", name=name, receive=inbox) as mesh,
        mesh.store("presence", Presence) as presence,
        trio.open_nursery() as nursery,
    ):
        presence.mine = Presence()
        nursery.start_soon(read_messages, mesh)
        nursery.start_soon(read_events, mesh)
        nursery.start_soon(read_presence, presence)
        print(f"chatting as {name}, with {', '.join(peer.name for peer in mesh.peers.values()) or 'nobody yet'}")
        if first:
            await say(mesh, first)
        await talk(mesh, presence)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main, sys.argv[1] if len(sys.argv) > 1 else "chat", " ".join(sys.argv[2:]))
