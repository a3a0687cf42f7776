"""The saved view of an experiment in MLflow: which columns and charts are there when its page is opened.

MLflow's page keeps views as tags of the experiment and lists them in its menu of saved views; an address that names one
opens with it. No call of MLflow's API writes a view, but one sets tags: the format is that of the page of MLflow 3.17.
"""

from __future__ import annotations

import base64
import json
import time
import zlib
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

NAME = "forgetting and dictionaries"
SHARE_KEY = "cl-ovq"
CURVES = {
    "Stream, by experience": ("forgetting", "accuracy", "backward_transfer"),
    "Dictionaries, by training step": ("dictionary/size", "dictionary/effective_size", "dictionary/dead"),
}
COMPARED = (
    "accuracy",
    "forgetting",
    "backward_transfer",
    "forward_transfer",
    "dictionary/size",
    "dictionary/plateau_tokens",
    "dictionary/bytes",
    "wall_seconds",
    "peak_memory_bytes",
)
PARALLEL = (
    "accuracy",
    "forgetting",
    "dictionary/size",
    "dictionary/plateau_tokens",
    "dictionary/bytes",
    "wall_seconds",
)
SCATTERS = (("dictionary/bytes", "forgetting"), ("wall_seconds", "accuracy"), ("dictionary/size", "accuracy"))
TAGS = ("mixer", "scope", "strategy", "seed", "sweep")


def view_tags(quantity: str = "accuracy") -> dict[str, str]:
    """Return the tags of an experiment that hold its view, and say that its runs train models.

    Args:
        quantity: of its streams, shown where the names above say accuracy.
    """
    now = int(time.time() * 1000)
    packed = zlib.compress(json.dumps(_state(quantity), separators=(",", ":")).encode(), 9)
    state = "deflate;" + base64.b64encode(packed).decode()
    view = {"name": NAME, "createdAt": now, "updatedAt": now, "state": state}
    return {
        f"mlflow.sharedViewState.{SHARE_KEY}": json.dumps(view),
        "mlflow.experimentKind": "custom_model_development",
    }


def view_address(root: str, experiment_id: str) -> str:
    """Return the address of an experiment's charts, opened with the saved view."""
    return f"{root}/#/experiments/{experiment_id}/runs?compareRunsMode=CHART&viewStateShareKey={SHARE_KEY}"


def comparison_address(root: str, experiment_ids: Sequence[str], run_ids: Sequence[str]) -> str:
    """Return the address of the page that compares runs."""
    runs, experiments = (quote(json.dumps(list(ids), separators=(",", ":"))) for ids in (run_ids, experiment_ids))
    return f"{root}/#/compare-runs?runs={runs}&experiments={experiments}"


def _state(quantity: str) -> Mapping[str, Any]:
    """Return the view as the page keeps it."""

    def own(names: Sequence[str]) -> list[str]:
        return [quantity if name == "accuracy" else name for name in names]

    charts: list[dict[str, Any]] = []
    sections: list[dict[str, Any]] = []

    def section(title: str, cards: Sequence[Mapping[str, Any]]) -> None:
        name = f"section-{len(sections)}"
        sections.append({"uuid": name, "name": title, "display": True, "isReordered": True})
        for card in cards:
            common = {"uuid": f"chart-{len(charts)}", "metricSectionId": name, "deleted": False, "isGenerated": False}
            charts.append({**common, **card})

    for title, names in CURVES.items():
        section(title, [_curve(name) for name in own(names)])
    section("All runs", [_parallel(own(PARALLEL)), *(_scatter(*own(axes)) for axes in SCATTERS)])
    section("Last values", [{"type": "BAR", "metricKey": name, "runsCountToCompare": 20} for name in own(COMPARED)])
    columns = [f"metrics.`{name}`" for name in own(COMPARED)] + [f"tags.`{name}`" for name in TAGS]
    return {
        "selectedColumns": columns,
        "compareRunCharts": charts,
        "compareRunSections": sections,
        "isAccordionReordered": True,
    }


def _curve(name: str) -> dict[str, Any]:
    return {
        "type": "LINE",
        "metricKey": name,
        "selectedMetricKeys": [name],
        "runsCountToCompare": 20,
        "lineSmoothness": 0,
        "scaleType": "linear",
        "xAxisScaleType": "linear",
        "xAxisKey": "step",
        "selectedXAxisMetricKey": "",
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "useGlobalXaxisKey": False,
        "useGlobalLineSmoothing": False,
    }


def _parallel(names: list[str]) -> dict[str, Any]:
    return {"type": "PARALLEL", "selectedParams": [], "selectedMetrics": names, "runsCountToCompare": 20}


def _scatter(x: str, y: str) -> dict[str, Any]:
    axes = {axis: {"key": name, "type": "METRIC"} for axis, name in (("xaxis", x), ("yaxis", y))}
    return {"type": "SCATTER", "runsCountToCompare": 100, **axes}
