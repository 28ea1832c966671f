"""The table as text that Prometheus reads, in its own format or in OpenMetrics.

https://prometheus.io/docs/instrumenting/exposition_formats/ and https://prometheus.io/docs/specs/om/open_metrics_spec/.
Label values are names that others chose: they are escaped for the format and made harmless for a terminal.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tailscale.foreign_text import for_terminal
from tailscale.metrics.table import HasStatus, Metric, chosen

if TYPE_CHECKING:
    from tailscale.status import Status

PLAIN_TYPE = "text/plain; version=0.0.4; charset=utf-8"
OPEN_TYPE = "application/openmetrics-text; version=1.0.0; charset=utf-8"


def exposition(device: HasStatus, peers: bool = False) -> str:
    """Everything that is counted, as Prometheus reads it; with `peers`, also what is counted for each.

    ```python
    from tailscale.metrics import exposition

    print(exposition(device, peers=True))
    ```
    """
    return text_of(device.status(), peers=peers)


def text_of(status: Status, *, peers: bool = False, is_open: bool = False) -> str:
    """A status as text; `is_open` makes it OpenMetrics."""
    lines: list[str] = []
    for metric in chosen(peers):
        lines += _family(metric, status, is_open)
    if is_open:
        lines.append("# EOF")
    return "\n".join(lines) + "\n"


def _family(metric: Metric, status: Status, is_open: bool) -> list[str]:
    # OpenMetrics calls a family of counters by what its samples are called without `_total`.
    family = metric.name.removesuffix("_total") if is_open else metric.name
    lines = [f"# HELP {family} {metric.help}", f"# TYPE {family} {metric.kind}"]
    for values, number in metric.read(status):
        pairs = ",".join(f'{label}="{_escape(value)}"' for label, value in zip(metric.labels, values, strict=True))
        lines.append(f"{metric.name}{{{pairs}}} {_number(number)}" if pairs else f"{metric.name} {_number(number)}")
    return lines


def _escape(value: str) -> str:
    return for_terminal(value).replace("\\", "\\\\").replace('"', '\\"')


def _number(value: float) -> str:
    if math.isfinite(value) and value == int(value):
        return str(int(value))
    return repr(float(value)) if math.isfinite(value) else "+Inf" if value > 0 else "NaN"
