"""Labelled texts of a hub, read from a copy of a repository: columns, classes, splits, and what is said without a network."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from cli import Ended, call
from datasets import ClassLabel, Dataset, Features, Value
from encoders import load, save_encoder, sentence

from sqbench import api
from sqbench.config import CONF_DIR, CalibrationConfig, DataConfig
from sqbench.data import SOURCES
from sqbench.data.hub_text import KEY, Place
from sqbench.data.labelled_text import LabelledText
from sqbench.data.text_tables import Columns
from sqbench.errors import UserError
from sqbench.records.store import Store

NAMES = {"sst2": ["negative", "positive"], "cola": ["unacceptable", "acceptable"], "mrpc": ["not_equivalent", "equivalent"]}
TASKS = sorted(path.stem for path in (CONF_DIR / "data" / "glue").glob("*.yaml"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")


def repository(folder: Path, subset: str, columns: tuple[str, ...], target: Any, values: Callable[[int], Any]) -> Path:
    """A copy of a repository with one subset in the layout of GLUE's: a folder of parquet files, and a README that names them."""
    features = Features({**dict.fromkeys(columns, Value("string")), "label": target, "idx": Value("int32")})
    (folder / subset).mkdir(parents=True)
    for split, first, count in (("train", 100, 30), ("validation", 0, 20), ("test", 500, 4)):
        rows = [
            {**{name: sentence(1000 * place + first + at) for place, name in enumerate(columns)}, "idx": at} for at in range(count)
        ]
        told = [{**row, "label": -1 if split == "test" else values(at)} for at, row in enumerate(rows)]
        Dataset.from_list(told, features=features).to_parquet(folder / subset / f"{split}-00000-of-00001.parquet")
    files = "".join(f"  - split: {split}\n    path: {subset}/{split}-*\n" for split in ("train", "validation", "test"))
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: {subset}\n  data_files:\n{files}---\n")
    return folder


def glue(folder: Path, task: str) -> Path:
    columns = ("sentence1", "sentence2") if task in ("mrpc", "stsb") else ("sentence",)
    target = Value("float32") if task == "stsb" else ClassLabel(names=NAMES[task])
    return repository(folder, task, columns, target, lambda at: at % 5 if task == "stsb" else at % 2)


def corpus(path: Path | None, task: str = "sst2", **options: Any) -> LabelledText:
    cfg = api.configure("model=hf", "model.name=some/model", f"data=glue/{task}", "method=rtn").data
    told = {key: cfg[key] for key in ("hub", "columns")} | options
    given = DataConfig(name=task, source="hub_text", path=None if path is None else str(path), **told)
    found = SOURCES["hub_text"].fetch(given, CalibrationConfig())
    assert isinstance(found, LabelledText)
    return found


@pytest.mark.parametrize("task", TASKS)
def test_every_task_of_glue_is_a_preset(task: str) -> None:
    cfg = api.configure("model=hf", "model.name=some/model", f"data=glue/{task}", "method=rtn").data
    place, columns = Place.of(cfg.hub), Columns.of(cfg.columns)
    assert (cfg.name, cfg.source, place.repository, place.train) == (task, "hub_text", "nyu-mll/glue", "train")
    assert task.startswith(str(place.subset))
    assert place.test.startswith("validation")
    assert columns.scored == (task == "stsb")
    assert len(columns.texts) == (1 if task in ("cola", "sst2") else 2)


@pytest.mark.parametrize("task", ["cola", "sst2", "mrpc", "stsb"])
def test_the_validation_split_evaluates_and_the_training_split_calibrates(task: str, tmp_path: Path) -> None:
    found = corpus(glue(tmp_path / "glue", task), task)
    assert (len(found.test), len(found.train), found.carved) == (20, 30, False)
    assert found.test[3].texts[0] == sentence(3)
    assert found.train[3].texts[0] == sentence(103)
    assert found.classes == tuple(NAMES.get(task, ()))
    assert found.test[3].target == (3 if task == "stsb" else NAMES[task][1])


@pytest.mark.parametrize(
    ("labels", "numbers"),
    [
        ({0: "LABEL_0", 1: "LABEL_1"}, [0, 1]),  # transformers' own words: the data set's order counts
        ({0: "NEGATIVE", 1: "POSITIVE"}, [0, 1]),
        ({0: "positive", 1: "negative"}, [1, 0]),  # the model's words count, whatever their order
    ],
)
def test_classes_are_known_by_their_names(labels: dict[int, str], numbers: list[int], tmp_path: Path) -> None:
    words = {"id2label": labels, "label2id": {word: number for number, word in labels.items()}}
    model = load(save_encoder(tmp_path / "m", end="ForSequenceClassification", **words))
    made = corpus(glue(tmp_path / "glue", "sst2")).examples(model, DataConfig(), CalibrationConfig(sentences=4))
    assert made.targets is not None
    assert made.targets[:2].tolist() == numbers


def test_other_classes_than_the_models_are_refused(tmp_path: Path) -> None:
    words = {"id2label": {0: "no", 1: "yes"}, "label2id": {"no": 0, "yes": 1}}
    model = load(save_encoder(tmp_path / "m", end="ForSequenceClassification", **words))
    with pytest.raises(UserError, match=r"2 classes \(negative, positive\) that model\.name=.* does not know; it has no, yes"):
        corpus(glue(tmp_path / "glue", "sst2")).examples(model, DataConfig(), CalibrationConfig(sentences=4))


def test_a_training_row_without_a_text_is_left_out(tmp_path: Path) -> None:
    folder = glue(tmp_path / "glue", "sst2")
    file = folder / "sst2" / "train-00000-of-00001.parquet"
    rows = Dataset.from_parquet(str(file))
    assert isinstance(rows, Dataset)
    rows.map(lambda row: {"sentence": "" if row["idx"] == 7 else row["sentence"]}).to_parquet(file)
    assert len(corpus(folder).train) == 29


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"hub": None}, r"data\.hub=None: must be a mapping"),
        ({"hub": {"subset": "sst2"}}, r"data\.hub: must have a repository"),
        ({"hub": {"repository": "a", "split": "test"}}, r"data\.hub\.split: .*known: repository, subset, test, train"),
        ({"hub": {"repository": "a", "subset": "sst2", "test": "test"}}, r"row 0 of test of sst2 has no class \(-1\)"),
        ({"hub": {"repository": "a", "subset": "sst2", "test": "dev"}}, r"data=sst2: not in the datasets cache"),
        ({"columns": {"text": "words", "label": "label"}}, r"data\.columns: validation of sst2 has no column words; it has"),
        ({"columns": {"text": "sentence", "label": "idx"}}, r"data\.columns\.label: idx of sst2 does not name its classes"),
        ({"train_path": "x"}, r"data\.train_path=x: must be null"),
        ({"sentences": 21}, r"data\.sentences=21: validation of sst2 has 20 rows"),
    ],
)
def test_what_cannot_work_is_named(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        corpus(glue(tmp_path / "glue", "sst2"), **options)


def test_without_a_network_the_cache_and_the_path_are_named() -> None:
    with pytest.raises(
        UserError, match=r"data=sst2: not in the datasets cache \(HF_HOME\).*use data\.path=FOLDER with a copy of nyu"
    ):
        corpus(None)


@pytest.fixture
def run(tmp_path: Path, results: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    folder = save_encoder(tmp_path / "bert", end="ForSequenceClassification")
    small = ("calibration.sentences=8", "eval.resamples=200", "tracker=none", f"results_dir={results}")

    def start(*changes: str) -> Ended:
        return call("-m", "model=hf", f"model.name={folder}", "data=glue/cola", *small, *changes, capsys=capsys)

    return start


def test_cola_is_a_point_with_mcc(run: Callable[..., Ended], results: Path, tmp_path: Path) -> None:
    ended = run("method=fp,rtn", "bits=w4a16_g32", f"data.path={glue(tmp_path / 'glue', 'cola')}")
    assert ended.code == 0, ended.err
    for record in Store(results).records():
        assert record.config["data"]["name"] == "cola"
        assert record.identity["data"]["classes"] == NAMES["cola"]
        assert {"mcc", "accuracy", "f1"} <= record.metrics.keys()
        assert record.provenance["fingerprints"]["sentences"] == 20


def test_a_plan_downloads_nothing(run: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(*names: Any, **how: Any) -> Any:
        assert datasets.config.HF_HUB_OFFLINE
        raise ConnectionError

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets, "load_dataset", nowhere)
    ended = run("method=rtn", "plan=true")
    assert ended.code == 0, ended.err
    assert "to do, its data are downloaded first" in ended.out
    assert KEY not in ended.out
