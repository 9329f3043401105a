"""`python -m sqbench.export`: a finished point as a folder that other programs load, and the proof that they compute the same."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from omegaconf import OmegaConf

from sqbench.console.answer import answered
from sqbench.console.overrides import put, read
from sqbench.console.progress import output
from sqbench.console.quiet import quiet
from sqbench.errors import UserError
from sqbench.points import PointsConfig, found

FORMATS = ("compressed-tensors", "gguf", "onnx", "openvino", "safetensors")
USAGE = f"""python -m sqbench.export ID out=FOLDER [KEY=VALUE ...]

  Writes a finished point as a folder with weights, configuration, tokenizer and model card. The weights are computed again.
  An ID may be cut short as long as it names one point.

  out            the folder; it must be new or empty
  format         {", ".join(FORMATS)}
  verify         true: another program loads the folder, and its predictions are compared; false skips it
  force          true: replace what is in the folder
  results_dir    the results folder of the point
"""


@dataclass
class ExportConfig:
    """The settings of `sqbench.export`."""

    out: str = ""
    format: str = FORMATS[0]
    verify: bool = True
    force: bool = False
    results_dir: str = "results"


def export(config: ExportConfig, name: str) -> None:
    """Write a point, prove it, and say so.

    Raises:
        UserError: the point cannot be made again as it was, the layout cannot express it, or the folder is not empty.
    """
    from sqbench.exports.card import card
    from sqbench.exports.targets import check_free, save, target_of
    from sqbench.records.provenance import Stopwatch
    from sqbench.records.store import Store
    from sqbench.running import stages
    from sqbench.running.point import identify
    from sqbench.running.resolved import restored

    if not config.out:
        raise UserError("out: needs a folder, out=exported for example")
    target = target_of(config.format)
    record = found(PointsConfig(results_dir=config.results_dir), name)
    if not record.finished:
        raise UserError(f"{name}: failed, and only a finished point is exported ({record.reason})")
    folder = Path(config.out).expanduser()
    check_free(folder, force=config.force)
    resolved = replace(restored(record.config), blockwise=False)  # which changes no number, and the whole model is written
    if resolved.recipe.is_float:
        raise UserError(f"{record.point_id}: is the float model, which is there already")
    point = identify(resolved)
    if point.id != record.point_id:
        why = f"python -m sqbench.points why {record.point_id}"
        raise UserError(f"{record.point_id}: its configuration gives another point today; `{why}` says why")
    store, watch = Store(Path(config.results_dir).expanduser()), Stopwatch()
    loaded = stages.load(point, store, watch)
    quantized = stages.quantized(loaded, store, watch)
    library = target.library_of(quantized)
    metric = record.metric(resolved.evaluation.evaluation.headline(record.metrics))
    save(quantized, folder, format=target.name, card=card(record, metric, None, library), force=config.force)
    proof = None
    if config.verify:
        proof = target.prove(quantized, folder, loaded.examples)
        (folder / "README.md").write_text(card(record, metric, proof, library), encoding="utf-8")
        told = {"point_id": record.point_id, "proof": asdict(proof)}
        (folder / "sqbench.json").write_text(json.dumps(told, indent=2), encoding="utf-8")
    output.print(f"{record.point_id} is in {folder}", markup=False, highlight=False, soft_wrap=True)
    output.print(
        f"checked by {proof}" if proof else "not checked by another program (verify=false)",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def parsed(arguments: Sequence[str]) -> tuple[str, ExportConfig]:
    """The id and the settings of a command line.

    Raises:
        UserError: there is not one id, or a key is unknown.
    """
    names = [item for item in arguments if "=" not in item]
    if len(names) != 1:
        raise UserError("export: takes one point id, as in `python -m sqbench.export ID out=FOLDER`")
    schema = OmegaConf.structured(ExportConfig)
    put(schema, read([item for item in arguments if "=" in item]))
    config = OmegaConf.to_object(schema)
    assert isinstance(config, ExportConfig)
    return names[0], config


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Answers go to stdout, errors that the user can fix to stderr, with exit status 2."""
    quiet()
    given = list(sys.argv[1:] if arguments is None else arguments)
    if {"-h", "--help"} & set(given):
        sys.stdout.write(USAGE)
        return 0
    return answered(lambda: _answer(given))


def _answer(given: Sequence[str]) -> None:
    name, config = parsed(given)
    export(config, name)


if __name__ == "__main__":
    sys.exit(main())
