"""ID tokens signed by the control server: by them this node proves to others who it is.

Owns: the question and what its failures are called. Refuses to know: what the token says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tailscale.errors import ControlProtocolError, ControlUnreachable
from ts_base.errors import BadPacket
from ts_control.errors import ControlLost, RequestRefused
from ts_control.gojson import decode_json_untrusted, encode_json
from ts_control.wire import CAPABILITY_VERSION
from ts_control.wire_register import TokenRequest, TokenResponse

if TYPE_CHECKING:
    from tailscale.runtime.control_actor import ControlActor

PATH = "/machine/id-token"


async def ask_for_id_token(control: ControlActor, audience: str) -> str:
    """One token for one audience; nothing is kept."""
    if not audience:
        raise ValueError("an ID token is for somebody: name the audience")
    where = control.config.control_url
    request = TokenRequest(CAPABILITY_VERSION, control.machine.node_key.public, audience)
    try:
        answer = decode_json_untrusted(TokenResponse, await control.ask("POST", PATH, encode_json(request)))
    except ControlLost as problem:
        raise ControlUnreachable(f"no ID token: {problem}. Try again when the control server is there") from None
    except RequestRefused as problem:
        raise ControlProtocolError(f"{where} gives no ID token: {problem}. Headscale signs none") from None
    except BadPacket as problem:
        raise ControlProtocolError(f"{where} gave no ID token, but nonsense: {problem}") from None
    if not answer.id_token:
        raise ControlProtocolError(f"{where} gave an empty ID token. Check the audience")
    return answer.id_token
