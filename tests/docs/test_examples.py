"""Every example runs as its opening says, in a tailnet with peers, as a process of its own."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
from docs_world import World
from hello_scripts import hello
from snippets import ROOT, missing_library

import tailscale
from tailscale.dns import wire
from tailscale.testing import Tailnet
from ts_base.client_hello import UNRECOGNIZED_NAME, encode_alert

EXAMPLES = ROOT / "examples"
PATIENCE = 20.0
CLIENTS = [
    # program              arguments            what it prints
    ("hello.py",           [],                  r"I am hello\S+ \(100\..*\n(.*\n)*  db +100\.\S+ +online"),
    ("udp_ping.py",        ["db", "7"],         r"(ping \d: [\d.]+ ms\n){3}"),
    ("http_client.py",     ["http://web/"],     r"200 hello fetcher"),
    ("sync_client.py",     ["db", "5432"],      r"hello\n"),
    ("mesh_chat.py",       ["alice", "hello"],  r"chatting as alice, with nobody yet\n"),
    ("aio_client.py",      ["db", "5432"],      r"hello 0\nhello 1\nhello 2\n"),
    ("taildrop.py",        ["targets"],         r"db +\S+ +online"),
    ("locked_tailnet.py",  [],                  r"This tailnet has no lock.\n"),
    ("exits_by_policy.py", ["NL", "example.com", "80"], r"(shop-\d goes by exit-nl, by \w+ .*\n){3}any: exit-nl"),
]  # fmt: skip
REQUEST = b"GET / HTTP/1.1\r\nHost: greeter\r\nConnection: close\r\n\r\n"
PUBLISHED = REQUEST.replace(b"greeter", b"publisher")
SERVERS = [
    # program              arguments             name       port  said              answer
    ("echo_server.py",     [],                   "echo",    7,    b"hello",         rb"hello"),
    ("http_serve.py",      [],                   "greeter", 80,   REQUEST,          rb'200 (.|\r\n)*"hello":"caller"'),
    ("uvicorn_serve.py",   [],                   "greeter2", 80,  REQUEST,          rb"hello caller"),
    ("ssh_server.py",      [],                   "notes",   22,   b"",               rb"SSH-2.0-Tailscale"),
    ("proxy.py",           [],                  "proxy",   1080, REQUEST,          rb"HTTP/1.1 200 "),
    ("serve_folder.py",    [],                   "publisher", 80,  PUBLISHED,        rb"look at /files"),
    ("whois_auth.py",      ["admin@example.com"], "club",   4000, b"",              rb"not for you\n"),
    ("whois_auth.py",      ["user@tailnet.test"], "club",    4000, b"",              rb"welcome, caller\n"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "arguments", "printed"), CLIENTS, ids=[row[0] for row in CLIENTS])
@pytest.mark.slow
def test_client_example(name: str, arguments: list[str], printed: str, visitor: dict[str, str]) -> None:
    command = [sys.executable, "-W", "error", str(EXAMPLES / name), *arguments]
    done = subprocess.run(command, env=visitor, capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(printed, done.stdout), done.stdout


@pytest.mark.parametrize("name", [row[0] for row in CLIENTS if row[1] and row[0] != "mesh_chat.py"])
@pytest.mark.slow
def test_an_example_without_its_arguments_says_what_it_takes(name: str) -> None:
    done = subprocess.run([sys.executable, str(EXAMPLES / name)], capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"python {name} " in done.stderr
    assert "Traceback" not in done.stderr


@asynccontextmanager
async def running(command: list[str], environment: dict[str, str]) -> AsyncIterator[trio.Process]:
    """A server example, once it has said that it listens; ended as Ctrl-C does."""
    async with trio.open_nursery() as nursery:
        start = partial(trio.run_process, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
        process: trio.Process = await nursery.start(start, command)
        assert process.stdout is not None
        assert process.stderr is not None
        assert await process.stdout.receive_some(), await process.stderr.receive_some()
        yield process
        process.send_signal(signal.SIGINT)
        await process.wait()


def without(name: str) -> list[pytest.MarkDecorator]:
    """A mark, because what an async test says when it skips itself is lost."""
    library = missing_library((EXAMPLES / name).read_text())
    return [pytest.mark.skip(reason=f"{library} is not installed")] if library else []


@pytest.mark.parametrize(
    ("name", "arguments", "host", "port", "said", "answer"),
    [pytest.param(*row, id=" ".join([row[0], *row[1]]), marks=without(row[0])) for row in SERVERS],
)
@pytest.mark.slow
async def test_server_example(
    name: str, arguments: list[str], host: str, port: int, said: bytes, answer: bytes, visitor: dict[str, str]
) -> None:
    command = [sys.executable, "-W", "error", str(EXAMPLES / name), *arguments]
    with trio.fail_after(PATIENCE):
        async with running(command, visitor), tailscale.Device("caller") as caller:
            while host not in caller.peers:  # noqa: ASYNC110 - no event is of this one name
                await trio.sleep(0.02)
            await caller.ping(host)
            async with await caller.tcp_connect(host, port) as stream:
                await stream.send_all(said)
                if said != REQUEST:  # a web server may take that for a hang-up
                    await stream.send_eof()
                heard = b"".join([data async for data in stream])
    assert re.search(answer, heard), heard


@pytest.mark.slow
async def test_relay_example(visitor: dict[str, str]) -> None:
    command = [sys.executable, "-W", "error", str(EXAMPLES / "funnel_relay.py"), "127.0.0.1:0", "web.example.com=db"]
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            start = partial(trio.run_process, env=visitor, stdout=subprocess.PIPE, check=False)
            process: trio.Process = await nursery.start(start, command)
            assert process.stdout is not None
            said = ""
            while not said.endswith("\n"):
                more = await process.stdout.receive_some()
                assert more, f"it ended, having said {said!r}"
                said += more.decode()
            async with await trio.open_tcp_stream("127.0.0.1", int(said.split()[4])) as stream:
                await stream.send_all(hello(b"other.example.com"))
                assert await stream.receive_some() == encode_alert(UNRECOGNIZED_NAME)
            process.send_signal(signal.SIGINT)


ROUTERS = [
    # program                   arguments             name      carries             what it says first
    ("router.py",              ["192.168.76.0/24"],  "router", "192.168.76.0/24",  "approval: 192.168.76.0/24"),
    ("router.py",              ["--exit-node"],      "router", "0.0.0.0/0",        "approval: 0.0.0.0/0, ::/0"),
    ("answer_for_a_subnet.py", ["192.168.77.0/24"],  "oracle", "192.168.77.0/24",  "answering for 192.168.77.0/24"),
]  # fmt: skip


async def until_said(process: trio.Process, words: str) -> None:
    assert process.stdout is not None
    said = ""
    while words not in said:
        more = await process.stdout.receive_some()
        assert more, f"it ended, having said {said!r}"
        said += more.decode()


def approved(number: int, routes: tuple[str, ...], net: Tailnet) -> None:
    net.control.do(net.control.server.approve_routes, number, routes)


@pytest.mark.parametrize(("name", "arguments", "host", "route", "printed"), ROUTERS)
@pytest.mark.slow
async def test_router_example(
    name: str, arguments: list[str], host: str, route: str, printed: str, visitor: dict[str, str], world: World
) -> None:
    command = [sys.executable, "-W", "error", str(EXAMPLES / name), *arguments]
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery, tailscale.Device("caller") as caller:
            start = partial(trio.run_process, env=visitor, stdout=subprocess.PIPE, check=False)
            process: trio.Process = await nursery.start(start, command)
            await until_said(process, printed)
            while host not in caller.peers:  # noqa: ASYNC110 - no event is of this one name
                await trio.sleep(0.02)
            number = caller.peers[host].id
            routes = ("0.0.0.0/0", "::/0") if route == "0.0.0.0/0" else (route,)
            approve = partial(approved, number, routes)
            await trio.to_thread.run_sync(world.ask, approve)
            while route not in caller.peers[host].routes:  # noqa: ASYNC110 - as above
                await trio.sleep(0.02)
            if host == "oracle":
                async with await caller.tcp_connect("192.168.77.200", 80) as stream:
                    heard = b"".join([data async for data in stream])
                assert heard == b"192.168.77.200 says hello to caller\n"
            else:
                await until_said(process, f"carrying for {route}")
            process.send_signal(signal.SIGINT)
            await process.wait()


@pytest.mark.slow
def test_example_project_passes_its_own_suite(visitor: dict[str, str]) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:asyncio"]
    folder = EXAMPLES / "test_with_tailnet"
    done = subprocess.run(command, cwd=folder, env=visitor, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^4 passed", done.stdout, re.MULTILINE), done.stdout


def test_no_example_is_left_out(world: World) -> None:
    tried = {row[0] for row in (*CLIENTS, *SERVERS, *ROUTERS)} | {"funnel_relay.py", "name_server.py"}
    assert {path.name for path in EXAMPLES.glob("*.py")} == tried
    listed = (EXAMPLES / "README.md").read_text()
    assert not [name for name in tried if f"[{name}]" not in listed]


@pytest.mark.slow
def test_name_server_example_answers(visitor: dict[str, str]) -> None:
    command = [sys.executable, "-W", "error", str(EXAMPLES / "name_server.py"), "127.0.0.1", "0"]
    with subprocess.Popen(command, env=visitor, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = re.search(r"(names\S*) is (100\.\S+); ask 127\.0\.0\.1 port (\d+)", process.stdout.readline())
        assert said is not None
        with socket.socket(type=socket.SOCK_DGRAM) as client:
            client.settimeout(PATIENCE)
            client.sendto(wire.encode_question(said[1], wire.A, 1), ("127.0.0.1", int(said[3])))
            assert wire.decode_records_untrusted(client.recv(512))[1][0].body == said[2]
        process.send_signal(signal.SIGTERM)
