"""Weights to levels: rate-distortion optimised rounding under one step, for the planes that code them. No torch.

A level k > 0 stands for ``k - offset`` steps and costs what its bits cost in the sections of :mod:`smask.planes`, each
at its zero-order entropy. Rounding minimises squared error plus :data:`SLOPE` times bits. One slope and one step for
all tensors of a model is reverse water-filling (Cover and Thomas, "Elements of Information Theory", section 10.3).

The weights of a convolution window multiply inputs that lie beside each other and so have much in common. A part
:data:`COMMON` of their energy is taken to be the same over the window: what one weight of it is too small, another
may be too large (Guo et al., "SQuant", ICLR 2022, derives the same form from the Hessian of any convolution). How
much it is differs: of nothing, a sixth and a third, by the divergence of outputs, a third is best for ResNet-20 at 155
kB and nothing for ResNet-56 at 130 kB; a sixth is best or near it at most sizes of both, and of a net for speech.
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
COMMON = 1 / 6
MAX_LEVEL = (1 << 16) - 1
N_ROUNDS, N_SWEEPS = 2, 2
# Up to so many levels are found by comparisons with each edge, more by bisection.
N_COMPARED = 24
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


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Magnitudes of a tensor, or a sample of them, in the form that makes a rule for any step at little cost.

    Attributes:
        ascending: float32 [n], sorted.
        sums, squares: float64 [n + 1]; sums of the first k of them and of their squares, in this order: the same
            bits on any machine and with any number of threads.
    """

    ascending: Floats
    sums: npt.NDArray[np.float64]
    squares: npt.NDArray[np.float64]

    @classmethod
    def of(cls, magnitudes: Floats) -> Spectrum:
        """Sorts and sums."""
        ascending = np.sort(magnitudes, axis=None)
        wide = ascending.astype(np.float64)
        sums, squares = np.zeros((2, len(wide) + 1))
        np.cumsum(wide, out=sums[1:])
        np.cumsum(wide * wide, out=squares[1:])
        return cls(ascending, sums, squares)

    @property
    def largest(self) -> float:
        """The largest magnitude, 0 of none."""
        return float(self.ascending[-1]) if len(self.ascending) else 0.0

    @property
    def energy(self) -> float:
        """Sum of all squares."""
        return float(self.squares[-1])

    def rule(self, step: float) -> Rule:
        """The rule for magnitudes in so large steps."""
        n_levels, offset = min(MAX_LEVEL, round(self.largest / step)) + 1, 0.0
        # The lengths are those of plain rounding. Learned again from their own choice they lead some tensors, at some
        # step, to no level but zero.
        lengths = code_lengths(np.diff(self._places(np.arange(1, n_levels) - 0.5, step)))
        gains = np.diff(lengths).astype(np.float32)
        edges, places = gains, self._places(gains[:0], step)
        for _ in range(N_ROUNDS):
            values = np.arange(n_levels) - offset
            values[0] = 0
            middle = (values[1:] + values[:-1]) / 2 + SLOPE * gains / (2 * np.diff(values))
            edges = np.maximum.accumulate(middle).astype(np.float32)
            places = self._places(edges, step)
            counts = np.diff(places)
            kept, total = len(self.ascending) - int(places[1]), float(self.sums[-1] - self.sums[places[1]]) / step
            offset = _in_256ths((float(counts @ np.arange(n_levels)) - total) / kept) if kept else 0.0
        counts = np.diff(places)
        values = np.arange(n_levels) - offset
        values[0] = 0
        # The sum of (value - magnitude)**2 over each level, from the sums over it.
        products = values @ np.diff(self.sums[places]) / step
        error = float(counts @ (values * values)) - 2 * float(products) + self.energy / step / step
        return Rule(offset, gains, edges, float(counts @ code_lengths(counts)), max(0.0, error))

    def _places(self, edges: npt.NDArray[np.floating], step: float) -> npt.NDArray[np.int64]:
        """Where each level begins among the magnitudes, int64 [n_levels + 1]."""
        inner = np.searchsorted(self.ascending, (edges * step).astype(np.float32), side="left")
        return np.concatenate([[0], inner, [len(self.ascending)]])


def learn(magnitudes: Floats) -> Rule:
    """The rule for a tensor from its magnitudes in steps, or from a sample of them."""
    return Spectrum.of(magnitudes).rule(1.0)


def centre(magnitudes: Floats, levels: npt.NDArray[np.integer]) -> float:
    """The offset with the least squared error, in steps of 1/256."""
    kept = levels > 0
    n_kept = int(np.count_nonzero(kept))
    if not n_kept:
        return 0.0
    difference = levels.sum(dtype=np.int64) - np.where(kept, magnitudes, np.float32(0)).sum(dtype=np.float64)
    return _in_256ths(float(difference) / n_kept)


def _in_256ths(offset: float) -> float:
    return min(0.5, max(-0.5, round(offset * 256) / 256))


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
        if scaled.shape[1] > 1 and len(rule.edges):
            out[start : start + N_CHUNK] = _balanced(np.ascontiguousarray(chunk.T), rule).T
        else:
            levels = _levels_alone(np.abs(chunk), rule.edges)
            out[start : start + N_CHUNK] = np.where(np.signbit(chunk), -levels, levels)
    return out


def _levels_alone(magnitude: Floats, edges: Floats) -> Levels:
    """The level of each weight for itself."""
    if len(edges) > N_COMPARED:
        return np.searchsorted(edges, magnitude, side="right").astype(np.int32)
    levels = np.zeros(magnitude.shape, np.uint8)
    for edge in edges:
        levels += (magnitude >= edge).view(np.uint8)
    return levels.astype(np.int32)


def _balanced(scaled: Floats, rule: Rule) -> Levels:
    """Rounds each weight of windows, then again from the errors of the others of its window; [n_window, n_windows]."""
    offset, top = np.float32(rule.offset), len(rule.edges)
    magnitude = np.abs(scaled)
    sign = np.copysign(np.float32(1), scaled)
    # In the sweeps a weight has two levels to choose from: from some aim on, which moves with the others, the upper.
    lower = np.arange(top, dtype=np.float32) - offset
    lower[:1] = 0
    upper = np.arange(1, top + 1, dtype=np.float32) - offset
    aims = (lower + upper) / 2 + np.float32(SLOPE / 2) * rule.gains / (upper - lower)
    low = np.clip(magnitude + offset, 0, top - 1).astype(np.int32)
    errors = [(values.take(low) - magnitude) * sign for values in (lower, upper)]
    limit = (magnitude - aims.take(low)) * np.float32(1 / COMMON)
    error = np.where(limit >= 0, errors[1], errors[0])
    total = error.sum(0)
    up = np.empty(scaled.shape, bool)
    for _ in range(N_SWEEPS):
        for weight in range(len(scaled)):
            rest = total - error[weight]
            np.less_equal(rest * sign[weight], limit[weight], out=up[weight])
            error[weight] = np.where(up[weight], errors[1][weight], errors[0][weight])
            total = rest + error[weight]
    return (low + up) * sign.astype(np.int32)
