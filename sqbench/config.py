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

EACH = "each"  # layers=each: a sweep of one point for each group of layers
_HERE = Path(__file__).resolve().parent
CONF_DIR = _HERE / "conf" if (_HERE / "conf").is_dir() else _HERE.parent / "conf"  # inside a wheel, or beside it in a checkout


@dataclass
class ModelConfig:
    """Which weights, and how they are loaded."""

    name: str = MISSING  # a preset's label, a hub id, a local folder, or a timm architecture
    loader: str = MISSING  # a key of sqbench.models.LOADERS
    revision: str | None = None  # of a hub id
    checkpoint: str | None = None  # timm: a local .safetensors or .pth file instead of the hub's weights
    image_size: int | None = None  # pixels; null is the model's own
    head: str = "own"  # own: the model's classifier; probe or knn: fitted on frozen float features of the training split
    head_images: int = 2000  # of the training split, to fit it on
    recipe: dict[str, Any] | None = None  # of a model that is trained on first use: conf/model/*_nano.yaml
    dtype: str = "float32"
    trust_remote_code: bool = False
    keep: list[str] = field(default_factory=list)  # layers (fnmatch patterns) left in float, besides the output embedding


@dataclass
class DataConfig:
    """Which text, cut into windows of tokens; or which images."""

    name: str = MISSING
    source: str = MISSING  # a key of sqbench.data.SOURCES
    path: str | None = None  # a local file or folder instead of a download
    window: int = 512  # tokens
    windows: int = 16  # to evaluate on, from the start of the text
    images: int | None = 1000  # to evaluate on, a fixed draw of the test split; null is all of it
    train_path: str | None = None  # the training split, where `path` is the test split alone
    image_column: str = "image"  # of parquet files
    label_column: str = "label"


@dataclass
class CalibrationConfig:
    """What the statistics are collected on: windows or images that evaluation never sees."""

    samples: int | None = None  # windows or images, whichever the model reads; null leaves both numbers to what follows
    windows: int = 32
    images: int = 64  # of the training split
    source: str = "data"  # random: random tokens, images of noise; weights: no inputs, only what norms' weights tell of ranges
    seed: int = 0  # of the draw; follows the top-level seed
    path: str | None = None  # another text than the evaluation's
    search_windows: int = 4  # of them, how many a search over block outputs (alpha=auto) replays
    search_images: int = 16  # the same


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
    edge_bits: int | None = None  # of the first and the last layer that is quantized; null is the same as everywhere


@dataclass
class EvalConfig:
    name: str = MISSING  # a key of sqbench.evaluation.EVALUATIONS, or auto: perplexity of text, top1 of images
    resamples: int = 10_000  # of the paired bootstrap
    level: float = 0.95  # of its interval
    repetitions: int = 5  # latency: measurements, each of both models, one after the other
    warmup: int = 1  # latency: repetitions before them that do not count
    batch: int = 8  # latency: images at once; generation: prompts at once; lm_eval: requests at once
    prompt: int = 128  # latency, generation: tokens that are read at once
    decode: int = 16  # latency, generation: tokens that are written after them, one by one
    beams: int = 1  # generation: width of the beam search; 1 is greedy decoding
    tasks: list[str] = field(default_factory=list)  # lm_eval: names, YAML files, TEMPLATE:FILE; see conf/eval/lm_eval.yaml
    limit: int | None = None  # lm_eval: documents of each task, from its start; null is all
    fewshot: int | None = None  # lm_eval: examples before each question; null is the task's own number


@dataclass
class TrackerConfig:
    """Weights & Biases: `offline` writes to results_dir/wandb, `online` uploads, `disabled` does nothing."""

    mode: str = "offline"
    project: str = "sqbench"
    entity: str | None = None


@dataclass
class LimitsConfig:
    """Of one point, which needs a process of its own (`isolate`); null is none."""

    seconds: float | None = None
    memory_gb: float | None = None  # resident, 1e9 bytes


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
    layers: Any = None  # fnmatch patterns of layers, or of modules around them, to quantize; null is all, each a sweep over groups
    mixed: str | None = None  # auto: each group of layers gets a width of its own, by what it costs (sqbench/methods/mixed.py)
    budget: float | None = None  # of mixed=auto: bits per weight on average over the quantized layers, codes alone
    widths: list[int] = field(default_factory=lambda: [2, 3, 4, 6, 8])  # of mixed=auto: bits to choose from
    head: str | None = None  # own, probe or knn; null is the model's own default
    seed: int = 0
    backend: str = "sim"  # a key of sqbench.execution.BACKENDS
    device: str = "auto"
    results_dir: str = "results"
    cache_dir: str | None = None  # of calibration statistics and float results; null is results_dir/cache
    force: bool = False  # compute points again that are finished
    plan: bool = False  # print the points and their state, compute nothing
    isolate: bool | None = None  # each point in a process of its own; null: where a launcher runs several at once
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    threads: int | None = None  # of a point; null: of all cores, or of a worker's share of them
    retry: int = 0  # times that a point that failed is tried again at once


def register() -> None:
    """Tell Hydra the schema and the resolver that `conf/config.yaml` names."""
    OmegaConf.register_new_resolver("either", lambda value, default: default if value is None else value, replace=True)
    ConfigStore.instance().store(name="schema", node=RunConfig)


def check(cfg: DictConfig) -> None:
    """Raise UserError for any value that cannot work, without loading anything."""
    from sqbench.data import SOURCES
    from sqbench.data.base import CALIBRATES
    from sqbench.evaluation import EVALUATIONS, natural_evaluation
    from sqbench.execution import BACKENDS
    from sqbench.methods import METHODS, configured, scheme_of
    from sqbench.models import LOADERS
    from sqbench.models.image import HEADS

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
    kind, found = LOADERS[cfg.model.loader].kind, SOURCES[cfg.data.source].kind
    if kind != found:
        fitting = sorted(name for name, source in SOURCES.items() if source.kind == kind)
        raise UserError(f"data={cfg.data.name}: {cfg.model.name} reads {kind}, and this is {found}; data={', '.join(fitting)} work")
    if cfg.eval.name != "auto":
        choose("eval.name", EVALUATIONS)
        kinds = EVALUATIONS[cfg.eval.name].settings
        if kind not in kinds:
            raise UserError(f"eval={cfg.eval.name}: is for {' and '.join(kinds)}, {cfg.model.name} reads {kind}; eval=auto works")
    EVALUATIONS[natural_evaluation(cfg.eval.name, kind)].check(cfg.eval)
    if METHODS[cfg.method.name].trains and kind != "images":
        raise UserError(f"method={cfg.method.name}: trains on labelled images; {cfg.model.name} reads {kind}: a PTQ method works")
    if cfg.head is not None:
        choose("head", HEADS)
    choose("model.head", HEADS)
    choose("model.dtype", ("float32", "bfloat16", "float16"))
    choose("calibration.source", CALIBRATES)
    choose("tracker.mode", ("offline", "online", "disabled"))
    choose("backend", BACKENDS)
    at_least("retry", 0)
    if cfg.threads is not None:
        at_least("threads", 1)
    for key in ("limits.seconds", "limits.memory_gb"):
        if (limit := OmegaConf.select(cfg, key)) is not None and limit <= 0:
            raise UserError(f"{key}={limit:g}: more than 0 works, or null for no limit")
    at_least("data.window", 2)
    at_least("data.windows", 1)
    if cfg.data.images is not None:
        at_least("data.images", 1)
    if (samples := cfg.calibration.samples) is not None:
        at_least("calibration.samples", 1)
        size = {"text": "windows", "images": "images"}[kind]
        if (count := cfg.calibration[size]) != samples:
            raise UserError(f"calibration.samples={samples}: calibration.{size}={count} says otherwise; one of the two works")
    at_least("calibration.images", 1)
    at_least("calibration.search_images", 1)
    at_least("model.head_images", 1)
    at_least("calibration.windows", 1)
    at_least("calibration.search_windows", 1)
    at_least("eval.resamples", 100)
    for key in ("repetitions", "batch", "prompt", "decode", "beams"):
        at_least(f"eval.{key}", 1)
    at_least("eval.warmup", 0)
    for key in ("seed", "calibration.seed"):
        if not -(2**63) <= OmegaConf.select(cfg, key) < 2**63:
            raise UserError(f"{key}={OmegaConf.select(cfg, key)}: a number of 64 bits works")
    if not 0 < cfg.eval.level < 1:
        raise UserError(f"eval.level={cfg.eval.level}: a number between 0 and 1 works, 0.95 for example")
    if cfg.layers == EACH:
        raise UserError(f"layers={EACH}: stands for many points, one for each group of layers; a sweep (-m) runs them")
    scheme_of(cfg).check()
    if cfg.calibration.source == "weights" and (ops := scheme_of(cfg).ops) != "linear":
        raise UserError(f"bits.ops={ops}: calibration.source=weights says nothing of what is between layers; linear works")
    check_mixed(cfg)
    configured(cfg)
    device_of(cfg.device)
    if kind == "images" and cfg.calibration.path is not None:
        raise UserError(f"calibration.path={cfg.calibration.path}: images calibrate from the training split; null works")
    takes = {"data.path": SOURCES[cfg.data.source].takes, "data.train_path": SOURCES[cfg.data.source].takes}
    for key in ("data.path", "data.train_path", "calibration.path", "model.checkpoint"):
        path, allowed = OmegaConf.select(cfg, key), takes.get(key, ("file",))
        if path is None or (Path(path).is_file() and "file" in allowed) or (Path(path).is_dir() and "folder" in allowed):
            continue
        works = " or ".join({"file": "a file", "folder": "a folder"}[item] for item in allowed)
        works = "a UTF-8 text file" if kind == "text" and key != "model.checkpoint" else works or "null"
        there = "a folder" if Path(path).is_dir() else "a file" if Path(path).exists() else None
        raise UserError(f"{key}={path}: " + (f"is {there}; {works} works" if there else f"no such file (from {Path.cwd()})"))


def check_mixed(cfg: DictConfig) -> None:
    """Raise UserError for a mixed-precision choice that cannot work."""
    from sqbench.methods import METHODS, scheme_of

    if cfg.mixed not in (None, "auto"):
        raise UserError(f"mixed={cfg.mixed}: auto works, or null for one width in all layers")
    if not cfg.widths or not all(2 <= bits <= 8 for bits in cfg.widths):
        raise UserError(f"widths={cfg.widths}: numbers of bits from 2 to 8 work, [2,3,4,6,8] for example")
    least, most = min(cfg.widths), max(cfg.widths)
    if cfg.budget is not None and not least <= cfg.budget <= most:
        raise UserError(f"budget={cfg.budget}: no average of widths={cfg.widths}; {least} to {most} work")
    if cfg.mixed is None or METHODS[cfg.method.name].is_float:
        return
    if cfg.budget is None:
        raise UserError("mixed=auto: needs budget=..., the bits per weight on average, 4.5 for example")
    scheme = scheme_of(cfg)
    if scheme.weights is None:
        raise UserError(f"mixed=auto: bits={scheme.name} leaves weights in float; bits=w4a16 works, for example")
    if scheme.edge_bits is not None:
        raise UserError(f"mixed=auto: chooses the bits of every layer; bits.edge_bits={scheme.edge_bits} does not go with it")


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
