"""The weights of a model folder, read parameter by parameter."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

from sqbench.errors import UserError, closest


@dataclass(frozen=True)
class Checkpoint:
    """Tensors of a folder in Hugging Face layout, read when they are asked for.

    Attributes:
        files: parameter of the model -> the file that holds it.
        prefix: what the model puts before the checkpoint's names.
    """

    files: dict[str, Path]
    prefix: str = ""

    @classmethod
    def of(cls, folder: Path, module: nn.Module) -> "Checkpoint":
        """Every parameter of a module, in the *.safetensors of a folder.

        Raises:
            UserError: they have other names there, as of checkpoints that transformers converts while it loads them.
        """
        held: dict[str, Path] = {}
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, "pt") as opened:
                held |= dict.fromkeys(opened.keys(), path)
        tied = getattr(module, "all_tied_weights_keys", {})
        wanted = [name for name, _ in module.named_parameters() if name not in tied]
        for prefix in ("", f"{module.base_model_prefix}."):
            if all(name.removeprefix(prefix) in held for name in wanted):
                return cls({name: held[name.removeprefix(prefix)] for name in wanted}, prefix)
        missing = next(name for name in wanted if name not in held)
        raise UserError(
            f"blockwise=true: {folder} has no tensor {missing} ({closest(missing, held)}); blockwise=false works where the model"
            " fits into memory"
        )

    def load(self, names: Iterable[str], into: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
        """Put tensors in the place of parameters; on a CPU and in the file's dtype they are mapped, not copied."""
        by_file: dict[Path, list[str]] = {}
        for name in names:
            by_file.setdefault(self.files[name], []).append(name)
        for path, inside in by_file.items():
            with safe_open(path, "pt") as opened:
                for name in inside:
                    tensor = opened.get_tensor(name.removeprefix(self.prefix)).to(device, dtype)
                    owner, _, leaf = name.rpartition(".")
                    setattr(into.get_submodule(owner), leaf, nn.Parameter(tensor, requires_grad=False))
