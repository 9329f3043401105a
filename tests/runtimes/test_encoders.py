"""Encoders in runtimes: the vectors of the simulation, for texts of any length, alone or with padding."""

from pathlib import Path
from typing import Any

import pytest
import torch
from encoders import as_sentence_transformer, load, save_encoder, sentence
from runtimes.agreement import apart, otherwise

from sqbench import api
from sqbench.errors import UserError
from sqbench.execution import lower
from sqbench.formats.format import Format
from sqbench.formats.scheme import Scheme
from sqbench.models.encoder import EncoderModel
from sqbench.models.functions import whole
from sqbench.runtimes import RUNTIMES
from sqbench.runtimes.deployment import parts_of

RELATIVE = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8, "norm_rel_ebd": "layer_norm"}
FAMILIES: dict[str, dict[str, Any]] = {
    "Bert": {},
    "Roberta": {},
    "DistilBert": {},
    "MPNet": {},
    "Electra": {},
    "ModernBert": {"local_attention": 8},  # fewer tokens than texts have
    "DebertaV2": RELATIVE,
}
MORE = [pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES if name not in ("Bert", "ModernBert", "DebertaV2")]
WEIGHTS = Scheme("weights", Format(8, granularity="channel"))
TOKENS = Scheme("tokens", Format(8, granularity="channel"), Format(8, granularity="token", dynamic=True))


def quantized(folder: Path, bits: Scheme) -> EncoderModel:
    model = load(folder)
    found = api.quantize(model, api.calibrate(model, model.example()), "rtn", bits)
    assert isinstance(found, EncoderModel)
    return found


@pytest.mark.parametrize("family", ["Bert", "ModernBert", "DebertaV2", *MORE])
def test_vectors_are_those_of_the_simulation_at_any_length(family: str, backend: str, tmp_path: Path) -> None:
    simulated = quantized(save_encoder(tmp_path / "m", family, **FAMILIES[family]), WEIGHTS)
    if (family, backend) == ("DebertaV2", "openvino"):
        with pytest.raises(UserError, match=r"backend=openvino: \S+pos_key_proj reads constants alone"):
            lower(simulated, backend)
        return
    executed = lower(simulated, backend)
    for shape in ((1, 5), (3, 17)):  # the example that was traced has 12 tokens
        assert apart(executed, simulated, simulated.like(shape)) < 1e-5
    assert otherwise(executed) == {}
    assert executed.stored_bytes == simulated.stored_bytes


@pytest.mark.parametrize(
    ("end", "options"),
    [
        pytest.param("Model", {}, marks=pytest.mark.slow),
        pytest.param("ForMaskedLM", {}, marks=pytest.mark.slow),
        ("ForSequenceClassification", {"num_labels": 3}),
    ],
)
@pytest.mark.usefixtures("exact")
def test_rounded_inputs_run_in_integers_under_any_head(end: str, options: dict[str, int], backend: str, tmp_path: Path) -> None:
    simulated = quantized(save_encoder(tmp_path / "m", end=end, **options), TOKENS)
    executed = lower(simulated, backend)
    assert apart(executed, simulated, simulated.like((2, 9))) < 2e-2
    assert otherwise(executed) == {}


@pytest.mark.parametrize(
    "mode", [pytest.param("cls_token", marks=pytest.mark.slow), "mean_tokens", pytest.param("max_tokens", marks=pytest.mark.slow)]
)
@torch.no_grad()
def test_a_graph_with_pooling_reads_padded_texts(mode: str, backend: str, tmp_path: Path) -> None:
    simulated = quantized(as_sentence_transformer(save_encoder(tmp_path / "m"), f"pooling_mode_{mode}"), WEIGHTS)
    runtime, function = RUNTIMES[backend], whole(simulated)
    session = runtime.start(runtime.write(function, parts_of(function.module)))
    texts = [sentence(number) for number in range(4)]
    padded = simulated.tokenizer(texts, padding=True, truncation=True, max_length=simulated.longest, return_tensors="pt")
    assert not padded["attention_mask"].all()
    (vectors,) = session(*(padded[name] for name in function.example))
    for text, vector in zip(texts, vectors, strict=True):
        alone, _ = simulated.encode([(text,)])
        assert torch.allclose(vector, simulated.forward(alone[0].unsqueeze(0))[0], atol=1e-5)
