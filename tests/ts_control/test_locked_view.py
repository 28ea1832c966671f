"""Control's netmaps under a lock: who is hidden, what a delta costs, and ten thousand signed peers in short steps."""

from __future__ import annotations

import base64

import pytest
from control_scripts import NOW, make_node
from msgspec.structs import replace as change

from ts_base.keys import NodePublic
from ts_control.locked_view import NODES_PER_STEP, LockedView, Steps
from ts_control.netmap import NetMap, peers_changed
from ts_control.wire import MapResponse, Node, PeerChange
from ts_lock.chain import Chain
from ts_lock.keys import LockPrivate
from ts_lock.remembered import Remembered
from ts_lock.signatures import NodeKeySignature, rotate, sign_node
from ts_lock.updates import Checkpoint, Key, Kind, Update
from ts_lock.vouching import judge

SECRET = b"\3" * 32
ONE, OWN = LockPrivate(b"\1" * 32), LockPrivate(b"\7" * 32)


def chain() -> Chain:
    named = Checkpoint((b"\5" * 32,), (Key(ONE.public),))
    return Chain(Update(Kind.CHECKPOINT, state=named).signed_by(ONE))


def text(signature: NodeKeySignature) -> str:
    return base64.b64encode(signature.encode()).decode()


def signed(node: Node) -> Node:
    return change(node, key_signature=text(sign_node(ONE, node.key.raw, None)))


def followed(view: LockedView, told: NetMap) -> tuple[NetMap, int]:
    steps: Steps = view.steps(told)
    pauses = 0
    try:
        claims = next(steps)
        while True:
            pauses += not claims
            claims = steps.send([judge(claim) for claim in claims])
    except StopIteration as done:
        return done.value, pauses


def fresh() -> LockedView:
    return LockedView(Remembered(SECRET))


def begun(*peers: Node, lock: Chain | None = None) -> tuple[LockedView, NetMap, NetMap]:
    view = fresh()
    view.lock_with(lock)
    told = NetMap.empty().apply(MapResponse(node=signed(make_node(1)), peers=peers), NOW)
    return view, told, followed(view, told)[0]


def test_netmap_without_a_lock_is_controls_own() -> None:
    view, told, shown = begun(make_node(2), lock=None)
    assert shown is told
    assert view.checked == 0


def test_node_that_nobody_signed_is_out_of_reach_and_keeps_its_name() -> None:
    good, bad = signed(make_node(2)), make_node(3, home_derp=900, endpoints=("192.0.2.1:1",))
    _, told, shown = begun(good, bad, lock=chain())
    assert shown.peers[2] is told.peers[2]
    hidden = shown.peers[3]
    assert (hidden.expired, hidden.endpoints, hidden.home_derp, hidden.name) == (True, (), 0, bad.name)
    assert hidden.key != bad.key
    assert set(shown.unvouched) == {3}


def test_node_that_control_itself_calls_unsigned_stays() -> None:
    """It may reach the PeerAPI alone, which the packet filter sees to."""
    _, _, shown = begun(make_node(2, unsigned_peer_api_only=True), lock=chain())
    assert not shown.peers[2].expired
    assert not shown.unvouched


def test_patch_of_a_key_is_judged_anew() -> None:
    view, told, shown = begun(signed(make_node(2)), lock=chain())
    for patch, is_hidden in (
        (PeerChange(node_id=2, key=NodePublic(b"\x42" * 32)), True),
        (PeerChange(node_id=2, key_signature=text(sign_node(ONE, b"\x42" * 32, None))), False),
        (PeerChange(node_id=2, online=True), False),
        (PeerChange(node_id=2, key_signature=""), True),
    ):
        told = told.apply(MapResponse(peers_changed_patch=(patch,)), NOW)
        before, (shown, _) = shown, followed(view, told)
        assert peers_changed(before, shown) == ([2], [])
        assert shown.peers[2].expired is is_hidden


def test_newer_key_of_a_node_hides_the_older() -> None:
    first = sign_node(ONE, make_node(2).key.raw, OWN.public)
    old = change(make_node(2), key_signature=text(first))
    new = make_node(3)
    new = change(new, key_signature=text(rotate(OWN, new.key.raw, first)))
    view, told, shown = begun(old, lock=chain())
    assert not shown.unvouched
    told = told.apply(MapResponse(peers_changed=(new,)), NOW)
    shown, _ = followed(view, told)
    assert set(shown.unvouched) == {2}
    shown, _ = followed(view, told.apply(MapResponse(peers_removed=(3,)), NOW))
    assert not shown.unvouched


def test_lock_that_changes_or_ends_is_looked_at_without_checking_again() -> None:
    lock = chain()
    view, told, _ = begun(signed(make_node(2)), make_node(3), lock=lock)
    checked = view.checked
    lock.add([lock.next_update(Kind.ADD_KEY, key=Key(OWN.public)).signed_by(ONE)])
    lock.add([lock.next_update(Kind.REMOVE_KEY, key_id=ONE.public).signed_by(OWN)])
    view.lock_with(lock)
    shown, _ = followed(view, told)
    assert set(shown.unvouched) == {2, 3}
    assert view.checked == checked
    view.lock_with(None)
    assert followed(view, told)[0] is told
    view.lock_with(None, is_blind=True)
    assert set(followed(view, told)[0].unvouched) == {2, 3}


def test_follower_that_was_interrupted_begins_anew() -> None:
    view, told, _ = begun(signed(make_node(2)), lock=chain())
    many = tuple(make_node(number) for number in range(3, 130))
    told = told.apply(MapResponse(peers_changed=many), NOW)
    next(view.steps(told))
    shown, _ = followed(view, told)
    assert set(shown.unvouched) == {node.id for node in many}


@pytest.mark.slow
def test_ten_thousand_signed_peers_are_checked_once_and_in_short_steps() -> None:
    peers = tuple(signed(make_node(number)) for number in range(2, 10_002))
    view = fresh()
    view.lock_with(chain())
    told = NetMap.empty().apply(MapResponse(node=make_node(1), peers=peers), NOW)
    shown, pauses = followed(view, told)
    assert not shown.unvouched
    assert view.checked == 10_000
    assert pauses >= 2 * (10_000 // NODES_PER_STEP)
    # Another stream describes the same nodes: nothing is checked again, and a delta costs what it changes.
    again = NetMap.empty().apply(MapResponse(node=make_node(1), peers=peers), NOW)
    shown, _ = followed(view, again)
    after, pauses = followed(view, again.apply(MapResponse(online_change={77: True}), NOW))
    assert peers_changed(shown, after) == ([77], [])
    assert (view.checked, pauses) == (10_000, 0)
    # So does the next run, with what this one has kept.
    entry, next_run = view.to_keep(), Remembered(SECRET)
    next_run.read_untrusted(entry)
    view = LockedView(next_run)
    view.lock_with(chain())
    assert not followed(view, told)[0].unvouched
    assert (view.checked, next_run.has_news) == (0, False)
