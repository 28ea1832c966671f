"""The rig: real Headscale, derper, tsnet, tailscaled and friends, as async context managers.

    async with rig() as r:                                   # a folder for logs and keys
        async with r.derper() as relay, r.headscale(regions=[relay.region]) as hs:
            key = await hs.auth_key()
            async with r.tsnet(hs, key, "db") as db: ...

Everything listens on loopback, on ports nobody else was given, and dies with this process.
"""

from tests.interop.processes import Json, RigError
from tests.interop.rig.derper import Derper
from tests.interop.rig.headscale import HEADSCALE, Headscale
from tests.interop.rig.launch import Rig, rig
from tests.interop.rig.pebble import Pebble, pebble
from tests.interop.rig.tailscaled import Tailscaled
from tests.interop.rig.testcontrol import Testcontrol
from tests.interop.rig.tsnet import TsnetPeer

__all__ = [
    "HEADSCALE", "Derper", "Headscale", "Json", "Pebble", "Rig", "RigError", "Tailscaled", "Testcontrol", "TsnetPeer",
    "pebble", "rig",
]  # fmt: skip
