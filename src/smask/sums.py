"""Sums of activations times levels become products: scales and bias, and digits joined where sums are integers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from . import compiler
from .fixedpoint import recurs
from .packing import PackedMatrix


def finish(
    y: Tensor,
    unit: Tensor,
    sums: Sequence[Tensor],
    packed: PackedMatrix,
    bias: Tensor | None,
    rows: slice,
    *,
    compile: bool,
) -> None:
    """Joins digits of sums and applies units, scales and bias.

    Args:
        y: [B, R], is written.
        unit: float32 [B], of the fixed-point rows.
        sums: int32 [R, B] a digit, the least significant first; or a single one in any floating dtype.
        packed: Weights.
        bias: Of all rows of the weights, or None.
        rows: The R rows of the weights that the sums belong to.
        compile: Whether compiled functions may be used.
    """
    scale = packed.scale if len(packed.scale) == 1 else packed.scale[rows]
    arguments = (y, unit, scale, *sums) if bias is None else (y, unit, scale, bias[rows], *sums)
    # The sum of two digits is below 2**31 where its magnitude can be: 2**15 * 2**P * K.
    narrow = packed.n_columns << 15 + packed.n_magnitude_bits < 1 << 31
    work = _JOINS[narrow, bias is not None]
    (compiler.compiled(work, *arguments) if compile and recurs(len(y)) else work)(*arguments)


def finished(product: Tensor, packed: PackedMatrix, bias: Tensor | None, rows: slice, *, dim: int = -1) -> Tensor:
    """Scales and bias of some rows of the weights, which lie along a dimension, in float32 or wider."""
    shape = [1] * product.dim()
    shape[dim] = -1
    scale = packed.scale if len(packed.scale) == 1 else packed.scale[rows]
    if product.dtype not in (torch.float32, torch.float64):
        product = product.to(torch.float32)
    product = product.mul_(scale.view(shape))
    return product if bias is None else product.add_(bias[rows].view(shape))


def apply_scales(y: Tensor, packed: PackedMatrix, bias: Tensor | None, *, compile: bool) -> None:
    """Applies scales and bias of all rows of the weights to their sums y, [B, R] in any floating dtype."""
    if not compile or not recurs(len(y)) or y.dtype == torch.float64:
        y.copy_(finished(y, packed, bias, slice(0, packed.n_rows)))
        return
    arguments = (y, packed.scale) if bias is None else (y, packed.scale, bias)
    compiler.compiled(_scale if bias is None else _scale_biased, *arguments)(*arguments)


def _join(y: Tensor, unit: Tensor, scale: Tensor, *sums: Tensor) -> None:
    """y [B, R] from sums over levels, int32 [R, B] a digit; the upper two digits are joined as integers."""
    y.copy_(_total(unit, scale, sums, narrow=True).t())


def _join_biased(y: Tensor, unit: Tensor, scale: Tensor, bias: Tensor, *sums: Tensor) -> None:
    y.copy_((_total(unit, scale, sums, narrow=True) + bias[:, None]).t())


def _join_wide(y: Tensor, unit: Tensor, scale: Tensor, *sums: Tensor) -> None:
    """As :func:`_join`, in float32 throughout."""
    y.copy_(_total(unit, scale, sums, narrow=False).t())


def _join_wide_biased(y: Tensor, unit: Tensor, scale: Tensor, bias: Tensor, *sums: Tensor) -> None:
    y.copy_((_total(unit, scale, sums, narrow=False) + bias[:, None]).t())


_JOINS: dict[tuple[bool, bool], Callable[..., None]] = {
    (True, False): _join,
    (True, True): _join_biased,
    (False, False): _join_wide,
    (False, True): _join_wide_biased,
}


def _scale(y: Tensor, scale: Tensor) -> None:
    y.copy_(y.to(torch.float32) * scale)


def _scale_biased(y: Tensor, scale: Tensor, bias: Tensor) -> None:
    y.copy_(y.to(torch.float32) * scale + bias)


def _total(unit: Tensor, scale: Tensor, sums: Sequence[Tensor], *, narrow: bool) -> Tensor:
    total, rest = sums[-1], list(sums[-2::-1])
    if narrow and rest:
        total = torch.add(rest.pop(0), total, alpha=256)
    total = total.to(torch.float32)
    for part in rest:
        total = total * 256 + part
    return total * unit * scale[:, None]
