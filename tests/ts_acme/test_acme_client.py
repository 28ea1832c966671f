from __future__ import annotations

from acme_scripts import URL, World

from ts_acme.chains import chain_untrusted, check_chain
from ts_acme.server import AcmeServer


def test_certificate_is_had_by_a_record_and_is_for_the_name_and_key() -> None:
    world = World()
    chain = chain_untrusted(world.hold(world.client.certificate(world.wanted())))
    check_chain(chain, world.key.public_key(), ["web.test"], world.now)
    assert chain.names == ("web.test",)
    assert [len(found) for found in world.records.values()] == [1]
    window = world.hold(world.client.window(chain.ari_id))
    assert window is not None
    assert chain.begins < window.start < window.end < chain.expires


def test_server_that_forgot_the_account_is_told_of_it_again() -> None:
    world = World()
    world.hold(world.client.certificate(world.wanted()))
    records = lambda name: world.records.get(name, [])  # noqa: E731
    world.server = AcmeServer(url=URL, records=records, entropy=world.entropy, wall_clock=lambda: world.now)
    assert world.hold(world.client.certificate(world.wanted()))
    assert sum("/account" in ask.url for ask in world.asked) == 2
