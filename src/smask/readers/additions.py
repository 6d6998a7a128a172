"""Pairs of whole numbers in binary and the bits of their sums: a task of several labels, made here from a seed.

That of a public tutorial on synthetic gradients (A. Trask, "Deepmind's Synthetic Gradients Tutorial", 2017): of n bits,
both numbers are below 2**(n-1), so that the sum has n bits too. There pairs are drawn anew in every step; here training
and test pairs are fixed and differ.
"""

from __future__ import annotations

import numpy as np

from .. import philox
from ..errors import DataError
from .examples import Examples, Part
from .reading import Reading

# Bits of a number and of a sum.
FEWEST, MOST = 5, 24
N_EXAMPLES = 60_000
# Of the examples, for testing.
TEST_PART = 1 / 6
SEED = 0


def read_additions(name: str, reading: Reading) -> Examples:
    """Inputs float32 [N, 2 n], the bits of both numbers, highest first; labels float32 [N, n], those of the sum.

    Args:
        name: The number n.
        reading: Not looked at.

    Raises:
        DataError: Not a number of bits in range.
    """
    if not (name.isascii() and name.isdigit() and len(name) < 5 and FEWEST <= int(name) <= MOST):
        raise DataError(f"addition:{name}", f"want a number of bits from {FEWEST} to {MOST}, like addition:12")
    n_bits = int(name)
    pairs = _pairs(2 * (n_bits - 1))
    one, other = pairs >> n_bits - 1, pairs & (1 << n_bits - 1) - 1
    x = np.concatenate([_bits(one, n_bits), _bits(other, n_bits)], axis=1)
    y = _bits(one + other, n_bits)
    n_test = round(len(pairs) * TEST_PART)
    return Examples(Part(x[n_test:], y[n_test:]), Part(x[:n_test], y[:n_test]), None)


def _pairs(n_bits: int) -> np.ndarray:
    """Different numbers of so many bits in random order, int64 [N]."""
    if 1 << n_bits <= 2 * N_EXAMPLES:  # all that there are
        order = philox.words(SEED, 0, start=0, n_words=1 << n_bits).numpy()
        return np.argsort(order, kind="stable")[:N_EXAMPLES]
    words = philox.words(SEED, 0, start=0, n_words=4 * N_EXAMPLES).numpy().view(np.uint64) >> 64 - n_bits
    _, first = np.unique(words, return_index=True)
    found: np.ndarray = words[np.sort(first)[:N_EXAMPLES]].astype(np.int64)
    return found


def _bits(numbers: np.ndarray, n_bits: int) -> np.ndarray:
    return (numbers[:, None] >> np.arange(n_bits)[::-1] & 1).astype(np.float32)
