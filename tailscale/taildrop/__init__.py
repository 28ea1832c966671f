"""Files between the devices of a tailnet, as `tailscale file` and the apps of phones send them.

```python no-run: needs a tailnet
from tailscale import taildrop

async with tailscale.Device("laptop") as device:
    await taildrop.send(device, "phone", "a.jpg")
```
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tailscale._lazy import lazily, names_of

if TYPE_CHECKING:
    from tailscale.files.errors import TransferFailed as TransferFailed
    from tailscale.files.errors import TransferRefused as TransferRefused
    from tailscale.files.transfers import Progress as Progress
    from tailscale.files.transfers import Transfer as Transfer
    from tailscale.files.transfers import TransferReport as TransferReport
    from tailscale.taildrop.arriving import Offer as Offer
    from tailscale.taildrop.arriving import ReceivedFile as ReceivedFile
    from tailscale.taildrop.inbox import Inbox as Inbox
    from tailscale.taildrop.recipients import targets as targets
    from tailscale.taildrop.sending import send as send

_HOMES = {
    "tailscale.files.errors": ("TransferFailed", "TransferRefused"),
    "tailscale.files.transfers": ("Progress", "Transfer", "TransferReport"),
    "tailscale.taildrop.arriving": ("Offer", "ReceivedFile"),
    "tailscale.taildrop.inbox": ("Inbox",),
    "tailscale.taildrop.sending": ("send",),
    "tailscale.taildrop.recipients": ("targets",),
}
_HOME_OF = names_of(_HOMES)

__all__ = list(_HOME_OF)  # pyright: ignore[reportUnsupportedDunderAll]
__getattr__ = lazily(__name__, _HOME_OF)
