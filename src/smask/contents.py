"""What a file holds, decoded: stored values and coded tensors, and from those all tensors."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass

import torch
from msgspec.structs import replace
from torch import Tensor

from . import bitcoding, planes
from .channels import Heard
from .coded import CodedTensor
from .groups import holders
from .manifest import Opened
from .origins import Base, Origins
from .parts import Part, parts_of
from .reconstruction import reconstruct
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

    @property
    def all_coded(self) -> dict[str, CodedTensor]:
        """Coded tensors by each of their names."""
        return self.coded | {name: self.coded[first] for name, first in self.same.items() if first in self.coded}


def contents_of(
    opened: Opened, base: Base | None = None, number: int = 0, *, parts: Sequence[Part] | None = None
) -> Contents:
    """Decodes all sections of an opened file, or those of one task; nothing is regenerated yet.

    Args:
        opened: The file; blobs that are missing at its end make coarser tensors.
        base: Checkpoint that the file is over; not looked at where it is over none.
        number: Of the task (:func:`smask.groups.number_of`).
        parts: The file taken apart, where that was done already.

    Raises:
        BaseError: The file needs a base and has none, or another.
        FormatError, IntegrityError, LimitError, UnsupportedError: The file is not valid.
    """
    held = holders(opened.manifest, number)
    origins = Origins(opened.manifest, base)
    parts = parts_of(opened) if parts is None else parts
    heard = {
        index: Heard.of(parts[index].record, parts[index].values)
        for index in held.values() if parts[index].record.planes
    }  # fmt: skip
    assemblies = {
        index: planes.Assembly(one.shape, n_planes=parts[index].record.planes or 0, flip=parts[index].record.flip)
        for index, one in heard.items()
    }
    in_file_order = sorted((section, index) for index in assemblies for section in parts[index].sections)
    for section, of in in_file_order:
        assembly, kind = assemblies[of], section.kind
        where = f"{kind} of plane {section.plane} of {parts[of].record.name!r}"
        n_bits = assembly.counts.n_bits(kind)
        context = assembly.context(kind, n_bits)
        coding = section.described.coding
        assembly.add(kind, bitcoding.decode(section.blob, coding, n_bits=n_bits, where=where, context=context))
    plain, coded, same = dict[str, Tensor](), dict[str, CodedTensor](), dict[str, str]()
    decoded: dict[int, str] = {}
    for place, index in held.items():
        name, record = parts[place].record.name, parts[index].record
        stored = [(value, dtype) for value, (_, dtype) in zip(parts[index].values, record.parameters(), strict=True)]
        if index in decoded:
            same[name] = decoded[index]
            continue
        decoded[index] = name
        if record.of is not None and name != record.name:
            record = replace(record, of=record.origin)  # an empty one would be another name here
        origin = origins.of(record)
        if record.has_levels:
            parameters = [stored_tensor(*part) for part in stored]
            assembly = assemblies[index]
            rows, flip = (heard[index].spread(plane) for plane in assembly.planes), assembly.flip
            flip = None if flip is None else heard[index].spread(flip)
            coded[name] = coded_tensor(record, parameters, [*rows], flip, origin)
        else:
            if record.planes:
                tensor = values_tensor(record, assemblies.pop(index), origin)
            elif origin is None:
                tensor = plain_tensor(record, stored_tensor(*stored[0]))
            else:
                tensor = restored_tensor(record, stored[0][0], origin) if stored else origin.clone()
            plain[name] = tensor.reshape(record.shape)
    return Contents(tuple(parts[place].record.name for place in held), plain, coded, same, opened.manifest.seed or 0)


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
