"""Coded weights in memory as rows of bits, in the order of the file, and back.

A matrix of R rows and K columns holds one bit matrix per bit of a number, most significant first. Bit ``c & 7`` of
byte ``c >> 3`` of a row belongs to column c, as on disk; rows are padded with zeros to whole 32-bit words. The numbers:

=========== ========================================== ============================
signs       number of a weight                         bits for P planes
=========== ========================================== ============================
held        signed level, P + 1 bits of two's          P + 1: two for a supermask,
            complement, the sign bit first             sign and mask
regenerated magnitude                                  P: the mask of a supermask
=========== ========================================== ============================
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from . import bases, philox
from .coded import CodedTensor
from .errors import ArgumentError, UnsupportedError

N_WORD_COLUMNS = 32


@dataclass(frozen=True)
class SignSource:
    """Where regenerated signs come from: seed of the file and stream of the tensor."""

    seed: int
    stream: int


@dataclass(frozen=True, eq=False)
class PackedMatrix:
    """Weights of a layer as bits.

    Attributes:
        planes: uint8 [N, R, 4 * ceil(K / 32)]: bits of levels, or of magnitudes when ``signs`` is set.
        n_columns: K.
        scale: float32 [1] or [R].
        offset: float32 [1] or [R], or None for 0.
        signs: Source of signs that are regenerated at every use, or None when they are held.
    """

    planes: Tensor
    n_columns: int
    scale: Tensor
    offset: Tensor | None = None
    signs: SignSource | None = None

    def __post_init__(self) -> None:
        n_bytes = row_bytes(self.n_columns)
        if self.planes.dtype != torch.uint8 or self.planes.dim() != 3 or self.planes.shape[2] != n_bytes:
            got = f"{self.planes.dtype} {list(self.planes.shape)}"
            raise ArgumentError("planes", got, f"torch.uint8 [planes, rows, {n_bytes}] for {self.n_columns} columns")
        for name, parameter in (("scale", self.scale), ("offset", self.offset)):
            if parameter is not None and (parameter.dim() != 1 or len(parameter) not in (1, self.n_rows)):
                raise ArgumentError(name, f"shape {list(parameter.shape)}", f"[1] or [{self.n_rows}]")

    @property
    def n_rows(self) -> int:
        """R."""
        return self.planes.shape[1]

    @property
    def n_magnitude_bits(self) -> int:
        """P: planes of the magnitude."""
        return self.planes.shape[0] - (self.signs is None)

    @property
    def n_bytes(self) -> int:
        """Resident bytes: bits, scales and offsets."""
        held = (self.planes, self.scale) if self.offset is None else (self.planes, self.scale, self.offset)
        return sum(tensor.numel() * tensor.element_size() for tensor in held)


def row_bytes(n_columns: int) -> int:
    """Bytes of one row of bits."""
    return 4 * -(-n_columns // N_WORD_COLUMNS)


def pack(coded: CodedTensor, seed: int, *, regenerate_signs: bool = False) -> PackedMatrix:
    """A coded tensor as a matrix of ``shape[0]`` rows.

    Args:
        coded: Tensor over a base of signs with at least one dimension.
        seed: Seed of the file.
        regenerate_signs: Do not hold the signs. Flips make held signs of the same size necessary, so that a tensor
            with flips, or over the base ``one``, always holds them.

    Returns:
        The matrix, on the CPU.

    Raises:
        UnsupportedError: Another base.
        ArgumentError: No dimensions, or more planes than an 8-bit level holds (7).
    """
    if coded.base not in bases.SIGNS or coded.origin is not None:
        raise UnsupportedError("base of packed weights", coded.base if coded.of is None else "file", bases.SIGNS)
    if not coded.shape or len(coded.planes) > 7:
        got = f"shape {list(coded.shape)}, {len(coded.planes)} planes"
        raise ArgumentError("coded", got, "at least one dimension and at most 7 planes")
    n_rows, n = coded.shape[0], coded.n_weights
    n_columns = math.prod(coded.shape[1:])
    magnitude = torch.stack([_rows(plane, n_rows, n_columns) for plane in coded.planes])
    if regenerate_signs and coded.flip is None and coded.base == "signed":
        return PackedMatrix(magnitude, n_columns, coded.scale, coded.offset, signs=SignSource(seed, coded.stream))
    signs = bases.sign_bytes(seed, stream=coded.stream, start_byte=0, n_bytes=(n + 7) >> 3, kind=coded.base)
    if coded.flip is not None:
        signs = signs ^ coded.flip
    return PackedMatrix(_levels(magnitude, _rows(signs, n_rows, n_columns)), n_columns, coded.scale, coded.offset)


def unpack(packed: PackedMatrix, *, seed: int, form: CodedTensor) -> CodedTensor:
    """The coded tensor that :func:`pack` was given; flips are left out where all signs are those of the base.

    Args:
        packed: Its weights.
        seed: Seed of the file.
        form: All that is not weights; planes, flips, scale and offset are not looked at.
    """
    n_rows, n_columns = packed.n_rows, packed.n_columns
    planes = packed.planes.cpu()
    flip = None
    if packed.signs is None:
        negative, planes = planes[0], _negated(planes[1:], planes[0])
        n_bytes = (n_rows * n_columns + 7) >> 3
        signs = bases.sign_bytes(seed, stream=form.stream, start_byte=0, n_bytes=n_bytes, kind=form.base)
        wrong = (negative ^ _rows(signs, n_rows, n_columns)) & _any(planes)
        flip = _flat(wrong, n_columns) if bool(wrong.any()) else None
    flat = tuple(_flat(plane, n_columns) for plane in planes)
    offset = None if packed.offset is None else packed.offset.cpu()
    return replace(form, planes=flat, scale=packed.scale.cpu(), flip=flip, offset=offset)


def dense_rows(packed: PackedMatrix, rows: Tensor | None = None) -> Tensor:
    """The formula of :mod:`smask.reconstruction` on chosen rows, plain: every bit becomes a number.

    Args:
        packed: The matrix.
        rows: int64 [M], or None for all rows.

    Returns:
        float32 [M, K], bit for bit what :func:`smask.reconstruction.reconstruct` gives in float32.
    """
    device = packed.planes.device
    planes = packed.planes if rows is None else packed.planes.index_select(1, rows)
    value = torch.zeros((planes.shape[1], packed.n_columns), dtype=torch.int32, device=device)
    for index, plane in enumerate(planes):
        bit = _bits(plane)[:, : packed.n_columns]
        value = 2 * value + (-bit.to(torch.int32) if packed.signs is None and index == 0 else bit)
    if packed.signs is not None:
        indices = torch.arange(packed.n_rows, device=device) if rows is None else rows
        negative = sign_bits(packed.signs, indices, packed.n_columns)
        value = torch.where(negative, -value, value)
    level = value.to(torch.float32)
    if packed.offset is not None:
        # Signs are symmetric under rounding: s * round(q - offset) = round(s q - s offset).
        level = level - value.sign() * _of_rows(packed.offset, rows)
    return level * _of_rows(packed.scale, rows) + 0.0


def sign_bits(signs: SignSource, rows: Tensor, n_columns: int) -> Tensor:
    """Regenerated signs of chosen rows, bool [M, K]: True means -1."""
    first_bit = rows.to(torch.int64) * n_columns
    n_words = (n_columns + 62) // N_WORD_COLUMNS
    index = (first_bit >> 5)[:, None] + torch.arange(n_words, device=rows.device)
    words = philox.words_at(signs.seed, signs.stream, index)
    bits = _bits(words.view(torch.uint8).view(len(rows), 4 * n_words))
    column = (first_bit & 31)[:, None] + torch.arange(n_columns, device=rows.device)
    return bits.gather(1, column) != 0


def _of_rows(parameter: Tensor, rows: Tensor | None) -> Tensor:
    return (parameter if rows is None or len(parameter) == 1 else parameter[rows])[:, None]


def _levels(magnitude: Tensor, negative: Tensor) -> Tensor:
    """Bits of signed levels from bits of magnitudes and of signs."""
    negative = negative & _any(magnitude)
    return torch.cat([negative[None], _negated(magnitude, negative)])


def _negated(planes: Tensor, negative: Tensor) -> Tensor:
    """Two's complement of numbers, given by their bits, where ``negative`` is set; carry by carry, its own inverse."""
    carry, low = negative.clone(), []
    for plane in reversed(planes):
        turned = plane ^ negative
        low.append(turned ^ carry)
        carry &= turned
    return torch.stack(low[::-1])


def _any(planes: Tensor) -> Tensor:
    """Bits that are set in any plane."""
    result = planes[0].clone()
    for plane in planes[1:]:
        result |= plane
    return result


def _rows(flat: Tensor, n_rows: int, n_columns: int) -> Tensor:
    """Packed bits of a flat tensor, uint8 [ceil(R K / 8)], as rows of whole words, uint8 [R, 4 ceil(K / 32)]."""
    n_bytes = row_bytes(n_columns)
    if n_columns % N_WORD_COLUMNS == 0:
        return flat.view(n_rows, n_bytes)
    bits = _bits(flat[None])[0, : n_rows * n_columns].view(n_rows, n_columns)
    return packed_bits(F.pad(bits, (0, 8 * n_bytes - n_columns)))


def _flat(rows: Tensor, n_columns: int) -> Tensor:
    """The inverse of :func:`_rows`."""
    if n_columns % N_WORD_COLUMNS == 0:
        return rows.reshape(-1)
    bits = _bits(rows)[:, :n_columns].reshape(1, -1)
    return packed_bits(F.pad(bits, (0, -bits.shape[1] % 8)))[0]


def _bits(packed: Tensor) -> Tensor:
    """uint8 [M, 8 B] of 0 and 1 from packed bits, uint8 [M, B]."""
    position = torch.arange(8, dtype=torch.uint8, device=packed.device)
    return (packed[:, :, None] >> position).bitwise_and_(1).flatten(1)


def packed_bits(bits: Tensor) -> Tensor:
    """Packed bits, uint8 [M, B], from uint8 [M, 8 B] of 0 and 1."""
    weight = 1 << torch.arange(8, dtype=torch.uint8, device=bits.device)
    return (bits.view(len(bits), bits.shape[1] // 8, 8) * weight).sum(-1, dtype=torch.uint8)
