"""How values look as the last line of a cell: one line that says who and how, and HTML that nobody can break out of."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from operator import methodcaller
from typing import Any

import pytest
from trio.testing import MockClock

import tailscale
from tailscale import aio, as_html, sync
from tailscale.explanation import Step
from tailscale.mesh import Mesh
from tailscale.testing import Tailnet
from tailscale.testing.threaded import TailnetThread

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'onmouseover='x",
    "a\x1b[2J\x07\x00b",
    "\u202egnp.exe\u2066",
    "two\nlines\u2028more",
    "&lt;b&gt;",
)
html_of = methodcaller("_repr_html_")  # IPython asks by this name
ELEMENTS = {"a", "b", "div", "p", "table", "tbody", "td", "th", "thead", "tr"}


class Reading(HTMLParser):
    """What a browser would make of it."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.attributes: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.attributes |= {name for name, _ in attributes}

    def handle_data(self, data: str) -> None:
        self.text += data


def read(shown: Any) -> Reading:
    """The HTML of a value, which holds nothing but what ours is made of."""
    text = shown if isinstance(shown, str) and type(shown) is str else html_of(shown)
    reading = Reading()
    reading.feed(text)
    reading.close()
    assert set(reading.elements) <= ELEMENTS
    assert reading.attributes <= {"style", "href", "target", "rel"}
    assert text.isprintable()
    return reading


def node(text: str) -> tailscale.Node:
    return tailscale.Node(
        *(
            7,
            text,
            f"{text}.tailnet.test",
            text,
            ("100.64.0.7",),
            True,
            None,
            text,
            text,
            (f"tag:{text}",),
            False,
            None,
        ),
        (text,),
        {text: []},
        {text: 80},
    )


def values(text: str) -> list[Any]:
    """One of each kind, with `text` wherever others may write."""
    one = node(text)
    path = tailscale.PathInfo("relay", text)
    peer = tailscale.PeerStatus(one, path, 0.0004, 1, 2, 3.0)
    counters = tailscale.Counters({}, {}, {}, {})
    warning = tailscale.HealthWarning(text, text, text)
    step = Step("name", "bad", text, "name-not-found")
    return [
        one,
        path,
        peer,
        tailscale.PingResult(0.0004, path, "disco", one),
        tailscale.Identity(one, text, {text: []}),
        tailscale.ExitNode(one, text, "NL", text, "ams", 1, True, path, None),
        tailscale.NetcheckReport(True, text, None, True, text, text, {text: 0.1}),
        tailscale.Explanation(text, 80, "tcp", (step,), text, "name-not-found", False),
        tailscale.Status("running", one, text, text, text, 1, (), (peer,), (warning,), counters),
    ]


@pytest.mark.parametrize("text", HOSTILE)
def test_what_others_wrote_never_leaves_its_cell(text: str) -> None:
    for value in values(text):
        assert repr(value).isprintable()
        assert str(value).replace("\n", "").isprintable() or isinstance(value, tailscale.PathInfo)
        if hasattr(value, "_repr_html_"):
            read(value)
    shown = read(as_html.page(text, {text: text}, as_html.table((text,), [(text,)]), as_html.link(text)))
    assert "script" not in shown.elements


def test_every_value_is_one_short_line() -> None:
    assert [repr(value) for value in values("db")] == [
        "<Node db 100.64.0.7 online>",
        "'relay db'",
        "<PeerStatus db online relay db 0.4 ms>",
        "<PingResult db answered in 0.4 ms by relay db>",
        "<Identity db of db>",
        "<ExitNode db db, db online>",
        "NetcheckReport(udp=True, ipv4='db', ipv6=None, mapping_varies_by_destination=True, port_mapping='db', "
        "home='db', latencies={'db': 0.1})",
        "<Explanation db port 80 (tcp): name-not-found>",
        "<Status running as db 100.64.0.7 in tailnet.test, 1 peer, relay db, 1 warning>",
    ]


def test_a_table_is_bounded_and_leaves_out_columns_that_say_nothing() -> None:
    shown = read(as_html.table(("name", "empty"), [(f"peer-{i}", "") for i in range(5000)]))
    assert shown.elements.count("tr") == 1 + as_html.MOST_ROWS
    assert "empty" not in shown.text
    assert shown.text.endswith("and 4900 more")
    assert as_html.table(("name",), []) == ""


def test_a_status_names_the_domain_its_names_end_in() -> None:
    status = values("db")[-1]
    assert status.domain == "tailnet.test"
    assert replace(status, node=None).domain == "db"
    assert replace(status, node=replace(status.node, name="alone")).domain == "db"


async def test_devices_peers_and_members_are_shown(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    new = tailscale.Device("new")
    assert (repr(new), read(new).text) == ("<Device 'new' new>", "<Device 'new' new>")
    a, b = await tailnet.device("a"), await tailnet.device("b")
    assert repr(a) == f"<Device 'a' {a.ipv4}, {a.ipv6} running>"
    assert repr(a.peers) == "<Peers b>"
    assert read(a).text.startswith("a.tailnet.teststaterunning")
    assert str(b.ipv4) in read(a.peers).text
    async with Mesh(a, "notes") as here, Mesh(b, "notes"):
        member = await here.peer("b", timeout=10)
        assert repr(member).startswith(f"<MeshPeer b {b.ipv4} ")
        assert "connected" in read(here.peers).text + read(member).text
        assert repr(here.peers) == "<Members b>"
    await tailnet.control.stop()
    assert "a.tailnet.test" in read(a).text, "also while control is away"


def test_devices_of_the_other_faces_are_shown_open_and_closed() -> None:
    with TailnetThread() as net:
        device = sync.Device("cell", **net.options())
        assert repr(device) == "<tailscale.sync.Device cell not open>"
        with device:
            assert repr(device) == f"<tailscale.sync.Device cell {', '.join(device.node.addresses)} running>"
            assert "cell.tailnet.test" in read(device).text
        assert repr(device) == read(device).text == "<tailscale.sync.Device cell closed>"
        assert repr(aio.Device("x", **net.options())) == "<tailscale.aio.Device x not open>"


async def test_no_secret_is_shown(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    key = tailnet.auth_key(reusable=True)
    a = await tailnet.device("a", auth_key=key)
    shown = read(a).text + repr(a) + repr(sync.Device("x", auth_key=key)) + json.dumps(a.status().to_dict())
    assert key not in shown
    assert "privkey" not in shown


def test_nothing_of_it_is_loaded_before_a_notebook_asks() -> None:
    code = (
        "import sys, tailscale.sync; print([m for m in ('tailscale.as_html', 'html', 'IPython') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
