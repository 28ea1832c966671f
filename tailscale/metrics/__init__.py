"""What a Device counts, for Prometheus: as text, as a collector for your own registry, or as a small server.

```python
import tailscale.metrics

print(tailscale.metrics.exposition(device))
```

The table of names is docs/metrics.md. Importing this module loads nothing else; the names come when they are used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tailscale._lazy import lazily

if TYPE_CHECKING:
    from tailscale.metrics.looking import view as view
    from tailscale.metrics.registry import collector as collector
    from tailscale.metrics.server import serve_metrics as serve_metrics
    from tailscale.metrics.text import exposition as exposition

__all__ = ["collector", "exposition", "serve_metrics", "view"]

_HOMES = {
    "collector": "tailscale.metrics.registry",
    "exposition": "tailscale.metrics.text",
    "serve_metrics": "tailscale.metrics.server",
    "view": "tailscale.metrics.looking",
}


__getattr__ = lazily(__name__, _HOMES)
