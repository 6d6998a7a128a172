"""What a file holds, decoded: stored values and coded tensors, and from those all tensors."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

import torch
from msgspec.structs import replace
from torch import Tensor

from . import bitcoding, floats, planes
from .coded import CodedTensor
from .dtypes import N_BYTES_OF_DTYPE
from .groups import group_of, holders
from .manifest import Opened
from .origins import Base, Origins
from .reconstruction import reconstruct
from .records import bit_sections, n_byte_planes
from .stored_tensors import coded_tensor, plain_tensor, restored_tensor, stored_tensor, values_tensor


@dataclass(frozen=True)
class Contents:
    """Tensors of a file, or of one of its tasks, before anything is regenerated.

    Attributes:
        names: All names, in the order of the file.
        plain: Stored values by name; taken out as they are used.
        coded: Coded tensors by name.
        same: Names of tensors that repeat an earlier one, and of that one.
        seed: Seed of the file, 0 where it has none.
    """

    names: tuple[str, ...]
    plain: dict[str, Tensor]
    coded: dict[str, CodedTensor]
    same: dict[str, str]
    seed: int


def contents_of(opened: Opened, base: Base | None = None, task: str | None = None) -> Contents:
    """Decodes all sections of an opened file, or those of one task; nothing is regenerated yet.

    Args:
        opened: The file; blobs that are missing at its end make coarser tensors.
        base: Checkpoint that the file is over; not looked at where it is over none.
        task: Which of several is wanted.

    Raises:
        ArgumentError: No task of the file, or none named where there are several.
        BaseError: The file needs a base and has none, or another.
        FormatError, IntegrityError, LimitError, UnsupportedError: The file is not valid.
    """
    records = opened.manifest.tensors
    held = holders(opened.manifest, group_of(opened.manifest, task))
    wanted = frozenset(held.values())
    origins = Origins(opened.manifest, base)
    n_first = n_byte_planes(records)
    blobs = list(zip(opened.manifest.blobs, opened.blobs, strict=False))
    shapes = [(count, N_BYTES_OF_DTYPE[dtype]) for record in records for count, dtype in record.parameters()]
    byte_planes = []
    for byte, n_bytes, (described, blob) in zip(
        reversed(range(n_first)), floats.plane_lengths(shapes), blobs[:n_first], strict=True
    ):
        byte_planes.append(bitcoding.decode(blob, described.coding, n_bits=8 * n_bytes, where=f"byte plane {byte}"))
    values = iter(floats.values_from_planes(byte_planes, shapes))
    stored_of = [[(next(values), dtype) for _, dtype in record.parameters()] for record in records]
    assemblies = {
        index: planes.Assembly(record.n_weights, n_planes=record.planes, flip=record.flip)
        for index, record in enumerate(records)
        if record.planes and index in wanted
    }
    for (index, plane, kind), (described, blob) in zip(bit_sections(records), blobs[n_first:], strict=False):
        if index not in wanted:
            continue
        n_bits = assemblies[index].counts.n_bits(kind)
        where = f"{kind} of plane {plane} of {records[index].name!r}"
        assemblies[index].add(kind, bitcoding.decode(blob, described.coding, n_bits=n_bits, where=where))
    plain, coded, same = dict[str, Tensor](), dict[str, CodedTensor](), dict[str, str]()
    decoded: dict[int, str] = {}
    for place, index in held.items():
        name, record, stored = records[place].name, records[index], stored_of[index]
        if index in decoded:
            same[name] = decoded[index]
            continue
        decoded[index] = name
        if record.of is not None and name != record.name:
            record = replace(record, of=record.origin)  # an empty one would be another name here
        origin = origins.of(record)
        if record.has_levels:
            parameters = [stored_tensor(*part) for part in stored]
            coded[name] = coded_tensor(record, parameters, assemblies[index], origin)
        else:
            if record.planes:
                tensor = values_tensor(record, assemblies.pop(index), origin)
            elif origin is None:
                tensor = plain_tensor(record, stored_tensor(*stored[0]))
            else:
                tensor = restored_tensor(record, stored[0][0], origin) if stored else origin.clone()
            plain[name] = tensor.reshape(record.shape)
    return Contents(tuple(records[place].name for place in held), plain, coded, same, opened.manifest.seed or 0)


def dense_tensors(read: Contents, device: torch.device, *, without: Container[str] = ()) -> dict[str, Tensor]:
    """Dense tensors in the order of the file, without some coded ones."""
    tensors: dict[str, Tensor] = {}
    for name in read.names:
        first = read.same.get(name, name)
        if name in without:
            continue
        if first in tensors:
            tensors[name] = tensors[first].clone()
        elif first in read.plain:
            tensors[name] = read.plain.pop(first).to(device)
        else:
            tensors[name] = reconstruct(read.coded[first], read.seed, device=device)
    return tensors
