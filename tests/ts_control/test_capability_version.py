"""What the capability version promises a control server, and the test that holds each promise."""

from __future__ import annotations

import ast
from pathlib import Path

from ts_control.wire import CAPABILITY_VERSION

TESTS = Path(__file__).parents[1]
# Versions whose promise asks something of a library, since the one that first speaks this protocol. The others are
# about operating systems, daemons, or attributes that such a library has nothing for.
PROMISES = {
    36: ("peers are patched", "test_every_field_of_a_patch_applies"),
    65: ("the DERP map comes in parts", "test_derp_map_deltas_merge_by_region"),
    81: ("the packet filter comes by names", "test_named_filters_replace_add_and_clear_in_name_order"),
    117: ("control's warnings are shown", "test_display_messages_add_update_and_clear"),
    121: ("peer relays are used", "test_allocation_goes_out_once_per_interval"),
    126: ("the key is renewed without a lost connection", "test_connections_outlive_a_renewed_key"),
    128: ("/debug/health answers", "test_c2n_answers_as_upstream_would"),
    137: ("a 429 is waited out", "test_rate_limits_are_honoured"),
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
