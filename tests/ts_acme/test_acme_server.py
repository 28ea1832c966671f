"""The server half under clients that do not keep the rules: each is told which, and nothing is issued."""

from __future__ import annotations

import json
from typing import Any

import pytest
from acme_scripts import URL, World

from ts_acme import server as served
from ts_acme.chains import new_request
from ts_acme.messages import Reply
from ts_acme.server import MOST_NONCES
from ts_acme.signing import ENTROPY_LENGTH, AccountKey, base64url, compact, new_key


class Caller:
    """One account's key, and requests that may be spoilt before they are signed, and after."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.account = ""
        self.key = AccountKey(new_key(world.entropy(ENTROPY_LENGTH)))

    def nonce(self) -> str:
        return self.world.server.answer("HEAD", "/nonce").headers["replay-nonce"]

    def post(self, path: str, payload: Any, *, url: str = "", nonce: str = "") -> Reply:
        body = self.key.sign(url or f"{URL}{path}", nonce or self.nonce(), payload, self.account)
        return self.world.server.answer("POST", path, body)

    def log_in(self) -> Reply:
        reply = self.post("/account", {"termsOfServiceAgreed": True})
        self.account = reply.headers.get("location", "")
        return reply

    def order(self, *names: str) -> tuple[str, dict[str, Any]]:
        reply = self.post("/orders", {"identifiers": [{"type": "dns", "value": name} for name in names]})
        return reply.headers["location"].removeprefix(URL), json.loads(reply.body)


def kind(reply: Reply) -> str:
    assert reply.headers["content-type"] == "application/problem+json"
    return str(json.loads(reply.body)["type"]).rpartition(":")[2]


@pytest.fixture
def caller() -> Caller:
    made = Caller(World())
    assert made.log_in().status == 201
    return made


def test_account_is_found_by_its_key(caller: Caller) -> None:
    known, caller.account = caller.account, ""
    assert caller.post("/account", {"onlyReturnExisting": True}).status == 200
    assert (caller.log_in().status, caller.account) == (200, known)
    stranger = Caller(caller.world)
    assert kind(stranger.post("/account", {"onlyReturnExisting": True})) == "accountDoesNotExist"
    assert kind(stranger.post("/account", {})) == "userActionRequired"
    assert kind(stranger.post("/orders", {})) == "accountDoesNotExist"
    stranger.account = f"{URL}/account/nobody"
    assert kind(stranger.post("/orders", {})) == "accountDoesNotExist"


def test_signatures_and_nonces_are_checked(caller: Caller) -> None:
    server = caller.world.server
    nonce = caller.nonce()
    assert caller.post("/orders", {}, nonce=nonce).status == 400
    assert kind(caller.post("/orders", {}, nonce=nonce)) == "badNonce"
    assert kind(caller.post("/orders", {}, url=f"{URL}/account")) == "unauthorized"
    good = json.loads(caller.key.sign(f"{URL}/orders", caller.nonce(), {}, caller.account))
    spoilt = [
        {**good, "payload": base64url(b'{"a":1}')},
        {**good, "signature": base64url(bytes(64))},
        {**good, "signature": "AA"},
        {**good, "signature": "!"},
        {**good, "protected": base64url(b"[]")},
        {**good, "protected": base64url(compact({"alg": "none", "url": "u", "nonce": "n"}))},
        {**good, "protected": 7},
        [],
    ]
    for body in spoilt:
        assert server.answer("POST", "/orders", compact(body)).status == 400, body
    assert server.answer("POST", "/orders", bytes(100_000)).status == 413
    assert server.answer("GET", "/orders").status == 405
    assert kind(server.answer("GET", "/renewal/nobody.knows")) == "malformed"
    for _ in range(MOST_NONCES):
        caller.nonce()
    assert server.statistics().drops["acme.refused"] > 10


def test_orders_are_of_their_account_and_in_their_order(caller: Caller) -> None:
    for payload in ({}, {"identifiers": []}, {"identifiers": [{"type": "ip", "value": "1.1.1.1"}]}, [], None):
        assert kind(caller.post("/orders", payload)) == "rejectedIdentifier"
    assert kind(caller.post("/orders", {"identifiers": [{"type": "dns", "value": "no/name"}]})) == "rejectedIdentifier"
    place, order = caller.order("a.test", "*.a.test")
    number = place.rpartition("/")[2]
    assert order["status"] == "pending"
    assert kind(caller.post(f"/finalize/{number}", {"csr": "AA"})) == "orderNotReady"
    assert kind(caller.post(f"/certificate/{number}", None)) == "malformed"
    assert kind(caller.post(f"/authorization/{number}/b.test", None)) == "malformed"
    other = Caller(caller.world)
    other.log_in()
    assert kind(other.post(place, None)) == "unauthorized"
    wildcard = json.loads(caller.post(f"/authorization/{number}/*.a.test", None).body)
    assert (wildcard["wildcard"], wildcard["identifier"]["value"]) == (True, "a.test")
    challenge = wildcard["challenges"][0]["url"].removeprefix(URL)
    assert json.loads(caller.post(challenge, {}).body)["status"] == "invalid"
    assert kind(caller.post(challenge, {})) == "malformed"
    assert json.loads(caller.post(place, None).body)["error"]["detail"].endswith("none of them is the one")


def test_requests_for_other_names_than_the_orders_are_refused(caller: Caller) -> None:
    world = caller.world
    place, _ = caller.order("a.test")
    number = place.rpartition("/")[2]
    shown = json.loads(caller.post(f"/authorization/{number}/a.test", None).body)["challenges"][0]
    world.records["_acme-challenge.a.test"] = [base64url(caller.key.authorize(shown["token"]))]
    assert json.loads(caller.post(shown["url"].removeprefix(URL), {}).body)["status"] == "valid"
    key = new_key(world.entropy(ENTROPY_LENGTH))
    for csr in (None, "!", base64url(b"nonsense"), base64url(new_request(key, ["b.test"]))):
        assert kind(caller.post(f"/finalize/{number}", {"csr": csr})) == "badCSR"
    good = new_request(key, ["a.test"])
    torn = good[:-4] + bytes(4)
    assert kind(caller.post(f"/finalize/{number}", {"csr": base64url(torn)})) == "badCSR"
    done = json.loads(caller.post(f"/finalize/{number}", {"csr": base64url(good)}).body)
    assert done["status"] == "valid"
    assert b"BEGIN CERTIFICATE" in caller.post(f"/certificate/{number}", None).body
    assert world.server.statistics().certificates == 1


def test_what_is_kept_is_bounded(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served, "MOST_KEPT", 3)
    places = [caller.order("a.test")[0] for _ in range(5)]
    assert kind(caller.post(places[0], None)) == "unauthorized"
    assert caller.post(places[-1], None).status == 200
