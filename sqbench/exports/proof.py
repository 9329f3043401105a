"""The proof of an export: a program that is not ours loads it, and its predictions are held against the simulated model's."""

from dataclasses import dataclass
from typing import Any

import torch

from sqbench.data import Examples
from sqbench.evaluation import EVALUATIONS, natural_evaluation
from sqbench.models.base import Model

RESAMPLES, LEVEL = 10_000, 0.95


@dataclass(frozen=True)
class Proof:
    """How a foreign program's predictions on the evaluation examples differ from the simulated model's.

    Attributes:
        program: the program and its versions.
        dtype: in which both computed.
        largest: largest difference of an output, and `scale` the largest output. Outputs are logits, scores or vectors.
        agreement: share of predictions whose most likely class or token is the same. None where the metric tells none.
        metric: the name of the metric that `__str__` tells.
        metrics: of the foreign program.
        change: of each metric against the simulated model's, with interval and test.
    """

    program: str
    dtype: str
    largest: float
    scale: float
    agreement: float | None
    metric: str
    metrics: dict[str, float]
    change: dict[str, Any]

    def __str__(self) -> str:
        change = self.change[self.metric]
        told = (
            f"largest difference of an output {self.largest:.3g} of {self.scale:.3g}",
            *([] if self.agreement is None else [f"the same most likely answer in {100 * self.agreement:.2f} %"]),
            f"{self.metric} {self.metrics[self.metric]:.6g} ({change['value']:+.3g} [{change['low']:.3g}, {change['high']:.3g}])",
        )
        return f"{self.program} in {self.dtype}: {', '.join(told)}"


@torch.no_grad()
def compared(simulated: Model, foreign: Model, examples: Examples, *, program: str, dtype: str) -> Proof:
    """Run both models on all evaluation examples, and compare them.

    Args:
        simulated: the model that was exported. It is simulated, not executed in integers.
        foreign: computes in the foreign program.
        program, dtype: as in `Proof`.
    """
    evaluation = EVALUATIONS[natural_evaluation("auto", simulated.kind)]
    reference = evaluation.run(simulated, examples, None)
    result = evaluation.run(foreign, examples, reference)
    largest = scale = 0.0
    for inputs in examples.inputs():
        own, other = simulated.forward(inputs).float(), foreign.forward(inputs).float()
        largest, scale = max(largest, float((own - other).abs().max())), max(scale, float(own.abs().max()))
    changes = evaluation.differences(result.samples, RESAMPLES, LEVEL)
    return Proof(
        program,
        dtype,
        largest,
        scale,
        result.metrics.get("agreement"),
        evaluation.headline(result.metrics),
        result.metrics,
        {name: difference.as_dict() for name, difference in changes.items()},
    )
