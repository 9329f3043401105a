"""The W&B workspace. `python -m scripts.wandb_dashboard --out tests/tracking/dashboard.json` makes the golden file again."""

import json
import warnings
from pathlib import Path

import pytest
from examples import made as build

from sqbench.tracking.content import numbers_of, tables_of

GOLDEN = Path(__file__).parent / "dashboard.json"
pytest.importorskip("wandb_workspaces", reason="pip install sqbench[dashboards]")


@pytest.fixture
def dashboard(monkeypatch):
    """The script, for a person without a key, whose uploads are kept rather than sent."""
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # pydantic's, at the library's import
        from wandb_workspaces.workspaces import internal

        from scripts import wandb_dashboard

    wandb_dashboard.sent = []

    def keep(view):
        wandb_dashboard.sent.append(view)
        return {"upsertView": {"view": {"name": "saved", "id": "1"}}}

    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setattr(internal, "upsert_view2", keep)
    yield wandb_dashboard
    del wandb_dashboard.sent


def test_the_json_is_that_of_the_golden_file(dashboard, tmp_path, capsys):
    out = tmp_path / "made.json"
    assert dashboard.main(["--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\nnot uploaded: --entity is missing\n"
    assert out.read_text() == GOLDEN.read_text()
    assert dashboard.sent == []


def test_its_panels_show_what_runs_log(dashboard):
    """A panel over a name that no run has is an empty box."""
    record = build("smoothquant", "w8a8", 0.5)
    record.quantized["groups"] = [{"source": "norm", "readers": ["q"], "alpha": 0.5}]
    logged = {*numbers_of(record), *tables_of(record), "distributions", "layers/input_sqnr_db", "layers/weight_sqnr_db"}
    logged |= {"allocation", "latency_ms", *(f"cost/seconds/{stage}" for stage in dashboard.STAGES)}
    logged |= {f"training/{name}" for name in ("epoch", "loss", "validation_loss", "validation_top1")}
    sections = {section["name"]: section["panels"] for section in panels(dashboard, "perplexity")}
    assert list(sections) == ["comparison", "alpha", "layers", "cost"]
    for config in (panel["config"] for found in sections.values() for panel in found):
        names = [*config.get("metrics", []), *config.get("mediaKeys", [])]
        names += [
            config[axis].removeprefix("summary:") for axis in ("xAxis", "yAxis") if str(config.get(axis)).startswith("summary:")
        ]
        assert set(names) <= logged, config["chartTitle"]


def test_the_metric_is_a_choice_and_places_do_not_overlap(dashboard):
    sections = panels(dashboard, "top1")
    assert "top1" in sections[0]["panels"][0]["config"]["metrics"]
    for section in sections:
        places = [(panel["layout"]["x"], panel["layout"]["y"]) for panel in section["panels"]]
        assert len(set(places)) == len(places)


def test_with_a_key_it_is_uploaded(dashboard, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("wandb.api", type("Api", (), {"api_key": "k" * 40}))
    monkeypatch.setattr(dashboard.ws.Workspace, "url", "https://wandb.example/team/demo")  # it would ask a server for the rest
    assert dashboard.main(["--entity", "team", "--project", "demo", "--out", str(tmp_path / "made.json")]) == 0
    (view,) = dashboard.sent
    assert (view.entity, view.project, view.display_name) == ("team", "demo", "sqbench: perplexity")
    assert capsys.readouterr().out.splitlines()[-1] == "https://wandb.example/team/demo"


def test_a_server_that_refuses_leaves_the_file_and_says_so(dashboard, tmp_path, capsys, monkeypatch):
    import wandb

    def refuse(view):
        raise wandb.errors.CommError("permission denied")

    monkeypatch.setattr("wandb.api", type("Api", (), {"api_key": "k" * 40}))
    monkeypatch.setattr(dashboard.ws.Workspace, "save", refuse)
    out = tmp_path / "made.json"
    assert dashboard.main(["--entity", "team", "--out", str(out)]) == 1
    assert out.is_file()
    assert "error: not uploaded to team/sqbench: permission denied" in capsys.readouterr().err


def test_an_unknown_metric_lists_the_known_ones(dashboard, capsys):
    with pytest.raises(SystemExit) as end:
        dashboard.main(["--metric", "perplexty"])
    assert end.value.code == 2
    assert "did you mean perplexity?" in capsys.readouterr().err


def panels(dashboard, metric):
    made = json.loads(dashboard.as_json(dashboard.workspace("demo", "", metric)))
    return made["spec"]["section"]["panelBankConfig"]["sections"]
