"""A model with quantized weights as a folder of float weights, which every program that reads the float model loads."""

from contextlib import redirect_stderr
from dataclasses import asdict, replace
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sqbench.data import Examples
from sqbench.errors import UserError
from sqbench.exports.hugging_face import ERRORS, loaded
from sqbench.exports.parts import check_floats, check_names, encoded_parts
from sqbench.exports.proof import Proof, compared
from sqbench.exports.target import Target
from sqbench.models import pooling
from sqbench.models.base import Model
from sqbench.models.encoder import VECTORS, EncoderModel
from sqbench.models.experts import join_experts
from sqbench.models.folding import share
from sqbench.models.heads import Probe
from sqbench.models.image import ImageModel
from sqbench.models.language import LanguageModel
from sqbench.quant.layers import Encoded, QuantLayer

NAME = "safetensors"


def write(model: Model, place: Path) -> None:
    """Fill a folder with decoded weights under the names of the float model, and with what its library needs to load it.

    Raises:
        UserError: a layer rounds its inputs, the model has a tensor that the float model lacks, a head was fitted, or no library
            loads such a network from a folder.
    """
    module: Any = share(model.module)
    for name, part in encoded_parts(model.module, NAME).items():
        module.set_submodule(name, _float(name, part))
    if isinstance(model, ImageModel):
        _write_images(model, module, place)
        return
    assert isinstance(model, LanguageModel | EncoderModel)
    if isinstance(model, EncoderModel) and model.head is not None:
        raise UserError(f"format={NAME}: {model.name} has a fitted head, which has no place there; use head=own, or format=onnx")
    check_floats(module, module.state_dict().keys(), NAME)
    join_experts(module)
    module.save_pretrained(place)
    model.tokenizer.save_pretrained(place)
    if isinstance(model, EncoderModel) and model.task in VECTORS:
        pooling.write(model.pooling, module.config.hidden_size, place)


def _float(name: str, part: Encoded) -> nn.Module:
    """The float layer or table with the decoded weight of a part."""
    if isinstance(part, QuantLayer) and part.activation is not None:
        raise UserError(
            f"format={NAME}: {name} rounds its inputs, which float weights cannot express; use weights alone (bits=w8a16), or"
            " a format that has such layers"
        )
    layer = part.simulated() if isinstance(part, QuantLayer) else part.layer
    assert isinstance(layer, nn.Module)
    return layer


def _write_images(model: ImageModel, module: Any, place: Path) -> None:
    import timm
    from timm.models import save_for_hf

    if not (getattr(module, "pretrained_cfg", None) or {}).get("architecture"):
        raise UserError(f"format={NAME}: {model.name} is no architecture of timm; use format=onnx or openvino")
    if model.head is not None:
        _put_classifier(model, module)
    save_for_hf(module, str(place), safe_serialization=True, data_config=asdict(model.preprocessing))
    with torch.device("meta"):
        own = timm.create_model(f"local-dir:{place}")
    check_names(module.state_dict().keys(), own, NAME, "a folded BatchNorm has them; use format=onnx or openvino")


def _put_classifier(model: ImageModel, module: Any) -> None:
    """Put the linear head of a model in the place of the network's own classifier.

    Raises:
        UserError: the head is not linear, or the network has no such place.
    """
    if isinstance(model.head, Probe):
        module.reset_classifier(model.head.out_features)
        place = module.get_classifier()
        if isinstance(place, nn.Linear) and place.weight.shape == model.head.weight.shape:
            place.load_state_dict(model.head.state_dict())
            module.requires_grad_(False).to(model.device)
            return
    what = f"{model.name} has a fitted head, which is no linear classifier of its network"
    raise UserError(f"format={NAME}: {what}; use head=probe, or format=onnx")


def prove(simulated: Model, folder: Path, examples: Examples) -> Proof:
    """Load an exported folder with transformers or timm, and compare it on all evaluation examples.

    Raises:
        UserError: the library cannot load the folder.
    """
    dtype = next(simulated.module.parameters()).dtype
    library = TARGET.library_of(simulated)
    assert isinstance(simulated, LanguageModel | EncoderModel | ImageModel)
    try:
        theirs = _from_timm(simulated, folder) if isinstance(simulated, ImageModel) else loaded(folder, dtype, simulated)
    except ERRORS as error:
        raise UserError(f"out={folder}: is written, and {library} cannot load it ({error}); verify=false skips this") from error
    program = f"{library} {version(library)}"
    return compared(simulated, theirs, examples, program=program, dtype=str(dtype).removeprefix("torch."))


def _from_timm(like: ImageModel, folder: Path) -> ImageModel:
    """A folder as timm loads it by itself. `like` has the preprocessing."""
    import timm

    with redirect_stderr(StringIO()):
        module = timm.create_model(f"local-dir:{folder}", pretrained=True)
    module.eval().requires_grad_(False).to(like.device, next(like.module.parameters()).dtype)
    return replace(like, module=module, fingerprint=f"{like.fingerprint}-exported", head=None)


TARGET = Target(NAME, "", write, prove)
