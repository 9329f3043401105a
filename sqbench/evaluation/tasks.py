"""The entries of `eval.tasks`. Each is a task that lm-eval lists, the user's YAML file, or one of our templates over a file."""

import codecs
import glob
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from sqbench.errors import UserError, closest, known
from sqbench.evaluation.lines import json_lines
from sqbench.evaluation.published import PUBLISHED
from sqbench.evaluation.questions import Own, multiple_choice
from sqbench.evaluation.templates import SMOKE, TEMPLATES
from sqbench.storage.files import known_digest

log = logging.getLogger(__name__)

OVER_FILES = {**TEMPLATES, **PUBLISHED}
OWN = "multiple_choice"  # the template whose fields a file may name otherwise
BUNDLED = {"smoke": f"minimal_pairs:{SMOKE}"}  # tasks that ship with the package


@dataclass(frozen=True)
class Asked:
    """One entry of `eval.tasks`.

    Attributes:
        name: the first part of its metrics' names.
        inputs: the task's part of the identity of a point. It has fingerprints instead of paths.
        listed: whether lm-eval's own list of tasks is needed.
        specify: `eval.fewshot` -> specification that lm-eval's TaskManager loads. Raises UserError if the task cannot run.
    """

    name: str
    inputs: dict[str, Any]
    listed: bool
    specify: Callable[[int | None], str | dict[str, Any]]


def asked(entries: Sequence[str], own: Own | None = None) -> list[Asked]:
    """The parsed entries of `eval.tasks`. No document is read yet.

    Args:
        own: how files of the template `multiple_choice` differ from it.

    Raises:
        UserError: there is no entry, two have one name, a template is unknown, a file is missing, or a file is not a task.
    """
    if not entries:
        raise UserError("eval.tasks=[]: must have at least one task, smoke for example")
    if own is not None and not any(entry.startswith(f"{OWN}:") for entry in entries):
        raise UserError(f"eval.tasks=[{','.join(entries)}]: eval.fields and eval.answers are for {OWN}:FILE")
    found = [_understand(entry, own) for entry in entries]
    names = [task.name for task in found]
    for place, name in enumerate(names):
        if name in names[:place]:
            one, other = entries[names.index(name)], entries[place]
            works = f"use files with different names, or a point for each: -m eval.tasks=[{one}],[{other}]"
            raise UserError(f"eval.tasks: {one} and {other} are both called {name} in metrics; {works}")
    return found


@lru_cache
def manager(listed: bool) -> Any:
    """lm-eval's TaskManager, with or without the tasks that it lists."""
    from lm_eval.tasks import TaskManager

    if listed:
        log.info("reading lm-eval's list of tasks, which takes some seconds, once")
    return TaskManager(include_defaults=listed)


def require_examples(name: str, wanted: int, pool: Sequence[Any], asked_too: bool) -> None:
    """Raise UserError if a task has fewer examples to show before a question than are wanted.

    Args:
        pool: the examples.
        asked_too: whether the pool is the questions themselves. lm-eval then leaves out the question that is asked and its equals.
    """
    alike = max(Counter(map(repr, pool)).values(), default=0) if asked_too and wanted else 0
    if wanted > (there := len(pool) - alike):
        equal = f" ({len(pool)}, without the one that is asked{' and its equals' if alike > 1 else ''})" if asked_too else ""
        works = f"use 0 to {there}" if there else "use 0"
        raise UserError(f"eval.fewshot={wanted}: {name} has {there} examples to show before a question{equal}; {works}")


def _understand(entry: str, own: Own | None) -> Asked:
    template, colon, path = BUNDLED.get(entry, entry).partition(":")
    if colon:
        return _of_template(entry, template, Path(path), own if template == OWN else None)
    if entry.endswith((".yaml", ".yml")):
        return _of_yaml(entry)
    return Asked(entry, {"listed": entry}, True, lambda fewshot: _listed(entry))


def _listed(name: str) -> str:
    if name not in (names := manager(True).task_index):
        raise UserError(
            f"eval.tasks=[{name}]: lm-eval has no such task; {closest(name, names)} A file can be given too: my.yaml,"
            f" {', '.join(f'{template}:FILE' for template in OVER_FILES)}"
        )
    return name


def _of_template(entry: str, name: str, path: Path, own: Own | None) -> Asked:
    if name not in OVER_FILES:
        raise UserError(f"eval.tasks=[{entry}]: {known(name, OVER_FILES)}")
    template = OVER_FILES[name]
    inputs = {"template": name, "file": known_digest(_present(path, entry))}
    if template.beside is not None:
        inputs["beside"] = known_digest(_present(template.beside(path), entry))
    if own is not None:
        own.check()
        inputs |= own.about()

    def specify(fewshot: int | None) -> dict[str, Any]:
        documents, task = multiple_choice(path, own) if own is not None else template.documents(path), template.task()
        if not documents:
            raise UserError(f"eval.tasks=[{entry}]: the file holds no document")
        if fewshot is not None and task.get("num_fewshot") != 0:
            require_examples(path.name, fewshot, documents, asked_too=True)

        def load(**_: Any) -> dict[str, Any]:
            from datasets import Dataset

            return {"test": Dataset.from_list(documents)}

        return {"task": path.stem, "custom_dataset": load, "test_split": "test", **task}

    return Asked(path.stem, inputs, False, specify)


def _of_yaml(entry: str) -> Asked:
    config = _parsed(Path(entry), entry)
    group, name = "group" in config, config.get("group", config.get("task"))
    if not isinstance(name, str):
        raise UserError(f"eval.tasks=[{entry}]: names no task; write `task: my_name` in it")
    files = list(_files(Path(entry), entry))

    def specify(fewshot: int | None) -> str:
        for file in files:
            if file.suffix == ".jsonl":
                json_lines(file, dict)
            elif file.suffix == ".txt" and file.read_bytes().startswith(codecs.BOM_UTF8):
                raise UserError(
                    f"eval.tasks=[{entry}]: {file} begins with a byte order mark, which `datasets` takes for text;"
                    " save it as UTF-8 without the mark"
                )
        return entry

    return Asked(name, {"files": sorted(known_digest(file) for file in files)}, group, specify)


class _Function(str):
    """The name in `!function module.name`. The function is not imported."""


class _SafeLoader(yaml.SafeLoader):
    """A loader of lm-eval's YAML that does not run the functions that it names."""


_SafeLoader.add_constructor("!function", lambda loader, node: _Function(node.value))


def _parsed(path: Path, entry: str) -> dict[str, Any]:
    try:
        config = yaml.load(_present(path, entry).read_text(encoding="utf-8-sig"), _SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"eval.tasks=[{entry}]: {path} is not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(config, dict):
        raise UserError(f"eval.tasks=[{entry}]: {path} holds no keys; write a task of lm-eval, with `task: my_name` and so on")
    return config


def _files(path: Path, entry: str) -> Iterator[Path]:
    """Every local file of a task in YAML: the file itself, the files that it includes, its Python and its data."""
    yield _present(path, entry)
    config = _parsed(path, entry)
    for value in _leaves(config):
        if isinstance(value, _Function):
            module = path.parent / f"{value.rpartition('.')[0].replace('.', '/')}.py"
            if module.is_file():  # otherwise it is a module of an installed package
                yield module
    for value in _leaves((config.get("dataset_kwargs") or {}).get("data_files")):
        if "://" not in value:
            for file in sorted(glob.glob(value)) or [value]:  # noqa: PTH207 (`datasets` takes patterns of any folder)
                yield _present(Path(file), entry)
    for included in _leaves(config.get("include")):
        yield from _files(path.parent / included, entry)


def _leaves(value: Any) -> Iterator[str]:
    """The texts inside nested lists and mappings."""
    if isinstance(value, str):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _leaves(inner)


def _present(path: Path, entry: str) -> Path:
    if not path.is_file():
        there = "is a folder" if path.is_dir() else f"no such file (from {Path.cwd()})"
        raise UserError(f"eval.tasks=[{entry}]: {path}: {there}; use a file")
    return path
