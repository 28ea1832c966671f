"""The commands of a mesh: `ls`, `send`, `recv`, `wait`, `watch`, and `tcp` beside them. Each has a `--json` form.

What others wrote is shown as text: it reaches no terminal raw.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

import trio

from tailscale.cli.exit_codes import FAILED, OK, USAGE
from tailscale.cli.peers_table import presence
from tailscale.cli.pipes import StandardInput
from tailscale.cli.screen import Screen, in_time
from tailscale.cli.session import joined, meshed
from tailscale.cli.streams import exchange
from tailscale.errors import ConnectionTimedOut
from tailscale.events import Lagged

if TYPE_CHECKING:
    from tailscale.mesh import MeshPeer, Message

AGAIN = 0.5  # seconds until a member that did not answer is tried again
MOST_INPUT = 16 << 20


async def ls(options: argparse.Namespace, screen: Screen) -> int:
    async with meshed(options, screen, options.app) as mesh:
        members = {peer.node.stable_id: peer for peer in mesh.peers.values()}
        others = [node for node in mesh.device.peers.values() if node.stable_id not in members] if options.all else []
        if options.json:
            screen.json([*(_peer_dict(peer) for peer in members.values()), *(_node_dict(node) for node in others)])
            return OK
        rows: list[Any] = [(peer.name, presence(peer.node), *_long(peer) * options.long) for peer in members.values()]
        rows += [(node.hostname, ("no member", "dim"), *("-", "-", "-") * options.long) for node in others]
        if rows:
            screen.table(("NAME", "STATE", *("ADDRESS", "MESH ID", "SESSION") * options.long), rows)
        else:
            screen.note(f"nobody else is in the mesh {options.app!r}; -a shows all peers")
    return OK


def _long(peer: MeshPeer) -> tuple[str, str, str]:
    session = "connected" if peer.connected else "-"
    return peer.node.ipv4 or peer.node.ipv6 or "-", peer.id or "-", session


async def send(options: argparse.Namespace, screen: Screen) -> int:
    if options.all == (options.peer is not None):
        screen.note(("pytailscale: ", "bold red"), "send takes a peer and a text, or --all and a text")
        return USAGE
    async with meshed(options, screen, options.app) as mesh:
        text = options.text if options.text != "-" else await _standard_input()
        if not options.all:
            peer = await mesh.peer(options.peer, timeout=options.timeout)
            await peer.send(options.namespace, text, timeout=options.timeout)
            if options.json:
                screen.json({"delivered": [_peer_dict(peer)], "failed": []})
            return OK
        report = await mesh.broadcast(options.namespace, text, timeout=options.timeout)
        failed = [{**_peer_dict(peer), "error": str(problem)} for peer, problem in report.failed.items()]
        if options.json:
            screen.json({"delivered": [_peer_dict(peer) for peer in report.delivered], "failed": failed})
        else:
            screen.note(f"{len(report.delivered)} of {len(report.delivered) + len(failed)} hold it")
            for peer, problem in report.failed.items():
                screen.note((f"{peer.name}: ", "yellow"), str(problem))
        return OK if report.delivered or not failed else FAILED


async def _standard_input() -> str | bytes:
    """All of it: text if it is text, else bytes."""
    source, data = StandardInput(), bytearray()
    while piece := await source.receive():
        data += piece
        if len(data) > MOST_INPUT:
            raise ValueError(f"a message has at most {MOST_INPUT} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError:
        return bytes(data)


async def recv(options: argparse.Namespace, screen: Screen) -> int:
    async with meshed(options, screen, options.app) as mesh:
        sender = await mesh.peer(options.sender, timeout=options.timeout) if options.sender is not None else None
        left = options.count
        async with mesh.subscribe(options.namespace, object) as inbox:
            screen.show(f"waiting for {options.namespace} as {mesh.name}")
            async for message in inbox:
                if isinstance(message, Lagged) or sender not in (None, message.sender):
                    continue
                _show(message, options, screen)
                left = left - 1 if left is not None else None
                if left == 0:
                    break
    return OK


def _show(message: Message[Any], options: argparse.Namespace, screen: Screen) -> None:
    data = message.data
    if options.json:
        text = data.hex() if isinstance(data, bytes) else data
        form = {"hex": text} if isinstance(data, bytes) else {"data": text}
        sent_at = message.sent_at.isoformat() if message.sent_at is not None else None
        screen.json_line({"from": _peer_dict(message.sender), "namespace": message.namespace, "kind": message.kind}
                         | form | {"sent_at": sent_at})  # fmt: skip
    else:
        text = data if isinstance(data, str) else data.decode("utf-8", "replace") if isinstance(data, bytes) else data
        for line in str(text).splitlines() or [""]:
            screen.say((f"{message.sender.name}: ", "cyan"), line)


async def wait(options: argparse.Namespace, screen: Screen) -> int:
    async with meshed(options, screen, options.app) as mesh:
        began = trio.current_time()
        deadline = began + options.timeout
        while not (peer := await mesh.peer(options.peer, timeout=deadline - trio.current_time())).connected:
            if trio.current_time() + AGAIN > deadline:
                raise ConnectionTimedOut(f"{options.peer} is in the mesh, and does not answer")
            await trio.sleep(AGAIN)
        if options.json:
            screen.json(_peer_dict(peer))
        else:
            screen.say((peer.name, "bold"), f" after {in_time(trio.current_time() - began)}")
    return OK


async def watch(options: argparse.Namespace, screen: Screen) -> int:
    async with meshed(options, screen, options.app) as mesh:
        for peer in mesh.peers.values():
            _show_event("PeerJoined", peer, "", options, screen)
        async for event in mesh.events():
            about: Any = getattr(event, "peer", None)
            _show_event(type(event).__name__, about, str(getattr(event, "reason", "")), options, screen)
    return OK


def _show_event(kind: str, peer: MeshPeer | None, detail: str, options: argparse.Namespace, screen: Screen) -> None:
    if options.json:
        screen.json_line({"event": kind, "peer": _peer_dict(peer) if peer is not None else None, "detail": detail})
    else:
        name = peer.name if peer is not None else ""
        screen.say((f"{kind.removeprefix('Peer').lower():14}", "dim"), (name, "bold"), f"  {detail}" if detail else "")


async def tcp(options: argparse.Namespace, screen: Screen) -> int:
    host, port = options.target
    async with joined(options, screen) as device:
        began = trio.current_time()
        stream = await device.tcp_connect(host, port, timeout=options.timeout)
        async with stream:
            took, path = trio.current_time() - began, str(stream.path)
            if not options.check:
                await exchange(stream)
            elif options.json:
                screen.json({"host": host, "port": port, "seconds": round(took, 6), "path": path})
            else:
                screen.say((f"{host} port {port} answers", "green"), f" after {in_time(took)} by {path}")
    return OK


def _peer_dict(peer: MeshPeer) -> dict[str, Any]:
    node = peer.node
    return {
        "name": peer.name,
        "id": peer.id,
        "node": node.name,
        "addresses": list(node.addresses),
        "member": True,
        "online": peer.online,
        "connected": peer.connected,
        "features": sorted(peer.features),
    }


def _node_dict(node: Any) -> dict[str, Any]:
    return {
        "name": node.hostname,
        "id": "",
        "node": node.name,
        "addresses": list(node.addresses),
        "member": False,
        "online": bool(node.online),
        "connected": False,
        "features": [],
    }
