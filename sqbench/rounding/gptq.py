"""GPTQ: round column by column, and let the columns that follow make up for each error (Frantar et al., 2022)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sqbench.errors import UserError
from sqbench.formats.codec import EncodedTensor, dequantize, of_tensor, quantize, to_blocks
from sqbench.formats.format import Format
from sqbench.formats.grid import code_dtype
from sqbench.formats.params import Limits, QParams, block_range, qparams
from sqbench.formats.scheme import Scheme
from sqbench.models.folding import wide
from sqbench.parts.part import Effort
from sqbench.rounding.base import ROUNDINGS, Rounding
from sqbench.statistics.inputs import InputStatistics

NEAR = 16  # columns that follow each rounding at once: so few that their update is not worth a second thread
TRIES = 8  # of a Cholesky factor, each with ten times the damping of the one before


@ROUNDINGS.register("gptq")
@dataclass(frozen=True)
class Gptq(Rounding):
    """The codes with the least error of the layer's outputs over the calibration tokens, found greedily.

    Without `static_groups`, min-max ranges of a group are those of the weights that are left when its turn comes, with errors of
    earlier columns in them. Other ranges are those of the original weight, and so are those of two-dimensional blocks.

    The defaults are llm-compressor's: loud columns first, ranges of the original weight. The reference code has neither. Its order
    fails where some tokens are far louder than the rest, as the first token of many language models is.

    Attributes:
        damping: the share of the mean diagonal of H = 2 mean(x x^T) that is added to the diagonal.
        block: columns that are rounded before the rest of the weight is updated. The reference takes the range of a group from the
            weights as they were when its block began, so this is part of the method.
        act_order: columns with the largest inputs come first. In a format with groups it needs `static_groups`.
        static_groups: the range of a group is that of the original weight.
    """

    damping: float = 0.01
    block: int = 128
    act_order: bool = True
    static_groups: bool = True

    def __post_init__(self) -> None:
        self.require("damping", 0 < self.damping <= 1, "must be a number above 0, up to 1; 0.01 is the paper's")
        self.require("block", self.block >= 1, "must be 1 or more; 128 is the paper's")

    def needs(self, scheme: Scheme) -> frozenset[str]:
        return frozenset({"gram"}) if scheme.weights is not None else frozenset()

    def effort(self, scheme: Mapping[str, Any]) -> Effort:
        return Effort(130.0 * bool(scheme.get("weights")))  # measured on a block of SmolLM2, groups of 64: 135 times as long

    def refusal(self, scheme: Scheme) -> str | None:
        if scheme.weights is None:
            return "chooses codes of weights, and this scheme leaves weights in float; use bits=w4a16, for example"
        if self.act_order and scheme.weights.group_size is not None and not self.static_groups:
            return (
                "act_order=true would tear groups of contiguous columns apart; use static_groups=true with it, or act_order=false"
            )
        return None

    def encode(
        self, layer: str, weight: Tensor, stats: InputStatistics, fmt: Format, limits: Limits | None
    ) -> tuple[EncodedTensor, dict[str, Any]]:
        """See `Rounding.encode`. The entry `damping` is there if a Cholesky factor needed more than was asked for.

        A convolution in groups has a matrix of second moments for each of them. They are solved one after the other.

        Raises:
            UserError: no damping makes the second moments positive definite.
        """
        matrix = stats.gram.matrix  # [groups, columns, columns]
        fmt = of_tensor(fmt, weight)
        if limits is None and fmt.granularity in ("tensor", "block"):
            limits = block_range(to_blocks(weight, fmt), fmt)
        of_group = [None] * len(matrix) if limits is None else [_rows(limits, part, len(matrix)) for part in range(len(matrix))]
        parts = zip(weight.chunk(len(matrix)), matrix, of_group, strict=True)
        try:
            found = [solve(rows, gram, fmt, own, self) for rows, gram, own in parts]
        except UserError as error:
            raise UserError(f"{layer}: {error}") from error
        params = found[0].params
        if fmt.granularity != "tensor":
            params = QParams.joined([one.params for one in found], torch.cat)
        damping = max(one.damping for one in found)
        notes = {} if damping == self.damping else {"damping": damping}
        return EncodedTensor(torch.cat([one.codes for one in found]), params.scale, params.zero_point, fmt), notes


def _rows(limits: Limits, part: int, parts: int) -> Limits:
    """The ranges of one part of the rows of a weight. One range for the whole weight is that of every part."""
    low, high = (limit if len(limit) == 1 else limit.chunk(parts)[part] for limit in limits)
    return low, high


class Solution(NamedTuple):
    """The codes [out, in] of a weight, the parameters of its blocks, and the damping that its Cholesky factor needed."""

    codes: Tensor
    params: QParams
    damping: float


@torch.no_grad()
def solve(weight: Tensor, gram: Tensor, fmt: Format, limits: Limits | None, how: Gptq) -> Solution:
    """Round a weight by its inputs' second moments.

    With `act_order` and groups that are not static, a group is `group_size` columns in the order of rounding.

    Args:
        weight: [out, in].
        gram: [in, in], X^T X up to a positive factor, which changes nothing.
        limits: clipping ranges over the blocks of the weight. None takes those of the blocks themselves.

    Raises:
        UserError: the matrix has no Cholesky factor under any damping.
    """
    columns = weight.shape[1]
    size = fmt.group_size or columns
    left = wide(weight).clone()
    hessian = gram.double()
    params = None if limits is None else qparams(*limits, fmt)
    if params is None and fmt.group_size is None:
        params = qparams(*block_range(to_blocks(left, fmt), fmt), fmt)
    dead = hessian.diagonal() == 0
    hessian = hessian + torch.diag(dead.double())
    left[:, dead] = 0
    if params is None and how.static_groups:
        params = qparams(*block_range(to_blocks(left, fmt), fmt), fmt)
    order = hessian.diagonal().argsort(descending=True, stable=True) if how.act_order else None
    if order is not None:
        left, hessian = left[:, order], hessian[order][:, order]
    factor, damping = cholesky_of_inverse(hessian, how.damping)
    group_of = torch.arange(columns, device=weight.device) // size if order is None else order // size
    codes, chosen = _columns(left.t().contiguous(), factor.to(left.dtype), fmt, params, group_of.tolist(), how.block)
    if order is not None:
        codes = codes[order.argsort()]
    return Solution(codes.t().contiguous(), chosen, damping)


def cholesky_of_inverse(hessian: Tensor, damping: float) -> tuple[Tensor, float]:
    """The upper Cholesky factor U of (H + damping mean(diag H) I)^-1 = U^T U, and the damping. A failure raises it tenfold.

    Raises:
        UserError: `TRIES` were not enough.
    """
    mean = hessian.diagonal().mean()
    for _ in range(TRIES):
        damped = hessian + torch.diag((damping * mean).expand(len(hessian)))
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not failed and bool(upper.isfinite().all()):
                return upper, damping
        damping *= 10
    raise UserError(
        f"rounding=gptq: second moments have no Cholesky factor with a damping of {damping / 10:g}; use rounding=nearest"
    )


def _columns(
    left: Tensor, factor: Tensor, fmt: Format, params: QParams | None, group_of: list[int], block: int
) -> tuple[Tensor, QParams]:
    """The codes [in, out] of a weight, and the parameters of its blocks.

    Args:
        left: [in, out], the transposed weight, so that a column of the weight lies in one piece. It is overwritten.
        factor: [in, in] upper.
        params: of the blocks; None takes them from the weights that are left when a group begins.
        group_of: the group of every column.
    """
    codes = torch.empty(left.shape, dtype=code_dtype(fmt), device=left.device)
    size = fmt.group_size or len(left)
    found: list[QParams] = []
    own = params
    for start in range(0, len(left), block):
        stop = min(start + block, len(left))
        before = left[start:stop].clone() if params is None else left  # a group's range comes from these
        errors = torch.empty_like(left[start:stop])
        for index in range(start, stop):
            if params is None and index % size == 0:
                own = qparams(*block_range(_of_group(left, before, start, index, size), fmt), fmt)
                found.append(own)
            assert own is not None
            column = own if params is None else _of_column(params, fmt, group_of[index])
            values = left[index].unsqueeze(1)
            code = quantize(values, column, fmt)
            codes[index] = code.squeeze(1)
            error = (values - dequantize(code, column, fmt)).squeeze(1) / factor[index, index]
            errors[index - start] = error
            near = min(stop, index - (index - start) % NEAR + NEAR)  # the columns that follow at once
            left[index:near].addr_(factor[index, index:near], error, alpha=-1)
            if index + 1 == near < stop:  # the others of the block follow in one product
                first = near - NEAR
                left[near:stop].addmm_(factor[first:near, near:stop].t(), errors[first - start : near - start], alpha=-1)
        left[stop:].addmm_(factor[start:stop, stop:].t(), errors, alpha=-1)
    if params is not None:
        return codes, params
    return codes, QParams.joined(found, lambda parts: torch.stack(parts, 1))


def _of_group(left: Tensor, before: Tensor, start: int, index: int, size: int) -> Tensor:
    """The weights [out, size] of the group that begins at a column. Those of the current block are as it began."""
    inside = before[index - start : index - start + size]
    return torch.cat([inside, left[index + len(inside) : index + size]]).t()


def _of_column(params: QParams, fmt: Format, group: int) -> QParams:
    """The parameters [out, 1] of a column, or [1, 1] for one scale in all."""
    if fmt.group_size is None:
        return params
    rows = fmt.block_rows or 1
    return params.map(lambda part: part[:, group].repeat_interleave(rows, 0))
