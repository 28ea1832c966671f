"""Hellos: Truffle's own, ours, and every one that is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ts_base.errors import BadPacket
from ts_mesh.hello import (
    Identity,
    Seen,
    common_features,
    decode_hello_untrusted,
    encode_hello,
    refusal,
)

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "truffle.json").read_text())
IDENTITY = Identity("notes", "01J4K9M2Z8AB3RNYQPW6H5TC0X", "laptop", "linux", "n1")
EPOCH = "0123456789abcdef"


def hello(**changes: Any) -> dict[str, Any]:
    fields = {"app_id": "notes", "device_id": "01J4", "device_name": "laptop", "os": "linux", "tailscale_id": "n1"}
    fields.update({name: value for name, value in changes.items() if name in fields})
    rest = {name: value for name, value in changes.items() if name not in fields}
    return {"kind": "hello", "version": 2, "identity": fields, **rest}


def test_hello_of_truffle_is_read() -> None:
    found = decode_hello_untrusted(json.dumps(VECTORS["hello_v2"]))
    assert found.identity == Identity(
        "playground", "01J4K9M2Z8AB3RNYQPW6H5TC0X", "Alice's MacBook", "darwin", "node-abc"
    )
    assert (found.features, found.epoch, found.seen) == ((), "", None)
    assert common_features(("ack", "bin"), found) == frozenset()


def test_hello_of_ours_has_truffles_shape_and_more() -> None:
    said = json.loads(encode_hello(IDENTITY, ("ack", "bin"), EPOCH, Seen(EPOCH, 7)))
    assert said.pop("features") == ["ack", "bin"]
    assert said.pop("epoch") == EPOCH
    assert said.pop("seen") == {"epoch": EPOCH, "n": 7}
    assert said.keys() == VECTORS["hello_v2"].keys()
    assert said["identity"].keys() == VECTORS["hello_v2"]["identity"].keys()
    assert (said["kind"], said["version"]) == ("hello", 2)


@given(
    st.builds(Identity, *[st.text(min_size=1, max_size=8)] * 5).filter(lambda i: i.device_id != i.tailscale_id),
    st.lists(st.text(max_size=8), max_size=5).map(tuple),
    st.none() | st.builds(Seen, st.just(EPOCH), st.integers(0, (1 << 53) - 1)),
)
def test_hello_is_read_as_it_was_said(identity: Identity, features: tuple[str, ...], seen: Seen | None) -> None:
    found = decode_hello_untrusted(encode_hello(identity, features, EPOCH, seen).encode())
    assert (found.identity, found.features, found.epoch, found.seen) == (identity, features, EPOCH, seen)


@pytest.mark.parametrize(
    "bad",
    [
        hello(kind="goodbye"),
        hello(version=1),
        hello(version=0),
        hello(version=-2),
        hello(version=2.5),
        hello(version="2"),
        hello(version=1 << 32),
        hello(identity={}),
        hello(identity=None),
        hello(app_id=""),
        hello(device_id=""),
        hello(device_id="n1"),
        hello(device_name=7),
        hello(epoch="0123"),
        hello(epoch="G" * 16),
        hello(features="ack"),
        hello(features=["x" * 33]),
        hello(features=["x"] * 33),
        hello(seen={"epoch": EPOCH}),
        hello(seen={"epoch": EPOCH, "n": -1}),
        hello(seen={"epoch": EPOCH, "n": 1 << 53}),
        [],
        "hello",
        None,
    ],
    ids=lambda bad: json.dumps(bad)[-60:],
)
def test_hello_that_is_none_is_refused(bad: Any) -> None:
    with pytest.raises(BadPacket):
        decode_hello_untrusted(json.dumps(bad))


@pytest.mark.parametrize(
    ("name", "longest"),
    [("app_id", 32), ("device_id", 64), ("device_name", 512), ("os", 32), ("tailscale_id", 256)],
)
def test_hello_has_bounds_in_bytes(name: str, longest: int) -> None:
    decode_hello_untrusted(json.dumps(hello(**{name: "ü" * (longest // 2)})))
    with pytest.raises(BadPacket, match=name):
        decode_hello_untrusted(json.dumps(hello(**{name: "ü" * (longest // 2) + "x"})))


@pytest.mark.parametrize("bad", ["", "{", "\ud800", b"\xff", "[" * 5000, " " * 8193, "ü" * 5000], ids=ascii)
def test_hello_that_is_no_json_is_refused(bad: str | bytes) -> None:
    with pytest.raises(BadPacket):
        decode_hello_untrusted(bad)


def test_hello_without_tailscale_id_is_of_nobody() -> None:
    said = hello()
    del said["identity"]["tailscale_id"]
    found = decode_hello_untrusted(json.dumps(said))
    assert refusal(found, app="notes", own_id="me", stable_id="n1") is not None
    assert refusal(found, app="notes", own_id="me", stable_id="") is not None


def test_hello_is_believed_only_of_whom_the_tailnet_says() -> None:
    found = decode_hello_untrusted(json.dumps(hello()))
    assert refusal(found, app="notes", own_id="me", stable_id="n1") is None
    codes = [
        refusal(found, app="other", own_id="me", stable_id="n1"),
        refusal(found, app="notes", own_id="me", stable_id="n2"),
        refusal(found, app="notes", own_id="me", stable_id=""),
        refusal(found, app="notes", own_id="01J4", stable_id="n1"),
    ]
    assert [code and code[0] for code in codes] == [4001, 4003, 4003, 4003]


def test_nothing_is_acknowledged_to_a_peer_without_an_epoch() -> None:
    found = decode_hello_untrusted(json.dumps(hello(features=["ack", "bin", "telepathy"])))
    assert common_features(("ack", "bin", "store"), found) == {"bin"}
