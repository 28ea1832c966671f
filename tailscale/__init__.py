"""A Tailscale node inside your Python program: no root, no daemon, no compiler.

```python
import tailscale

async with tailscale.Device(auth_key="...", control_url="https://headscale.example") as device:
    stream = await device.tcp_connect("db", 5432)
```
"""

from __future__ import annotations

from tailscale._ownership import check_import_name

check_import_name()

from tailscale.device import Device  # noqa: E402 - a foreign package in our place must be named before it breaks us
from tailscale.errors import (  # noqa: E402
    AuthKeyRejected,
    ConnectionRefused,
    ConnectionReset,
    ConnectionTimedOut,
    ControlProtocolError,
    ControlUnreachable,
    DeviceClosed,
    DeviceNotReady,
    LoginRequired,
    NameNotFound,
    NoRoute,
    PeerKeyExpired,
    PeerOffline,
    StateCorrupt,
    StateLocked,
    TailscaleError,
)
from tailscale.events import (  # noqa: E402
    Event,
    HealthChanged,
    KeyExpiring,
    Lagged,
    LoginNeeded,
    PathChanged,
    PeerChanged,
    PeerDown,
    PeerUp,
    StateChanged,
)
from tailscale.nodes import Node, Peers  # noqa: E402
from tailscale.sockets import TcpListener, TcpStream, UdpSocket  # noqa: E402
from tailscale.state_file import FileStore, MemoryStore, Store  # noqa: E402
from tailscale.status import (  # noqa: E402
    HealthWarning,
    Identity,
    NetcheckReport,
    PeerStatus,
    PingResult,
    Status,
)

__version__ = "0.1.0"

__all__ = [
    "AuthKeyRejected",
    "ConnectionRefused",
    "ConnectionReset",
    "ConnectionTimedOut",
    "ControlProtocolError",
    "ControlUnreachable",
    "Device",
    "DeviceClosed",
    "DeviceNotReady",
    "Event",
    "FileStore",
    "HealthChanged",
    "HealthWarning",
    "Identity",
    "KeyExpiring",
    "Lagged",
    "LoginNeeded",
    "LoginRequired",
    "MemoryStore",
    "NameNotFound",
    "NetcheckReport",
    "NoRoute",
    "Node",
    "PathChanged",
    "PeerChanged",
    "PeerDown",
    "PeerKeyExpired",
    "PeerOffline",
    "PeerStatus",
    "PeerUp",
    "Peers",
    "PingResult",
    "StateChanged",
    "StateCorrupt",
    "StateLocked",
    "Status",
    "Store",
    "TailscaleError",
    "TcpListener",
    "TcpStream",
    "UdpSocket",
    "__version__",
]
