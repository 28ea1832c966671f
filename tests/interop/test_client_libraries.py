"""Libraries that dial by themselves, unmodified, while `take_dials` is on; and loops that a device cannot run beside.

The servers speak as much of each protocol as a client's first question needs; Redis is the real one in
`test_real_clients.py`. The libraries are those of the groups `clients` and `loops`, which `make interop` installs.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import importlib.util
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from struct import pack, unpack_from
from typing import Any

import pytest

from tailscale import sync
from tailscale.testing.threaded import TailnetThread
from tests.interop.processes import PORTS
from tests.tailscale.thread_scripts import introduce

pytestmark = pytest.mark.interop
Pair = tuple[sync.Device, sync.Device]
HTTP = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok"
OP_MSG, OP_QUERY = 2013, 2004


@pytest.fixture(scope="module")
def net() -> Iterator[TailnetThread]:
    with TailnetThread() as net:
        yield net


@pytest.fixture(scope="module")
def pair(net: TailnetThread) -> Iterator[Pair]:
    with sync.Device("app", **net.options()) as app, sync.Device("db", **net.options()) as db:
        introduce(app, db)
        yield app, db


@contextlib.contextmanager
def serving(device: sync.Device, speak: Callable[[Any], None]) -> Iterator[int]:
    def attend(sock: Any) -> None:
        with sock, contextlib.suppress(OSError):
            speak(sock)

    def accept() -> None:
        for sock, _ in listener:
            threading.Thread(target=attend, args=(sock,), daemon=True).start()

    with device.listen(0) as listener:
        thread = threading.Thread(target=accept)
        thread.start()
        yield listener.port
    thread.join()


def speak_http(sock: Any) -> None:
    sock.recv(65536)
    sock.sendall(HTTP)


def speak_redis(sock: Any) -> None:
    while data := sock.recv(65536):
        sock.sendall(b"".join(b"+PONG\r\n" if b"PING" in data else b"+OK\r\n" for _ in range(data.count(b"*"))))


def speak_mqtt(sock: Any) -> None:
    """CONNACK to a CONNECT, SUBACK to a SUBSCRIBE (MQTT 3.1.1, sections 3.2 and 3.9)."""
    while data := sock.recv(65536):
        if data[0] == 0x10:
            sock.sendall(b"\x20\x02\0\0")
        elif data[0] == 0x82:
            sock.sendall(b"\x90\x03" + data[2:4] + b"\0")


def speak_mongo(sock: Any) -> None:
    bson = importlib.import_module("bson")
    hello = {"ok": 1, "isWritablePrimary": True, "maxWireVersion": 21, "minWireVersion": 0, "helloOk": True}
    answer = bson.encode(hello)
    data = b""
    while more := sock.recv(65536):
        data += more
        while len(data) >= 16 and len(data) >= unpack_from("<i", data)[0]:
            length, number, _, code = unpack_from("<iiii", data)
            data = data[length:]
            body = pack("<IB", 0, 0) + answer if code == OP_MSG else pack("<iqii", 8, 0, 0, 1) + answer
            sock.sendall(pack("<iiii", 16 + len(body), 1, number, OP_MSG if code == OP_MSG else 1) + body)


def test_redis_by_name(pair: Pair) -> None:
    redis = pytest.importorskip("redis")
    with serving(pair[1], speak_redis) as port, pair[0].take_dials():
        with redis.Redis(host="db", port=port, protocol=2) as client:
            assert client.ping()

        async def main() -> None:
            async with redis.asyncio.Redis(host="db", port=port, protocol=2) as client:
                assert await client.ping()

        asyncio.run(main())


def test_pymongo_by_name_and_its_error(pair: Pair) -> None:
    pymongo = pytest.importorskip("pymongo")
    with serving(pair[1], speak_mongo) as port, pair[0].take_dials():
        with pymongo.MongoClient("db", port, directConnection=True, serverSelectionTimeoutMS=10_000) as client:
            assert client.admin.command("ping")["ok"] == 1
        with pymongo.MongoClient("db", 9, directConnection=True, serverSelectionTimeoutMS=1000) as client:
            with pytest.raises(pymongo.errors.ServerSelectionTimeoutError, match="nothing listens on that port"):
                client.admin.command("ping")


def test_paho_by_name(pair: Pair) -> None:
    mqtt = pytest.importorskip("paho.mqtt.client")
    with serving(pair[1], speak_mqtt) as port, pair[0].take_dials():
        client, subscribed = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2), threading.Event()
        client.on_connect = lambda *_: client.subscribe("weather")
        client.on_subscribe = lambda *_: subscribed.set()
        client.connect("db", port)
        client.loop_start()
        assert subscribed.wait(10)
        client.disconnect()
        client.loop_stop()


def test_http_clients_by_name(pair: Pair) -> None:
    aiohttp, httpx, requests, urllib3 = map(pytest.importorskip, ("aiohttp", "httpx", "requests", "urllib3"))
    with serving(pair[1], speak_http) as port, pair[0].take_dials():
        url = f"http://db:{port}/"
        assert requests.get(url, timeout=10).text == httpx.get(url).text == "ok"
        assert urllib3.request("GET", url).data == b"ok"

        async def main() -> None:
            async with aiohttp.ClientSession() as session, session.get(url) as answer:
                assert await answer.text() == "ok"
            async with httpx.AsyncClient() as client:
                assert (await client.get(url)).text == "ok"
                with pytest.raises(httpx.ConnectError):
                    await client.get("http://dbb/")

        asyncio.run(main())
        with pytest.raises(httpx.ConnectError, match="did you mean 'db'"):
            httpx.get("http://dbx/")


def test_uvloop_by_name(pair: Pair) -> None:
    uvloop, aiohttp = pytest.importorskip("uvloop"), pytest.importorskip("aiohttp")

    async def main(port: int) -> None:
        for host in ("db", pair[1].ipv4, pair[1].ipv6):
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(b"GET / HTTP/1.0\r\n\r\n")
            assert await reader.read() == HTTP
            writer.close()
        with pytest.raises(OSError, match="nothing listens on that port"):
            await asyncio.open_connection("db", 9)
        async with aiohttp.ClientSession() as session, session.get(f"http://db:{port}/") as answer:
            assert await answer.text() == "ok"
        server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection("localhost", server.sockets[0].getsockname()[1])
        assert await reader.read() == b""
        writer.close()
        server.close()

    before = vars(uvloop.Loop).copy()
    with serving(pair[1], speak_http) as port, pair[0].take_dials():
        uvloop.run(main(port))
    assert dict(vars(uvloop.Loop)) == dict(before)


def test_openssh_by_nc_as_its_proxy_command(net: TailnetThread, pair: Pair, tmp_path: Path) -> None:
    if not all(map(shutil.which, ("ssh", "ssh-keygen", "sshd"))):
        pytest.skip("REAL CLIENTS SKIPPED: no OpenSSH here: bash tests/interop/install_servers.sh")
    for name in ("host", "user"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)]
        subprocess.run(command, check=True)
    port = PORTS.take()
    Path("/run/sshd").mkdir(exist_ok=True)
    server = ["/usr/sbin/sshd", "-D", "-e", "-f", "/dev/null", "-h", str(tmp_path / "host"), "-p", str(port)]
    for option in ("ListenAddress=127.0.0.1", f"AuthorizedKeysFile={tmp_path / 'user.pub'}", "StrictModes=no",
                   "PidFile=none", "PermitRootLogin=yes"):  # fmt: skip
        server += ["-o", option]
    way = f"{sys.executable} -m pytailscale --ephemeral nc %h %p"
    ask = ["ssh", "-T", "-F", "/dev/null", "-i", str(tmp_path / "user"), "-o", f"ProxyCommand={way}"]
    ask += ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "db", "echo $((6 * 7))"]
    joining = {"TS_CONTROL_URL": net.control_url, "TS_AUTHKEY": net.auth_key(reusable=True), "HOME": str(tmp_path)}
    with subprocess.Popen(server, stderr=subprocess.PIPE, text=True) as daemon, pair[1].expose(22, local_port=port):
        try:
            assert daemon.stderr is not None
            assert "Server listening" in daemon.stderr.readline()
            done = subprocess.run(
                ask, env={**os.environ, **joining}, capture_output=True, text=True, timeout=60, check=False
            )
            assert done.stdout == "42\n", done.stderr
        finally:
            daemon.terminate()


@pytest.mark.parametrize(
    ("who", "patch"),
    [
        ("gevent", "from gevent import monkey; monkey.patch_all()"),
        ("eventlet", "import eventlet; eventlet.monkey_patch()"),
    ],
)
def test_green_threads_are_told_where_the_device_may_live(who: str, patch: str) -> None:
    if importlib.util.find_spec(who) is None:  # looked for only: eventlet warns of every fork once it is imported
        pytest.skip(f"no Python package {who} here: pip install --group loops")
    command = [sys.executable, "-W", "ignore", "-c", f"{patch}; import tailscale"]
    environment = {**os.environ, "EVENTLET_NO_GREENDNS": "yes"}  # its own resolver imports half of what is installed
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert f"ImportError: {who} has replaced the threads and sockets of this process" in done.stderr, done.stderr
