"""An SSH server against those who do not mean well: before the login, with checks nobody answers, and with numbers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from ssh_scripts import OPEN, asyncssh, policy, served
from tailnet_scripts import until
from trio.testing import MockClock

from tailscale import Device, TcpStream
from tailscale.ssh import Session, server
from tailscale.ssh.admission import HOLD_PATIENCE, Admission, Admitted, Refused
from tailscale.ssh.serving import Anybody
from tailscale.ssh.shell import Account
from tailscale.testing import Tailnet
from ts_control.server import PingSent
from ts_control.ssh_policy import SSHPolicy
from ts_control.wire import CAPABILITY_VERSION

ME = Account().name
KEXINIT = bytes((0, 0, 1, 0, 6, 20))  # the beginning of one: 256 bytes are promised


async def echo(session: Session) -> None:
    session.stdout.write(await session.stdin.read())


def dropped(device: Device, name: str) -> int:
    return device.status().counters.drops.get(name, 0)


async def said(stream: TcpStream) -> bytes:
    """Everything until the other end hangs up."""
    heard = b""
    try:
        async for piece in stream:
            heard += piece
    except trio.BrokenResourceError:
        pass
    return heard


@pytest.mark.parametrize("sent", [b"", b"SSH-2.", b"SSH-2.0-x\r\n", b"SSH-2.0-x\r\n" + KEXINIT])
async def test_who_stops_before_the_login_is_hung_up_on(autojump_clock: MockClock, sent: bytes) -> None:
    async with served(policy(), echo) as (net, device, _):
        client = await net.device("slow")
        async with await client.tcp_connect("server", 22) as stream:
            await stream.send_all(sent)
            began = trio.current_time()
            await said(stream)
        assert trio.current_time() - began >= server.GREETING_PATIENCE
        assert dropped(device, "ssh.no_login_in_time") == 1


async def test_who_says_what_is_no_ssh_is_hung_up_on_at_once() -> None:
    async with served(policy(), echo) as (net, _, way):
        client = await net.device("web")
        async with await client.tcp_connect("server", 22) as stream:
            await stream.send_all(b"GET / HTTP/1.1\r\n\r\n" + b"x" * 1000 + b"\n")
            await said(stream)
        assert (await way.run("x", b"still there")).out == b"still there"


@pytest.mark.slow
async def test_password_that_never_comes_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "GREETING_PATIENCE", 0.5)
    monkeypatch.setattr(server, "PASSWORD_PATIENCE", 0.1)
    async with served(policy(), echo) as (_, device, way):

        async def hang() -> None:
            class Silent(asyncssh.SSHClient):
                async def password_auth_requested(self) -> None:
                    await asyncio.Event().wait()

            with pytest.raises((asyncssh.Error, OSError)):
                await asyncssh.create_connection(
                    Silent, way.host, way.port, username="dev+password", known_hosts=None, client_keys=None,
                    config=None, agent_path=None,
                )  # fmt: skip

        await trio.to_thread.run_sync(asyncio.run, hang())
        assert dropped(device, "ssh.no_login_in_time") == 1


@pytest.mark.parametrize("user", ["../../etc", "-oProxyCommand=x", "a\0b", "a" * 1000, "a" * 10_000])
async def test_names_of_nobody_are_refused_before_the_policy_is_asked(
    monkeypatch: pytest.MonkeyPatch, user: str
) -> None:
    monkeypatch.setattr(asyncssh.connection, "saslprep", lambda name: name)  # it would not send a NUL, nor take one
    async with served(policy(), echo) as (_, device, way):
        refused = await way.run("x", user=user)
        assert refused.problem is not None
        if len(user) <= 1024:  # beyond that asyncssh hears nobody out
            assert "a user's name has" in refused.banner
            assert dropped(device, "ssh.login_refused") == 1


@pytest.mark.slow
async def test_client_that_opens_five_hundred_connections_takes_no_place_of_others() -> None:
    """Some have no place in the listener's queue already, and never get as far as to be refused."""
    async with served(policy(), echo) as (net, device, way):
        crowd = await net.device("crowd")
        async with trio.open_nursery() as nursery:

            async def connect() -> None:
                async with await crowd.tcp_connect("server", 22) as stream:
                    await said(stream)

            for _ in range(500):
                nursery.start_soon(connect)
            await until(lambda: dropped(device, "ssh.peer_logins_full") > server.PEER_STRANGERS_LIMIT)
            assert (await way.run("x", b"served")).out == b"served"
            levels = device.status().counters.levels
            assert levels["ssh.connections"] <= server.PEER_STRANGERS_LIMIT + 1
            nursery.cancel_scope.cancel()


@pytest.mark.slow
async def test_client_that_opens_a_thousand_channels_is_refused_and_others_are_served() -> None:
    async with served(policy(), echo) as (_, device, way):

        async def many(conn: Any) -> int:
            """All at once, and meanwhile somebody else logs in."""
            opening = [conn.create_process("x", encoding=None) for _ in range(1000)]
            other = asyncio.ensure_future(way.in_this_loop("x", b"served"))
            found = await asyncio.gather(*opening, return_exceptions=True)
            assert (await other).out == b"served"
            opened = [one for one in found if not isinstance(one, BaseException)]
            assert {type(one) for one in found if isinstance(one, BaseException)} == {asyncssh.ChannelOpenError}
            opened[0].stdin.write_eof()  # one that ends makes room for another
            await opened[0].wait()
            while True:
                with contextlib.suppress(asyncssh.ChannelOpenError):  # the server has not yet seen the end of it
                    assert (await conn.run("x", input="again")).stdout == "again"
                    return len(opened)

        assert await way.do(many) == 32
        assert dropped(device, "ssh.sessions_full") >= 1000 - 32
        assert (await way.run("x", b"after")).out == b"after"


@pytest.mark.slow
async def test_client_that_forwards_a_thousand_times_is_refused_above_the_limit() -> None:
    async with served(policy(users=(ME,))) as (_, device, way):
        with socket.create_server(("127.0.0.1", 0), backlog=200) as listener:
            port = listener.getsockname()[1]

            async def many(conn: Any) -> int:
                opening = [conn.open_connection("127.0.0.1", port) for _ in range(1000)]
                found = await asyncio.gather(*opening, return_exceptions=True)
                return sum(not isinstance(one, BaseException) for one in found)

            assert await way.do(many, ME) == 128
            assert dropped(device, "ssh.forwards_full") == 1000 - 128


async def test_listeners_that_are_given_up_make_room_and_leave_no_socket() -> None:
    with tempfile.TemporaryDirectory() as folder:
        taken = Path(folder, "taken")
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(taken))
            other.listen()
            async with served(policy(users=(ME,))) as (_, device, way):

                async def again_and_again(conn: Any) -> None:
                    for number in range(20):
                        path = f"{folder}/{number}"
                        remote = await conn.forward_remote_path(path, "/nowhere")
                        assert Path(path).is_socket()
                        remote.close()
                        await remote.wait_closed()
                        assert not Path(path).exists()
                    with pytest.raises(asyncssh.ChannelListenError):
                        await conn.forward_remote_path(str(taken), "/nowhere")
                    await conn.forward_remote_path(f"{folder}/last", "/nowhere")

                await way.do(again_and_again, ME)
                await until(lambda: not Path(folder, "last").exists())
                assert taken.is_socket()
                assert not dropped(device, "ssh.forwards_full")


BARE = {"principals": [{"any": True}], "sshUsers": {"*": "=", ME: ME}, "action": {"accept": True}}


async def told(net: Tailnet, device: Device, *rules: Any) -> None:
    """That node has these rules, as if control had made them of a policy."""
    net.control.do(
        lambda now: net.control.server.send_to(net.id_of(device), {"SSHPolicy": {"rules": list(rules)}}, now)
    )
    await until(lambda: len((device.ssh_ground().rules().policy or SSHPolicy()).rules) == len(rules))


async def test_what_a_rule_does_not_allow_is_not_forwarded(tmp_path: Path) -> None:
    async with served(OPEN) as (net, device, way):
        await told(net, device, BARE)

        async def ask(conn: Any) -> bytes:
            for opening in (
                conn.open_connection("127.0.0.1", 9),
                conn.open_unix_connection(str(tmp_path / "x")),
            ):
                with pytest.raises(asyncssh.ChannelOpenError, match="not allowed"):
                    await opening
            for listening in (
                conn.forward_remote_port("127.0.0.1", 0, "127.0.0.1", 9),
                conn.forward_remote_path(str(tmp_path / "y"), "/nowhere"),
            ):
                with pytest.raises(asyncssh.ChannelListenError):
                    await listening
            return bytes((await conn.run('echo "$SSH_AUTH_SOCK"', encoding=None)).stdout)

        assert await way.do(ask, ME, agent_forwarding=True) == b"\n"


@asynccontextmanager
async def pair(policy_told: Any) -> AsyncIterator[tuple[Tailnet, Device, Device]]:
    async with Tailnet(policy=policy_told) as net:
        yield net, await net.device("server"), await net.device("client")


async def admitted(device: Device, address: str, banners: list[str]) -> Admitted:
    remote, local = (address, 50000), (str(device.node.ipv4), 22)
    return await Admission(device.ssh_ground(), remote, local, Anybody()).admit("dev", banners.append)


@pytest.mark.parametrize("is_control_there", [True, False], ids=["nobody decides", "control is gone"])
async def test_check_that_is_not_answered_ends_after_half_an_hour(
    autojump_clock: MockClock, is_control_there: bool
) -> None:
    async with pair(policy("check")) as (net, device, client):
        banners: list[str] = []
        began = trio.current_time()
        if not is_control_there:
            net.block("server", "control")
        with pytest.raises(Refused, match="nobody has approved this login within half an hour"):
            await admitted(device, str(client.node.ipv4), banners)
        assert trio.current_time() - began == pytest.approx(HOLD_PATIENCE, abs=1)
        if is_control_there:
            assert "".join(banners).count("/auth/") >= 1
            await until(lambda: not any(check.asked for check in net.control.server.ssh_checks))


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ([None], "connect by SSH"),
        ([BARE | {"action": None}], "connect by SSH"),
        ([BARE | {"ruleExpires": "2020-01-01T00:00:00Z"}], "connect by SSH"),
        ([BARE | {"action": {"reject": True}}, BARE], "rejects"),
        ([BARE | {"action": {}}], "neither yes nor no"),
        ([BARE | {"action": {"holdAndDelegate": "ftp"}}], "no URL"),
        ([BARE | {"sshUsers": None}], "log in as dev"),
    ],
)
async def test_policies_that_say_nothing_let_nobody_in(autojump_clock: MockClock, rules: list[Any], words: str) -> None:
    async with pair(OPEN) as (net, device, client):
        await told(net, device, *rules)
        with pytest.raises(Refused, match=words):
            await admitted(device, str(client.node.ipv4), [])


async def test_callers_that_are_no_nodes_are_refused(autojump_clock: MockClock) -> None:
    async with pair(policy()) as (net, device, router):
        await router.set(advertise_routes=("192.168.7.0/24",))
        net.approve_routes(router, "192.168.7.0/24")
        await until(lambda: any("192.168.7.0/24" in node.routes for node in device.peers.values()))
        assert (await admitted(device, str(router.node.ipv4), [])).node.hostname == "client"
        for address in ("192.168.7.9", "100.64.99.99", "203.0.113.9", "no address"):
            with pytest.raises(Refused, match="only nodes of the tailnet"):
                await admitted(device, address, [])


@pytest.mark.parametrize(
    ("failure", "event"),
    [
        ({"RejectSessionWithMessage": "no recorder"}, 1),
        ({"TerminateSessionWithMessage": "no recorder"}, 2),
        ({}, 3),
    ],
)
async def test_control_hears_of_a_session_that_is_not_recorded(
    autojump_clock: MockClock, failure: dict[str, Any], event: int
) -> None:
    async with pair(OPEN) as (net, device, client):
        kept = net.control.server.pings["event"] = PingSent("event", 0, 0.0)  # keeps what is sent to its URL
        wanted = {"accept": True, "recorders": ["100.64.0.9:80"]}
        url = "https://unused/machine/ping-answer?id=event"
        await told(net, device, BARE | {"action": wanted | {"onRecordingFailure": failure | {"NotifyURL": url}}})
        if failure:
            with pytest.raises(Refused, match=r"sessions must be recorded here.*no recorder"):
                await admitted(device, str(client.node.ipv4), [])
        else:
            await admitted(device, str(client.node.ipv4), [])
        heard = json.loads(kept.answer)
        assert heard.pop("ConnectionID").startswith("ssh-conn-20")
        assert heard.pop("NodeKey").startswith("nodekey:")
        assert heard == {
            "EventType": event,
            "CapVersion": CAPABILITY_VERSION,
            "SrcNode": net.id_of(client),
            "SSHUser": "dev",
            "LocalUser": "dev",
            "RecordingAttempts": [{"Recorder": "100.64.0.9:80", "FailureMessage": "this server records no sessions"}],
        }
