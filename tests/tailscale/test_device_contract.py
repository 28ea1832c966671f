"""The Device as its users meet it: each member of the public contract, over a tailnet in memory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trio
from tailnet_scripts import echo_service, echoed, runtime_of, until, world
from trio.testing import MockClock

import tailscale
from tailscale.testing import Tailnet

GRANTS = {
    "groups": {"group:dev": ["dev@example.com"]},
    "grants": [
        {"src": ["*"], "dst": ["*"], "ip": ["*"]},
        {"src": ["dev@example.com"], "dst": ["*"], "app": {"example.com/cap/db": [{"role": "admin"}]}},
    ],
}


async def pair(net: Tailnet) -> tuple[tailscale.Device, tailscale.Device]:
    return await net.device("a"), await net.device("b")


# Who we are, who is there


async def test_self_and_peers_show_names_and_addresses(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    a, b = await pair(tailnet)
    assert (a.name, a.hostname) == ("a.tailnet.test", "a")
    assert a.ipv4 == a.node.ipv4 == "100.64.0.1"
    assert a.ipv6 is not None
    assert a.ipv6.startswith("fd7a:115c:a1e0:")
    assert list(a.peers) == ["b.tailnet.test"]
    peer = a.peers["b"]
    assert a.peers["b.tailnet.test."] == a.peers[b.ipv4 or ""] == a.peers[peer.stable_id] == peer
    assert (peer.name, peer.hostname, peer.ipv4, peer.ipv6) == (b.name, b.hostname, b.ipv4, b.ipv6)
    assert peer.addresses == (b.ipv4, b.ipv6)
    assert peer.online is True
    assert peer.os
    assert "@" in peer.user or peer.user
    assert (peer.tags, peer.expired, peer.key_expiry, peer.routes) == ((), False, None, ())
    assert isinstance(dict(peer.capabilities), dict)
    assert "nobody" not in a.peers
    with pytest.raises(KeyError):
        a.peers["nobody"]
    snapshot = a.peers
    tailnet.remove(b)
    await until(lambda: not a.peers)
    assert len(snapshot) == 1, "a mapping handed out is a snapshot"


async def test_rename_retag_and_expiry_show_at_once(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    a, b = await pair(tailnet)
    tailnet.rename(b, "carol")
    await until(lambda: b.hostname == "carol" and "carol" in a.peers)
    assert await a.resolve("carol") == b.ipv4
    with pytest.raises(tailscale.NameNotFound):
        await a.resolve("b")
    tailnet.set_tags(b, ["tag:web"])
    await until(lambda: a.peers["carol"].tags == ("tag:web",))
    tailnet.control.do(tailnet.control.server.set_key_expiry, tailnet.id_of(b), world(tailnet).wall_clock() + 3600)
    peer = await until(lambda: a.peers["carol"].key_expiry)
    assert peer.tzinfo is not None


# Connections


async def test_every_spelling_of_a_dial_reaches_the_peer(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    a, b = await pair(tailnet)
    async with echo_service(b, 80):
        for host in ("b", "B", "b.tailnet.test", "b.tailnet.test.", b.ipv4, b.ipv6, f"[{b.ipv6}]"):
            assert await echoed(a, str(host), 80) == b"hello"
        async with await a.tcp_connect(("b", 80)) as stream:  # type: ignore[arg-type]
            assert stream.remote_address == (b.ipv4, 80)
        async with await a.tcp_connect("b", 80, local_port=4321) as stream:
            assert stream.local_address == (a.ipv4, 4321)
            assert stream.peer is not None
            assert stream.peer.hostname == "b"
            assert stream.path.split()[0] in ("direct", "relay")
    with pytest.raises(TypeError):
        await a.tcp_connect("b")


async def test_listener_picks_a_port_and_knows_its_caller(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    a, b = await pair(tailnet)
    listener = await b.listen(0)
    assert 1024 <= listener.port < 65536
    for host in (b.ipv4, b.ipv6):
        stream = await a.tcp_connect(str(host), listener.port)
        accepted = await listener.accept()
        assert accepted.peer is not None
        assert accepted.peer.hostname == "a"
        assert accepted.remote_address == stream.local_address
        await stream.aclose()
        await accepted.aclose()
    assert isinstance(listener, trio.abc.Listener)
    await listener.aclose()
    with pytest.raises(ConnectionRefusedError):
        await a.tcp_connect("b", listener.port)


async def test_listener_on_one_address_leaves_the_other_closed(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    a, b = await pair(tailnet)
    async with echo_service(b, 80, host=b.ipv4):
        assert await echoed(a, str(b.ipv4), 80) == b"hello"
        with pytest.raises(ConnectionRefusedError):
            await a.tcp_connect(str(b.ipv6), 80)
        assert await echoed(a, "b", 80) == b"hello", "by name the address that answers wins"
    with pytest.raises(OSError, match="not an address of this device"):
        await b.listen(80, host="192.0.2.1")


async def test_device_reaches_itself(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    a = await tailnet.device("a")
    async with echo_service(a, 80):
        assert await echoed(a, "a", 80) == b"hello"
        assert await echoed(a, str(a.ipv6), 80) == b"hello"


async def test_udp_carries_whole_datagrams_both_families(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    a, b = await pair(tailnet)
    async with await b.udp(53) as server, await a.udp() as client:
        for host in ("b", str(b.ipv4), str(b.ipv6)):
            for size in (0, 1, 1200, 4000):
                await client.send_to(bytes(size), (host, 53))
                data, (source, port) = await server.receive_from()
                assert len(data) == size
                assert source in (a.ipv4, a.ipv6)
                assert port == client.local_address[1]
        await server.send_to(b"back", (str(a.ipv4), client.local_address[1]))
        assert await client.receive_from() == (b"back", (b.ipv4, 53))
        assert client.dropped == 0


async def test_connected_udp_hears_one_peer_only(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    a, b = await pair(tailnet)
    async with await b.udp(53) as server, await b.udp(54) as stranger, await a.udp() as client:
        with pytest.raises(OSError, match="not connected"):
            await client.send(b"?")
        await client.connect(("b", 53))
        await client.send(b"?")
        _, source = await server.receive_from()
        await stranger.send_to(b"stranger", source)
        await server.send_to(b"!", source)
        assert await client.receive() == b"!"
        assert client.dropped == 1


async def test_udp_on_one_of_our_addresses_keeps_to_its_family(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    a, b = await pair(tailnet)
    async with await b.udp(53) as server, await a.udp(host=a.ipv6) as client:
        await client.send_to(b"six", ("b", 53))
        assert await server.receive_from() == (b"six", (a.ipv6, client.local_address[1]))
        with pytest.raises(OSError, match="no IPv6 address"):
            await client.send_to(b"x", (str(b.ipv4), 53))


async def test_udp_to_where_nobody_is_fails_instead_of_vanishing(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    a, _ = await pair(tailnet)
    async with await a.udp() as client:
        with pytest.raises(tailscale.NoRoute):
            await client.send_to(b"x", ("192.0.2.1", 9))
        with pytest.raises(tailscale.NameNotFound):
            await client.send_to(b"x", ("nobody", 9))
        with pytest.raises(tailscale.NoRoute):
            await client.connect(("192.0.2.1", 9))
        for port in (0, -1, 65536):
            with pytest.raises(OSError, match="port"):
                await client.send_to(b"x", ("b", port))
        with pytest.raises(OSError, match="at most"):
            await client.send_to(bytes(65508), ("b", 9))
    with pytest.raises(trio.ClosedResourceError):
        await client.receive_from()


# Names and identities


async def test_whois_knows_node_user_and_grants(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    key = tailnet.auth_key("dev@example.com")
    a, b = await tailnet.device("a", auth_key=key), await tailnet.device("b")
    tailnet.policy(GRANTS)
    await until(lambda: runtime_of(b).directory.capabilities_of(bytes([100, 64, 0, 1])))
    for address in (a.ipv4, f"{a.ipv4}:1234", a.ipv6, f"[{a.ipv6}]:1234", (a.ipv4, 1234)):
        found = await b.whois(address)  # type: ignore[arg-type]
        assert found.node.hostname == "a"
        assert found.user == "dev@example.com"
        assert found.capabilities == {"example.com/cap/db": [{"role": "admin"}]}
        json.dumps(found.to_dict())
    assert (await a.whois(str(b.ipv4))).capabilities == {}
    with pytest.raises(tailscale.NameNotFound):
        await b.whois("100.64.9.9")
    with pytest.raises(ValueError, match="IP address"):
        await b.whois("a")


# Diagnosis


@pytest.mark.parametrize("kind", ["disco", "tsmp", "icmp"])
async def test_ping_tells_latency_and_path(autojump_clock: MockClock, tailnet: Tailnet, kind: str) -> None:
    a, b = await pair(tailnet)
    tailnet.link(a, b, latency=0.02)
    await a.ping("b", kind)
    result = await a.ping("b", kind)
    assert result.kind == kind
    assert result.node is not None
    assert result.node.hostname == "b"
    assert 0 <= result.latency < 0.1
    assert result.path.startswith(("direct ", "relay "))
    json.dumps(result.to_dict())


async def test_ping_says_what_is_wrong(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    a, b = await pair(tailnet)
    with pytest.raises(ValueError, match="disco, tsmp, icmp"):
        await a.ping("b", "carrier-pigeon")
    with pytest.raises(tailscale.NameNotFound):
        await a.ping("nobody")
    with pytest.raises(tailscale.NoRoute):
        await a.ping("192.0.2.1")
    for one, other in ((a, b), (a, "relay"), (b, "relay")):
        tailnet.block(one, other)
    with pytest.raises(tailscale.ConnectionTimedOut, match="b did not answer a disco ping within 2 s"):
        await a.ping("b", timeout=2)


async def test_status_is_plain_json_and_counts_traffic(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    a, b = await pair(tailnet)
    async with echo_service(b, 80):
        await echoed(a, "b", 80, bytes(10_000))
    status = a.status()
    assert status.state == "running"
    assert status.tailnet == "tailnet.test"
    assert status.control_url == tailnet.control.url
    assert status.udp_port
    assert status.endpoints
    (peer,) = status.peers
    assert peer.bytes_sent > 10_000
    assert peer.bytes_received > 10_000
    assert peer.handshake_age is not None
    assert peer.path
    text = json.dumps(status.to_dict())
    assert '"hostname": "b"' in text
    assert a.health == ()


async def test_netcheck_names_the_relay_and_our_address(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    a = await tailnet.device("a")
    report = await a.netcheck()
    assert report.udp is True
    assert report.ipv4 is not None
    assert report.home
    assert set(report.latencies) == {report.home}
    json.dumps(report.to_dict())


# Changing our mind


async def test_every_preference_changes_while_running(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    a, b = await pair(tailnet)
    await b.set(hostname="Bob's Laptop!")
    await until(lambda: b.hostname == "bob-s-laptop" and "bob-s-laptop" in a.peers)
    await b.set(advertise_routes=["10.9.0.0/24", "0.0.0.0/0", "::/0"])
    await until(lambda: tailnet.control.server.directory.find(tailnet.id_of(b)).advertised)
    tailnet.approve_routes(b, "10.9.0.0/24", "0.0.0.0/0", "::/0")
    await until(lambda: "10.9.0.0/24" in a.peers["bob-s-laptop"].routes)
    reach = runtime_of(a).reach
    await until(lambda: reach.routes_to(bytes([10, 9, 0, 1])))
    await a.set(accept_routes=False)
    await until(lambda: not reach.routes_to(bytes([10, 9, 0, 1])))
    assert not reach.routes_to(bytes([8, 8, 8, 8]))
    await a.set(exit_node="bob-s-laptop")
    await until(lambda: reach.routes_to(bytes([8, 8, 8, 8])))
    await a.set(exit_node=None, accept_routes=True)
    await until(lambda: reach.routes_to(bytes([10, 9, 0, 1])) and not reach.routes_to(bytes([8, 8, 8, 8])))
    async with echo_service(b, 80):
        assert await echoed(a, "bob-s-laptop", 80) == b"hello"
        await b.set(shields_up=True)
        with pytest.raises((ConnectionRefusedError, TimeoutError)):
            await a.tcp_connect("bob-s-laptop", 80, timeout=3)
        assert b.hostname == "bob-s-laptop", "what is not named stays"
        await b.set(shields_up=False)
        assert await echoed(a, "bob-s-laptop", 80) == b"hello"


async def test_missing_exit_node_is_a_health_warning_not_a_leak(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    a, _ = await pair(tailnet)
    await a.set(exit_node="nowhere")
    warning = (await until(lambda: a.health))[0]
    assert warning.code == "exit-node-missing"
    assert warning.remedy
    await a.set(exit_node=None)
    await until(lambda: not a.health)


async def test_login_again_keeps_node_and_addresses_with_a_new_key(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    key = tailnet.auth_key(reusable=True)
    a, b = await tailnet.device("a", auth_key=key), await tailnet.device("b")
    before = (a.node.id, a.node.stable_id, a.ipv4, a.ipv6)
    old_key = runtime_of(a).control.saved.state.node_key.public
    async with echo_service(b, 80), echo_service(a, 81):
        await echoed(a, "b", 80)
        await a.login()
        assert runtime_of(a).control.saved.state.node_key.public != old_key
        assert (a.node.id, a.node.stable_id, a.ipv4, a.ipv6) == before
        await until(lambda: a.status().state == "running")
        assert await echoed(a, "b", 80) == b"hello"
        assert await echoed(b, "a", 81) == b"hello"


async def test_login_again_does_not_hold_up_what_is_open(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    """The first handshake under the new key reaches the peer before control's news of that key."""
    key = tailnet.auth_key(reusable=True)
    a, b = await tailnet.device("a", auth_key=key), await tailnet.device("b")
    async with echo_service(b, 80), await a.tcp_connect("b", 80) as stream:
        for _ in range(3):
            await a.login()
            await a.login()
            await stream.send_all(b"x")
            with trio.fail_after(1):
                assert await stream.receive_some() == b"x"


async def test_logout_leaves_and_login_comes_back(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    key = tailnet.auth_key(reusable=True)
    a, b = await tailnet.device("a", auth_key=key, ephemeral=False), await tailnet.device("b")
    await a.logout()
    assert a.status().state == "logged_out"
    await until(lambda: "a" not in b.peers or b.peers["a"].expired)
    await trio.sleep(120)
    assert a.status().state == "logged_out", "nobody logs us in again behind our back"
    await a.login()
    await until(lambda: a.status().state == "running")
    async with echo_service(b, 80):
        assert await echoed(a, "b", 80) == b"hello"


# State


async def test_state_is_kept_and_needs_no_second_key(
    autojump_clock: MockClock, tailnet: Tailnet, tmp_path: Path
) -> None:
    autojump_clock.autojump_threshold = 0.01  # a file is written in a thread, which the clock does not see
    async with tailnet.device("a", state=tmp_path) as a:
        known = (a.node.stable_id, a.ipv4)
    async with tailnet.device("a", state=tmp_path, auth_key="") as a:
        assert (a.node.stable_id, a.ipv4) == known


async def test_store_object_carries_an_identity(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    store = tailscale.MemoryStore()
    async with tailnet.device("a", state=store) as a:
        known = a.node.stable_id
    async with tailnet.device("a", state=store, auth_key="") as a:
        assert a.node.stable_id == known


async def test_ephemeral_follows_the_state(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async with tailnet.device("a"):
        pass
    assert [d.label for d in tailnet.control.server.directory] == []
    async with tailnet.device("a", ephemeral=False):
        pass
    assert [d.label for d in tailnet.control.server.directory] == ["a"]


async def test_auth_key_may_be_a_callable_sync_or_async(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    async def fetch() -> str:
        await trio.sleep(0.1)
        return tailnet.auth_key()

    await tailnet.device("a", auth_key=tailnet.auth_key)
    b = await tailnet.device("b", auth_key=fetch)
    assert len(b.peers) == 1


@pytest.mark.parametrize("pause", [1, 100, 290])
async def test_login_url_is_handed_over_and_approved(autojump_clock: MockClock, tailnet: Tailnet, pause: float) -> None:
    urls: list[str] = []

    async def approve(url: str) -> None:
        urls.append(url)
        await trio.sleep(pause)
        tailnet.approve_login(url, "someone@example.com")

    a = await tailnet.device("a", auth_key="", on_login_url=approve)
    assert len(urls) == 1
    assert a.node.user == "someone@example.com"


async def test_tags_are_asked_for(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    a = await tailnet.device("a", auth_key=tailnet.auth_key(tags=["tag:web"]))
    assert a.node.tags == ("tag:web",)
