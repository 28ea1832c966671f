"""The status page's server: who may look, what a browser is told to allow, and that it changes nothing by itself."""

from __future__ import annotations

import functools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import h11
import pytest
import trio
from httpx import AsyncClient, Response
from tailnet_scripts import until

from tailscale import Device
from tailscale.testing import Tailnet
from tailscale.web import serve_page, server
from tailscale.web.entry import LINK_LIFETIME, Entry
from tailscale.web.server import FILES, FOLDER, STREAMS_LIMIT


class Lines:
    """The lines of an answer."""

    def __init__(self, http: h11.Connection, stream: trio.SocketStream) -> None:
        self._http, self._stream, self._text = http, stream, b""
        self.status = 0

    async def begin(self) -> None:
        response = await self._event()
        assert isinstance(response, h11.Response)
        self.status = response.status_code

    async def next(self) -> dict[str, Any]:
        """The next look; nothing at the end, or of a refusal."""
        while b"\n" not in self._text:
            event = await self._event()
            if not isinstance(event, h11.Data) or self.status != 200:
                return {}
            self._text += bytes(event.data)
        line, _, self._text = self._text.partition(b"\n")
        return dict(json.loads(line))

    async def _event(self) -> Any:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            self._http.receive_data(await self._stream.receive_some())
        return event


class Visitor:
    """A browser as far as the server can tell."""

    def __init__(self, link: str, client: AsyncClient) -> None:
        self.base, self.secret = link.split("/#")
        self.client = client
        self.headers = {"origin": self.base, "sec-fetch-site": "same-origin"}

    async def enter(self, secret: str | None = None, **headers: str) -> Response:
        body = json.dumps({"link": self.secret if secret is None else secret})
        answer = await self.client.post(f"{self.base}/session", content=body, headers=self.headers | headers)
        if answer.status_code == 200:
            self.headers["authorization"] = f"Bearer {answer.json()['session']}"
        return answer

    async def look(self, **headers: str) -> dict[str, Any]:
        """One look; {"status": ...} where it is refused."""
        async with self.watching(**headers) as lines:
            return await lines.next() or {"status": lines.status}

    @asynccontextmanager
    async def watching(self, **headers: str) -> AsyncIterator[Lines]:
        """The stream of looks. httpx would leave generators of its own behind."""
        host, port = self.base.removeprefix("http://").split(":")
        async with await trio.open_tcp_stream(host, int(port)) as stream:
            sent = {"host": f"{host}:{port}"} | self.headers | headers
            http = h11.Connection(h11.CLIENT)
            request = h11.Request(method="GET", target="/looks", headers=list(sent.items()))
            await stream.send_all((http.send(request) or b"") + (http.send(h11.EndOfMessage()) or b""))
            lines = Lines(http, stream)
            await lines.begin()
            yield lines

    async def use(self, exit_node: object, **headers: str) -> int:
        body = json.dumps({"exit_node": exit_node})
        return (await self.client.post(f"{self.base}/exit", content=body, headers=self.headers | headers)).status_code


@asynccontextmanager
async def page(device: Device, **options: Any) -> AsyncIterator[Visitor]:
    async with trio.open_nursery() as nursery, AsyncClient() as client:
        yield Visitor(await nursery.start(functools.partial(serve_page, device, **options)), client)
        nursery.cancel_scope.cancel()


async def test_a_link_works_once_and_its_session_goes_on() -> None:
    async with Tailnet(real=True) as net, net.device("a") as a, net.device("db"), page(a) as visitor:
        assert (await visitor.look())["status"] == 401
        assert (await visitor.enter("wrong")).status_code == 401
        assert (await visitor.enter()).status_code == 200
        for _ in range(2):
            look = await visitor.look()
            assert (look["hostname"], look["peers"][0]["hostname"], look["may_change"]) == ("a", "db", False)
        assert (await visitor.enter()).status_code == 401, "a second time"
        assert (await visitor.look(authorization="Bearer x"))["status"] == 401
        assert (await visitor.look(authorization="Basic x"))["status"] == 401


async def test_other_pages_and_other_names_are_refused() -> None:
    async with Tailnet(real=True) as net, net.device("a") as a, page(a) as visitor:
        for stranger in ({"origin": "http://evil.example"}, {"sec-fetch-site": "cross-site"}, {"origin": "null"}):
            assert (await visitor.enter(**stranger)).status_code == 403
        assert (await visitor.enter(host="evil.example")).status_code == 403
        assert (await visitor.enter()).status_code == 200, "none of them has used the link up"
        assert (await visitor.look(origin="http://127.0.0.1:1"))["status"] == 403


async def test_the_page_may_load_nothing_foreign_and_holds_no_secret() -> None:
    async with Tailnet(real=True) as net, net.device("a") as a, page(a) as visitor:
        for path, (_, kind) in FILES.items():
            answer = await visitor.client.get(visitor.base + path)
            assert (answer.status_code, answer.headers["content-type"]) == (200, kind)
            policy = answer.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert answer.headers["x-frame-options"] == "DENY"
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert "set-cookie" not in answer.headers
            assert visitor.secret not in answer.text
        assert (await visitor.client.post(visitor.base)).status_code == 405
        assert (await visitor.client.get(f"{visitor.base}/../secret")).status_code in (401, 404)
        assert (await visitor.client.get(f"{visitor.base}/%2e%2e/server.py")).status_code == 404


def test_every_file_of_the_page_is_served_and_none_makes_markup_of_text() -> None:
    assert {name for name, _ in FILES.values()} == {path.name for path in FOLDER.iterdir()}
    for path in FOLDER.glob("*.js"):
        text = path.read_text()
        for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "cookie", "://"):
            assert word not in text.replace("http://www.w3.org/2000/svg", ""), f"{path.name}: {word}"
    for word in ("style=", "onclick", "<script>", "://"):
        assert word not in (FOLDER / "index.html").read_text()


async def test_a_page_that_only_looks_changes_nothing() -> None:
    async with Tailnet(real=True) as net, net.device("a") as a, page(a) as visitor:
        await visitor.enter()
        assert await visitor.use(None) == 403
        assert a.preferences.exit_node is None


async def test_a_page_that_may_uses_exits_and_nothing_else() -> None:
    async with Tailnet(real=True) as net, net.device("nl", advertise_routes=["0.0.0.0/0", "::/0"]) as nl:
        net.approve_routes(nl, "0.0.0.0/0", "::/0")
        async with net.device("a") as a, page(a, changes=True) as visitor:
            await until(lambda: a.exit_nodes)
            identity = a.peers["nl"].stable_id
            assert await visitor.use(identity) == 401
            await visitor.enter()
            assert [await visitor.use(wrong) for wrong in ("nobody", 7, [identity], {})] == [400] * 4
            assert await visitor.use(identity, origin="http://evil.example") == 403
            assert await visitor.use(identity) == 200
            assert (await visitor.look())["exits"][0]["is_used"]
            assert await visitor.use(None) == 200
            assert a.preferences.exit_node is None


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'"x"', b"[" * 4000, b'{"link": 1}', b"x" * 5000])
async def test_bodies_that_are_none_are_refused(body: bytes) -> None:
    async with Tailnet(real=True) as net, net.device("a") as a, page(a) as visitor:
        answer = await visitor.client.post(f"{visitor.base}/session", content=body, headers=visitor.headers)
        assert answer.status_code in (400, 401, 413)
        assert (await visitor.enter()).status_code == 200


async def test_so_many_tabs_and_no_more_look_at_once() -> None:
    async with Tailnet(real=True) as net, net.device("a") as a, page(a) as visitor, trio.open_nursery() as nursery:
        await visitor.enter()

        async def stay(task_status: trio.TaskStatus[None]) -> None:
            async with visitor.watching() as lines:
                await lines.next()
                task_status.started()
                await trio.sleep_forever()

        for _ in range(STREAMS_LIMIT):
            await nursery.start(stay)
        assert (await visitor.look())["status"] == 503
        nursery.cancel_scope.cancel()


async def test_looks_go_on_until_the_device_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "EVERY", 0.01)
    async with Tailnet(real=True) as net, AsyncClient() as client, trio.open_nursery() as nursery:
        a, leave = await net.join("a")
        visitor = Visitor(await nursery.start(serve_page, a), client)
        await visitor.enter()
        async with visitor.watching() as lines:
            for _ in range(3):
                assert (await lines.next())["state"] == "running"
            nursery.start_soon(leave)
            while await lines.next():
                pass
        nursery.cancel_scope.cancel()


def test_a_link_ends_after_a_while_and_shows_in_no_repr() -> None:
    entry = Entry(now=100.0)
    assert entry.fragment not in repr(entry)
    assert entry.trade(entry.fragment, 100.0 + LINK_LIFETIME + 1) == ""
    session = entry.trade(entry.fragment, 100.0 + LINK_LIFETIME)
    assert entry.admits(f"bearer {session}".encode())
    assert not entry.admits(b"Bearer ")
    assert entry.trade("", 101.0) == ""
    assert not Entry(now=0).admits(b"Bearer ")
    assert session not in repr(entry)
