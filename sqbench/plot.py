"""`python -m sqbench.plot KIND [key=value ...]`: pictures of one model's layers, or of the records under results_dir."""

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from sqbench.collect import chosen, every, records_of
from sqbench.config import SIZES, RunConfig
from sqbench.console.answer import answered
from sqbench.console.composition import by_choice
from sqbench.console.extras import extra
from sqbench.console.overrides import put, read, unknown
from sqbench.console.progress import output
from sqbench.console.quiet import quiet
from sqbench.errors import UserError, known
from sqbench.records.store import Store
from sqbench.storage.files import canonical_json, write_text


@dataclass
class PlotConfig:
    """The settings of every picture."""

    results_dir: str = "results"  # pictures go to its plots/
    formats: list[str] = field(default_factory=lambda: ["png", "svg"])  # and pdf


@dataclass
class LayerConfig(PlotConfig):
    """Settings for a layer or group of a model. All other keys are those of `sqbench.run`: model, data, method, alpha, bits, ..."""

    layer: str | None = None  # its name; for `divided` also a norm; null is the first group there
    examples: int | None = None  # inputs to look at; null is one window of text, or four images
    tokens: int = 128  # the most that a surface shows; larger ones show peaks of blocks
    channels: int = 192
    ranges: str = "minmax"  # the method whose clipping range is drawn


@dataclass
class RecordsConfig(PlotConfig):
    """Settings for finished points."""

    metric: str | None = None  # null: perplexity, or else the first that the records have
    where: dict[str, Any] = field(default_factory=every)  # model, data, method, bits, alpha: a name or a list of names


@dataclass(frozen=True)
class Kind:
    """A kind of picture: the type of its settings, the function that makes it, a description and an example."""

    config: type[PlotConfig]
    make: Callable[[Any, list[str]], list[Path]]
    shows: str
    example: str


def distributions(config: LayerConfig, overrides: list[str]) -> list[Path]:
    """Draw a layer's input and weight as surfaces, original beside smoothed, with the ranges of their channels. Print ratios."""
    from sqbench import api
    from sqbench.reporting import style, surfaces
    from sqbench.running import inspection

    if config.layer is None:
        raise UserError("layer=???: distributions needs the name of a layer; a wrong one lists names that are close")
    cfg = api.configure(*overrides)
    seen = inspection.inspected(cfg, config.examples, Path(config.results_dir).expanduser() / "cache")
    called = cfg.model.label or _short(seen.model.name)
    states, done = inspection.states_of(seen, config.layer, config.ranges)
    rows, columns = states[0].activation.shape
    for name, ranges in (("input", "activation_range"), ("weight", "weight_range")):
        ratios = [f"{state.name} {surfaces.ratio(getattr(state, ranges)):.4g}" for state in states]
        _say(f"{name}: largest channel / median channel: {', '.join(ratios)}")
    _say(done)
    clipped = f"{config.ranges} {inspection.shown_format(seen.task.scheme.activations)}"
    count = f"{len(seen.inputs)} calibration {SIZES[seen.model.kind].removesuffix('s')}{'s' * (len(seen.inputs) > 1)}"
    caption = (
        f"{called}, {config.layer}. {done}. Surfaces and values: {rows} tokens (positions) x {columns} channels of"
        f" {count}; axes longer than {config.tokens} and {config.channels} show peaks of blocks. Ranges: all {seen.calibrated}"
        f" calibration batches. Clipping: {clipped}."
    )
    shape = states[0].weight.shape[0]
    channel = "channel" if shape == columns else "channel and kernel position"
    with style.applied():
        figure = surfaces.distributions_picture(
            states, f"What {config.layer} reads", caption, channel=channel, tokens=config.tokens, channels=config.channels
        )
        paths = _save(config, figure, "distributions", called, config.layer)
    turned = surfaces.as_data(states, tokens=config.tokens, channels=config.channels)
    of = {"weights": seen.model.fingerprint, "method": seen.recipe.about()["method"]}  # as in the identity of a point
    named = {"model": called, **of, "layer": config.layer, "told": caption, "channel": channel, "states": turned}
    write_text(paths[0].with_suffix(".json"), canonical_json(named) + "\n")
    return [*paths, paths[0].with_suffix(".json")]


def divided(config: LayerConfig, overrides: list[str]) -> list[Path]:
    """Draw where SmoothQuant divides the activations: a norm and the linears that read it, before and after."""
    from sqbench import api
    from sqbench.reporting import divisions, style
    from sqbench.running import inspection

    cfg = api.configure(*overrides)
    seen = inspection.inspected(cfg, config.examples, Path(config.results_dir).expanduser() / "cache")
    called = cfg.model.label or _short(seen.model.name)
    group, division, alpha, error = inspection.division_of(seen, config.layer)
    output.print(
        divisions.division_table(division, f"{group}, alpha {alpha:.4g}: the {divisions.TOP} channels with the largest input")
    )
    told = f"fold error of the float model's output: {error:.2g} (relative, on {len(seen.inputs)} inputs)"
    _say(told)
    caption = (
        f"{called}, {group}, {seen.recipe.name} with alpha {alpha:.4g}."
        f" Input ranges: {seen.calibrated} calibration batches. {told[0].upper()}{told[1:]}."
    )
    with style.applied():
        figure = divisions.divided_picture(division, f"Where the input of {group.source}'s readers is divided", caption)
        return _save(config, figure, "divided", called, group.source)


def alpha(config: RecordsConfig, overrides: list[str]) -> list[Path]:
    """Draw a metric against alpha, with intervals."""
    from sqbench.reporting import plots, series, style
    from sqbench.reporting.grid import lay_out

    frame, metric = _records(config)
    grid = lay_out(frame, series.SERIES, (), metric)
    with style.applied():
        return _save(config, plots.alpha_picture(grid), "alpha", metric, grid.context.get("model", ""))


def pareto(config: RecordsConfig, overrides: list[str]) -> list[Path]:
    """Draw a metric against the bytes of the weights, with intervals and the Pareto front."""
    from sqbench.reporting import plots, style

    frame, metric = _records(config)
    models = sorted(set(frame["model"]))
    with style.applied():
        return _save(config, plots.pareto_picture(frame, metric), "pareto", metric, models[0] if len(models) == 1 else "")


def layers(config: RecordsConfig, overrides: list[str]) -> list[Path]:
    """Draw the signal-to-quantization-noise ratio of every layer's input and weight, by point."""
    from sqbench.reporting import plots, series, style

    frame, _ = _records(config)
    shown = series.layers_frame(Store(config.results_dir).records(set(frame["point_id"])))
    with style.applied():
        return _save(config, plots.layers_picture(shown), "layers", shown["model"].iloc[0])


KINDS = {
    "distributions": Kind(
        LayerConfig, distributions, "a layer's input and weight, original beside smoothed", "layer=blocks.0.mlp.fc1 alpha=0.5"
    ),
    "divided": Kind(LayerConfig, divided, "where a norm's output is divided, in numbers and as a picture", "layer=blocks.0.norm2"),
    "alpha": Kind(RecordsConfig, alpha, "a metric against alpha", "metric=perplexity where.bits=[w8a8]"),
    "pareto": Kind(RecordsConfig, pareto, "a metric against the bytes of the weights", "metric=top1 where.model=vit_small_focus"),
    "layers": Kind(RecordsConfig, layers, "noise of each layer's input and weight", "where.method=[rtn,smoothquant]"),
}


def parsed(kind: Kind, arguments: Sequence[str]) -> tuple[PlotConfig, list[str]]:
    """The settings of a picture, and the remaining overrides for the run's configuration.

    Raises:
        UserError: a key or value that this kind does not take.
    """
    schema = OmegaConf.structured(kind.config)
    own = {item.name for item in fields(kind.config)}
    rest = []
    for text, override in zip(arguments, read(arguments), strict=True):
        key = override.key_or_group
        if override.is_sweep_override():
            raise UserError(f"{text}: must be one value, one picture has one")
        if key.partition(".")[0] in own:
            put(schema, [override])
        elif kind.config is RecordsConfig:
            raise UserError(f"{text}: {unknown(schema, key)}")
        elif key.partition(".")[0] not in {*(item.name for item in fields(RunConfig)), "experiment", "hydra"}:
            raise UserError(f"{text}: {known(key, own)}, and all keys of sqbench.run")
        else:
            rest.append(text)
    config = OmegaConf.to_object(schema)
    assert isinstance(config, PlotConfig)
    for key in ("examples", "tokens", "channels"):
        value = getattr(config, key, None)
        if value is not None and value < (1 if key == "examples" else 2):
            raise UserError(f"{key}={value}: must be {1 if key == 'examples' else 2} or more")
    with extra("plots", "sqbench.plot"):
        from sqbench.reporting.style import check_formats

    check_formats(config.formats)
    return config, rest


def _records(config: RecordsConfig) -> tuple[Any, str]:
    """The chosen rows of the long frame, and the metric."""
    from sqbench.comparison import main_metric
    from sqbench.reporting.frame import metrics_of, results_frame
    from sqbench.reporting.noise import told_most

    frame = chosen(results_frame(told_most(records_of(config.results_dir, "plot KIND"))), config.where)
    return frame, config.metric or main_metric(metrics_of(frame).values()).name


def _save(config: PlotConfig, figure: Any, *names: str) -> list[Path]:
    from sqbench.reporting import style

    stem = "-".join(name for name in names if name)
    return style.save(figure, Path(config.results_dir).expanduser() / "plots", stem, config.formats)


def _short(model: str) -> str:
    """A model's name in a file name. For a folder it is the last part."""
    return Path(model).resolve().name if Path(model).is_dir() else model


def _say(text: str) -> None:
    output.print(text, markup=False, highlight=False, soft_wrap=True)


def usage() -> str:
    """The text of `--help`."""
    lines = ["python -m sqbench.plot KIND [key=value ...]", "", "Pictures, in results_dir/plots.", ""]
    for name, kind in KINDS.items():
        lines += [f"  {name:<14} {kind.shows}", f"  {'':<14} python -m sqbench.plot {name} {kind.example}"]
    for config, kinds in ((LayerConfig, "distributions, divided"), (RecordsConfig, "alpha, pareto, layers")):
        said = re.sub(r"\s+", " ", config.__doc__ or "")
        values = OmegaConf.to_yaml(OmegaConf.structured(config)).rstrip().splitlines()
        lines += ["", f"{kinds}: {said}", *(f"  {line}" for line in values)]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Paths of files go to stdout, errors that the user can fix to stderr, with exit status 2."""
    quiet()
    given = list(sys.argv[1:] if arguments is None else arguments)
    if {"-h", "--help"} & set(given):
        sys.stdout.write(usage())
        return 0
    return answered(lambda: _answer(given))


def _answer(given: Sequence[str]) -> None:
    if not given or given[0] not in KINDS:
        name = given[0] if given else ""
        raise UserError(f"kind {name or 'missing'}: {known(name, KINDS)}; `python -m sqbench.plot --help` explains them")
    kind = KINDS[given[0]]
    with by_choice():
        paths = kind.make(*parsed(kind, given[1:]))
    sys.stdout.write("".join(f"{path}\n" for path in paths))


if __name__ == "__main__":
    sys.exit(main())
