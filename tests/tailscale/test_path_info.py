"""A path is a sentence for people and fields for programs, and old programs may go on reading the sentence."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle

import pytest

from tailscale.nodes import Node
from tailscale.status import PathInfo, PathKind, PingResult

PATHS: list[tuple[PathKind, str, str, str]] = [
    ("", "", "", ""),
    ("direct", "192.0.2.7:41641", "", "direct 192.0.2.7:41641"),
    ("direct", "[2001:db8::7]:41641", "wwan0", "direct [2001:db8::7]:41641 via wwan0"),
    ("relay", "fra", "", "relay fra"),
    ("peer relay", "192.0.2.9:7777", "", "peer relay 192.0.2.9:7777"),
]


@pytest.mark.parametrize(("kind", "where", "uplink", "sentence"), PATHS)
def test_path_is_its_sentence_and_its_fields(kind: PathKind, where: str, uplink: str, sentence: str) -> None:
    path = PathInfo(kind, where, uplink)
    assert str(path) == path == sentence == f"{path}"
    assert type(str(path)) is str
    assert (path.kind, path.where, path.uplink) == (kind, where, uplink)
    assert bool(path) is bool(kind)
    assert json.loads(json.dumps({"path": path})) == {"path": sentence}


def test_path_reads_as_the_text_it_was() -> None:
    path = PathInfo("direct", "192.0.2.7:41641")
    assert path.startswith("direct")
    assert path.removeprefix("direct ") == "192.0.2.7:41641"
    assert {path: 1}["direct 192.0.2.7:41641"] == 1
    assert f"{path:<24}|" == "direct 192.0.2.7:41641  |"


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda path: pickle.loads(pickle.dumps(path))])
def test_path_survives_being_copied(copied: object) -> None:
    path = PathInfo("relay", "fra", "eth0")
    twin = copied(path)  # type: ignore[operator]
    assert (twin, twin.kind, twin.where, twin.uplink) == (path, "relay", "fra", "eth0")


def test_path_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        PathInfo("relay", "fra").where = "ams"  # type: ignore[misc]


def test_path_is_plain_text_in_a_dictionary() -> None:
    node: Node | None = None
    found = PingResult(0.1, PathInfo("relay", "fra"), "disco", node).to_dict()
    assert found["path"] == "relay fra"
    assert type(found["path"]) is str
