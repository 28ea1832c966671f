"""An SSH server on the tailnet: who gets in, what a session is, and how it ends."""

from __future__ import annotations

import asyncio
import os
import threading
from typing import Any

import pytest
import trio
from ssh_scripts import OPEN, asyncssh, policy, served
from tailnet_scripts import until

from tailscale.metrics import exposition
from tailscale.ssh import HostKey, Session, SshUnavailable, serve_ssh
from tailscale.ssh.shell import Account


async def greet(session: Session) -> None:
    await session.stdout.send_all(f"{session.peer.hostname} {session.user} {session.command}\n".encode())
    async for line in session.stdin:
        await session.stdout.send_all(line.upper())
    session.stderr.write("bye")
    session.exit(7)


async def test_handler_has_who_what_streams_and_an_exit_code() -> None:
    async with served(policy(), greet) as (_, device, way):
        done = await way.run("make all", b"one\ntwo\n")
        assert (done.code, done.out, done.err) == (7, b"client dev make all\nONE\nTWO\n", b"bye")
        assert device.status().counters.levels["ssh.connections"] in (0, 1)


async def test_policy_decides_by_user_and_refusals_are_told() -> None:
    async with served(policy(users=("web",)), greet) as (_, device, way):
        refused = await way.run("x")
        assert refused.problem is not None
        assert "tailscale: the tailnet's policy does not let you log in as dev" in refused.banner
        assert (await way.run("x", user="web")).code == 7
        for hostile in ("-oProxyCommand=x", "../../etc", "a" * 600):
            assert (await way.run("x", user=hostile)).problem is not None
        assert device.status().counters.drops["ssh.login_refused"] >= 3


async def test_no_rules_let_nobody_in_and_health_says_so() -> None:
    async with served(OPEN, greet) as (net, device, way):
        await until(lambda: any(warning.code == "ssh-unusable" for warning in device.health))
        assert "no SSH rules" in (await way.run("x")).banner
        net.policy(policy())
        await until(lambda: not any(warning.code == "ssh-unusable" for warning in device.health))
        assert (await way.run("x")).code == 7


async def test_host_key_is_advertised_and_kept() -> None:
    async with served(policy(), greet) as (net, device, way):
        hostinfo = net.control.server.directory.find(net.id_of(device)).hostinfo
        (told,) = hostinfo.ssh_host_keys  # before the server was up

        async def key_of(conn: Any) -> str:
            return str(conn.get_server_host_key().export_public_key().decode())

        assert (await way.do(key_of)).split()[:2] == told.split()

        async def cipher_of(conn: Any) -> str:
            return str(conn.get_extra_info("send_cipher"))

        assert (await way.do(cipher_of)).startswith("aes")  # a client that would rather have chacha20
        saved = device.ssh_ground().saved_key()
        assert saved is not None
        assert HostKey.parse(saved).public_text == told
        assert saved.decode() not in repr(HostKey.parse(saved))


@pytest.mark.parametrize("text", ["", "nonsense", b"-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n"])
def test_host_key_that_is_none_is_refused(text: Any) -> None:
    with pytest.raises(SshUnavailable):
        HostKey.parse(text)


@pytest.mark.parametrize("is_approved", [True, False])
async def test_check_is_held_until_somebody_decides(is_approved: bool) -> None:
    async with served(policy("check"), greet) as (net, _, way):
        outcomes = []
        async with trio.open_nursery() as nursery:

            async def log_in() -> None:
                outcomes.append(await way.run("x"))

            nursery.start_soon(log_in)
            page = await until(lambda: net.ssh_checks and net.ssh_checks[0])
            await until(lambda: page in "".join(way.banners))
            (net.approve_ssh if is_approved else net.reject_ssh)(page)
        (outcome,) = outcomes
        assert (outcome.code == 7) == is_approved
        if is_approved:  # for as long as the policy says
            assert (await way.run("x")).code == 7
            assert not net.ssh_checks


async def test_check_is_given_up_when_the_client_goes() -> None:
    async with served(policy("check"), greet) as (net, _, way):
        going = threading.Event()

        async def log_in() -> None:
            connect = asyncssh.connect(
                way.host, way.port, username="dev", known_hosts=None, client_keys=None, config=None, agent_path=None
            )
            trying = asyncio.ensure_future(connect)
            await asyncio.to_thread(going.wait, 30)
            trying.cancel()
            await asyncio.gather(trying, return_exceptions=True)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, lambda: asyncio.run(log_in()))
            await until(lambda: [check for check in net.control.server.ssh_checks if check.asked])
            going.set()
            await until(lambda: not [check for check in net.control.server.ssh_checks if check.asked])


@pytest.mark.parametrize("after", [OPEN, policy(users=("web",))], ids=["removed", "changed"])
async def test_sessions_end_when_the_policy_no_longer_allows_them(after: Any) -> None:
    began, cancelled = trio.Event(), trio.Event()

    async def stay(session: Session) -> None:
        session.stdout.write("here\n")
        began.set()
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    async with served(policy(), stay) as (net, device, way):
        outcomes = []
        async with trio.open_nursery() as nursery:

            async def log_in() -> None:
                outcomes.append(await way.run("x"))

            nursery.start_soon(log_in)
            await began.wait()
            assert "pytailscale_ssh_sessions 1" in exposition(device)
            assert "pytailscale_ssh_connections 1" in exposition(device)
            net.policy(after)
        (outcome,) = outcomes
        assert outcome.code == 255
        assert b"Access revoked" in outcome.err
        assert cancelled.is_set()


@pytest.mark.slow
async def test_shell_runs_commands_terminals_files_and_forwards_as_the_user(tmp_path: Any) -> None:
    me = Account().name
    async with served(policy(users=(me, "somebody-else"))) as (_, device, way):
        done = await way.run("cat; echo $USER >&2; exit 5", b"abc", user=me)
        assert (done.code, done.out, done.err) == (5, b"abc", f"{me}\n".encode())
        shown = await way.run("tty; stty size", user=me, term_type="xterm", term_size=(80, 24))
        assert shown.out.startswith(b"/dev/")
        assert b"24 80" in shown.out

        async def files(conn: Any) -> bytes:
            async with conn.start_sftp_client() as sftp:
                async with sftp.open(str(tmp_path / "f"), "wb") as file:
                    await file.write(b"data")
                async with sftp.open(str(tmp_path / "f"), "rb") as file:
                    return bytes(await file.read())

        assert await way.do(files, me) == b"data"
        told = await way.run("echo $SSH_CONNECTION", user=me)
        assert told.out.split()[2:] == [str(device.node.ipv4).encode(), b"22"]
        os.mkfifo(tmp_path / "pipe")

        async def pipe(conn: Any) -> None:
            async with conn.start_sftp_client() as sftp:
                await sftp.open(str(tmp_path / "pipe"), "rb")

        with pytest.raises(asyncssh.SFTPFailure):
            await way.do(pipe, me)
        other = await way.run("id", user="somebody-else")  # whom the policy would let in
        assert other.problem is not None
        assert "does nothing as 'somebody-else'" in other.banner


@pytest.mark.slow
async def test_sftp_ends_with_the_policy_too() -> None:
    me = Account().name
    ready = threading.Event()
    async with served(policy(users=(me,))) as (net, device, way):

        async def stay(conn: Any) -> None:
            async with conn.start_sftp_client() as sftp:
                await sftp.getcwd()
                ready.set()
                await sftp.wait_closed()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(way.do, stay, me)
            await until(ready.is_set)
            assert device.status().counters.levels["ssh.sessions"] == 1
            net.policy(OPEN)
            await until(lambda: not device.status().counters.levels["ssh.connections"])


@pytest.mark.slow
async def test_client_that_opens_too_much_is_refused_and_others_are_served() -> None:
    async def stay(session: Session) -> None:
        await session.stdin.read()

    async with served(policy(), stay) as (_, device, way):

        async def many(conn: Any) -> int:
            opened = 0
            for _ in range(60):
                try:
                    await conn.create_process("x", encoding=None)
                except asyncssh.ChannelOpenError:
                    continue
                opened += 1
            with pytest.raises(asyncssh.ChannelOpenError):
                await conn.open_connection("127.0.0.1", 9)  # a handler gives no forwards
            return opened

        assert await way.do(many) == 32
        assert device.status().counters.drops["ssh.sessions_full"] == 28
        assert (await way.run("x")).code == 0


async def test_handler_that_fails_ends_its_session_only() -> None:
    async def fail(session: Session) -> int:
        if session.command == "fail":
            raise RuntimeError("inside")
        return 3

    async with served(policy(), fail) as (_, __, way):
        failed = await way.run("fail")
        assert (failed.code, failed.err) == (1, b"the handler of this session failed\n")
        assert (await way.run("x")).code == 3


@pytest.mark.slow
async def test_session_lasts_no_longer_than_the_policy_says() -> None:
    async def stay(session: Session) -> None:
        await trio.sleep_forever()

    rules = [{"principals": [{"any": True}], "sshUsers": {"*": "="},
              "action": {"accept": True, "sessionDuration": 200_000_000, "message": "be nice\n"}}]  # fmt: skip
    async with served(OPEN, stay) as (net, device, way):
        net.control.do(lambda now: net.control.server.send_to(net.id_of(device), {"SSHPolicy": {"rules": rules}}, now))
        await until(lambda: device.ssh_ground().rules().policy.rules)  # type: ignore[union-attr]
        done = await way.run("x")
        assert (done.code, b"timeout" in done.err, done.banner) == (255, True, "be nice\n")


@pytest.mark.slow
async def test_password_is_asked_for_only_of_those_who_want_it() -> None:
    async with served(policy(), greet) as (_, __, way):

        async def code(conn: Any) -> int:
            return int((await conn.run("x", input="y")).exit_status)

        assert await way.do(code, "dev+password", password="any", preferred_auth="password") == 7
        assert await way.do(code, "dev", password="any", preferred_auth="password") == 7


def test_serve_ssh_wants_a_handler_or_a_shell(tmp_path: Any) -> None:
    device: Any = None
    with pytest.raises(ValueError, match="not both"):
        serve_ssh(device)
    with pytest.raises(ValueError, match="not both"):
        serve_ssh(device, greet, shell=True)
