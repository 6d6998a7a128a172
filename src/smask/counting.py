"""Chances from counts: every context counts its ones, block of rows by block of rows. No torch.

Adaptive counts in contexts are those of Rissanen and Langdon, "Universal modeling and coding", IEEE Trans. Information
Theory 27(1), 1981. Contexts of a block depend on what came before it, so that a block is worked out at once.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from .rangecoding import CERTAIN, Booleans

Integers: TypeAlias = npt.NDArray[np.int64]

N_BLOCKS = 16
# A context begins with what is expected of it, which counts as much as so many bits that were seen.
N_PRIOR = 6


class Counts:
    """Ones and all bits seen in each context, in units of one bit in 65536.

    Args:
        chances: Of a one in each context before anything was seen, out of 65536.
        n_prior: Bits that these count as much as.
    """

    def __init__(self, chances: list[int], *, n_prior: int = N_PRIOR) -> None:
        self._ones = n_prior * np.array(chances, np.int64)
        self._all = np.full(len(chances), n_prior * CERTAIN)

    def chances(self, contexts: Integers) -> Integers:
        """Of a one for bits in these contexts, out of 65536: never 0, never certain."""
        found: Integers = _chances(self._ones, self._all)[contexts]
        return found

    def see(self, contexts: Integers, bits: Booleans) -> None:
        """Takes note of bits in these contexts."""
        ones, both = _seen(contexts, bits, len(self._ones))
        self._ones += ones
        self._all += both

    def at_once(self, contexts: Integers, bits: Booleans, sizes: Integers) -> Integers:
        """What :meth:`chances` gives for all blocks, each bit of the blocks before it seen.

        Args:
            contexts: Of every bit, [n].
            bits: bool [n].
            sizes: Bits of each block.
        """
        n, width = len(sizes), len(self._ones)
        places = contexts + np.repeat(np.arange(0, n * width, width), sizes)
        ones, both = (seen.reshape(n, width) for seen in _seen(places, bits, n * width))
        table = _chances(before(self._ones, ones), before(self._all, both))
        found: Integers = table.reshape(-1)[places]
        return found


def before(first: Integers, steps: Integers) -> Integers:
    """Sums of all rows before each, [n, ...] of [n, ...], and of what was there at first, [...]."""
    sums = np.empty_like(steps)
    sums[:1] = first
    np.cumsum(steps[:-1], axis=0, out=sums[1:])
    sums[1:] += first
    return sums


def _chances(ones: Integers, both: Integers) -> Integers:
    chances: Integers = np.minimum(CERTAIN - 1, np.maximum(1, CERTAIN * ones // both))
    return chances


def _seen(contexts: Integers, bits: Booleans, n: int) -> tuple[Integers, Integers]:
    """Ones and all bits in each of n contexts, in units of one bit in 65536."""
    seen = np.bincount(2 * contexts + bits, minlength=2 * n).reshape(n, 2) << 16
    return seen[:, 1], seen[:, 0] + seen[:, 1]


def blocks(n_rows: int) -> list[tuple[int, int]]:
    """First row and end of each block."""
    n = min(n_rows, N_BLOCKS)
    return [(index * n_rows // n, (index + 1) * n_rows // n) for index in range(n)]


def ends(where: Integers, shape: tuple[int, ...]) -> tuple[Integers, list[int]]:
    """Bits of each block, and where each ends, for bits at these places of a tensor of some shape, in order."""
    rows = np.array([0, *(last for _, last in blocks(shape[0]))])
    stops = np.searchsorted(where, rows * math.prod(shape[1:]))
    return np.diff(stops), stops[1:].tolist()
