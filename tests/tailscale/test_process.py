"""What happens to the whole process: SIGTERM says goodbye first, and a fork is told that the Device is not its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tailscale
from tailscale.testing import Tailnet
from tailscale.testing.threaded import TailnetThread

IN_A_FORK = """
import os, tailscale

def in_a_fork(work):
    if child := os.fork():
        return os.waitpid(child, 0)[1]
    try:
        work()
    except tailscale.DeviceClosed as error:
        os._exit("is a fork" in str(error))
    os._exit(9)

"""
OPENING = {
    "trio": """
        import sys, trio, tailscale
        async def main():
            async with tailscale.Device('ghost', control_url=sys.argv[1], auth_key=sys.argv[2], **{options}) as device:
                {body}
                print('up', flush=True)
                await trio.sleep_forever()
        trio.run(main)
    """,
    "asyncio": """
        import asyncio, sys
        from tailscale import aio
        async def main():
            async with aio.Device('ghost', control_url=sys.argv[1], auth_key=sys.argv[2], **{options}) as device:
                {body}
                print('up', flush=True)
                await asyncio.Event().wait()
        asyncio.run(main())
    """,
    "threads": """
        import sys, threading, tailscale.sync
        with tailscale.sync.Device('ghost', control_url=sys.argv[1], auth_key=sys.argv[2], **{options}) as device:
            {body}
            print('up', flush=True)
            threading.Event().wait()
    """,
}
FACES = pytest.mark.parametrize("face", OPENING)


@pytest.fixture(scope="module")
def net() -> Iterator[TailnetThread]:
    with TailnetThread() as net:
        yield net


def program(face: str, options: str = "{}", body: str = "pass") -> str:
    lines = OPENING[face].format(options=options, body=body).splitlines()
    return IN_A_FORK + "\n".join(line[8:] for line in lines)


def ended_by_sigterm(net: TailnetThread, code: str) -> tuple[int, str]:
    """What a program died of when it was told to end once it was up, and what it said about that."""
    key = net.auth_key(reusable=True)
    command = [sys.executable, "-W", "error", "-c", code, net.control_url, key]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "up\n", running.communicate()[1]
        running.send_signal(signal.SIGTERM)
        said, complained = running.communicate(timeout=20)
        return running.returncode, said + complained


def labels(net: TailnetThread) -> list[str]:
    return [node.label for node in net.do(lambda: list(net.inner.control.server.directory))]


def ghosts(net: TailnetThread) -> list[str]:
    return [label for label in labels(net) if "ghost" in label]


@pytest.mark.slow
@FACES
def test_sigterm_kills_after_the_goodbye(net: TailnetThread, face: str) -> None:
    assert ended_by_sigterm(net, program(face)) == (-signal.SIGTERM, "")
    assert ghosts(net) == []


@pytest.mark.slow
def test_sigterm_with_two_devices_waits_for_both(net: TailnetThread) -> None:
    second = "tailscale.sync.Device('ghost-too', control_url=sys.argv[1], auth_key=sys.argv[2]).open()"
    assert ended_by_sigterm(net, program("threads", body=f"held = {second}")) == (-signal.SIGTERM, "")
    assert ghosts(net) == []


@pytest.mark.slow
def test_sigterm_of_a_program_that_hears_it_itself_is_its_own(net: TailnetThread) -> None:
    body = "import signal; signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))"
    assert ended_by_sigterm(net, program("threads", body=body)) == (3, "")
    assert ghosts(net) == []  # leaving the block said goodbye


@pytest.mark.slow
def test_sigterm_can_be_left_alone(net: TailnetThread) -> None:
    code = program("threads", "dict(handle_sigterm=False)").replace("ghost", "lingers")
    assert ended_by_sigterm(net, code) == (-signal.SIGTERM, "")
    assert "lingers" in labels(net)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize(
    ("face", "verb"),
    [
        ("trio", "lambda: device.peers"),
        ("asyncio", "lambda: device.whois('100.64.0.1').send(None)"),
        ("threads", "lambda: device.connect('ghost', 80)"),
    ],
)
@pytest.mark.slow
def test_a_fork_is_told_that_the_device_is_not_its_own(net: TailnetThread, face: str, verb: str) -> None:
    """It used to wait for ever for a thread that it does not have."""
    body = f"assert in_a_fork({verb}) == 1 << 8"
    assert ended_by_sigterm(net, program(face, body=body)) == (-signal.SIGTERM, "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.slow
def test_dials_that_are_taken_are_refused_in_a_fork(net: TailnetThread) -> None:
    body = (
        "import socket; dials = device.take_dials(); "
        "assert in_a_fork(lambda: socket.create_connection(('100.64.0.1', 80))) == 1 << 8; dials.close()"
    )
    code = program("threads", body=body).replace("except tailscale.DeviceClosed", "except tailscale.NotCarried")
    assert ended_by_sigterm(net, code) == (-signal.SIGTERM, "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.slow
def test_sigterm_of_a_fork_ends_the_fork_alone(net: TailnetThread) -> None:
    body = "assert in_a_fork(lambda: (os.kill(os.getpid(), 15), threading.Event().wait())) == 15; device.status()"
    assert ended_by_sigterm(net, program("threads", body=body)) == (-signal.SIGTERM, "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_fork_does_not_keep_the_state_locked(tmp_path: Path) -> None:
    store = tailscale.FileStore(tmp_path / "state")
    here, there = socket.socketpair()
    with here, there:
        with store.lock():
            child = os.fork()
            if not child:
                there.send(b"born")
                there.recv(4)
                os._exit(0)
            here.recv(4)
        with store.lock():
            here.send(b"done")
        os.waitpid(child, 0)


async def test_sigterm_is_given_back_when_the_last_device_leaves(tailnet: Tailnet) -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        async with tailnet.device("one"):
            assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)
