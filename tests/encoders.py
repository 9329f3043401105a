"""Small random encoders in folders, with a tokenizer of whole words, and tables of texts for them."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from sqbench.config import ModelConfig
from sqbench.models.encoder import EncoderModel
from sqbench.models.encoder_sources import describe

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = (
    "a",
    "the",
    "cat",
    "dog",
    "bird",
    "sits",
    "runs",
    "sings",
    "on",
    "under",
    "mat",
    "tree",
    "red",
    "old",
    "good",
    "bad",
    "not",
)
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
LENGTH = 20  # the most tokens of a text


def save_tokenizer(folder: Path, types: bool = True) -> None:
    """Write a tokenizer that puts [CLS] before a text and [SEP] after it."""
    vocabulary = {word: number for number, word in enumerate((*SPECIAL, *WORDS))}
    bare = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    bare.pre_tokenizer = Whitespace()
    bare.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(word, vocabulary[word]) for word in ("[CLS]", "[SEP]")],
    )
    names = ["input_ids", *(["token_type_ids"] if types else []), "attention_mask"]
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    whole = transformers.PreTrainedTokenizerFast(tokenizer_object=bare, model_input_names=names, model_max_length=LENGTH, **special)
    whole.save_pretrained(folder)


def save_encoder(folder: Path, family: str = "Bert", end: str = "Model", **options: Any) -> Path:
    """Write a random encoder whose norms are not the identity, of a family and an architecture's end."""
    torch.manual_seed(0)
    sizes = {"vocab_size": len(SPECIAL) + len(WORDS), "pad_token_id": 0, "max_position_embeddings": LENGTH + 4}
    small = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64} if family == "DistilBert" else SMALL
    more = {"cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3} if family == "ModernBert" else {}
    config = getattr(transformers, f"{family}Config")(**sizes, **small, **more, **options)
    module = getattr(transformers, f"{family}{end}")(config).eval().requires_grad_(False)
    for name, parameter in module.named_parameters():
        if parameter.dim() == 1:
            parameter.add_(torch.randn_like(parameter) * 0.2)
        elif "embedding" not in name:
            parameter.mul_(4)  # attention that tells tokens apart
    folder.mkdir(parents=True, exist_ok=True)
    module.save_pretrained(folder)
    save_tokenizer(folder, types=family == "Bert")
    return folder


def as_sentence_transformer(folder: Path, mode: str = "pooling_mode_mean_tokens", *, dense: bool = False, **told: Any) -> Path:
    """Put the files of sentence-transformers beside an encoder."""
    kinds = ["Transformer", "Pooling", *(["Dense"] if dense else []), "Normalize"]
    paths = ["", "1_Pooling", *(["2_Dense"] if dense else []), "3_Normalize"]
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 10, "do_lower_case": False, **told}))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    modes = {f"pooling_mode_{name}": False for name in ("cls_token", "mean_tokens", "max_tokens")} | {mode: True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32, **modes}))
    return folder


def load(folder: Path, **options: Any) -> EncoderModel:
    """The encoder of a folder, loaded the way a run loads it."""
    model = describe(folder, ModelConfig(name=str(folder), loader="hf", **options)).load(torch.device("cpu"))
    assert isinstance(model, EncoderModel)
    return model


def sentence(number: int) -> str:
    """A sentence of three to eleven words, another one for every number."""
    generator = torch.Generator().manual_seed(number)
    length = int(torch.randint(3, 12, (1,), generator=generator))
    return " ".join(WORDS[at] for at in torch.randint(len(WORDS), (length,), generator=generator).tolist())


def pairs(path: Path, count: int = 40, first: int = 0) -> Path:
    """A CSV of two texts and a score between 0 and 5."""
    lines = [f"{sentence(first + 2 * at)},{sentence(first + 2 * at + 1)},{(7 * at) % 11 / 2}" for at in range(count)]
    path.write_text("\n".join(["a,b,score", *lines]) + "\n")
    return path


def classes(path: Path, count: int = 40, first: int = 0) -> Path:
    """A JSONL of texts and of their class: whether an even number of them."""
    rows = [{"text": sentence(first + at), "label": "good" if "good" in sentence(first + at) else "other"} for at in range(count)]
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return path
