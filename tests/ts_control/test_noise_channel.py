"""The ts2021 handshake and records, byte for byte as Go makes them, at any split."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ts_base.errors import BadPacket
from ts_base.keys import ChallengePublic, MachinePrivate, MachinePublic
from ts_control.handshake import (
    HandshakeRefused,
    Initiator,
    TransportKeys,
    accept_untrusted,
    encode_refusal,
)
from ts_control.record import MAX_RECORD, ClientTransport, RecordReader, RecordWriter, encode_early_payload
from ts_control.wire_register import EarlyNoise

from control_scripts import seeded  # isort: skip

VECTORS: dict[str, Any] = json.loads((Path(__file__).parents[1] / "vectors" / "control_noise.json").read_text())
HANDSHAKES = VECTORS["handshakes"]


def fixed(text: str) -> Callable[[int], bytes]:
    return lambda length: bytes.fromhex(text)


def private(text: str) -> MachinePrivate:
    return MachinePrivate(bytes.fromhex(text))


def start(vector: dict[str, Any]) -> Initiator:
    control = MachinePublic(bytes.fromhex(vector["control_public"]))
    entropy = fixed(vector["client_ephemeral_private"])
    return Initiator(private(vector["machine_private"]), control, vector["version"], entropy=entropy)


@pytest.mark.parametrize("vector", HANDSHAKES, ids=lambda v: v["version"])
def test_initiator_agrees_with_go_byte_for_byte(vector: dict[str, Any]) -> None:
    initiator = start(vector)
    assert initiator.initiation.hex() == vector["initiation"]
    keys = initiator.finish_untrusted(bytes.fromhex(vector["response"]))
    assert keys.handshake_hash.hex() == vector["handshake_hash"]


@pytest.mark.parametrize("vector", HANDSHAKES, ids=lambda v: v["version"])
def test_responder_agrees_with_go_byte_for_byte(vector: dict[str, Any]) -> None:
    entropy = fixed(vector["server_ephemeral_private"])
    accepted = accept_untrusted(
        bytes.fromhex(vector["initiation"]), private(vector["control_private"]), entropy=entropy
    )
    assert accepted.response.hex() == vector["response"]
    assert accepted.keys.handshake_hash.hex() == vector["handshake_hash"]
    assert (accepted.machine.raw.hex(), accepted.version) == (vector["machine_public"], vector["version"])


@pytest.mark.parametrize("vector", HANDSHAKES, ids=lambda v: v["version"])
def test_records_agree_with_go_in_both_directions(vector: dict[str, Any]) -> None:
    client = start(vector).finish_untrusted(bytes.fromhex(vector["response"]))
    for sender, ours, theirs in (("client", client.send, client.send), ("server", client.receive, client.receive)):
        writer, reader = RecordWriter(ours), RecordReader(theirs)
        for record in vector["records"]:
            if record["from"] == sender:
                payload = bytes.fromhex(record["payload"])
                assert writer.write(payload).hex() == record["wire"]
                assert reader.receive_untrusted(bytes.fromhex(record["wire"])) == payload


@pytest.mark.parametrize("refusal", VECTORS["refusals"], ids=lambda v: v["error"][:40])
def test_a_damaged_initiation_gets_upstreams_answer(refusal: dict[str, Any]) -> None:
    with pytest.raises(BadPacket) as caught:
        accept_untrusted(bytes.fromhex(refusal["initiation"]), private(refusal["control_private"]), entropy=seeded())
    if isinstance(caught.value, HandshakeRefused) and refusal["answer"]:
        assert encode_refusal(str(caught.value)).hex() == refusal["answer"]
    elif len(bytes.fromhex(refusal["initiation"])) == 101:
        assert refusal["answer"] == ""


def pair(seed: int = 1) -> tuple[Initiator, bytes, TransportKeys]:
    machine, control = MachinePrivate.generate(seeded(seed)(32)), MachinePrivate.generate(seeded(seed + 1)(32))
    initiator = Initiator(machine, control.public, 131, entropy=seeded(seed + 2))
    accepted = accept_untrusted(initiator.initiation, control, entropy=seeded(seed + 3))
    assert accepted.machine == machine.public
    return initiator, accepted.response, accepted.keys


def test_another_server_key_than_announced_does_not_open() -> None:
    machine, control = MachinePrivate.generate(seeded(1)(32)), MachinePrivate.generate(seeded(2)(32))
    other = MachinePrivate.generate(seeded(3)(32))
    initiator = Initiator(machine, other.public, 131, entropy=seeded())
    with pytest.raises(BadPacket):
        accept_untrusted(initiator.initiation, control, entropy=seeded())


def test_a_low_order_server_key_is_refused() -> None:
    machine = MachinePrivate.generate(seeded(1)(32))
    with pytest.raises(BadPacket):
        Initiator(machine, MachinePublic(bytes(32)), 131, entropy=seeded())


def test_the_servers_words_instead_of_a_handshake_are_told() -> None:
    initiator, _, _ = pair()
    transport = ClientTransport(initiator)
    with pytest.raises(HandshakeRefused, match="too old"):
        transport.receive_untrusted(encode_refusal("client too old"))


@pytest.mark.parametrize("has_early", [True, False])
@settings(max_examples=30)
@given(data=st.data(), payload=st.binary(max_size=9000))
def test_any_split_reads_the_same(has_early: bool, data: st.DataObject, payload: bytes) -> None:
    payload = b"\0" + payload  # HTTP/2 never begins like the early payload
    initiator, response, keys = pair()
    early = EarlyNoise(node_key_challenge=ChallengePublic(b"\7" * 32))
    preface = encode_early_payload(early) if has_early else b""
    wire = response + RecordWriter(keys.send).write(preface + payload)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=8)))
    transport = ClientTransport(initiator)
    plain = b""
    for start, end in zip([0, *cuts], [*cuts, len(wire)], strict=True):
        plain += transport.receive_untrusted(wire[start:end])
    assert plain == payload
    assert transport.early == (early if has_early else None)


def test_byte_by_byte_reads_the_same() -> None:
    initiator, response, keys = pair()
    wire = response + RecordWriter(keys.send).write(encode_early_payload(EarlyNoise()) + b"hello" * 2000)
    transport = ClientTransport(initiator)
    assert b"".join(transport.receive_untrusted(wire[i : i + 1]) for i in range(len(wire))) == b"hello" * 2000


def test_what_we_write_the_server_reads() -> None:
    initiator, response, keys = pair()
    transport = ClientTransport(initiator)
    assert transport.receive_untrusted(response) == b""
    wire = transport.write(b"x" * 10_000)
    assert max(len(wire), MAX_RECORD) == len(wire)
    assert RecordReader(keys.receive).receive_untrusted(wire) == b"x" * 10_000


@pytest.mark.parametrize(
    "wire",
    [b"\x05\0\x10" + bytes(16), b"\x04\xff\xff", b"\x04\0\x0f", b"\x04\0\x10" + bytes(16), b"\x03\0\x02no"],
    ids=["type", "long", "short", "forged", "refusal"],
)
def test_bad_records_end_the_connection(wire: bytes) -> None:
    with pytest.raises(BadPacket):
        RecordReader(bytes(32)).receive_untrusted(wire)


@pytest.mark.parametrize(
    "preface",
    [b"\xff\xff\xffTS\xff\xff\xff\xff", b"\xff\xff\xffTS\0\0\0\x02[]", b"\xff\xff\xffTS\0\0\0\0"],
    ids=["long", "no object", "empty"],
)
def test_a_bad_early_payload_ends_the_connection(preface: bytes) -> None:
    initiator, response, keys = pair()
    with pytest.raises(BadPacket):
        ClientTransport(initiator).receive_untrusted(response + RecordWriter(keys.send).write(preface))


@given(st.binary(max_size=200))
def test_any_bytes_raise_only_bad_packet(data: bytes) -> None:
    initiator, response, _ = pair()
    for prefix in (b"", response):
        try:
            ClientTransport(initiator).receive_untrusted(prefix + data)
        except BadPacket:
            return


def test_no_key_shows_in_a_repr() -> None:
    initiator, response, keys = pair()
    mine = initiator.finish_untrusted(response)
    shown = repr([initiator, mine, keys, RecordReader(mine.receive), RecordWriter(mine.send)])
    for secret in (mine.send, mine.receive):
        assert secret.hex() not in shown
        assert repr(secret) not in shown
