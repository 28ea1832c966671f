"""The socket under the port mapper: finds the gateway, carries its datagrams, and makes UPnP's HTTP calls.

Never blocks a start and never fails it: no gateway, no mapping. Only on the host's own network; a virtual one has no
router to ask.
"""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module

import trio

from tailscale.runtime.network import HostNetwork, Network
from tailscale.runtime.supervision import Supervision
from ts_base.errors import BadPacket
from ts_base.ip import format_address, maybe_address, parse_address
from ts_dataplane import upnp
from ts_dataplane.portmap import GATEWAY_PORT, RETRY_AFTER, PortMapper

HTTP_TIMEOUT = 5.0
GATEWAY_TIMEOUT = 3.0
PROC_ROUTES = "/proc/net/route"
_DARWIN_GATEWAY = re.compile(r"^\s*gateway:\s*(\S+)\s*$", re.MULTILINE)
_WINDOWS_GATEWAY = re.compile(r"^\s*0\.0\.0\.0\s+0\.0\.0\.0\s+(\d+\.\d+\.\d+\.\d+)\s", re.MULTILINE)


def linux_gateway(table: str) -> str | None:
    """The default gateway in the text of /proc/net/route: little-endian hexadecimal, in the third column."""
    for line in table.splitlines()[1:]:
        columns = line.split()
        if len(columns) > 3 and columns[1] == "00000000" and int(columns[3], 16) & 2:
            return format_address(bytes.fromhex(columns[2])[::-1])
    return None


def gateway_in(pattern: re.Pattern[str], text: str) -> str | None:
    match = pattern.search(text)
    address = maybe_address(match[1]) if match else None
    return format_address(address) if address is not None else None


async def find_gateway() -> str | None:
    """The default gateway's IPv4 address, as far as this system tells."""
    try:
        if sys.platform == "linux":
            return linux_gateway(await trio.Path(PROC_ROUTES).read_text())
        windows = sys.platform == "win32"
        command = ["route", "print", "0.0.0.0"] if windows else ["route", "-n", "get", "default"]
        with trio.move_on_after(GATEWAY_TIMEOUT):
            done = await trio.run_process(command, capture_stdout=True, stderr=subprocess.DEVNULL, check=False)
            return gateway_in(_WINDOWS_GATEWAY if windows else _DARWIN_GATEWAY, done.stdout.decode("utf-8", "replace"))
    except (OSError, ValueError):
        pass
    return None


class PortMapping:
    """One Device's mapping: the machine, and the wish to start over on another network."""

    def __init__(self, entropy: Callable[[int], bytes], supervision: Supervision) -> None:
        self.machine = PortMapper(entropy)
        self._supervision = supervision
        self._attempt = trio.CancelScope()

    @property
    def external(self) -> tuple[str, int] | None:
        return self.machine.external

    @property
    def service(self) -> str:
        return self.machine.service

    def on_network_changed(self) -> None:
        self.machine.forget()
        self._attempt.cancel()

    @trio.lowlevel.enable_ki_protection
    async def run(self, network: Network, internal_port: int, on_change: Callable[[], None]) -> None:
        """Keep `internal_port` mapped on whatever the default gateway is."""
        if not isinstance(network, HostNetwork):
            return
        while True:
            with trio.CancelScope() as self._attempt:
                with self._supervision.contained("port-mapping"):
                    await self._map(internal_port, on_change)
                await trio.sleep(RETRY_AFTER)

    async def _map(self, internal_port: int, on_change: Callable[[], None]) -> None:
        gateway = await find_gateway()
        if gateway is not None:
            try:
                await keep_mapping(self.machine, gateway, internal_port, on_change)
            except OSError:
                self.machine.drops["portmap.no_socket"] += 1


async def keep_mapping(mapper: PortMapper, gateway: str, internal_port: int, on_change: Callable[[], None]) -> None:
    """Talk to one gateway for ever; `on_change` whenever the external address became another."""
    with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        client = local_address_towards(gateway)
        mapper.begin(gateway, client, internal_port, trio.current_time())
        announced = mapper.external
        asked_upnp = None
        while True:
            for (host, port), datagram in mapper.transmit(trio.current_time()):
                try:
                    await sock.sendto(datagram, (host, port))
                except OSError:
                    mapper.drops["portmap.not_sent"] += 1
            if mapper.wants_upnp and asked_upnp != mapper.upnp_location:
                asked_upnp = mapper.upnp_location
                await map_by_upnp(mapper, client, internal_port)
            if mapper.external != announced:
                announced = mapper.external
                on_change()
            with trio.move_on_at(mapper.next_timer()):
                try:
                    datagram, source = await sock.recvfrom(2048)
                except OSError:
                    await trio.sleep(1.0)
                else:
                    mapper.receive(datagram, source, trio.current_time())
            mapper.handle_timer(trio.current_time())


def local_address_towards(gateway: str) -> str:
    """Which of our addresses the gateway sees."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((gateway, GATEWAY_PORT))
        return str(probe.getsockname()[0])


async def map_by_upnp(mapper: PortMapper, client: str, internal_port: int) -> None:
    """Read the gateway's description, ask for the port and for its outer address."""
    # Only where a gateway speaks nothing better, and beside the loop: the first import takes a tenth of a second.
    await trio.to_thread.run_sync(import_module, "httpx")
    import httpx

    assert mapper.upnp_location is not None
    try:
        async with httpx.AsyncClient(timeout=HTTP_TIMEOUT, trust_env=False) as http:
            answer = await http.get(mapper.upnp_location)
            point = upnp.decode_description_untrusted(answer.content, mapper.upnp_location)
            lease = upnp.LEASE
            for lease in (upnp.LEASE, 0):
                arguments = upnp.mapping_arguments(internal_port, internal_port, client, lease)
                headers, body = upnp.encode_call(point.service, "AddPortMapping", arguments)
                answer = await http.post(point.url, headers=headers, content=body)
                if answer.status_code == httpx.codes.OK or upnp.error_code(answer.content) not in upnp.ONLY_PERMANENT:
                    break
            if answer.status_code != httpx.codes.OK:
                mapper.drops["portmap.refused"] += 1
                return
            headers, body = upnp.encode_call(point.service, "GetExternalIPAddress", {})
            answer = await http.post(point.url, headers=headers, content=body)
            host = upnp.decode_reply_untrusted(answer.content, "NewExternalIPAddress")
            external = format_address(parse_address(host)), internal_port
    except (httpx.HTTPError, BadPacket):
        mapper.drops["portmap.bad_answer"] += 1
        return
    mapper.on_upnp_mapped(external, trio.current_time(), lease or upnp.LEASE)
