"""`python -m sqbench.recommend` as a person starts it."""

import subprocess
import sys
from pathlib import Path

import pytest
from cli import environment
from examples import build, write
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from sqbench.config import CONF_DIR
from sqbench.errors import UserError
from sqbench.recommend import RecommendConfig, recommendations


@pytest.fixture
def folder(results: Path) -> Path:
    line = "python -m sqbench.run method=%s model.name=smollm2 alpha=0.5 data.windows=16"
    commands = [{"provenance__command": line % method} for method in ("rtn", "smoothquant")]
    write(results, build("rtn", perplexity=16.0, **commands[0]), build(alpha=0.5, **commands[1]))
    write(results, build("awq", "w4a16", status="failed"))
    return results


def asked(*overrides: str) -> RecommendConfig:
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        config = OmegaConf.to_object(compose("recommend", list(overrides)))
    assert isinstance(config, RecommendConfig)
    return config


def told(*overrides: str) -> str:
    return "\n".join(str(part) for part in recommendations(asked(*overrides)))


def test_the_command_line(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    cwd = tmp_path_factory.mktemp("cwd")
    line = [sys.executable, "-m", "sqbench.recommend", f"results_dir={folder}"]
    done = subprocess.run(line, cwd=cwd, env=environment(PYTHONWARNINGS="error"), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Use 8-bit with smoothquant α=0.5: 4.0 times smaller, perplexity +0.240 [0.140, 0.340]." in done.stdout
    assert "Make it again: python -m sqbench.run method=smoothquant model.name=smollm2 alpha=0.5 data.windows=16\n" in done.stdout
    assert "python -m sqbench.run model.name=smollm2 data.windows=16 method=rtn bits=w8a8 eval=latency backend=int" in done.stdout
    assert "1 more did not finish" in done.stdout
    assert list(cwd.iterdir()) == []


def test_nothing_satisfies_and_it_says_why(folder: Path) -> None:
    said = told(f"results_dir={folder}", "max_loss=0.1")
    assert "No point satisfies all limits.\n2 of 2 points may lose more than max_loss" in said


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("max_mb=0", "max_mb=0.0: must be a number above 0"),
        ("min_speed=-1", "min_speed=-1.0: must be a number above 0"),
        ("speed=promts", "speed=promts: did you mean prompts?"),
        ("device=gpu", "device=gpu: must be cpu or cuda, or null for any"),
        ("metric=perplexty", "metric=perplexty: did you mean perplexity?"),
        ("where.method=smothquant", "where.method=smothquant: did you mean smoothquant?"),
        ("metric=weight_bytes", "metric=weight_bytes: is no metric of accuracy"),
    ],
)
def test_what_cannot_work_is_refused(folder: Path, override: str, said: str) -> None:
    with pytest.raises(UserError) as refused:
        told(f"results_dir={folder}", override)
    assert str(refused.value).startswith(said)
