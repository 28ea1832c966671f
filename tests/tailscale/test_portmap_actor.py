"""The port mapper's shell against routers on loopback, and the ways to find the real one."""

from __future__ import annotations

import re
import socket
import subprocess
from struct import pack

import pytest
import trio

from tailscale.runtime import portmap_actor
from tailscale.runtime.bus import Bus
from tailscale.runtime.portmap_actor import PortMapping, find_gateway, gateway_in, keep_mapping, linux_gateway
from tailscale.runtime.supervision import Supervision
from ts_base.ip import parse_address
from ts_dataplane import portmap, upnp
from ts_dataplane.portmap import PortMapper

GATEWAY, INTERNAL = "127.0.0.1", 41641
PUBLIC = bytes([203, 0, 114, 9])


@pytest.fixture
async def router(monkeypatch):
    """A UDP socket where the gateway's NAT-PMP service would be."""
    with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        await sock.bind((GATEWAY, 0))
        port = sock.getsockname()[1]
        monkeypatch.setattr(portmap, "GATEWAY_PORT", port)
        monkeypatch.setattr(upnp, "SSDP_GROUP", (GATEWAY, port))
        monkeypatch.setattr(upnp, "SSDP_PORT", port)
        yield sock


async def serve_pmp(sock):
    while True:
        request, client = await sock.recvfrom(2048)
        if request == b"\0\0":
            await sock.sendto(pack(">BBHI", 0, 128, 0, 99) + PUBLIC, client)
        elif request[:2] == b"\0\1":
            internal = int.from_bytes(request[4:6], "big")
            await sock.sendto(pack(">BBHIHHI", 0, 129, 0, 99, internal, 50000, 7200), client)


async def test_mapping_is_made_on_a_nat_pmp_router(router, nursery):
    nursery.start_soon(serve_pmp, router)
    mapper, changed = PortMapper(bytes), trio.Event()
    nursery.start_soon(keep_mapping, mapper, GATEWAY, INTERNAL, changed.set)
    with trio.fail_after(5):
        await changed.wait()
    assert (mapper.external, mapper.service) == (("203.0.114.9", 50000), "pmp")
    nursery.cancel_scope.cancel()


DESCRIPTION = """<root><service><serviceType>urn:schemas-upnp-org:service:WANIPConnection:1</serviceType>
<controlURL>/control</controlURL></service></root>"""


async def serve_http(stream, seen, refuse_leases):
    data = b""
    while b"\r\n\r\n" not in data:
        data += await stream.receive_some(4096)
    head, _, body = data.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head.lower())
    while length and len(body) < int(length[1]):
        body += await stream.receive_some(4096)
    seen.append(body)
    status, answer = "200 OK", DESCRIPTION
    if b"GetExternalIPAddress" in body:
        answer = "<NewExternalIPAddress>203.0.114.9</NewExternalIPAddress>"
    elif b"<NewLeaseDuration>7200" in body and refuse_leases:
        status, answer = "500 Internal Server Error", "<errorCode>725</errorCode>"
    text = f"HTTP/1.1 {status}\r\nContent-Length: {len(answer)}\r\nConnection: close\r\n\r\n{answer}"
    await stream.send_all(text.encode())
    await stream.aclose()


@pytest.mark.parametrize("refuse_leases", [False, True])
async def test_mapping_is_made_on_a_upnp_router(router, nursery, refuse_leases):
    seen: list[bytes] = []
    listeners = await trio.open_tcp_listeners(0, host=GATEWAY)
    nursery.start_soon(trio.serve_listeners, lambda stream: serve_http(stream, seen, refuse_leases), listeners)
    location = f"http://{GATEWAY}:{listeners[0].socket.getsockname()[1]}/desc.xml"
    with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ssdp:
        await ssdp.bind((GATEWAY, 0))  # answers come from another port than the mapping service's

        async def serve_ssdp():
            while True:
                request, client = await router.recvfrom(2048)
                if request.startswith(b"M-SEARCH"):
                    await ssdp.sendto(f"HTTP/1.1 200 OK\r\nLocation: {location}\r\n\r\n".encode(), client)

        nursery.start_soon(serve_ssdp)
        mapper, changed = PortMapper(bytes), trio.Event()
        nursery.start_soon(keep_mapping, mapper, GATEWAY, INTERNAL, changed.set)
        with trio.fail_after(5):
            await changed.wait()
        assert (mapper.external, mapper.service) == (("203.0.114.9", INTERNAL), "upnp")
        assert sum(b"AddPortMapping" in body for body in seen) == 1 + refuse_leases
        nursery.cancel_scope.cancel()


async def test_virtual_network_has_no_router(autojump_clock):
    class Virtual:
        pass

    with trio.fail_after(1):
        await PortMapping(bytes, Supervision(Bus())).run(Virtual(), INTERNAL, lambda: None)


async def test_network_change_starts_over(autojump_clock, monkeypatch, nursery):
    asked = []

    async def nobody():
        asked.append(trio.current_time())

    monkeypatch.setattr(portmap_actor, "find_gateway", nobody)
    monkeypatch.setattr(portmap_actor, "HostNetwork", object)
    mapping = PortMapping(bytes, Supervision(Bus()))
    nursery.start_soon(mapping.run, object(), INTERNAL, lambda: None)
    await trio.sleep(1)
    mapping.on_network_changed()
    await trio.sleep(1)
    assert len(asked) == 2
    nursery.cancel_scope.cancel()


async def test_gateway_of_this_machine_is_found_or_not_but_never_fails():
    gateway = await find_gateway()
    assert gateway is None or parse_address(gateway)


def test_gateway_is_read_from_each_systems_table():
    linux = (
        "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\n"
        "eth0\t0001A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\n"
        "eth0\t00000000\t0101A8C0\t0003\t0\t0\t0\t00000000\n"
    )
    assert linux_gateway(linux) == "192.168.1.1"
    assert linux_gateway("Iface\n") is None
    darwin = "   route to: default\n    gateway: 192.168.1.1\n  interface: en0\n"
    assert gateway_in(portmap_actor._DARWIN_GATEWAY, darwin) == "192.168.1.1"
    assert gateway_in(portmap_actor._DARWIN_GATEWAY, "    gateway: link#5\n") is None
    windows = "Active Routes:\n          0.0.0.0          0.0.0.0      192.168.1.1    192.168.1.20     25\n"
    assert gateway_in(portmap_actor._WINDOWS_GATEWAY, windows) == "192.168.1.1"


DARWIN = "   route to: default\n    gateway: 192.168.1.1\n  interface: en0\n"
WINDOWS = "Active Routes:\r\n          0.0.0.0          0.0.0.0      192.168.1.1    192.168.1.20     25\r\n"


@pytest.mark.parametrize(("platform", "said"), [("darwin", DARWIN), ("win32", WINDOWS)], ids=["darwin", "win32"])
async def test_gateway_is_asked_for_in_each_systems_words(platform, said, monkeypatch):
    asked = []

    async def run_process(command, **_):
        asked.append(command[0])
        return subprocess.CompletedProcess(command, 0, said.encode())

    monkeypatch.setattr(portmap_actor.sys, "platform", platform)
    monkeypatch.setattr(portmap_actor.trio, "run_process", run_process)
    assert await find_gateway() == "192.168.1.1"
    assert asked == ["route"]


@pytest.mark.parametrize("platform", ["darwin", "win32"])
async def test_a_system_without_the_command_has_no_gateway(platform, monkeypatch):
    async def run_process(command, **_):
        raise FileNotFoundError(command[0])

    monkeypatch.setattr(portmap_actor.sys, "platform", platform)
    monkeypatch.setattr(portmap_actor.trio, "run_process", run_process)
    assert await find_gateway() is None


async def test_a_gateway_that_cannot_be_asked_is_given_up(autojump_clock, monkeypatch):
    async def run_process(command, **_):
        await trio.sleep_forever()

    monkeypatch.setattr(portmap_actor.sys, "platform", "darwin")
    monkeypatch.setattr(portmap_actor.trio, "run_process", run_process)
    with trio.fail_after(2 * portmap_actor.GATEWAY_TIMEOUT):
        assert await find_gateway() is None
