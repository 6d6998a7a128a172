"""A file in the making: tensors come one at a time, coded sections go to a spool at once."""

from __future__ import annotations

import hashlib
import io
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np
from torch import Tensor

from . import bitcoding, container, floats, integrity, manifest
from .bitcoding import Bits
from .errors import ArgumentError
from .integrity import NAME_OF_DTYPE
from .records import Blob, Manifest, Record, bit_sections
from .stored_tensors import plain_record, values_record

# From this many elements on a tensor has sections of its own: the others wait in memory for the planes that they share.
N_OWN_SECTIONS = 1 << 10


class Draft:
    """Records, blobs and the running digest of a file; the same tensors in the same order give the same bytes.

    Args:
        spool: Takes the coded sections, in the order in which they come; read again when the file is written.
        thorough: Whether sections of some size get the slow levels of zstd, which take a hundred times as long.
    """

    def __init__(self, spool: BinaryIO, *, thorough: bool = True) -> None:
        self.records: list[Record] = []
        self._thorough = thorough
        self._spool = spool
        self._parameters: list[np.ndarray] = []
        self._blobs: dict[tuple[int, int, str], tuple[Blob, int]] = {}
        self._digest = integrity.Digest()
        self._names_of_content: dict[tuple[object, ...], str] = {}

    def add(self, name: str, tensor: Tensor) -> None:
        """Takes the next tensor, stored exactly.

        Raises:
            ArgumentError: A dtype that the format does not have.
        """
        if tensor.dtype not in NAME_OF_DTYPE:
            raise ArgumentError(name, str(tensor.dtype), f"one of {', '.join(NAME_OF_DTYPE.values())}")
        if tensor.numel() < N_OWN_SECTIONS:
            record, stored = plain_record(name, tensor)
            self.append(tensor, record, parameters=[stored])
            return
        content = (tensor.dtype, tensor.shape, hashlib.sha256(integrity.raw_bytes(tensor).numpy().data).digest())
        first = self._names_of_content.setdefault(content, name)
        if first != name:
            self.append(tensor, Record(name, tuple(tensor.shape), NAME_OF_DTYPE[tensor.dtype], same=first))
            return
        record, sections = values_record(name, tensor)
        self.append(tensor, record, sections=((0, kind, bits) for kind, bits in sections))

    def append(
        self,
        tensor: Tensor,
        record: Record,
        *,
        parameters: Iterable[np.ndarray] = (),
        sections: Iterable[tuple[int, str, Bits]] = (),
    ) -> None:
        """Takes the next tensor in the form that its record says.

        Args:
            tensor: What decoding will give, for the digest.
            record: Describes the rest.
            parameters: Stored bytes of each part of ``record.parameters()``, uint8 [n, n_bytes].
            sections: Its (plane, kind, bits).
        """
        for plane, kind, bits in sections:
            coding, blob = bitcoding.encode(bits, bytewise=kind.startswith("byte"), thorough=self._thorough)
            self._blobs[len(self.records), plane, kind] = (Blob(coding, len(blob)), self._spool.tell())
            self._spool.write(blob)
        self.records.append(record)
        self._parameters += parameters
        self._digest.update(record.name, tensor)

    def write(self, out: BinaryIO, *, arch: Mapping[str, Any], seed: int, meta: Mapping[str, str]) -> Manifest:
        """Writes the whole file and returns what its manifest says; the seed is left out where no base needs it."""
        shared, spooled, described = self._described(arch, seed, meta)
        container.write(
            out, manifest.emit(described), itertools.chain((blob for _, blob in shared), self._read(spooled))
        )
        return described

    def n_bytes(self, *, arch: Mapping[str, Any], seed: int, meta: Mapping[str, str]) -> int:
        """Bytes that :meth:`write` would write."""
        _, _, described = self._described(arch, seed, meta)
        empty = io.BytesIO()
        container.write(empty, manifest.emit(described), ())
        return empty.tell() + sum(blob.n_bytes for blob in described.blobs)

    def _described(
        self, arch: Mapping[str, Any], seed: int, meta: Mapping[str, str]
    ) -> tuple[list[tuple[str, bytes]], list[tuple[Blob, int]], Manifest]:
        records = tuple(self.records)
        shared = [bitcoding.encode(plane, bytewise=True) for plane in floats.byte_planes(self._parameters)]
        spooled = [self._blobs[section] for section in bit_sections(records)]
        described = Manifest(
            tensors=records,
            blobs=(*(Blob(coding, len(blob)) for coding, blob in shared), *(blob for blob, _ in spooled)),
            digest=self._digest.hexdigest(),
            arch=dict(arch),
            seed=seed if any(record.seeded for record in records) else None,
            meta=dict(meta),
        )
        return shared, spooled, described

    def _read(self, spooled: Iterable[tuple[Blob, int]]) -> Iterator[bytes]:
        for blob, offset in spooled:
            self._spool.seek(offset)
            yield self._spool.read(blob.n_bytes)
