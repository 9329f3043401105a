"""An image classifier that a Python function of the user builds: `model=python model.name=FILE.py:FUNCTION`."""

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from sqbench.config import ModelConfig
from sqbench.data.preprocessing import Preprocessing
from sqbench.errors import UserError, known
from sqbench.models.base import Source
from sqbench.models.extent import of_images
from sqbench.models.image import ImageModel, classes_of
from sqbench.models.state_dict import put, read_tensors
from sqbench.storage.files import digest, known_digest
from sqbench.storage.tensorfile import fingerprint

RETURNS = 'return module, {"input_size": (3, 32, 32), "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}'


def from_function(cfg: ModelConfig) -> Source:
    """The network that a function returns, with its preprocessing. Weights come from `model.checkpoint`, else from the function.

    The function is called with `model.arguments` and torch's generator at seed 0. The fingerprint covers all tensors of the
    network, its layers, the file of the function and the preprocessing.

    Raises:
        UserError: there is no such function, it fails or returns something else, or the weights are of another network.
    """
    place = f"model.name={cfg.name}"
    build = _function(cfg.name, place)
    module, preprocessing = _network(cfg, build, place)
    tensors = fingerprint(module.state_dict())
    shown = digest([tensors, repr(module), known_digest(_file(build)), preprocessing.fingerprint])
    extent = partial(of_images, lambda: _built(cfg, build, place)[0], preprocessing.input_size)
    return Source(shown, partial(_load, cfg, build, shown, tensors), extent=extent)


def _load(cfg: ModelConfig, build: Callable[..., Any], shown: str, tensors: str, device: torch.device) -> ImageModel:
    place = f"model.name={cfg.name}"
    module, preprocessing = _network(cfg, build, place)
    if fingerprint(module.state_dict()) != tensors:
        raise UserError(f"{place}: gives other weights each time it is called; use model.checkpoint, or a seed of its own")
    module.to(device, getattr(torch, cfg.dtype))
    classes = classes_of(module, preprocessing.input_size, place)
    return ImageModel(module, cfg.name, shown, tuple(cfg.keep), preprocessing=preprocessing, classes=classes)


def _network(cfg: ModelConfig, build: Callable[..., Any], place: str) -> tuple[nn.Module, Preprocessing]:
    """The network with its weights, in eval mode and without gradients, and its preprocessing."""
    module, about = _built(cfg, build, place)
    if cfg.checkpoint is not None:
        weights = f"model.checkpoint={cfg.checkpoint}"
        put(read_tensors(Path(cfg.checkpoint), weights), module, weights)
    return module.eval().requires_grad_(False), _preprocessing(about, cfg.image_size, place)


def _built(cfg: ModelConfig, build: Callable[..., Any], place: str) -> tuple[nn.Module, Mapping[str, Any]]:
    """What the function returns."""
    if not isinstance(cfg.arguments, Mapping | None):
        raise UserError(f"model.arguments={cfg.arguments}: must be null, or names and values as in {{depth: 20}}")
    arguments = dict(cfg.arguments or {})
    try:
        inspect.signature(build).bind(**arguments)
    except TypeError as error:
        raise UserError(f"model.arguments={arguments}: {cfg.name} does not take them ({error})") from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            found = build(**arguments)
        except Exception as error:
            raise UserError(f"{place}: fails with {type(error).__name__}: {error}") from error
    if isinstance(found, tuple) and len(found) == 2 and isinstance(found[0], nn.Module) and isinstance(found[1], Mapping):
        return found
    raise UserError(f"{place}: returns {type(found).__name__}; it must return a network and its preprocessing: {RETURNS}")


def _preprocessing(about: Mapping[str, Any], size: int | None, place: str) -> Preprocessing:
    """The preprocessing in the words of timm's data config.

    Raises:
        UserError: a word is unknown, or a necessary one is missing.
    """
    words = [field.name for field in fields(Preprocessing)]
    for word in about:
        if word not in words:
            raise UserError(f"{place}: {word}: {known(word, words)}")
    if lacking := [word for word in ("input_size", "mean", "std") if word not in about]:
        raise UserError(f"{place}: its preprocessing lacks {', '.join(lacking)}; use {RETURNS}")
    values: dict[str, Any] = {word: tuple(value) if isinstance(value, list) else value for word, value in about.items()}
    if size is not None:
        values["input_size"] = (values["input_size"][0], size, size)
    return Preprocessing(**values)


def _function(name: str, place: str) -> Callable[..., Any]:
    """The function of `FILE.py:FUNCTION` or `package.module:FUNCTION`.

    Raises:
        UserError: there is none.
    """
    where, _, called = name.rpartition(":")
    if not where or not called.isidentifier():
        raise UserError(f"{place}: must be FILE.py:FUNCTION or package.module:FUNCTION")
    module = _from_file(Path(where).expanduser(), place) if where.endswith(".py") else _from_package(where, place)
    found = getattr(module, called, None)
    if not callable(found):
        functions = [word for word, value in vars(module).items() if inspect.isfunction(value) and not word.startswith("_")]
        raise UserError(f"{place}: {where} has no function {called}: {known(called, functions)}")
    return found


def _from_file(file: Path, place: str) -> ModuleType:
    if not file.is_file():
        raise UserError(f"{place}: no such file (from {Path.cwd()})")
    name = f"sqbench_own_{digest(str(file.resolve()))[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(file.resolve().parent))  # for its imports of files beside it
    try:
        spec.loader.exec_module(module)
    except Exception:
        del sys.modules[name]
        raise
    finally:
        sys.path.pop(0)
    return module


def _from_package(name: str, place: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        raise UserError(f"{place}: Python finds no module {error.name} (from {Path.cwd()}); use FILE.py:FUNCTION") from error


def _file(function: Callable[..., Any]) -> Path:
    """The file of a function's source."""
    return Path(inspect.getsourcefile(inspect.unwrap(function)) or "")
