"""Bits under probabilities to bytes: the range coder behind the coding ``range``. No torch.

A model gives the chance of a one for the next few bits, is shown these bits, and goes on; a coder, which knows all
bits, has all chances at once. A chance is an integer ``k`` out of 65536. Range coding is Martin's ("Range encoding: an
algorithm for removing redundancy from a digitised message", Video & Data Recording Conference, Southampton 1979), with
words of 32 bits, a range of 64 and probabilities of 24, as in the library constriction, which does the work.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TypeAlias

import constriction
import numpy as np
import numpy.typing as npt

from .errors import FormatError

Booleans: TypeAlias = npt.NDArray[np.bool_]
Chances: TypeAlias = npt.NDArray[np.int64]
# Yields chances of bits, int64 [n] in 1 .. 65535, and is sent these bits, until all are known.
Model: TypeAlias = Generator[Chances, Booleans, None]

CERTAIN = 1 << 16
MASK = (1 << 64) - 1
# An encoder ends nearer than this to the lower end of its range.
N_NEAR = (1 << 33) - 1


def encode_reference(bits: Booleans, chances: Chances) -> bytes:
    """Plain and slow :func:`encode`: one bit at a time."""
    words, low, extent = list[int](), 0, MASK
    for bit, k in zip(bits.tolist(), chances.tolist(), strict=True):
        step, split = extent >> 24, _split(k)
        low, extent = (low + step * split, step * ((1 << 24) - split)) if bit else (low, step * split)
        if low > MASK:
            _carry(words)
            low &= MASK
        if extent < 1 << 32:
            words.append(low >> 32)
            low, extent = low << 32 & MASK, extent << 32
    if len(bits):
        end = low + (1 << 32) - 1
        if end > MASK:
            _carry(words)
        word = (end & MASK) >> 32
        words += [word, 0] if (low + extent & MASK) >> 32 == word else [word]
    return np.array(words, "<u4").tobytes()


def _split(k: int) -> int:
    """Where zeros end among 2**24, for a chance ``k`` of a one; either keeps at least one place."""
    return ((CERTAIN - k) * ((1 << 24) - 2) >> 16) + 1


def _carry(words: list[int]) -> None:
    last = len(words) - 1
    while words[last] == 0xFFFFFFFF:
        words[last] = 0
        last -= 1
    words[last] += 1


def driven(model: Model, bits: Booleans) -> Chances:
    """All chances of a model, int64 [n], that is shown these bits [n]."""
    parts, start, asked = list[Chances](), 0, next(model, None)
    while asked is not None:
        parts.append(asked)
        start += len(asked)
        asked = _sent(model, bits[start - len(asked) : start])
    return np.concatenate([np.zeros(0, np.int64), *parts])


def _sent(model: Model, bits: Booleans) -> Chances | None:
    try:
        return model.send(bits)
    except StopIteration:
        return None


def encode(bits: Booleans, chances: Chances) -> bytes:
    """Codes bits.

    Args:
        bits: bool [n].
        chances: Of a one for each, int64 [n] in 1 .. 65535.

    Returns:
        Whole words of four bytes.
    """
    coder = constriction.stream.queue.RangeEncoder()
    if len(bits):
        coder.encode(bits.astype(np.int32), _family(), _probabilities(chances))
    words: npt.NDArray[np.uint32] = coder.get_compressed()
    return words.astype("<u4").tobytes()


def decode_reference(blob: bytes | memoryview, model: Model, *, where: str) -> Booleans:
    """Plain and slow :func:`decode`: one bit at a time."""
    words = iter(np.frombuffer(_whole_words(blob, where), "<u4").tolist())
    extent, point, out = MASK, next(words, 0) << 32 | next(words, 0), list[Booleans]()
    chances = next(model, None)
    while chances is not None:
        bits = np.zeros(len(chances), bool)
        for index, k in enumerate(map(int, chances)):
            step, split = extent >> 24, _split(k)
            if point // step >= 1 << 24:
                raise _beyond(where)
            bits[index] = point // step >= split
            point, extent = (point - step * split, step * ((1 << 24) - split)) if bits[index] else (point, step * split)
            if extent < 1 << 32:
                extent, point = extent << 32, point << 32 | next(words, 0)
        out.append(bits)
        chances = _sent(model, bits)
    found = np.concatenate([np.zeros(0, bool), *out])
    _check_end(len(found), blob, next(words, None) is None and point < N_NEAR, where)
    return found


def decode(blob: bytes | memoryview, model: Model, *, where: str) -> Booleans:
    """Inverse of :func:`encode`.

    Args:
        blob: Any bytes.
        model: As the encoder had it.
        where: Name used in errors.

    Returns:
        bool [n], all bits that the model asked for.

    Raises:
        FormatError: No whole words, words that no encoder gives, or words left over.
    """
    coder = constriction.stream.queue.RangeDecoder(np.frombuffer(_whole_words(blob, where), "<u4").astype(np.uint32))
    out, family, chances = list[Booleans](), _family(), next(model, None)
    while chances is not None:
        try:
            bits = coder.decode(family, _probabilities(chances)).astype(bool) if len(chances) else np.zeros(0, bool)
        except AssertionError:
            raise _beyond(where) from None
        out.append(bits)
        chances = _sent(model, bits)
    found = np.concatenate([np.zeros(0, bool), *out])
    _check_end(len(found), blob, coder.maybe_exhausted(), where)
    return found


def _family() -> Callable[..., object]:
    # Not the perfect quantisation of the library: that of this one is an integer multiplication, see _split.
    family: Callable[..., object] = constriction.stream.model.Bernoulli(perfect=False)
    return family


def _probabilities(chances: Chances) -> npt.NDArray[np.float64]:
    return chances / np.float64(CERTAIN)


def _whole_words(blob: bytes | memoryview, where: str) -> bytes | memoryview:
    if len(blob) % 4:
        raise FormatError("E-01", where, f"{len(blob)} bytes", "words of four bytes")
    return blob


def _beyond(where: str) -> FormatError:
    return FormatError("E-03", where, "a point beyond the range", "what an encoder gives")


def _check_end(n_bits: int, blob: bytes | memoryview, at_end: bool, where: str) -> None:
    if not at_end or (not n_bits and len(blob)):
        raise FormatError("E-04", where, "words left over", "an end as an encoder leaves it")
