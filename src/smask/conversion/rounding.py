"""Weights to levels: rate-distortion optimised rounding under one step, for the planes that code them. No torch.

A level k > 0 stands for ``k - offset`` steps and costs what its bits cost in the sections of :mod:`smask.planes`, each
at its zero-order entropy. Rounding minimises squared error plus :data:`SLOPE` times bits. One slope and one step for
all tensors of a model is reverse water-filling (Cover and Thomas, "Elements of Information Theory", section 10.3).

The weights of a convolution window multiply inputs that lie beside each other and so have much in common. A part
:data:`COMMON` of their energy is taken to be the same over the window: what one weight of it is too small, another
may be too large (Guo et al., "SQuant", ICLR 2022, derives the same form from the Hessian of any convolution).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float32]
Levels: TypeAlias = npt.NDArray[np.int32]

# The slope of the distortion of a fine uniform quantiser, in squared steps a bit: D = step**2 / 12, dD/dR = 2 ln 2 D.
SLOPE = math.log(2) / 6
COMMON = 1 / 3
MAX_LEVEL = (1 << 16) - 1
N_ROUNDS, N_SWEEPS = 2, 2
# Windows of one working chunk, so that its dozen of float32 buffers stay in the second-level cache.
N_CHUNK = 1 << 14


@dataclass(frozen=True, eq=False)
class Rule:
    """How the magnitudes of a tensor, in steps, become levels.

    Attributes:
        offset: A level k > 0 stands for k - offset.
        gains: float32 [n_levels - 1]; bits that level k + 1 costs more than level k.
        edges: float32 [n_levels - 1], ascending; from ``edges[k]`` on a lone weight takes a level above k.
        n_bits, error: Coded bits and squared error, in squared steps, of the weights that the rule was made from.
    """

    offset: float
    gains: Floats
    edges: Floats
    n_bits: float
    error: float


def code_lengths(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Bits [n_levels] that each level costs over its planes and its flip, where level k occurs ``counts[k]`` times."""
    levels = np.arange(len(counts))
    lengths = np.where(levels > 0, 1.0, 0.0)
    for plane in range(max(1, len(counts) - 1).bit_length()):
        low, high = 1 << plane, 2 << plane
        n_new, n_open = int(counts[low:high].sum()), int(counts[:high].sum())
        zero, one = _lengths_of_bit(n_new, n_open)
        lengths[:low] += zero
        lengths[low:high] += one
        bit = (levels[high:] >> plane & 1).astype(bool)
        zero, one = _lengths_of_bit(int(counts[high:][bit].sum()), int(counts[high:].sum()))
        lengths[high:] += np.where(bit, one, zero)
    return lengths


def _lengths_of_bit(n_ones: int, n_bits: int) -> tuple[float, float]:
    # Half a count for what did not occur, so that it stays possible (Krichevsky and Trofimov 1981).
    return -math.log2((n_bits - n_ones + 0.5) / (n_bits + 1)), -math.log2((n_ones + 0.5) / (n_bits + 1))


def learn(magnitudes: Floats) -> Rule:
    """The rule for a tensor from its magnitudes in steps, or from a sample of them."""
    levels = np.minimum(np.rint(magnitudes), MAX_LEVEL).astype(np.int64)
    n_levels, offset = int(levels.max(initial=0)) + 1, 0.0
    # The lengths are those of plain rounding. Learned again from their own choice they lead some tensors, at some step,
    # to no level but zero, and sizes in between would be out of reach.
    gains = np.diff(code_lengths(np.bincount(levels, minlength=n_levels))).astype(np.float32)
    edges = gains
    for _ in range(N_ROUNDS):
        values = np.arange(n_levels) - offset
        values[0] = 0
        middle = (values[1:] + values[:-1]) / 2 + SLOPE * gains / (2 * np.diff(values))
        edges = np.maximum.accumulate(middle).astype(np.float32)
        levels = np.searchsorted(edges, magnitudes, side="right")
        offset = centre(magnitudes, levels)
    counts = np.bincount(levels, minlength=n_levels)
    error = np.where(levels > 0, levels - offset, 0) - magnitudes
    return Rule(offset, gains, edges, float(counts @ code_lengths(counts)), float(error @ error))


def centre(magnitudes: Floats, levels: npt.NDArray[np.integer]) -> float:
    """The offset with the least squared error, in steps of 1/256."""
    kept = levels > 0
    if not kept.any():
        return 0.0
    difference = float((levels[kept] - magnitudes[kept]).mean(dtype=np.float64))
    return min(0.5, max(-0.5, round(difference * 256) / 256))


def levels_of(scaled: Floats, rule: Rule) -> Levels:
    """Signed levels of weights in steps.

    Args:
        scaled: float32 [n_windows, n_window]; a window of one weight has no neighbours.
        rule: From :func:`learn` on the same weights, in the same steps.

    Returns:
        int32 [n_windows, n_window].
    """
    out = np.empty(scaled.shape, np.int32)
    for start in range(0, len(scaled), N_CHUNK):
        chunk = scaled[start : start + N_CHUNK]
        magnitude = np.abs(chunk)
        levels = np.searchsorted(rule.edges, magnitude, side="right").astype(np.int32)
        if scaled.shape[1] > 1 and len(rule.edges):
            levels = _balanced(np.ascontiguousarray(magnitude.T), np.signbit(chunk).T, levels.T, rule).T
        out[start : start + N_CHUNK] = np.where(np.signbit(chunk), -levels, levels)
    return out


def _balanced(magnitude: Floats, negative: npt.NDArray[np.bool_], levels: Levels, rule: Rule) -> Levels:
    """Rounds each weight again, from the errors of the others of its window; all are [n_window, n_windows]."""
    offset, top = np.float32(rule.offset), len(rule.edges)
    sign = np.where(negative, np.float32(-1), np.float32(1))
    levels = levels.copy()
    error = (np.where(levels > 0, levels - offset, 0) - magnitude) * sign
    total = error.sum(0)
    for _ in range(N_SWEEPS):
        for weight in range(len(levels)):
            rest = total - error[weight]
            aim = magnitude[weight] - np.float32(COMMON) * rest * sign[weight]
            low = np.clip(np.floor(magnitude[weight] + offset), 0, top - 1).astype(np.int32)
            below = np.where(low > 0, low - offset, np.float32(0))
            above = low + (1 - offset)
            dearer = (above - below) * (above + below - 2 * aim) + np.float32(SLOPE) * rule.gains[low]
            levels[weight] = low + (dearer < 0)
            error[weight] = (np.where(dearer < 0, above, below) - magnitude[weight]) * sign[weight]
            total = rest + error[weight]
    return levels
