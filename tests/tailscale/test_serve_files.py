"""Files behind a path: conditions and ranges against a slow twin, types, lists, one file."""

from __future__ import annotations

import os
from email.message import Message
from email.parser import BytesParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from serve_scripts import published

from tailscale.serve import files
from tailscale.serve.ranges import Facts, Piece, select
from tailscale.serve.static import type_of
from tailscale.testing import Tailnet

CHANGED = 1_700_000_000
DATE, EARLIER = "Tue, 14 Nov 2023 22:13:20 GMT", "Tue, 14 Nov 2023 22:13:19 GMT"
FACTS = Facts(10, '"a"', CHANGED)


@given(
    st.integers(0, 30), st.lists(st.tuples(st.one_of(st.none(), st.integers(0, 40)), st.integers(0, 40)), max_size=4)
)
def test_ranges_are_those_of_a_slow_twin(size: int, asked: list[tuple[int | None, int]]) -> None:
    words = [f"-{last}" if first is None else f"{first}-{last}" for first, last in asked]
    status, pieces = select("GET", {"range": "bytes=" + ",".join(words)}, Facts(size, '"a"', 0))
    wanted = []
    for first, last in asked:
        if first is not None and last < first:
            assert status == 416
            return
        places = range(size)[-last or size :] if first is None else [at for at in range(size) if first <= at <= last]
        if places:
            wanted.append(list(places))
    if not asked:
        assert (status, pieces) == (200, ())
    elif not wanted:
        assert status == 416
    elif sum(map(len, wanted)) > size:
        assert (status, pieces) == (200, ())
    else:
        assert status == 206
        assert [list(range(piece.start, piece.end)) for piece in pieces] == wanted


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"if-none-match": '"a"'}, 304),
        ({"if-none-match": 'W/"a", "b"'}, 304),
        ({"if-none-match": "*"}, 304),
        ({"if-none-match": '"b"', "if-modified-since": DATE}, 200),
        ({"if-modified-since": DATE}, 304),
        ({"if-modified-since": EARLIER}, 200),
        ({"if-modified-since": "nonsense"}, 200),
        ({"if-match": '"b"'}, 412),
        ({"if-match": 'W/"a"'}, 412),
        ({"if-match": '"a"', "if-unmodified-since": EARLIER}, 200),
        ({"if-unmodified-since": EARLIER}, 412),
        ({"range": "bytes=0-1", "if-range": '"a"'}, 206),
        ({"range": "bytes=0-1", "if-range": '"b"'}, 200),
        ({"range": "bytes=0-1", "if-range": 'W/"a"'}, 200),
        ({"range": "bytes=0-1", "if-range": DATE}, 206),
        ({"range": "bytes=0-1", "if-range": EARLIER}, 200),
        ({"range": "lines=0-1"}, 200),
        ({"range": "bytes=x"}, 416),
        ({"range": "bytes=" + "0-0," * 100}, 200),
    ],
)
def test_conditions_come_in_their_order(headers: dict[str, str], status: int) -> None:
    assert select("GET", headers, FACTS).status == status


def test_head_has_no_ranges() -> None:
    assert select("HEAD", {"range": "bytes=0-1"}, FACTS).status == 200
    assert select("GET", {"range": "bytes=0-1"}, FACTS).pieces == (Piece(0, 2),)


def test_types_are_by_name_and_else_by_content() -> None:
    assert type_of("a.HTML", b"") == "text/html; charset=utf-8"
    assert type_of("a.tar.gz", b"") == "application/gzip"
    assert type_of("README", b"words\n") == "text/plain; charset=utf-8"
    assert type_of("page", b" <!DOCTYPE html>") == "text/html; charset=utf-8"
    assert type_of("core", b"\x7fELF\x00") == "application/octet-stream"


async def test_folder_has_index_list_ranges_and_tags(tailnet: Tailnet, tmp_path: Path) -> None:
    (tmp_path / "sub" / "deep").mkdir(parents=True)
    (tmp_path / "sub" / "index.html").write_text("index")
    (tmp_path / "sub" / "deep" / "leaf.txt").write_text("leaf")
    (tmp_path / "a <b>.txt").write_text("odd")
    blob = os.urandom(700_000)
    (tmp_path / "blob").write_bytes(blob)
    async with published(tailnet, lambda web: web.http(80, {"/": "text:root", "/s": files(tmp_path)})) as s:
        get = s.client.get
        assert (await get("/s/blob")).content == blob
        assert (await get("/s/sub/")).text == "index"
        assert (await get("/s/sub/deep?x=1")).headers["location"] == "/s/sub/deep/?x=1"
        assert (await get("/s/sub/index.html")).headers["location"] == "/s/sub/"
        assert (await get("/s/blob/")).headers["location"] == "/s/blob"
        assert '<a href="a%20%3Cb%3E.txt">a &lt;b&gt;.txt</a>' in (await get("/s/")).text
        head = await s.client.head("/s/blob")
        assert (head.headers["content-length"], head.headers["accept-ranges"]) == ("700000", "bytes")
        assert (await get("/s/blob", headers={"If-None-Match": head.headers["etag"]})).status_code == 304
        part = await get("/s/blob", headers={"Range": "bytes=299999-600000"})
        assert (part.status_code, part.content) == (206, blob[299_999:600_001])
        assert part.headers["content-range"] == "bytes 299999-600000/700000"
        several = await get("/s/blob", headers={"Range": "bytes=0-9,-10"})
        assert len(several.content) == int(several.headers["content-length"])
        typed = b"Content-Type: " + several.headers["content-type"].encode() + b"\r\n\r\n"
        parts = BytesParser().parsebytes(typed + several.content).get_payload()
        assert [part.get_payload(decode=True) for part in parts if isinstance(part, Message)] == [blob[:10], blob[-10:]]
        assert (await s.client.post("/s/blob")).status_code == 405


async def test_one_file_is_there_and_nothing_below_it(tailnet: Tailnet, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("page")
    async with published(tailnet, lambda web: web.http(80, {"/": files(page)})) as s:
        answer = await s.client.get("/")
        assert (answer.text, answer.headers["content-type"]) == ("page", "text/html; charset=utf-8")
        assert (await s.client.get("/page.html")).status_code == 404
        page.unlink()
        assert (await s.client.get("/")).status_code == 404
