"""A file of which only the beginning is used: which planes that holds, and the coarser tensors it stands for.

Blobs are ordered so that a prefix is a coarser model (:func:`smask.records.bit_sections`). A plane of a tensor counts
once all its sections are there. No torch.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from . import container, manifest
from .container import N_DIGEST, N_HEAD, Limits
from .errors import ArgumentError, PrefixError
from .groups import holders, number_of
from .manifest import Opened
from .records import Manifest, bit_sections, n_byte_planes


@dataclass(frozen=True)
class Cut:
    """How much of a file is wanted.

    Attributes:
        max_bytes: Only so many bytes from the start are looked at.
        max_planes: Only so many planes of the file from the highest; a tensor with fewer planes than others begins
            with a later one, for planes of one number weigh the same.
        partial: Whether the file may end early, as a download that was broken off.
    """

    max_bytes: int | None = None
    max_planes: int | None = None
    partial: bool = False

    def __post_init__(self) -> None:
        for name, least in (("max_bytes", 1), ("max_planes", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ArgumentError(name, value, f"at least {least}")


@dataclass(frozen=True)
class TensorCoverage:
    """What is there of one tensor: so many of its planes, or of the bytes of its stored values (``unit``)."""

    name: str
    unit: str
    n_present: int
    n_total: int


@dataclass(frozen=True)
class Coverage:
    """What of a file a model was made from.

    Attributes:
        n_bytes, n_file_bytes: Bytes used, and of the whole file, with all of its tasks.
        n_planes, n_file_planes: Planes of which all tensors have theirs, and all planes of the file.
        tensors: Those with sections of their own; all others are whole.
    """

    n_bytes: int
    n_file_bytes: int
    n_planes: int
    n_file_planes: int
    tensors: tuple[TensorCoverage, ...]

    @property
    def complete(self) -> bool:
        """Whether nothing is missing, so that the tensors are the ones that were written."""
        return all(tensor.n_present == tensor.n_total for tensor in self.tensors)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"complete": self.complete, **asdict(self)}


def open_cut(data: bytes | memoryview, cut: Cut, *, limits: Limits) -> Opened:
    """Checks what there is to check of a file or its beginning; blobs that are not used are left out.

    Args:
        data: The file, at least the first ``cut.max_bytes`` bytes of it.
        cut: How much is wanted.
        limits: What the file may ask for.

    Raises:
        PrefixError: The beginning is too short for any model.
        FormatError, UnsupportedError, LimitError, IntegrityError: As :func:`smask.manifest.open_file`.
    """
    if cut.max_bytes is None and not cut.partial:
        opened = manifest.open_file(data, limits=limits)
    else:
        view = memoryview(data)[: cut.max_bytes]
        wanted_short = cut.partial or len(view) == cut.max_bytes
        n_manifest = N_HEAD + int.from_bytes(view[7:N_HEAD], "little") if len(view) >= N_HEAD else N_HEAD
        if wanted_short and len(view) < n_manifest and container.MAGIC.startswith(bytes(view[: len(container.MAGIC)])):
            raise PrefixError(len(view), n_manifest)
        envelope = container.unpack(view, limits=limits)
        described = manifest.parse(envelope.manifest_text, limits=limits)
        sizes = [blob.n_bytes for blob in described.blobs]
        if len(envelope.rest) >= sum(sizes) + N_DIGEST or not wanted_short:
            opened = Opened(described, tuple(container.split(envelope, sizes)), len(view), len(envelope.head))
        else:
            opened = Opened(described, tuple(container.split_prefix(envelope, sizes)), len(view), len(envelope.head))
            least = len(envelope.head) + sum(sizes[: n_byte_planes(described.tensors)])
            if len(view) < least:
                raise PrefixError(len(view), least)
    return _trimmed(opened, cut.max_planes)


def _trimmed(opened: Opened, max_planes: int | None) -> Opened:
    """Without what belongs to a plane of a tensor that is cut, and without the planes that are not wanted."""
    records = opened.manifest.tensors
    sections = bit_sections(records)
    n_first = n_byte_planes(records)
    n_present = len(opened.blobs) - n_first
    while 0 < n_present < len(sections) and sections[n_present][:2] == sections[n_present - 1][:2]:
        if not records[sections[n_present][0]].has_levels:
            break  # every section of stored values is something by itself
        n_present -= 1
    if max_planes is not None:
        lowest = _n_planes(opened.manifest) - max_planes
        wanted = (not records[index].has_levels or plane >= lowest for index, plane, _ in sections[:n_present])
        n_present = sum(wanted)  # planes come from the highest, so these are the first
    return replace(opened, blobs=opened.blobs[: n_first + n_present])


def coverage_of(opened: Opened, task: str | None = None) -> Coverage:
    """What is there of each tensor, of a task where there are several; raises ArgumentError for no task of the file."""
    records = opened.manifest.tensors
    held = holders(opened.manifest, number_of(opened.manifest, task))
    names = {index: records[place].name for place, index in reversed(held.items())}
    n_first = n_byte_planes(records)
    sizes = [blob.n_bytes for blob in opened.manifest.blobs]
    sections = bit_sections(records)
    present = {index: set[str | int]() for index in sorted(names) if records[index].planes}
    for index, plane, kind in sections[: len(opened.blobs) - n_first]:
        if index in present:
            present[index].add(plane if records[index].has_levels else kind)
    tensors = tuple(
        TensorCoverage(names[index], "planes", len(found), records[index].planes or 0)
        if records[index].has_levels
        else TensorCoverage(
            names[index], "bytes", max(0, len(found) - 1), records[index].n_value_sections
        )
        for index, found in present.items()
    )  # fmt: skip
    n_planes = _n_planes(opened.manifest)
    lowest = max((plane + 1 for index, plane, _ in sections[len(opened.blobs) - n_first :]), default=0)
    if any(not records[index].has_levels for index, _, _ in sections[len(opened.blobs) - n_first :]):
        lowest = n_planes
    n_head = opened.n_head_bytes
    whole = len(opened.blobs) == len(sizes)
    return Coverage(
        n_head + sum(sizes[: len(opened.blobs)]) + N_DIGEST * whole, n_head + sum(sizes) + N_DIGEST,
        n_planes - lowest, n_planes, tensors,
    )  # fmt: skip


def _n_planes(described: Manifest) -> int:
    return max((record.planes or 0 for record in described.tensors if record.has_levels), default=0)


def plane_ends(opened: Opened) -> tuple[int, ...]:
    """Bytes of the file up to the end of each plane of levels, the highest first."""
    records = opened.manifest.tensors
    n_bytes = opened.n_head_bytes + sum(blob.n_bytes for blob in opened.manifest.blobs[: n_byte_planes(records)])
    ends: dict[int, int] = {}
    blobs = opened.manifest.blobs[n_byte_planes(records) :]
    for (index, plane, _), blob in zip(bit_sections(records), blobs, strict=True):
        n_bytes += blob.n_bytes
        if records[index].has_levels:
            ends[plane] = n_bytes
    return tuple(ends.values())
