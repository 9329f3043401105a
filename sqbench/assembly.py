"""The parts that a configuration names, put together: a model, its examples and its head. Checks that they fit each other."""

from pathlib import Path

from omegaconf import DictConfig

from sqbench import config, models
from sqbench.data import Corpus, Examples, Windows
from sqbench.data.images import ImageExamples, LabelledImages
from sqbench.errors import UserError
from sqbench.evaluation import evaluation_of
from sqbench.models import Model
from sqbench.models.heads import attach, without_classifier
from sqbench.models.image import ImageModel
from sqbench.models.plain import make_plain
from sqbench.models.topology import check_patterns, matches
from sqbench.pipeline.layer_formats import check_groups
from sqbench.recipes.configured import is_float, scheme_of


def read(source: models.Source, cfg: DictConfig) -> Model:
    """The model of a source, with plain layers where these provably compute the same. With `blockwise` it stays on disk."""
    load = source.stream if cfg.blockwise and source.stream is not None else source.load
    model = load(config.device_of(cfg.device))
    make_plain(model.module)
    return model


def examples_of(corpus: Corpus, model: Model, source: models.Source, cfg: DictConfig) -> Examples:
    """The examples of a model that fit into its context.

    Raises:
        UserError: there are too few, or they do not fit.
    """
    examples = corpus.examples(model, cfg.data, cfg.calibration)
    if isinstance(examples, Windows) and source.context is not None and examples.evaluation.shape[1] > source.context:
        asked, before = f"data.window={cfg.data.window} data.bos={str(cfg.data.bos).lower()}", len(examples.prefix)
        raise UserError(
            f"{asked}: {before} more token{'s' * (before > 1)} before every window, and {cfg.model.name} takes at most"
            f" {source.context}; use data.window={source.context - before} or less, or data.bos=false"
        )
    return examples


def check_window(cfg: DictConfig, source: models.Source) -> None:
    """Raise UserError if a window, or a prompt and what is written after it, is longer than the model's context."""
    if source.context is not None and cfg.data.window > source.context:
        most = f"takes at most {source.context} tokens; use data.window={source.context}"
        raise UserError(f"data.window={cfg.data.window}: {cfg.model.name} {most}")
    kind = models.LOADERS[cfg.model.loader].kind
    if kind == "text":
        evaluation_of(cfg.eval, kind).settings.check_fit(cfg.data.window, source.context, cfg.model.name)


def check_sizes(cfg: DictConfig, source: models.Source) -> None:
    """Raise UserError if a pattern names no layer or a group size fits no layer, as far as the architecture alone shows."""
    scheme = scheme_of(cfg)
    grouped = any(fmt is not None and fmt.group_size is not None for fmt in (scheme.weights, scheme.activations))
    if source.widths is None or is_float(cfg) or not (grouped or scheme.layers):
        return
    all_widths = source.widths((cfg.head or cfg.model.head) == "own")
    widths = {name: found for name, found in all_widths.items() if matches(None, name, cfg.model.keep)}
    if widths:  # empty if the architecture cannot be built without weights
        check_patterns(scheme.layers or (), widths)
    check_groups(scheme, {name: found for name, found in widths.items() if matches(scheme.layers, name, ())})


def with_head(model: Model, examples: Examples, cfg: DictConfig, folder: Path | None) -> Model:
    """An image model with the head of the configuration. Any other model stays as it is.

    Raises:
        UserError: the model's own head is for other classes.
    """
    if not isinstance(model, ImageModel):
        return model
    assert isinstance(examples, ImageExamples)
    chosen = cfg.head or cfg.model.head
    return attach(model, chosen, examples.training, examples.classes, folder, cfg.model.head_images)


def backbone(model: Model, cfg: DictConfig) -> Model:
    """The quantized part of a model. It has no classifier if another head takes its place."""
    return without_classifier(model) if isinstance(model, ImageModel) and (cfg.head or cfg.model.head) != "own" else model


def search_size(cfg: DictConfig, model: Model) -> int:
    """How many calibration examples a search over block outputs may replay."""
    return int({"text": cfg.calibration.search_windows, "images": cfg.calibration.search_images}[model.kind])


def training_images(examples: Examples, cfg: DictConfig) -> LabelledImages:
    """The images on which a method may train.

    Raises:
        UserError: the data has no labels.
    """
    if not isinstance(examples, ImageExamples):
        raise UserError(f"method={cfg.method.name}: trains on labelled images, and data={cfg.data.name} is text")
    return examples.training
