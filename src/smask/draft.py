"""A file in the making: tensors come one at a time, coded sections go to a spool at once."""

from __future__ import annotations

import hashlib
import io
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np
from msgspec.structs import replace
from torch import Tensor

from . import bitcoding, container, floats, integrity, manifest, overlays, planes, trellis
from .bitcoding import Bits
from .channels import Heard
from .coded import CodedTensor
from .errors import ArgumentError
from .integrity import NAME_OF_DTYPE
from .records import Blob, Manifest, Record, bit_sections
from .stored_tensors import coded_record, difference_record, difference_sections, plain_record, values_record

# From this many elements on a tensor has sections of its own: the others wait in memory for the planes that they share.
N_OWN_SECTIONS = 1 << 10
# Up to so many elements a model has sections in the coding ``range`` if nobody says otherwise: some 3 to 6 % smaller
# than the others, and a second or so to decode.
MOST_RANGED = 1 << 22
# And where all is known before, up to so many bits of planes and of values: masks of 16 million weights.
MOST_RANGED_BITS = 1 << 24
# The like for a mask of a tensor of the base, which has one or two sections and a scale.
N_MASKED = 1 << 8


class Draft:
    """Records, blobs and the running digest of a file; the same tensors in the same order give the same bytes.

    Args:
        n_weights: Elements of the whole model; planes of a small one are worth the time of the coding ``range``.
        n_bits: Those of its planes and values, if they are known, for the same.
        ranged: Whether they have it instead, whatever the size; if not, floats do not either.
        spool: Takes the coded sections, in the order in which they come; read again when the file is written.
        thorough: Whether sections of some size get the slow levels of zstd, which take a hundred times as long.
    """

    def __init__(
        self,
        spool: BinaryIO,
        *,
        n_weights: int,
        n_bits: int | None = None,
        ranged: bool | None = None,
        thorough: bool = True,
    ) -> None:
        self.records: list[Record] = []
        is_small = n_weights <= MOST_RANGED or (n_bits is not None and n_bits <= MOST_RANGED_BITS)
        self._thorough, self._ranged = thorough, is_small if ranged is None else ranged
        self._ranged_floats = ranged is not False
        self._spool = spool
        self._parameters: list[np.ndarray] = []
        self._blobs: dict[tuple[int, int, str], tuple[Blob, int]] = {}
        self._digest = integrity.Digest()
        self._names_of_content: dict[tuple[object, ...], str] = {}

    def add(self, name: str, tensor: Tensor, over: tuple[str, Tensor] | None = None) -> None:
        """Takes the next tensor, stored exactly.

        Args:
            name: Its state-dict name.
            tensor: Any dtype that the format has.
            over: Name and tensor of the base that it may be stored over, of the same shape.

        Raises:
            ArgumentError: A dtype that the format does not have.
        """
        if tensor.dtype not in NAME_OF_DTYPE:
            raise ArgumentError(name, str(tensor.dtype), f"one of {', '.join(NAME_OF_DTYPE.values())}")
        tensor = tensor.detach().cpu()
        if tensor.numel() < N_OWN_SECTIONS:
            if over is None or not self._add_over(name, tensor, *over):
                record, stored = plain_record(name, tensor)
                self.append(tensor, record, parameters=[stored])
            return
        content = (tensor.dtype, tensor.shape, hashlib.sha256(integrity.raw_bytes(tensor).numpy().data).digest())
        first = self._names_of_content.setdefault(content, name)
        if first != name:
            self.append(tensor, Record(name, tuple(tensor.shape), NAME_OF_DTYPE[tensor.dtype], same=first))
            return
        if over is not None and self._add_over(name, tensor, *over):
            return
        record, sections = values_record(name, tensor)
        self.append(tensor, record, sections=((0, kind, bits) for kind, bits in sections), above=_nothing_above(tensor))

    def add_coded(self, name: str, tensor: Tensor, coded: CodedTensor) -> None:
        """Takes the next tensor, which its planes give."""
        record, parameters = coded_record(name, coded)
        flip, rows = None if coded.flip is None else coded.flip.numpy(), [plane.numpy() for plane in coded.planes]
        if coded.trellis:
            rows = trellis.indices(rows, coded.n_weights)
        heard = Heard.of(record, parameters)
        rows, flip = [*map(heard.taken, rows)], None if flip is None else heard.taken(flip)
        sections = planes.sections(rows, flip, heard.n_weights)
        above = planes.Above(heard.shape, rows, flip)
        self.append(tensor, record, parameters=parameters, sections=sections, above=above)

    def _add_over(self, name: str, tensor: Tensor, of: str, origin: Tensor) -> bool:
        """Takes a tensor over one of the base where that pays, and says whether it did."""
        if overlays.equal_bits(tensor, origin):
            self.append(tensor, Record(name, tuple(tensor.shape), NAME_OF_DTYPE[tensor.dtype], of=of))
            return True
        if tensor.numel() >= N_MASKED:
            masked = overlays.mask_of(tensor, origin, of)
            if masked is not None:
                self.add_coded(name, tensor, masked)
                return True
        if tensor.dtype != origin.dtype:
            return False
        record, folded = difference_record(name, tensor, origin, of)
        if not overlays.difference_pays(tensor, folded):
            return False
        if tensor.numel() < N_OWN_SECTIONS:
            self.append(tensor, record, parameters=[folded])
        else:
            record = replace(record, planes=1, base="values")
            sections = ((0, kind, bits) for kind, bits in difference_sections(folded))
            self.append(tensor, record, sections=sections, above=_nothing_above(tensor))
        return True

    def append(
        self,
        tensor: Tensor,
        record: Record,
        *,
        parameters: Iterable[np.ndarray] = (),
        sections: Iterable[tuple[int, str, Bits]] = (),
        above: planes.Above | None = None,
    ) -> None:
        """Takes the next tensor in the form that its record says.

        Args:
            tensor: What decoding will give, for the digest.
            record: Describes the rest.
            parameters: Stored bytes of each part of ``record.parameters()``, uint8 [n, n_bytes].
            sections: Its (plane, kind, bits).
            above: What is known of the tensor where each of them begins.
        """
        for plane, kind, bits in sections:
            n_above = (record.planes or 1) - 1 - plane
            coding, blob = bitcoding.encode(
                bits, bytewise=kind.startswith("byte"), thorough=self._thorough,
                context=above.context(kind, n_above) if above is not None and self._ranged else None,
            )  # fmt: skip
            self._blobs[len(self.records), plane, kind] = (Blob(coding, len(blob)), self._spool.tell())
            self._spool.write(blob)
        self.records.append(record)
        self._parameters += parameters
        self._digest.update(record.name, tensor)

    def write(
        self, out: BinaryIO, *, arch: Mapping[str, Any], seed: int, meta: Mapping[str, str],
        base_digest: str | None = None,
    ) -> Manifest:  # fmt: skip
        """Writes the whole file and returns what its manifest says.

        Seed and sha256 of the base are left out where no tensor needs them.
        """
        shared, spooled, described = self._described(arch, seed, meta, base_digest)
        container.write(
            out, manifest.emit(described), itertools.chain((blob for _, blob in shared), self._read(spooled))
        )
        return described

    def n_bytes(
        self, *, arch: Mapping[str, Any], seed: int, meta: Mapping[str, str], base_digest: str | None = None
    ) -> int:
        """Bytes that :meth:`write` would write."""
        _, _, described = self._described(arch, seed, meta, base_digest)
        empty = io.BytesIO()
        container.write(empty, manifest.emit(described), ())
        return empty.tell() + sum(blob.n_bytes for blob in described.blobs)

    def _described(
        self, arch: Mapping[str, Any], seed: int, meta: Mapping[str, str], base_digest: str | None
    ) -> tuple[list[tuple[str, bytes]], list[tuple[Blob, int]], Manifest]:
        records = tuple(self.records)
        shared = floats.encode(self._parameters, ranged=self._ranged_floats)
        spooled = [self._blobs[section] for section in bit_sections(records)]
        described = Manifest(
            tensors=records,
            blobs=(*(Blob(coding, len(blob)) for coding, blob in shared), *(blob for blob, _ in spooled)),
            digest=self._digest.hexdigest(),
            arch=dict(arch),
            seed=seed if any(record.seeded for record in records) else None,
            meta=dict(meta),
            base_digest=base_digest if any(record.of is not None for record in records) else None,
        )
        return shared, spooled, described

    def _read(self, spooled: Iterable[tuple[Blob, int]]) -> Iterator[bytes]:
        for blob, offset in spooled:
            self._spool.seek(offset)
            yield self._spool.read(blob.n_bytes)


def _nothing_above(tensor: Tensor) -> planes.Above:
    return planes.Above(tensor.shape, [], None)
