"""The `tailnet` fixture in suites of others: plain tests, pytest-asyncio, anyio on both loops, and nothing at all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ASYNC_BODY = """
    server, client = await tailnet.device("server"), await tailnet.device("client")
    door = await server.forward_listen(80)
    reader, writer = await client.open_connection("server", 80)
    accepted, address = await asyncio.get_running_loop().sock_accept(door)
    assert address[0] == client.ipv4
    accepted.close()
    assert await reader.read() == b""
    writer.close()
    door.close()
    async with tailnet.device("guest") as guest:
        assert guest.is_open
    assert not guest.is_open
    tailnet.rename(server, "renamed")
"""
PLAIN = """
def test_plain(tailnet):
    server, client = tailnet.device("server"), tailnet.device("client")
    with server.listen(80) as listener, client.connect("server", 80) as sock:
        accepted, address = listener.accept()
        assert address[0] == client.ipv4
        accepted.sendall(b"hello")
        accepted.close()
        assert sock.recv(5) == b"hello"
    with tailnet.device("guest") as guest:
        assert "guest" in repr(guest)
    assert not guest.is_open
    tailnet.policy({"acls": []})
    tailnet.control.restart()


def test_another_is_another(tailnet):
    assert tailnet.device("server").ipv4 == "100.64.0.1"
"""
ASYNCIO = f"""
import asyncio, pytest

@pytest.mark.asyncio
async def test_asyncio(tailnet):{ASYNC_BODY}
"""
ANYIO = f"""
import asyncio, pytest
pytestmark = pytest.mark.anyio

@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_anyio_on_asyncio(tailnet, anyio_backend):{ASYNC_BODY}

@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_anyio_on_trio(tailnet, anyio_backend):
    async with tailnet.device("server") as server, tailnet.device("client") as client:
        assert (await client.ping("server")).latency < 5
"""
TRIO = """
import pytest, tailscale

@pytest.fixture
async def server(tailnet):
    return await tailnet.device("server")

@pytest.mark.trio
async def test_trio(tailnet, server, autojump_clock):
    assert isinstance(server, tailscale.Device)
    assert server in [server for _ in [await tailnet.device("client")]]
"""


def run(folder: Path, source: str, *options: str) -> str:
    (folder / "test_theirs.py").write_text(source)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        *(f"-pno:{plugin}" for plugin in ("cacheprovider", "xdist", "cov")),
    ]
    done = subprocess.run([*command, *options], cwd=folder, capture_output=True, text=True, check=False, timeout=60)
    return done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "without", "passed"),
    [
        pytest.param(PLAIN, ("trio", "asyncio"), 2, id="plain"),
        pytest.param(ASYNCIO, ("trio",), 1, id="pytest-asyncio"),
        pytest.param(ANYIO, ("trio", "asyncio"), 2, id="anyio"),
        pytest.param(TRIO, ("asyncio",), 1, id="pytest-trio"),
    ],
)
def test_fixture_fits_the_test_that_asks(tmp_path: Path, source: str, without: tuple[str, ...], passed: int) -> None:
    settings = () if "asyncio" in without else ("-o", "asyncio_default_fixture_loop_scope=function")
    said = run(tmp_path, source, "-W", "error", *settings, *(f"-pno:{plugin}" for plugin in without))
    assert f"{passed} passed" in said, said


@pytest.mark.slow
def test_async_test_that_nothing_runs_is_told_what_to_install(tmp_path: Path) -> None:
    said = run(tmp_path, "async def test_nobody_runs(tailnet): ...", "-pno:trio", "-pno:asyncio", "-pno:anyio")
    assert "pip install 'pytailscale[testing]'" in said


JOINING = (
    "import tailscale, trio\n"
    "async def main():\n"
    "    async with tailscale.Device('child') as device: print(device.name)\n"
    "trio.run(main)\n"
    "raise SystemExit(3)"
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "code", "said"),
    [([sys.executable, "-c", JOINING], 3, "child.tailnet.test\n"), (["no-such-program"], 127, "no command 'no-such")],
    ids=["joins", "missing"],
)
def test_command_runs_in_a_tailnet_of_its_own(command: list[str], code: int, said: str) -> None:
    starting = [sys.executable, "-m", "tailscale.testing", "--", *command]
    done = subprocess.run(starting, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == code
    assert said in done.stdout + done.stderr


@pytest.mark.slow
def test_a_shell_may_evaluate_what_is_exported(tmp_path: Path) -> None:
    program = tmp_path / "joining.py"
    program.write_text(JOINING)
    script = (
        f'eval "$({sys.executable} -m tailscale.testing --export)"; {sys.executable} {program}; echo $?; '
        "kill $TS_TAILNET_PID && while kill -0 $TS_TAILNET_PID 2>/dev/null; do :; done; echo gone"
    )
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert (done.stdout, done.stderr) == ("child.tailnet.test\n3\ngone\n", "")
    wrong = [sys.executable, "-m", "tailscale.testing", "--export", "--policy", str(program)]
    done = subprocess.run(wrong, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert "the tailnet did not start: " in done.stderr
