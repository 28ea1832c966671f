"""The table of metrics in the docs and the dashboard are those of the code."""

from __future__ import annotations

import importlib.util
import json
import re
from types import ModuleType

from snippets import ROOT

from tailscale.metrics.table import METRICS


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_metrics", ROOT / "docs" / "generate_metrics.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_and_the_dashboard_are_current() -> None:
    made = generator()
    assert made.PAGE.read_text() == made.page(made.PAGE.read_text()), "run `make docs`"
    assert made.DASHBOARD.read_text() == made.dashboard_text(), "run `make docs`"


def test_every_metric_has_a_place_in_the_dashboard_and_no_other_is_asked_for() -> None:
    dashboard = json.loads((ROOT / "docs" / "grafana.json").read_text())
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    names = {re.sub(r"^rate\(|\{.*", "", expression) for expression in asked}
    assert names == {metric.name for metric in METRICS} - {"pytailscale_info"}
    assert len(asked) == len(names)
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in dashboard["panels"]}
    assert len(places) == len(dashboard["panels"])


def test_counters_are_shown_as_rates_and_named_as_prometheus_wants() -> None:
    for metric in METRICS:
        assert (metric.kind == "counter") == metric.name.endswith("_total"), metric.name
        assert re.fullmatch(r"(py)?tailscaled?_[a-z0-9_]+", metric.name)
        assert metric.help.endswith("."), metric.name
