"""The change of a float model's output by folding: smooth the whole model at three strengths, and compare the outputs.

python -m scripts.fold_error model=smollm2_135m
python -m scripts.fold_error model=vit_nano
"""

import sys

import torch

from sqbench import api
from sqbench.console.quiet import quiet
from sqbench.formats.scheme import Scheme
from sqbench.recipes.configured import named


@torch.no_grad()
def main() -> None:
    quiet()
    model, examples = api.load("calibration.windows=4", *sys.argv[1:])
    statistics = api.calibrate(model, examples.calibration, search=1)
    inputs = statistics.sample
    before = model.forward(inputs)
    found = model.topology
    print(f"{model.name}: {len(found.groups)} groups, {len(found.pairs)} pairs, {len(found.refused)} refused")
    for alpha in (0.3, 0.5, 0.8):
        for pairs in (False, True):
            folded = api.quantize(model, statistics, named("smoothquant", alpha=alpha, pairs=pairs), Scheme("fp"))
            after = folded.forward(inputs)
            error = ((after - before).norm() / before.norm()).item()
            worst = ((after - before).abs().max() / before.abs().max()).item()
            print(
                f"alpha {alpha} pairs {pairs!s:5}  relative error of the output {error:.2e}  largest / largest output {worst:.2e}"
            )


if __name__ == "__main__":
    main()
