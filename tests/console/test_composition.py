"""Fields of a choice: set in each job of a sweep, and refused by the name of the choice that does not have them."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import hydra._internal.hydra as application
import pytest
from cli import Ended, call
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import create_config_search_path
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobRuntime, setup_globals
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from sqbench import config
from sqbench.console.composition import Loader
from sqbench.errors import UserError

Command = Callable[..., Ended]
HAVE_WEIGHTS = "bits=fp8, fp8_block, fp8_dynamic, fp8a16, mxfp4, mxfp4a16, mxfp6, mxfp6a16, mxfp8, mxfp8a16, 25 more have it"


@pytest.fixture(scope="module")
def loader() -> Loader:
    """As a command line has it, without its process."""
    config.register()
    setup_globals()
    JobRuntime.instance().set("name", "test")
    return Loader(create_config_search_path(str(config.CONF_DIR)))


def jobs(loader: Loader, *overrides: str) -> list[DictConfig]:
    """The configurations of a sweep, as a sweeper makes them."""
    whole = loader.load_configuration("config", list(overrides), RunMode.MULTIRUN)
    params = [f"{key}={value}" for key, value in (whole.hydra.sweeper.params or {}).items()]
    lines = OverridesParser.create().parse_overrides([*params, *whole.hydra.overrides.task])
    return [loader.load_sweep_config(whole, list(job)) for job in BasicSweeper.split_arguments(lines, None)[0]]


@pytest.mark.parametrize(
    ("overrides", "key", "values"),
    [
        (("bits=w4a16,w3a16", "bits.weights.group_size=32"), "bits.weights.group_size", [32, 32]),
        (("bits=w4a16,w3a16", "bits.weights.group_size=32,64"), "bits.weights.group_size", [32, 64] * 2),
        (("bits=w8a8,w8a16", "bits.weights.convention=half_range"), "bits.weights.convention", ["half_range"] * 2),
        (("method=qat,qat_lsq", "method.epochs=3", "seed=1"), "method.epochs", [3, 3]),
        (("model=vit_nano,resnet_nano", "model.recipe.epochs=3"), "model.recipe.epochs", [3, 3]),
        (("model=hf", "model.name=a,b", "data.window=8", "eval=latency,generation", "eval.decode=4"), "eval.decode", [4] * 4),
        (("tracker=none,wandb", "tracker.project=mine", "data=pydoc,wikitext2", "data.windows=3"), "data.windows", [3] * 4),
        (("experiment=awq_int4", "bits.weights.group_size=32"), "bits.weights.group_size", [32] * 12),
        (("hydra/launcher=cores", "hydra.launcher.n_jobs=2", "bits=w8a8,w6a6", "bits.weights.bits=7"), "bits.weights.bits", [7, 7]),
    ],
)
def test_a_field_is_set_in_every_job_of_a_sweep(loader: Loader, overrides: tuple[str, ...], key: str, values: list[object]) -> None:
    assert [OmegaConf.select(cfg, key) for cfg in jobs(loader, *overrides)] == values


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("method=awq,rtn", "method.grid=3"), "method.grid=3: method=rtn has no method.grid; method=awq has it"),
        (("bits=w4a16,fp", "bits.weights.bits=3"), f"bits.weights.bits=3: bits=fp has no bits.weights; {HAVE_WEIGHTS}"),
        (("method=rtn,awq", "bits.weights.bits=3"), f"bits.weights.bits=3: bits=auto has no bits.weights; {HAVE_WEIGHTS}"),
        (("bits=w4a16,w3a16", "bits.weights.group=3"), "bits=w4a16 has no bits.weights.group; did you mean group_size?"),
        (("model=vit_nano,hf", "model.recipe.epochs=3"), "model=hf has no model.recipe; model=resnet_nano, vit_nano have it"),
        (("method=rtn,awq", "data.windws=3"), "data=pydoc has no data.windws; did you mean windows?"),
        (("method=rtn,awq", "hydra.launcher.n_jobs=2"), "hydra/launcher=basic has no hydra.launcher.n_jobs; hydra/launcher=cores,"),
    ],
)
def test_a_field_that_a_choice_lacks_is_refused_by_the_name_of_the_choice(
    loader: Loader, overrides: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UserError) as refused:
        jobs(loader, *overrides)
    assert message in str(refused.value)


def test_a_single_run_is_refused_in_the_same_words(command: Command, results: Path) -> None:
    for mode in ((), ("-m",)):
        ended = command(*mode, "method=rtn", "method.grid=3")  # model.name=..., before it, is a field whose default is ???
        assert (ended.code, ended.out) == (2, "")
        assert ended.err == "error: method.grid=3: method=rtn has no method.grid; method=awq has it\n"
    assert not results.exists()


def test_a_wrong_value_of_a_field_is_told_as_such(loader: Loader) -> None:
    with pytest.raises(UserError, match=r"bits.weights.bits=many: must be a whole number or null$"):
        jobs(loader, "bits=w4a16,w3a16", "bits.weights.bits=many")


@pytest.mark.slow
def test_points_of_such_a_sweep_are_those_of_the_single_runs(
    command: Command, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = command("-m", "method=rtn", "bits=w4a16,w3a16", "bits.weights.group_size=32")
    assert ended.code == 0, ended.err
    found = {path.parent.name: json.loads(path.read_text()) for path in results.glob("runs/*/record.json")}
    schemes = {record["identity"]["scheme"]["name"]: record["identity"]["scheme"]["weights"] for record in found.values()}
    assert {name: weights["group_size"] for name, weights in schemes.items()} == {"w4a16": 32, "w3a16": 32}
    record = next(iter(found.values()))
    assert "bits.weights.group_size=32" in record["provenance"]["command"]
    again = call(*shlex.split(record["provenance"]["command"])[3:], capsys=capsys)
    assert "1 skipped" in again.out, again.err
    assert application.ConfigLoaderImpl is ConfigLoaderImpl  # as Hydra has it, for whoever uses it next in this process
