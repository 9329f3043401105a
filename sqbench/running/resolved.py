"""A configuration, parsed once. No stage of a point reads the configuration itself."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf

from sqbench.config import EACH, CalibrationConfig, DataConfig, LimitsConfig, ModelConfig, RunConfig, RunOptions, TrackerConfig
from sqbench.console.overrides import literal
from sqbench.data import SOURCES
from sqbench.errors import UserError, known
from sqbench.evaluation import Chosen, evaluation_of
from sqbench.formats.scheme import Scheme
from sqbench.models import LOADERS
from sqbench.recipes.configured import recipe_of, scheme_of
from sqbench.recipes.recipe import Recipe

T = TypeVar("T")


@dataclass(frozen=True)
class Resolved:
    """A parsed configuration. Its types hold, and `sqbench.running.checks` checks its values.

    Attributes:
        recipe, scheme, evaluation: what `method`, `bits`, `eval` and the keys beside them ask for.
        head: of an image model or an encoder: own, probe or knn.
        mixed, budget, widths: of mixed precision.
        options: settings that change no number.
        config: the whole configuration as plain data, for the record.
    """

    recipe: Recipe
    scheme: Scheme
    evaluation: Chosen
    model: ModelConfig
    data: DataConfig
    calibration: CalibrationConfig
    head: str
    mixed: str | None
    budget: float | None
    widths: tuple[int, ...]
    seed: int
    noise: int
    backend: str
    device: str
    blockwise: bool
    options: RunOptions
    config: dict[str, Any]

    @property
    def kind(self) -> str:
        """The kind of data: `text`, `sentences` or `images`."""
        return self.evaluation.kind

    @property
    def propagate(self) -> bool:
        """Whether each block is calibrated on what the quantized blocks before it write."""
        return self.calibration.propagate and not self.recipe.is_float and not self.recipe.stored and not self.scheme.is_float


def resolve(cfg: DictConfig) -> Resolved:
    """Parse a configuration. Nothing is loaded.

    Raises:
        UserError: a key is unknown or lacks a value, a value has the wrong type, or a part of the configuration is unknown.
    """
    _refuse_unknown(cfg)
    _refuse_missing(cfg)
    _refuse_changed_auto(cfg)
    if cfg.layers == EACH:
        raise UserError(f"layers={EACH}: stands for many points, one for each group of layers; a sweep (-m) runs them")
    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    model, data = _typed(ModelConfig, cfg.model), _typed(DataConfig, cfg.data)
    options = {field.name: config[field.name] for field in fields(RunOptions)}
    options |= {"limits": _typed(LimitsConfig, cfg.limits), "tracker": _typed(TrackerConfig, cfg.tracker)}
    return Resolved(
        evaluation=evaluation_of(cfg.eval, _kind(model, data), model.name),
        recipe=recipe_of(cfg),
        scheme=scheme_of(cfg),
        model=model,
        data=data,
        calibration=_typed(CalibrationConfig, cfg.calibration),
        head=cfg.head or model.head,
        mixed=cfg.mixed,
        budget=cfg.budget,
        widths=tuple(cfg.widths),
        seed=cfg.seed,
        noise=cfg.noise,
        backend=cfg.backend,
        device=cfg.device,
        blockwise=cfg.blockwise,
        options=RunOptions(**options),
        config=config,
    )


def restored(config: Mapping[str, Any]) -> Resolved:
    """Parse a configuration that is plain data, as in a record.

    Raises:
        UserError: as `resolve`.
        OmegaConfBaseException: a key or a value is not of this version.
    """
    cfg = OmegaConf.merge(OmegaConf.structured(RunConfig), _literal(config))
    assert isinstance(cfg, DictConfig)
    return resolve(cfg)


def _literal(value: Any) -> Any:
    """Plain data in which OmegaConf reads every text as it is."""
    if isinstance(value, Mapping):
        return {key: _literal(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_literal(inner) for inner in value]
    return literal(value) if isinstance(value, str) else value


def _typed(kind: type[T], node: Any) -> T:
    """A part of a configuration as the dataclass that defines its keys."""
    found = OmegaConf.to_object(node)
    assert isinstance(found, kind)
    return found


def _refuse_unknown(node: DictConfig, place: str = "") -> None:
    """Raise UserError for a key that nothing reads. Hydra accepts any key after a `+`."""
    kind = OmegaConf.get_type(node)
    names = [field.name for field in fields(kind)] if is_dataclass(kind) else None  # a method's are checked by the method
    for key in map(str, node):
        if names is not None and key not in names:
            raise UserError(f"{place}{key}: {known(key, names)}")
        if not OmegaConf.is_missing(node, key) and isinstance(node[key], DictConfig):
            _refuse_unknown(node[key], f"{place}{key}.")


def _refuse_missing(cfg: DictConfig) -> None:
    """Raise UserError for a key without a value."""
    if missing := sorted(OmegaConf.missing_keys(cfg)):
        hint = "give a hub id or a local folder" if missing[0] == "model.name" else "it has no default"
        raise UserError(f"{missing[0]}=???: needs a value; {hint}")


def _refuse_changed_auto(cfg: DictConfig) -> None:
    """Raise UserError for a field of `bits=auto`, which has none."""
    if cfg.bits.name == "auto" and (cfg.bits.weights is not None or cfg.bits.activations is not None):
        changed = "bits.weights" if cfg.bits.weights is not None else "bits.activations"
        raise UserError(
            f"{changed}: bits=auto is the method's own scheme and has no fields; name the scheme to change, for example bits=w4a16"
            f" {changed}.bits=3"
        )


def _kind(model: ModelConfig, data: DataConfig) -> str:
    """The kind of data that the model reads.

    Raises:
        UserError: the model or the data comes from nowhere known, or the data is of another kind.
    """
    for key, name, names in (("model.loader", model.loader, LOADERS), ("data.source", data.source, SOURCES)):
        if name not in names:
            raise UserError(f"{key}={name}: {known(name, names)}")
    kinds, found = LOADERS[model.loader].finds, SOURCES[data.source].kind
    if found not in kinds:
        fitting = sorted(name for name, source in SOURCES.items() if source.kind in kinds)
        raise UserError(
            f"data={data.name}: {model.name} reads {' or '.join(kinds)}, and this is {found}; use data={', '.join(fitting)}"
        )
    return found
