"""What an encoder says about texts, against transformers, scipy and a loop over single tokens."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from encoders import as_sentence_transformer, classes, load, pairs, save_encoder
from scipy import stats
from sklearn import metrics

from sqbench import api
from sqbench.config import CalibrationConfig, DataConfig
from sqbench.data.labelled_text import fetch
from sqbench.data.sentences import SentenceExamples
from sqbench.errors import UserError
from sqbench.evaluation import EVALUATIONS, EvaluationError
from sqbench.evaluation.sentences import SENTENCES
from sqbench.models.encoder import EncoderModel
from sqbench.statistics import COLLECTORS

SCORED = {"text": "a", "second": "b", "score": "score"}


def made(model: EncoderModel, path: Path, columns: dict[str, str] | None = SCORED, count: int = 24) -> SentenceExamples:
    data = DataConfig(name="mine", source="labelled_text", path=str(path), columns=columns, sentences=count)
    return fetch(data, CalibrationConfig()).examples(model, data, CalibrationConfig(sentences=8))


def quantized(model: EncoderModel, examples: SentenceExamples, **options: Any) -> EncoderModel:
    seen = api.calibrate(model, examples.calibration, needs=COLLECTORS)
    found = api.quantize(model, seen, **{"method": "rtn", "bits": "w4a16", **options})
    assert isinstance(found, EncoderModel)
    return found


def test_similarities_are_those_of_a_padded_batch(tmp_path: Path) -> None:
    folder = save_encoder(tmp_path / "m")
    model = load(folder)
    examples = made(model, pairs(tmp_path / "t.csv"))
    result = api.evaluate(model, examples)
    own, tokenizer = transformers.AutoModel.from_pretrained(folder), transformers.AutoTokenizer.from_pretrained(folder)
    rows = fetch(
        DataConfig(name="t", source="labelled_text", path=str(tmp_path / "t.csv"), columns=SCORED, sentences=24),
        CalibrationConfig(),
    ).test
    vectors = []
    for place in (0, 1):
        batch = tokenizer([row.texts[place] for row in rows], padding=True, return_tensors="pt")
        with torch.no_grad():
            mask = batch["attention_mask"].unsqueeze(-1)
            vectors.append((own(**batch)[0] * mask).sum(1) / mask.sum(1))
    scores = torch.nn.functional.cosine_similarity(*vectors).numpy()
    gold = [row.target for row in rows]
    assert result.samples["score"].to_numpy() == pytest.approx(scores, abs=1e-5)
    assert result.metrics["spearman"] == pytest.approx(stats.spearmanr(scores, gold).statistic, abs=1e-4)
    assert result.metrics["pearson"] == pytest.approx(stats.pearsonr(scores, gold).statistic, abs=1e-4)


def test_a_quantized_model_is_paired_with_the_float_one(tmp_path: Path) -> None:
    model = load(save_encoder(tmp_path / "m"))
    examples = made(model, pairs(tmp_path / "t.csv"))
    base = SENTENCES.as_reference(api.evaluate(model, examples))
    assert base.metrics["cosine_to_fp"] == 1
    same = api.evaluate(model, examples, base)
    assert same.metrics == pytest.approx(base.metrics)
    result = api.evaluate(quantized(model, examples, bits="w3a16"), examples, base)
    assert 0.5 < result.metrics["cosine_to_fp"] < 1
    assert result.metrics["weight_bytes"] < base.metrics["weight_bytes"]
    assert result.samples["score_fp"].tolist() == base.samples["score"].tolist()
    found = SENTENCES.differences(result.samples, 200, 0.95)
    assert found.keys() == {"spearman", "pearson"}
    for name, change in found.items():
        assert change.value == pytest.approx(result.metrics[name] - base.metrics[name])
        assert change.low <= change.value <= change.high
    assert SENTENCES.declared(result.samples).keys() == {"spearman", "pearson", "cosine_to_fp", "weight_bytes"}


def test_classes_have_accuracy_f1_and_mcc(tmp_path: Path) -> None:
    words = {"id2label": {0: "other", 1: "good"}, "label2id": {"other": 0, "good": 1}}
    model = load(save_encoder(tmp_path / "m", end="ForSequenceClassification", **words))
    examples = made(model, classes(tmp_path / "t.jsonl"), None)
    base = SENTENCES.as_reference(api.evaluate(model, examples))
    assert examples.targets is not None
    label, predicted = examples.targets, base.samples["predicted"]
    assert base.metrics["accuracy"] == metrics.accuracy_score(label, predicted)
    assert base.metrics["f1"] == pytest.approx(metrics.f1_score(label, predicted, zero_division=0))
    assert base.metrics["mcc"] == pytest.approx(metrics.matthews_corrcoef(label, predicted))
    result = api.evaluate(quantized(model, examples), examples, base)
    assert result.metrics["kl_to_fp"] > 0
    assert result.metrics["agreement"] == (result.samples["predicted"] == base.samples["predicted"]).mean()
    assert SENTENCES.differences(result.samples, 200, 0.95).keys() == {"accuracy", "f1", "mcc"}


def test_a_score_of_the_models_own_is_a_regression(tmp_path: Path) -> None:
    model = load(save_encoder(tmp_path / "m", end="ForSequenceClassification", num_labels=1))
    examples = made(model, pairs(tmp_path / "t.csv"))
    result = api.evaluate(model, examples)
    assert all(int(one[1].max()) == 1 for one in examples.evaluation.tensors)  # both texts are read together
    expected = stats.spearmanr(result.samples["score"], examples.targets).statistic
    assert result.metrics["spearman"] == pytest.approx(expected)


def test_pseudo_perplexity_masks_one_token_at_a_time(tmp_path: Path) -> None:
    model = load(save_encoder(tmp_path / "m", end="ForMaskedLM"))
    examples = made(model, pairs(tmp_path / "t.csv"), {"text": "a"}, count=6)
    result = api.evaluate(model, examples)
    nll, tokens = 0.0, 0
    for text in examples.evaluation.tensors:
        for place in range(1, text.shape[1] - 1):  # but [CLS] and [SEP]
            masked = text.clone()
            masked[0, place] = model.tokenizer.mask_token_id
            with torch.no_grad():
                logits = model.forward(masked.unsqueeze(0))[0, place].double()
            nll -= float(logits.log_softmax(0)[text[0, place]])
            tokens += 1
    assert result.samples["tokens"].sum() == tokens
    assert result.metrics["pseudo_perplexity"] == pytest.approx(np.exp(nll / tokens), rel=1e-5)
    base = SENTENCES.as_reference(result)
    worse = api.evaluate(quantized(model, examples, bits="w3a16"), examples, base)
    assert SENTENCES.differences(worse.samples, 200, 0.95).keys() == {"pseudo_perplexity"}


@pytest.mark.parametrize(
    ("method", "bits"),
    [
        ("minmax", "w8a8"),
        ("percentile", "w8a8"),
        ("rtn", "w8a8_dynamic"),
        ("rtn", "w4a16"),
        ("awq", "w4a16"),
        ("gptq", "w4a16"),
    ],
)
def test_methods_work_on_a_model_with_norms_behind(method: str, bits: str, tmp_path: Path) -> None:
    model = load(as_sentence_transformer(save_encoder(tmp_path / "m")))
    examples = made(model, pairs(tmp_path / "t.csv"))
    bits_of = {} if bits != "w4a16" else {"bits": "w4a16_g32"}
    found = quantized(model, examples, **{"method": method, "bits": bits, **bits_of})
    assert found.report["coverage"] > 0.9
    base = SENTENCES.as_reference(api.evaluate(model, examples))
    assert api.evaluate(found, examples, base).metrics["cosine_to_fp"] > 0.9
    groups = {entry["group"] for entry in found.report["refused"]}
    assert any("LayerNorm" in group for group in groups)  # its output is also added to what comes later, so no scale moves there


def test_smoothquant_works_on_what_can_be_folded_and_names_the_rest(tmp_path: Path) -> None:
    """A norm's output is also added to what comes later. Values and what reads them are left."""
    model = load(save_encoder(tmp_path / "m"))
    examples = made(model, pairs(tmp_path / "t.csv"))
    refusal = (
        r"has no norm -> linear group .*LayerNorm -> query, key, value: .*; use method\.pairs=true, which smooths its 2 linear"
    )
    with pytest.raises(UserError, match=refusal):
        quantized(model, examples, method="smoothquant", bits="w8a8_dynamic")
    found = quantized(model, examples, method="smoothquant", bits="w8a8_dynamic", pairs=True)
    assert [group["source"].rpartition(".")[2] for group in found.report["groups"]] == ["value", "value"]
    assert len(found.report["refused"]) >= 3


def test_calibration_sees_the_tokens_of_the_texts_and_no_other(tmp_path: Path) -> None:
    model = load(as_sentence_transformer(save_encoder(tmp_path / "m")))
    examples = made(model, pairs(tmp_path / "t.csv"))
    statistics = api.calibrate(model, examples.calibration, needs=["gram"])
    tokens = sum(batch.shape[2] for batch in examples.calibration)
    assert {one.tokens for one in statistics.inputs.values()} == {tokens}
    rows = []
    layer = model.module.get_submodule(model.topology.layers[0])
    handle = layer.register_forward_pre_hook(lambda module, args: rows.append(args[0].double().flatten(0, -2)))
    for batch in examples.calibration:
        model.body(batch)
    handle.remove()
    seen = torch.cat(rows)
    one = statistics.inputs[model.topology.layers[0]]
    assert torch.allclose(one.high.double(), seen.amax(0), atol=1e-6)
    assert torch.allclose(one.gram.matrix.double().squeeze(), seen.T @ seen, rtol=1e-4, atol=1e-3)


def test_blocks_can_be_calibrated_one_after_the_other(tmp_path: Path) -> None:
    model = load(as_sentence_transformer(save_encoder(tmp_path / "m")))
    examples = made(model, pairs(tmp_path / "t.csv"))
    found = quantized(model, examples, method="gptq", bits="w4a16_g32", propagate=True)
    base = SENTENCES.as_reference(api.evaluate(model, examples))
    assert api.evaluate(found, examples, base).metrics["cosine_to_fp"] > 0.9


def test_nan_is_named(tmp_path: Path) -> None:
    model = load(save_encoder(tmp_path / "m"))
    examples = made(model, pairs(tmp_path / "t.csv"))
    model.module.encoder.layer[1].output.dense.weight[0, 0] = float("nan")
    with pytest.raises(
        EvaluationError, match=r"the loss of row \d+ .* is nan; the first layer .* encoder\.layer\.1\.output\.dense"
    ):
        api.evaluate(model, examples)


def test_sentences_are_timed_in_batches(tmp_path: Path) -> None:
    model = load(save_encoder(tmp_path / "m"))
    examples = made(model, pairs(tmp_path / "t.csv"))
    result = api.evaluate(model, examples, name="latency", repetitions=2, warmup=0, batch=3)
    assert {"latency_ms", "sentences_per_s"} <= result.metrics.keys()
    assert "sentences" in EVALUATIONS["latency"].kinds
