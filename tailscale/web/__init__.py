"""A status page for the browser: a live map of peers and paths, traffic and health, on this machine only.

```python
from tailscale.web import serve_page

url = await nursery.start(serve_page, device)
print(url)  # open it: it works once, for one browser
```

Importing this module loads nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tailscale.web.server import serve_page as serve_page

__all__ = ["serve_page"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from tailscale.web.server import serve_page

    return serve_page
