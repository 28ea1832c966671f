"""The terminal interface: golden screens at two sizes, keys, quiet while nothing changes, whatever peers are called."""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot
from tui_scripts import WARNING, Told, look, peer, screen_of

from tailscale.tui.app import Top
from tailscale.tui.drawing import Column, widths
from tailscale.tui.history import IN, LENGTH, History
from tailscale.tui.pages import PAGES
from tailscale.tui.words import counted, fit, in_rate, in_time, plot, spark, width_of

pytestmark = pytest.mark.slow

GOLDEN = Path(__file__).parent / "golden_screens"
WIDE, NARROW = (80, 24), (40, 10)
LOOKS = 100


def under_asyncio(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """textual's own loop, in a suite whose tests run under trio."""

    @functools.wraps(test)
    def run(**arguments: Any) -> None:
        asyncio.run(test(**arguments))  # type: ignore[arg-type]

    run.__signature__ = inspect.signature(test)  # type: ignore[attr-defined]
    del run.__wrapped__  # type: ignore[attr-defined]
    return run


async def watch(source: Told, pilot: Pilot[None], *keys: str, page: int | None = None) -> str:
    """The screen once all was heard and these keys were pressed; `page` is shown without a key, which is quicker."""
    assert isinstance(pilot.app, Top)
    await pilot.pause()
    if page is not None:
        pilot.app.action_show(page - 1)
    if keys:
        await pilot.press(*keys)
    await pilot.pause()
    return screen_of(pilot.app)


def compare(name: str, shown: str) -> None:
    """With the golden screen; one that is missing is written, to be looked at before it is committed."""
    path = GOLDEN / f"{name}.txt"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        path.write_text(shown)
        pytest.fail(f"{path} was missing and is written: look at it")
    assert shown == path.read_text()


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["80x24", "40x10"])
@under_asyncio
async def test_every_page_is_what_it_was(size: tuple[int, int]) -> None:
    source = Told()
    transfer = {"name": "holiday.mkv", "peer": "phone", "is_outgoing": True, "done": 3e8, "total": 4e8, "rate": 2.5e6}
    async with Top(source).run_test(size=size) as pilot:
        source.say(*(look(s) for s in range(LOOKS)), look(LOOKS, health=[WARNING], transfers=[transfer]))
        source.happen("12:00:01", "PeerUp db")
        source.happen("12:00:02", "PathChanged db direct 192.0.2.7:41641 3.1 ms")
        for number, page in enumerate(PAGES, 1):
            shown = await watch(source, pilot, page=number)
            lines = shown.splitlines()
            assert len(lines) == size[1]
            assert max(map(width_of, lines)) <= size[0]
            compare(f"{page.name.lower()}_{size[0]}x{size[1]}", shown)


@under_asyncio
async def test_nothing_is_drawn_while_nothing_changes() -> None:
    drawn: list[object] = []

    class Counting(Top):
        def _display(self, screen: Any, renderable: Any) -> None:
            drawn.append(renderable)
            super()._display(screen, renderable)

    source = Told()
    app = Counting(source)
    async with app.run_test(size=WIDE) as pilot:
        still = [look(5) | {"at": 1_000.0 + second} for second in range(200)]
        source.say(*still[:150])
        for page in range(1, 8):
            await watch(source, pilot, page=page)
            drawn.clear()
            source.say(still[150 + page])
            await pilot.pause()
            assert not drawn, f"page {page} was drawn for nothing"
        source.say(look(6) | {"at": 5_000.0})
        await pilot.pause()
        await watch(source, pilot, page=2)
        assert drawn


WICKED = ["\x1b]0;owned\x07", "\x1b[2J", "[bold red]mark[/]", "a\nb", "\u202eturned", "x" * 300, "\x9b31m"]


@under_asyncio
async def test_names_command_no_terminal_and_are_no_markup() -> None:
    source = Told()
    view = look(1, health=[WARNING | {"sentence": name} for name in WICKED], drops=dict.fromkeys(WICKED, 1))
    view["peers"] = [peer(n, name, "direct", f"direct {name}", 0.1, name, name, 1, 1) for n, name in enumerate(WICKED)]
    view["flows"] = [view["flows"][0] | {"peer": name} for name in WICKED]
    view["exits"] = [view["exits"][0] | {"node": name, "city": name} for name in WICKED]
    one = {"is_outgoing": False, "done": 1, "total": 0, "rate": None}
    view["transfers"] = [one | {"name": name, "peer": name} for name in WICKED]
    async with Top(source).run_test(size=WIDE) as pilot:
        for name in WICKED:
            source.happen(name, name)
        for number, name in zip(range(1, len(PAGES) + 1), [*WICKED, ""], strict=True):
            source.say(view | {"state": name, "hostname": name, "relay": name, "tailnet": name})
            shown = await watch(source, pilot, page=number)
            assert all(line.isprintable() for line in shown.splitlines())
            assert len(shown.splitlines()) == WIDE[1]
            assert "[bold red]mark[/]"[:6] in shown or number in (1, 7, 8)
        for name in WICKED:
            source.say(f"gone: {name}")
        assert all(line.isprintable() for line in (await watch(source, pilot)).splitlines())


@under_asyncio
async def test_enter_uses_an_exit_and_x_none() -> None:
    source = Told()
    async with Top(source).run_test(size=WIDE) as pilot:
        source.say(look(1))
        assert "exit node: exit-se" in await watch(source, pilot, "6", "down", "enter")
        assert "no exit node" in await watch(source, pilot, "x")
        await watch(source, pilot, "2", "enter", "x")
        assert source.pinned == ["exit-se", ""]


@under_asyncio
async def test_keys_turn_pages() -> None:
    source = Told()
    async with Top(source).run_test(size=WIDE) as pilot:
        source.say(look(1))
        assert "Malmö" in await watch(source, pilot, "6")
        assert "nothing is wrong" in await watch(source, pilot, "right")
        assert "no file is on its way" in await watch(source, pilot, "left", "shift+tab")


@under_asyncio
async def test_the_cursor_stays_with_its_row_and_the_page_scrolls_to_it() -> None:
    def crowd(order: int) -> list[dict[str, Any]]:
        made = [peer(n, f"peer{n:03}", "direct", "direct x", None, "", "", 5, 5) for n in range(100)]
        return made[::order]

    source = Told()
    async with Top(source).run_test(size=NARROW) as pilot:
        source.say(look(1, peers=crowd(1)))
        assert "peer050" not in await watch(source, pilot, "2")
        pilot.app.action_move(50)  # type: ignore[attr-defined]
        assert "peer050" in await watch(source, pilot)
        source.say(look(2, peers=crowd(-1)))
        assert "peer050" in await watch(source, pilot)
        assert "peer000" in await watch(source, pilot, "end")
        assert "peer099" in await watch(source, pilot, "home")
        source.say(look(3, peers=[]))
        assert "nobody else" in await watch(source, pilot)


@under_asyncio
async def test_a_lost_daemon_is_said_and_what_was_known_stays() -> None:
    source = Told()
    async with Top(source).run_test(size=WIDE) as pilot:
        assert "waiting for the daemon" in await watch(source, pilot)
        source.say(look(1), "the daemon has hung up")
        shown = await watch(source, pilot)
        assert "the daemon has hung up" in shown
        assert "laptop" in shown
        source.say(look(2))
        assert "hung up" not in await watch(source, pilot)


@under_asyncio
async def test_a_look_is_exported_as_json(tmp_path: Path) -> None:
    source, path = Told(), tmp_path / "look.json"
    async with Top(source, path).run_test(size=WIDE) as pilot:
        source.say(look(1))
        assert "written" in await watch(source, pilot, "e")
        assert json.loads(path.read_text())["hostname"] == "laptop"
        path.unlink()
        path.mkdir()
        assert "directory" in (await watch(source, pilot, "e")).lower()


def test_rates_are_differences_and_a_new_life_begins_at_nothing() -> None:
    history = History()
    for second in range(3):
        history.feed(look(second, received={"derp": 1000.0 * second}))
    assert (history.rate("total", IN), history.series("total", IN)) == (1000.0, [0.0, 1000.0, 1000.0])
    history.feed(look(4, received={"derp": 10.0}))
    assert history.rate("total", IN) == 0.0, "a counter that shrank"
    history.feed(look(5000, received={"derp": 1e9}))
    assert history.rate("total", IN) == 0.0, "after a long gap"
    history.feed(look(5000, received={"derp": 2e9}))
    assert history.rate("total", IN) == 0.0, "a clock that stands still"


def test_history_is_bounded_and_forgets_who_is_gone() -> None:
    history = History()
    for second in range(3 * LENGTH):
        history.feed(look(second))
    assert len(history.series("peer", "n0")) == LENGTH
    history.feed(look(3 * LENGTH, peers=[]))
    assert history.series("peer", "n0") == []


def test_cells_have_the_width_they_are_given() -> None:
    for text in ("", "short", "日本語の名前", "e\u0301galite", "x" * 50):
        for width in range(12):
            assert width_of(fit(text, width)) == width
    assert fit("日本語", 4) == "日… "


def test_numbers_are_short() -> None:
    counts = [0, 999, 1000, 9949, 12_345, 999_499, 999_500, 1e6, 7.25e11, 9.9e14]
    assert [counted(c) for c in counts] == [
        *("0 B", "999 B", "1.0 kB", "9.9 kB", "12 kB", "999 kB", "1.0 MB", "1.0 MB", "725 GB", "990.0 TB"),
    ]
    assert (counted(None), in_rate(0.4), in_rate(1500)) == ("", "·", "1.5 kB/s")
    assert [in_time(t) for t in (None, 0.0031, 0.041, 0.9996, 12.3)] == ["", "3.1 ms", "41 ms", "1.0 s", "12.3 s"]


def test_bars_are_as_high_as_what_they_stand_for() -> None:
    assert spark([0, 1000, 4000, 8000], 6) == "   ▁▄█"
    assert spark([10.0], 1) == "▁", "little stays little"
    assert plot([0, 4000, 8000], 3, 2) == ["  █", " ██"]
    assert (spark([], 3), plot([], 2, 1), spark([1.0], 0)) == ("   ", ["  "], "")


def test_columns_of_least_rank_go_last() -> None:
    columns = (Column("a", 10), Column("b", 5, 2), Column("c", 5, 1, share=1))
    assert widths(columns, 40) == {0: 10, 1: 5, 2: 21}
    assert widths(columns, 20) == {0: 10, 2: 8}
    assert widths(columns, 12) == {0: 10}
    assert widths(columns, 3) == {0: 10}
