"""The topology of a network: quantizable layers, the tensors they share, and the places where a scale may move between layers.

The code knows no architecture. One traced forward pass on a small batch shows the linears that read a norm's output (`groups`),
and the linears that share an input. Candidates for linear -> linear pairs are neighbours. The first layer's outputs are scaled by
distinct factors, and the inputs of the second layer that follow show the channels. Every candidate is then folded with random
scales, near 1 and far from it, and the float outputs are compared (`proofs`). A candidate that fails is refused with the reason.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatch
from typing import Any

import torch
from torch import nn

from sqbench.errors import UserError, closest
from sqbench.models.batchnorm import is_batchnorm
from sqbench.models.experts import everyone, feeding
from sqbench.models.folding import Group
from sqbench.models.groups import norm_groups
from sqbench.models.parameters import Uses, floating, roles_of
from sqbench.models.proofs import origins, prove, prove_batchnorm
from sqbench.models.tracing import Trace, trace_calls
from sqbench.quant.access import is_linear, weight_of
from sqbench.quant.operations import Point, find_points


@dataclass(frozen=True)
class Topology:
    """The result of tracing a network.

    Attributes:
        layers: every quantizable linear and convolution, in order of execution.
        site: layer -> the first layer that reads the same tensor. Statistics are kept per site.
        groups: proven smoothing groups (norm -> linears).
        pairs: proven linear -> linear pairs.
        refused: (name, reason) of each candidate that failed its proof.
        batchnorms: proven (layer, BatchNorm) neighbours that fold into one.
        points: tensors that no layer reads: operands of products, sums, softmax inputs.
        floating: (name, reason) of each layer or bare matrix that stays in float without a request.
        roles: parameter -> what it is; see `sqbench.models.parameters.ROLES`.
        norms: site -> the norm that writes the tensor read there.
    """

    layers: tuple[str, ...]
    site: dict[str, str]
    groups: tuple[Group, ...]
    pairs: tuple[Group, ...]
    refused: tuple[tuple[str, str], ...]
    batchnorms: tuple[tuple[str, str], ...] = ()
    points: tuple[Point, ...] = ()
    floating: tuple[tuple[str, str], ...] = ()
    norms: dict[str, str] = field(default_factory=dict)
    roles: dict[str, str] = field(default_factory=dict)

    @property
    def sites(self) -> tuple[str, ...]:
        """One layer for every distinct input tensor."""
        return tuple(dict.fromkeys(self.site.values()))

    @property
    def siblings(self) -> dict[str, tuple[str, ...]]:
        """Module -> the layers directly in it, in order of execution. A layer that no module holds is alone under its own name."""
        found: dict[str, tuple[str, ...]] = {}
        for name in self.layers:
            found[_parent(name)] = (*found.get(_parent(name), ()), name)
        return found

    def chosen(self, patterns: Collection[str]) -> tuple[str, ...]:
        """The layers that an fnmatch pattern names, and those inside a module that it names, in order of execution.

        Raises:
            UserError: a pattern names no layer.
        """
        check_patterns(patterns, self.layers)
        return tuple(name for name in self.layers if any(_names(pattern, name) for pattern in patterns))

    def restricted(self, patterns: Collection[str] | None) -> "Topology":
        """The topology if only the layers that `chosen` finds are quantized. None means all layers. All sites stay observed.

        A scale moves if any of its readers is quantized. A tensor between layers is quantized only if all layers of its owner are
        chosen. If the owner has no layers, the innermost module around it that has some decides.

        Raises:
            UserError: a pattern names no layer.
        """
        if patterns is None:
            return self
        layers = self.chosen(patterns)
        groups, pairs = (
            tuple(group for group in found if not set(layers).isdisjoint(group.readers)) for found in (self.groups, self.pairs)
        )
        points = tuple(point for point in self.points if set(layers).issuperset(self._around(point.owner)))
        return replace(self, layers=layers, groups=groups, pairs=pairs, points=points)

    def _around(self, owner: str) -> list[str]:
        """The layers inside a module, or inside the innermost module around it that has some."""
        inside = [name for name in self.layers if not owner or name.startswith(f"{owner}.")]
        return inside or self._around(owner.rpartition(".")[0])


def merged(found: Iterable[Topology]) -> Topology:
    """One topology made from several that name different layers."""
    found = list(found)
    whole: dict[str, Any] = {}
    for each in fields(Topology):
        parts = [getattr(topology, each.name) for topology in found]
        is_map = isinstance(parts[0], dict)
        whole[each.name] = {key: value for part in parts for key, value in part.items()} if is_map else sum(parts, ())
    return Topology(**whole)


def _names(pattern: str, layer: str) -> bool:
    return fnmatch(layer, pattern) or fnmatch(layer, f"{pattern}.*")


def _parent(layer: str) -> str:
    return layer.rpartition(".")[0] or layer


def check_patterns(patterns: Collection[str], layers: Collection[str]) -> None:
    """Raise UserError for an fnmatch pattern that names none of these layers, and no module around one."""
    for pattern in patterns:
        if not any(_names(pattern, name) for name in layers):
            near = closest(pattern, [*dict.fromkeys(map(_parent, layers)), *layers])
            raise UserError(f"layers={pattern}: matches no layer; {near}")


def matches(patterns: Collection[str] | None, layer: str, keep: Collection[str]) -> bool:
    """Whether the `layers` of a scheme name a layer and no pattern of `model.keep` does. None names all layers."""
    named = patterns is None or any(_names(pattern, layer) for pattern in patterns)
    return named and not any(fnmatch(layer, pattern) for pattern in keep)


def _pair_candidates(layers: list[str], trace: Trace, module: nn.Module) -> Iterator[tuple[str, str]]:
    """Yield (first, second). `second` reads no norm, `first` ran before it in the same innermost module, and widths can match."""
    readers = Counter(id(trace.input_of[name]) for name in layers)
    inside: dict[str, list[str]] = {}  # called module -> linears in it so far. There can be thousands of experts.
    for second in layers:
        if not is_linear(module.get_submodule(second)):
            continue
        around = [place for place in _parents(second) if place in trace.calls]
        innermost = next((place for place in around if place in inside), "")
        own = id(trace.input_of[second])
        if innermost and own not in trace.norm_of and readers[own] == 1:
            width = weight_of(module.get_submodule(second)).shape[1]
            for first in inside[innermost]:
                if width % weight_of(module.get_submodule(first)).shape[0] == 0:
                    yield first, second
        for place in around:
            inside.setdefault(place, []).append(second)


def _parents(name: str) -> Iterator[str]:
    """The names of the modules around a module, from the innermost one."""
    while name := name.rpartition(".")[0]:
        yield name


@torch.no_grad()
def discover(
    module: nn.Module,
    forward: Callable[[], Any],
    *,
    body: Callable[[], Any] | None = None,
    keep: set[str] | None = None,
    patterns: tuple[str, ...] = (),
    part: bool = False,
) -> Topology:
    """Trace `forward` (one pass of `module` on a small batch), find groups and pairs, and prove each.

    Args:
        body: the pass that calibration runs. A layer that it does not call stays in float. None means `forward`.
        keep: names of layers that are not quantized.
        patterns: fnmatch patterns of more such layers.
        part: whether `module` is only a part of a model. A part may have nothing to quantize.

    Raises:
        UserError: no quantizable layer was run, or a pattern names no layer.
    """
    with feeding(module, everyone, heard=True):  # a small batch reaches few experts of a mixture, and proofs need all of them
        return _discovered(module, forward, body, keep or set(), patterns, part)


def _discovered(
    module: nn.Module,
    forward: Callable[[], Any],
    body: Callable[[], Any] | None,
    keep: set[str],
    patterns: tuple[str, ...],
    part: bool,
) -> Topology:
    """See `discover`."""
    with Uses(module) as uses:
        trace = trace_calls(module, forward)
    outside = set(trace.layers) - keep - set(trace_calls(module, body).layers if body else trace.layers)
    for pattern in patterns:
        if not any(fnmatch(name, pattern) for name in trace.layers):
            raise UserError(f"model.keep={pattern}: matches no layer; there are, for example, {', '.join(trace.layers[:8])}")
    kept = [name for name in dict.fromkeys(trace.layers) if name in keep or any(fnmatch(name, pattern) for pattern in patterns)]
    layers = [name for name in dict.fromkeys(trace.layers) if name not in kept and name not in outside]
    if not layers and not part:
        raise UserError(f"model: {type(module).__name__} ran no layer that may be quantized (kept in float: {kept or 'none'})")
    by_input: dict[int, list[str]] = {}
    for name in layers:
        by_input.setdefault(id(trace.input_of[name]), []).append(name)
    site = {name: readers[0] for readers in by_input.values() for name in readers}
    norms = {readers[0]: trace.norm_of[key] for key, readers in by_input.items() if key in trace.norm_of}

    batchnorms = {(layer, norm): prove_batchnorm(module, layer, norm, trace) for layer, norm in trace.batchnorms}
    folds = tuple(pair for pair, reason in batchnorms.items() if reason is None)
    groups, refused = norm_groups(module, forward, trace, layers, kept, affine={norm for _, norm in folds})
    pairs = []
    for first, second in _pair_candidates(layers, trace, module):
        pair = Group("pair", first, (second,))
        (origin,) = origins(module, pair, trace)
        if origin is None:
            continue  # most neighbours are no pair, which is no refusal
        one_to_one = torch.equal(origin, torch.arange(len(origin)))
        pair = replace(pair, origin=None if one_to_one else origin)
        reason = prove(module, pair, trace)
        refused.append((str(pair), reason)) if reason else pairs.append(pair)
    refused += [(f"{layer} -> {norm}", reason) for (layer, norm), reason in batchnorms.items() if reason is not None]
    alone = {name for name, layer in module.named_modules() if is_batchnorm(layer) and name in trace.calls}
    alone -= {norm for _, norm in batchnorms}
    refused += [(name, "a BatchNorm that folds into no layer: none comes directly before it") for name in sorted(alone)]
    roles = roles_of(module, uses, set(layers), set(kept) - keep, keep)
    left = tuple(floating(module, roles, uses, trace, outside))
    found = find_points(module, forward)
    return Topology(tuple(layers), site, tuple(groups), tuple(pairs), tuple(refused), folds, found, left, norms, roles)
