"""Files by Taildrop: the daemon's inbox, and what upstream's `tailscale file` asks of it.

Owns the spool, which lies beside the state, and `file-targets`, `file-put/` and `files/`. Knows the disk by the spool.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import trio

from tailscale.daemon import ipn
from tailscale.daemon.answering import Answer, Question, Refused, Routes, json_answer
from tailscale.daemon.keeper import Keeper
from tailscale.daemon.localapi import ROOT
from tailscale.daemon.parts import Started
from tailscale.device import Device
from tailscale.taildrop import Inbox, TransferFailed, TransferRefused, send
from tailscale.taildrop.events import FileArrived
from tailscale.taildrop.names import objection_to_name
from tailscale.taildrop.recipients import all_targets
from tailscale.taildrop.spool import Spool
from tailscale.taildrop.wire import SHARING_ENABLED

log = logging.getLogger("tailscale.daemon")
PIECE = 1 << 18
LONGEST_WAIT = 3600.0
KIND = "application/octet-stream"


class Taildrop:
    """Those of one daemon."""

    def __init__(self, keeper: Keeper, folder: Path) -> None:
        self._keeper = keeper
        self._default = folder
        self.spool = Spool(folder)

    def add_to(self, routes: Routes) -> None:
        routes.add("GET", f"{ROOT}file-targets", self._targets, writers=False)
        routes.add("PUT", f"{ROOT}file-put/*", self._put)
        routes.add("GET", f"{ROOT}files/*", self._get, writers=True)
        routes.add("DELETE", f"{ROOT}files/*", self._delete)

    async def run(self, device: Device, keys: dict[str, Any], started: Started) -> None:
        """The part `[taildrop]`: take what comes, while this device is usable."""
        self.spool.move(_folder(keys) or self._default)
        options: dict[str, Any] = {name: keys[name] for name in ("largest", "quota", "exists") if name in keys}
        async with Inbox(device, self.spool.folder, accept=keys.get("accept", True), **options) as inbox:
            await trio.to_thread.run_sync(self.spool.waiting)
            with device.include("taildrop", self.spool):
                started(str(self.spool.folder))
                async for file in inbox:
                    log.info("%s sent a file of %d bytes", file.sender.hostname, file.size)
                    waiting = await trio.to_thread.run_sync(self.spool.waiting)
                    self.spool.tell()
                    self._keeper.say(FileArrived(file.name, file.size, file.sender.hostname, len(waiting)))
        await trio.sleep_forever()

    # Upstream's paths

    async def _targets(self, _: Question) -> Answer:
        await trio.lowlevel.checkpoint()
        device = self._keeper.usable
        netmap = device.netmap
        if netmap is None or SHARING_ENABLED not in device.node.capabilities:
            raise Refused(500, "file sharing not enabled by Tailscale admin")
        nodes = {target.node.id: target for target in all_targets(device)}
        return json_answer(
            [{"Node": ipn.node_json(netmap.peers[n], netmap), "PeerAPIURL": t.url} for n, t in nodes.items()]
        )

    async def _put(self, question: Question) -> Answer:
        """`file-put/<stable id>/<name>`: the body goes on as it comes."""
        device = self._keeper.usable
        peer, _, name = question.path.removeprefix(f"{ROOT}file-put/").partition("/")
        length = question.headers.get(b"content-length", b"").decode("latin-1")
        if objection := objection_to_name(name):
            raise Refused(400, f"a name {objection}")
        size = int(length) if length.isdigit() else None
        try:
            await send(device, peer, question.chunks(), name=name, size=size)
        except TransferRefused as problem:
            raise Refused(403, str(problem)) from problem
        except TransferFailed as problem:
            raise Refused(502, problem.failed.get(name, str(problem))) from problem
        return json_answer({})

    async def _get(self, question: Question) -> Answer:
        name = question.path.removeprefix(f"{ROOT}files/")
        if not name:
            return await self._list(question.query.get("waitsec") or "0")
        try:
            descriptor, size = await trio.to_thread.run_sync(self.spool.open, name)
        except OSError as error:
            raise Refused(404, f"no such file waits: {error.strerror}") from error
        return Answer(_pieces(descriptor), kind=KIND, headers={"content-length": str(size)})

    async def _list(self, seconds: str) -> Answer:
        if not seconds.isdigit():
            raise Refused(400, "invalid waitsec")
        found = await self.spool.until(min(float(seconds), LONGEST_WAIT)) if int(seconds) else None
        waiting = found if found is not None else await trio.to_thread.run_sync(self.spool.waiting)
        return json_answer([{"Name": file.name, "Size": file.size} for file in waiting] or None)

    async def _delete(self, question: Question) -> Answer:
        try:
            await trio.to_thread.run_sync(self.spool.remove, question.path.removeprefix(f"{ROOT}files/"))
        except OSError as error:
            raise Refused(404, f"no such file waits: {error.strerror}") from error
        self.spool.tell()
        return Answer(status=204)


def _folder(keys: dict[str, Any]) -> Path | None:
    return Path(keys["folder"]).expanduser() if "folder" in keys else None


async def _pieces(descriptor: int) -> AsyncIterator[bytes]:
    try:
        while data := await trio.to_thread.run_sync(os.read, descriptor, PIECE):
            yield data
    finally:
        os.close(descriptor)
