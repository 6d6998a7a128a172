"""Which sign a weight has, given those of its neighbours: the model of flips for the coding ``range``. No torch.

Filters are smooth, so that neighbours in a window have the same sign more often than not. Where there is no window,
whole columns and rows of a matrix lean to one side. A weight whose neighbours lean to the negative side is asked for
the other way round, which leaves half the contexts.
"""

from __future__ import annotations

import itertools
import math

import numpy as np

from .counting import Counts, Integers, before, blocks, ends
from .rangecoding import CERTAIN, Booleans, Model

# Sums of neighbours count up to here; leanings of columns and rows have one step more.
LARGEST = 3
LEANINGS = (1, 2, 4, 8)
N_CONTEXTS = 9 * (len(LEANINGS) + 1)


def signs_reference(above: Integers, new: Booleans) -> Model:
    """Plain and slow :func:`signs`: one weight at a time."""
    n_o, n_i, *window = above.shape
    places, counts = [*itertools.product(*map(range, window))], Counts([CERTAIN // 2] * N_CONTEXTS)
    alone = len(places) == 1
    columns = [[int(np.sign(above[o, i, *places[0]])) for o in range(n_o)] if alone else [] for i in range(n_i)]
    for first, last in blocks(n_o):
        asked = []
        for o, i, place in itertools.product(range(first, last), range(n_i), places):
            if not new[o, i, *place]:
                continue
            if alone:
                row = [int(np.sign(above[o, other, *place])) for other in range(n_i)]
                hints = _leaning_reference(columns[i]), _leaning_reference(row)
            else:
                distances = [sum(abs(a - b) for a, b in zip(place, other, strict=True)) for other in places]
                values = [int(above[o, i, *other]) for other in places]
                near = sum(value for value, distance in zip(values, distances, strict=True) if distance == 1)
                far = sum(value for value, distance in zip(values, distances, strict=True) if distance != 1)
                hints = max(-LARGEST, min(LARGEST, near)), max(-LARGEST, min(LARGEST, far))
            turn = -1 if hints < (0, 0) else 1
            asked.append((i, turn, 9 * turn * hints[0] + turn * hints[1] + 4))
        contexts = np.array([context for *_, context in asked], np.int64)
        chances = counts.chances(contexts)
        turned = np.array([turn < 0 for _, turn, _ in asked], bool)
        bits = yield np.where(turned, CERTAIN - chances, chances)
        counts.see(contexts, bits != turned)
        for (i, *_), bit in zip(asked, bits, strict=True):
            columns[i].append(-1 if bit else 1)


def _leaning_reference(signs: list[int]) -> int:
    total, n = sum(signs), sum(sign != 0 for sign in signs)
    return (1 if total > 0 else -1) * sum(total * total >= leaning * leaning * n > 0 for leaning in LEANINGS)


def signs(above: Integers, new: Booleans) -> Model:
    """Chances that weights are negative.

    Args:
        above: [O, I, ...], what the planes above say of the weights; of those that are new it is 0.
        new: bool of the same shape; bits are asked for where it is true, in row-major order.
    """
    counts = Counts([CERTAIN // 2] * N_CONTEXTS)
    if math.prod(above.shape[2:]) != 1:
        contexts, turned, _, stops = _in_windows(above, new)
        for first, stop in zip((0, *stops), stops, strict=False):
            chances, turn = counts.chances(contexts[first:stop]), turned[first:stop]
            bits = yield np.where(turn, CERTAIN - chances, chances)
            counts.see(contexts[first:stop], bits != turn)
        return
    fresh = new.reshape(above.shape[:2])
    rows, columns, n_columns = _rows_and_columns(above)
    for begin, end in blocks(len(above)):
        block = fresh[begin:end]
        hints = np.broadcast_to(_leanings(columns, n_columns), block.shape)[block]
        contexts, turned = _turned(hints, np.broadcast_to(rows[begin:end, None], block.shape)[block])
        chances = counts.chances(contexts)
        bits = yield np.where(turned, CERTAIN - chances, chances)
        counts.see(contexts, bits != turned)
        leans, n_new = _seen(block, bits)
        columns, n_columns = columns + leans.sum(0), n_columns + n_new.sum(0)


def signs_at_once(above: Integers, new: Booleans, bits: Booleans) -> Integers:
    """All that :func:`signs` gives when it is shown these bits."""
    counts = Counts([CERTAIN // 2] * N_CONTEXTS)
    if math.prod(above.shape[2:]) != 1:
        contexts, turned, sizes, _ = _in_windows(above, new)
    else:
        fresh = new.reshape(above.shape[:2])
        rows, columns, n_columns = _rows_and_columns(above)
        starts = [first for first, _ in blocks(len(above))]
        if not starts:
            return np.zeros(0, np.int64)
        leans, n_new = (np.add.reduceat(seen, starts) for seen in _seen(fresh, bits))
        of_blocks = _leanings(before(columns, leans), before(n_columns, n_new))
        hints = np.repeat(of_blocks, np.diff([*starts, len(above)]), axis=0)[fresh]
        contexts, turned = _turned(hints, np.broadcast_to(rows[:, None], fresh.shape)[fresh])
        sizes, _ = ends(np.flatnonzero(fresh), fresh.shape)
    chances = counts.at_once(contexts, bits != turned, sizes)
    return np.where(turned, CERTAIN - chances, chances)


def _in_windows(above: Integers, new: Booleans) -> tuple[Integers, Booleans, Integers, list[int]]:
    """Contexts of all weights, which are turned, and sizes and ends of blocks: neighbours are known beforehand."""
    where, near = np.flatnonzero(new), _neighbours(above)
    far = above.sum(tuple(range(2, above.ndim)), keepdims=True) - near
    hints = (np.minimum(LARGEST, np.maximum(-LARGEST, values.reshape(-1).take(where))) for values in (near, far))
    return *_turned(*hints), *ends(where, new.shape)


def _rows_and_columns(above: Integers) -> tuple[Integers, Integers, Integers]:
    """Leanings of the rows of a matrix, sums of signs of its columns, and how many signs are known."""
    signs = np.sign(above.reshape(above.shape[:2]))
    known = np.abs(signs)
    return _leanings(signs.sum(1), known.sum(1)), signs.sum(0), known.sum(0)


def _turned(hints: Integers, others: Integers) -> tuple[Integers, Booleans]:
    """Contexts, and whether the other sign is asked for."""
    turned = (hints < 0) | ((hints == 0) & (others < 0))
    return 9 * np.abs(hints) + np.where(turned, -others, others) + 4, turned


def _seen(fresh: Booleans, bits: Booleans) -> tuple[Integers, Integers]:
    """Signs of new weights, and where they are."""
    leans = fresh.astype(np.int64)
    n_new = leans.copy()
    leans[fresh] -= 2 * bits
    return leans, n_new


def _leanings(totals: Integers, counts: Integers) -> Integers:
    """How far sums of so many signs are from even: so many standard deviations of a fair coin, in octaves."""
    steps = sum((totals * totals >= leaning * leaning * counts).astype(np.int64) for leaning in LEANINGS)
    return np.where(counts == 0, 0, np.where(totals < 0, -steps, steps))


def _neighbours(values: Integers) -> Integers:
    """Sum over the next and last place along each dimension of the window."""
    total = np.zeros_like(values)
    for dimension in range(2, values.ndim):
        into, of = np.moveaxis(total, dimension, 0), np.moveaxis(values, dimension, 0)
        into[1:] += of[:-1]
        into[:-1] += of[1:]
    return total
