"""Where a head begins, how many tokens there are, and how wide they are: read off the model, however its configuration says it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from families import LLAMA, SMALL, build, gemma, gpt2, llama, opt

from benchmarks.llama import save_byte_tokenizer
from sqbench import api
from sqbench.calibration import collect
from sqbench.data import Windows
from sqbench.errors import UserError
from sqbench.evaluation.perplexity import perplexity
from sqbench.models.language import LanguageModel, load_language_model
from sqbench.models.stream_loading import stream_language_model

SAID: dict[str, Any] = {"name": "m", "fingerprint": "m", "dtype": "float32", "trust_remote_code": False, "keep": ()}
BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "is_decoder": True}


def bert() -> LanguageModel:
    return build("Bert", **BERT)


def roberta() -> LanguageModel:
    return build("Roberta", **BERT, max_position_embeddings=64)


def modernbert() -> LanguageModel:
    return build("ModernBertDecoder", **{**BERT, "cls_token_id": 1, "sep_token_id": 2})


def nested() -> LanguageModel:
    """Gemma 3 as from 4 billion parameters on: the language model is one of two networks, and so is its configuration."""
    torch.manual_seed(0)
    config = transformers.Gemma3Config(
        text_config={**SMALL, **LLAMA, "head_dim": 8},
        vision_config={
            **{"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48},
            **{"image_size": 28, "patch_size": 14},
        },
        mm_tokens_per_image=4,
    )
    module = transformers.Gemma3ForConditionalGeneration(config).eval().requires_grad_(False)
    return LanguageModel(module, "gemma3", "gemma3")


@pytest.mark.parametrize("make", [llama, gpt2, opt, bert, roberta, modernbert, nested])
def test_the_head_is_the_output_embedding_and_the_body_all_before_it(make: Callable[[], LanguageModel]) -> None:
    model = make()
    ran: list[str] = []
    for name, part in model.module.named_modules():
        if not list(part.children()) and list(part.parameters()) and "vision" not in name and "multi_modal" not in name:
            part.register_forward_hook(lambda module, inputs, output, name=name: ran.append(name))
    ids = model.example()
    hidden = model.body(ids)
    (output,) = model.pinned_layers()
    expected = {
        name
        for name, part in model.module.named_modules()
        if isinstance(part, torch.nn.Linear) and name != output and "vision" not in name and "multi_modal" not in name
    }
    assert expected <= set(ran)
    assert output not in ran
    assert model.head is not None
    assert torch.equal(model.head(hidden), model.forward(ids))
    assert not any(part._forward_pre_hooks for part in model.module.modules())


def test_a_model_that_caps_its_logits_has_no_head_alone() -> None:
    model = gemma()
    assert model.head is None
    assert model.body(model.example()).shape == (2, 12, model.width)


@pytest.mark.parametrize("make", [bert, roberta])
def test_a_layer_in_the_head_is_calibrated(make: Callable[[], LanguageModel]) -> None:
    model = make()
    statistics = collect(model.module, model.body, model.topology.sites, model.example())
    (inside,) = [name for name in model.topology.layers if name.startswith(("lm_head", "cls"))]
    assert set(model.topology.sites) == set(statistics.inputs)
    quantized = api.quantize(model, statistics, "rtn", "w8a8")
    assert inside in [entry["layer"] for entry in quantized.report["per_layer"]]


def test_sizes_of_a_model_in_a_configuration_of_several(tmp_path: Path) -> None:
    model = nested()
    assert (model.vocabulary, model.width) == (SMALL["vocab_size"], 32)
    model.module.save_pretrained(tmp_path)
    save_byte_tokenizer(tmp_path)
    for load in (load_language_model, stream_language_model):
        found = load(tmp_path, torch.device("cpu"), **SAID)
        assert torch.equal(found.forward(found.example()), model.forward(model.example()))


def test_a_token_without_an_embedding_is_named(tiny: LanguageModel, windows: Windows, tmp_path: Path) -> None:
    save_byte_tokenizer(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.add_tokens(["<|extra|>"])
    assert tiny.vocabulary == 256
    model = replace(tiny, tokenizer=tokenizer)
    assert perplexity(model, windows).metrics == perplexity(tiny, windows).metrics  # no text has the token
    evaluation = windows.evaluation.clone()
    evaluation[-1, -1] = 256
    message = (
        r"^model\.name=tiny: its tokenizer makes '<\|extra\|>' the token 256, and the model has embeddings for 0 to 255; use the"
    )
    for run in (
        lambda: perplexity(model, replace(windows, evaluation=evaluation)),
        lambda: model.body(evaluation),
        lambda: model.forward(evaluation),
    ):
        with pytest.raises(UserError, match=message):
            run()
