"""Which names of others may become files here."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ts_base.errors import BadPacket
from ts_mesh import names


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "upwards"),
        (".", "upwards"),
        ("..", "upwards"),
        ("a/b", "separator"),
        ("C:\\x", "separator"),
        ("C:x", "drive letter"),
        ("é:x", "drive letter"),
        ("a\0b", "control"),
        ("a\nb", "control"),
        ("a\x1b[2Jb", "control"),
        ("photo\u202egpj.exe", "control"),
        ("a.", "dot or a space"),
        ("a ", "dot or a space"),
        ("CON", "device"),
        ("con.txt", "device"),
        ("Com1.tar.gz", "device"),
        ("LPT³", "device"),
        ("NUL ", "dot or a space"),
        ("NUL .txt", "device"),
        ("\ud800", "no text"),
        ("é" * 128, "more than 255"),
        ("a" * 256, "more than 255"),
        (".photo.jpg.part", "unfinished"),
        (".photo.jpg.part.journal", "unfinished"),
    ],
)
def test_name_that_could_be_something_else_is_refused(text: str, why: str) -> None:
    assert why in names.objection_to(text)
    with pytest.raises(BadPacket, match="a name"):
        names.decode_name_untrusted(text)


@pytest.mark.parametrize(
    "text", ["a", ".hidden", "~x", "12:30 note.txt", "COM", "console", "日本語", "a" * 255, "👩‍👩‍👧"]
)
def test_name_that_is_only_a_name_passes(text: str) -> None:
    assert names.decode_name_untrusted(text) == text


def test_name_comes_out_in_nfc() -> None:
    assert names.decode_name_untrusted("e\u0301") == "\u00e9"


@pytest.mark.parametrize("text", ["../x", "a/../b", "/etc/passwd", "a//b", "a/", "C:\\x/y", "/".join("a" * 65)])
def test_path_with_one_bad_component_is_refused(text: str) -> None:
    with pytest.raises(BadPacket):
        names.decode_path_untrusted(text)


def test_path_may_be_sixty_four_deep() -> None:
    assert len(names.decode_path_untrusted("/".join("a" * 64))) == 64


@given(st.text(max_size=300))
def test_what_passes_passes_again_and_has_room_beside_it(text: str) -> None:
    if names.objection_to(text):
        return
    name = names.decode_name_untrusted(text)
    assert name == unicodedata.normalize("NFC", name)
    assert names.objection_to(name) == ""
    for beside in (names.part_name(name, "0" * 32) + ".journal.bad", names.renamed(name, 12)):
        assert len(beside.encode()) <= names.LONGEST_NAME
    assert names.objection_to(names.part_name(name, "0" * 32))


def test_renamed_keeps_the_ending() -> None:
    assert names.renamed("a.tar.gz", 2) == "a.tar (2).gz"
    assert names.renamed(".bashrc", 3) == ".bashrc (3)"
    assert names.renamed("plain", 2) == "plain (2)"
    almost_all = "a." + "b" * 253
    assert names.renamed(almost_all, 2) == almost_all[:251] + " (2)"
    assert names.decode_name_untrusted(names.renamed(almost_all, 1000)) == almost_all[:248] + " (1000)"
