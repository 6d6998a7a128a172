"""Which bits the bytes of small parameters have: the model of byte planes for the coding ``range``. No torch.

A plane comes in blocks of eight bytes, of each block the highest bits first. In the highest byte of a value, which for
floats is sign and exponent, a bit is expected by the bits above it, and by whether the value beside it in the parameter
before is zero: a channel without weights has neither a scale nor a bias. Bytes below are digits, of which only the
first, still of the exponent, says more than where digits end.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from . import rangecoding
from .counting import Counts, Integers
from .rangecoding import CERTAIN, Booleans, Model

# Contexts are found anew so often that more bytes would take long.
MOST_BYTES = 1 << 12
N_BLOCK = 8
# Contexts of the highest bytes, for each of three kinds of partner, and of the bytes below, for zeros and others.
N_HIGHEST, N_LOWER = 3 << 8, 2 << 4


@dataclass(frozen=True, eq=False)
class Bytes:
    """What is known of a byte plane before its bytes.

    Attributes:
        above: int64 [n], the bytes of each value above this one as one number, -1 where there are none.
        partners: int64 [n], place in the plane of the byte beside it in the parameter before, -1 where there is none.
    """

    above: Integers
    partners: Integers

    def encode(self, bits: Booleans) -> bytes:
        """Bytes of the coding ``range`` for the bits of the plane, bool [8 n], the lowest of each byte first."""
        return rangecoding.encode(_turned(bits), bytes_at_once(self.above, self.partners, bits))

    def decode(self, blob: bytes | memoryview, *, where: str) -> Booleans:
        """Inverse of :meth:`encode`; raises FormatError for what no encoder gives."""
        return _turned_back(rangecoding.decode(blob, bytes_model(self.above, self.partners), where=where))


def bytes_reference(above: Integers, partners: Integers) -> Model:
    """Plain and slow :func:`bytes_model`: one bit at a time."""
    counts, found = _counts(), list[int]()
    for first in range(0, len(above), N_BLOCK):
        places = range(first, min(first + N_BLOCK, len(above)))
        nodes, seen = dict.fromkeys(places, 1), list[tuple[int, bool]]()
        for j in reversed(range(8)):
            contexts = []
            for place in places:
                upper, partner = int(above[place]), int(partners[place])
                if upper < 0:
                    kind = 0 if not 0 <= partner < first else 1 if found[partner] else 2
                    contexts.append(256 * kind + nodes[place])
                else:
                    contexts.append(N_HIGHEST + 16 * (upper == 0) + (upper % 8 if j == 7 else 8 + j))
            bits = yield counts.chances(np.array(contexts, np.int64))
            for place, context, bit in zip(places, contexts, bits.tolist(), strict=True):
                nodes[place] = 2 * nodes[place] + bit
                seen.append((context, bit))
        for context, bit in seen:
            counts.see(np.array([context]), np.array([bit]))
        found += [node - 256 for node in nodes.values()]


def bytes_model(above: Integers, partners: Integers) -> Model:
    """Chances of the bits of a byte plane.

    Args:
        above, partners: As in :class:`Bytes`.
    """
    counts, found = _counts(), np.zeros(len(above), np.int64)
    for first in range(0, len(above), N_BLOCK):
        block = slice(first, min(first + N_BLOCK, len(above)))
        kinds, nodes = _kinds(found, partners[block], first), np.ones(block.stop - first, np.int64)
        for j in reversed(range(8)):
            contexts = _contexts(above[block], kinds, nodes, j)
            bits = yield counts.chances(contexts)
            counts.see(contexts, bits)  # bits of other heights have other contexts
            nodes = 2 * nodes + bits
        found[block] = nodes - 256


def bytes_at_once(above: Integers, partners: Integers, bits: Booleans) -> Integers:
    """All that :func:`bytes_model` gives when it is shown these bits, given as to :meth:`Bytes.encode`."""
    n = len(above)
    found = np.packbits(bits, bitorder="little").astype(np.int64)
    kinds = _kinds(found, partners, np.arange(n) // N_BLOCK * N_BLOCK)
    rows = [_contexts(above, kinds, found + 256 >> j + 1, j) for j in reversed(range(8))]
    contexts = _by_blocks(np.stack(rows))
    n_blocks = -(-n // N_BLOCK)
    sizes = np.full(n_blocks, 8 * N_BLOCK)
    sizes[-1:] = 8 * (n - (n_blocks - 1) * N_BLOCK)
    return _counts().at_once(contexts, _turned(bits), sizes)


def _counts() -> Counts:
    return Counts([CERTAIN // 2] * (N_HIGHEST + N_LOWER), n_prior=1)


def _kinds(found: Integers, partners: Integers, first: Integers | int) -> Integers:
    """0 without a partner in an earlier block, else 1, or 2 if the partner is zero."""
    kinds: Integers = np.where((partners < 0) | (partners >= first), 0, np.where(found[partners] == 0, 2, 1))
    return kinds


def _contexts(above: Integers, kinds: Integers, nodes: Integers, j: int) -> Integers:
    lower = N_HIGHEST + 16 * (above == 0) + (above % 8 if j == 7 else 8 + j)
    contexts: Integers = np.where(above < 0, 256 * kinds + nodes, lower)
    return contexts


def _by_blocks(rows: Integers) -> Integers:
    """[8, n], a row for each height of bits from the highest, to [8 n] in the order of the coding."""
    whole = rows.shape[1] // N_BLOCK * N_BLOCK
    blocks = rows[:, :whole].reshape(8, -1, N_BLOCK).transpose(1, 0, 2)
    return np.concatenate([blocks.reshape(-1), rows[:, whole:].reshape(-1)])


def _turned(bits: Booleans) -> Booleans:
    """Bits of a plane in the order of the coding."""
    return _by_blocks(bits.reshape(-1, 8).T[::-1])  # type: ignore[arg-type,return-value]


def _turned_back(bits: Booleans) -> Booleans:
    """Inverse of :func:`_turned`."""
    places = _by_blocks(np.arange(len(bits)).reshape(-1, 8).T[::-1])
    turned = np.empty_like(bits)
    turned[places] = bits
    return turned
