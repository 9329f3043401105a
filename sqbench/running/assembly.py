"""The parts of a point, put together: a model, its examples and its head. Checks that they fit each other."""

from dataclasses import replace
from pathlib import Path

from sqbench import config, models
from sqbench.data import Corpus, Examples, Windows
from sqbench.data.images import ImageExamples, LabelledImages
from sqbench.data.sentences import SentenceExamples
from sqbench.data.transforms import Transform
from sqbench.errors import UserError
from sqbench.models import Model
from sqbench.models.encoder import EncoderModel
from sqbench.models.encoder_heads import attach_to_encoder, for_head
from sqbench.models.experts import split_experts
from sqbench.models.heads import attach, without_classifier
from sqbench.models.image import ImageModel
from sqbench.models.plain import make_plain
from sqbench.models.topology import check_patterns, matches
from sqbench.parts.layer_formats import check_groups
from sqbench.running.resolved import Resolved


def read(source: models.Source, resolved: Resolved) -> Model:
    """The model of a source, with plain layers where these provably compute the same. With `blockwise` it stays on disk.

    Stacked experts of a mixture become linear layers too.

    Raises:
        UserError: `data.transform` does not fit the images that the model takes.
    """
    load = source.stream if resolved.blockwise and source.stream is not None else source.load
    model = load(config.device_of(resolved.device))
    make_plain(model.module)
    split_experts(model.module)
    return preprocessed(model, resolved)


def preprocessed(model: Model, resolved: Resolved) -> Model:
    """An image model whose preprocessing is changed by `data.transform`. Any other model stays as it is.

    Raises:
        UserError: the change does not fit the images that the model takes.
    """
    if not isinstance(model, ImageModel):
        return model
    return replace(model, preprocessing=Transform.of(resolved.data.transform).applied(model.preprocessing))


def examples_of(corpus: Corpus, model: Model, source: models.Source, resolved: Resolved) -> Examples:
    """The examples of a model that fit into its context.

    Raises:
        UserError: there are too few, or they do not fit.
    """
    reader = for_head(model, resolved.head) if isinstance(model, EncoderModel) else model
    examples = corpus.examples(reader, resolved.data, resolved.calibration)
    if isinstance(examples, Windows) and source.context is not None and examples.evaluation.shape[1] > source.context:
        asked, before = f"data.window={resolved.data.window} data.bos={str(resolved.data.bos).lower()}", len(examples.prefix)
        raise UserError(
            f"{asked}: {before} more token{'s' * (before > 1)} before every window, and {resolved.model.name} takes at most"
            f" {source.context}; use data.window={source.context - before} or less, or data.bos=false"
        )
    return examples


def check_window(resolved: Resolved, source: models.Source) -> None:
    """Raise UserError if a window, or a prompt and what is written after it, is longer than the model's context."""
    if source.context is not None and resolved.data.window > source.context:
        most = f"takes at most {source.context} tokens; use data.window={source.context}"
        raise UserError(f"data.window={resolved.data.window}: {resolved.model.name} {most}")
    if resolved.kind == "text":
        resolved.evaluation.settings.check_fit(resolved.data.window, source.context, resolved.model.name)


def check_sizes(resolved: Resolved, source: models.Source) -> None:
    """Raise UserError if a pattern names no layer or a group size fits no layer, as far as the architecture alone shows."""
    scheme = resolved.scheme
    grouped = any(fmt is not None and fmt.group_size is not None for fmt in (scheme.weights, scheme.activations))
    if source.widths is None or resolved.recipe.is_float or resolved.recipe.stored or not (grouped or scheme.layers):
        return
    all_widths = source.widths(resolved.head == "own")
    widths = {name: found for name, found in all_widths.items() if matches(None, name, resolved.model.keep)}
    if widths:  # empty if the architecture cannot be built without weights
        check_patterns(scheme.layers or (), widths)
    check_groups(scheme, {name: found for name, found in widths.items() if matches(scheme.layers, name, ())})


def with_head(model: Model, examples: Examples, resolved: Resolved, folder: Path | None) -> Model:
    """An image model or an encoder with the head of the configuration. Any other model stays as it is.

    Raises:
        UserError: the model's own head is for other classes, or the model takes no other head.
    """
    if isinstance(model, EncoderModel):
        assert isinstance(examples, SentenceExamples)
        return attach_to_encoder(model, resolved.head, examples, folder, resolved.model.head_images)
    if not isinstance(model, ImageModel):
        return model
    assert isinstance(examples, ImageExamples)
    return attach(model, resolved.head, examples.training, examples.classes, folder, resolved.model.head_images)


def backbone(model: Model, resolved: Resolved) -> Model:
    """The quantized part of a model. It has no classifier if another head takes its place."""
    return without_classifier(model) if isinstance(model, ImageModel) and resolved.head != "own" else model


def search_size(resolved: Resolved) -> int:
    """How many calibration examples a search over block outputs may replay."""
    found: int = getattr(resolved.calibration, f"search_{config.SIZES[resolved.kind]}")
    return found


def training_images(examples: Examples, resolved: Resolved) -> LabelledImages:
    """The images on which a method may train.

    Raises:
        UserError: the data has no labels.
    """
    if not isinstance(examples, ImageExamples):
        raise UserError(f"method={resolved.recipe.name}: trains on labelled images, and data={resolved.data.name} is text")
    return examples.training
