"""Activations as fixed-point numbers in a few 8-bit digits, so that sums of products with levels are exact integers.

A row of activations is rounded to multiples of one power of two, its *unit*, and written in signed digits of base 256:

    x = unit * (d[0] + 256 d[1] + 65536 d[2]),   d in [-128, 127]

The unit is the smallest with which the largest magnitude of the row fits N digits. With two digits a bfloat16 number is
held exactly when it is at least 1/128 of the largest of its row, and smaller ones to within 2**-16 of that; with three
digits the error is at most that of float32 arithmetic on the largest number.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from . import compiler
from .tiles import bit_order

# Rows that are turned into digits at a time: what the steps write stays in a cache. Compiled for few numbers of rows,
# so that one that changes compiles little.
N_BLOCK_ROWS = 64
N_DIGITS = {torch.bfloat16: 2, torch.float16: 2, torch.float32: 3}


class FixedPoint(NamedTuple):
    """Rows of activations.

    Attributes:
        digits: int8 [N, B, K'], least significant digit first, columns in bit order.
        unit: float32 [B]; NaN where the row holds an infinity, a NaN or a magnitude above 3.37e38.
    """

    digits: Tensor
    unit: Tensor


def fixed_point(x: Tensor, n_columns: int, *, n_digits: int, compile: bool) -> FixedPoint:
    """Activations as fixed-point numbers with columns in bit order.

    Args:
        x: Floating [B, K], at most float32.
        n_columns: K', a multiple of 32 and at least K; columns that x lacks are zeros.
        n_digits: N, 1 to 3.
        compile: Whether numbers of rows that recur are made by a compiled function.
    """
    fixed = FixedPoint(
        torch.empty((n_digits, len(x), n_columns), dtype=torch.int8, device=x.device),
        torch.empty(len(x), dtype=torch.float32, device=x.device),
    )
    for start in range(0, len(x), N_BLOCK_ROWS):
        rows = slice(start, start + N_BLOCK_ROWS)
        arguments = (bit_order(x[rows], n_columns), fixed.unit[rows], *fixed.digits[:, rows].unbind())
        (compiler.compiled(_fill, *arguments) if compile and recurs(len(arguments[0])) else _fill)(*arguments)
    return fixed


def recurs(n_rows: int) -> bool:
    """Whether a number of rows is worth compiling for: a power of two, as batches mostly are, or whole blocks."""
    return n_rows > 0 and (n_rows & n_rows - 1 == 0 or n_rows % N_BLOCK_ROWS == 0)


def _fill(x: Tensor, unit: Tensor, *digits: Tensor) -> None:
    """Units [B] and N digits [B, K'] of activations [B, K']."""
    n_digits = len(digits)
    top = x.abs().amax(1).to(torch.float32)
    # 1.008 makes room for the digits below: 128 / 127 of the largest magnitude has to fit. The exponent is read from
    # the bits: 2**(exponent - 126) is above. Tiny rows keep fewer digits, so that neither factor leaves float32.
    exponent = ((top * 1.008).view(torch.int32) >> 23 & 255).clamp(min=8 * n_digits)
    size = (exponent + (2 - 8 * n_digits) << 23).view(torch.float32)
    factor = (252 + 8 * n_digits - exponent << 23).view(torch.float32)
    unit.copy_(torch.where(exponent == 255, math.nan, size))
    number = (x * factor[:, None]).round_().to(torch.int32)
    for digit in digits[:-1]:
        low = number << 24 >> 24
        digit.copy_(low)
        number.sub_(low).bitwise_right_shift_(8)
    digits[-1].copy_(number)
