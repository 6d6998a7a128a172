"""Chances from counts: every context counts its ones, block of rows by block of rows. No torch.

Adaptive counts in contexts are those of Rissanen and Langdon, "Universal modeling and coding", IEEE Trans. Information
Theory 27(1), 1981. Contexts of a block depend on what came before it, so that a block is worked out at once.
"""

from __future__ import annotations

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
    """

    def __init__(self, chances: list[int]) -> None:
        self._ones = N_PRIOR * np.array(chances, np.int64)
        self._all = np.full(len(chances), N_PRIOR * CERTAIN)

    def chances(self, contexts: Integers) -> Integers:
        """Of a one for bits in these contexts, out of 65536: never 0, never certain."""
        chances: Integers = np.minimum(CERTAIN - 1, np.maximum(1, CERTAIN * self._ones // self._all))
        return chances[contexts]

    def see(self, contexts: Integers, bits: Booleans) -> None:
        """Takes note of bits in these contexts."""
        self._ones += CERTAIN * np.bincount(contexts[bits], minlength=len(self._ones))
        self._all += CERTAIN * np.bincount(contexts, minlength=len(self._all))


def blocks(n_rows: int) -> list[tuple[int, int]]:
    """First row and end of each block."""
    n = min(n_rows, N_BLOCKS)
    return [(index * n_rows // n, (index + 1) * n_rows // n) for index in range(n)]
