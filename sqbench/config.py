"""The types of the configuration. `sqbench.running.checks` checks the values.

`conf/` holds the values. This file defines and explains every key that a YAML file or an override may set.
"""

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from omegaconf import MISSING, DictConfig, OmegaConf

from sqbench.errors import UserError

if TYPE_CHECKING:
    import torch

# Kind of data -> the key of `data` and of `calibration` for the number of its examples.
SIZES = {"text": "windows", "images": "images", "sentences": "sentences"}
EACH = "each"  # layers=each: a sweep of one point for each group of layers
_HERE = Path(__file__).resolve().parent
CONF_DIR = _HERE / "conf" if (_HERE / "conf").is_dir() else _HERE.parent / "conf"  # in a wheel inside the package, else beside it


@dataclass
class ModelConfig:
    """Which weights are loaded, and how."""

    name: str = MISSING  # a preset's label, a hub id, a local folder, or a timm architecture
    label: str | None = None  # its name in tables and pictures; null is `name`. No number depends on it
    loader: str = MISSING  # a key of sqbench.models.LOADERS
    parent: str | None = None  # checkpoint: the float model that it is compared with, a hub id or a local folder
    revision: str | None = None  # of a hub id
    checkpoint: str | None = None  # timm, torchvision, python: a local .safetensors or .pth file instead of the published weights
    arguments: Any = None  # python: of the function that builds the network, {depth: 20} for example
    image_size: int | None = None  # pixels; null is the model's own
    head: str = "own"  # own: the model's classifier; probe or knn: fitted on frozen float features of the training split
    head_images: int = 2000  # images or sentences of the training split that a probe or knn head is fitted on
    recipe: dict[str, Any] | None = None  # of models that are trained on first use, as in conf/model/*_nano.yaml
    dtype: str = "float32"
    trust_remote_code: bool = False
    keep: list[str] = field(default_factory=list)  # layers (fnmatch patterns) left in float, besides the output embedding


@dataclass
class DataConfig:
    """Which text, cut into windows of tokens, which labelled texts, or which images."""

    name: str = MISSING
    source: str = MISSING  # a key of sqbench.data.SOURCES
    path: str | None = None  # a local file or folder instead of a download
    window: int = 512  # tokens
    windows: int = 32  # windows to evaluate on, from the start of the text
    bos: Any = "auto"  # tokens before every window. auto: those that the tokenizer adds; true: at least BOS; false: none
    images: int | None = 1000  # images to evaluate on, a fixed draw of the test split; null is all of it
    train_path: str | None = None  # the training split, if `path` is only the test split
    labels: Any = None  # of a flat folder: a table of files and classes, or a mapping from beginnings of file names to classes
    image_column: str = "image"  # of parquet files and of tables of labels
    label_column: str = "label"
    transform: Any = None  # of images: parts that replace the model's own preprocessing, as in {resize: 256, crop: 224}
    columns: Any = None  # of labelled_text: {text: a, second: b, label or score: c}; null is {text: text, label: label}
    hub: Any = None  # of hub_text: {repository: nyu-mll/glue, subset: sst2, test: validation, train: train}
    sentences: int | None = None  # rows of labelled text to evaluate on, a fixed draw; null is all


@dataclass
class CalibrationConfig:
    """The calibration inputs: windows, images or labelled texts that the evaluation never sees."""

    samples: int | None = None  # number of windows, images or sentences, whichever the model reads; null uses the next three keys
    windows: int = 32
    images: int = 64  # of the training split
    sentences: int = 128  # rows of labelled text, of the training split
    source: str = "data"  # random: random tokens or noise images; weights: no inputs, ranges from the norms' weights alone
    seed: int = 0  # of the draw; follows the top-level seed
    path: Any = None  # a text other than the evaluation's, a JSONL of documents, or a list of such files
    weights: Any = None  # of several files: the share of the windows that comes from each; null is equal shares
    pack: bool = True  # windows over the joined documents of a JSONL; false: a window is one document, and shorter ones stay short
    search_windows: int = 4  # how many windows a search over block outputs (alpha=auto) replays
    search_images: int = 16  # the same for images
    search_sentences: int = 16  # the same for sentences of one length
    propagate: bool = False  # calibrate each block on what the quantized blocks before it write (sqbench/pipeline/engine.py)


@dataclass
class ScaleConfig:
    """See sqbench.formats.scale.Scale."""

    dtype: str | None = None  # null: scale_dtype, or else float32
    rule: str = "absmax"
    second: str = "none"
    order: str = "modelopt"
    times: str = "scale"


@dataclass
class FormatConfig:
    """See sqbench.formats.format.Format."""

    bits: int | None = None  # null: the width of the element, or else 8
    symmetric: bool = True
    granularity: str = "tensor"
    group_size: int | None = None
    dynamic: bool = False
    convention: str = "qmax"
    scale: ScaleConfig = field(default_factory=ScaleConfig)
    scale_dtype: str | None = None  # the older name of scale.dtype
    element: str = "int"
    zero_point: str = "integer"
    block_rows: int | None = None
    range: str = "with_zero"
    shift: str = "after"
    ties: str = "even"


@dataclass
class SchemeConfig:
    """See sqbench.formats.format.Scheme. The name `auto` stands for the method's natural scheme."""

    name: str = MISSING
    weights: FormatConfig | None = None
    activations: FormatConfig | None = None
    ops: str = "linear"
    edge_bits: int | None = None  # of the first and the last quantized layer; null is the same as in the others
    embedding: Any = None  # null, the name of a file of conf/bits whose weights' format it is, or fields of FormatConfig
    head: Any = None


# The key `as` cannot be a name in Python. It is a tool whose rules the formats follow (sqbench.formats.tools).
_as_key = {"__annotations__": {"as": str | None}, "as": None, "__doc__": SchemeConfig.__doc__}
BitsConfig: Any = dataclass(init=False, repr=False, eq=False)(type("BitsConfig", (SchemeConfig,), _as_key))


@dataclass
class EvalConfig:
    """The keys of `eval` that every evaluation has. Its own ones are those of its settings (`sqbench.evaluation`)."""

    name: str = MISSING  # a key of sqbench.evaluation.EVALUATIONS, or auto: the first for the kind of data
    resamples: int = MISSING  # of the sign-flip test, and of the bootstrap of speeds
    level: float = MISSING  # of the intervals


@dataclass
class TrackerConfig:
    """Weights & Biases: `offline` writes to results_dir/wandb, `online` uploads, `disabled` does nothing."""

    mode: str = "offline"
    project: str = "sqbench"
    entity: str | None = None


@dataclass
class LimitsConfig:
    """Limits of one point, which then runs in a child process (`isolate`); null is no limit."""

    seconds: float | None = None
    memory_gb: float | None = None  # resident, 1e9 bytes


@dataclass
class RunConfig:
    """One sweep point, or with -m several."""

    model: ModelConfig = MISSING
    data: DataConfig = MISSING
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    method: Any = MISSING  # name, natural scheme, parts of the recipe, and their parameters
    rounding: Any = MISSING  # a name in conf/rounding with its parameters, or own: the method's
    ranges: Any = MISSING  # the same in conf/ranges
    corrections: list[str] = field(default_factory=list)  # repairs after rounding, besides the method's own: bias
    bits: BitsConfig = MISSING
    eval: Any = MISSING  # the keys of EvalConfig, and the fields of that evaluation's settings
    tracker: TrackerConfig = MISSING
    alpha: Any = None  # a number in [0, 1] or `auto`; null is the method's own default
    layers: Any = None  # fnmatch patterns of the layers to quantize, or of modules around them; null: all; each: sweep over groups
    mixed: str | None = None  # auto: each group of layers gets its own width, by its measured damage (sqbench/pipeline/mixed.py)
    budget: float | None = None  # of mixed=auto: average bits per weight over the quantized layers, codes alone
    widths: list[int] = field(default_factory=lambda: [2, 3, 4, 6, 8])  # of mixed=auto: bits to choose from
    head: str | None = None  # own, probe or knn; null is the model's own default
    seed: int = 0
    noise: int = 0  # how often a point is evaluated again, with inputs changed by a millionth (sqbench/evaluation/noise.py)
    backend: str = "sim"  # a key of sqbench.execution.BACKENDS
    device: str = "auto"
    blockwise: bool = False  # language models: hold only one block at a time in memory, and read each from disk
    results_dir: str = "results"
    cache_dir: str | None = None  # of calibration statistics and float results; null is results_dir/cache
    force: bool = False  # compute finished points again
    plan: bool = False  # print the points and their state, compute nothing
    isolate: bool | None = None  # run points in a child process; null: if there are limits, or a launcher runs several at once
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    threads: int | None = None  # of a point; null: all cores, or a worker's share of them
    retry: int = 0  # how often a failed point is tried again at once


@dataclass(frozen=True)
class RunOptions:
    """The keys of RunConfig that change no number of a point: where results go, and how the point is run."""

    results_dir: str
    cache_dir: str | None
    force: bool
    plan: bool
    isolate: bool | None
    limits: LimitsConfig
    threads: int | None
    retry: int
    tracker: TrackerConfig


def register() -> None:
    """Tell Hydra the schema and the resolvers that `conf/config.yaml` names."""
    OmegaConf.register_new_resolver("either", lambda value, default: default if value is None else value, replace=True)
    OmegaConf.register_new_resolver("options", _options, replace=True)
    ConfigStore.instance().store(name="schema", node=RunConfig)


def compose_config(*overrides: str) -> DictConfig:
    """The configuration of a command line with these overrides."""
    register()
    if GlobalHydra.instance().is_initialized():  # inside a Hydra application, with its search path
        return compose(config_name="config", overrides=list(overrides))
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return compose(config_name="config", overrides=list(overrides))


def _options(group: str, indent: int) -> str:
    """The names in a config group, in lines of 100 columns, for --help. A folder in it stands for the names in that folder."""
    names = sorted(path.stem for path in (CONF_DIR / group).glob("*.yaml"))
    folders = sorted(f"{path.name}/..." for path in (CONF_DIR / group).iterdir() if path.is_dir())
    return textwrap.fill(", ".join([*names, *folders]), 100 - indent, subsequent_indent=" " * indent)


def size_of(part: Mapping[str, Any]) -> Any:
    """The number of examples in the data or the calibration of an identity. None if it has none."""
    return next((part[key] for key in SIZES.values() if key in part), None)


def label_of(model: Mapping[str, Any]) -> str:
    """The name in tables of the float model of a configuration or a record. Old records have no label."""
    return str(model.get("parent") or model.get("label") or model["name"])


def checkpoint_of(model: Mapping[str, Any]) -> str:
    """The name in tables of the quantized checkpoint that has a float parent. Empty without one."""
    return str(model.get("label") or model["name"]) if model.get("parent") else ""


def device_of(name: str) -> "torch.device":
    """The torch device of this name. `auto` is cuda if there is one, else cpu.

    Raises:
        UserError: the device does not exist.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UserError(f"device={name}: must be auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device={name}: this machine has {torch.cuda.device_count()} CUDA devices; it must be one of them, or cpu")
    return device
