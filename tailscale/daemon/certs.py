"""`cert/`: what upstream's `tailscale cert` and `tailscale serve` ask a daemon for: a certificate of its device.

Owns those words. Who may not change the daemon may not have its keys.
"""

from __future__ import annotations

import trio

from tailscale.daemon.answering import Answer, Question, Refused, Routes
from tailscale.daemon.durations import seconds_untrusted
from tailscale.daemon.keeper import Keeper
from tailscale.daemon.localapi import ROOT
from tailscale.device import Device
from tailscale.errors import CertificateError
from ts_base.errors import BadPacket

PLACE = f"{ROOT}cert/"


class Certificates:
    """Those of the daemon's device."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper

    def add_to(self, routes: Routes) -> None:
        routes.add("GET", f"{PLACE}*", self._get, writers=True)

    async def run(self, _: Device) -> None:
        await trio.sleep_forever()

    async def _get(self, question: Question) -> Answer:
        """`cert/NAME?type=pair|crt|key&min_validity=720h`: of a pair the key comes first, as upstream's clients cut."""
        name, kind = question.path.removeprefix(PLACE), question.query.get("type", "")
        if kind not in {"", "crt", "cert", "key", "pair"}:
            raise Refused(400, 'invalid type; want "cert" (default), "key", or "pair"')
        try:
            least = seconds_untrusted(question.query.get("min_validity") or "0")
        except BadPacket as problem:
            raise Refused(400, f"invalid validity parameter: {problem}") from None
        try:
            found = await self._keeper.usable.certificate(name, min_validity=least)
        except CertificateError as problem:
            raise Refused(500, str(problem)) from None
        key = found.key_pem if kind in {"key", "pair"} else b""
        return Answer(key + (found.chain_pem if kind != "key" else b""))
