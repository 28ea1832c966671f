"""ACME answers from hell: each is refused with a sentence, after a bounded number of requests; none is believed."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from acme_scripts import START, URL, World

from ts_acme.authority import Authority
from ts_acme.chains import chain_untrusted, check_chain
from ts_acme.client import DNS_01, MOST_BAD_NONCES, TLS_ALPN_01
from ts_acme.errors import AcmeRefused
from ts_acme.messages import LARGEST_ANSWER, Ask, Reply
from ts_acme.server import Refused
from ts_acme.signing import ENTROPY_LENGTH, new_key
from ts_base.errors import BadPacket

PROBLEM = "urn:ietf:params:acme:error:"


def said(kind: str, words: str = "no", status: int = 400, **headers: str) -> Reply:
    body = json.dumps({"type": PROBLEM + kind, "detail": words}).encode()
    return Reply(status, {"replay-nonce": "n0nce", **headers}, body)


def only_where(world: World, place: str, reply: Reply | Callable[[Reply], Reply]) -> None:
    """Everything is as the server says, but for what is asked there."""

    def answer(ask: Ask) -> Reply:
        if f"/{place}" not in ask.url:
            return world.by_server(ask)
        return reply(world.by_server(ask)) if callable(reply) else reply

    world.answer = answer


def changed(**fields: Any) -> Callable[[Reply], Reply]:
    def change(reply: Reply) -> Reply:
        return Reply(reply.status, reply.headers, json.dumps({**json.loads(reply.body), **fields}).encode())

    return change


def refused(world: World) -> str:
    with pytest.raises((AcmeRefused, BadPacket)) as raised:
        world.hold(world.client.certificate(world.wanted()))
    return str(raised.value)


PLACES = ("dir", "account", "orders", "authorization", "challenge", "finalize", "order/", "certificate")
PAGES = [
    Reply(200, {"replay-nonce": "n", "content-type": "text/html"}, b"<html>Log in</html>"),
    Reply(200, {"replay-nonce": "n"}, b'{"a":' * 500),
    Reply(200, {"replay-nonce": "n"}, b"[" * (LARGEST_ANSWER + 1)),
    Reply(301, {"replay-nonce": "n", "location": "https://elsewhere.test/"}, b""),
    Reply(200, {"replay-nonce": "n"}, b"\xff\xfe"),
    Reply(201, {"replay-nonce": "n"}, b"null"),
    Reply(502, {"replay-nonce": "n"}, b"<html>Bad gateway</html>"),
]


@pytest.mark.parametrize("place", PLACES)
def test_pages_nonsense_and_redirects_are_refused_wherever_they_come(place: str) -> None:
    for page in PAGES:
        world = World()
        only_where(world, place, page)
        if place in {"order/", "challenge", "certificate"} and page.status == 200:
            # A challenge's own answer is not read; where nothing is waited for, an order is not asked for.
            with contextlib.suppress(AcmeRefused, BadPacket):
                world.hold(world.client.certificate(world.wanted()))
            continue
        if place == "order/":
            continue
        sentence = refused(world)
        assert len(sentence) < 400, sentence
        assert "elsewhere" not in [ask.url for ask in world.asked]


def test_nonces_refused_for_ever_end_in_a_sentence() -> None:
    world = World()
    only_where(world, "orders", said("badNonce"))
    assert f"refused {MOST_BAD_NONCES} of its own nonces" in refused(world)
    assert sum("orders" in ask.url for ask in world.asked) == MOST_BAD_NONCES
    assert world.client.statistics().drops["acme.bad_nonce"] == MOST_BAD_NONCES


def test_half_of_all_nonces_refused_are_only_requests_more() -> None:
    world, turns = World(), [0]

    def answer(ask: Ask) -> Reply:
        turns[0] += 1
        good = world.by_server(Ask("HEAD", f"{URL}/nonce")).headers
        return said("badNonce", **good) if ask.method == "POST" and turns[0] % 2 else world.by_server(ask)

    world.answer = answer
    assert world.hold(world.client.certificate(world.wanted()))


def test_server_without_nonces_is_refused() -> None:
    for headers in ({}, {"replay-nonce": "no nonce: spaces"}, {"replay-nonce": "x" * 2000}):
        world = World()
        world.answer = lambda ask, headers=headers, world=world: Reply(  # type: ignore[misc]
            world.by_server(ask).status, headers, world.by_server(ask).body
        )
        assert "a nonce" in refused(world)


def test_rate_limit_is_told_at_once_with_its_time() -> None:
    for reply in (
        said("rateLimited", "too many certificates", 429, **{"retry-after": "3600"}),
        Reply(429, {}, b"slow"),
    ):
        world = World()
        only_where(world, "orders", reply)
        with pytest.raises(AcmeRefused) as raised:
            world.hold(world.client.certificate(world.wanted()))
        assert raised.value.is_rate_limit
        assert raised.value.retry_at == (START + 3600 if reply.headers else None)
        assert sum("orders" in ask.url for ask in world.asked) == 1
        assert world.now == START


def test_rate_limit_on_every_address_for_ever_is_one_request() -> None:
    world = World()
    world.answer = lambda _ask: said("rateLimited", status=429)
    assert "429" in refused(world)
    assert len(world.asked) == 1


def test_authorization_that_never_becomes_valid_ends_in_time() -> None:
    for retry_after in ({}, {"retry-after": "0"}, {"retry-after": "9999999999"}):
        world = World()

        def forever(reply: Reply, headers: dict[str, str] = retry_after) -> Reply:
            return changed(status="pending")(Reply(reply.status, {**reply.headers, **headers}, reply.body))

        only_where(world, "authorization", forever)
        assert "has not looked at web.test" in refused(world)
        assert world.now - START <= 200


def test_orders_that_go_invalid_or_stay_processing_say_so() -> None:
    error = {"type": f"{PROBLEM}caa", "detail": "a CAA record forbids it"}
    world = World()
    only_where(world, "finalize", changed(status="invalid", error=error))
    assert "invalid (caa: a CAA record forbids it)" in refused(world)
    world = World()
    only_where(world, "finalize", changed(status="processing", certificate=None))
    first = world.answer
    world.answer = lambda ask: changed(status="processing")(first(ask)) if "/order/" in ask.url else first(ask)
    assert "left the order processing" in refused(world)


def test_record_that_is_not_there_is_told_as_the_server_does() -> None:
    world = World()
    world.records = {}
    conversation = world.client.certificate(world.wanted())
    world.server = type(world.server)(
        url=URL, records=lambda _: [], entropy=world.entropy, wall_clock=lambda: world.now
    )
    with pytest.raises(AcmeRefused, match=r"does not believe that web\.test is ours: invalid \(unauthorized: _acme"):
        world.hold(conversation)


def test_authorizations_for_others_and_without_our_challenge_are_refused() -> None:
    world = World()
    only_where(world, "authorization", changed(identifier={"type": "dns", "value": "victim.test"}))
    assert "an authorization for victim.test, which nobody asked for" in refused(world)
    assert not world.records
    for token in ("../../x", "", 7, "a" * 500):
        world = World()
        challenge = {"type": DNS_01, "url": f"{URL}/c", "token": token, "status": "pending"}
        only_where(world, "authorization", changed(challenges=[challenge]))
        assert f"offers no {DNS_01}" in refused(world)


def test_addresses_that_lead_elsewhere_by_another_scheme_are_not_followed() -> None:
    for url in (
        "http://acme.test/orders",
        "file:///etc/passwd",
        "https://user@acme.test/",
        "https://",
        7,
        "https://a b",
    ):
        world = World()
        only_where(world, "dir", changed(newOrder=url))
        assert "newOrder" in refused(world)
        assert len(world.asked) == 1


def test_too_many_authorizations_and_challenges_are_refused() -> None:
    world = World()
    only_where(world, "orders", changed(authorizations=[f"{URL}/authorization/x"] * 1000))
    assert "more than 16 authorizations" in refused(world)
    world = World()
    only_where(world, "authorization", changed(challenges=[{}] * 1000))
    assert "more than 32 challenges" in refused(world)


def test_authorization_that_is_valid_already_is_left_alone() -> None:
    world = World()
    only_where(world, "authorization", changed(status="valid"))
    with pytest.raises(AcmeRefused):  # the server itself still wants its record
        world.hold(world.client.certificate(world.wanted()))
    assert not any("challenge" in ask.url for ask in world.asked)
    assert not world.records


def test_replaces_is_dropped_when_it_was_used_or_refused() -> None:
    world = World()
    chain = chain_untrusted(world.hold(world.client.certificate(world.wanted())))
    assert world.hold(world.client.certificate(world.wanted(replaces=chain.ari_id)))
    assert world.client.statistics().drops["acme.replaces_refused"] == 0
    for replaces in (chain.ari_id, "nobody.knows"):  # used up: 409; of another account
        assert world.hold(world.client.certificate(world.wanted(replaces=replaces)))
    assert world.client.statistics().drops["acme.replaces_refused"] == 2


def test_proof_by_tls_falls_back_to_dns_without_replacing_twice() -> None:
    world = World()
    chain = chain_untrusted(world.hold(world.client.certificate(world.wanted())))
    wanted = world.wanted(replaces=chain.ari_id)
    wanted.kinds = (TLS_ALPN_01, DNS_01)
    assert world.hold(world.client.certificate(wanted))
    drops = world.client.statistics().drops
    assert (drops["acme.challenge_failed"], drops["acme.replaces_refused"]) == (1, 0)


def test_rate_limit_is_not_met_a_second_time_by_another_challenge() -> None:
    world = World()
    world.server.refuse_orders(Refused("rateLimited", "enough", 429, 60.0))
    wanted = world.wanted()
    wanted.kinds = (TLS_ALPN_01, DNS_01)
    with pytest.raises(AcmeRefused):
        world.hold(world.client.certificate(wanted))
    assert sum("orders" in ask.url for ask in world.asked) == 1


# --- chains ---------------------------------------------------------------------------------------


def issued(world: World, *names: str, lifetime: float = 86_400.0) -> tuple[bytes, Any]:
    key = new_key(world.entropy(ENTROPY_LENGTH))
    return world.server.authority.issue(key.public_key(), names, lifetime), key


def test_chains_for_others_are_refused() -> None:
    world = World()
    pem, key = issued(world, "web.test")
    chain = chain_untrusted(pem)
    check_chain(chain, key.public_key(), ["web.test"], world.now)
    other = new_key(world.entropy(ENTROPY_LENGTH)).public_key()
    for arguments, sentence in (
        ((other, ["web.test"], world.now), "for another key than ours"),
        ((key.public_key(), ["web.test", "db.test"], world.now), r"not for db\.test"),
        ((key.public_key(), ["web.test"], world.now + 86_401), "has expired"),
        ((key.public_key(), ["web.test"], world.now - 7200), "not valid yet"),
    ):
        with pytest.raises(BadPacket, match=sentence):
            check_chain(chain, *arguments)


def test_chains_that_loop_or_do_not_hold_together_are_refused() -> None:
    world = World()
    pem, _ = issued(world, "web.test")
    own, middle = (part + b"-----END CERTIFICATE-----\n" for part in pem.split(b"-----END CERTIFICATE-----\n")[:2])
    stranger = Authority(world.entropy, lambda: START)
    for text, sentence in (
        (own + middle + own, "stands twice"),
        (own + middle + middle, "stands twice"),
        (own + stranger.root_pem, "did not issue each other"),
        (middle + own, "for no name"),
        (own * 9, "more than 8 certificates"),
        (b"", "no certificate"),
        (own.replace(b"MII", b"AAA", 1), "cannot be read"),
        (b"-----BEGIN CERTIFICATE-----" * 5000, "more than 65536 bytes"),
    ):
        with pytest.raises(BadPacket, match=sentence):
            chain_untrusted(text)


def test_wildcards_cover_one_label() -> None:
    world = World()
    chain = chain_untrusted(issued(world, "*.web.test", "web.test")[0])
    assert chain.covers("a.web.test")
    assert chain.covers("web.test")
    assert not chain.covers("a.b.web.test")
    assert not chain.covers("test")
