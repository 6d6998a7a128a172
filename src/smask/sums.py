"""Sums of 8-bit digits times levels, which are integers, become products."""

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
        sums: int32 [R, B] a digit, the least significant first.
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


def _total(unit: Tensor, scale: Tensor, sums: Sequence[Tensor], *, narrow: bool) -> Tensor:
    total, rest = sums[-1], list(sums[-2::-1])
    if narrow and rest:
        total = torch.add(rest.pop(0), total, alpha=256)
    total = total.to(torch.float32)
    for part in rest:
        total = total * 256 + part
    return total * unit * scale[:, None]
