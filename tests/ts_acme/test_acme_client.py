from __future__ import annotations

from acme_scripts import World

from ts_acme.chains import chain_untrusted, check_chain


def test_certificate_is_had_by_a_record_and_is_for_the_name_and_key() -> None:
    world = World()
    chain = chain_untrusted(world.hold(world.client.certificate(world.wanted())))
    check_chain(chain, world.key.public_key(), ["web.test"], world.now)
    assert chain.names == ("web.test",)
    assert [len(found) for found in world.records.values()] == [1]
    window = world.hold(world.client.window(chain.ari_id))
    assert window is not None
    assert chain.begins < window.start < window.end < chain.expires
