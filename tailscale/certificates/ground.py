"""What a device lends to a source of certificates: its names, records by the control server, a way outside, a shelf.

Owns what these are called when they fail. Refuses to know which source asks.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tailscale.certificates.challenges import Challenges
from tailscale.certificates.shelf import shelf_of
from tailscale.certificates.source import Exchange
from tailscale.errors import CertificateError
from tailscale.runtime.control_actor import ControlActor
from tailscale.runtime.directory import Directory
from tailscale.runtime.health import readable
from tailscale.runtime.network import HostNetwork, Network
from tailscale.state_file import NamedStore
from ts_acme.messages import NAME
from ts_base.errors import BadPacket
from ts_control.errors import ControlLost, RequestRefused
from ts_control.gojson import encode_json
from ts_control.outside import Outside
from ts_control.wire import CAPABILITY_VERSION
from ts_control.wire_register import SetDnsRequest

SET_DNS = "/machine/set-dns"
WILDCARDS = "dns-subdomain-resolve"  # the attribute of a node below whose name every name is its own
MOST_NAMES = 32


class DeviceGround:
    """One device's."""

    def __init__(
        self,
        directory: Directory,
        control: ControlActor,
        network: Network,
        store: NamedStore,
        challenges: Challenges,
    ) -> None:
        self._directory = directory
        self._control = control
        self._network = network
        self.shelf = shelf_of(store)
        self.carried, self.answer_tls = challenges.is_carried, challenges.answering
        self.wall_clock, self.entropy = network.wall_clock, network.entropy

    @property
    def control_url(self) -> str:
        return self._directory.control_url

    @property
    def name(self) -> str:
        return self._directory.self_node().name.rstrip(".").lower()

    @property
    def certificate_names(self) -> tuple[str, ...]:
        netmap = self._directory.netmap
        if netmap is None:
            return ()
        said = (name.lower().rstrip(".") for name in netmap.dns.cert_domains[:MOST_NAMES])
        names = tuple(filter(NAME.fullmatch, said))  # they become names of files
        if WILDCARDS in netmap.self_node.cap_map:
            return names + tuple(f"*.{name}" for name in names)
        return names

    @asynccontextmanager
    async def exchanging(self, tls: ssl.SSLContext | None) -> AsyncIterator[Exchange]:
        environment = os.environ if isinstance(self._network, HostNetwork) else {}
        async with Outside(self._network, tls=tls, environment=environment).keeping() as kept:
            yield kept.fetch

    async def publish_text(self, name: str, value: str) -> None:
        key = self._control.machine.node_key.public
        request = SetDnsRequest(CAPABILITY_VERSION, key, name, "TXT", value)
        where = self.control_url
        try:
            await self._control.ask("POST", SET_DNS, encode_json(request))
        except ControlLost as problem:
            raise CertificateError(f"no certificate: {problem}. Try again when the control server is there") from None
        except (RequestRefused, BadPacket) as problem:
            raise CertificateError(
                f"no certificate: {where} does not write the record {name}: {readable(str(problem))}. Headscale writes "
                "none: use a certificate of your own, Device(certificates=FileCertificates(...))"
            ) from None
