"""What each record of a file stores: values in the byte planes that all share, and blobs, still coded. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from . import floats
from .bitcoding import Packed
from .dtypes import N_BYTES_OF_DTYPE
from .manifest import Opened
from .records import Blob, Record, bit_sections, n_byte_planes


class Section(NamedTuple):
    """One blob of a record; in the order of their numbers sections lie in the file."""

    number: int
    plane: int
    kind: str
    described: Blob
    blob: memoryview


@dataclass(frozen=True, eq=False)
class Part:
    """What one record stores.

    Attributes:
        record: It.
        values: Its values in the byte planes, uint8 [n, n_bytes] each.
        sections: Its blobs, as far as the file holds them.
    """

    record: Record
    values: Sequence[Packed]
    sections: Sequence[Section]


def parts_of(opened: Opened) -> list[Part]:
    """Takes a file, or the beginning of one, apart.

    Raises:
        FormatError: The byte planes are not valid.
    """
    records, n_first = opened.manifest.tensors, n_byte_planes(opened.manifest.tensors)
    blobs = list(zip(opened.manifest.blobs, opened.blobs, strict=False))
    shapes = [(count, N_BYTES_OF_DTYPE[dtype]) for record in records for count, dtype in record.parameters()]
    byte_planes = floats.decode(((described.coding, blob) for described, blob in blobs), shapes)
    values = iter(floats.values_from_planes(byte_planes, shapes))
    sections: list[list[Section]] = [[] for _ in records]
    coded = zip(bit_sections(records), blobs[n_first:], strict=False)
    for number, ((index, plane, kind), (described, blob)) in enumerate(coded):
        sections[index].append(Section(number, plane, kind, described, blob))
    return [
        Part(record, [next(values) for _ in record.parameters()], own)
        for record, own in zip(records, sections, strict=True)
    ]
