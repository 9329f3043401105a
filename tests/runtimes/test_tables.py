"""Token embeddings and output matrices in formats: codes in the graphs of runtimes, and the numbers of the simulation."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from cli import Ended
from runtimes.agreement import apart, otherwise
from torch import Tensor, nn

from sqbench import api
from sqbench.calibration import Statistics
from sqbench.data.text import Windows
from sqbench.errors import UserError
from sqbench.evaluation.decoding import first_token, greedy
from sqbench.execution import lower
from sqbench.formats.codec import encode
from sqbench.formats.format import Format
from sqbench.formats.scheme import Scheme
from sqbench.models.computed import ComputedRows
from sqbench.models.functions import Function
from sqbench.models.language import LanguageModel
from sqbench.quant.tables import EncodedTable
from sqbench.runtimes import RUNTIMES
from sqbench.runtimes.deployment import parts_of

CHANNEL, GROUP = Format(8, granularity="channel"), Format(4, symmetric=False, granularity="group", group_size=16)
W8 = Scheme("w8a16", CHANNEL)
FORMATS = {
    "int8 rows": CHANNEL,
    "int8 tensor": Format(8),
    "int8 signed": replace(CHANNEL, convention="signed"),
    "int8 groups with zero-points": replace(GROUP, bits=8),
    "int6 rows with zero-points": Format(6, symmetric=False, granularity="channel"),
    "int4 groups with zero-points": GROUP,
    "int4 rows": replace(CHANNEL, bits=4),
    "int3 groups": replace(GROUP, bits=3, symmetric=True, group_size=32),
}


@pytest.mark.parametrize("width", [96, 56])  # of 56, no block of a row in ONNX has all columns
@pytest.mark.parametrize("name", FORMATS)
@torch.no_grad()
def test_rows_are_those_of_the_simulation(name: str, width: int, backend: str) -> None:
    torch.manual_seed(0)
    fmt = FORMATS[name]
    if fmt.group_size is not None and width % fmt.group_size:
        fmt = replace(fmt, group_size=None, granularity="channel")
    floats = nn.Embedding(40, width).requires_grad_(False)
    table, ids = EncodedTable(floats, encode(floats.weight, fmt)), torch.arange(12).view(2, 6) * 7 % 40
    wanted, free, runtime = table(ids), {0: "texts", 1: "tokens"}, RUNTIMES[backend]
    function = Function(nn.Sequential(table).eval(), {"ids": ids}, ("outputs",), {"ids": free, "outputs": free})
    session = runtime.start(runtime.write(function, {"0": table}))
    for some, want in ((ids, wanted), (ids[:1, :1], wanted[:1, :1])):
        assert torch.allclose(session(some)[0], want, rtol=1e-6, atol=1e-7)


def untied(model: LanguageModel) -> LanguageModel:
    """A model with an output matrix of its own."""
    module = copy.deepcopy(model.module)
    module.config.tie_word_embeddings = False
    module.lm_head.weight = nn.Parameter(module.lm_head.weight.detach().flip(0))
    return LanguageModel(module, model.name, "untied", tokenizer=model.tokenizer)


@pytest.mark.parametrize(
    ("embedding", "head"),
    [
        (CHANNEL, None),  # tied
        (CHANNEL, GROUP),
        *(
            pytest.param(*pair, marks=pytest.mark.slow)
            for pair in ((CHANNEL, CHANNEL), (GROUP, None), (GROUP, CHANNEL), (GROUP, GROUP))
        ),
    ],
    ids=str,
)
def test_models_predict_the_same(
    embedding: Format, head: Format | None, backend: str, tiny: LanguageModel, statistics: Statistics, windows: Windows
) -> None:
    """Without a format of its own, the head is tied."""
    model = tiny if head is None else untied(tiny)
    quantized = api.quantize(model, statistics, "rtn", replace(W8, embedding=embedding, head=head))
    simulated, executed = lower(quantized, "sim"), lower(quantized, backend)
    assert isinstance(executed, LanguageModel)
    for ids in (model.example(), model.example()[:1, :5]):
        assert apart(executed, quantized, ids) < 1e-5
    assert otherwise(executed) == {}
    assert isinstance(executed.head, ComputedRows)
    assert {"lm_head"} < {layer for entry in executed.report["execution"] for layer in entry["layers"]}
    reference = api.evaluate(model, windows)
    own, sim = (api.evaluate(one, windows, reference).metrics for one in (executed, simulated))
    assert own == pytest.approx(sim, rel=1e-3)
    assert own["weight_bytes"] == sim["weight_bytes"] == quantized.stored_bytes
    assert torch.equal(greedy(executed.module, ids, 8), greedy(simulated.module, ids, 8))


def test_logits_that_nobody_reads_are_not_computed(backend: str, tiny: LanguageModel, statistics: Statistics) -> None:
    executed = lower(api.quantize(tiny, statistics, "rtn", replace(W8, embedding=CHANNEL)), backend)
    rows, run = list[int](), executed.module.head.run

    def counting(x: Tensor) -> Any:
        rows.append(len(x))
        return run(x)

    executed.module.head.run = counting
    first_token(executed.module, tiny.example())
    assert rows == [2]  # of two texts of 12 tokens


def test_a_format_that_a_runtime_lacks_is_refused(backend: str, tiny: LanguageModel, statistics: Statistics) -> None:
    nf4 = Format(4, element="nf4", granularity="group", group_size=64)
    quantized = api.quantize(tiny, statistics, "rtn", replace(W8, embedding=nf4))
    with pytest.raises(UserError, match=rf"backend={backend}: model\.embed_tokens cannot be written; .* element int, not nf4"):
        lower(quantized, backend)


def test_formats_are_refused_before_anything_is_computed(backend: str, command: Callable[..., Ended]) -> None:
    for slot in ("embedding", "head"):
        ended = command("method=rtn", "bits=w8a16", f"bits.{slot}=nf4", f"backend={backend}")
        assert (ended.code, ended.out) == (2, "")
        assert f"backend={backend}: bits.{slot} cannot be written; {RUNTIMES[backend].title} unpacks weights with" in ended.err


def test_a_table_that_computes_is_refused(backend: str, tiny: LanguageModel, statistics: Statistics) -> None:
    class Scaled(nn.Embedding):
        def forward(self, ids: Tensor) -> Tensor:
            return 2 * super().forward(ids)

    quantized = api.quantize(tiny, statistics, "rtn", replace(W8, embedding=CHANNEL))
    quantized.module.get_input_embeddings().layer.__class__ = Scaled
    with pytest.raises(UserError, match="embed_tokens cannot be written; Scaled does more than look rows up"):
        lower(quantized, backend)


@torch.no_grad()
@pytest.mark.parametrize("fmt", [CHANNEL, replace(CHANNEL, bits=4), GROUP], ids=str)
def test_openvino_holds_the_codes_of_a_table(fmt: Format) -> None:
    pytest.importorskip("openvino")
    torch.manual_seed(0)
    floats = nn.Embedding(64, 32).requires_grad_(False)
    module, ids = nn.Sequential(EncodedTable(floats, encode(floats.weight, fmt))).eval(), torch.arange(4).view(1, 4)
    runtime = RUNTIMES["openvino"]
    session: Any = runtime.start(runtime.write(Function(module, {"ids": ids}, ("outputs",), {}), parts_of(module)))
    session(ids)
    (compiled,) = session.compiled.values()
    nodes = compiled.get_compiled_model().get_runtime_model().get_ops()
    (lookup,) = (node for node in nodes if node.get_rt_info()["layerType"].value == "Gather")
    assert lookup.get_rt_info()["runtimePrecision"].value in ("i8", "u8", "i4", "u4")
