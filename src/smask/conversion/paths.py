"""Weights to levels on a trellis: for every lane the path with the least squared error and bits. No torch.

A level is one of those that :mod:`smask.trellis` leaves to a weight, and costs what the bits of its index cost. The
search is that of Viterbi ("Error bounds for convolutional codes", IEEE Trans. Information Theory 13(2), 1967), all
lanes side by side.
"""

from __future__ import annotations

import math
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from ..trellis import MAX_INDEX_PLANES, PARITY_TAPS, STATE_TAPS, n_lanes
from .plan import grid
from .rounding import SLOPE, Floats, Levels, code_lengths

# On the steps of a trellis that are finer by this factor than those of plain rounding, a bit buys as much error: the
# error of a trellis of 8 states is a quarter of a squared step, that of plain rounding a twelfth.
FINER = math.sqrt(3)
# Below so many bits a weight a trellis brings little: on a small language model 0.005 bits at 1.0 bits a weight, 0.05
# at 1.6, 0.11 at 2.3, and at 1.6 its outputs were no better for them.
LEAST_BITS = 1.5
# At equal slope a trellis has the same error for this part fewer bits.
SAVES = 0.04
LARGEST = float((1 << MAX_INDEX_PLANES + 1) - 4)
# Lanes of one working chunk, so that its buffers stay in the second-level cache.
N_CHUNK = 1024
# Weights that lengths and the offset are learned from.
N_LEARN = 1 << 15
# Steps whose choices are worked out together.
N_BLOCK = 16
UNREACHED = np.float32(1e30)


def finer(step: float) -> float:
    """The step of a trellis beside that of plain rounding."""
    return grid(step / FINER)


def levels_of(scaled: Floats) -> Levels:
    """Signed levels of weights in steps.

    Args:
        scaled: float32 of any shape, magnitudes up to :data:`LARGEST`.

    Returns:
        int32 of the same shape; magnitudes are those of a trellis over these weights in this order.
    """
    lanes = n_lanes(scaled.size)
    n_steps = -(-scaled.size // max(1, lanes))
    whole = np.zeros(n_steps * lanes, np.float32)
    np.abs(scaled.reshape(-1), out=whole[: scaled.size])
    magnitude = whole.reshape(n_steps, lanes)
    sample = np.ascontiguousarray(magnitude[:, :: max(1, magnitude.size // N_LEARN)])
    n_levels = int(magnitude.max(initial=0)) // 2 + 3
    found, offset = np.rint(sample / 2).astype(np.int32), 0.0
    # Once from plain rounding, then from the paths that this leads to.
    for _ in range(2):
        lengths = code_lengths(np.bincount(found.reshape(-1), minlength=n_levels))
        levels = _paths(sample, lengths, offset)
        found, offset = (levels + 1) // 2, _offset(sample, levels)
    lengths = code_lengths(np.bincount(found.reshape(-1), minlength=n_levels))
    out = np.empty(magnitude.shape, np.int32)

    def search(start: int) -> None:
        chunk = np.ascontiguousarray(magnitude[:, start : start + N_CHUNK])
        out[:, start : start + N_CHUNK] = _paths(chunk, lengths, offset)

    # Chunks know nothing of each other, so that any number of threads gives the same levels.
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        list(threads.map(search, range(0, lanes, N_CHUNK)))
    levels = out.reshape(-1)[: scaled.size].reshape(scaled.shape)
    return np.where(np.signbit(scaled), -levels, levels)


def _offset(magnitude: Floats, levels: Levels) -> float:
    """How far levels lie above the weights on average."""
    kept = levels > 0
    return float((levels[kept] - magnitude[kept].astype(np.float64)).mean()) if kept.any() else 0.0


def paths_reference(magnitude: Floats, lengths: npt.NDArray[np.float64], offset: float) -> Levels:
    """Plain and slow :func:`_paths`: one lane and one weight at a time."""
    out = np.zeros(magnitude.shape, np.int32)
    depth = max(STATE_TAPS + PARITY_TAPS)
    for lane in range(magnitude.shape[1]):
        # A state is the bits t of the next steps, as far as they are known; of each the cost and the indices so far.
        best: dict[tuple[int, ...], tuple[float, tuple[int, ...]]] = {(0,) * depth: (0.0, ())}
        for weight in magnitude[:, lane].tolist():
            after: dict[tuple[int, ...], tuple[float, tuple[int, ...]]] = {}
            for state, (cost, indices) in best.items():
                t, low = state[0], int((weight + state[0] + offset) / 2)
                for index in {0, low, low + 1}:
                    error = weight - (2 * index - t - offset if index else 0.0)
                    total = cost + error * error + SLOPE * FINER**2 * float(lengths[index])
                    coming = [*state[1:], 0]
                    for taps, bit in ((STATE_TAPS, t), (PARITY_TAPS, index & 1)):
                        for tap in taps:
                            coming[tap - 1] ^= bit
                    if total < after.get(tuple(coming), (math.inf, ()))[0]:
                        after[tuple(coming)] = total, (*indices, index)
            best = after
        states = [0] * (len(magnitude) + depth)
        for step, index in enumerate(min(best.values())[1]):
            out[step, lane] = max(0, 2 * index - states[step])
            for taps, bit in ((STATE_TAPS, states[step]), (PARITY_TAPS, index & 1)):
                for tap in taps:
                    states[step + tap] ^= bit
    return out


def _paths(magnitude: Floats, lengths: npt.NDArray[np.float64], offset: float) -> Levels:
    """The levels of the best path of each lane.

    A state is three bits (u, v, t): t is the state bit of the weight that meets it, u and v those of the next two. With
    taps 1 and 3 of t and tap 2 of the parity p, the state after it is (t, u ^ p, v ^ t): of the two ways into
    (t', u', v') one comes with p = 0 from u = u', the other with p = 1 from u = 1 - u'.

    Args:
        magnitude: float32 [n_steps, n_lanes].
        lengths: Bits that each index costs.
        offset: How far levels lie above the weights.
    """
    n_steps, lanes = magnitude.shape
    # A bit costs as much of a squared step of plain rounding as there.
    bits = (SLOPE * FINER**2 * lengths).astype(np.float32)
    indices = np.empty((n_steps, 2, 2, lanes), np.uint16)
    second = np.empty((n_steps, 2, 2, 2, lanes), bool)
    costs = np.empty((min(N_BLOCK, n_steps), 2, 2, lanes), np.float32)
    ways = np.empty((2, 2, 2, 2, lanes), np.float32)
    cost = np.full((2, 2, 2, lanes), UNREACHED)
    cost[0, 0, 0] = 0
    for start in range(0, n_steps, N_BLOCK):
        block = magnitude[start : start + N_BLOCK]
        _choose(block, bits, offset, costs[: len(block)], indices[start : start + N_BLOCK])
        for one, is_second in zip(costs[: len(block)], second[start : start + N_BLOCK], strict=True):
            np.add(cost, one[:, 0], out=ways[0])
            np.add(cost[::-1], one[:, 1], out=ways[1])
            for t, order in ((0, 1), (1, -1)):
                even, odd = (way[:, ::order, t] for way in ways)
                np.less(odd, even, out=is_second[t])
                np.minimum(even, odd, out=cost[t])
    return _back(cost, second, indices)


def _back(cost: Floats, second: npt.NDArray[np.bool_], indices: npt.NDArray[np.uint16]) -> Levels:
    """From the best last state of each lane to its first."""
    n_steps, _, _, lanes = indices.shape
    state, lane = cost.reshape(8, lanes).argmin(0), np.arange(lanes)
    out = np.empty((n_steps, lanes), np.int32)
    for step in reversed(range(n_steps)):
        p = second[step].reshape(-1).take(state * lanes + lane).astype(np.int64)
        t, u, v = state >> 2, state >> 1 & 1, state & 1
        index = indices[step].reshape(-1).take((2 * t + p) * lanes + lane).astype(np.int32)
        out[step] = np.maximum(0, 2 * index - t)
        state = 4 * (u ^ p) + 2 * (v ^ t) + t
    return out


def _choose(magnitude: Floats, bits: Floats, offset: float, costs: Floats, indices: npt.NDArray[np.uint16]) -> None:
    """For each state bit t and parity p the best index of that parity, and its cost.

    Args:
        magnitude: float32 [n_steps, n_lanes].
        bits: float32 [n_levels], what each index costs.
        offset: How far levels lie above the weights.
        costs: Result, float32 [n_steps, t, p, n_lanes].
        indices: Result, uint16 of the same shape.
    """
    nothing = magnitude * magnitude
    nothing += bits[0]
    for t in (0, 1):
        shift = np.float32(t + offset)
        low = ((magnitude + shift) * np.float32(0.5)).astype(np.int32)
        errors = []
        for index in (low, low + 1):
            values = index.astype(np.float32)
            values += values
            values -= shift
            values -= magnitude
            values *= values
            values += bits.take(index, mode="clip")
            errors.append(values)
        np.copyto(errors[0], nothing, where=low == 0)
        odd = low & 1
        is_odd = odd.astype(bool)
        # Zero is even, and may pay from further away than the nearest.
        even = np.where(is_odd, errors[1], errors[0])
        np.minimum(even, nothing, out=costs[:, t, 0])
        np.multiply(low + odd, even <= nothing, out=indices[:, t, 0], casting="unsafe")
        costs[:, t, 1] = np.where(is_odd, errors[0], errors[1])
        indices[:, t, 1] = low | 1
