"""What every socket of a device has in common: the device as it sees it, and how it speaks of addresses.

Owns no state. Sockets know their device only as a `SocketDevice`, so that they also stand on a bare stack.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from ts_base.ip import format_address

if TYPE_CHECKING:
    from tailscale.nodes import Node
    from tailscale.status import PathInfo
    from ts_base.who import PeerId

Address = tuple[str, int]
Bytes = bytes | bytearray | memoryview


class SocketDevice(Protocol):
    """What a socket needs of the device it lives in."""

    def kick(self) -> None:
        """Something was written: send it soon."""

    def now(self) -> float: ...
    def identify(self, address: bytes) -> Node | None: ...
    def describe_path(self, address: bytes, via: PeerId = 0) -> PathInfo: ...
    def exit_node(self, via: PeerId) -> Node | None: ...
    async def resolve_address(self, host: str, family_of: bytes | None = None, via: PeerId = 0) -> bytes: ...


def readable_address(address: tuple[bytes, int]) -> Address:
    return format_address(address[0]), address[1]
