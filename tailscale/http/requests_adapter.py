"""requests over the tailnet: `session.mount("http://", RequestsAdapter(device))`, and the same for https.

Only where connections come from is ours: urllib3's pools, retries and TLS stay as they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from requests.adapters import HTTPAdapter

from tailscale.http.urllib3_pools import pool_classes

if TYPE_CHECKING:
    from urllib3 import PoolManager

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
        manager.pool_classes_by_scheme = pool_classes(self._device)

    def get_connection_with_tls_context(self, request: Any, verify: Any, proxies: Any = None, cert: Any = None) -> Any:
        """Proxy settings of the environment do not apply: the tailnet is the way."""
        return super().get_connection_with_tls_context(request, verify, None, cert)
