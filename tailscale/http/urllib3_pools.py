"""urllib3 over the tailnet: `urllib3_pool(device)` is a `PoolManager` whose connections the device makes.

Only where connections come from is ours: pools, retries and TLS stay urllib3's. The adapter for requests stands on it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, PoolManager
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError

from tailscale.errors import DeviceClosed, WrongFace

if TYPE_CHECKING:
    import socket

    from tailscale.sync import Device


def urllib3_pool(device: Device, **options: Any) -> PoolManager:
    """A pool that reaches the tailnet over a `tailscale.sync.Device`; other names go the machine's own way.

    ```python
    with urllib3_pool(device) as pool:
        print(pool.request("GET", "http://db:8000/").data)
    ```

    `options` are those of `urllib3.PoolManager`. Proxy settings of the environment do not apply.
    """
    manager = PoolManager(**options)
    manager.pool_classes_by_scheme = pool_classes(device)
    return manager


def pool_classes(device: Device) -> dict[str, type[HTTPConnectionPool]]:
    """What `PoolManager.pool_classes_by_scheme` takes."""
    if not hasattr(device, "connect"):
        given = f"{type(device).__module__}.{type(device).__qualname__}"
        raise WrongFace(f"urllib3 and requests take a tailscale.sync.Device, not a {given}")

    def dial(connection: HTTPConnection) -> socket.socket:
        timeout = connection.timeout if isinstance(connection.timeout, int | float) else None
        try:
            return device.connect_anywhere(connection.host, connection.port, timeout=timeout)
        except TimeoutError as error:
            raise ConnectTimeoutError(connection, str(error)) from error
        except (OSError, DeviceClosed) as error:
            raise NewConnectionError(connection, str(error)) from error

    class TailnetConnection(HTTPConnection):
        _new_conn = dial

    class TailnetTlsConnection(HTTPSConnection):
        _new_conn = dial

    class TailnetPool(HTTPConnectionPool):
        ConnectionCls = TailnetConnection

    class TailnetTlsPool(HTTPSConnectionPool):
        ConnectionCls = TailnetTlsConnection

    return {"http": TailnetPool, "https": TailnetTlsPool}
