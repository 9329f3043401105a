"""Tasks of lm-eval (EleutherAI's evaluation harness). A point's own model answers them, paired with the float model's answers."""

import contextlib
import io
import math
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from statistics import fmean
from typing import Any

import numpy as np
import torch

from sqbench.comparison import SIZE, stderr_name
from sqbench.data.text import Windows
from sqbench.errors import UserError
from sqbench.evaluation.base import Evaluation, Result, Settings, require
from sqbench.evaluation.causality import require_causal
from sqbench.evaluation.documents import ACCURACY, declared, metric_name, paired, samples_of
from sqbench.evaluation.questions import Own
from sqbench.evaluation.tasks import Asked, asked, manager, require_examples
from sqbench.models.language import LanguageModel

BOOTSTRAPS = 1000  # for lm-eval's own standard error of perplexities, in plain Python; paired intervals use eval.resamples


def harness(
    model: LanguageModel,
    examples: Windows,
    reference: Result | None = None,
    *,
    tasks: Sequence[str],
    limit: int | None,
    fewshot: int | None,
    batch: int,
    fields: Mapping[str, Any] | None = None,
    answers: str | None = None,
    chat: bool = False,
) -> Result:
    """lm-eval's results of `tasks` (see `HarnessSettings`). For a float model they equal lm-eval's own with the same batches.

    Every request begins with the tokens that begin every window (`data.bos`). With `auto`, two things differ from lm-eval. A
    request that is cut to the model's context keeps these tokens, and rolling perplexity does not predict them.

    Metrics are `task/metric` and `task/metric_stderr` under lm-eval's names (with `,filter` if a task has filters). A plain name is
    the unweighted mean over tasks of their main metric. The main metric of a task is `acc`, or its first metric if that is a mean.

    Samples have a row per document and metric. Their columns are `task`, `doc_hash`, `copy` (number among equal documents),
    `passage` (equal for documents about one text), `metric` as above, `aggregation` (lm-eval's name for how rows make the metric),
    `better` (`higher` or `lower`, as the task says, or empty), `value` (nats or bits for perplexities), `weight`, `outcome`, `main`
    and `share`. An outcome that is not a number is JSON in `outcome`, and its value is NaN. `main` is the plain name in rows of a
    task's main metric. `share` is 1 over the number of the task's documents. Against a reference there is also `value_fp`, paired
    by document.

    Keep `batch` equal if activations are quantized per tensor and dynamically. The padding of a batch then changes its ranges.

    Args:
        examples: the source of the prefix. The first window is also used to test whether the model is causal.
        batch: most requests at once. There are fewer if their logits would be larger than `served.LOGITS_BYTES`.

    Raises:
        UserError: a task is unknown, its data cannot be loaded, or it has fewer examples than are asked for.
        EvaluationError: a log-likelihood is NaN or infinite, a continuation is empty or too long for the model's context, the
            reference answered other documents, or predictions of the float model depend on later tokens.
    """
    if reference is None:
        require_causal(model, examples.evaluation)
    with _put_back(model.device):
        found, loaded = _evaluate(model, examples.prefix, asked(tasks, _own(fields, answers)), limit, fewshot, batch, chat)
    samples = samples_of(found["samples"], loaded)
    if reference is not None:
        samples = paired(samples, reference.samples)
    metrics = {
        metric_name(task, key): float(value)
        for task, results in found["results"].items()
        for key, value in results.items()
        if "," in key and not isinstance(value, str)  # leaves out "N/A" and entries that are not metrics
    }
    means: dict[str, float] = {}
    mains = samples.loc[samples["main"] != "", ["main", "metric"]].drop_duplicates()
    for plain, of_tasks in mains.groupby("main", sort=False)["metric"]:
        means[str(plain)] = fmean(metrics[metric] for metric in of_tasks)
        if all(stderr_name(metric) in metrics for metric in of_tasks):
            means[stderr_name(str(plain))] = math.hypot(*(metrics[stderr_name(metric)] for metric in of_tasks)) / len(of_tasks)
    return Result({**means, **metrics, "weight_bytes": float(model.stored_bytes)}, samples, model, None)


def _evaluate(
    model: LanguageModel,
    prefix: tuple[int, ...],
    chosen: Sequence[Asked],
    limit: int | None,
    fewshot: int | None,
    batch: int,
    chat: bool,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The results of `lm_eval.simple_evaluate`, and the tasks. Its survey of the machine (seconds a point) is skipped."""
    from lm_eval import evaluate
    from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED

    from sqbench.evaluation.served import Served

    os.environ["DISABLE_MULTIPROC"] = "1"  # otherwise its bootstrap forks this process with all its threads
    random.seed(DEFAULT_RANDOM_SEED)  # tasks may draw while they read their documents
    np.random.seed(DEFAULT_OTHER_SEED)
    torch.manual_seed(DEFAULT_OTHER_SEED)
    specified = [task.specify(fewshot) for task in chosen]
    try:
        loaded = manager(any(task.listed for task in chosen)).load(specified)
    except OSError as error:  # `datasets` raises it when it finds no files and no network
        names = ",".join(task.name for task in chosen)
        raise UserError(
            f"eval.tasks=[{names}]: its data is not in the datasets cache (HF_HOME) and the hub cannot be reached; one"
            f" run with a network fills the cache, and a file works without: minimal_pairs:FILE ({type(error).__name__}: {error})"
        ) from error
    for task in loaded["tasks"].values():
        own = task.get_config("num_fewshot")
        if own is None or (fewshot is not None and own != 0):  # lm-eval keeps a task's 0: such a task takes no examples
            task.set_config("num_fewshot", fewshot or 0)
        task.set_fewshot_seed(DEFAULT_OTHER_SEED)
        if (shown := task.get_config("num_fewshot")) and hasattr(task, "sampler"):
            same = task.fewshot_cfg.split == task.get_config("test_split")
            require_examples(task.get_config("task"), shown, task.sampler.fewshot_docs(), same)
        if chat:
            require_question(task.get_config("task"), task.OUTPUT_TYPE)
    options = {"apply_chat_template": True, "fewshot_as_multiturn": True} if chat else {}  # as lm-eval's own command line has it
    served = Served(model, batch, prefix)
    found = evaluate(served, loaded, limit=limit, bootstrap_iters=BOOTSTRAPS, log_samples=True, **options)
    return found, loaded["tasks"]


def require_question(task: str, output: str) -> None:
    """Raise UserError if a task of this type of output asks no question that a chat template could wrap."""
    if output == "loglikelihood_rolling":
        raise UserError(f"eval.chat=true: {task} is the likelihood of a whole text, and asks nothing; use eval.chat=false")


@contextlib.contextmanager
def _put_back(device: torch.device) -> Iterator[None]:
    """Restore the random state, and print nothing. lm-eval seeds all generators and prints its progress."""
    state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([device] if device.type == "cuda" else []), contextlib.redirect_stdout(io.StringIO()):
        try:
            yield
        finally:
            random.setstate(state)
            np.random.set_state(numpy_state)


def _own(fields: Mapping[str, Any] | None, answers: str | None) -> Own | None:
    return None if fields is None and answers is None else Own(fields or {}, answers)


def _as_reference(result: Result) -> Result:
    """A float result in the form of a comparison. `value_fp` is its own `value`."""
    return Result(result.metrics, result.samples.assign(value_fp=result.samples["value"]), result.model, None)


@dataclass(frozen=True)
class HarnessSettings(Settings):
    """The settings of eval=lm_eval.

    Attributes:
        tasks: names, YAML files, TEMPLATE:FILE; see conf/eval/lm_eval.yaml.
        limit: documents of each task, from its start. None is all.
        fewshot: examples before each question. None is the task's own number.
        batch: requests at once.
        fields, answers: how a file of questions differs from the template `multiple_choice` (`templates.Own`). None: it does not.
        chat: whether the tokenizer's chat template wraps each question. Examples before it are earlier turns.
    """

    tasks: list[str]
    limit: int | None
    fewshot: int | None
    batch: int
    fields: dict[str, Any] | None
    answers: str | None
    chat: bool = False

    @property
    def chats(self) -> bool:
        return self.chat

    def check(self) -> None:
        require(self, {"limit": 1, "fewshot": 0, "batch": 1})
        for task in asked(self.tasks, _own(self.fields, self.answers)):
            specified = task.specify(self.fewshot)
            if self.chat and isinstance(specified, dict):
                require_question(task.name, specified["output_type"])

    def identified(self, kind: str) -> dict[str, Any]:
        """All but the fields and answers, which `inputs` has by their content."""
        return {name: value for name, value in super().identified(kind).items() if name not in ("fields", "answers")}

    def inputs(self) -> dict[str, Any]:
        """The content of the tasks instead of their paths, and the version of lm-eval."""
        return {
            "tasks": {task.name: task.inputs for task in asked(self.tasks, _own(self.fields, self.answers))},
            "lm_eval": version("lm_eval"),
        }


LM_EVAL = Evaluation(
    ("text",),
    (ACCURACY, SIZE),
    harness,
    _as_reference,
    HarnessSettings,
    declare=declared,
    size={"text": "eval.limit"},
)
