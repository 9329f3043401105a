"""Templates of lm-eval tasks over the user's own file. A template says how the file is read and what each document asks."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqbench.data.text_files import read
from sqbench.errors import UserError
from sqbench.evaluation.lines import json_lines, texts
from sqbench.evaluation.questions import multiple_choice

WORDS = 64  # least words of a passage whose last word is asked for
CHARACTERS = 2000  # least characters of a document of rolling perplexity, about 500 tokens; its last word is whole
SMOKE = Path(__file__).with_name("smoke.jsonl")  # our own minimal pairs

OF_DATA = ("task", "tag", "dataset_path", "dataset_name", "dataset_kwargs", "training_split", "validation_split", "test_split")

_ACCURACY = {"aggregation": "mean", "higher_is_better": True}
_PERPLEXITY = {"aggregation": "weighted_perplexity", "higher_is_better": False}


@dataclass(frozen=True)
class Template:
    """A kind of task over a file.

    Attributes:
        documents: path -> documents of the file, all with the same fields. Raises UserError.
        config: fields of lm-eval's `TaskConfig`.
        base: lm-eval's own file of a task whose other fields apply, below its folder of tasks. Empty if there is none.
        beside: path -> a second file that is read. None if there is none.
    """

    documents: Callable[[Path], list[dict[str, Any]]]
    config: dict[str, Any] = field(default_factory=dict)
    base: str = ""
    beside: Callable[[Path], Path] | None = None

    def task(self) -> dict[str, Any]:
        """All fields of lm-eval's `TaskConfig` but name and data."""
        if not self.base:
            return self.config
        import lm_eval.tasks
        from lm_eval.tasks._yaml_loader import load_yaml

        own = load_yaml(Path(lm_eval.tasks.__file__).parent / self.base)
        return {name: value for name, value in own.items() if name not in OF_DATA} | {"fewshot_split": "test"} | self.config


def _pair(item: dict[str, Any]) -> dict[str, Any]:
    return texts(item, "sentence_good", "sentence_bad")


def minimal_pairs(path: Path) -> list[dict[str, Any]]:
    """Pairs of sentences in the format of BLiMP (Warstadt et al. 2020)."""
    return json_lines(path, _pair)


def last_word(path: Path) -> list[dict[str, Any]]:
    """Consecutive passages of at least `WORDS` words. Each ends with a word that begins with a letter or digit, the target.

    Punctuation after the target is left out, as in LAMBADA. The rest at the end of the text is left out, too.
    """
    text = read(str(path), "eval.tasks")
    words = list(re.finditer(r"\S+", text))
    documents, start = [], 0
    for place, last in enumerate(words):
        word = re.match(r"\w+(?:['’-]\w+)*", last[0])
        if word and place - start >= WORDS - 1:
            before = words[place - 1].end()
            documents.append({"context": text[words[start].start() : before], "target": text[before : last.start()] + word[0]})
            start = place + 1
    if not documents:
        raise UserError(f"eval.tasks=[last_word:{path}]: {len(words)} words hold no passage of {WORDS}; use a longer text")
    return documents


def rolling(path: Path) -> list[dict[str, Any]]:
    """A text cut into documents of about `CHARACTERS`. No text is lost, and a bootstrap has several documents to draw from."""
    pieces = re.findall(rf".{{{CHARACTERS}}}\S*\s*|.+", read(str(path), "eval.tasks"), re.DOTALL)
    return [{"text": piece} for piece in pieces if piece.strip()]


TEMPLATES = {
    "minimal_pairs": Template(
        minimal_pairs,  # the rest is lm-eval's own `blimp`
        {
            "output_type": "multiple_choice",
            "doc_to_text": "",
            "doc_to_choice": "{{[sentence_good, sentence_bad]}}",
            "doc_to_target": 0,
            "num_fewshot": 0,
            "metric_list": [{"metric": "acc", **_ACCURACY}],
        },
    ),
    "multiple_choice": Template(
        multiple_choice,
        {
            "output_type": "multiple_choice",
            "doc_to_text": "{{passage ~ '\n' if passage else ''}}{{question}}",
            "doc_to_choice": "choices",
            "doc_to_target": "answer",
            "fewshot_split": "test",  # lm-eval leaves out the document that is asked about
            "metric_list": [{"metric": "acc", **_ACCURACY}, {"metric": "acc_norm", **_ACCURACY}],
        },
    ),
    "last_word": Template(
        last_word,  # the rest is lm-eval's own `lambada_openai`
        {
            "output_type": "loglikelihood",
            "doc_to_text": "context",
            "doc_to_target": "target",
            "num_fewshot": 0,
            "metric_list": [
                {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
                {"metric": "acc", **_ACCURACY},
            ],
        },
    ),
    "rolling": Template(
        rolling,  # the rest is lm-eval's own `wikitext`
        {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "text",
            "num_fewshot": 0,
            "metric_list": [
                {"metric": "word_perplexity", **_PERPLEXITY},
                {"metric": "byte_perplexity", **_PERPLEXITY},
                {"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False},
            ],
        },
    ),
}
