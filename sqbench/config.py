"""The typed configuration: what a command line may say, checked before anything is loaded.

`conf/` holds the values, this file the types. Every key that a YAML or an override may set stands here with what it means.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from sqbench.errors import UserError, known

if TYPE_CHECKING:
    import torch

_HERE = Path(__file__).resolve().parent
CONF_DIR = _HERE / "conf" if (_HERE / "conf").is_dir() else _HERE.parent / "conf"  # inside a wheel, or beside it in a checkout


@dataclass
class ModelConfig:
    """Which weights, and how they are loaded."""

    name: str = MISSING  # a preset's label, a hub id, or a local folder
    loader: str = MISSING  # a key of sqbench.models.LOADERS
    revision: str | None = None  # of a hub id
    dtype: str = "float32"
    trust_remote_code: bool = False
    keep: list[str] = field(default_factory=list)  # layers (fnmatch patterns) left in float, besides the output embedding


@dataclass
class DataConfig:
    """Which text, cut into windows of tokens."""

    name: str = MISSING
    source: str = MISSING  # a key of sqbench.data.SOURCES
    path: str | None = None  # a local file instead of a download
    window: int = 512  # tokens
    windows: int = 16  # to evaluate on, from the start of the text


@dataclass
class CalibrationConfig:
    """What the statistics are collected on: windows that evaluation never sees."""

    windows: int = 32
    seed: int = 0  # of the draw; follows the top-level seed
    path: str | None = None  # another text than the evaluation's
    search_windows: int = 4  # of them, how many a search over block outputs (alpha=auto) replays


@dataclass
class FormatConfig:
    """See sqbench.quant.formats.Format."""

    bits: int = 8
    symmetric: bool = True
    granularity: str = "tensor"
    group_size: int | None = None
    dynamic: bool = False
    convention: str = "qmax"
    scale_dtype: str = "float32"


@dataclass
class SchemeConfig:
    """See sqbench.quant.formats.Scheme. The name `auto` stands for the method's natural scheme."""

    name: str = MISSING
    weights: FormatConfig | None = None
    activations: FormatConfig | None = None
    ops: str = "linear"


@dataclass
class EvalConfig:
    name: str = MISSING  # a key of sqbench.evaluation.EVALUATIONS
    resamples: int = 10_000  # of the paired bootstrap
    level: float = 0.95  # of its interval


@dataclass
class TrackerConfig:
    """Weights & Biases: `offline` writes to results_dir/wandb, `online` uploads, `disabled` does nothing."""

    mode: str = "offline"
    project: str = "sqbench"
    entity: str | None = None


@dataclass
class RunConfig:
    """One sweep point, or with -m several."""

    model: ModelConfig = MISSING
    data: DataConfig = MISSING
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    method: Any = MISSING  # name, natural scheme, and the fields of that method's dataclass
    bits: SchemeConfig = MISSING
    eval: EvalConfig = MISSING
    tracker: TrackerConfig = MISSING
    alpha: Any = None  # a number in [0, 1] or `auto`; null is the method's own default
    seed: int = 0
    backend: str = "sim"
    device: str = "auto"
    results_dir: str = "results"
    force: bool = False  # compute points again that are finished
    plan: bool = False  # print the points and their state, compute nothing


def register() -> None:
    """Tell Hydra the schema; `conf/config.yaml` names it in its defaults."""
    ConfigStore.instance().store(name="schema", node=RunConfig)


def check(cfg: DictConfig) -> None:
    """Raise UserError for any value that cannot work, without loading anything."""
    from sqbench.data import SOURCES
    from sqbench.evaluation import EVALUATIONS
    from sqbench.methods import METHODS, configured, scheme_of
    from sqbench.models import LOADERS

    def choose(key: str, names: object) -> None:
        value = OmegaConf.select(cfg, key)
        if value not in names:  # type: ignore[operator]
            raise UserError(f"{key}={value}: {known(str(value), names)}")

    def at_least(key: str, least: int) -> None:
        value = OmegaConf.select(cfg, key)
        if value < least:
            raise UserError(f"{key}={value}: {least} or more works")

    if missing := sorted(OmegaConf.missing_keys(cfg)):
        hint = "a hub id or a local folder works" if missing[0] == "model.name" else "it has no default"
        raise UserError(f"{missing[0]}=???: needs a value; {hint}")
    if cfg.bits.name == "auto" and (cfg.bits.weights is not None or cfg.bits.activations is not None):
        changed = "bits.weights" if cfg.bits.weights is not None else "bits.activations"
        raise UserError(
            f"{changed}: bits=auto is the method's own scheme and has no fields; name the scheme to change, for example bits=w4a16"
            f" {changed}.bits=3"
        )
    choose("method.name", METHODS)
    choose("model.loader", LOADERS)
    choose("data.source", SOURCES)
    choose("eval.name", EVALUATIONS)
    choose("model.dtype", ("float32", "bfloat16", "float16"))
    choose("tracker.mode", ("offline", "online", "disabled"))
    choose("backend", ("sim",))
    at_least("data.window", 2)
    at_least("data.windows", 1)
    at_least("calibration.windows", 1)
    at_least("calibration.search_windows", 1)
    at_least("eval.resamples", 100)
    for key in ("seed", "calibration.seed"):
        if not -(2**63) <= OmegaConf.select(cfg, key) < 2**63:
            raise UserError(f"{key}={OmegaConf.select(cfg, key)}: a number of 64 bits works")
    if not 0 < cfg.eval.level < 1:
        raise UserError(f"eval.level={cfg.eval.level}: a number between 0 and 1 works, 0.95 for example")
    scheme_of(cfg).check()
    configured(cfg)
    device_of(cfg.device)
    for key in ("data.path", "calibration.path"):
        path = OmegaConf.select(cfg, key)
        if path is not None and not Path(path).is_file():
            problem = "is a folder; a UTF-8 text file works" if Path(path).is_dir() else f"no such file (from {Path.cwd()})"
            raise UserError(f"{key}={path}: {problem}")


def device_of(name: str) -> "torch.device":
    """`auto` is cuda where there is one, else cpu.

    Raises:
        UserError: the device is not there.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UserError(f"device={name}: auto, cpu, cuda or cuda:N work")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device={name}: this machine has {torch.cuda.device_count()} CUDA devices; device=cpu works")
    return device
