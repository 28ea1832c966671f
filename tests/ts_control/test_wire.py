"""Every message through Go's JSON and back; null, absent and hostile text."""

from __future__ import annotations

import contextlib
import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ts_base.errors import BadPacket
from ts_base.keys import NodePublic
from ts_control import map_reader, wire, wire_register
from ts_control.gojson import ZERO_TIME, GoStruct, decode_json_untrusted, encode_json, go_name, unix_time
from ts_control.map_reader import decode_map_response_steps
from ts_control.wire import MapResponse, Node
from ts_control.wire_register import RegisterAuth, RegisterRequest, RegisterResponse

from control_scripts import first_map, make_node  # isort: skip

MESSAGES = {
    kind: None
    for module in (map_reader, wire, wire_register)
    for kind in vars(module).values()
    if isinstance(kind, type) and issubclass(kind, GoStruct) and kind is not GoStruct
}


def in_steps(data: bytes) -> MapResponse:
    steps = decode_map_response_steps(data, at_once=0)
    while True:
        try:
            next(steps)
        except StopIteration as done:
            result: MapResponse = done.value
            return result


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("allowed_ips", "AllowedIPs"),
        ("home_derp", "HomeDERP"),
        ("stable_id", "StableID"),
        ("url_is_noise", "URLIsNoise"),
        ("os_has_ipv6", "OSHasIPv6"),
        ("ssh_policy", "SSHPolicy"),
        ("working_icmpv4", "WorkingICMPv4"),
        ("is_wireguard_only", "IsWireGuardOnly"),
    ],
)
def test_field_names_are_spelt_as_go_spells_them(ours: str, theirs: str) -> None:
    assert go_name(ours) == theirs


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
def test_null_in_every_field_is_the_zero_value(kind: type[GoStruct]) -> None:
    nulls = {field.encode_name: None for field in msgspec.structs.fields(kind)}
    assert decode_json_untrusted(kind, json.dumps(nulls).encode()) == kind()
    assert decode_json_untrusted(kind, b'{"NobodyKnowsThis": [1, {"a": null}]}') == kind()


def test_a_node_survives_the_round_trip() -> None:
    node = make_node(7, online=True, tags=("tag:a",), cap_map={"x": [1, {"y": 2}], "z": None})
    assert decode_json_untrusted(Node, encode_json(node)) == node


def test_empty_and_absent_allowed_addresses_differ() -> None:
    assert decode_json_untrusted(Node, b'{"AllowedIPs": []}').allowed_ips == ()
    assert decode_json_untrusted(Node, b'{"AllowedIPs": null}').allowed_ips is None
    assert b'"AllowedIPs":[]' in encode_json(Node(allowed_ips=()))


def test_zero_time_means_never() -> None:
    node = decode_json_untrusted(
        Node, b'{"KeyExpiry": "0001-01-01T00:00:00Z", "Created": "2026-01-01T00:00:00.123456789Z"}'
    )
    assert node.key_expiry == ZERO_TIME
    assert unix_time(node.key_expiry) == 0.0
    assert unix_time(node.created) == pytest.approx(1767225600.123457)


def test_a_map_read_in_steps_equals_the_map_read_at_once() -> None:
    data = encode_json(first_map(*range(2, 700), domain="rig.test"))
    assert in_steps(data) == decode_json_untrusted(MapResponse, data)


def test_null_nodes_are_left_out() -> None:
    assert in_steps(b'{"Peers": [null, {"ID": 5}], "PeersChanged": [null]}').peers == (Node(id=5),)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"null",
        b"[]",
        b"7",
        b'{"Peers": 5}',
        b'{"Peers": [{"ID": "five"}]}',
        b'{"Peers": [{"Key": "nodekey:00"}]}',
        b'{"Peers": [{"Key": "mkey:' + b"0" * 64 + b'"}]}',
        b'{"Peers": [{"Addresses": "100.64.0.1"}]}',
        b'{"DERPMap": {"Regions": {"one": {}}}}',
        b'{"Node": {"KeyExpiry": "yesterday"}}',
        b'{"Node": {"ID"',
        b'{"SSHPolicy": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"Unknown": ' + b"[" * 200_000,
        b'{"Domain": "\xff\xfe"}',
    ],
)
def test_bad_map_messages_raise_only_bad_packet(text: bytes) -> None:
    with pytest.raises(BadPacket):
        in_steps(text)
    with pytest.raises(BadPacket):
        decode_json_untrusted(MapResponse, text)


@given(st.binary(max_size=200))
def test_any_bytes_raise_only_bad_packet(data: bytes) -> None:
    for kind in (RegisterResponse, wire_register.ServerKeys, wire_register.EarlyNoise, MapResponse):
        with contextlib.suppress(BadPacket):
            decode_json_untrusted(kind, data)


@given(st.integers(0, 2000), st.integers(0, 255))
def test_a_damaged_map_raises_only_bad_packet(position: int, value: int) -> None:
    data = bytearray(encode_json(first_map(2, 3)))
    data[position % len(data)] = value
    with contextlib.suppress(BadPacket):
        in_steps(bytes(data))


def test_login_secrets_stay_out_of_reprs_and_errors() -> None:
    secret = "hskey-auth-verysecret"
    request = RegisterRequest(auth=RegisterAuth(auth_key=secret), followup="https://x/register/verysecret")
    response = RegisterResponse(auth_url="https://x/register/verysecret")
    assert "verysecret" not in repr(request) + repr(response) + repr(request.auth)
    with pytest.raises(BadPacket) as caught:
        decode_json_untrusted(Node, json.dumps({"Key": "privkey:verysecret", "KeyExpiry": "verysecret"}).encode())
    assert "verysecret" not in str(caught.value)


def test_the_register_body_is_what_a_go_server_reads() -> None:
    body = json.loads(
        encode_json(RegisterRequest(version=131, node_key=NodePublic(bytes(32)), auth=RegisterAuth(auth_key="k")))
    )
    assert body == {"Version": 131, "NodeKey": "nodekey:" + 64 * "0", "Auth": {"AuthKey": "k"}}


@pytest.mark.parametrize(
    ("text", "region"), [("127.3.3.40:7", 7), ("127.3.3.40:x", 0), ("1.2.3.4:7", 0), ("", 0), ("127.3.3.40:²", 0)]
)
def test_the_old_home_region_form_is_read(text: str, region: int) -> None:
    assert wire.legacy_home_region_untrusted(text) == region
