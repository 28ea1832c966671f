"""SSH with programs we did not write: OpenSSH, stock `tailscale ssh`, stock `tailscaled --ssh`, Headscale's policies.

Everybody here is the user who runs the tests, and logs in as that user.
"""

from __future__ import annotations

import os
import re
import shlex
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from tailscale.ssh import serve_ssh
from tailscale.ssh.shell import Account
from tests.interop import build
from tests.interop.ourdaemon import ROOT, daemon
from tests.interop.ours import joined, tailnet
from tests.interop.processes import Json, Process, finished, poll_until
from tests.interop.rig import Headscale, Rig, Tailscaled

pytestmark = pytest.mark.peers("tailscale", "tailscaled")
ME = Account().name
EVERYBODY: Json = {"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]}

BANNERS = ("-o", "LogLevel=INFO")  # OpenSSH shows none to those who want errors only


def policy(action: str = "accept", user: str = ME) -> Json:
    entry = {"action": action, "src": ["alice@"], "dst": ["alice@"], "users": [user]}
    return {**EVERYBODY, "ssh": [entry]}


@dataclass
class Done:
    code: int
    out: bytes
    err: str


async def run(command: Sequence[str | Path], stdin: bytes = b"", **environment: str) -> Done:
    done = await finished(command, stdin, env=os.environ | environment)
    return Done(done.returncode, done.stdout, done.stderr.decode("utf-8", "replace"))


@dataclass
class Client:
    """OpenSSH and stock `tailscale ssh` through a stock daemon."""

    node: Tailscaled
    ip: str

    @property
    def options(self) -> list[str]:
        proxy = f"{build.binary('tailscale')} --socket={self.node.socket} nc %h %p"
        words = [f"ProxyCommand={proxy}", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR"]
        return ["-F", "/dev/null", *(word for option in words for word in ("-o", option))]

    async def ssh(self, *words: str, user: str = ME, stdin: bytes = b"", more: Sequence[str] = ()) -> Done:
        return await run(["ssh", *more, *self.options, f"{user}@{self.ip}", *words], stdin)

    async def stock(self, *words: str, user: str = ME, stdin: bytes = b"") -> Done:
        command = [build.binary("tailscale"), f"--socket={self.node.socket}", "ssh", f"{user}@{self.ip}", *words]
        return await run(
            command, stdin, HOME=str(self.node.socket.parent), XDG_CONFIG_HOME=str(self.node.socket.parent)
        )


@asynccontextmanager
async def scene(r: Rig, told: Json) -> AsyncIterator[tuple[Headscale, Client, Any]]:
    """Our server with a shell, and a stock daemon of the same user."""
    async with tailnet(r) as hs:
        await hs.user()
        await hs.set_policy(told)
        async with joined(hs, "ours") as device, trio.open_nursery() as nursery:
            await nursery.start(serve_ssh, device, None, 22, True)
            async with r.tailscaled("stock", control=hs, auth_key=await hs.auth_key()) as node:
                yield hs, Client(node, device.node.ipv4 or ""), device
            nursery.cancel_scope.cancel()


async def test_stock_clients_log_in_to_our_server(r: Rig, tmp_path: Path) -> None:
    async with scene(r, policy()) as (_, client, __):
        done = await client.stock("cat; echo $USER >&2; exit 7", stdin=b"through")
        assert (done.code, done.out) == (7, b"through"), done.err
        assert ME in done.err

        done = await client.ssh('printf %s "$LC_X"', more=["-o", "SetEnv=LC_X=kept LD_PRELOAD=no"])
        assert (done.code, done.out) == (0, b"kept"), done.err
        shown = await client.ssh("tty && stty size", more=["-tt"])
        assert shown.out.startswith(b"/dev/"), shown

        original, copy, back = tmp_path / "original", tmp_path / "copy", tmp_path / "back"
        original.write_bytes(os.urandom(3 << 20))
        at = f"{ME}@{client.ip}"
        for words in (["scp", *client.options, str(original), f"{at}:{copy}"],
                      ["scp", *client.options, f"{at}:{copy}", str(back)]):  # fmt: skip
            done = await run(words)
            assert done.code == 0, done.err
        assert back.read_bytes() == original.read_bytes()
        done = await run(["sftp", *client.options, "-b", "-", at], f"get {copy} {back}\nls {tmp_path}\n".encode())
        assert (done.code, b"copy" in done.out) == (0, True), done.err

        big = await client.ssh("head -c 3000000 /dev/zero; echo tail >&2")
        assert (big.code, len(big.out), big.err) == (0, 3_000_000, "tail\n")
        asked = tmp_path / "askpass"
        asked.write_text("#!/bin/sh\necho any\n")
        asked.chmod(0o700)
        command = ["ssh", *client.options, f"{ME}+password@{client.ip}", "echo in"]
        done = await run(command, SSH_ASKPASS=str(asked), SSH_ASKPASS_REQUIRE="force")
        assert (done.code, done.out) == (0, b"in\n"), done.err


async def test_forwards_reach_this_machine_where_the_policy_says_so(r: Rig, tmp_path: Path) -> None:
    async def hello(stream: trio.SocketStream) -> None:
        await stream.send_all(b"hello")

    async with scene(r, policy()) as (_, client, __), trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, host="127.0.0.1"), hello, 0)
        port = listener.socket.getsockname()[1]
        done = await client.ssh(more=["-W", f"127.0.0.1:{port}"])
        assert done.out == b"hello", done.err
        (place,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        free = place.socket.getsockname()[1]
        await place.aclose()
        dial = f"import socket; print(socket.create_connection(('127.0.0.1', {free})).recv(9))"
        command = shlex.join([sys.executable, "-c", dial])
        done = await client.ssh(command, more=["-R", f"127.0.0.1:{free}:127.0.0.1:{port}"])
        assert done.out == b"b'hello'\n", done.err
        nursery.cancel_scope.cancel()


async def test_sockets_are_forwarded_both_ways(r: Rig, tmp_path: Path) -> None:
    """By `-L path:path` and `-R path:path`: in places of the user's own, and nothing is left behind."""
    here, there, back = tmp_path / "here", tmp_path / "there", tmp_path / "back"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(there))
        listener.listen()
        dial = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.sendall(b'over')"
        by_python = partial(shlex.join, [sys.executable, "-c", dial, str(back)])

        async def accepted() -> bytes:
            await trio.lowlevel.wait_readable(listener)
            connection, _ = listener.accept()
            with connection, trio.fail_after(20):
                await trio.lowlevel.wait_readable(connection)
                return connection.recv(9)

        async with scene(r, policy()) as (_, client, __), trio.open_nursery() as nursery:
            command = ["ssh", *client.options, "-N", "-L", f"{here}:{there}", f"{ME}@{client.ip}"]
            await nursery.start(partial(trio.run_process, command, check=False))
            await poll_until("ssh's own socket", lambda: trio.Path(here).exists(), 30)
            async with await trio.open_unix_socket(str(here)) as stream:
                await stream.send_all(b"over")
                assert await accepted() == b"over"

            nursery.start_soon(partial(client.ssh, by_python(), more=["-R", f"{back}:{there}"]))
            assert await accepted() == b"over"
            await poll_until("the server's socket to go", lambda: _is_gone(back), 30)

            more = ["-o", "ExitOnForwardFailure=yes", "-R", f"/var/lib/pytailscale-test:{there}"]
            refused = await client.ssh("true", more=more)
            assert (refused.code, "remote port forwarding failed" in refused.err) == (255, True), refused.err
            nursery.cancel_scope.cancel()


async def _is_gone(path: Path) -> bool | None:
    return (not await trio.Path(path).exists()) or None


async def test_agent_is_forwarded_where_it_is_asked_for(r: Rig, tmp_path: Path) -> None:
    at, key = tmp_path / "agent", tmp_path / "key"
    await finished(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "of the agent", "-f", key])
    agent = Process("agent", ["ssh-agent", "-D", "-a", at], tmp_path)
    try:
        await poll_until("the agent's socket", lambda: trio.Path(at).exists(), 10)
        await finished(["ssh-add", "-q", key], env=os.environ | {"SSH_AUTH_SOCK": str(at)})
        async with scene(r, policy()) as (_, client, __):
            command = ["ssh", "-A", *client.options, f"{ME}@{client.ip}", 'ssh-add -l; stat -c "%a %n" $SSH_AUTH_SOCK']
            done = await run(command, SSH_AUTH_SOCK=str(at))
            told = done.out.decode()
            assert (done.code, "of the agent" in told) == (0, True), done
            place = told.split()[-1]
            await poll_until("the agent's socket to go with the connection", lambda: _is_gone(Path(place)), 30)
            done = await run([word for word in command if word != "-A"], SSH_AUTH_SOCK=str(at))
            assert b"of the agent" not in done.out
    finally:
        await agent.stop()


async def test_refusals_are_read_and_end_with_255(r: Rig) -> None:
    async with scene(r, policy(user="somebody")) as (_, client, __):
        for user in (ME, "nosuchuser", "../x"):
            done = await client.ssh("id", user=user, more=BANNERS)
            assert done.code == 255
            assert "tailscale: " in done.err


async def test_check_is_approved_or_rejected_in_headscale(r: Rig) -> None:
    async with scene(r, policy("check")) as (hs, client, _):
        for verdict in ("reject", "approve"):
            process = await trio.lowlevel.open_process(
                ["ssh", *BANNERS, *client.options, f"{ME}@{client.ip}", "echo in"], stdout=-1, stderr=-1
            )
            assert process.stderr is not None
            assert process.stdout is not None
            seen = ""
            with trio.fail_after(30):
                while not (found := re.search(r"hskey-authreq-[\w-]+", seen)):
                    seen += (await process.stderr.receive_some()).decode()
                await hs.cli("auth", verdict, "--auth-id", found[0])
                out = b"".join([piece async for piece in process.stdout])
                await process.wait()
            assert (out, process.returncode) == ((b"in\n", 0) if verdict == "approve" else (b"", 255))
        assert (await client.ssh("echo again")).out == b"again\n"


@pytest.mark.parametrize("after", [policy(user="somebody"), EVERYBODY], ids=["changed", "removed"])
async def test_sessions_end_when_headscale_has_another_policy(r: Rig, after: Json) -> None:
    async with scene(r, policy()) as (hs, client, _):
        process = await trio.lowlevel.open_process(
            ["ssh", *client.options, f"{ME}@{client.ip}", "echo here; sleep 60"], stdout=-1, stderr=-1
        )
        assert process.stderr is not None
        assert process.stdout is not None
        with trio.fail_after(50):
            assert await process.stdout.receive_some() == b"here\n"
            await hs.set_policy(after)
            err = b"".join([piece async for piece in process.stderr])
            await process.wait()
        assert b"Access revoked" in err
        assert process.returncode == 255
        assert (await client.ssh("id")).code == 255


async def test_our_ssh_logs_in_to_a_stock_server(r: Rig) -> None:
    async with tailnet(r) as hs:
        await hs.user()
        await hs.set_policy(policy())
        async with r.tailscaled("stock", control=hs, auth_key=await hs.auth_key()) as node:
            await node.cli("set", "--ssh")
            async with daemon(r, hs, "ours") as stock:
                await poll_until("the stock node's host keys", lambda: _has_keys(stock), 30)
                words = ["ssh", f"{ME}@stock", "cat; exit 5"]
                ours = [sys.executable, "-m", "tailscale.cli", "--state", stock.state, *words]
                done = await run(ours, b"over", PYTHONPATH=str(ROOT))
                assert (done.code, done.out) == (5, b"over"), done.err
                code, told = await stock.run("ssh", f"{ME}@stock", "echo by stock words")
                assert (code, "by stock words" in told) == (0, True), told


async def _has_keys(stock: Any) -> bool | None:
    return "sshHostKeys" in await stock("status", "--json") or None


async def test_sshd_and_ssh_of_two_daemons_of_ours(r: Rig) -> None:
    async with tailnet(r) as hs:
        await hs.user()
        await hs.set_policy(policy())
        async with daemon(r, hs, "server") as server, daemon(r, hs, "client") as client:
            words = [sys.executable, "-m", "tailscale.cli"]
            sshd = await trio.lowlevel.open_process(
                [*words, "--state", server.state, "sshd", "--shell"],
                stderr=-1,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
            )
            try:
                await poll_until("the server's host keys", lambda: _has_keys(client), 30)
                done = await run(
                    [*words, "--state", client.state, "ssh", f"{ME}@server", "echo $USER"], PYTHONPATH=str(ROOT)
                )
                assert (done.code, done.out) == (0, f"{ME}\n".encode()), done.err
            finally:
                sshd.terminate()
                await sshd.wait()


async def test_stock_set_and_up_turn_our_daemons_server_on_and_off(r: Rig) -> None:
    async with tailnet(r) as hs:
        await hs.user()
        await hs.set_policy(policy())
        async with (
            daemon(r, hs, "ours") as ours,
            r.tailscaled("stock", control=hs, auth_key=await hs.auth_key()) as node,
        ):
            address = (await ours("ip", "-4")).strip()
            client = Client(node, address)

            async def is_told() -> bool | None:
                return "sshHostKeys" in await node.cli("status", "--json") or None

            async def is_untold() -> bool | None:
                return not await is_told() or None

            await ours("set", "--ssh")
            assert re.search(r"ssh +true\n", await ours("get"))
            await poll_until("our host keys at the stock node", is_told, 30)
            done = await client.stock("echo in as $USER")
            assert (done.code, done.out) == (0, f"in as {ME}\n".encode()), done.err
            await ours("set", "--ssh=false")
            await poll_until("our host keys to go", is_untold, 30)
            assert (await client.ssh("true")).code == 255
            await ours("up", "--ssh", "--hostname=ours", f"--login-server={hs.url}", "--accept-routes")
            await poll_until("our host keys at the stock node", is_told, 30)
            assert (await client.stock("exit 3")).code == 3
