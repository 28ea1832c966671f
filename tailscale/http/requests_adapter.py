"""requests over the tailnet: `session.mount("http://", RequestsAdapter(device))`, and the same for https.

Only where connections come from is ours: urllib3's pools, retries and TLS stay as they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, PoolManager
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError

if TYPE_CHECKING:
    import socket

    from tailscale.sync import Device


class RequestsAdapter(HTTPAdapter):
    """Reaches the tailnet over a `tailscale.sync.Device`; other names go the machine's own way.

    ```python
    import requests

    session = requests.Session()
    session.mount("http://", RequestsAdapter(device))
    print(session.get("http://db:8000/").text)
    ```
    """

    def __init__(self, device: Device, **options: Any) -> None:
        self._device = device
        super().__init__(**options)

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **options)
        manager: PoolManager = self.poolmanager
        manager.pool_classes_by_scheme = _pool_classes(self._device)

    def get_connection_with_tls_context(self, request: Any, verify: Any, proxies: Any = None, cert: Any = None) -> Any:
        """Proxy settings of the environment do not apply: the tailnet is the way."""
        return super().get_connection_with_tls_context(request, verify, None, cert)


def _pool_classes(device: Device) -> dict[str, type[HTTPConnectionPool]]:
    def dial(connection: HTTPConnection) -> socket.socket:
        timeout = connection.timeout if isinstance(connection.timeout, int | float) else None
        try:
            return device.connect_anywhere(connection.host, connection.port, timeout=timeout)
        except TimeoutError as error:
            raise ConnectTimeoutError(connection, str(error)) from error
        except OSError as error:
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
