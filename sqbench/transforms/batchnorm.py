"""BatchNorm folding (Jacob et al., 2018, section 3.2): every recipe ends with it, because no runtime executes a BatchNorm alone."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqbench.parts.task import Task
from sqbench.transforms.base import TRANSFORMS, BatchNormFold, Change, Transform


@TRANSFORMS.register("batchnorm")
@dataclass(frozen=True)
class FoldBatchNorms(Transform):
    """Fold every BatchNorm into the layer before it. It comes last: a norm that is folded away can be the source of a move."""

    def changes(self, task: Task) -> Sequence[Change]:
        return [BatchNormFold(*pair) for pair in task.topology.batchnorms]
