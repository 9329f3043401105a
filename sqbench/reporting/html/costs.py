"""The cost of computing points: seconds of every stage, and memory."""

import statistics
from collections import defaultdict
from typing import Any

import plotly.graph_objects as go

from sqbench.errors import UserError
from sqbench.reporting.html.results import Results, point_rows
from sqbench.reporting.html.text import in_figure
from sqbench.reporting.looks import COLOURS, GREY
from sqbench.reporting.studies import Study

STAGES = tuple(COLOURS.values())[1:]  # here a colour marks a stage, not a method

SHARED = ("baseline", "calibrate")  # stages that the first point of a sweep computes for all others
ONCE = "once for all points"
MOST = 40  # bars; a reader cannot separate more
_ROW = 22  # height of a bar in pixels


def seconds(results: Results, study: Study) -> tuple[go.Figure, str]:
    """Stacked seconds of every stage, one bar for each method, bits and alpha."""
    groups = _grouped(results, study)
    found = dict.fromkeys(name for costs in groups.values() for cost in costs for name in cost.get("seconds", {}))
    stages = [name for name in found if name not in ("total", *SHARED)]
    totals = {label: sum(_median(costs, stage) for stage in stages) for label, costs in groups.items()}
    chosen = sorted(totals, key=totals.__getitem__, reverse=True)[:MOST]
    order = [label for label in groups if label in set(chosen)][::-1]
    figure = go.Figure()
    for place, stage in enumerate([*stages, *(name for name in SHARED if name in found)]):
        own = [(label, 0.0 if stage in SHARED else _median(groups[label], stage)) for label in order]
        spent = sum(cost.get("seconds", {}).get(stage, 0.0) for costs in groups.values() for cost in costs)
        bars = [*own, (ONCE, spent if stage in SHARED else 0.0)]
        figure.add_bar(
            y=[in_figure(label) for label, _ in bars],
            x=[length for _, length in bars],
            name=in_figure(stage),
            orientation="h",
            marker={
                "color": STAGES[place % len(STAGES)],
                "pattern": {"shape": ("", "/", ".", "x", "-")[place % 5], "size": 6, "solidity": 0.2, "fillmode": "overlay"},
            },
            hovertemplate="%{y}: %{x:.3g} s<extra>%{fullData.name}</extra>",
        )
    figure.update_layout(barmode="stack", height=160 + _ROW * (len(order) + 1))
    figure.update_xaxes(title_text="seconds")
    return figure, _said(groups, f"The row '{ONCE}' is what points share: the float model's result and the calibration.")


def memory(results: Results, study: Study) -> tuple[go.Figure, str]:
    """Peak resident memory of every method, bits and alpha."""
    groups = _grouped(results, study)
    peaks = {
        label: [cost["peak_rss_bytes"] / 1e9 for cost in costs if cost.get("peak_rss_bytes")] for label, costs in groups.items()
    }
    largest = {label: max(values) for label, values in peaks.items() if values}
    if not largest:
        raise UserError("No record says how much memory its point took")
    chosen = set(sorted(largest, key=largest.__getitem__, reverse=True)[:MOST])
    order = [label for label in largest if label in chosen][::-1]
    figure = go.Figure()
    figure.add_bar(
        y=[in_figure(label) for label in order],
        x=[largest[label] for label in order],
        orientation="h",
        marker={"color": GREY},
        hovertemplate="%{y}: %{x:.3g} GB<extra></extra>",
    )
    figure.update_layout(height=140 + _ROW * len(order), showlegend=False)
    figure.update_xaxes(title_text="peak memory of the process (GB)", rangemode="tozero")
    return figure, _said(groups, "Memory of the process that computed the point: Python, both models, what earlier points left.")


def _grouped(results: Results, study: Study) -> dict[str, list[dict[str, Any]]]:
    """The costs of the finished points of every label, in the natural order."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for fields, _ in point_rows(study.frame):
        record = results.records.get(fields["point_id"])
        cost = {} if record is None else dict(record.cost)
        if cost and fields["status"] != "failed":
            alpha = f" α={fields['alpha']}" if fields["alpha"] else ""
            found[f"{fields['method']} {fields['bits']}{alpha}"].append(cost)
    if not found:
        raise UserError("No finished point of this study has a cost")
    return found


def _median(costs: list[dict[str, Any]], stage: str) -> float:
    return statistics.median(cost.get("seconds", {}).get(stage, 0.0) for cost in costs)


def _said(groups: dict[str, list[dict[str, Any]]], note: str) -> str:
    several = f" Medians of up to {most} points." if (most := max(map(len, groups.values()))) > 1 else ""
    left = f" The {MOST} largest of {len(groups)} are shown." if len(groups) > MOST else ""
    return f"{note}{several}{left}"
