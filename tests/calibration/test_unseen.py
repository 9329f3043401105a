"""Statistics that only weights tell: normal rows through the norm that writes a site, plain ones elsewhere."""

import logging

import pytest
import torch
from labs import PREPROCESSING, Lab, scheme
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from transformers import Gemma2Config, Gemma2ForCausalLM

from sqbench import api
from sqbench.calibration import Statistics
from sqbench.calibration.unseen import ROWS_EACH
from sqbench.data import Windows
from sqbench.data.base import Unseen
from sqbench.errors import UserError
from sqbench.models import Model
from sqbench.models.image import ImageModel
from sqbench.models.language import LanguageModel
from sqbench.models.norms import writers
from sqbench.parts.task import Task
from sqbench.transforms.smoothing import Smooth

EXAMPLES = 16


def no_pass(number: int) -> Tensor:
    raise AssertionError("statistics of weights read no input")


def told(model: Model, seed: int = 0, inputs: Tensor | None = None) -> Statistics:
    """What the weights tell; with inputs, for a search to replay."""
    make = no_pass if inputs is None else lambda number: inputs[number : number + 1]
    return api.calibrate(model, Unseen(0 if inputs is None else len(inputs), make, "none", EXAMPLES, seed), search=2)


def close(found: Tensor, expected: Tensor, spread: Tensor) -> bool:
    """Within five standard errors of a mean of these many rows."""
    return bool(((found - expected).abs() <= 5 * spread / (EXAMPLES * ROWS_EACH) ** 0.5 + 1e-6).all())


def test_what_an_rms_norm_writes_is_as_spread_as_its_weight(tiny: LanguageModel) -> None:
    found = told(tiny)
    assert tuple(found.inputs) == tiny.topology.sites
    norm = tiny.module.model.layers[1].input_layernorm.weight.abs()
    stats = found.inputs["model.layers.1.self_attn.q_proj"]
    assert stats.tokens == EXAMPLES * ROWS_EACH
    assert close(stats.abs_mean, norm * (2 / torch.pi) ** 0.5, norm)
    assert stats.absmax[:2].min() > 10 * stats.absmax[2:].median()  # where the outlier channels are, the norm tells


def test_what_no_norm_writes_is_standard_normal_and_called_a_guess(tiny: LanguageModel) -> None:
    found = told(tiny)
    outs = {name for name in tiny.topology.sites if name.endswith(("o_proj", "down_proj"))}
    assert found.guessed == outs
    for name in outs:
        stats = found.inputs[name]
        assert close(stats.abs_mean, torch.full((stats.rows.shape[1],), (2 / torch.pi) ** 0.5), torch.ones(1))
        assert 3 < stats.absmax.max() < 6


def test_a_layer_norm_has_its_bias_for_mean(vit: Lab) -> None:
    stats = told(vit.model).inputs["blocks.1.mlp.fc1"]
    norm = vit.model.module.get_submodule("blocks.1.norm2")
    assert close(stats.sum / stats.tokens, norm.bias, norm.weight.abs())
    spread = ((stats.rows - norm.bias) / norm.weight).std()
    assert spread.item() == pytest.approx(1, abs=0.1)


def test_convolutions_have_statistics_of_their_channels(cnn: Lab) -> None:
    found = told(cnn.model)
    widths = {name: len(stats.low) for name, stats in found.inputs.items()}
    assert widths == {"conv1": 1, "conv2": 8, "fc": 144}
    assert found.guessed == {"conv1", "conv2", "fc"}  # a ReLU and a pooling stand between the norm and what reads it


def test_a_batchnorm_counts_with_the_activation_that_it_carries() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.second = nn.Conv2d(1, 4, 1), BatchNormAct2d(4), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.norm(self.first(x))).mean((2, 3))

    torch.manual_seed(0)
    net = Net().eval().requires_grad_(False)
    net.norm.weight.data, net.norm.bias.data = torch.tensor([1.0, 2, 3, 4]), torch.tensor([0.0, 0, 0, -100])
    net.norm.running_mean += 50  # what the norm takes away first has no say
    stats = told(ImageModel(net, "net", "net", preprocessing=PREPROCESSING, classes=2)).inputs["second"]
    assert stats.low.tolist() == [0, 0, 0, 0]
    assert stats.high[3] == 0  # never above zero before the ReLU
    assert 3 < stats.high[0] < 6
    assert stats.high[:3].argsort().tolist() == [0, 1, 2]


def test_a_norm_that_adds_one_to_its_weight_is_known_by_its_proof() -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}
    module = Gemma2ForCausalLM(Gemma2Config(**sizes, **heads)).eval().requires_grad_(False)
    module.model.layers[0].input_layernorm.weight += 0.5
    model = LanguageModel(module, "gemma", "gemma")
    written = writers(model)["model.layers.0.self_attn.q_proj"]
    torch.testing.assert_close(written(torch.ones(1, 1, 32)), torch.full((1, 1, 32), 1.5))


def test_a_seed_is_a_draw(tiny: LanguageModel) -> None:
    first, again, other = (told(tiny, seed) for seed in (0, 0, 1))
    for site, stats in first.inputs.items():
        assert torch.equal(stats.low, again.inputs[site].low)
        assert not torch.equal(stats.low, other.inputs[site].low)


def test_a_search_replays_the_inputs(tiny: LanguageModel, windows: Windows) -> None:
    statistics = told(tiny, inputs=windows.evaluation)
    assert torch.equal(statistics.sample, windows.evaluation[:2])
    moves = Smooth("auto").changes(Task(tiny, statistics, scheme(8, 8)))
    assert len(moves) == 4


def test_tensors_between_layers_are_refused(tiny: LanguageModel) -> None:
    with pytest.raises(
        UserError, match=r"calibration\.source=weights says nothing of what is between layers; use bits\.ops=linear"
    ):
        api.calibrate(tiny, Unseen(0, no_pass, "none", EXAMPLES), points=True)


def test_a_guess_is_in_the_report_and_said_where_a_range_is_made_of_it(
    tiny: LanguageModel, statistics: Statistics, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("sqbench"), "propagate", True)
    weights = told(tiny)
    quantized = api.quantize(tiny, weights, "minmax", bits="w8a8")
    assert set(quantized.report["guessed"]) == weights.guessed
    assert "tiny: the input ranges of 4 of 14 layers are a guess, that of N(0, 1): nothing is known of what" in caplog.text
    caplog.clear()
    for found, bits in ((weights, "w8a8_dynamic"), (weights, "w4a16"), (statistics, "w8a8")):
        assert "guessed" not in api.quantize(tiny, found, "rtn", bits=bits).report
    assert "guess" not in caplog.text
