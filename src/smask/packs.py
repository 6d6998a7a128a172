"""Files of one model each as one file of several tasks, and back: blobs move as they are. No torch.

What tasks have in common is stored once: seed or base, architecture, and tensors that are those of the first. Tasks may
have others beside these, such as a head with outputs of its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import msgspec
import numpy as np
from msgspec.structs import replace

from . import container, floats, groups, manifest
from .container import Limits
from .errors import ArgumentError
from .manifest import Opened
from .parts import Part, parts_of
from .records import Blob, Manifest, Name, Record, Task, bit_sections

Source: TypeAlias = str | os.PathLike[str] | bytes
T = TypeVar("T")
# What a tensor stores from which on saying that it is that of the first task is shorter.
N_SHARED = 64
N_DIGITS = 16


def pack(files: Mapping[str, Source], *, limits: Limits | None = None) -> bytes:
    """One file of several tasks.

    Args:
        files: Path or bytes of a file by the name that its task is to have. All have one seed or base where they have
            any; the first gives what others share with it.
        limits: What each file may ask for, and in all but weights the one made of them.

    Returns:
        The whole file; the same arguments give the same bytes.

    Raises:
        ArgumentError: Fewer than two files, a name that the format does not have, a file that is itself packed, or
            other seeds or bases.
        FormatError, UnsupportedError, LimitError, IntegrityError: A file is not valid, not known or too large.
        OSError: A path cannot be read.
    """
    limits = limits or Limits()
    if len(files) < 2:
        raise ArgumentError("files", f"{len(files)} file{'s' * (len(files) != 1)}", "two or more")
    opened: dict[str, Opened] = {}
    for name, source in files.items():
        _check_name(name)
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
        opened[name] = manifest.open_file(data, limits=limits)
        groups.check_single(opened[name].manifest, "file", name if isinstance(source, bytes) else str(source))
    metas = [one.manifest.meta for one in opened.values()]
    common = {key: text for key, text in metas[0].items() if all(meta.get(key) == text for meta in metas)}
    first, *others = opened
    for name in others:
        _check_common(opened[first].manifest, opened[name].manifest, first, name)
    parts = parts_of(opened[first])
    firsts = {part.record.name: part for part in parts}
    for name in others:
        own = [(part, firsts.get(part.record.name)) for part in parts_of(opened[name])]
        parts += [_same(part.record, part.record.name) if one and _repeats(part, one) else part for part, one in own]
    tasks = tuple(_task(name, one.manifest, opened[first].manifest, common) for name, one in opened.items())
    digest = groups.digest_of_all(one.manifest.digest for one in opened.values())
    sources = [one.manifest for one in opened.values()]
    # A file that readers refuse is none: of many tensors in all, or of as much to say about them.
    limits.check("max_tensors", len(parts))
    data = _written(parts, sources, digest=digest, meta=common, tasks=tasks, arch=sources[0].arch)
    container.unpack(data, limits=limits)
    return data


def single(opened: Opened, task: str | None, digest: str) -> bytes:
    """The file of one model that a task was.

    Args:
        opened: A file of several tasks.
        task: Name of the task.
        digest: sha256 over its reconstructed tensors.

    Raises:
        ArgumentError: No task of the file.
        FormatError: Its byte planes are not valid.
    """
    described, every = opened.manifest, parts_of(opened)
    meta, arch, found = groups.meta_of(described, task), groups.arch_of(described, task), dict[int, Part]()
    for place, index in groups.holders(described, groups.number_of(described, task)).items():
        record, held = described.tensors[place], every[index]
        if index in found:
            found[place] = _same(record, found[index].record.name)
            continue
        of = held.record.of if held.record.name == record.name else held.record.of and held.record.origin
        found[index] = Part(replace(held.record, name=record.name, of=of), held.values, held.sections)
    return _written([*found.values()], [described], digest=digest, meta=meta, tasks=(), arch=arch)


def _task(name: str, own: Manifest, first: Manifest, common: Mapping[str, str]) -> Task:
    """What a task says of itself: that which it has not from the file or the first task."""
    kinds, wanted = ([(r.name, r.shape, r.dtype) for r in described.tensors] for described in (own, first))
    layers, others = (manifest.canonical(described.arch) for described in (own, first))
    meta = {key: text for key, text in own.meta.items() if key not in common}
    return Task(
        name, own.digest[:N_DIGITS], meta, arch=None if layers == others else own.arch,
        records=None if kinds == wanted else len(kinds),
    )  # fmt: skip


def _repeats(part: Part, other: Part) -> bool:
    """Whether it is worth saying that a tensor is that of another record of the same name."""
    n_bytes = sum(value.size for value in part.values) + sum(len(section.blob) for section in part.sections)
    return (
        n_bytes >= N_SHARED and part.record == other.record
        and all(map(np.array_equal, part.values, other.values))
        and [section[1:] for section in part.sections] == [section[1:] for section in other.sections]
    )  # fmt: skip


def _written(
    parts: Sequence[Part], sources: Sequence[Manifest], *, digest: str, meta: dict[str, str], tasks: tuple[Task, ...],
    arch: dict[str, Any],
) -> bytes:  # fmt: skip
    """A file of parts that come from files of one seed or base."""
    records = tuple(part.record for part in parts)
    shared = floats.encode([value for part in parts for value in part.values])
    stored: list[tuple[Blob, bytes | memoryview]] = [(Blob(coding, len(blob)), blob) for coding, blob in shared]
    coded = {(index, one.plane, one.kind): one for index, part in enumerate(parts) for one in part.sections}
    stored += [(coded[section].described, coded[section].blob) for section in bit_sections(records)]
    described = Manifest(
        tensors=records, blobs=tuple(blob for blob, _ in stored), digest=digest, arch=arch, meta=meta,
        seed=_one_of(one.seed for one in sources) if any(record.seeded for record in records) else None,
        base_digest=_one_of(one.base_digest for one in sources) if any(r.of is not None for r in records) else None,
        tasks=tasks,
    )  # fmt: skip
    return container.pack(manifest.emit(described), [bytes(blob) for _, blob in stored])


def _same(record: Record, name: str) -> Part:
    return Part(Record(record.name, record.shape, record.dtype, same=name), (), ())


def _one_of(values: Iterable[T | None]) -> T | None:
    return next((value for value in values if value is not None), None)


def _check_name(name: str) -> None:
    want = "a name of 1 to 512 characters, none of them a control character"
    try:
        msgspec.convert(name, Name)
        name.encode()  # lone surrogates come from file names that are no UTF-8
    except (msgspec.ValidationError, UnicodeEncodeError):
        raise ArgumentError("task", name, want) from None


def _check_common(first: Manifest, other: Manifest, first_name: str, name: str) -> None:
    """Tasks of one file have its seed and its base."""
    for what, one, two in (("seed", first.seed, other.seed), ("base", first.base_digest, other.base_digest)):
        if one is not None and two is not None and one != two:
            raise ArgumentError(f"{what} of {name!r}", two, f"{one} as {first_name!r}")
