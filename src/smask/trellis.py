"""Indices whose parities say which of two staircases the next weight of a lane uses. No torch.

The planes of a record with ``trellis`` hold indices k instead of magnitudes q. A weight whose state bit t is 0 has the
even magnitudes, ``q = 2 k``, one whose t is 1 the odd ones and zero, ``q = 2 k - 1``. Bits t follow from the parities p
of the indices before: weights lie in lanes of at most :data:`N_STEPS` steps, weight i in lane ``i % n_lanes`` at step
``i // n_lanes``, and along a lane ``t[j] = t[j-1] ^ t[j-3] ^ p[j-2]``.

So a weight has levels two steps apart, and a writer that looks for the best path through a lane gets most of what a
quantiser of many dimensions would give it (Marcellin and Fischer, "Trellis coded quantization of memoryless and
Gauss-Markov sources", IEEE Trans. Communications 38(1), 1990; the union of subsets is that of Joshi, Crump and Fischer,
"Image subband coding using arithmetic coded trellis coded quantization", IEEE Trans. Circuits and Systems for Video
Technology 5(6), 1995). The code is the one of 8 states of Ungerboeck, "Channel coding with multilevel/phase signals",
IEEE Trans. Information Theory 28(1), 1982, table I. It is linear, so that a reader needs no states: exclusive ors of
packed rows give all bits t at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .bitcoding import Packed
from .errors import ArgumentError

# t[j] is the exclusive or of t so many steps before, and of p so many steps before.
STATE_TAPS, PARITY_TAPS = (1, 3), (2,)
N_STEPS = 128
# Magnitudes have a plane more than indices.
MAX_INDEX_PLANES = 15


def n_lanes(n_weights: int) -> int:
    """Lanes of a tensor: whole bytes of them, so that a step is a row of packed bits."""
    return 8 * -(-n_weights // (8 * N_STEPS))


def states_reference(parities: Packed, n_weights: int) -> Packed:
    """Plain and slow :func:`states`: one weight at a time."""
    p = np.unpackbits(parities, count=n_weights, bitorder="little")
    t, lanes = np.zeros(n_weights, np.uint8), n_lanes(n_weights)
    for i in range(n_weights):
        for source, taps in ((t, STATE_TAPS), (p, PARITY_TAPS)):
            for tap in taps:
                if i - tap * lanes >= 0:
                    t[i] ^= source[i - tap * lanes]
    return np.packbits(t, bitorder="little")


def states(parities: Packed, n_weights: int) -> Packed:
    """State bits t from the parities of all indices.

    Args:
        parities: uint8 [ceil(n_weights / 8)], plane 0 of the indices.
        n_weights: Number of weights.

    Returns:
        uint8 [ceil(n_weights / 8)]; bits past the end are undefined.
    """
    n_bytes, row = n_lanes(n_weights) // 8, len(parities)
    if not row:
        return parities.copy()
    n_steps, before = -(-row // n_bytes), max(STATE_TAPS + PARITY_TAPS)
    # Rows of zeros stand for the steps before the first.
    p, t = np.zeros((2, before + n_steps, n_bytes), np.uint8)
    p[before:].reshape(-1)[:row] = parities
    for step in range(before, before + n_steps):
        for source, taps in ((t, STATE_TAPS), (p, PARITY_TAPS)):
            for tap in taps:
                t[step] ^= source[step - tap]
    return t[before:].reshape(-1)[:row]


def magnitudes(indices: Sequence[Packed], n_weights: int) -> list[Packed]:
    """Planes of the magnitudes that indices stand for.

    Args:
        indices: Planes of the indices, packed bits uint8 [ceil(n_weights / 8)], most significant first.
        n_weights: Number of weights.

    Returns:
        One plane more, most significant first.
    """
    kept = np.bitwise_or.reduce(indices)
    borrow = states(indices[-1], n_weights) & kept
    out = [borrow]
    for plane in reversed(indices):
        out.append(plane ^ borrow)
        borrow = borrow & ~plane
    return out[::-1]


def indices(magnitudes: Sequence[Packed], n_weights: int) -> list[Packed]:
    """Inverse of :func:`magnitudes`.

    Raises:
        ArgumentError: Magnitudes that no indices stand for.
    """
    carry, out = magnitudes[-1], list[Packed]()
    for plane in reversed(magnitudes[:-1]):
        out.append(plane ^ carry)
        carry = carry & plane
    kept = np.bitwise_or.reduce(magnitudes)
    wrong = (states(out[0], n_weights) ^ magnitudes[-1]) & kept if out else kept
    if carry.any() or wrong.any():
        first = int(np.flatnonzero(np.unpackbits(carry | wrong, bitorder="little"))[0])
        raise ArgumentError("planes", f"a magnitude off the path at weight {first}", "magnitudes of a trellis")
    return out[::-1]
