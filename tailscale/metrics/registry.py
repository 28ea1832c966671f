"""The table for a program that exports metrics of its own by prometheus-client (extra `[metrics]`).

The registry stays the program's: this is one collector among its others.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tailscale.errors import TailscaleError
from tailscale.foreign_text import for_terminal
from tailscale.metrics.table import HasStatus, chosen
from ts_base.optional import optional

if TYPE_CHECKING:
    from tailscale.status import Status

MISSING = "this needs prometheus-client: pip install 'pytailscale[metrics]'"


def collector(device: HasStatus, peers: bool = False) -> Any:
    """A collector of everything that `device` counts, for a registry of prometheus-client.

    ```python
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry()
    registry.register(tailscale.metrics.collector(device))
    print(generate_latest(registry).decode())
    ```

    Collect in the thread the device runs in; one of `tailscale.sync` may be collected from any. A device that is
    closed, or not joined yet, has nothing to tell.
    """
    core = optional("prometheus_client.core", "CounterMetricFamily", "GaugeMetricFamily")
    if core is None:
        raise TailscaleError(MISSING)
    return _Collector(device, peers, core)


class _Collector:
    """What prometheus-client asks of a collector."""

    def __init__(self, device: HasStatus, peers: bool, core: Any) -> None:
        self._device, self._peers = device, peers
        self._makers = {"counter": core.CounterMetricFamily, "gauge": core.GaugeMetricFamily}

    def describe(self) -> Iterator[Any]:
        """The names, for the registry to find two of the same; asks the device nothing."""
        return self._families(None)

    def collect(self) -> Iterator[Any]:
        try:
            status = self._device.status()
        except TailscaleError:
            return iter(())
        return self._families(status)

    def _families(self, status: Status | None) -> Iterator[Any]:
        for metric in chosen(self._peers):
            family = self._makers[metric.kind](metric.name, metric.help, labels=metric.labels)
            for values, number in metric.read(status) if status is not None else ():
                family.add_metric([for_terminal(value) for value in values], number)
            yield family
