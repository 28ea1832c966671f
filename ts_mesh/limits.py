"""What one mesh allows: sizes, counts and patience. Everything a peer can make us hold or wait for is here."""

from __future__ import annotations

from dataclasses import dataclass

LARGEST_MESSAGE = 16 << 20  # of the protocol: nobody sends more, whatever its own limits say
LARGEST_HEADER = 4 << 10  # what stands before raw bytes in a binary frame
LARGEST_FRAME = LARGEST_MESSAGE + (64 << 10)  # with the envelope around it


@dataclass(frozen=True, slots=True)
class MeshLimits:
    """Times are seconds, sizes are bytes.

    ```python
    from tailscale.mesh import MeshLimits

    print(MeshLimits(message=64 << 10).message)
    ```
    """

    message: int = LARGEST_MESSAGE
    """The largest message, sent or received."""
    unacked: int = 1024
    """Messages under way to one peer that it has not acknowledged."""
    unacked_bytes: int = 32 << 20
    credit: int = 256
    """Messages of one peer in one namespace that wait for a subscriber; the peer then waits."""
    credit_bytes: int = 8 << 20
    held: int = 64
    """Messages of one peer kept for a namespace nobody has subscribed to yet ..."""
    held_time: float = 2.0
    """... and for how long, before it is told that nobody listens."""
    sessions: int = 1024
    pending: int = 256
    """Connections that have not said who they are."""
    handlers: int = 64
    """Requests being answered at once."""
    transfers: int = 32
    offers: int = 4
    """Files offered by one peer and not answered yet."""
    slice: int = 1 << 20
    """One peer's value in one store."""
    hello: int = 8 << 10
    hello_time: float = 5.0

    def __post_init__(self) -> None:
        if not 0 < self.message <= LARGEST_MESSAGE:
            raise ValueError(f"message={self.message}: a message has 1 to {LARGEST_MESSAGE} bytes")
        for name in ("unacked", "unacked_bytes", "credit", "credit_bytes", "sessions", "pending", "handlers", "hello"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: at least 1 is needed for anything to pass")
