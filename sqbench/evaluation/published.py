"""Files of benchmarks as their authors publish them. lm-eval's own tasks ask the questions.

A file's documents are put into the fields that lm-eval's task reads. lm-eval itself reads the same data from a hub.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from sqbench.errors import UserError
from sqbench.evaluation.lines import json_lines, lines_of
from sqbench.evaluation.templates import Template

Document = dict[str, Any]


def _of(item: Document, **kinds: type | tuple[type, ...]) -> list[Any]:
    """The values of fields of these types. Raises ValueError for a missing field or another type."""
    for name, kind in kinds.items():
        if not isinstance(item.get(name), kind):
            found = f"is {item[name]!r}" if name in item else f"is missing (there are {', '.join(item) or 'none'})"
            raise ValueError(f"`{name}` {found}; the file must be as its authors publish it")
    return [item[name] for name in kinds]


def _arc(item: Document) -> Document:
    """AI2's ARC (Clark et al. 2018): `question` has `stem` and `choices` with labels."""
    asked, answer = _of(item, question=dict, answerKey=str)
    stem, choices = _of(asked, stem=str, choices=list)
    labels = [choice["label"] for choice in choices]
    if answer not in labels:
        raise ValueError(f"`answerKey` is {answer!r}, and the labels are {', '.join(labels)}")
    return {"question": stem, "choices": {"text": [choice["text"] for choice in choices], "label": labels}, "answerKey": answer}


def _hellaswag(item: Document) -> Document:
    """HellaSwag (Zellers et al. 2019)."""
    first, second, activity, endings, label = _of(item, ctx_a=str, ctx_b=str, activity_label=str, endings=list, label=(int, str))
    return {"ctx_a": first, "ctx_b": second, "activity_label": activity, "endings": endings, "label": str(label)}


def _winogrande(item: Document) -> Document:
    """WinoGrande (Sakaguchi et al. 2020): the sentence has a gap `_`."""
    sentence, one, two, answer = _of(item, sentence=str, option1=str, option2=str, answer=str)
    if "_" not in sentence or answer not in ("1", "2"):
        raise ValueError(f"`sentence` must have a gap _, and `answer` must be 1 or 2, not {answer!r}")
    return {"sentence": sentence, "option1": one, "option2": two, "answer": answer}


def _boolq(item: Document) -> Document:
    """BoolQ (Clark et al. 2019). SuperGLUE's files have `label` instead of `answer`."""
    question, passage = _of(item, question=str, passage=str)
    name = "answer" if "answer" in item else "label"
    (answer,) = _of(item, **{name: bool})
    return {"question": question, "passage": passage, "label": int(answer)}


def _lambada(item: Document) -> Document:
    """LAMBADA (Paperno et al. 2016), as OpenAI published it: the last word of `text` is asked for."""
    (text,) = _of(item, text=str)
    return {"text": text}


def _piqa(path: Path) -> list[Document]:
    """PIQA (Bisk et al. 2020). The labels are in a second file, for example valid-labels.lst beside valid.jsonl."""
    documents = json_lines(
        path, lambda item: dict(zip(("goal", "sol1", "sol2"), _of(item, goal=str, sol1=str, sol2=str), strict=True))
    )
    labels = [line.strip() for _, line in lines_of(labels_of(path))]
    if len(labels) != len(documents) or not set(labels) <= {"0", "1"}:
        raise UserError(
            f"{labels_of(path)}: must have a line with 0 or 1 for each of the {len(documents)} questions of {path.name}, and has"
            f" {len(labels)} lines"
        )
    return [{**document, "label": int(label)} for document, label in zip(documents, labels, strict=True)]


def labels_of(path: Path) -> Path:
    """PIQA's labels of a file of questions."""
    return path.with_name(f"{path.stem}-labels.lst")


def _lines(convert: Callable[[Document], Document]) -> Callable[[Path], list[Document]]:
    return partial(json_lines, convert=convert)


# What is asked is in lm-eval's own files, below its folder of tasks.
PUBLISHED = {
    "piqa": Template(_piqa, base="piqa/piqa.yaml", beside=labels_of),
    "arc": Template(_lines(_arc), base="arc/arc_easy.yaml"),  # arc_challenge.yaml differs in its data alone
    "hellaswag": Template(_lines(_hellaswag), base="hellaswag/hellaswag.yaml"),
    "winogrande": Template(_lines(_winogrande), base="winogrande/default.yaml"),
    "boolq": Template(_lines(_boolq), base="super_glue/boolq/default.yaml"),
    "lambada": Template(_lines(_lambada), base="lambada/lambada_openai.yaml"),
}
