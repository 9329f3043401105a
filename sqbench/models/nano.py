"""Small classifiers, trained on first use by the recipe in their YAML. They are real networks that need no hub and no wheel."""

import hashlib
import logging
import math
import time
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.nn import functional

from sqbench import planning
from sqbench.config import CalibrationConfig, DataConfig, ModelConfig
from sqbench.console.progress import track
from sqbench.data import images
from sqbench.data.images import LabelledImages
from sqbench.data.preprocessing import Preprocessing
from sqbench.errors import UserError, known
from sqbench.models.base import Source
from sqbench.models.extent import of_images
from sqbench.models.image import ImageModel
from sqbench.models.timm_models import pretrained_cfg
from sqbench.storage import tensorfile
from sqbench.storage.files import cache_dir, digest

log = logging.getLogger(__name__)

TRAINED_FIRST = "its model is trained first"  # the text of a plan
REVISION = 1  # of the training below; raise it when the same recipe gives other weights


@dataclass(frozen=True)
class Recipe:
    """How a model is trained.

    Attributes:
        architecture, options: a timm architecture and its arguments. `num_classes` comes from the data.
        data: a key of sqbench.data.images.SOURCES. Its training split is used.
        input_size: channels, height, width.
        mean, std: mean and standard deviation of all pixels, which are from 0 to 1.
        epochs, batch: how often training sees each image, and the number of images per step.
        learning_rate: the peak of one cycle (Smith and Topin 2018), with AdamW.
        shift, rotation, zoom: bounds of the random changes of each image: pixels, degrees, a fraction.
    """

    architecture: str
    options: dict[str, Any]
    data: str
    input_size: tuple[int, int, int]
    mean: float
    std: float
    epochs: int
    batch: int
    learning_rate: float
    weight_decay: float
    shift: float = 0.0
    rotation: float = 0.0
    zoom: float = 0.0
    seed: int = 0

    @classmethod
    def of(cls, cfg: ModelConfig) -> "Recipe":
        """The recipe in a model's YAML.

        Raises:
            UserError: the recipe lacks a key, has an unknown key or unknown data, or the YAML asks for another image size or a
                checkpoint.
        """
        given: Any = OmegaConf.to_container(OmegaConf.create(cfg.recipe or {}), resolve=True)
        values: dict[str, Any] = {str(key): value for key, value in given.items()}
        names = {field.name for field in fields(cls)}
        needed = {field.name for field in fields(cls) if field.default is field.default_factory}  # both MISSING
        if unknown := sorted(set(values) - names):
            raise UserError(f"model.recipe.{unknown[0]}: {known(unknown[0], names)}")
        if absent := sorted(needed - set(values)):
            raise UserError(f"model.recipe.{absent[0]}: needs a value; conf/model/vit_nano.yaml has an example")
        recipe = cls(**{**values, "options": dict(values["options"]), "input_size": tuple(values["input_size"])})
        if recipe.data not in images.SOURCES:
            raise UserError(f"model.recipe.data={recipe.data}: {known(recipe.data, images.SOURCES)}")
        if cfg.image_size not in (None, recipe.input_size[-1]):
            raise UserError(f"model.image_size={cfg.image_size}: {cfg.name} is trained for {recipe.input_size[-1]}; use null")
        if cfg.checkpoint is not None:
            raise UserError(f"model.checkpoint={cfg.checkpoint}: {cfg.name} is trained by its recipe; use null, or model=timm")
        return recipe

    @property
    def preprocessing(self) -> Preprocessing:
        channels = self.input_size[0]
        return Preprocessing(self.input_size, (self.mean,) * channels, (self.std,) * channels, interpolation="bilinear")

    def build(self, classes: int) -> nn.Module:
        """The network, with weights drawn from torch's global generator.

        Raises:
            UserError: timm has no such architecture, or the architecture does not take the options.
        """
        import timm

        pretrained_cfg(self.architecture, "model.recipe.architecture")
        try:
            module: nn.Module = timm.create_model(self.architecture, num_classes=classes, **self.options)
        except (TypeError, ValueError, AssertionError, RuntimeError) as error:
            raise UserError(
                f"model.recipe.options={self.options}: {self.architecture} cannot be built with them ({error})"
            ) from error
        return module


def from_recipe(cfg: ModelConfig) -> Source:
    """Train the model, unless the cache has it. The fingerprint covers the weights, the recipe and the training data."""
    recipe = Recipe.of(cfg)
    found = images.fetch(DataConfig(name=recipe.data, source=recipe.data), CalibrationConfig())
    training = LabelledImages(found.train, range(len(found.train)), recipe.preprocessing)
    about = {"recipe": asdict(recipe), "training": training.fingerprint, "classes": len(found.classes), "revision": REVISION}
    kept = cache_dir() / "models" / f"{cfg.name}-{digest(about)[:12]}.safetensors"
    if not kept.is_file():
        planning.before(TRAINED_FIRST)  # so a plan never waits for another process that trains it
    tensors, _ = tensorfile.cached(kept, lambda: (train(recipe, training, len(found.classes), cfg.name), about))
    weights = {name: hashlib.sha256(tensor.numpy().tobytes()).hexdigest() for name, tensor in tensors.items()}
    fingerprint = digest({"weights": weights, **about})  # not of the file: its header has a random order
    extent = partial(of_images, partial(recipe.build, len(found.classes)), recipe.input_size)
    return Source(fingerprint, partial(load, cfg, recipe, kept, len(found.classes), fingerprint), extent=extent)


def load(cfg: ModelConfig, recipe: Recipe, kept: Path, classes: int, fingerprint: str, device: torch.device) -> ImageModel:
    """Load the trained model from its file."""
    with torch.random.fork_rng(devices=[]):
        module = recipe.build(classes)
    module.load_state_dict(tensorfile.load(kept)[0])
    module.eval().requires_grad_(False).to(device, getattr(torch, cfg.dtype))
    return ImageModel(module, cfg.name, fingerprint, tuple(cfg.keep), preprocessing=recipe.preprocessing, classes=classes)


def train(recipe: Recipe, training: LabelledImages, classes: int, name: str) -> dict[str, Tensor]:
    """The weights after training from scratch on the CPU. They are the same each time for the same number of threads."""
    planning.before(TRAINED_FIRST)
    log.info("training %s on %d images, once", name, len(training))
    start = time.perf_counter()
    batches = list(training.batches(500))
    inputs, labels = torch.cat([batch.images for batch in batches]), torch.cat([batch.labels for batch in batches])
    steps = math.ceil(len(inputs) / recipe.batch)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        module = recipe.build(classes).train()
        optimizer = torch.optim.AdamW(module.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, total_steps=recipe.epochs * steps)
        for _ in track(range(recipe.epochs), f"training {name}"):
            for chosen in torch.randperm(len(inputs)).split(recipe.batch):
                loss = functional.cross_entropy(module(moved(inputs[chosen], recipe)), labels[chosen])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    log.info("trained %s in %.0f s", name, time.perf_counter() - start)
    return module.state_dict()


def moved(inputs: Tensor, recipe: Recipe) -> Tensor:
    """Normalised images [B, C, H, W], each randomly shifted, rotated and zoomed. Black fills the edges."""
    angle = _uniform(len(inputs), math.radians(recipe.rotation))
    zoom = 1 + _uniform(len(inputs), recipe.zoom)
    shift = [_uniform(len(inputs), 2 * recipe.shift / side) for side in (inputs.shape[3], inputs.shape[2])]
    rows = [(zoom * angle.cos(), -zoom * angle.sin(), shift[0]), (zoom * angle.sin(), zoom * angle.cos(), shift[1])]
    matrix = torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)  # [B, 2, 3]
    grid = functional.affine_grid(matrix, list(inputs.shape), align_corners=False)
    black = -recipe.mean / recipe.std
    return functional.grid_sample(inputs - black, grid, align_corners=False) + black


def _uniform(count: int, bound: float) -> Tensor:
    """Random numbers [count] between -bound and bound, from torch's global generator."""
    return (torch.rand(count) * 2 - 1) * bound
