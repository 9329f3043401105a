"""Metrics of a small sweep, as committed: who changes a number raises REVISION. Intervals alone are made again from samples.

python tests/test_golden.py        # writes tests/golden.json from the code as it is
"""

import json
import os
import random
import sys
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import torch
from cli import put_back, tiny_run

from sqbench import run
from sqbench.records.store import Store
from sqbench.running.identity import REVISION

GOLDEN = Path(__file__).parent / "golden.json"
SWEEPS = (
    ("method=minmax,ema_minmax,mean_minmax,percentile,mse,histogram,entropy", "bits=w8a8,w6a6"),
    ("method=smoothquant", "alpha=0.3,0.8", "bits=w8a8_dynamic"),
    ("method=rtn,mse,awq", "bits=w4a16", "bits.weights.group_size=32"),
    ("method=awq,smoothquant", "alpha=auto", "bits=w4a8"),
    ("method=rtn", "bits=w6a6", "bits.ops=full"),
)
# Relative. Processors add in different orders. An input at a rounding edge then gets another code, which moves a divergence most.
TOLERANCE = {"kl_to_fp": 0.02, "agreement": 0.02}
ELSE = 0.003


def save_model(folder: Path) -> None:
    """A random Llama, the same on every machine: training would differ in the last digits, and then in the first ones."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from benchmarks.llama import save_byte_tokenizer

    save_byte_tokenizer(folder)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )
    module = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(drawn * 0.3 + 1 if parameter.dim() == 1 else drawn / parameter.shape[1] ** 0.5)
        for layer in module.model.layers:  # channels that are outliers, as in real models
            layer.input_layernorm.weight[:2] *= 8
            layer.post_attention_layernorm.weight[:2] *= 8
    module.save_pretrained(folder)


def save_text(path: Path) -> None:
    """Made-up words: those of Python's own manual differ between its versions."""
    draw = random.Random(0)
    words = ["".join(draw.choice("etaoinshrdlu") for _ in range(draw.randint(2, 8))) for _ in range(300)]
    path.write_text(" ".join(draw.choice(words) for _ in range(3000)), encoding="utf-8")


def label(identity: dict) -> str:
    """What tells the points of the sweeps apart."""
    method, scheme = identity["method"], identity["scheme"]
    return f"{method['name']} {method.get('alpha', '')} {scheme['name']}".replace("  ", " ")


def found(folder: Path) -> dict[str, dict[str, float]]:
    """Point -> metric -> value, of the sweeps computed now by the command line."""
    save_model(folder)
    save_text(folder / "text.txt")
    sizes = ("data.windows=8", "eval.resamples=1000")
    for sweep in SWEEPS:
        with put_back(), Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            sys.argv = ["sqbench.run", "-m", *tiny_run(folder, folder / "text.txt", folder / "results", *sizes, *sweep)]
            with pytest.raises(SystemExit) as end:
                run.main()
        assert not end.value.code, sweep
    points = {}
    for record in Store(folder / "results").records():
        layers, change = record.quantized["per_layer"], record.delta["perplexity"]
        sqnr = {
            f"mean {key}": sum(layer[key] for layer in layers) / len(layers)
            for key in ("weight_sqnr_db", "input_sqnr_db")
            if key in layers[0]
        }
        interval = {f"perplexity {key}": change[key] + record.baseline["perplexity"] for key in ("low", "high")}
        metrics = {key: record.metrics[key] for key in ("perplexity", "kl_to_fp", "agreement", "weight_bytes")}
        points[label(record.identity)] = metrics | interval | sqnr
    return dict(sorted(points.items()))


def differing(points: dict[str, dict[str, float]], golden: dict[str, dict[str, float]]) -> list[str]:
    """Metrics beyond their tolerance, with both values."""
    return [
        f"{point}: {metric} is {points[point][metric]:.6g}, was {value:.6g}"
        for point, metrics in golden.items()
        for metric, value in metrics.items()
        if points[point][metric] != pytest.approx(value, rel=TOLERANCE.get(metric, ELSE))
    ]


@pytest.mark.slow
def test_who_changes_a_number_raises_revision(tmp_path: Path) -> None:
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    points = found(tmp_path)
    assert sorted(points) == sorted(golden["points"])
    assert golden["revision"] == REVISION, "REVISION was raised: python tests/test_golden.py writes what holds now"
    assert differing(points, golden["points"]) == [], "numbers changed: raise REVISION, then python tests/test_golden.py"


def test_a_changed_number_is_noticed() -> None:
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))["points"]
    changed = {point: dict(metrics) for point, metrics in golden.items()}
    first = next(iter(changed))
    changed[first]["perplexity"] *= 1.005
    assert [line.split(" is ")[0] for line in differing(changed, golden)] == [f"{first}: perplexity"]


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        written = {"revision": REVISION, "points": found(Path(place))}
    GOLDEN.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
