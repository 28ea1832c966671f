"""What a user of a mesh says of files: what its Inbox takes, and the Transfer that it is given of those it sends."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tailscale.files import transfers
from tailscale.mesh.errors import PeerGone, TransferFailed


@dataclass(frozen=True)
class Offer:
    """Files that a peer wants to send: what `Inbox(accept=...)` is asked about."""

    sender: Any
    """The `MeshPeer`; who it is was proven by the tailnet."""
    paths: tuple[str, ...]
    """Of every file, below the inbox; always with `/`."""
    total: int
    """Bytes of all files."""


Judge = Callable[[Offer], bool | Awaitable[bool]]


class Inbox:
    """What files may arrive, and where they go: a pushed folder `tree/` lands as `folder/tree/`.

    ```python
    inbox = Inbox("incoming", accept=lambda offer: offer.sender.name == "laptop", largest=10 << 30)
    ```

    - `accept`: True, or a callable (sync or async) that looks at the `Offer`; nothing arrives by default.
    - `largest`: bytes of one offer; None for what the disk has room for.
    - `exists`: a file of the same name is a reason to refuse, is replaced at once by the whole new one, or stays
      while the new one becomes `name (2)`.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        accept: bool | Judge = False,
        largest: int | None = None,
        exists: Literal["refuse", "replace", "rename"] = "refuse",
    ) -> None:
        if exists not in ("refuse", "replace", "rename"):
            raise ValueError(f"exists={exists!r}: it is refuse, replace or rename")
        self.folder = Path(folder).expanduser().absolute()
        self.accept = accept
        self.largest = largest
        self.exists = exists

    def __repr__(self) -> str:
        return f"Inbox({os.fspath(self.folder)!r}, exists={self.exists!r})"


class Transfer(transfers.Transfer):
    """Files under way to or from one peer. Leaving the block waits for the end; leaving it by an error breaks it off.

    ```python
    async with bob.push("thesis/", "photo.jpg") as transfer:
        async for progress in transfer:
            print(f"{progress.fraction:.0%} at {progress.name}")
    print(transfer.result.bytes_sent)
    ```

    `report = await bob.push("thesis/")` does the same without looking. Raises `TransferRefused`, `TransferFailed`, or
    what a dial raises; the same call again goes on where this one broke off.
    """

    FAILURE = TransferFailed
    CARRIER = "mesh"
    KEPT = (PeerGone,)
