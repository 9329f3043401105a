"""Four verbs, for notebooks and for the runner alike: load, calibrate, quantize, evaluate."""

from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig
from torch import Tensor

from sqbench import calibration, config, data, models
from sqbench.calibration import Statistics
from sqbench.data import Windows
from sqbench.errors import UserError
from sqbench.evaluation import EVALUATIONS, Result
from sqbench.methods import METHODS, Method, Task, configured, scheme_of
from sqbench.methods.apply import quantize as _quantize
from sqbench.models.language import LanguageModel
from sqbench.quant.formats import Scheme


def configure(*overrides: str) -> DictConfig:
    """The configuration that a command line with these overrides has, checked.

    Raises:
        UserError: a value cannot work.
    """
    config.register()
    if GlobalHydra.instance().is_initialized():  # inside a Hydra application, whose search path serves
        cfg = compose(config_name="config", overrides=list(overrides))
    else:
        with initialize_config_dir(str(config.CONF_DIR), version_base="1.3"):
            cfg = compose(config_name="config", overrides=list(overrides))
    config.check(cfg)
    return cfg


def load(*overrides: str, cfg: DictConfig | None = None) -> tuple[LanguageModel, Windows]:
    """A model and its text windows, named as on the command line: `load("model=smollm2_135m", "data=pydoc")`.

    Raises:
        UserError: the model or the text cannot be had, or do not fit each other.
    """
    cfg = cfg if cfg is not None else configure(*overrides)
    source = models.locate(cfg.model)
    check_window(cfg, source)
    model = models.load(cfg.model, source, config.device_of(cfg.device))
    return model, data.cut(model.tokenizer, *data.fetch(cfg.data, cfg.calibration), cfg.data, cfg.calibration)


def check_window(cfg: DictConfig, source: models.Source) -> None:
    """Raise UserError if a window is longer than the model's context."""
    if source.context is not None and cfg.data.window > source.context:
        raise UserError(f"data.window={cfg.data.window}: {cfg.model.name} takes at most {source.context} tokens")


def calibrate(model: LanguageModel, batches: Tensor, *, search: int = 4, folder: Path | None = None) -> Statistics:
    """Statistics of every quantizable input over token windows [B, window], from one streaming pass.

    Args:
        search: how many of the windows a search over block outputs may replay.
        folder: a cache; None computes without one.
    """
    arguments = (model.module, model.body, model.topology.sites, batches, search)
    if folder is None:
        return calibration.collect(*arguments)
    return calibration.collect_cached(*arguments, fingerprint=model.fingerprint, folder=folder)


def quantize(
    model: LanguageModel,
    statistics: Statistics,
    method: str | Method = "smoothquant",
    bits: str | Scheme = "auto",
    alpha: float | str | None = None,
    **parameters: Any,
) -> LanguageModel:
    """A quantized model; the float model stays as it is.

    Args:
        method, bits: names in `conf/method` and `conf/bits`, or the objects themselves.
        alpha: a number in [0, 1] or `auto`, for the methods that have one.
        parameters: the method's own, for example `pairs=True`.

    Raises:
        UserError: a name or value is unknown, or the method finds nothing to work on.
    """
    if isinstance(method, str):
        overrides = [f"method={method}"] + [f"method.{key}={value}" for key, value in parameters.items()]
        overrides += [f"bits={bits}"] * isinstance(bits, str) + [f"alpha={alpha}"] * (alpha is not None)
        cfg = configure(*overrides)
        method, bits = configured(cfg), scheme_of(cfg) if isinstance(bits, str) else bits
    if isinstance(bits, str):
        bits = scheme_of(configure("method=rtn" if bits == "auto" else f"bits={bits}"))
    return _quantize(Task(model, statistics, bits), method)


def evaluate(model: LanguageModel, windows: Windows, reference: Result | None = None, *, name: str = "perplexity") -> Result:
    """Metrics and per-window outcomes; with the float model's result as `reference`, paired with it."""
    return EVALUATIONS[name](model, windows, reference)


__all__ = ["METHODS", "calibrate", "configure", "evaluate", "load", "quantize"]
