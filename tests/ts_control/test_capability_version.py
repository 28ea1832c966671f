"""What the capability version promises a control server, and the test that holds each promise."""

from __future__ import annotations

import ast
from pathlib import Path

from ts_control.wire import CAPABILITY_VERSION

TESTS = Path(__file__).parents[1]
# Versions whose promise asks something of a library, since the one that first speaks this protocol. The others are
# about operating systems, daemons, or attributes that such a library has nothing for.
PROMISES = {
    36: ("peers are patched", "test_patch_sets_only_what_it_carries"),
    65: ("the DERP map comes in parts", "test_derp_map_nulls_keep_and_null_regions_go"),
    81: ("the packet filter comes by names", "test_filters_are_named_ordered_and_cleared_by_a_star"),
    117: ("control's warnings are shown", "test_display_messages_follow_the_same_rule"),
    121: ("peer relays are used", "test_pair_finds_its_way_through_a_peer"),
    126: ("the key is renewed without a lost connection", "test_connections_outlive_a_renewed_key"),
    128: ("/debug/health answers", "test_c2n_answers_as_upstream_would"),
    135: ("the netmap is kept where that is asked for", "test_device_comes_up_as_it_was_while_control_is_away"),
    137: ("a 429 is waited out", "test_too_many_requests_are_answered_with_patience"),
    138: ("/debug/tka/log answers", "test_c2n_answers_as_upstream_would"),
    140: ("segmentation and coalescing can be forbidden", "test_offloads_that_control_forbids_are_not_used"),
    141: ("writes of equal datagrams can be forbidden", "test_offloads_that_control_forbids_are_not_used"),
    142: ("the remote API is refused", "test_c2n_answers_as_upstream_would"),
}


def test_every_promise_is_held_by_a_test_that_there_is() -> None:
    files = [*TESTS.glob("ts_*/test_*.py"), *TESTS.glob("tailscale/test_*.py")]
    names = {
        node.name
        for file in files
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    missing = {name for _, name in PROMISES.values()} - names
    assert not missing, missing
    assert max(PROMISES) == CAPABILITY_VERSION
