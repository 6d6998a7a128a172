"""Base weights: numbers that nobody stores, from words of the generator, exact on every device.

======= ======================= ==================================================================
base    bits of weight i        value
======= ======================= ==================================================================
signed  1: word i >> 5,         bit 0 is +1, bit 1 is -1
        position i & 31
uniform 24: word i, high bits k (2k + 1 - 2**24) / 2**24: symmetric, never zero, inside (-1, 1)
normal  16: word i >> 1,        table[low 15 bits], negated when bit 15 is set; the table holds
        low half first          the normal quantiles at (65536 + 2k + 1) / 131072 as float32
one     none                    1: flips are then the signs
======= ======================= ==================================================================
"""

from __future__ import annotations

import functools
import hashlib
from importlib.resources import files

import torch
from torch import Tensor

from . import philox
from .errors import IntegrityError, UnsupportedError

N_WEIGHTS_PER_WORD = {"signed": 32, "uniform": 1, "normal": 2}
# Their weights are +1 or -1, so that bits say all of them.
SIGNS = ("signed", "one")
NORMAL_SHA256 = "6621a18f629e82396c088501c1095eae46f6d8033b42db7b4158e0f4cf34a0ce"


def base_reference(
    kind: str, seed: int, *, stream: int, start: int, n_weights: int, device: torch.device | str = "cpu"
) -> Tensor:
    """Plain and slow :func:`base_weights`: one Python integer a weight."""
    if kind == "one":
        return torch.tensor([1.0] * n_weights, dtype=torch.float32, device=device)
    per_word = N_WEIGHTS_PER_WORD[kind]
    values = []
    for index in range(start, start + n_weights):
        word = int(philox.words_reference(seed, stream, start=index // per_word, n_words=1)[0]) & philox.MASK
        if kind == "signed":
            values.append(1.0 - 2.0 * (word >> (index & 31) & 1))
        elif kind == "uniform":
            values.append((2 * (word >> 8) + 1 - 2**24) / 2**24)
        else:
            half = word >> 16 * (index & 1) & 0xFFFF
            quantile = float(normal_table("cpu")[half & 0x7FFF])
            values.append(-quantile if half >> 15 else quantile)
    return torch.tensor(values, dtype=torch.float32, device=device)


def sign_bytes(
    seed: int, *, stream: int, start_byte: int, n_bytes: int, device: torch.device | str = "cpu", kind: str = "signed"
) -> Tensor:
    """Packed sign bits of a base of :data:`SIGNS`.

    Args:
        seed, stream: As in :func:`smask.philox.words`; the base ``one`` needs neither.
        start_byte: First byte; it holds the bits of weights ``8 * start_byte`` and following.
        n_bytes: Number of bytes.
        device: Where they are wanted.
        kind: The base.

    Returns:
        uint8 [n_bytes]; a set bit means -1.
    """
    if kind == "one":
        return torch.zeros(n_bytes, dtype=torch.uint8, device=device)
    first = start_byte >> 2
    n_words = ((start_byte + n_bytes + 3) >> 2) - first
    packed = philox.words(seed, stream, start=first, n_words=n_words, device=device).view(torch.uint8)
    return packed[start_byte - 4 * first :][:n_bytes]


def base_weights(
    kind: str, seed: int, *, stream: int, start: int, n_weights: int, device: torch.device | str = "cpu"
) -> Tensor:
    """Base weights ``start`` to ``start + n_weights`` of a tensor in row-major order.

    Args:
        kind: ``signed``, ``uniform``, ``normal`` or ``one``.
        seed: Seed of the file.
        stream: Stream of the tensor.
        start: Flat index of the first weight.
        n_weights: Number of weights.
        device: Where they are wanted.

    Returns:
        float32 [n_weights], bit-identical on every device.

    Raises:
        UnsupportedError: An unknown kind.
        IntegrityError: The installed quantile table is not the one of the specification.
    """
    if kind == "one":
        return torch.ones(n_weights, dtype=torch.float32, device=device)
    if kind not in N_WEIGHTS_PER_WORD:
        raise UnsupportedError("base", kind, (*N_WEIGHTS_PER_WORD, "one"))
    per_word = N_WEIGHTS_PER_WORD[kind]
    first = start // per_word
    n_words = -(-(start + n_weights) // per_word) - first
    word = philox.words(seed, stream, start=first, n_words=n_words, device=device)
    skip = start - first * per_word
    if kind == "signed":
        shifts = torch.arange(32, dtype=torch.int32, device=device)
        bits = (word[:, None] >> shifts).bitwise_and_(1)
        return (1 - 2 * bits).flatten()[skip : skip + n_weights].to(torch.float32)
    if kind == "uniform":
        return ((word >> 8 & 0xFFFFFF) * 2 + (1 - 2**24)).to(torch.float32) * 2.0**-24
    half = word.view(torch.int16).to(torch.int32)[skip : skip + n_weights]
    quantile = normal_table(str(device)).index_select(0, half & 0x7FFF)
    return torch.where(half < 0, -quantile, quantile)


@functools.lru_cache(maxsize=8)
def normal_table(device: str) -> Tensor:
    """float32 [32768]: the hash-pinned positive normal quantiles."""
    content = files("smask").joinpath("data/normal.f32").read_bytes()
    actual = hashlib.sha256(content).hexdigest()
    if actual != NORMAL_SHA256:
        raise IntegrityError("installed normal quantile table", actual, NORMAL_SHA256)
    return torch.frombuffer(bytearray(content), dtype=torch.float32).to(device)
