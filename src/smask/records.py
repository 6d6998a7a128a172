"""What a manifest holds, as frozen structs, and the order of the blobs that follows from it. No torch, no numpy."""

from __future__ import annotations

import math
from typing import Annotated, Any, TypeAlias

from msgspec import Meta, Struct

from .dtypes import N_BYTES_OF_DTYPE

SEEDED_BASES = ("signed", "uniform", "normal")
BASES = (*SEEDED_BASES, "values")
CODINGS = ("raw", "zstd", "gap-zstd")
AXES = ("tensor", "channel")
ARCHITECTURES = ("layers", "external")
MAX_PLANES = 16

Count: TypeAlias = Annotated[int, Meta(ge=0, le=2**62)]
# No control characters: a name is shown on terminals and delimited by a zero byte in the digest.
Name: TypeAlias = Annotated[str, Meta(pattern=r"^[^\x00-\x1f\x7f-\x9f]{1,512}\Z")]


class Blob(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One blob of the body: id of its coding, size in bytes."""

    coding: str
    n_bytes: Count


class Scale(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A float parameter of a coded tensor: one value a tensor or one a channel (dimension 0), and its stored dtype."""

    axis: str
    stored: str


class Record(Struct, frozen=True, forbid_unknown_fields=True):
    """One tensor. With ``planes`` it is coded over a base, without it is stored as it is or as another tensor.

    Attributes:
        name: State-dict name.
        shape: Dimensions.
        dtype: Dtype of the decoded tensor.
        stored: Plain tensors and the base ``values``: dtype of the stored values, widened exactly to ``dtype``.
        planes: Coded tensors: number of ordered bit planes.
        base, stream: Coded tensors: kind of the base and its stream of the generator.
        flip: Coded tensors: whether kept weights carry a flip bit.
        scale, offset: Coded tensors: float parameters.
        same: Name of an earlier tensor with the same bytes; nothing else is stored then.
    """

    name: Name
    shape: Annotated[tuple[Count, ...], Meta(max_length=8)]
    dtype: str = "F32"
    stored: str | None = None
    planes: Annotated[int, Meta(ge=1, le=MAX_PLANES)] | None = None
    base: str = "signed"
    stream: Annotated[int, Meta(ge=0, le=2**32 - 1)] = 0
    flip: bool = False
    scale: Scale | None = None
    offset: Scale | None = None
    same: Name | None = None

    @property
    def n_weights(self) -> int:
        """Number of elements, a Python integer that cannot overflow."""
        return math.prod(self.shape)

    @property
    def seeded(self) -> bool:
        """Whether the tensor is coded over numbers that the seed gives."""
        return self.planes is not None and self.base != "values"

    @property
    def n_value_sections(self) -> int:
        """Byte planes that this record has for itself: those of its stored non-zeros over the base ``values``."""
        return N_BYTES_OF_DTYPE[str(self.stored)] if self.planes and self.base == "values" else 0

    def parameters(self) -> list[tuple[int, str]]:
        """Stored values of this record in the byte planes that all share, in file order, as (count, stored dtype)."""
        if self.same is not None:
            return []
        if self.planes is None:
            return [(self.n_weights, str(self.stored))]
        return [
            (self.shape[0] if part.axis == "channel" and self.shape else 1, part.stored)
            for part in (self.scale, self.offset)
            if part is not None
        ]


class Manifest(Struct, frozen=True, forbid_unknown_fields=True):
    """What a file says of itself.

    Attributes:
        tensors: Records in state-dict order.
        blobs: Blobs of the body in file order.
        digest: sha256 over the reconstructed tensors, 64 lower-case hexadecimal digits.
        seed: Seed of the generator; coded tensors need it.
        arch: Architecture, interpreted by :mod:`smask.architectures`.
        meta: Free text by the author; it has no effect on decoding.
        extensions: Fields of later versions that declare themselves ignorable.
    """

    tensors: tuple[Record, ...]
    blobs: tuple[Blob, ...]
    digest: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
    arch: dict[str, Any]
    seed: Annotated[int, Meta(ge=0)] | None = None
    meta: dict[str, str] = {}
    extensions: dict[str, Any] = {}


def n_byte_planes(tensors: tuple[Record, ...]) -> int:
    """Number of byte planes of the float parameters: the widest stored dtype of any value."""
    stored = [parameter for record in tensors for parameter in record.parameters()]
    return max((N_BYTES_OF_DTYPE[dtype] for count, dtype in stored if count), default=0)


def bit_sections(tensors: tuple[Record, ...]) -> list[tuple[int, int, str]]:
    """Bit blobs in file order as (tensor index, plane, kind): plane-major, so that a prefix is a coarser model."""
    sections = []
    for plane in reversed(range(max((record.planes or 0 for record in tensors), default=0))):
        for index, record in enumerate(tensors):
            if (record.planes or 0) > plane:
                sections.append((index, plane, "significance"))
                if record.flip:
                    sections.append((index, plane, "flip"))
                if plane < (record.planes or 0) - 1:
                    sections.append((index, plane, "refinement"))
                sections += [(index, plane, f"byte {byte}") for byte in reversed(range(record.n_value_sections))]
    return sections
