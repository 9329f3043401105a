"""The way from a folder of safetensors to a language model whose blocks stay there."""

from pathlib import Path
from typing import Any

import torch

from sqbench.errors import UserError, counted
from sqbench.models.checkpoint import Checkpoint
from sqbench.models.experts import split_experts
from sqbench.models.language import readable
from sqbench.models.streaming import StreamedModel, listed


def check_readable(checkpoint: Checkpoint, module: Any) -> None:
    """Raise UserError if a tensor of the model is not stored as it is but made from others. No part of it can be read alone."""
    tied = {name for pair in module.all_tied_weights_keys.items() for name in pair}
    if converted := sorted(module.state_dict().keys() - checkpoint.origins.keys() - tied):
        raise UserError(
            f"blockwise=true: transformers makes {counted(converted, 'tensors of the model')} from others while it loads them;"
            " use blockwise=false where the model fits into memory"
        )


def stream_language_model(
    folder: Path, device: torch.device, *, name: str, fingerprint: str, dtype: str, trust_remote_code: bool, keep: tuple[str, ...]
) -> StreamedModel:
    """Load a causal LM and its tokenizer from a local folder (safetensors only), without the weights of its blocks.

    Raises:
        UserError: the folder holds no causal language model that transformers can build, other tensors than the model's, or
            blocks that cannot be read alone.
    """
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    options = {"trust_remote_code": trust_remote_code, "local_files_only": True}
    precision: torch.dtype = getattr(torch, dtype)
    with readable(name, folder):
        with init_empty_weights(include_buffers=False):  # buffers that are not stored are computed
            config = AutoConfig.from_pretrained(folder, **options)
            # from_pretrained, too, computes buffers in float32 for every dtype of the model.
            module = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=trust_remote_code)
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        places = listed(module)
        checkpoint = Checkpoint.of(folder, module, precision, f"model.name={name}")
        check_readable(checkpoint, module)
        inside = tuple(f"{place}." for place in places)
        checkpoint.load([known for known in checkpoint.origins if not known.startswith(inside)], module, device)
        module.tie_weights(missing_keys=module.state_dict().keys() - checkpoint.origins.keys())
    module.requires_grad_(False).eval()
    for known, buffer in module.named_buffers():
        buffer.data = buffer.data.to(device, checkpoint.computed.get(known, buffer.dtype))
    split_experts(module, outline=True)
    return StreamedModel(module, name, fingerprint, keep, tokenizer=tokenizer, checkpoint=checkpoint, where=device)
