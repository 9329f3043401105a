"""Fixtures: a tiny language model that has learnt something, because an untrained one cannot show a broken method."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

for _key, _value in {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "WANDB_MODE": "offline",
    "TOKENIZERS_PARALLELISM": "false",
}.items():
    os.environ[_key] = _value
if os.environ.get("SQBENCH_TEST_GPU") != "1":  # the same tests on every machine: no GPU, whose kernels are interpreted instead
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "1"}

import hypothesis
import pytest
import torch
from audit import unpickled
from cli import Ended, call, tiny_run
from labs import Convnet, Lab, tiny_vit, trained

from sqbench.calibration import Statistics
from sqbench.config import CalibrationConfig, DataConfig
from sqbench.data.text import Text, Windows, cut, from_pydoc
from sqbench.evaluation import Result
from sqbench.evaluation.perplexity import perplexity
from sqbench.models.language import LanguageModel, load_language_model

hypothesis.settings.register_profile("fixed", derandomize=True)  # a test that fails here fails everywhere
hypothesis.settings.load_profile("fixed")
torch.set_num_threads(1)  # the models are so small that a second thread only waits for the first

WINDOW = 64
TEXT_CHARACTERS = 120_000


@pytest.fixture(autouse=True)
def nothing_is_unpickled() -> Iterator[None]:
    """Fail the test, or the next one after a shared fixture, in which our own code reads a pickle."""
    yield
    found = unpickled[:]
    unpickled.clear()
    assert found == []


def training_text() -> str:
    """English and code that is on every machine with Python."""
    return from_pydoc(DataConfig(name="pydoc", source="pydoc"))[:TEXT_CHARACTERS]


def plant_outliers(module: torch.nn.Module, factor: float = 40.0, channels: int = 2) -> None:
    """Make a few norm channels large and the columns that read them small: the same function, with a real model's outliers."""
    with torch.no_grad():
        for layer in module.model.layers:
            for norm, readers in (
                (layer.input_layernorm, (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj)),
                (layer.post_attention_layernorm, (layer.mlp.gate_proj, layer.mlp.up_proj)),
            ):
                norm.weight[:channels] *= factor
                for reader in readers:
                    reader.weight[:, :channels] /= factor


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer Llama with grouped-query attention, trained for some seconds on bytes, in Hugging Face layout."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from benchmarks.llama import save_byte_tokenizer

    folder = tmp_path_factory.mktemp("tiny")
    save_byte_tokenizer(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )
    module = LlamaForCausalLM(config)
    ids = torch.tensor(_as_tokens(folder, training_text()))
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=250)
    generator = torch.Generator().manual_seed(0)
    for _ in range(250):
        starts = torch.randint(0, len(ids) - WINDOW - 1, (24,), generator=generator)
        batch = torch.stack([ids[start : start + WINDOW] for start in starts])
        module(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    plant_outliers(module)
    module.save_pretrained(folder)
    return folder


def _as_tokens(folder: Path, text: str) -> list[int]:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)(text, verbose=False)["input_ids"]


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> LanguageModel:
    """The trained model, loaded the way a run loads it."""
    return load_language_model(
        tiny_folder, torch.device("cpu"), name="tiny", fingerprint="tiny", dtype="float32", trust_remote_code=False, keep=()
    )


@pytest.fixture(scope="session")
def windows(tiny: LanguageModel) -> Windows:
    """16 windows to evaluate on and 16 to calibrate on."""
    text = training_text()
    return cut(
        tiny.tokenizer,
        Text(text, "text"),
        None,
        DataConfig(name="text", source="text", window=WINDOW, windows=16),
        CalibrationConfig(windows=16),
    )


@pytest.fixture(scope="session")
def statistics(tiny: LanguageModel, windows: Windows) -> Statistics:
    """Calibration of the tiny model."""
    from sqbench.calibration import collect

    return collect(tiny.module, tiny.body, tiny.topology.sites, windows.calibration)


@pytest.fixture(scope="session")
def baseline(tiny: LanguageModel, windows: Windows) -> Result:
    """The float result."""
    return perplexity(tiny, windows)


@pytest.fixture(scope="session")
def cnn() -> Lab:
    """Two convolutions with BatchNorm and a linear layer, trained on patterns."""
    torch.manual_seed(0)
    return trained(Convnet(), "cnn")


@pytest.fixture(scope="session")
def vit() -> Lab:
    """timm's ViT with two blocks of width 32, trained on patterns."""
    torch.manual_seed(0)
    return trained(tiny_vit(), "vit")


@pytest.fixture
def exact(request: pytest.FixtureRequest) -> None:
    """Skip a test of integers in a runtime whose sums saturate on this CPU."""
    from sqbench.runtimes import RUNTIMES
    from sqbench.runtimes.saturation import saturates

    given = list(request.node.callspec.params.values()) if hasattr(request.node, "callspec") else []
    runtime = RUNTIMES["onnxruntime" if {"onnxruntime", "onnx"} & {one for one in given if isinstance(one, str)} else "openvino"]
    pytest.importorskip(runtime.package)
    if saturates(runtime):
        pytest.skip(f"sums of integers in {runtime.title} saturate on this CPU, which has no VNNI")


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    """The training text as a file."""
    path = tmp_path / "text.txt"
    path.write_text(training_text(), encoding="utf-8")
    return path


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return tmp_path / "results"


@pytest.fixture
def command(tiny_folder: Path, text_file: Path, results: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """A run over the tiny model in this process, changed by what it is given."""

    def run(*changes: str) -> Ended:
        flags = [change for change in changes if change.startswith("-")]
        overrides = [change for change in changes if not change.startswith("-")]
        return call(*flags, *tiny_run(tiny_folder, text_file, results, *overrides), capsys=capsys)

    return run
