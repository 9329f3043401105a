"""The speed of quantized models in runtimes, beside torch, our integer kernels, and what NNCF makes for OpenVINO by itself.

    pip install -e .[runtimes]
    python -m benchmarks.runtimes                          # vit, prefill, decode
    python -m benchmarks.runtimes work=prefill bits=w4a16 repetitions=10
    python -m benchmarks.runtimes work=decode bits=q8_0,q4_0
    python -m benchmarks.runtimes work=vit ops=linear,linear+matmul,full
    python -m benchmarks.runtimes work=decode bits=w8a16,w4a16 embedding=w8a16

The models are those of benchmarks.latency. All sides compute in float32 besides their integers. A prompt is read without a KV
cache, and only the logits of its last token are computed. `decode` writes tokens greedily, one by one, after a prompt that is in
the KV cache. llama.cpp is a side where it is installed and has a type for the format. It rounds the inputs of products to 8 bits in
blocks of 32.

`embedding` is the scheme of the token embedding, and so of the output matrix that is tied to it. `null` leaves them in float. NNCF
leaves the output matrix in float.

The last columns hold a side against `sim`, the simulation: the largest difference of an output as a part of the largest output,
and how often the largest output of an image or a token of the prompt is the same. NNCF rounds by its own rules, so it stands there
against the float model.
"""

import logging
import sys
import warnings
from collections.abc import Mapping
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from benchmarks import in_llama_cpp, latency
from benchmarks.in_llama_cpp import InLlamaCpp
from benchmarks.timing import Work, alternate, arguments, chosen, medians, show, speedups
from sqbench import api
from sqbench.config import compose_config
from sqbench.console.quiet import quiet
from sqbench.errors import UserError
from sqbench.evaluation.decoding import Decoder, first_token
from sqbench.execution import lower
from sqbench.formats.scheme import Scheme
from sqbench.models import Model
from sqbench.models.computed import computed
from sqbench.models.functions import without_head
from sqbench.models.language import LanguageModel
from sqbench.quant.layers import QuantLayer
from sqbench.recipes.configured import scheme_of
from sqbench.runtimes.openvino import OPENVINO
from sqbench.runtimes.openvino_session import GROUP_OPTION, OpenVinoSession

NNCF = "OpenVINO with NNCF"
HEAD = ["work", "side", "median", "x float32", "x NNCF", "largest difference", "same argmax"]
Row = list[str]


def nncf_static(model: Model, images: Tensor) -> Model:
    """Static 8 bits by `nncf.quantize`, calibrated on these images."""
    import nncf
    import openvino

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = openvino.convert_model(without_head(model).module, example_input=images[:1])
    data = nncf.Dataset([image.unsqueeze(0).numpy() for image in images])
    quantized = nncf.quantize(graph, data, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(images))
    return computed(model, OpenVinoSession(quantized), headless=True)


def nncf_weights(model: Model, mode: str, group: int) -> Model:
    """Weights alone by `nncf.compress_weights`. Inputs are rounded at run time in groups of 32, OpenVINO's default."""
    import nncf

    graph = OPENVINO.write(without_head(model), {})
    graph.set_rt_info("32", GROUP_OPTION)
    options = {} if mode.startswith("INT8") else {"group_size": group, "ratio": 1.0}
    quantized = nncf.compress_weights(graph, mode=getattr(nncf.CompressWeightsMode, mode), **options)
    return computed(model, OpenVinoSession(quantized), headless=True)


def vit(own: dict[str, Any], others: list[str]) -> list[Row]:
    model, examples = latency.load(*latency.VIT, *others)
    images = next(examples.evaluation.batches(own["batch"])).images
    statistics = api.calibrate(model, examples.calibration, search=1, points=True)
    peer, found = nncf_static(model, torch.cat(list(examples.calibration))), []
    for ops in own["ops"]:
        bits = scheme_of(api.configure(*latency.VIT, "method=minmax", "bits=w8a8", f"bits.ops={ops}"))
        quantized = api.quantize(model, statistics, "minmax", bits)
        sides = {latency.BASE: model, "sim": lower(quantized, "sim"), **_lowered(quantized, own), NNCF: peer}
        work: dict[str, Work] = {name: lambda side=side: side.body(images) for name, side in sides.items()}  # type: ignore[misc]
        outputs = {name: side.body(images) for name, side in sides.items()}
        title = f"{model.name}, {len(images)} images, w8a8, {ops}"
        found += rows(title, "images/s", len(images), work, outputs, own["repetitions"])
    return found


def prefill(own: dict[str, Any], others: list[str]) -> list[Row]:
    model, windows = latency.load(*latency.TEXT, *others)
    statistics = api.calibrate(model, windows.calibration, search=1)
    ids = windows.evaluation.flatten()[: own["prompt"]].unsqueeze(0)
    found = []
    for bits in own["bits"]:
        quantized = api.quantize(model, statistics, "rtn", bits=scheme(bits, own["embedding"]))
        every = _sides(model, quantized, own)
        work: dict[str, Work] = {name: lambda side=side: first_token(side.module, ids) for name, side in every.items()}  # type: ignore[misc]
        outputs = {name: side.forward(ids) for name, side in every.items()}
        with TemporaryDirectory() as folder:
            if in_llama_cpp.fits(quantized):
                other = InLlamaCpp(quantized, folder, ids.shape[1])
                work[in_llama_cpp.NAME], outputs[in_llama_cpp.NAME] = other.reading(ids), other.logits(ids)
            found += rows(
                f"prefill {ids.shape[1]}, {named(bits, own)}", "tokens/s", ids.shape[1], work, outputs, own["repetitions"]
            )
    return found


def decode(own: dict[str, Any], others: list[str]) -> list[Row]:
    model, windows = latency.load(*latency.TEXT, *others)
    statistics = api.calibrate(model, windows.calibration, search=1)
    ids, count = windows.evaluation.flatten()[: own["past"]].unsqueeze(0), own["decode"]
    found = []
    for bits in own["bits"]:
        quantized = api.quantize(model, statistics, "rtn", bits=scheme(bits, own["embedding"]))
        every = _sides(model, quantized, own)
        work = {name: writing(side.module, ids, count) for name, side in every.items()}
        outputs = {name: side.forward(ids) for name, side in every.items()}
        with TemporaryDirectory() as folder:
            if in_llama_cpp.fits(quantized):
                other = InLlamaCpp(quantized, folder, ids.shape[1] + count)
                work[in_llama_cpp.NAME], outputs[in_llama_cpp.NAME] = other.writing(ids, count), other.logits(ids)
            found += rows(
                f"decode {count} after {ids.shape[1]}, {named(bits, own)}", "tokens/s", count, work, outputs, own["repetitions"]
            )
    return found


def writing(module: Any, ids: Tensor, count: int) -> Work:
    """Work that writes `count` tokens greedily after a prompt [1, tokens], which is in the KV cache."""
    decoder = Decoder(module)
    first = decoder.prefill(ids)

    def work() -> list[Tensor]:
        if written := decoder.cache.get_seq_length() - ids.shape[1]:
            decoder.cache.crop(-written)  # so many tokens are forgotten
        decoder.token = first
        return [decoder.step() for _ in range(count)]

    return work


def scheme(bits: str, embedding: str) -> Scheme:
    """A scheme with the format of the token embedding. Both are names of schemes; the second may be `null`."""
    return scheme_of(compose_config("method=rtn", f"bits={bits}", f"bits.embedding={embedding}"))


def named(bits: str, own: Mapping[str, Any]) -> str:
    """The formats in a row's name."""
    return bits if own["embedding"] == "null" else f"{bits}, embedding {own['embedding']}"


def quantized_layer(model: Model) -> Any:
    return next(part for part in model.module.modules() if isinstance(part, QuantLayer))


def _sides(model: LanguageModel, quantized: LanguageModel, own: Mapping[str, Any]) -> dict[str, LanguageModel]:
    weights = quantized_layer(quantized).format
    peer = nncf_weights(model, "INT8_SYM" if weights.bits == 8 else "INT4_ASYM", weights.group_size)
    return {latency.BASE: model, "sim": lower(quantized, "sim"), **_lowered(quantized, own), NNCF: peer}


def _lowered(quantized: Model, own: Mapping[str, Any]) -> dict[str, Model]:
    return {backend: lower(quantized, backend) for backend in own["backends"]}


def rows(
    work: str, unit: str, amount: int, sides: Mapping[str, Work], outputs: Mapping[str, Tensor], repetitions: int
) -> list[Row]:
    """A row for each side."""
    times = alternate(sides, repetitions)
    spent, faster = medians(times), speedups(times, latency.BASE)
    ahead = {name: f"{ratio:.2f}" for name, ratio in speedups(times, NNCF).items()} if NNCF in sides else {}
    found = []
    for name in sides:
        like = outputs[latency.BASE if name == NNCF else "sim"]
        apart = f"{float((outputs[name] - like).abs().max() / like.abs().max()):.2g}"
        same = f"{100 * float((outputs[name].argmax(-1) == like.argmax(-1)).float().mean()):.1f} %"
        told = ["--", "--"] if name == latency.BASE else [apart, same]
        found.append([work, name, f"{amount / spent[name]:.1f} {unit}", f"{faster[name]:.2f}", ahead.get(name, "--"), *told])
    return found


WORK = {"vit": vit, "prefill": prefill, "decode": decode}


@torch.no_grad()
def main() -> None:
    quiet()
    logging.disable(logging.WARNING)
    formats = ["w8a8_dynamic", "w4a16", "w4a8", "q8_0", "q4_0"]
    defaults = {
        "work": list(WORK),
        "backends": ["int", "openvino", "onnxruntime"],
        "bits": formats,
        "ops": ["linear"],
        "embedding": "null",
    }
    sizes = {"batch": 16, "prompt": 512, "past": 64, "decode": 64}
    try:
        own, others = arguments(sys.argv[1:], **defaults, **sizes, repetitions=5)
        found = [row for name in chosen(own["work"], WORK) for row in WORK[name](own, others)]
    except UserError as error:
        sys.exit(f"error: {error}")
    show(HEAD, found)


if __name__ == "__main__":
    main()
