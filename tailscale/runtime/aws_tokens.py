"""An ID token where Amazon's cloud is: credentials from the environment, a container or the machine, then one question.

Owns: the order, as Amazon's own libraries have it, without profiles on disk. Refuses to know: what is asked in which
bytes (`ts_control/aws_identity.py`) and how (`key_maker.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Protocol, TypeVar

from ts_base.errors import BadPacket
from ts_control import aws_identity as aws
from ts_control.errors import ControlLost, KeyNotMade, RequestRefused
from ts_control.http1 import Reply
from ts_control.key_making import Ask

REMEDY = "Give the instance or task a role that may call sts:GetWebIdentityToken, or pass id_token="


T = TypeVar("T")


class Answering(Protocol):
    """How a provider of ID tokens is asked."""

    async def nearby(self, ask: Ask, read: Callable[[Reply], T], remedy: str) -> T: ...
    async def afar(self, ask: Ask, read: Callable[[Reply], T], remedy: str) -> T: ...


class AwsTokens:
    """For one token."""

    def __init__(self, answering: Answering, environment: Mapping[str, str]) -> None:
        self._answering = answering
        self._environment = environment
        self._metadata_token = ""

    async def is_here(self) -> bool:
        """Whether this is a machine of EC2: its metadata answers as nobody else's does."""
        ask = aws.ask_metadata_token(self._environment)
        if ask is None:
            return False
        try:
            self._metadata_token = await self._answering.nearby(ask, aws.word_of_untrusted, REMEDY)
        except (ControlLost, KeyNotMade, RequestRefused):
            return False
        return True

    def is_in_a_container(self) -> bool:
        """Whether this is a task of ECS."""
        return bool(self._environment.get(aws.ON_ECS))

    async def take(self, audience: str, now: float) -> str:
        """A token. Raises as every other request for a key does."""
        credentials = await self._credentials()
        region = aws.region_in(self._environment) or await self._metadata(aws.PLACE)
        date = datetime.fromtimestamp(now, UTC).strftime("%Y%m%dT%H%M%SZ")
        try:
            ask = aws.ask_sts(credentials, region, audience, date, self._environment)
        except BadPacket as problem:
            raise KeyNotMade(f"no ID token is found here: {problem} {region[:20]!a}", "Set AWS_REGION") from None
        return await self._answering.afar(ask, aws.aws_token_of_untrusted, REMEDY)

    async def _credentials(self) -> aws.AwsCredentials:
        found = aws.credentials_in(self._environment)
        if found is not None:
            return found
        ask = aws.ask_container(self._environment)
        if ask is None:
            role = await self._metadata(aws.ROLES)
            ask = aws.ask_metadata(self._environment, self._metadata_token, aws.ROLES + role)
        return await self._answering.nearby(ask, aws.credentials_of_untrusted, REMEDY)

    async def _metadata(self, path: str) -> str:
        if not self._metadata_token:
            raise KeyNotMade(f"no ID token is found here: nobody says {path.strip('/')}", REMEDY)
        ask = aws.ask_metadata(self._environment, self._metadata_token, path)
        return await self._answering.nearby(ask, aws.word_of_untrusted, REMEDY)
