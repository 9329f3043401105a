"""Evaluations: metrics and per-example outcomes, paired with the float model's."""

import difflib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sqbench.config import CONF_DIR, EvalConfig
from sqbench.console.overrides import must_be
from sqbench.errors import UserError, known
from sqbench.evaluation.accuracy import ACCURACY
from sqbench.evaluation.base import Evaluation, EvaluationError, Result, Settings
from sqbench.evaluation.generation import GENERATION
from sqbench.evaluation.harness import LM_EVAL
from sqbench.evaluation.latency import LATENCY
from sqbench.evaluation.perplexity import PERPLEXITY
from sqbench.evaluation.sentences import SENTENCES

EVALUATIONS: dict[str, Evaluation] = {
    "perplexity": PERPLEXITY,
    "top1": ACCURACY,
    "sentences": SENTENCES,
    "latency": LATENCY,
    "generation": GENERATION,
    "lm_eval": LM_EVAL,
}

__all__ = [
    "EVALUATIONS",
    "Chosen",
    "Evaluation",
    "EvaluationError",
    "Result",
    "Settings",
    "evaluation_of",
    "natural_evaluation",
    "own_settings",
]


@dataclass(frozen=True)
class Chosen:
    """The evaluation that a configuration asks for.

    Attributes:
        name: a key of `EVALUATIONS`.
        kind: the kind of data: `text`, `sentences` or `images`.
        settings: its own settings.
        resamples: of the sign-flip test, and of the bootstrap of speeds.
        level: of the intervals.
    """

    name: str
    kind: str
    settings: Settings
    resamples: int
    level: float

    @property
    def evaluation(self) -> Evaluation:
        return EVALUATIONS[self.name]

    def check(self) -> None:
        """Raise UserError for a value that cannot work. Nothing is loaded."""
        if self.resamples < 100:
            raise UserError(f"eval.resamples={self.resamples}: must be 100 or more")
        if not 0 < self.level < 1:
            raise UserError(f"eval.level={self.level}: must be a number between 0 and 1, 0.95 for example")
        self.settings.check()

    def used(self) -> dict[str, Any]:
        """The own settings that the numbers depend on, as plain data."""
        return self.settings.used(self.kind)

    def identity(self) -> dict[str, Any]:
        """Everything of the evaluation that can change a number, as plain data."""
        beside = {} if self.evaluation.beside is None else {"beside": self.evaluation.beside}
        shared = {"resamples": self.resamples, "level": self.level}
        return {"name": self.name, **self.settings.identified(self.kind), **self.settings.inputs(), **beside, **shared}


def natural_evaluation(name: str, kind: str) -> str:
    """The evaluation `name`. For `auto` it is the first that takes this kind of data."""
    return next(known for known, evaluation in EVALUATIONS.items() if kind in evaluation.kinds) if name == "auto" else name


def evaluation_of(chosen: DictConfig, kind: str, model: str = "the model") -> Chosen:
    """The evaluation of the `eval` of a configuration, for a kind of data. Its values are typed and not checked.

    Args:
        model: its name, for messages.

    Raises:
        UserError: the evaluation is unknown or is for other data, a key is unknown, or a value has the wrong type.
    """
    content: dict[str, Any] = OmegaConf.to_container(chosen, resolve=True)  # type: ignore[assignment]
    common = {field.name: content.pop(field.name) for field in fields(EvalConfig)}
    name = natural_evaluation(common["name"], kind)
    if name not in EVALUATIONS:
        raise UserError(f"eval.name={name}: {known(name, EVALUATIONS)}")
    if kind not in (kinds := EVALUATIONS[name].kinds):
        raise UserError(f"eval={name}: is for {' and '.join(kinds)}, {model} reads {kind}; use eval=auto")
    cls = EVALUATIONS[name].settings
    keys = [field.name for field in fields(cls)]
    for key in content:
        if key not in keys:
            raise UserError(f"eval.{key}: {_elsewhere(key, common['name'], keys)}")
    needed = [field.name for field in fields(cls) if field.default is MISSING]  # the others were added later
    if lacking := [key for key in needed if key not in content]:
        raise UserError(f"eval.name={name}: lacks eval.{lacking[0]}; use eval={name}, which brings its settings")
    shared = _typed(EvalConfig, common)
    return Chosen(name, kind, cls(**_typed(cls, content)), shared["resamples"], shared["level"])


def _typed(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values in the types of a dataclass, as Hydra converts them."""
    schema = OmegaConf.structured(cls)
    OmegaConf.set_readonly(schema, False)  # frozen dataclasses make read-only configs
    for key, value in values.items():
        try:
            OmegaConf.update(schema, key, value)
        except OmegaConfBaseException as error:
            raise UserError(f"eval.{key}={value}: {must_be(schema, key, value)}") from error
    found: dict[str, Any] = OmegaConf.to_container(schema)  # type: ignore[assignment]
    return found


def _elsewhere(key: str, name: str, keys: list[str]) -> str:
    """The tail of a message on a key that an evaluation lacks: the evaluations that have it, or a similar one."""
    owners = {other: [field.name for field in fields(one.settings)] for other, one in EVALUATIONS.items()}
    shared = [field.name for field in fields(EvalConfig)]
    every = {*shared, *(item for names in owners.values() for item in names)}
    meant = key if key in every else next(iter(difflib.get_close_matches(key, [*keys, *sorted(every)], n=1)), None)
    if meant is None or meant in (*keys, *shared):
        return known(key, [*shared, *keys])
    having = [other for other, names in owners.items() if meant in names]
    hint = "" if meant == key else f"did you mean {meant}? "
    return f"{hint}eval={name} has no {meant}; eval={', '.join(having)} {'have' if len(having) > 1 else 'has'} it"


@cache
def own_settings(name: str, kind: str) -> dict[str, Any]:
    """The default own settings of an evaluation that its numbers depend on. `conf/eval` is their only source."""
    content: dict[str, Any] = OmegaConf.to_container(OmegaConf.load(CONF_DIR / "eval" / f"{name}.yaml"))  # type: ignore[assignment]
    content.pop("name")
    return EVALUATIONS[name].settings(**content).used(kind)
