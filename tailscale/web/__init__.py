"""A status page for the browser: a live map of peers and paths, traffic and health, on this machine only.

```python
from tailscale.web import serve_page

url = await nursery.start(serve_page, device)
print(url)  # open it: it works once, for one browser
```

Importing this module loads nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tailscale._lazy import lazily

if TYPE_CHECKING:
    from tailscale.web.server import serve_page as serve_page

__all__ = ["serve_page"]


__getattr__ = lazily(__name__, {"serve_page": "tailscale.web.server"})
