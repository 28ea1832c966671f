"""What watches a device asks of the daemon: looks at it, one after the other, and which exit node it uses.

The looks are those of `tailscale.metrics.view`; `pytailscale top` is made of them.
"""

from __future__ import annotations

import time
from typing import Any

import trio

from tailscale.daemon.answering import Answer, Question, Routes, json_answer, lines_answer
from tailscale.daemon.keeper import Keeper
from tailscale.daemon.own_api import ROOT, OwnApi, every, interval_of
from tailscale.errors import DeviceClosed, DeviceNotReady
from tailscale.metrics import view


class Views:
    """The handlers."""

    def __init__(self, keeper: Keeper, own_api: OwnApi) -> None:
        self._keeper = keeper
        self._own_api = own_api

    def add_to(self, routes: Routes) -> None:
        routes.add("GET", f"{ROOT}view", self._view, writers=True)
        routes.add("POST", f"{ROOT}exit", self._exit)

    async def _view(self, question: Question) -> Answer:
        await trio.lowlevel.checkpoint()
        interval = interval_of(question)
        return json_answer(self._look()) if interval is None else lines_answer(every(interval, self._look))

    def _look(self) -> dict[str, Any]:
        """One look; without a device why there is none."""
        try:
            return view(self._keeper.device)
        except (DeviceNotReady, DeviceClosed) as error:
            login = self._keeper.login_url
            problem = f"to let this device into the tailnet, open {login}" if login else str(error)
            return {"at": time.time(), "state": self._own_api.state(), "problem": problem}

    async def _exit(self, question: Question) -> Answer:
        name = (await question.json()).get("exit_node")
        if name is not None and not isinstance(name, str):
            raise ValueError("exit_node is a name, or null for none")
        device = self._keeper.usable
        if name and name not in {each for one in device.exit_nodes for each in (one.node.hostname, one.node.stable_id)}:
            raise ValueError(f"{name!r} is no exit node of this tailnet: `device.exit_nodes` has them")
        await device.set(exit_node=name or None)
        return json_answer({"exit_node": name or None})
