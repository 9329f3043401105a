"""A Weights & Biases workspace over the runs of a project: comparison, alpha, layers, cost.

    python -m scripts.wandb_dashboard                                   # writes results/wandb_dashboard.json
    python -m scripts.wandb_dashboard --metric top1 --out vision.json
    WANDB_API_KEY=... python -m scripts.wandb_dashboard --entity my-team

The JSON is written offline. With a key (`wandb login`, or WANDB_API_KEY) and `--entity`, the workspace is also saved on the server.
It needs `pip install sqbench[dashboards]`.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import wandb
import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws

from sqbench.errors import known
from sqbench.storage.files import write_text

STAGES = (
    "load",
    "baseline",
    "calibrate",
    "allocate",
    "quantize",
    "train",
    "lower",
    "evaluate",
)  # of sqbench.running.flow and .stages
METRICS = ("perplexity", "bits_per_byte", "top1", "top5", "acc", "kl_to_fp", "agreement", "exact_match")
ALPHA = wr.Config("identity.method.alpha")  # the alpha that the method used; the top-level `alpha` may be null


def workspace(project: str, entity: str, metric: str) -> ws.Workspace:
    """The workspace as an object. Nothing is sent.

    Args:
        metric: the deciding one: perplexity, top1, or another one in the summaries of the runs.
    """
    best = ws.Ordering(ws.Summary(metric), ascending=metric in ("perplexity", "bits_per_byte", "kl_to_fp"))
    columns = [f"summary:{name}" for name in (metric, f"delta/{metric}/value", "weight_bytes", "cost/seconds/total")]
    return ws.Workspace(
        entity=entity,
        project=project,
        name=f"sqbench: {metric}",
        sections=[
            _section("comparison", _comparison(metric)),
            _section("alpha", _alpha(metric)),
            _section("layers", _layers(), open=False),
            _section("cost", _cost(), open=False),
        ],
        settings=ws.WorkspaceSettings(x_axis="Step", max_runs=100),
        runset_settings=ws.RunsetSettings(
            order=[best], pinned_columns=columns
        ),  # not grouped: a bar would be a mean over bits and alphas,
    )


def _comparison(metric: str) -> list[Any]:
    delta = f"delta/{metric}"
    return [
        wr.BarPlot(title=metric, metrics=[metric], max_runs_to_show=100),
        wr.BarPlot(title=f"{metric}: change against the float model", metrics=[f"{delta}/value"], max_runs_to_show=100),
        wr.ScatterPlot(title=f"{metric} against weight bytes", x=wr.SummaryMetric("weight_bytes"), y=wr.SummaryMetric(metric)),
        wr.ParallelCoordinatesPlot(
            title="what was chosen, and what came out",
            columns=[
                wr.ParallelCoordinatesPlotColumn(wr.Config(name), display_name=shown)
                for name, shown in (("method.name", "method"), ("identity.scheme.name", "bits"), ("identity.method.alpha", "alpha"))
            ]
            + [wr.ParallelCoordinatesPlotColumn(wr.SummaryMetric(name)) for name in (f"{delta}/low", metric, f"{delta}/high")],
        ),
        wr.RunComparer(diff_only=True),
    ]


def _alpha(metric: str) -> list[Any]:
    values = (metric, f"delta/{metric}/low", f"delta/{metric}/high")
    return [wr.ScatterPlot(title=f"{value} against alpha", x=ALPHA, y=wr.SummaryMetric(value)) for value in values]


def _layers() -> list[Any]:
    return [
        wr.MediaBrowser(title="layer by layer", media_keys=["per_layer"]),
        wr.MediaBrowser(title="groups: where scales moved", media_keys=["groups"]),
        wr.MediaBrowser(title="widths of mixed precision", media_keys=["allocation"]),
        wr.MediaBrowser(title="SQNR of inputs and weights, in dB", media_keys=["layers/input_sqnr_db", "layers/weight_sqnr_db"]),
        wr.MediaBrowser(title="distributions, before and after smoothing", media_keys=["distributions"]),
        wr.LinePlot(title="training", x="training/epoch", y=["training/loss", "training/validation_loss"]),
        wr.LinePlot(title="training: validation top-1", x="training/epoch", y=["training/validation_top1"]),
    ]


def _cost() -> list[Any]:
    return [
        wr.BarPlot(title="seconds a stage", metrics=[f"cost/seconds/{stage}" for stage in STAGES], max_runs_to_show=100),
        wr.BarPlot(title="peak memory of the process, bytes", metrics=["cost/peak_rss_bytes"], max_runs_to_show=100),
        wr.BarPlot(title="weights, bytes", metrics=["weight_bytes"], max_runs_to_show=100),
        wr.BarPlot(title="latency, ms (eval=latency)", metrics=["latency_ms"], max_runs_to_show=100),
    ]


def _section(name: str, panels: list[Any], open: bool = True) -> ws.Section:
    """A section with panels in rows of three. The library would put all of them into one place."""
    for place, panel in enumerate(panels):
        panel.layout = wr.Layout(x=8 * (place % 3), y=6 * (place // 3), w=8, h=6)
    return ws.Section(name=name, panels=panels, is_open=open)


def as_json(view: ws.Workspace) -> str:
    """The workspace as JSON for the server. Numbers replace the random ids that the library gives to panels."""
    model = json.loads(view._to_model().model_dump_json(by_alias=True))
    count = 0
    for section in model["spec"]["section"]["panelBankConfig"]["sections"]:
        for panel in section["panels"]:
            panel["__id__"] = f"panel-{count}"
            count += 1
    return json.dumps(model, indent=2, sort_keys=True) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. It prints the written file, and the address of an uploaded workspace."""
    parser = argparse.ArgumentParser(prog="python -m scripts.wandb_dashboard", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--project", default="sqbench", help="tracker.project of the runs")
    parser.add_argument("--entity", default="", help="the user or team it belongs to; without one nothing is uploaded")
    parser.add_argument("--metric", default="perplexity", help=f"that decides; {', '.join(METRICS)}, or TASK/acc")
    parser.add_argument("--out", type=Path, default=Path("results/wandb_dashboard.json"))
    given = parser.parse_args(arguments)
    if given.metric not in METRICS and "/" not in given.metric:
        parser.error(f"--metric {given.metric}: {known(given.metric, METRICS)}, or one of a task: TASK/acc")
    view = workspace(given.project, given.entity, given.metric)
    write_text(given.out, as_json(view))
    sys.stdout.write(f"{given.out}\n")
    if not given.entity or not wandb.api.api_key:
        missing = "WANDB_API_KEY or `wandb login`" if given.entity else "--entity"
        sys.stdout.write(f"not uploaded: {missing} is missing\n")
        return 0
    try:
        view.save()
    except wandb.Error as error:
        sys.stderr.write(f"error: not uploaded to {given.entity}/{given.project}: {error}\n")
        return 1
    sys.stdout.write(f"{view.url}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
