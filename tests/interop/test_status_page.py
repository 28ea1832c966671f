"""The status page in a real browser: it shows a tailnet that lives, wide and narrow, and no name becomes markup."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from tailscale import Device
from tailscale.testing import Tailnet
from tailscale.web import serve_page
from tests.interop import browser
from tests.interop.browser import Tab
from tests.tailscale.tailnet_scripts import echo_service, until

WICKED = "<img src=x onerror=alert(1)>"
pytestmark = [pytest.mark.peerless, pytest.mark.skipif(browser.chromium() is None, reason=browser.MISSING)]
LOOKED = "Number(document.body?.dataset.looks ?? 0) >= 3"


@asynccontextmanager
async def living(*, changes: bool = False) -> AsyncIterator[tuple[Tailnet, Device, str]]:
    """A tailnet in which something is always said, a device in it, and the link to its page."""
    async with Tailnet(real=True) as net, net.device("db") as db, net.device("laptop") as laptop:
        async with echo_service(db, 5432), trio.open_nursery() as nursery:
            exit_node = await net.device("exit-nl", advertise_routes=["0.0.0.0/0", "::/0"])
            net.approve_routes(exit_node, "0.0.0.0/0", "::/0")
            await until(lambda: laptop.exit_nodes)
            await laptop.ping("exit-nl", "icmp")
            nursery.start_soon(chat, laptop)
            link = await nursery.start(functools.partial(serve_page, laptop, changes=changes))
            yield net, laptop, link
            nursery.cancel_scope.cancel()


async def chat(laptop: Device) -> None:
    async with await laptop.tcp_connect("db", 5432) as stream:
        while True:
            await stream.send_all(bytes(20_000))
            await stream.receive_some()
            await trio.sleep(0.05)


async def in_browser(look: Callable[[Tab], None]) -> None:
    def run() -> None:
        with browser.browser() as tab:
            look(tab)

    await trio.to_thread.run_sync(run)


async def test_the_page_shows_what_lives_and_the_link_works_once(tmp_path: Path) -> None:
    async with living() as (_, _, link):

        def look(tab: Tab) -> None:
            tab.resize(1280, 1000, dark=True)
            tab.open(link)
            tab.until(LOOKED)
            assert tab.ask("document.getElementById('hostname').textContent") == "laptop"
            assert tab.ask("document.querySelectorAll('#map .node').length") == 3
            assert tab.until("document.querySelectorAll('#map .link.direct').length") == 2
            tab.until("document.querySelectorAll('#map .pulse.fast, #map .pulse.slow').length >= 1")
            tab.until("document.querySelectorAll('#traffic .area').length == 6")
            tab.until("/tcp 5432/.test(document.getElementById('flows').innerText)")
            assert "exit-nl" in tab.ask("document.getElementById('exits').innerText")
            assert not tab.ask("document.querySelectorAll('button').length"), "this page only looks"
            assert "#" not in tab.ask("location.href"), "the secret is in no bookmark"
            tab.picture(tmp_path / "wide.png")
            tab.ask("window.isOld = true")
            tab.call("Page.reload")
            tab.until(f"!window.isOld && {LOOKED}")  # the session stays with the tab
            assert [line for line in tab.said if "favicon" not in line] == []

        await in_browser(look)

        def come_late(tab: Tab) -> None:
            tab.open(link)
            tab.until("/used already/.test(document.getElementById('problem')?.textContent)")
            assert tab.ask("document.getElementById('peers').innerText") == ""

        await in_browser(come_late)


@pytest.mark.parametrize("width", [320, 390, 800, 1600])
async def test_nothing_is_wider_than_the_window(width: int, tmp_path: Path) -> None:
    async with living() as (_, _, link):

        def look(tab: Tab) -> None:
            tab.resize(width, 900)
            tab.open(link)
            tab.until(LOOKED)
            tab.picture(tmp_path / f"{width}.png", whole=True)
            assert tab.ask("document.documentElement.scrollWidth") <= width

        await in_browser(look)


async def test_names_become_text_and_never_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    """Control would not give such a name; a look that has it stands for one that would."""
    from tailscale.metrics import view
    from tailscale.web import server

    def wicked(device: Device) -> dict[str, object]:
        look = view(device)
        for peer in look["peers"]:
            peer |= {"hostname": WICKED, "name": WICKED, "path": f"direct {WICKED}", "address": WICKED}
        for one in (*look["flows"], *look["exits"]):
            one |= {"peer": WICKED, "node": WICKED, "city": WICKED, "country": WICKED}
        warning = {"code": WICKED, "sentence": WICKED, "remedy": WICKED}
        return look | {"hostname": WICKED, "tailnet": WICKED, "health": [warning], "drops": {WICKED: 1}}

    monkeypatch.setattr(server, "view", wicked)
    async with living() as (_, _, link):

        def look(tab: Tab) -> None:
            tab.open(link)
            tab.until(LOOKED)
            assert tab.ask("document.querySelectorAll('img').length") == 0
            for place in ("hostname", "health", "map", "peers", "flows", "exits", "drops", "standing"):
                assert WICKED[:14] in tab.ask(f"document.getElementById('{place}').textContent"), place
            assert [line for line in tab.said if "favicon" not in line] == []
            # Even a mistake of ours would not do: the policy keeps markup and foreign scripts out.
            assert "TrustedHTML" in tab.ask("try { document.body.innerHTML = '<b>'; '' } catch (e) { String(e) }")

        await in_browser(look)


async def test_a_page_that_may_change_things_uses_an_exit() -> None:
    async with living(changes=True) as (_, laptop, link):

        def look(tab: Tab) -> None:
            tab.open(link)
            tab.until(LOOKED)
            tab.until("document.querySelector('#exits button') !== null")
            tab.ask("document.querySelector('#exits button').click()")
            tab.until("/in use/.test(document.getElementById('exits').innerText)")

        await in_browser(look)
        assert laptop.preferences.exit_node == laptop.peers["exit-nl"].stable_id


async def test_another_site_reads_nothing_even_with_the_secret() -> None:
    async with living() as (_, _, link):
        base, secret = link.split("/#")

        def look(tab: Tab) -> None:
            tab.open("data:text/html,another site")
            body = f"JSON.stringify({{link: {secret!r}}})"
            tab.ask(f"fetch({base + '/session'!r}, {{method: 'POST', mode: 'no-cors', body: {body}}}).catch(String)")
            assert "TypeError" in tab.ask(f"fetch({base + '/looks'!r}).then(r => r.text()).catch(String)")
            tab.open(link)
            tab.until(LOOKED)  # the other site's attempt did not use the link up

        await in_browser(look)
