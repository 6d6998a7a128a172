"""What a conversion did: bytes and error of every tensor, and what zstd makes of the same tensors."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
import zstandard
from torch import Tensor

from .. import integrity
from ..checkpoints import Checkpoint, Entry
from ..dtypes import N_BYTES_OF_DTYPE
from ..errors import CheckpointError
from ..records import Blob, Manifest, Record, bit_sections, n_byte_planes

HALVED = ("F32", "F64", "BF16")


@dataclass(frozen=True)
class TensorSize:
    """What became of one tensor.

    Attributes:
        name, shape, dtype: As in the checkpoint.
        stored_as: ``values`` (a plane and byte planes of its own), ``shared`` (byte planes of all small tensors),
            ``N planes`` (levels over a seeded base) or ``same as NAME``; over another checkpoint also ``base`` (that
            of the base itself), ``mask of base``, and ``base + `` before the first three.
        n_weights: Elements.
        raw_bytes: Bytes of them.
        n_bytes: Bytes in the file; of shared byte planes the part that its stored values are of all.
        bits_per_weight: ``8 * n_bytes / n_weights``.
        error: Euclidean length of the difference over that of the tensor; 0 where every bit is kept.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    stored_as: str
    n_weights: int
    raw_bytes: int
    n_bytes: int
    bits_per_weight: float
    error: float = 0.0


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
        half_bytes, half_zstd_bytes: The same with every floating tensor as F16.
        error: Euclidean length of the difference over that of the weights, all tensors in planes together.
        step: Distance of two levels of the weights, 0 of a lossless conversion.
        moved: Batch norms whose statistics were moved after their layer.
        folded: Batch norms whose statistics went into their weights and biases.
        bits_per_weight: ``8 * n_bytes / n_weights``.
        seconds: Time of the conversion without that of zstd.
        digest: sha256 over all tensors, as in the file.
        tensors: One by one.
        base, base_digest: Checkpoint that the file is over and sha256 over its tensors; None where it is over none.
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
    half_bytes: int
    half_zstd_bytes: int
    bits_per_weight: float
    error: float
    step: float
    moved: tuple[str, ...]
    seconds: float
    digest: str
    tensors: tuple[TensorSize, ...]
    base: str | None = None
    base_digest: str | None = None
    folded: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


class Rival:
    """Bytes of all tensors as one zstd frame, and the time that takes."""

    def __init__(self, level: int, n_bytes: int) -> None:
        self._stream = zstandard.ZstdCompressor(level=level).compressobj(size=n_bytes)
        self._n_bytes = 0
        self.seconds = 0.0

    def take(self, data: memoryview) -> None:
        """Takes the next bytes."""
        self._count(lambda: self._stream.compress(data))

    def finish(self) -> int:
        """Bytes of the frame."""
        self._count(self._stream.flush)
        return self._n_bytes

    def _count(self, work: Callable[[], bytes]) -> None:
        started = time.perf_counter()
        self._n_bytes += len(work())
        self.seconds += time.perf_counter() - started


class Rivals:
    """The tensors as they are, and with floats as F16, as one zstd frame each; refuses what no file keeps."""

    def __init__(self, checkpoint: Checkpoint, aliases: Mapping[str, str | None], level: int) -> None:
        self._source, self._aliases = checkpoint.source, aliases
        entries = [entry for entry in checkpoint.entries if entry.name not in aliases]
        halves = [n_of(entry) * (2 if entry.dtype in HALVED else N_BYTES_OF_DTYPE[entry.dtype]) for entry in entries]
        self.n_half = sum(halves)
        self._raw, self._half = Rival(level, sum(map(raw_bytes, entries))), Rival(level, self.n_half)

    @property
    def seconds(self) -> float:
        """Time that all this took."""
        return self._raw.seconds + self._half.seconds

    def take(self, entry: Entry, tensor: Tensor) -> None:
        """Takes the next tensor."""
        if tensor.dtype == torch.bool and bool((integrity.raw_bytes(tensor) > 1).any()):
            reason = "a BOOL whose byte is neither 0 nor 1"
            raise CheckpointError(self._source, reason, entry.name, "save it as tensor.view(torch.uint8) != 0")
        if entry.name in self._aliases:
            return
        self._raw.take(integrity.raw_bytes(tensor).numpy().data)
        half = tensor.half() if entry.dtype in HALVED else tensor
        self._half.take(integrity.raw_bytes(half).numpy().data)

    def finish(self) -> tuple[int, int, int]:
        """Bytes of zstd over the tensors, of their halves, and of zstd over these."""
        return self._raw.finish(), self.n_half, self._half.finish()


def n_of(entry: Entry) -> int:
    """Elements of a tensor."""
    return math.prod(entry.shape)


def raw_bytes(entry: Entry) -> int:
    """Bytes of a tensor as it is."""
    return Record(entry.name, entry.shape).n_weights * N_BYTES_OF_DTYPE[entry.dtype]


def sizes(checkpoint: Checkpoint, described: Manifest, errors: Mapping[str, float]) -> tuple[TensorSize, ...]:
    """What became of each tensor."""
    records = described.tensors
    n_first = n_byte_planes(records)
    own = dict.fromkeys(range(len(records)), 0)
    for (index, _, _), blob in zip(bit_sections(records), described.blobs[n_first:], strict=True):
        own[index] += blob.n_bytes
    stored = {index: _n_shared(record) for index, record in enumerate(records)}
    share = _total(described.blobs[:n_first]) / max(1, sum(stored.values()))
    sizes = []
    for index, (entry, record) in enumerate(zip(checkpoint.entries, records, strict=False)):
        n_bytes = own[index] + round(share * stored[index])
        stored_as = _form(record)
        sizes.append(
            TensorSize(
                entry.name, entry.shape, entry.dtype, stored_as, record.n_weights, raw_bytes(entry), n_bytes,
                bits_per_weight(n_bytes, record.n_weights), errors.get(entry.name, 0.0),
            )
        )  # fmt: skip
    return tuple(sizes)


def _form(record: Record) -> str:
    if record.same or record.copied:
        return f"same as {record.same}" if record.same else "base"
    if record.base == "file":
        return "mask of base"
    form = f"{record.planes} planes" if record.has_levels else "values" if record.planes else "shared"
    return form if record.of is None else f"base + {form}"


def _n_shared(record: Record) -> int:
    return sum(count * N_BYTES_OF_DTYPE[dtype] for count, dtype in record.parameters())


def _total(blobs: tuple[Blob, ...]) -> int:
    return sum(blob.n_bytes for blob in blobs)


def bits_per_weight(n_bytes: int, n_weights: int) -> float:
    """Rounded for people; 0 where there are no weights."""
    return round(8 * n_bytes / n_weights, 4) if n_weights else 0.0
