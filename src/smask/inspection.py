"""What a file holds, read without torch and without regenerating a weight."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from . import bitcoding, floats, groups, manifest, prefixes
from .channels import Heard, kept_of_channels
from .container import Limits
from .counting import Integers
from .dtypes import N_BYTES_OF_DTYPE
from .manifest import Opened
from .planes import Assembly
from .records import Record, Task, bit_sections, n_byte_planes


@dataclass(frozen=True)
class TensorReport:
    """One tensor of a file.

    Attributes:
        name, shape, dtype: As in the state dict.
        base, n_planes: Of a coded tensor; None and 0 for one that is stored as it is.
        task: Which one it is of, None in a file of one model.
        same: Name of the tensor whose bytes it shares, one of its task or else of the first, or None.
        of: Name of the tensor of the base checkpoint that it is over, or None.
        n_weights, n_kept: Elements, and those that are not zero (None for a plain tensor).
        n_flipped: Kept ones whose sign is not that of the base, None where none can have another.
        n_kept_of_channels: The fewest and the most of an output channel, the first dimension (None for a plain tensor).
        n_empty_channels: Output channels of which no weight is kept.
        n_bytes: Coded planes of the tensor, over the base ``values`` with its values.
        entropy_bytes: Zero-order entropy of its sections, of bits or, where they hold values, of bytes.
        codings: Coding of each section, in file order.
    """

    task: str | None
    name: str
    shape: tuple[int, ...]
    dtype: str
    base: str | None
    n_planes: int
    same: str | None
    of: str | None
    n_weights: int
    n_kept: int | None
    n_flipped: int | None
    n_kept_of_channels: tuple[int, int] | None
    n_empty_channels: int
    n_bytes: int
    entropy_bytes: float
    codings: tuple[str, ...]


@dataclass(frozen=True)
class TaskReport:
    """One task of several.

    Attributes:
        name, digest, meta: From the manifest.
        n_plane_bytes: Its coded planes, without those that it shares with the first.
        n_weights, n_kept: Of the tensors that have these.
        arch: Its own architecture, None where it is that of the file.
    """

    name: str
    digest: str
    meta: dict[str, str]
    n_plane_bytes: int
    n_weights: int
    n_kept: int
    arch: dict[str, Any] | None


@dataclass(frozen=True)
class FileReport:
    """A file as a whole.

    Attributes:
        n_bytes: The file.
        n_plane_bytes, n_float_bytes: Coded planes; coded byte planes of scales, biases and norms.
        n_overhead_bytes: The rest: head, manifest, sha256.
        n_weights, n_kept: Of the coded tensors.
        entropy_bytes: Zero-order entropy of all sections: what ``n_plane_bytes`` is to be compared with.
        bits_per_weight: ``8 * n_plane_bytes / n_weights``.
        fp32_bytes: All tensors as plain float32 (others in their own dtype).
        plane_ends: Bytes from the start up to the end of each plane, the highest first: prefixes that hold a model.
        tasks: Those of the file, none where it holds one model.
        seed, digest, base_digest, arch, meta, tensors: From the manifest.
    """

    n_bytes: int
    n_plane_bytes: int
    n_float_bytes: int
    n_overhead_bytes: int
    n_weights: int
    n_kept: int
    entropy_bytes: float
    bits_per_weight: float
    fp32_bytes: int
    plane_ends: tuple[int, ...]
    seed: int | None
    digest: str
    base_digest: str | None
    arch: dict[str, Any]
    meta: dict[str, str]
    tasks: tuple[TaskReport, ...]
    tensors: tuple[TensorReport, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def inspect(
    source: str | os.PathLike[str] | bytes, *, task: str | None = None, limits: Limits | None = None
) -> FileReport:
    """Reads a file and counts its ones.

    Args:
        source: Path or bytes of a file.
        task: Of which tensors are listed, where there are several; all else is said of the whole file.
        limits: What the file may ask for.

    Raises:
        ArgumentError: No task of the file.
        FormatError, UnsupportedError, LimitError, IntegrityError: The file is not valid, not known or too large.
        OSError: The path cannot be read.
    """
    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    opened = manifest.open_file(data, limits=limits or Limits())
    if task is not None:
        groups.number_of(opened.manifest, task)
    records = opened.manifest.tensors
    n_first = n_byte_planes(records)
    n_float_bytes = sum(blob.n_bytes for blob in opened.manifest.blobs[:n_first])
    reports = _tensor_reports(opened, n_first)
    coded = [report for report in reports if report.n_planes]
    n_plane_bytes = sum(report.n_bytes for report in coded)
    n_weights = sum(report.n_weights for report in coded)
    return FileReport(
        n_bytes=len(data),
        n_plane_bytes=n_plane_bytes,
        n_float_bytes=n_float_bytes,
        n_overhead_bytes=len(data) - n_plane_bytes - n_float_bytes,
        n_weights=n_weights,
        n_kept=sum(report.n_kept or 0 for report in coded),
        entropy_bytes=round(sum(report.entropy_bytes for report in coded), 1),
        bits_per_weight=round(8 * n_plane_bytes / n_weights, 5) if n_weights else 0.0,
        fp32_bytes=sum(record.n_weights * _n_bytes_plain(record.dtype) for record in records),
        seed=opened.manifest.seed,
        digest=opened.manifest.digest,
        base_digest=opened.manifest.base_digest,
        plane_ends=prefixes.plane_ends(opened),
        arch=opened.manifest.arch,
        meta=opened.manifest.meta,
        tasks=tuple(
            _task_report(one, [reports[place] for place in group])
            for one, group in zip(opened.manifest.tasks, opened.manifest.groups, strict=False)
        ),
        tensors=tuple(report for report in reports if task is None or report.task == task),
    )


def _n_bytes_plain(dtype: str) -> int:
    return 4 if "F" in dtype else N_BYTES_OF_DTYPE[dtype]


def _tensor_reports(opened: Opened, n_first: int) -> list[TensorReport]:
    records = opened.manifest.tensors
    shapes = [(count, N_BYTES_OF_DTYPE[dtype]) for record in records for count, dtype in record.parameters()]
    blobs = list(zip(opened.manifest.blobs, opened.blobs, strict=True))
    values = iter(
        floats.values_from_planes(
            floats.decode(((described.coding, blob) for described, blob in blobs), shapes), shapes
        )
    )
    parameters = [[next(values) for _ in record.parameters()] for record in records]
    heard = {index: Heard.of(one, parameters[index]) for index, one in enumerate(records) if one.planes}
    assemblies = {
        index: Assembly(one.shape, n_planes=records[index].planes or 0, flip=records[index].flip)
        for index, one in heard.items()
    }
    found: dict[int, list[tuple[str, int, float]]] = {index: [] for index in assemblies}
    n_flipped = {index: 0 for index in assemblies if records[index].flip}
    for (index, plane, kind), (described, blob) in zip(bit_sections(records), blobs[n_first:], strict=True):
        assembly, where = assemblies[index], f"{kind} of plane {plane} of {records[index].name!r}"
        n_bits = assembly.counts.n_bits(kind)
        context = assembly.context(kind, n_bits)
        bits = bitcoding.decode(blob, described.coding, n_bits=n_bits, where=where, context=context)
        assembly.add(kind, bits)
        if kind == "flip":
            n_flipped[index] += bits.n_ones
        if kind.startswith("byte"):
            entropy = bitcoding.entropy_of_bytes(bits.packed)
        else:
            entropy = bitcoding.entropy_bytes(bits.n_ones, n_bits)
        found[index].append((described.coding, described.n_bytes, entropy))
    kept = {
        index: kept_of_channels([heard[index].spread(plane) for plane in one.planes], records[index].shape)
        for index, one in assemblies.items()
    }
    tasks: list[str | None] = [*(task.name for task in opened.manifest.tasks)] or [None]
    return [
        _report(records[index], task, kept.get(index), n_flipped.get(index), found.get(index, []))
        for task, group in zip(tasks, opened.manifest.groups, strict=True) for index in group
    ]  # fmt: skip


def _task_report(task: Task, reports: list[TensorReport]) -> TaskReport:
    coded = [report for report in reports if report.n_planes]
    n_bytes, n_weights = sum(report.n_bytes for report in coded), sum(report.n_weights for report in coded)
    return TaskReport(
        task.name, task.digest, task.meta, n_bytes, n_weights, sum(report.n_kept or 0 for report in coded), task.arch
    )


def _report(
    record: Record,
    task: str | None,
    channels: Integers | None,
    n_flipped: int | None,
    found: list[tuple[str, int, float]],
) -> TensorReport:
    return TensorReport(
        task=task,
        name=record.name,
        shape=record.shape,
        dtype=record.dtype,
        base=None if channels is None else record.base,
        n_planes=record.planes or 0,
        same=record.same,
        of=None if record.of is None else record.origin,
        n_weights=record.n_weights,
        n_kept=None if channels is None else int(channels.sum()),
        n_flipped=n_flipped,
        n_kept_of_channels=(int(channels.min()), int(channels.max()))
        if channels is not None and len(channels)
        else None,
        n_empty_channels=0 if channels is None else int((channels == 0).sum()),
        n_bytes=sum(n_bytes for _, n_bytes, _ in found),
        entropy_bytes=round(sum(entropy for _, _, entropy in found), 1),
        codings=tuple(coding for coding, _, _ in found),
    )
