"""What is said before the first map: the server's keys, and the messages of registration and login.

Owns: their shapes, and that no repr shows an auth key or a login page. Refuses to know: when they are sent
(`session.py`) and how they are answered (`server_login.py`).
"""

from __future__ import annotations

from datetime import datetime

from msgspec import field

from ts_base.keys import ChallengePublic, MachinePublic, NodePublic
from ts_control.gojson import ZERO_TIME, GoStruct
from ts_control.wire import NO_MACHINE_KEY, NO_NODE_KEY, Hostinfo

NO_LOCK_KEY = "nlpub:" + 64 * "0"


class User(GoStruct, frozen=True):
    id: int = 0
    display_name: str = ""
    profile_pic_url: str = ""
    created: datetime = ZERO_TIME


class Login(GoStruct, frozen=True):
    id: int = 0
    provider: str = ""
    login_name: str = ""
    display_name: str = ""
    profile_pic_url: str = ""


class RegisterAuth(GoStruct, frozen=True):
    auth_key: str = ""

    def __repr__(self) -> str:
        return "RegisterAuth([redacted])"


class RegisterRequest(GoStruct, frozen=True):
    version: int = 0
    node_key: NodePublic = NO_NODE_KEY
    old_node_key: NodePublic = NO_NODE_KEY
    nl_key: str = ""
    auth: RegisterAuth | None = None
    expiry: datetime = ZERO_TIME
    followup: str = ""
    hostinfo: Hostinfo | None = None
    ephemeral: bool = False
    timestamp: datetime | None = None
    tailnet: str = ""
    node_key_signature: str = ""  # base64: what vouches for node_key, where the tailnet has a lock

    def __repr__(self) -> str:
        return f"RegisterRequest(node_key={self.node_key!r}, auth={self.auth!r}, followup={bool(self.followup)})"


class RegisterResponse(GoStruct, frozen=True):
    user: User = User()
    login: Login = Login()
    node_key_expired: bool = False
    machine_authorized: bool = False
    auth_url: str = ""
    node_key_signature: str = ""
    error: str = ""

    def __repr__(self) -> str:
        return (
            f"RegisterResponse(error={self.error!r}, node_key_expired={self.node_key_expired}, "
            f"machine_authorized={self.machine_authorized}, needs_login={bool(self.auth_url)})"
        )


class ServerKeys(GoStruct, frozen=True):
    """The answer to `GET /key`."""

    legacy_public_key: MachinePublic = field(default=NO_MACHINE_KEY, name="legacyPublicKey")
    public_key: MachinePublic = field(default=NO_MACHINE_KEY, name="publicKey")


class EarlyNoise(GoStruct, frozen=True):
    """What the server may say before HTTP/2 begins."""

    node_key_challenge: ChallengePublic = field(default=ChallengePublic.zero(), name="nodeKeyChallenge")


class TokenRequest(GoStruct, frozen=True):
    """What `POST /machine/id-token` asks."""

    cap_version: int = 0
    node_key: NodePublic = NO_NODE_KEY
    audience: str = ""


class SetDnsRequest(GoStruct, frozen=True):
    """What `POST /machine/set-dns` asks: one record of the challenge by which a certificate is had."""

    version: int = 0
    node_key: NodePublic = NO_NODE_KEY
    name: str = ""
    type: str = ""
    value: str = ""


class TokenResponse(GoStruct, frozen=True):
    id_token: str = field(default="", name="id_token")

    def __repr__(self) -> str:
        return "TokenResponse([redacted])"
