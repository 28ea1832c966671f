"""`/pytailscale/v1/` through our own clients."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tailscale.daemon import AsyncClient, Client, DaemonError
from tailscale.daemon.daemon import Daemon
from tailscale.daemon.requests import DaemonAbsent


def test_status_is_the_devices_and_the_daemons(client: Client, daemon: Daemon) -> None:
    found = client.get("status")
    assert found["daemon"]["state"] == found["device"]["state"] == "running"
    assert found["daemon"]["is_ready"]
    assert found["device"]["self"]["hostname"] == "keeper"
    assert found["daemon"]["socket"] == daemon.places.socket


def test_streams_give_lines_until_they_are_left(client: Client) -> None:
    lines = client.stream("status?watch=0.1")
    assert [next(lines)["daemon"]["state"] for _ in range(2)] == ["running"] * 2
    lines.close()  # type: ignore[attr-defined]
    figures = next(client.stream("statistics?watch=0.1"))
    assert "db.tailnet.test" in figures["peers"]
    assert figures["counters"]["drops"] == {} or figures["counters"]["drops"]


def test_events_begin_with_where_the_daemon_stands(client: Client) -> None:
    assert next(client.stream("events"))["event"] == "Hello"


def test_log_tells_what_was_said_before(client: Client) -> None:
    first = next(client.stream("log?backlog=100"))
    assert first["event"] == "Line"
    assert first["message"].startswith("the daemon listens at ")


def test_contract_names_what_there_is(client: Client) -> None:
    assert "GET status" in client.get("/pytailscale/v1/")


def test_asyncio_client_asks_and_listens(client: Client) -> None:
    async def main() -> tuple[Any, Any]:
        daemon = AsyncClient(client.path)
        async for event in daemon.stream("events"):
            return await daemon.get("whois?address=100.64.0.1"), event
        raise AssertionError

    whois, event = asyncio.run(main())
    assert (whois["node"]["hostname"], event["state"]) == ("db", "running")


def test_refusals_have_a_name_and_a_sentence(client: Client) -> None:
    with pytest.raises(DaemonError, match=r"no node or record is called 'nobody'") as caught:
        client.get("ping?host=nobody")
    assert (caught.value.kind, caught.value.status) == ("NameNotFound", 404)
    with pytest.raises(DaemonError, match="there is nothing at /pytailscale/v1/nothing"):
        client.get("nothing")
    with pytest.raises(DaemonError, match="takes GET, not POST"):
        client.post("status")


def test_no_daemon_is_a_connection_error(tmp_path: Any) -> None:
    with pytest.raises(DaemonAbsent, match="`pytailscale up` starts one"):
        Client(tmp_path / "nothing.sock").get("status")
    assert issubclass(DaemonAbsent, ConnectionError)
