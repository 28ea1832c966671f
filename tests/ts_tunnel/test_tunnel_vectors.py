"""Handshakes, transport datagrams and cookies that wireguard-go made, byte for byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from golden.noise import twin_initiation, twin_response
from ts_base.errors import BadPacket
from ts_base.keys import NodePrivate
from ts_base.noise import Handshake
from ts_tunnel.cookie import (
    CookieIssuer,
    append_macs,
    is_mac1_right,
    keyed_mac,
    mac1_key_of,
    open_cookie_untrusted,
)
from ts_tunnel.endpoint import Endpoint
from ts_tunnel.handshake import IDENTIFIER, NAME, NO_PSK, Initiation, read_initiation_untrusted
from ts_tunnel.session import Session
from ts_tunnel.wire import MACS_LENGTH, decode_cookie_reply_untrusted, decode_response_untrusted, mac1_of

VECTORS: dict[str, Any] = json.loads((Path(__file__).parent.parent / "vectors" / "wireguard.json").read_text())
SESSIONS = VECTORS["sessions"]
PLAIN_SESSIONS = [session for session in SESSIONS if not int(session["preshared_key"], 16)]


def unhex(vector: dict[str, Any], name: str) -> bytes:
    return bytes.fromhex(vector[name])


@pytest.mark.parametrize("v", PLAIN_SESSIONS)
def test_initiation_and_response_are_those_of_wireguard_go(v):
    first, second = (bytes.fromhex(entry["datagram"]) for entry in v["datagrams"][:2])
    initiation = Initiation(
        unhex(v, "initiator_private"),
        unhex(v, "responder_public"),
        ephemeral=unhex(v, "initiator_ephemeral_private"),
        timestamp=unhex(v, "timestamp"),
        index=v["initiator_index"],
    )
    assert append_macs(initiation.body, mac1_key_of(unhex(v, "responder_public")), None) == first

    heard = read_initiation_untrusted(unhex(v, "responder_private"), first)
    assert heard.remote == unhex(v, "initiator_public")
    assert heard.timestamp == unhex(v, "timestamp")
    body, responder_keys = heard.respond(ephemeral=unhex(v, "responder_ephemeral_private"), index=v["responder_index"])
    assert append_macs(body, mac1_key_of(unhex(v, "initiator_public")), None) == second

    sends = unhex(v, "initiator_sends_key"), unhex(v, "responder_sends_key")
    assert responder_keys == sends[::-1]
    assert initiation.read_response_untrusted(decode_response_untrusted(second)[2]) == sends


@pytest.mark.parametrize("v", SESSIONS)
def test_noise_and_its_golden_twin_agree_with_wireguard_go(v):
    first, second = (bytes.fromhex(entry["datagram"])[:-MACS_LENGTH] for entry in v["datagrams"][:2])
    noise = Handshake(
        NAME,
        prologue=IDENTIFIER,
        static=unhex(v, "initiator_private"),
        remote_static=unhex(v, "responder_public"),
        psk=unhex(v, "preshared_key"),
    )
    assert noise.write(unhex(v, "timestamp"), ephemeral=unhex(v, "initiator_ephemeral_private")) == first[8:]
    noise.read_untrusted(second[12:])
    keys = unhex(v, "initiator_sends_key"), unhex(v, "responder_sends_key")
    assert noise.keys() == keys
    assert noise.digest == unhex(v, "hash_after_response")

    message, chain, digest = twin_initiation(
        unhex(v, "initiator_private"),
        unhex(v, "initiator_ephemeral_private"),
        unhex(v, "responder_public"),
        unhex(v, "timestamp"),
    )
    assert (message, chain, digest) == (
        first[8:],
        unhex(v, "chain_key_after_initiation"),
        unhex(v, "hash_after_initiation"),
    )
    assert twin_response(
        chain,
        digest,
        unhex(v, "responder_ephemeral_private"),
        message[:32],
        unhex(v, "initiator_public"),
        unhex(v, "preshared_key"),
    ) == (second[12:], keys)


@pytest.mark.parametrize("v", SESSIONS)
def test_transport_datagrams_are_those_of_wireguard_go(v):
    keys = {
        "initiator": (unhex(v, "initiator_sends_key"), unhex(v, "responder_sends_key")),
        "responder": (unhex(v, "responder_sends_key"), unhex(v, "initiator_sends_key")),
    }
    indices = {"initiator": v["initiator_index"], "responder": v["responder_index"]}
    packets = {"initiator": [], "responder": []}
    for entry in v["packets"]:
        packets[entry["from"]].append(bytes.fromhex(entry["packet"]))
    for name, other in (("initiator", "responder"), ("responder", "initiator")):
        sent = [entry for entry in v["datagrams"][2:] if entry["from"] == name]
        datagrams = [bytes.fromhex(entry["datagram"]) for entry in sent]
        receiver = Session(1, indices[other], indices[name], keys[other], is_initiator=False, now=0.0)
        sender = Session(1, indices[name], indices[other], keys[name], is_initiator=True, now=0.0)
        padded = [bytes.fromhex(entry["padded"]) for entry in sent]
        assert receiver.open_batch(datagrams) == (padded, 0, 0)
        assert [d[:8] == receiver.inbound_prefix for d in datagrams] == [True] * len(datagrams)
        plain = iter(packets[name])
        originals = [next(plain) if clear else b"" for clear in padded]
        if all(len(clear) <= 1280 for clear in padded):
            assert sender.seal_batch(originals) == datagrams
        assert [entry["counter"] for entry in sent] == list(range(len(sent)))


def test_endpoint_answers_wireguard_go_and_opens_its_packets():
    """The recorded initiator talks to an endpoint that draws the recorded responder's ephemeral key and index."""
    [v] = PLAIN_SESSIONS
    draws = {4: v["responder_index"].to_bytes(4, "big"), 32: unhex(v, "responder_ephemeral_private")}
    endpoint = Endpoint(
        NodePrivate(unhex(v, "responder_private")), entropy=lambda n: draws[n], wall_clock=lambda: 1.7e9
    )
    endpoint.set_peers({7: unhex(v, "initiator_public")}, 0.0)
    path = ("192.0.2.1", 1)
    from_initiator = [bytes.fromhex(d["datagram"]) for d in v["datagrams"] if d["from"] == "initiator"]
    from_responder = [bytes.fromhex(d["datagram"]) for d in v["datagrams"] if d["from"] == "responder"]
    assert endpoint.receive([(path, from_initiator[:1])], 0.0) == [(7, path, [])]
    assert endpoint.transmit(0.0) == [(7, from_responder[:1])]
    [(peer, _, packets)] = endpoint.receive([(path, from_initiator[1:])], 0.1)
    assert peer == 7
    assert packets == [
        bytes.fromhex(d["padded"]) for d in v["datagrams"][2:] if d["from"] == "initiator" and d["padded"]
    ]


@pytest.mark.parametrize("v", VECTORS["cookies"])
def test_cookies_are_those_of_wireguard_go(v):
    plain, secret, public = unhex(v, "message_with_mac1"), unhex(v, "secret"), unhex(v, "responder_public")
    assert is_mac1_right(plain, mac1_key_of(public))
    nonce_and_secret = {24: unhex(v, "nonce"), 32: secret}
    issuer = CookieIssuer(public, lambda n: nonce_and_secret[n])
    source = unhex(v, "source_bytes")
    assert not issuer.proves_source(unhex(v, "message_with_mac2"), source, 0.0)
    assert issuer.reply(plain, v["receiver_index"], source, 0.0) == unhex(v, "reply")
    assert issuer.proves_source(unhex(v, "message_with_mac2"), source, 0.0)
    assert not issuer.proves_source(unhex(v, "message_with_mac2"), source + b"\0", 0.0)
    assert not issuer.proves_source(unhex(v, "message_with_mac2"), source, 120.0)

    receiver, nonce, sealed = decode_cookie_reply_untrusted(unhex(v, "reply"))
    assert receiver == v["receiver_index"]
    cookie = open_cookie_untrusted(public, mac1_of(plain), nonce, sealed)
    assert cookie == keyed_mac(secret, source)
    assert append_macs(plain[:-MACS_LENGTH], mac1_key_of(public), cookie) == unhex(v, "message_with_mac2")
    with pytest.raises(BadPacket):
        open_cookie_untrusted(public, bytes(16), nonce, sealed)


def test_there_is_no_preshared_key():
    assert bytes(32) == NO_PSK
