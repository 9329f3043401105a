"""A model that another tool quantizes in a process of its own: a float model's folder goes in, and a checkpoint comes out."""

import json
import multiprocessing
import os
import threading
import time
import traceback
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from hydra.core.utils import env_override
from torch import Tensor, nn

from sqbench.calibration import Statistics
from sqbench.checkpoints.folder import QuantizedFolder, alike
from sqbench.console.quiet import quiet
from sqbench.errors import UserError
from sqbench.models import Model
from sqbench.models.language import LanguageModel
from sqbench.parts.layer_formats import formats_of
from sqbench.parts.task import Task
from sqbench.peers import TOOLS, Order, Tool
from sqbench.quant.layers import ActivationQuantizer, QuantLayer
from sqbench.records.provenance import child_held, peak_rss_bytes
from sqbench.rounding.peer import Peer
from sqbench.running.child import follow_parent
from sqbench.running.point import Point
from sqbench.storage.files import digest

LAST = 5  # lines of a tool's output, in the error about it


def quantized(point: Point, model: Model, windows: Iterable[Tensor], cache: Path) -> Model:
    """The model of a point as its tool quantizes it. The tool's own seconds and memory are in its report.

    Nothing of the tool is imported into this process, and its folder is removed.

    Args:
        model: the float model. The tool gets the files that it comes from.
        windows: token ids to calibrate on.
        cache: the folder in which the tool's folder is made.

    Raises:
        UserError: the tool failed, or it made something else than it was asked for.
    """
    resolved, rounding = point.resolved, point.resolved.recipe.rounding
    assert isinstance(rounding, Peer)
    assert isinstance(model, LanguageModel)
    tool, task = TOOLS[rounding.tool], Task(model, Statistics({}, model.example()), resolved.scheme)
    chosen = set(task.topology.layers)
    floats = (name for name, layer in model.module.named_modules() if isinstance(layer, nn.Linear) and name not in chosen)
    order = Order(resolved.scheme, tuple(floats), rounding.arguments or {}, resolved.seed)
    if point.source.folder is None:
        raise UserError(f"{rounding.key}: needs a folder in Hugging Face layout, and {model.name} is in none")
    rows = torch.cat([batch.reshape(-1, batch.shape[-1]) for batch in windows])
    cache.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f"{tool.name}-", dir=cache, ignore_cleanup_errors=True) as place:
        told = _made(tool, order, point.source.folder, resolved.model.dtype, rows, Path(place), model.device)
        found = QuantizedFolder.of(Path(place) / "checkpoint", rounding.key)
        made = found.load(
            model.device,
            name=model.name,
            fingerprint=digest(point.identity),
            dtype=resolved.model.dtype,
            keep=model.keep,
        )
    _check(task, made, f"{rounding.key}: {tool.version}")
    child_held(told["peak_rss_bytes"])
    return made.with_module(made.module, {**made.report, "tool": {**rounding.about(), **told}})


def _made(tool: Tool, order: Order, source: Path, dtype: str, windows: Tensor, place: Path, device: torch.device) -> dict[str, Any]:
    """The seconds and the peak memory of a tool that has saved `place/checkpoint`.

    Raises:
        UserError: it has failed. The message has the error, or the end of what it said.
    """
    (place / "checkpoint").mkdir()
    settings = {"OMP_NUM_THREADS": str(torch.get_num_threads()), "HF_HUB_OFFLINE": "1"}
    if device.type == "cpu":
        settings["CUDA_VISIBLE_DEVICES"] = ""
    arguments = (tool, order, source, dtype, windows.tolist(), place)
    process = multiprocessing.get_context("spawn").Process(target=_work, args=arguments)
    with env_override(settings):
        process.start()
    try:
        process.join()
    finally:
        if process.is_alive():
            process.kill()
            process.join()
    try:
        told: dict[str, Any] = json.loads((place / "told.json").read_text(encoding="utf-8"))
    except FileNotFoundError:  # its process was ended
        said = (place / "said.txt").read_text(encoding="utf-8", errors="replace").splitlines()
        told = {"error": f"its process ended with status {process.exitcode}: {' / '.join(said[-LAST:])}"}
    if "error" in told:
        raise UserError(f"method.tool={tool.name}: version {tool.version} failed: {told['error']}")
    return told


def _work(tool: Tool, order: Order, source: Path, dtype: str, windows: list[list[int]], place: Path) -> None:
    """What the process of a tool does. Its words go to a file, and what it leaves in the current folder goes with `place`."""
    threading.Thread(target=follow_parent, daemon=True).start()
    said = os.open(place / "said.txt", os.O_CREAT | os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(said, stream)
    quiet()
    source, place = source.resolve(), place.resolve()
    os.chdir(place)
    from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

    told: dict[str, Any]
    try:
        start = time.perf_counter()
        module = AutoModelForCausalLM.from_pretrained(
            source, dtype=getattr(torch, dtype), use_safetensors=True, local_files_only=True
        )
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True)
        set_seed(order.seed % 2**32)
        tool.quantize(module, tokenizer, torch.tensor(windows), order, str(place / "checkpoint"))
        told = {"seconds": round(time.perf_counter() - start, 3), "peak_rss_bytes": peak_rss_bytes()}
    except Exception as error:  # noqa: BLE001 (whatever breaks the tool is the error of its point)
        traceback.print_exc()
        told = {"error": f"{type(error).__name__}: {error}"}
    (place / "told.json").write_text(json.dumps(told), encoding="utf-8")


def _check(task: Task, made: Model, place: str) -> None:
    """Raise UserError for the first layer that has other formats than the task asks for."""
    modules = dict(made.module.named_modules())
    asked = formats_of(task)
    for name in made.topology.layers:
        layer = modules[name]
        own = (layer.format, _input_of(layer)) if isinstance(layer, QuantLayer) else (None, None)
        wanted = asked.get(name, (None, None))
        if not all(map(alike, own, wanted)):
            words = [", ".join(str(fmt) for fmt in pair if fmt is not None) or "float" for pair in (own, wanted)]
            raise UserError(f"{place} made {name} as {words[0]}, and bits={task.scheme.name} is {words[1]} there")


def _input_of(layer: QuantLayer) -> Any:
    return layer.activation.fmt if isinstance(layer.activation, ActivationQuantizer) else None
