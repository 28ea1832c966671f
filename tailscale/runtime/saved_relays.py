"""The relays of the last run, so that the home relay is connected by the time control has answered.

Owns the entry of the saved state that holds them. Refuses to know who connects.
"""

from __future__ import annotations

import logging

from tailscale.runtime.messages import RelaysRemembered
from tailscale.runtime.saved_state import SavedState
from ts_base.errors import BadPacket
from ts_control.gojson import decode_json_untrusted, encode_json
from ts_control.netmap import usable_relays
from ts_control.wire import DERPMap

RELAYS = "relays"
log = logging.getLogger("tailscale.control")


def keep_relays(saved: SavedState, derp_map: DERPMap) -> None:
    saved.keep(RELAYS, encode_json(derp_map))


def remembered_relays(saved: SavedState) -> RelaysRemembered | None:
    """Where home was; None where nothing was kept, or nothing that is understood."""
    text = saved.read(RELAYS)
    if text is None or not saved.state.home_region:
        return None
    try:
        derp_map = decode_json_untrusted(DERPMap, text)
    except BadPacket as problem:
        log.info("the relays of the last run are not known any more: %s", problem)
        return None
    return RelaysRemembered(usable_relays(derp_map), saved.state.home_region)
