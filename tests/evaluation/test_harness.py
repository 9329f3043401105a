"""lm-eval's tasks: the numbers are lm-eval's own, every document has its pair, and nothing leaks from one point to the next."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from cli import Ended

from sqbench import api
from sqbench.calibration import Statistics
from sqbench.collect import main as collect
from sqbench.data.text import Windows
from sqbench.errors import UserError
from sqbench.evaluation import EvaluationError, Result, own_settings, tasks
from sqbench.evaluation.documents import declared, parts
from sqbench.evaluation.harness import LM_EVAL, HarnessSettings, harness
from sqbench.evaluation.templates import SMOKE, TEMPLATES
from sqbench.execution import lower
from sqbench.formats.format import Format
from sqbench.formats.scheme import Scheme
from sqbench.models.language import LanguageModel
from sqbench.parts.task import Task
from sqbench.pipeline.engine import quantize
from sqbench.recipes.configured import named
from sqbench.records.store import Store
from sqbench.runtimes import RUNTIMES

BATCH = 7  # divides none of the tasks


@pytest.fixture(autouse=True)
def calm(caplog: pytest.LogCaptureFixture) -> None:
    """As `sqbench.console.quiet` has it."""
    caplog.set_level("ERROR", logger="lm_eval")


def settings(**given: Any) -> HarnessSettings:
    """Those of a command line, but for those that are given."""
    return HarnessSettings(**own_settings("lm_eval", "text") | given)


def answers(model: LanguageModel, windows: Windows, reference: Result | None = None, **settings: Any) -> Result:
    """With the settings of a command line, but for those that are given."""
    return harness(model, windows, reference, **own_settings("lm_eval", "text") | settings)


@pytest.fixture
def files(tmp_path: Path, text_file: Path) -> dict[str, Path]:
    """A small file for every template."""
    folder = tmp_path / "files"
    folder.mkdir()
    pairs = SMOKE.read_text(encoding="utf-8").splitlines()
    questions = [
        {"question": f"{a} + {b} =", "choices": [str(a + b), str(a + b + 1), "twenty"], "answer": 0}
        for a in range(5)
        for b in range(7)
    ]
    written = {
        "minimal_pairs": "\n".join(pairs[:33]),
        "multiple_choice": "\n".join(json.dumps(question) for question in questions),
        "last_word": text_file.read_text(encoding="utf-8")[:20_000],
        "rolling": text_file.read_text(encoding="utf-8")[:9_000],
    }
    for name, text in written.items():
        (folder / f"my_{name}.txt").write_text(text, encoding="utf-8")
    return {name: folder / f"my_{name}.txt" for name in written}


def plain(model: LanguageModel, template: str, path: Path, folder: Path) -> dict[str, Any]:
    """What lm-eval gives by itself, of a task that is written in its own way."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from sqbench.evaluation.served import _tokenizer

    data = folder / "data.jsonl"
    data.write_text("\n".join(json.dumps(document) for document in TEMPLATES[template].documents(path)), encoding="utf-8")
    task = {
        "task": "plain",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(folder / "cache")},
        "test_split": "test",
        **TEMPLATES[template].config,
    }
    lm = HFLM(pretrained=model.module, tokenizer=_tokenizer(model), batch_size=1 if template == "rolling" else BATCH)
    return lm_eval.simple_evaluate(
        lm, tasks=[task], task_manager=TaskManager(include_defaults=False), bootstrap_iters=1000, log_samples=True
    )


@pytest.fixture
def w4(tiny: LanguageModel, statistics: Any) -> LanguageModel:
    """The model with weights of three bits: bad enough to answer otherwise."""
    scheme = Scheme("w3", Format(bits=3, granularity="channel"), None)
    return quantize(Task(tiny, statistics, scheme), named("rtn"))


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_float_model_gets_lm_evals_own_numbers(
    tiny: LanguageModel, windows: Windows, files: dict[str, Path], tmp_path: Path, template: str
) -> None:
    expected = plain(tiny, template, files[template], tmp_path)
    result = answers(tiny, windows, tasks=[f"{template}:{files[template]}"], batch=BATCH)
    compared = 0
    for key, value in expected["results"]["plain"].items():
        if key.endswith(",none") and value != "N/A":
            assert result.metrics[f"my_{template}/{key.removesuffix(',none')}"] == value, key
            compared += 1
    assert compared >= 2
    logged = expected["samples"]["plain"]
    for metric, rows in result.samples.groupby("metric"):
        assert rows["doc_hash"].tolist() == [document["doc_hash"] for document in logged]
        if rows["aggregation"].iloc[0] == "mean":
            assert rows["value"].tolist() == [document[metric.split("/")[1]] for document in logged]
        else:
            assert (rows["value"] > 0).all()


def test_changes_are_those_of_the_metrics_for_every_kind_of_metric(
    tiny: LanguageModel, w4: LanguageModel, windows: Windows, files: dict[str, Path]
) -> None:
    asked = {"tasks": [f"{template}:{path}" for template, path in files.items()], "batch": BATCH}
    base = LM_EVAL.as_reference(answers(tiny, windows, **asked))
    result = answers(w4, windows, base, **asked)
    differences = LM_EVAL.differences(result.samples, 200, 0.95)
    measured = {name for name in result.metrics if "_stderr" not in name and name != "weight_bytes"}
    assert set(differences) == measured
    assert len(measured) == 9  # acc over three tasks, and two, one, two and three of the tasks
    for name in measured:
        assert differences[name].value == pytest.approx(result.metrics[name] - base.metrics[name], rel=1e-9, abs=1e-12), name
    of_tasks = [result.metrics[f"my_{template}/acc"] for template in ("minimal_pairs", "multiple_choice", "last_word")]
    assert result.metrics["acc"] == pytest.approx(np.mean(of_tasks))
    assert differences["my_minimal_pairs/acc"].n == 33
    assert differences["acc"].n == sum(differences[f"my_{t}/acc"].n for t in ("minimal_pairs", "multiple_choice", "last_word"))
    assert result.metrics["weight_bytes"] < base.metrics["weight_bytes"]
    for difference in LM_EVAL.differences(base.samples, 200, 0.95).values():
        assert difference.value == 0


def test_documents_are_paired_by_what_they_are(tiny: LanguageModel, windows: Windows, tmp_path: Path) -> None:
    lines = SMOKE.read_text(encoding="utf-8").splitlines()[:4]
    path = tmp_path / "twice.jsonl"
    path.write_text("\n".join([*lines, *lines]), encoding="utf-8")  # equal documents are documents, too
    base = LM_EVAL.as_reference(answers(tiny, windows, tasks=[f"minimal_pairs:{path}"]))
    assert base.samples["copy"].tolist() == [0] * 4 + [1] * 4
    values = np.arange(8.0)
    shuffled = base.samples.assign(value=values).sample(frac=1, random_state=0)
    paired = answers(tiny, windows, Result({}, shuffled, tiny, None), tasks=[f"minimal_pairs:{path}"])
    assert paired.samples["value_fp"].tolist() == values.tolist()
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(EvaluationError, match="twice/acc: the documents are not those"):
        answers(tiny, windows, base, tasks=[f"minimal_pairs:{path}"])


def test_questions_about_one_passage_are_drawn_together(tiny: LanguageModel, windows: Windows, tmp_path: Path) -> None:
    path = tmp_path / "reading.jsonl"
    question = {"choices": ["yes", "no"], "answer": 0}
    written = [{"passage": f"Text {number // 4}.", "question": f"Is {number} even?", **question} for number in range(12)]
    alone = {"question": "Is it?", **question}
    path.write_text("\n".join(map(json.dumps, [*written, alone])), encoding="utf-8")
    result = LM_EVAL.as_reference(answers(tiny, windows, tasks=[f"multiple_choice:{path}"]))
    found = LM_EVAL.differences(result.samples, 200, 0.95)["reading/acc"]
    assert (found.n, found.clusters) == (13, 4)  # three passages, and the question that has none
    assert TEMPLATES["multiple_choice"].documents(path)[0]["passage"] == "Text 0."


def test_a_broken_model_does_not_answer_right(tiny: LanguageModel, windows: Windows) -> None:
    class Broken(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.config, self.generate = tiny.module, tiny.module.config, tiny.module.generate
            self.get_input_embeddings = tiny.module.get_input_embeddings

        def forward(self, *args: Any, **options: Any) -> Any:
            output = self.inner(*args, **options)
            output.logits.fill_(float("nan"))
            return output

    with pytest.raises(EvaluationError, match="is nan"):
        answers(tiny.with_module(Broken(), None), windows, tasks=["smoke"], limit=3)


def test_nothing_is_left_behind(
    tiny: LanguageModel, w4: LanguageModel, windows: Windows, capsys: pytest.CaptureFixture[str]
) -> None:
    def state() -> tuple[Any, ...]:
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    before, tokenizer = state(), len(tiny.tokenizer)
    executed = lower(w4, "int")
    parameters = {name: id(value) for name, value in executed.module.named_parameters()}
    buffers = {name: id(value) for name, value in executed.module.named_buffers()}
    first, again = (answers(executed, windows, tasks=["smoke"], batch=BATCH) for _ in range(2))
    pd.testing.assert_frame_equal(first.samples, again.samples)
    assert state() == before
    assert parameters == {name: id(value) for name, value in executed.module.named_parameters()}
    assert buffers == {name: id(value) for name, value in executed.module.named_buffers()}
    assert (len(tiny.tokenizer), tiny.tokenizer.pad_token_id, tiny.tokenizer.eos_token_id) == (tokenizer, None, None)
    assert capsys.readouterr().out == ""


def test_a_longer_answer_than_the_context_is_named(tiny: LanguageModel, windows: Windows, tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    path.write_text(json.dumps({"sentence_good": "a" * 200, "sentence_bad": "b"}), encoding="utf-8")
    with pytest.raises(EvaluationError, match=r"201 tokens of ' aaa.* to predict: the model takes 1 to 128"):
        answers(tiny, windows, tasks=[f"minimal_pairs:{path}"])


def yaml_task(folder: Path, documents: int = 4) -> Path:
    """A task in lm-eval's own form, in four files: it is generated, filtered twice, and shares settings with others."""
    folder.mkdir(exist_ok=True)
    lines = [json.dumps({"prompt": f"the {number} ", "answer": "a"}) for number in range(documents)]
    (folder / "data.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (folder / "helper.py").write_text("def text(doc):\n    return doc['prompt']\n", encoding="utf-8")
    (folder / "shared.yaml").write_text("output_type: generate_until\ntest_split: test\n", encoding="utf-8")
    (folder / "task.yaml").write_text(
        f"""task: written
include: shared.yaml
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder / "data.jsonl"}}}, cache_dir: {folder / "cache"}}}
doc_to_text: !function helper.text
doc_to_target: answer
generation_kwargs: {{until: ["."], max_gen_toks: 3}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
filter_list:
  - {{name: strict, filter: [{{function: take_first}}]}}
  - {{name: loose, filter: [{{function: regex, regex_pattern: "([a-z])", fallback: none}}, {{function: take_first}}]}}
""",
        encoding="utf-8",
    )
    return folder / "task.yaml"


@pytest.mark.parametrize("backend", RUNTIMES)
def test_a_model_in_a_runtime_writes_the_same_answers(
    backend: str, tiny: LanguageModel, windows: Windows, statistics: Statistics, tmp_path: Path
) -> None:
    pytest.importorskip(RUNTIMES[backend].package)
    quantized = api.quantize(tiny, statistics, "rtn", Scheme("w8a16", Format(8, granularity="channel")))
    task = str(yaml_task(tmp_path / "own"))
    simulated, executed = (answers(lower(quantized, name), windows, tasks=[task]) for name in ("sim", backend))
    assert executed.samples["outcome"].tolist() == simulated.samples["outcome"].tolist()


def test_a_yaml_task_of_ones_own_runs(tiny: LanguageModel, windows: Windows, tmp_path: Path) -> None:
    base = answers(tiny, windows, tasks=[str(yaml_task(tmp_path / "own"))])
    assert {"written/exact_match,strict", "written/exact_match,loose", "written/exact_match_stderr,loose"} <= set(base.metrics)
    assert base.metrics["exact_match"] == base.metrics["written/exact_match,strict"]
    assert base.samples["doc_hash"].nunique() == 4
    fewer = answers(tiny, windows, tasks=[str(tmp_path / "own" / "task.yaml")], limit=2)
    assert fewer.samples["doc_hash"].tolist() == base.samples.loc[[0, 1, 4, 5], "doc_hash"].tolist()


def test_what_is_no_number_is_kept_as_it_is() -> None:
    rows = [{"task": "t", "doc_hash": hash_, "copy": 0, "metric": "t/f1", "main": "", "share": 0.5} for hash_ in "ab"]
    samples = pd.DataFrame([row | {"aggregation": "f1", "better": "higher"} | parts((0, 1), "f1") for row in rows])
    assert samples["outcome"].tolist() == ["[0, 1]", "[0, 1]"]
    found = {metric.name: metric for metric in declared(samples)}
    assert (found["t/f1"].outcome, found["t/f1"].better) == (None, "higher")


@pytest.mark.parametrize(("one", "other", "mean"), [("higher", "higher", "higher"), ("higher", "lower", None), ("", "", None)])
def test_a_metric_is_better_as_its_task_says_and_a_mean_over_tasks_where_all_agree(one: str, other: str, mean: str | None) -> None:
    rows = [
        {"task": task, "doc_hash": "a", "copy": 0, "passage": "a", "metric": f"{task}/glossary", "main": "glossary", "share": 1.0}
        | {"aggregation": "mean", "better": better, "value": 0.5, "weight": 1.0}
        for task, better in (("t", one), ("u", other))
    ]
    found = {metric.name: metric for metric in declared(pd.DataFrame(rows))}
    assert (found["t/glossary"].better, found["u/glossary"].better, found["glossary"].better) == (one or None, other or None, mean)
    assert (found["t/glossary"].part, found["glossary"].part) == (True, False)


def questions(folder: Path, *texts: str) -> Path:
    path = folder / "few.jsonl"
    written = [{"question": text, "choices": ["wet", "dry"], "answer": 0} for text in texts]
    path.write_text("\n".join(map(json.dumps, written)), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("texts", "fewshot", "refusal"),
    [
        ("abcd", 3, None),
        ("abcd", 4, "few.jsonl has 3 examples to show before a question (4, without the one that is asked); use 0 to 3"),
        (
            "aabc",
            3,
            "few.jsonl has 2 examples to show before a question (4, without the one that is asked and its equals); use 0 to 2",
        ),
        (
            "aaaa",
            1,
            "few.jsonl has 0 examples to show before a question (4, without the one that is asked and its equals); use 0",
        ),
        ("aaaa", 0, None),
    ],
)
def test_more_examples_than_a_file_has_are_refused_before_anything_is_loaded(
    tiny: LanguageModel, windows: Windows, tmp_path: Path, texts: str, fewshot: int, refusal: str | None
) -> None:
    asked = {"tasks": [f"multiple_choice:{questions(tmp_path, *texts)}"], "fewshot": fewshot}
    if refusal is None:
        settings(**asked).check()
        assert "few/acc" in answers(tiny, windows, **asked).metrics
        return
    with pytest.raises(UserError) as error:
        settings(**asked).check()
    assert str(error.value).startswith(f"eval.fewshot={fewshot}: {refusal}")


def test_more_examples_than_a_yaml_task_has_are_refused(tiny: LanguageModel, windows: Windows, tmp_path: Path) -> None:
    task = yaml_task(tmp_path / "own")
    task.write_text(task.read_text(encoding="utf-8") + "fewshot_split: test\n", encoding="utf-8")
    assert answers(tiny, windows, tasks=[str(task)], fewshot=3).metrics
    with pytest.raises(UserError, match=r"eval\.fewshot=4: written has 3 examples to show before a question"):
        answers(tiny, windows, tasks=[str(task)], fewshot=4)


def test_byte_order_marks_in_tasks_are_no_text(tiny: LanguageModel, windows: Windows, tmp_path: Path) -> None:
    marked = tmp_path / "smoke.jsonl"
    marked.write_text(SMOKE.read_text(encoding="utf-8"), encoding="utf-8-sig")
    for template in ("minimal_pairs", "rolling"):
        assert TEMPLATES[template].documents(marked) == TEMPLATES[template].documents(SMOKE)
    task = yaml_task(tmp_path / "own")
    expected = answers(tiny, windows, tasks=[str(task)]).metrics
    for name in ("task.yaml", "shared.yaml", "data.jsonl"):
        path = tmp_path / "own" / name
        path.write_text(path.read_text(encoding="utf-8"), encoding="utf-8-sig")
    assert answers(tiny, windows, tasks=[str(task)]).metrics == expected
    lines = tmp_path / "lines.txt"
    lines.write_text("one\ntwo\n", encoding="utf-8-sig")
    (tmp_path / "lines.yaml").write_text(f"task: a\ndataset_path: text\ndataset_kwargs: {{data_files: {lines}}}", encoding="utf-8")
    with pytest.raises(UserError, match=r"lines\.txt begins with a byte order mark, .*; save it as UTF-8 without the mark"):
        settings(tasks=[str(tmp_path / "lines.yaml")]).check()


@pytest.mark.parametrize(("tokens", "most"), [(1, 1), (40, 2), (200, 8)])
def test_the_logits_of_a_batch_have_a_bound_and_answers_do_not_depend_on_it(
    tiny: LanguageModel,
    windows: Windows,
    files: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    tokens: int,
    most: int,
) -> None:
    from sqbench.evaluation import served

    asked = {"tasks": [f"{template}:{files[template]}" for template in ("minimal_pairs", "multiple_choice")], "batch": 16}
    expected = answers(tiny, windows, **asked)
    sizes: list[tuple[int, ...]] = []
    call = served.Served._model_call

    def counted(self: Any, inps: torch.Tensor, **rest: Any) -> torch.Tensor:
        sizes.append(tuple(inps.shape))
        return call(self, inps, **rest)

    monkeypatch.setattr(served.Served, "_model_call", counted)
    monkeypatch.setattr(served, "LOGITS_BYTES", tokens * 256 * 8)  # bytes are its words
    found = answers(tiny, windows, **asked)
    assert all(rows == 1 or rows * length <= tokens for rows, length in sizes)
    assert max(rows for rows, _ in sizes) >= most
    for name, value in expected.metrics.items():
        assert found.metrics[name] == pytest.approx(value, rel=1e-5), name


def identity(tasks_: list[str]) -> dict[str, Any]:
    return settings(tasks=tasks_).inputs()


def test_a_task_is_its_files_wherever_they_lie(tmp_path: Path) -> None:
    here, there = yaml_task(tmp_path / "here"), yaml_task(tmp_path / "there")
    there.write_text(here.read_text(encoding="utf-8"), encoding="utf-8")  # the data of `here`
    known = identity([str(here)])
    assert identity([str(there)]) == known
    for name, text in (
        ("data.jsonl", '{"prompt": "a", "answer": "b"}'),
        ("helper.py", "def text(doc):\n    return 'x'\n"),
        ("shared.yaml", "output_type: generate_until\ntest_split: train\n"),
        ("task.yaml", here.read_text(encoding="utf-8") + "# changed\n"),
    ):
        (tmp_path / "here" / name).write_text(text, encoding="utf-8")
        changed = identity([str(here)])
        assert changed != known, name
        known = changed
    pairs = tmp_path / "smoke.jsonl"
    pairs.write_bytes(SMOKE.read_bytes())
    assert identity([f"minimal_pairs:{pairs}"]) == identity(["smoke"])
    assert identity(["smoke"])["lm_eval"]


class Listed:
    """A list of tasks that is read at once."""

    task_index = dict.fromkeys(("lambada_openai", "lambada_standard", "hellaswag"))


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([], ["eval.tasks=[]", "smoke"]),
        (
            ["lambda_openai"],
            ["eval.tasks=[lambda_openai]: lm-eval has no such task", "did you mean lambada_openai", "minimal_pairs:FILE"],
        ),
        (["minimal_pair:x.jsonl"], ["eval.tasks=[minimal_pair:x.jsonl]", "did you mean minimal_pairs?", "rolling"]),
        (["rolling:nowhere.txt"], ["eval.tasks=[rolling:nowhere.txt]", "no such file (from "]),
        (["rolling:."], ["is a folder; use a file"]),
        (["nowhere.yaml"], ["eval.tasks=[nowhere.yaml]", "no such file"]),
        (["bad.yaml"], ["bad.yaml is not YAML", "line 1"]),
        (["empty.yaml"], ["holds no keys"]),
        (["nameless.yaml"], ["names no task; write `task: my_name`"]),
        (["dataless.yaml"], ["missing.jsonl: no such file"]),
        (["broken.yaml"], ["broken.jsonl:2: is not JSON"]),
        (["minimal_pairs:broken.jsonl"], ["broken.jsonl:2: is not JSON"]),
        (["smoke", "rolling:smoke.txt"], ["smoke and rolling:smoke.txt are both called smoke"]),
    ],
)
def test_a_task_that_cannot_work_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entries: list[str], words: list[str]
) -> None:
    for name, text in {
        "bad.yaml": "a: [",
        "empty.yaml": "",
        "nameless.yaml": "dataset_path: json",
        "dataless.yaml": "task: a\ndataset_kwargs: {data_files: missing.jsonl}",
        "broken.yaml": "task: a\ndataset_kwargs: {data_files: broken.jsonl}",
        "broken.jsonl": '{"sentence_good": "a", "sentence_bad": "b"}\n{"sentence_good": \n',
        "smoke.txt": "Some text.",
    }.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tasks, "manager", lambda listed: Listed())
    with pytest.raises(UserError) as error:
        settings(tasks=entries).check()
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize(("change", "words"), [("eval.limit=0", "1 or more"), ("eval.fewshot=-1", "0 or more")])
def test_numbers_that_cannot_work_are_refused(command: Callable[..., Ended], change: str, words: str) -> None:
    ended = command("eval=lm_eval", change)
    assert ended.code == 2
    assert f"{change}: must be {words}, or null" in ended.err


@pytest.mark.slow
def test_a_task_that_lm_eval_lists_is_known_and_its_data_is_asked_for(command: Callable[..., Ended], results: Path) -> None:
    ended = command("eval=lm_eval", "eval.tasks=[lambda_openai]", "method=fp")
    assert ended.code == 2
    assert "did you mean lambada_openai" in ended.err
    ended = command("eval=lm_eval", "eval.tasks=[lambada_openai]", "method=fp")
    assert ended.code == 1
    assert "eval.tasks=[lambada_openai]: its data is not in the datasets cache" in ended.out + ended.err


@pytest.mark.slow
def test_points_of_a_sweep_are_records_samples_and_tables(
    command: Callable[..., Ended],
    results: Path,
    files: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    chosen = f"eval.tasks=[smoke,last_word:{files['last_word']}]"
    ended = command("-m", "eval=lm_eval", chosen, "method=fp,rtn", "bits=w4a4_dynamic", "backend=sim,int")
    assert ended.code == 0, ended.err
    assert "3 done" in ended.out
    records = list(Store(results).records())
    by_backend = {record.identity["backend"]: record for record in records if record.identity["method"]["name"] == "rtn"}
    assert set(by_backend) == {"sim", "int"}
    for record in by_backend.values():
        assert record.delta["smoke/acc"]["n"] == 40
        assert record.metrics["smoke/acc_stderr"] > 0
        assert record.baseline["smoke/acc"] > 0.5
        samples = pd.read_parquet(results / "runs" / record.point_id / "samples.parquet")
        smoke = samples[samples["metric"] == "smoke/acc"]
        assert smoke["value"].mean() == record.metrics["smoke/acc"]
        assert smoke["value_fp"].mean() == record.baseline["smoke/acc"]
        assert not samples.duplicated(["task", "doc_hash", "copy", "metric"]).any()
    assert len(list((results / "cache" / "baselines").glob("*.safetensors"))) == 1
    for metric in ("acc", "smoke/acc", "my_last_word/perplexity"):
        monkeypatch.setattr("sys.argv", ["sqbench.collect", f"results_dir={results}", "rows=[method,backend]", f"metric={metric}"])
        collect()
        table = capsys.readouterr().out
        assert metric in table
        assert table.count("| rtn") == 2
        assert ("(%)" in table) == metric.endswith("acc")
    ended = command("-m", "eval=lm_eval", chosen, "method=fp,rtn", "bits=w4a4_dynamic", "backend=sim,int")
    assert "3 skipped" in ended.out
    changed = command("eval=lm_eval", "eval.tasks=[smoke]", "eval.limit=35", "method=fp")
    assert "1 done" in changed.out
