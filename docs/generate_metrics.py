"""Writes the table in docs/metrics.md and docs/grafana.json from the table of metrics. `make docs` runs it; a test
checks that it was run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tailscale.metrics.table import METRICS, Metric

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "metrics.md"
DASHBOARD = ROOT / "docs" / "grafana.json"
BEGIN, END = "<!-- made by `make docs` -->", "<!-- end of what is made -->"
UNITS = {("counter", "bytes"): "Bps", ("counter", ""): "cps", ("gauge", "bytes"): "bytes", ("gauge", "seconds"): "s"}
ACROSS, WIDTH, HEIGHT = 2, 12, 8  # panels in a row, and their size on Grafana's grid of 24
INFO = "pytailscale_info"
DATASOURCE = {"type": "prometheus", "uid": "${source}"}
SELECTED = '{instance=~"$instance"}'


def page(text: str) -> str:
    """The page with its table made anew."""
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def table() -> str:
    parts = []
    for title, chosen in (("Always", False), ("With `peers=True`", True)):
        rows = [row(metric) for metric in METRICS if metric.is_per_peer is chosen]
        parts.append("\n".join([f"### {title}", "", "| name | kind | labels | |", "|---|---|---|---|", *rows]))
    return "\n\n".join(parts)


def row(metric: Metric) -> str:
    labels = ", ".join(f"`{label}`" for label in metric.labels)
    return f"| `{metric.name}` | {metric.kind} | {labels} | {metric.help} |"


def dashboard() -> dict[str, Any]:
    """One panel for each kind of thing: rates of counters, values of gauges."""
    panels: dict[tuple[str, str], list[Metric]] = {}
    for metric in METRICS:
        if metric.name != INFO:
            panels.setdefault((metric.panel, unit_of(metric)), []).append(metric)
    return {
        "title": "pytailscale",
        "uid": "pytailscale",
        "tags": ["pytailscale"],
        "schemaVersion": 39,
        "time": {"from": "now-1h", "to": "now"},
        "refresh": "10s",
        "templating": {"list": [source(), instances()]},
        "panels": [panel(number, *found) for number, found in enumerate(panels.items())],
    }


def source() -> dict[str, Any]:
    return {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"}


def instances() -> dict[str, Any]:
    return {
        "name": "instance",
        "type": "query",
        "datasource": DATASOURCE,
        "query": f"label_values({INFO}, instance)",
        "refresh": 2,
        "includeAll": True,
        "multi": True,
        "current": {"text": "All", "value": "$__all"},
    }


def panel(number: int, title: tuple[str, str], metrics: list[Metric]) -> dict[str, Any]:
    return {
        "id": number + 1,
        "title": title[0],
        "description": "\n".join(f"{metric.name}: {metric.help}" for metric in metrics),
        "type": "timeseries",
        "datasource": DATASOURCE,
        "gridPos": {"x": number % ACROSS * WIDTH, "y": number // ACROSS * HEIGHT, "w": WIDTH, "h": HEIGHT},
        "fieldConfig": {"defaults": {"unit": title[1], "min": 0}, "overrides": []},
        "targets": [target(letter, metric) for letter, metric in zip("ABCDEFGH", metrics, strict=False)],
    }


def target(letter: str, metric: Metric) -> dict[str, Any]:
    plain = f"{metric.name}{SELECTED}"
    several = len({m.name for m in METRICS if m.panel == metric.panel and unit_of(m) == unit_of(metric)}) > 1
    name = metric.name.removeprefix("tailscaled_").removeprefix("pytailscale_").removesuffix("_total")
    legend = " ".join(f"{{{{{label}}}}}" for label in metric.labels if label != "id")
    return {
        "refId": letter,
        "datasource": DATASOURCE,
        "expr": f"rate({plain}[$__rate_interval])" if metric.kind == "counter" else plain,
        "legendFormat": f"{name} {legend}".strip() if several or not legend else legend,
    }


def unit_of(metric: Metric) -> str:
    if metric.name.endswith("_timestamp_seconds"):
        return "dateTimeFromNow"
    return UNITS.get((metric.kind, metric.unit), "short")


def dashboard_text() -> str:
    return json.dumps(dashboard(), indent=1) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
    DASHBOARD.write_text(dashboard_text())
    print(f"{PAGE.relative_to(ROOT)}: {len(METRICS)} metrics; {DASHBOARD.relative_to(ROOT)}")
