"""Differences of the bits of two tensors of one shape and dtype, from which either gives the other. No torch.

An element is read as an unsigned integer of its width, and the difference is taken modulo 2 to the number of its bits.
Read as a signed number d it is stored as ``2d`` where d is not negative and ``-2d - 1`` elsewhere, so that a small one
has zeros in its high bytes whatever its sign. For floats of one sign the order of the integers is that of the numbers
(IEEE 754, section 5.10), so that near numbers have small differences, which an exclusive or of bits would not give
around a power of two.
"""

from __future__ import annotations

import numpy as np

from .bitcoding import Packed, entropy_bytes, entropy_of_bytes

# Elements that are looked at to tell which of two forms is shorter.
N_LOOKED_AT = 1 << 18
# Fewer say little of their entropy; bytes that are not zero are counted instead.
N_FOR_ENTROPY = 1 << 10


def difference_reference(values: Packed, origin: Packed) -> Packed:
    """Plain and slow :func:`difference`: one Python integer an element."""
    width = values.shape[1]
    out = np.empty_like(values)
    for row, (value, old) in enumerate(zip(values, origin, strict=True)):
        d = (int.from_bytes(value.tobytes(), "little") - int.from_bytes(old.tobytes(), "little")) % (1 << 8 * width)
        folded = 2 * d if d < 1 << 8 * width - 1 else 2 * ((1 << 8 * width) - d) - 1
        out[row] = list(folded.to_bytes(width, "little"))
    return out


def difference(values: Packed, origin: Packed) -> Packed:
    """What is to be stored of elements over those of the base.

    Args:
        values: Little-endian bytes of the elements, uint8 [n, n_bytes of the dtype].
        origin: The like of the base.
    """
    d = (_words(values) - _words(origin)).view(f"i{values.shape[1]}")
    folded: Packed = ((d << 1) ^ (d >> (8 * values.shape[1] - 1))).view(np.uint8)
    return folded.reshape(values.shape)


def restored(folded: Packed, origin: Packed) -> Packed:
    """Inverse of :func:`difference`."""
    z = _words(folded)
    one = z.dtype.type(1)
    d = (z >> one) ^ (~(z & one) + one)
    values: Packed = (_words(origin) + d).view(np.uint8)
    return values.reshape(folded.shape)


def coarse(folded: Packed, n_bits: int) -> Packed:
    """Differences whose lowest bits are 0 but for that of the sign: off by at most half of 2 to their number."""
    z = _words(folded)
    one, n = z.dtype.type(1), z.dtype.type(n_bits)
    if not n_bits:
        return folded
    k = ((z >> one) + (one << (n - one))) >> n
    rounded: Packed = ((k << (n + one)) | (z & one)).view(np.uint8)
    return rounded.reshape(folded.shape)


def n_bytes_estimated(values: Packed) -> float:
    """Bytes that elements take when zeros become a plane and the others byte planes, each at its entropy."""
    values = values[:: max(1, len(values) // N_LOOKED_AT)]
    kept = values[_words(values) != 0]
    return entropy_bytes(len(kept), len(values)) + sum(
        entropy_of_bytes(np.ascontiguousarray(kept[:, byte])) for byte in range(values.shape[1])
    )


def _words(values: Packed) -> np.ndarray:
    return np.ascontiguousarray(values).reshape(-1).view(f"u{values.shape[1]}")
