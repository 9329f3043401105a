"""A model whose predictions see later tokens has no perplexity: it is refused by name, and no causal model is."""

from pathlib import Path

import families
import pytest
import torch

from sqbench import api
from sqbench.data.text import Windows
from sqbench.evaluation import EVALUATIONS, EvaluationError
from sqbench.evaluation.causality import require_causal
from sqbench.models.language import LanguageModel
from sqbench.models.stream_loading import stream_language_model

NAMED = r"model\.name=Bert: its predictions depend on later tokens\. Other tokens after the first 8 change what it predicts"
OF_TEXT = [name for name, evaluation in EVALUATIONS.items() if "text" in evaluation.kinds]
BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "max_position_embeddings": 64}


def ids(tokens: int = 24, rows: int = 2) -> torch.Tensor:
    return torch.randint(3, 101, (rows, tokens), generator=torch.Generator().manual_seed(0))


def windows(tokens: int = 24) -> Windows:
    return Windows(ids(tokens), ids(tokens), 100, ())


def bert(decoder: bool) -> LanguageModel:
    """With attention that tells tokens apart, as that of a trained model does."""
    model = families.build("Bert", **BERT, is_decoder=decoder)
    for layer in model.module.bert.encoder.layer:
        for parameter in layer.parameters():
            parameter.mul_(12) if parameter.dim() == 2 else parameter
    return model


@pytest.mark.parametrize("name", OF_TEXT)
def test_every_evaluation_of_text_refuses_a_model_that_sees_later_tokens(name: str) -> None:
    with pytest.raises(EvaluationError, match=NAMED):
        api.evaluate(bert(decoder=False), windows(), name=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_that_does_not_is_taken_in_every_dtype(dtype: torch.dtype) -> None:
    for model in (bert(decoder=True), families.llama(), families.gpt2(), families.opt(), families.gemma()):
        require_causal(model.with_module(model.module.to(dtype), None), ids())
    with pytest.raises(EvaluationError, match=NAMED):
        require_causal(bert(decoder=False).with_module(bert(decoder=False).module.to(dtype), None), ids())


@pytest.mark.parametrize("tokens", [2, 3, 16, 40])
def test_windows_of_any_length_tell(tokens: int) -> None:
    require_causal(families.llama(), ids(tokens))
    with pytest.raises(EvaluationError, match="depend on later tokens"):
        require_causal(bert(decoder=False), ids(tokens))


def test_ranges_of_whole_tensors_are_no_sight_of_later_tokens(tiny: LanguageModel, windows: Windows) -> None:
    """With one range per tensor at run time every token has a say in the rounding of all: the float model is what is asked."""
    statistics = api.calibrate(tiny, windows.calibration[:2])
    quantized = api.quantize(tiny, statistics, "rtn", "w4a4_dynamic")
    layers = [layer for layer in quantized.module.modules() if type(layer).__name__ != "Linear"]
    assert layers
    assert api.evaluate(quantized, windows).metrics["perplexity"] > 1


@pytest.mark.parametrize("decoder", [True, False])
def test_block_by_block_it_is_told_in_the_same_reading(tmp_path: Path, decoder: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.llama import save_byte_tokenizer

    save_byte_tokenizer(tmp_path)
    bert(decoder).module.save_pretrained(tmp_path)
    options = {"name": "Bert", "fingerprint": "f", "dtype": "float32", "trust_remote_code": False, "keep": ()}
    model = stream_language_model(tmp_path, torch.device("cpu"), **options)
    _ = model.topology, model.head
    read: list[str] = []
    load = type(model)._load
    monkeypatch.setattr(type(model), "_load", lambda self, place: read.append(place) or load(self, place))
    if decoder:
        assert api.evaluate(model, windows()).metrics["perplexity"] > 1
    else:
        with pytest.raises(EvaluationError, match=NAMED):
            api.evaluate(model, windows())
    assert read == list(model.places)
