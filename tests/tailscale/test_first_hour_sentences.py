"""The mistakes of a first hour, as a table: each is answered before the network, by one sentence that says what to do."""
# ruff: noqa: E501 - a table reads best one row a line

from __future__ import annotations

import asyncio
import socket
import traceback
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import trio
from tailnet_scripts import echo_service
from thread_scripts import introduce
from trio.testing import MockClock

import tailscale
from tailscale import aio, sync
from tailscale.dial.dialing import host_and_port
from tailscale.http import AsyncTransport, Transport
from tailscale.mesh import Mesh
from tailscale.testing import Tailnet
from tailscale.testing.threaded import TailnetThread


def enter_under_asyncio() -> None:
    async def main() -> None:
        async with tailscale.Device("x"):
            pass

    asyncio.run(main())


def enter_aio_under_trio() -> None:
    async def main() -> None:
        async with aio.Device("x"):
            pass

    trio.run(main)


def enter_plainly() -> None:
    with tailscale.Device("x"):
        pass


def enter_aio_plainly() -> None:
    with aio.Device("x"):
        pass


def enter_sync_by_async_with() -> None:
    async def main() -> None:
        async with sync.Device("x"):
            pass

    asyncio.run(main())


def use_async_transport_in_a_client() -> None:
    with httpx.Client(transport=AsyncTransport(tailscale.Device("x"))):  # type: ignore[arg-type]
        pass


def ask_by_async_transport_in_a_client() -> None:
    httpx.Client(transport=AsyncTransport(tailscale.Device("x"))).get("http://db/")  # type: ignore[arg-type]


def use_transport_in_an_async_client() -> None:
    async def main() -> None:
        async with httpx.AsyncClient(transport=Transport(sync.Device("x"))):  # type: ignore[arg-type]
            pass

    asyncio.run(main())


ROWS: list[tuple[Callable[[], object], type[Exception], str]] = [
    (enter_under_asyncio, tailscale.WrongFace, r"Device was entered outside of trio: .*tailscale\.aio\.Device for asyncio \(Jupyter too\).*tailscale\.sync\.Device"),
    (enter_aio_under_trio, tailscale.WrongFace, r"aio\.Device was entered outside of asyncio: tailscale\.Device is for trio"),
    (enter_plainly, TypeError, r"tailscale\.Device is entered with `async with`, not with `with`: .*tailscale\.sync\.Device"),
    (enter_aio_plainly, TypeError, r"tailscale\.aio\.Device is entered with `async with`, not with `with`: .*tailscale\.sync\.Device"),
    (enter_sync_by_async_with, TypeError, r"tailscale\.sync\.Device is entered with `with`, not with `async with`: .*tailscale\.aio\.Device"),
    (lambda: Transport(tailscale.Device("x")), tailscale.WrongFace, r"Transport takes a tailscale\.sync\.Device, not a tailscale\.device\.Device: AsyncTransport is for"),  # type: ignore[arg-type]
    (lambda: AsyncTransport(sync.Device("x")), tailscale.WrongFace, r"AsyncTransport takes a tailscale\.Device or tailscale\.aio\.Device, not a tailscale\.sync\.Device"),  # type: ignore[arg-type]
    (use_async_transport_in_a_client, tailscale.WrongFace, r"httpx\.Client takes a Transport over a tailscale\.sync\.Device"),
    (ask_by_async_transport_in_a_client, tailscale.WrongFace, r"httpx\.Client takes a Transport over a tailscale\.sync\.Device"),
    (use_transport_in_an_async_client, tailscale.WrongFace, r"httpx\.AsyncClient takes an AsyncTransport"),
    (lambda: tailscale.Device(tags="tag:ci"), TypeError, r'tags takes a list of names, such as \["tag:ci"\], not the text .tag:ci.'),
    (lambda: tailscale.Device(tags=["ci"]), ValueError, r'tags takes names such as "tag:ci" .*, not .ci.'),
    (lambda: tailscale.Device(tags=["tag:"]), ValueError, r'tags takes names such as "tag:ci"'),
    (lambda: tailscale.Device(advertise_routes="10.0.0.0/8"), TypeError, r"advertise_routes takes a list of prefixes, .*not the text"),
    (lambda: tailscale.Device(advertise_routes=["10.0.0.5/8"]), ValueError, r"advertise_routes takes prefixes such as .*host bits set: '10\.0\.0\.5/8'"),
    (lambda: tailscale.Device(advertise_routes=["office"]), ValueError, r"advertise_routes takes prefixes such as"),
    (lambda: host_and_port("db:7", None), TypeError, r"host and port are two things: 'db', 7, not 'db:7'"),
    (lambda: host_and_port("db", None), TypeError, r"a connection needs a port too: 'db', 5432"),
    (lambda: host_and_port("db", "7"), TypeError, r"port is a number: 7, not '7'"),  # type: ignore[arg-type]
    (lambda: sync.Device(hostnme="x"), TypeError, r"a Device takes no hostnme=: it takes auth_key, client_id"),  # type: ignore[call-arg]
    (lambda: aio.Device("x", authkey="k"), TypeError, r"a Device takes no authkey=: it takes auth_key"),  # type: ignore[call-arg]
    (lambda: sync.Device(7), TypeError, r'hostname is text, such as "worker", not 7'),  # type: ignore[arg-type]
    (lambda: tailscale.Device(7), TypeError, r'hostname is text, such as "worker", not 7'),  # type: ignore[arg-type]
    (lambda: sync.Device("x").node, tailscale.DeviceNotReady, r"has not been entered"),
]  # fmt: skip


@pytest.mark.parametrize(("mistake", "kind", "sentence"), ROWS)
def test_a_mistake_is_named_before_the_network(
    mistake: Callable[[], object], kind: type[Exception], sentence: str
) -> None:
    with pytest.raises(kind, match=sentence):
        mistake()


async def test_the_same_is_checked_when_preferences_change(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    a = await tailnet.device("a")
    with pytest.raises(ValueError, match="tags takes names"):
        await a.set(tags=["ci"])
    with pytest.raises(TypeError, match="takes a list of prefixes"):
        await a.set(advertise_routes="10.0.0.0/8")


async def test_a_peer_of_another_name_is_suggested(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    a, _ = await tailnet.device("a"), await tailnet.device("database")
    with pytest.raises(KeyError) as caught:
        a.peers["databse"]
    assert str(caught.value) == "no peer is called 'databse'; did you mean 'database'?"
    assert a.peers.get("databse") is None
    with pytest.raises(KeyError, match=r"no peer is called 'databse'; did you mean 'database'\?"):
        a.peer_status("databse")


async def test_a_member_of_another_name_is_suggested(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    a, b = await tailnet.device("a"), await tailnet.device("database")
    async with Mesh(a, "notes") as here, Mesh(b, "notes"):
        await here.peer("database", timeout=10)
        with pytest.raises(KeyError, match=r"no member is called 'databse'; did you mean 'database'\?"):
            here.peers["databse"]
        assert here.peers.get("databse") is None


async def test_words_of_other_streams_are_translated(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    a, b = await tailnet.device("a"), await tailnet.device("b")
    async with echo_service(b, 80), await a.tcp_connect("b", 80) as stream:
        for name, meant in (("send", "send_all"), ("read", "receive_some"), ("shutdown", "send_eof")):
            with pytest.raises(AttributeError, match=f"no attribute '{name}': it is a trio stream, use .*{meant}"):
                getattr(stream, name)
        with pytest.raises(AttributeError, match=r"'TcpStream' object has no attribute 'nonsense'$"):
            stream.nonsense  # type: ignore[attr-defined]  # noqa: B018
        assert not hasattr(stream, "fileno")


@pytest.mark.parametrize("address", ["100.64.99.99", "fd7a:115c:a1e0::9999"])
async def test_addresses_of_tailnets_never_leave_by_the_machine_itself(
    autojump_clock: MockClock, tailnet: Tailnet, address: str
) -> None:
    a = await tailnet.device("a")
    assert await a.way_to(address) == (True, address)
    assert await a.way_by(address, None) == (True, address, None)
    with pytest.raises(tailscale.NoRoute, match="no peer owns or routes"):
        await a.connect_anywhere(address, 80)


def test_a_state_that_is_somebody_elses_file_gets_no_bad_advice(tmp_path: Path) -> None:
    theirs = tmp_path / "hostname"
    theirs.write_text("laptop\n")
    theirs.chmod(0o644)
    with pytest.raises(tailscale.StateCorrupt) as caught:
        tailscale.FileStore(theirs).load()
    assert "it is no state of a device: state= names a directory, or a file of its own" in str(caught.value)
    assert "chmod" not in str(caught.value)


def frames_of_ours(error: BaseException) -> list[str]:
    root = str(Path(tailscale.__file__).parent)
    return [frame.filename for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(root)]


async def test_a_failed_dial_shows_the_program_and_not_our_files(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    a, _ = await tailnet.device("a"), await tailnet.device("b")
    for dial in (lambda: a.tcp_connect("nobody", 80), lambda: a.tcp_connect("b", 81), lambda: a.ping("nobody")):
        with pytest.raises(tailscale.TailscaleError) as caught:
            await dial()
        assert len(frames_of_ours(caught.value)) <= 2


async def test_the_way_an_error_came_is_in_the_log(tailnet: Tailnet, caplog: pytest.LogCaptureFixture) -> None:
    a = await tailnet.device("a")
    with caplog.at_level("DEBUG", "tailscale"), pytest.raises(tailscale.NameNotFound):
        await a.tcp_connect("nobody", 80)
    assert "dialing.py" in caplog.text
    assert "the program gets: no node or record is called 'nobody'" in caplog.text


def enter_plain_device(control_url: str) -> None:
    with sync.Device("x", control_url=control_url, auth_key="tskey-auth-wrong"):
        pass


def enter_asyncio_device(control_url: str) -> None:
    async def main() -> None:
        async with aio.Device("x", control_url=control_url, auth_key="tskey-auth-wrong"):
            pass

    asyncio.run(main())


def test_a_failed_dial_in_plain_threads_is_short() -> None:
    with (
        TailnetThread() as threaded,
        sync.Device("pear", **threaded.options()) as pear,
        sync.Device("s", **threaded.options()) as s,
    ):
        with pytest.raises(tailscale.NameNotFound) as caught:
            s.connect("nobody.tailnet.test", 80)
        assert len(frames_of_ours(caught.value)) <= 4
        with s.take_dials(), pytest.raises(OSError) as dialled:
            socket.create_connection(("pear.tailnet.test", 9))
        assert len(frames_of_ours(dialled.value)) <= 4
        for enter in (enter_plain_device, enter_asyncio_device):
            with pytest.raises(tailscale.AuthKeyRejected) as refused:
                enter(threaded.control_url)
            assert len(frames_of_ours(refused.value)) <= 2
        assert "concurrent" not in "".join(traceback.format_exception(caught.value))
        introduce(pear, s)
        with pytest.raises(tailscale.NameNotFound, match=r"'paer' \(nor could this machine.*did you mean 'pear'\?"):
            s.connect_anywhere("paer", 80)
