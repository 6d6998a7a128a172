"""Philox4x32-10: (seed, stream, index) to 32-bit words, the same on every device.

Counter-based generator of Salmon, Moraes, Dror and Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3" (SC 2011),
section 4.3. Word j of a stream is lane ``j & 3`` of the block with counter ``(lo, hi, stream, 0)``, where ``lo`` and
``hi`` are the halves of ``j >> 2``; the key is the two halves of the seed, low first.

torch has no unsigned arithmetic on every device, so words live in int64 lanes masked to 32 bits, and a product is
put together from 16-bit limbs: nothing ever overflows, which matters once Inductor turns this into C++.
"""

from __future__ import annotations

import functools
import sys

import torch
from torch import Tensor

from .errors import DeviceError

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
N_ROUNDS = 10
MASK = 0xFFFFFFFF

# Columns: counter, key, expected; from kat_vectors of the authors' Random123 1.14.
KNOWN_ANSWERS = (
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
)


def block_reference(counter: tuple[int, ...], key: tuple[int, ...]) -> tuple[int, ...]:
    """One block on Python integers: four 32-bit words from a counter of four and a key of two."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(N_ROUNDS):
        product0, product1 = MULTIPLIERS[0] * c0, MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (product1 >> 32) ^ c1 ^ k0, product1 & MASK, (product0 >> 32) ^ c3 ^ k1, product0 & MASK
        k0, k1 = (k0 + WEYL[0]) & MASK, (k1 + WEYL[1]) & MASK
    return c0, c1, c2, c3


def words_reference(seed: int, stream: int, *, start: int, n_words: int, device: torch.device | str = "cpu") -> Tensor:
    """Plain and slow :func:`words`."""
    values: list[int] = []
    first = start >> 2
    for block in range(first, (start + n_words + 3) >> 2):
        values += block_reference((block & MASK, block >> 32, stream, 0), (seed & MASK, seed >> 32))
    offset = start - 4 * first
    return torch.tensor(values[offset : offset + n_words], dtype=torch.int64, device="cpu").to(torch.int32).to(device)


def blocks(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Many blocks at once: int64 lanes holding 32-bit words, elementwise integer operations only."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(N_ROUNDS):
        high0, low0 = _multiply(c0, MULTIPLIERS[0])
        high1, low1 = _multiply(c2, MULTIPLIERS[1])
        c0, c1, c2, c3 = high1.bitwise_xor_(c1).bitwise_xor_(k0), low1, high0.bitwise_xor_(c3).bitwise_xor_(k1), low0
        k0, k1 = (k0 + WEYL[0]) & MASK, (k1 + WEYL[1]) & MASK
    return c0, c1, c2, c3


def _multiply(lanes: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """High and low words of a 32 by 32 bit product; no intermediate reaches 2**63: high_part is below 2**48."""
    low_part = lanes * (factor & 0xFFFF)
    high_part = lanes * (factor >> 16)
    high = (low_part >> 16).add_(high_part).bitwise_right_shift_(16)
    return high, high_part.bitwise_left_shift_(16).add_(low_part).bitwise_and_(MASK)


def words_fast(seed: int, stream: int, *, start: int, n_words: int, device: torch.device | str = "cpu") -> Tensor:
    """Vectorised :func:`words`, chunk by chunk."""
    device = torch.device(device)
    first, last = start >> 2, (start + n_words + 3) >> 2
    # Two grains of torch's thread pool; the lanes still fit the cache. Elsewhere few large launches are better.
    n_chunk = 1 << (16 if device.type == "cpu" else 21)
    out = torch.empty((last - first, 4), dtype=torch.int32, device=device)
    for chunk in range(first, last, n_chunk):
        index = torch.arange(chunk, min(chunk + n_chunk, last), device=device)
        counter = (index & MASK, index >> 32, torch.full_like(index, stream), torch.zeros_like(index))
        for lane, values in enumerate(blocks(counter, (seed & MASK, seed >> 32))):
            out[chunk - first : chunk - first + len(index), lane] = values  # keeps the low 32 bits
    offset = start - 4 * first
    return out.flatten()[offset : offset + n_words]


def words_at(seed: int, stream: int, index: Tensor) -> Tensor:
    """Words at chosen places of a stream, one block each.

    Args:
        seed, stream: As in :func:`words`.
        index: int64, any shape: indices of words.

    Returns:
        int32 of the shape of ``index``, on its device.
    """
    place = index if self_test(index.device) else index.cpu()
    block = place >> 2
    counter = (block & MASK, block >> 32, torch.full_like(block, stream), torch.zeros_like(block))
    lanes = torch.stack(blocks(counter, (seed & MASK, seed >> 32)), dim=-1)
    return lanes.gather(-1, (place & 3)[..., None])[..., 0].to(torch.int32).to(index.device)


def words(seed: int, stream: int, *, start: int, n_words: int, device: torch.device | str = "cpu") -> Tensor:
    """Words ``start`` to ``start + n_words`` of a stream.

    Args:
        seed: 0 to 2**64 - 1.
        stream: 0 to 2**32 - 1.
        start: Index of the first word, below 2**64.
        n_words: Number of words.
        device: Where the words are wanted. A device that fails :func:`self_test` is served by the CPU.

    Returns:
        int32 [n_words]; the 32 bits of a word as two's complement.
    """
    device = torch.device(device)
    if self_test(device):
        return words_fast(seed, stream, start=start, n_words=n_words, device=device)
    return words_fast(seed, stream, start=start, n_words=n_words).to(device)


def self_test(device: torch.device | str) -> bool:
    """Whether the device reproduces the authors' known answers; tried once per device and torch version.

    Raises:
        DeviceError: The device is absent, the host is big-endian, or the CPU itself fails.
    """
    device = torch.device(device)
    if device.type == "cuda" and device.index is None and torch.cuda.is_available():
        device = torch.device("cuda", torch.cuda.current_device())
    return _self_test(str(device), str(torch.__version__))


@functools.cache
def _self_test(device: str, torch_version: str) -> bool:
    if sys.byteorder != "little":
        raise DeviceError("cpu", "big-endian hosts are not supported")
    good = True
    for row in KNOWN_ANSWERS:
        counter, key, expected = ([int(word, 16) for word in column.split()] for column in row)
        try:
            lanes = tuple(torch.tensor([word], dtype=torch.int64, device=device) for word in counter)
            got = [int(lane) for lane in blocks(lanes, (key[0], key[1]))]  # type: ignore[arg-type]
        except (RuntimeError, AssertionError) as error:
            raise DeviceError(device, str(error).splitlines()[0]) from None
        good = good and got == expected
    if not good and device == "cpu":
        raise DeviceError(device, f"torch {torch_version} fails the known answers of Philox4x32-10")
    return good
