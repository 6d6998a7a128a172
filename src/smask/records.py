"""What a manifest holds, as frozen structs, and the order of the blobs that follows from it. No torch, no numpy."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Annotated, Any, TypeAlias

from msgspec import Meta, Struct, structs

from .dtypes import N_BYTES_OF_DTYPE

SEEDED_BASES = ("signed", "uniform", "normal")
BASES = (*SEEDED_BASES, "one", "values", "file")
CODINGS = ("raw", "zstd", "gap-zstd", "range")
AXES = ("tensor", "channel")
ARCHITECTURES = ("layers", "external")
MAX_PLANES = 16

Count: TypeAlias = Annotated[int, Meta(ge=0, le=2**62)]
# No control characters: a name is shown on terminals and delimited by a zero byte in the digest.
Name: TypeAlias = Annotated[str, Meta(pattern=r"^[^\x00-\x1f\x7f-\x9f]{1,512}\Z")]
NameOrEmpty: TypeAlias = Annotated[str, Meta(pattern=r"^[^\x00-\x1f\x7f-\x9f]{0,512}\Z")]
Sha256: TypeAlias = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
# The first digits of one: 64 bits find damage, and a whole one would be most of what a task costs beside its planes.
ShortSha256: TypeAlias = Annotated[str, Meta(pattern=r"^[0-9a-f]{16}\Z")]


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

    With ``of`` it is over a tensor of another checkpoint, the base of the file: a mask of it (base ``file``), levels
    added to it (another base and planes), a difference of bits (stored values), or, with nothing else, that tensor.

    Attributes:
        name: State-dict name.
        shape: Dimensions.
        dtype: Dtype of the decoded tensor.
        stored: Plain tensors and the base ``values``: dtype of the stored values, widened exactly to ``dtype``.
        planes: Coded tensors: number of ordered bit planes.
        base, stream: Coded tensors: kind of the base and its stream of the generator.
        flip: Coded tensors: whether kept weights carry a flip bit.
        trellis: Coded tensors: whether planes hold indices of a trellis instead of magnitudes.
        scale, offset: Coded tensors: float parameters.
        same: Name of an earlier tensor with the same bytes, of the same task or else of the first; nothing else is
            stored then.
        of: Name of the tensor of the base checkpoint; empty where it is that of this record.
    """

    name: Name
    shape: Annotated[tuple[Count, ...], Meta(max_length=8)]
    dtype: str = "F32"
    stored: str | None = None
    planes: Annotated[int, Meta(ge=1, le=MAX_PLANES)] | None = None
    base: str = "signed"
    stream: Annotated[int, Meta(ge=0, le=2**32 - 1)] = 0
    flip: bool = False
    trellis: bool = False
    scale: Scale | None = None
    offset: Scale | None = None
    same: Name | None = None
    of: NameOrEmpty | None = None

    @property
    def n_weights(self) -> int:
        """Number of elements, a Python integer that cannot overflow."""
        return math.prod(self.shape)

    @property
    def extent(self) -> int:
        """What limits go by: elements as they would be without a dimension of 0, or scales and offsets, if more.

        A tensor without elements has dimensions all the same, which libraries multiply.
        """
        return max(math.prod(size or 1 for size in self.shape), sum(n for n, _ in self.parameters()))

    @property
    def has_levels(self) -> bool:
        """Whether the planes hold levels, from which the formula makes weights."""
        return self.planes is not None and self.base != "values"

    @property
    def seeded(self) -> bool:
        """Whether the tensor is coded over numbers that the seed gives."""
        return self.has_levels and self.base in SEEDED_BASES

    @property
    def copied(self) -> bool:
        """Whether the tensor is that of the base checkpoint."""
        return self.of is not None and self.planes is None and self.stored is None

    @property
    def origin(self) -> str:
        """Name of the tensor of the base checkpoint, for a record with ``of``."""
        return self.of or self.name

    @property
    def n_value_sections(self) -> int:
        """Byte planes that this record has for itself: those of its stored non-zeros over the base ``values``."""
        return N_BYTES_OF_DTYPE[str(self.stored)] if self.planes and self.base == "values" else 0

    def parameters(self) -> list[tuple[int, str]]:
        """Stored values of this record in the byte planes that all share, in file order, as (count, stored dtype)."""
        if self.same is not None or self.copied:
            return []
        if self.planes is None:
            return [(self.n_weights, str(self.stored))]
        return [
            (self.shape[0] if part.axis == "channel" and self.shape else 1, part.stored)
            for part in (self.scale, self.offset)
            if part is not None
        ]


class Task(Struct, frozen=True, forbid_unknown_fields=True):
    """One of several models in a file.

    Attributes:
        name: As the user calls it.
        digest: First 16 hexadecimal digits of the sha256 over its reconstructed tensors.
        meta: Free text beside that of the file.
        arch: Architecture, where it is not that of the file.
        records: Number of its records, where names, shapes or dtypes are not those of the first task.
    """

    name: Name
    digest: ShortSha256
    meta: dict[str, str] = {}
    arch: dict[str, Any] | None = None
    records: Count | None = None


class Manifest(Struct, frozen=True, forbid_unknown_fields=True, dict=True):
    """What a file says of itself.

    Attributes:
        tensors: Records in state-dict order; those of one task after those of another.
        blobs: Blobs of the body in file order.
        digest: sha256 over the reconstructed tensors, 64 lower-case hexadecimal digits; of several tasks that over the
            digits of theirs.
        base_digest: The like over the tensors of the checkpoint that the file is over.
        seed: Seed of the generator; coded tensors need it.
        arch: Architecture, interpreted by :mod:`smask.architectures`.
        meta: Free text by the author; it has no effect on decoding.
        tasks: Names of the tasks, in the order of their records; none for a file of one model.
        extensions: Fields of later versions that declare themselves ignorable.
    """

    tensors: tuple[Record, ...]
    blobs: tuple[Blob, ...]
    digest: Sha256
    arch: dict[str, Any]
    base_digest: Sha256 | None = None
    seed: Annotated[int, Meta(ge=0)] | None = None
    meta: dict[str, str] = {}
    tasks: tuple[Task, ...] = ()
    extensions: dict[str, Any] = {}

    @functools.cached_property
    def groups(self) -> tuple[range, ...]:
        """Places of the records of each task, or of the one model; where they add up, as a parser has seen to."""
        own = [task.records for task in self.tasks]
        n_like_first = own.count(None) or 1
        n_first = (len(self.tensors) - sum(n for n in own if n is not None)) // n_like_first
        ends = [*itertools.accumulate(n_first if n is None else n for n in own or [None])]
        return tuple(range(start, end) for start, end in itertools.pairwise([0, *ends]))

    @functools.cached_property
    def places_of_first(self) -> dict[str, int]:
        """Places of the records of the first task, or of the one model, by name."""
        return {self.tensors[place].name: place for place in self.groups[0]}


@functools.cache
def defaults_of(struct: type[Struct]) -> dict[str, object]:
    """Default of each field; required fields have one that no value equals."""
    fields = structs.fields(struct)
    return {field.name: {} if field.default_factory is dict else field.default for field in fields}


def n_byte_planes(tensors: tuple[Record, ...]) -> int:
    """Number of byte planes of the float parameters: the widest stored dtype of any value."""
    stored = [parameter for record in tensors for parameter in record.parameters()]
    return max((N_BYTES_OF_DTYPE[dtype] for count, dtype in stored if count), default=0)


def bit_sections(tensors: tuple[Record, ...]) -> list[tuple[int, int, str]]:
    """Bit blobs in file order as (tensor index, plane, kind), so that a prefix is a coarser model.

    First stored values, their bytes highest first over all tensors; then the planes of levels, plane-major.
    """
    widths = [(index, record.n_value_sections) for index, record in enumerate(tensors) if record.n_value_sections]
    sections = [(index, 0, "significance") for index, _ in widths]
    for byte in reversed(range(max((width for _, width in widths), default=0))):
        sections += [(index, 0, f"byte {byte}") for index, width in widths if width > byte]
    levels = [(index, record.planes or 0, record.flip) for index, record in enumerate(tensors) if record.has_levels]
    for plane in reversed(range(max((n_planes for _, n_planes, _ in levels), default=0))):
        for index, n_planes, flip in levels:
            if n_planes > plane:
                sections.append((index, plane, "significance"))
                if flip:
                    sections.append((index, plane, "flip"))
                if plane < n_planes - 1:
                    sections.append((index, plane, "refinement"))
    return sections
