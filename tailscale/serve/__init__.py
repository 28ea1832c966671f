"""Publish what runs here: web servers, folders, apps and TCP ports of this machine, to the tailnet.

```python
from tailscale.serve import Serve

await nursery.start(Serve(device).http(80, "http://127.0.0.1:3000").run)
```
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tailscale._lazy import lazily, names_of

if TYPE_CHECKING:
    from tailscale.ingress.limits import IngressLimits as IngressLimits
    from tailscale.ingress.serving import ingress as ingress
    from tailscale.serve.config import BadServeConfig as BadServeConfig
    from tailscale.serve.serving import Serve as Serve
    from tailscale.serve.targets import files as files
    from tailscale.serve.targets import proxy as proxy
    from tailscale.serve.targets import read_target as read_target
    from tailscale.serve.targets import redirect as redirect
    from tailscale.serve.targets import tcp as tcp
    from tailscale.serve.targets import text as text

_HOMES = {
    "tailscale.ingress.limits": ("IngressLimits",),
    "tailscale.ingress.serving": ("ingress",),
    "tailscale.serve.config": ("BadServeConfig",),
    "tailscale.serve.serving": ("Serve",),
    "tailscale.serve.targets": ("files", "proxy", "read_target", "redirect", "tcp", "text"),
}
_HOME_OF = names_of(_HOMES)

__all__ = list(_HOME_OF)  # pyright: ignore[reportUnsupportedDunderAll]
__getattr__ = lazily(__name__, _HOME_OF)
