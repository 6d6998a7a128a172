"""A checkpoint as a file that gives back every bit: zeros as a plane, all other values as coded byte planes."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import zstandard

from .. import container, integrity
from ..draft import Draft
from ..dtypes import N_BYTES_OF_DTYPE
from ..errors import ArgumentError, CheckpointError
from ..recipe import EXTERNAL
from ..records import Blob, Manifest, Record, bit_sections, n_byte_planes
from .checkpoints import Checkpoint, Entry, Source, open_checkpoint

# The rival of the report works at its best level where that takes seconds, else at its usual one.
N_SMALL, BEST_LEVEL, USUAL_LEVEL = 1 << 23, 19, 3


@dataclass(frozen=True)
class TensorSize:
    """What became of one tensor.

    Attributes:
        name, shape, dtype: As in the checkpoint.
        stored_as: ``values`` (a plane and byte planes of its own), ``shared`` (in the byte planes of all small tensors)
            or ``same as NAME``.
        n_weights: Elements.
        raw_bytes: Bytes of them.
        n_bytes: Bytes in the file; of shared byte planes the part that its stored values are of all.
        bits_per_weight: ``8 * n_bytes / n_weights``.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    stored_as: str
    n_weights: int
    raw_bytes: int
    n_bytes: int
    bits_per_weight: float


@dataclass(frozen=True)
class ConversionReport:
    """A conversion as a whole.

    Attributes:
        source, output: Where from and where to.
        key, prefix, ignored: Where the tensors were found, what is before all names, what was left out.
        aliases: Names of tied tensors, each with the name of the first.
        n_weights: Elements of all tensors, tied ones once.
        raw_bytes: Bytes of all tensors, tied ones once.
        n_bytes: The file.
        zstd_bytes, zstd_level: The raw bytes as one zstd frame.
        bits_per_weight: ``8 * n_bytes / n_weights``.
        seconds: Time of the conversion without that of zstd.
        digest: sha256 over all tensors, as in the file.
        tensors: One by one.
    """

    source: str
    output: str
    key: tuple[str, ...]
    prefix: str
    ignored: tuple[str, ...]
    aliases: Mapping[str, str]
    n_weights: int
    raw_bytes: int
    n_bytes: int
    zstd_bytes: int
    zstd_level: int
    bits_per_weight: float
    seconds: float
    digest: str
    tensors: tuple[TensorSize, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def convert_checkpoint(
    source: Source,
    out: str | os.PathLike[str],
    *,
    lossless: bool = True,
    key: str | None = None,
    meta: Mapping[str, str] | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> ConversionReport:
    """Writes a trained checkpoint as a file from which every tensor comes back bit for bit.

    Tensors are read one at a time and coded sections wait in a temporary file beside the output, so that memory does
    not grow with the checkpoint. The output appears whole or not at all; the source is never touched.

    Args:
        source: Path of a checkpoint, an index or a folder; a module; or a state dict.
        out: File to write.
        lossless: This release converts without loss only.
        key: Name under which a nested checkpoint holds the wanted tensors.
        meta: Free text to keep, beside what the checkpoint carries.
        overwrite: Whether an existing file may be replaced.
        progress: Called after each tensor with the bytes done and those of all tensors.

    Raises:
        CheckpointError: The checkpoint is damaged, wants to run code, or holds something that cannot be kept exactly.
        ArgumentError: The output is not usable.
        OutputError: The system refused to write.
        OSError: The source cannot be read.
    """
    if not lossless:
        raise ArgumentError("lossless", lossless, "True")
    path = Path(out)
    container.check_output(path, overwrite=overwrite)
    started = time.perf_counter()
    checkpoint = open_checkpoint(source, key=key)
    if path.exists() and any(path.samefile(file) for file in checkpoint.files):
        raise ArgumentError("output", str(path), "another file than the source")
    raw = {entry.name: _raw_bytes(entry) for entry in checkpoint.entries}
    aliases = {entry.name: entry.alias_of for entry in checkpoint.entries if entry.alias_of}
    n_raw = sum(n for name, n in raw.items() if name not in aliases)
    level = BEST_LEVEL if n_raw <= N_SMALL else USUAL_LEVEL
    rival = _Rival(level, n_raw)
    with container.atomic_output(path, overwrite=overwrite) as beside, tempfile.TemporaryFile(dir=path.parent) as spool:
        draft, n_done = Draft(spool), 0
        for entry in checkpoint.entries:
            tensor = checkpoint.read(entry.name).cpu()
            if tensor.dtype == torch.bool and bool((integrity.raw_bytes(tensor) > 1).any()):
                reason = "a BOOL whose byte is neither 0 nor 1"
                raise CheckpointError(checkpoint.source, reason, entry.name, "save it as tensor.view(torch.uint8) != 0")
            draft.add(entry.name, tensor)
            if entry.name not in aliases:
                rival.take(integrity.raw_bytes(tensor).numpy().data)
            del tensor
            n_done += raw[entry.name]
            if progress:
                progress(n_done, sum(raw.values()))
        with beside.open("xb") as file:
            described = draft.write(file, arch=EXTERNAL, seed=0, meta={**checkpoint.metadata, **(meta or {})})
        n_bytes = beside.stat().st_size
    zstd_bytes = rival.finish()
    n_weights = sum(record.n_weights for record in described.tensors if record.name not in aliases)
    return ConversionReport(
        source=checkpoint.source,
        output=str(path),
        key=checkpoint.key,
        prefix=checkpoint.prefix,
        ignored=checkpoint.ignored,
        aliases=aliases,
        n_weights=n_weights,
        raw_bytes=n_raw,
        n_bytes=n_bytes,
        zstd_bytes=zstd_bytes,
        zstd_level=level,
        bits_per_weight=_bits_per_weight(n_bytes, n_weights),
        seconds=round(time.perf_counter() - started - rival.seconds, 3),
        digest=described.digest,
        tensors=_sizes(checkpoint, described),
    )


class _Rival:
    """Bytes of all tensors as one zstd frame, and the time that takes."""

    def __init__(self, level: int, n_bytes: int) -> None:
        self._stream = zstandard.ZstdCompressor(level=level).compressobj(size=n_bytes)
        self._n_bytes = 0
        self.seconds = 0.0

    def take(self, data: memoryview) -> None:
        self._count(lambda: self._stream.compress(data))

    def finish(self) -> int:
        self._count(self._stream.flush)
        return self._n_bytes

    def _count(self, work: Callable[[], bytes]) -> None:
        started = time.perf_counter()
        self._n_bytes += len(work())
        self.seconds += time.perf_counter() - started


def _raw_bytes(entry: Entry) -> int:
    return Record(entry.name, entry.shape).n_weights * N_BYTES_OF_DTYPE[entry.dtype]


def _sizes(checkpoint: Checkpoint, described: Manifest) -> tuple[TensorSize, ...]:
    records = described.tensors
    n_first = n_byte_planes(records)
    own = dict.fromkeys(range(len(records)), 0)
    for (index, _, _), blob in zip(bit_sections(records), described.blobs[n_first:], strict=True):
        own[index] += blob.n_bytes
    stored = {index: _n_shared(record) for index, record in enumerate(records)}
    share = _total(described.blobs[:n_first]) / max(1, sum(stored.values()))
    sizes = []
    for index, (entry, record) in enumerate(zip(checkpoint.entries, records, strict=True)):
        n_bytes = own[index] + round(share * stored[index])
        stored_as = f"same as {record.same}" if record.same else "values" if record.planes else "shared"
        sizes.append(
            TensorSize(
                entry.name, entry.shape, entry.dtype, stored_as, record.n_weights, _raw_bytes(entry), n_bytes,
                _bits_per_weight(n_bytes, record.n_weights),
            )
        )  # fmt: skip
    return tuple(sizes)


def _n_shared(record: Record) -> int:
    return sum(count * N_BYTES_OF_DTYPE[dtype] for count, dtype in record.parameters())


def _total(blobs: tuple[Blob, ...]) -> int:
    return sum(blob.n_bytes for blob in blobs)


def _bits_per_weight(n_bytes: int, n_weights: int) -> float:
    return round(8 * n_bytes / n_weights, 4) if n_weights else 0.0
