"""Programs of several processes, and of other kinds of threads: what works is tried, what cannot says so."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

import tailscale
from tailscale import aio, sync
from tailscale.testing.threaded import TailnetThread

PATCHED = {
    "gevent": "from gevent import monkey; monkey.patch_all()",
    "eventlet": "import eventlet; eventlet.monkey_patch()",
}
PRETENDED = {
    "gevent": "is_module_patched",
    "eventlet": "is_monkey_patched",
}


@pytest.fixture(scope="module")
def net() -> Iterator[TailnetThread]:
    with TailnetThread() as net:
        yield net


@pytest.mark.parametrize("face", [tailscale.Device, aio.Device, sync.Device])
@pytest.mark.parametrize("give", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_device_is_not_given_to_another_process(face: type, give: Callable[[object], object]) -> None:
    with pytest.raises(TypeError, match=r"Device is not pickled or copied, .* make one in each process"):
        give(face("x"))


def ask(job: tuple[int, str, str, str, int]) -> str:
    """In a process of its own: a device under a name of its own."""
    number, control_url, auth_key, host, port = job
    with sync.Device(f"worker-{number}", control_url=control_url, auth_key=auth_key) as device:
        while not device.known_way(host):
            device.ping(device.hostname)
        with device.connect(host, port, timeout=10) as sock:
            sock.sendall(device.hostname.encode())
            return f"{sock.recv(100).decode()} from {sock.getpeername()[0]}"


@pytest.mark.slow
def test_each_spawned_process_has_a_device_of_its_own(net: TailnetThread) -> None:
    key = net.auth_key(reusable=True)
    with sync.Device("boss", **net.options()) as boss, boss.listen(7000) as listener:
        import threading

        def echo() -> None:
            for sock, _ in listener:
                with sock:
                    sock.sendall(sock.recv(100))

        thread = threading.Thread(target=echo)
        thread.start()
        with multiprocessing.get_context("spawn").Pool(2) as pool:
            jobs = [(number, net.control_url, key, "boss", listener.port) for number in range(2)]
            assert pool.map(ask, jobs, 1) == [f"worker-{number} from {boss.ipv4}" for number in range(2)]
        listener.close()
        thread.join()


@pytest.mark.parametrize("who", PATCHED)
def test_a_process_without_real_threads_is_told(who: str) -> None:
    """The libraries themselves are tried in tests/interop; here, what we ask them."""
    home = "gevent.monkey" if who == "gevent" else "eventlet.patcher"
    code = (
        f"import sys, types; told = types.ModuleType({home!r}); told.{PRETENDED[who]} = lambda name: name == 'socket'; "
        f"sys.modules[{home!r}] = told; import tailscale"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert f"ImportError: {who} has replaced the threads and sockets of this process" in done.stderr


def test_a_process_that_loses_its_threads_later_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import types

    told = types.ModuleType("gevent.monkey")
    told.is_module_patched = lambda name: name == "thread"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "gevent.monkey", told)
    with pytest.raises(tailscale.WrongFace, match="gevent has replaced"):
        sync.Device("x").open()
