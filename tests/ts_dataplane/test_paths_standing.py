"""The five standings of a peer's path: what leads to which, and what the table of paths says in each."""

from __future__ import annotations

from path_scripts import REGION, lan, paths_of, settled

from ts_dataplane import disco
from ts_dataplane.candidates import MAX_CALLED, MAX_LISTED, Candidates
from ts_dataplane.peer_paths import ACTIVE_TIME, FOLLOWS, STANDBY_LIFE, PeerState, Standing


def standing(host, peer) -> Standing:
    return paths_of(host, peer).standing


def test_a_peer_goes_through_the_standings_in_the_order_of_the_drawing():
    world, a, b = lan()
    relay = (REGION, b.key)
    a.finder.ping(b.number, world.now)
    assert standing(a, b) is Standing.SEARCHING
    assert a.paths_to(b) == (relay,)
    seen = [Standing.SEARCHING]

    def note():
        now = standing(a, b)
        if seen[-1] is not now:
            seen.append(now)
            expected = {Standing.SEARCHING: (relay,), Standing.TRUSTED: (b.address,)}
            assert a.paths_to(b) == expected.get(now, (b.address, relay))

    for blocked, seconds in ((False, 3.0), (True, 20.0), (False, 10.0)):
        world.blocked = lambda host, path, datagram, blocked=blocked: blocked
        for _ in range(int(seconds / 0.02)):
            world.talk(a, b, 0.02, every=0.02)
            note()
    found = [Standing.MIRRORED, Standing.TRUSTED]
    assert seen == [Standing.SEARCHING, *found, Standing.DOUBTED, Standing.SEARCHING, *found]
    world.run(ACTIVE_TIME + 20.0)
    assert (
        standing(a, b) is Standing.DOUBTED
    )  # unused, and nobody vouched for it lately: the next packet goes both ways
    assert a.finder.statistics().standings == {Standing.DOUBTED: 1}


def test_doubt_is_never_the_first_thing_known_of_a_path():
    assert set(FOLLOWS) == set(Standing)
    assert {before for before, after in FOLLOWS.items() if Standing.DOUBTED in after} == {
        Standing.MIRRORED,
        Standing.TRUSTED,
    }
    assert all(before not in after for before, after in FOLLOWS.items())


def test_statistics_tell_what_was_dropped_and_what_is_open():
    world, a, b = settled()
    world.blocked = lambda host, path, datagram: True
    world.talk(a, b, 4.0)
    a.finder.receive([(b"TS", b.address)], world.now)
    counted = a.finder.statistics()
    assert counted.peers == 1
    assert counted.open_pings > 0
    assert counted.inbox.budgets == 3  # by the relay, by the path in use, by any other
    assert counted.drops == {"disco.bad_datagram": 1}


# ---- uplinks


def test_candidates_are_every_address_through_every_uplink_within_the_old_bounds():
    made = Candidates(("wlan0", "wwan0"))
    made.set_listed(["192.0.2.7:1", "[2001:db8::7]:1"], loopback=False)
    assert list(made) == [
        ("192.0.2.7%wlan0", 1),
        ("192.0.2.7%wwan0", 1),
        ("2001:db8::7%wlan0", 1),
        ("2001:db8::7%wwan0", 1),
    ]
    made.set_listed([f"192.0.2.{n}:1" for n in range(1, 200)], loopback=False)
    assert len(made) == MAX_LISTED
    assert made.set_called([(f"198.51.100.{n}", 1) for n in range(1, 20)], loopback=False) == 19 - MAX_CALLED // 2
    assert len(made) == MAX_LISTED + MAX_CALLED


def test_a_stranger_cannot_name_our_uplink():
    made = Candidates(("wlan0",))
    made.set_listed(["192.0.2.7%wwan0:1", "[fe80::1%wwan0]:1"], loopback=False)
    assert not made


def test_a_standby_is_the_fastest_that_answers_and_is_asked_alone():
    _, a, b = lan()
    state = PeerState(b.number, a.finder._roster[b.number], 0.0, ("wlan0", "wwan0"))
    state.candidates.set_listed(["192.0.2.7:1", "192.0.2.8:1"], loopback=False)
    assert state.standby("wwan0", 100.0) is None
    assert len(state.due_standbys(("wlan0", "wwan0"), 100.0)) == 4
    for host, latency in (("192.0.2.7", 0.2), ("192.0.2.8", 0.1)):
        candidate = state.candidates[f"{host}%wwan0", 1]
        candidate.ponged_at, candidate.latency = 100.0, latency
    assert state.standby("wwan0", 100.0 + STANDBY_LIFE) == ("192.0.2.8%wwan0", 1)
    assert state.due_standbys(("wwan0",), 110.0) == [("192.0.2.8%wwan0", 1)]
    assert state.standby("wwan0", 100.1 + STANDBY_LIFE) is None


def test_a_pong_does_not_tell_the_uplink_its_ping_came_by():
    world, a, b = lan()
    ping = disco.Boxes(b.disco, world.rng.randbytes).seal(a.disco.public.raw, disco.Ping(bytes(12), b.key))
    path = (f"{b.address[0]}%wlan0", b.address[1])
    a.finder.receive([(ping, path)], world.now)
    sent = dict(a.finder.transmit(world.now))
    opened = [disco.Boxes(b.disco, world.rng.randbytes).open_untrusted(datagram) for datagram in sent[path]]
    assert disco.Pong(bytes(12), b.address) in opened
