"""Records of the manifest to tensors and back: stored values, scales, offsets."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from . import bitdifference, floats, integrity, planes, trellis
from .bitcoding import Bits, Packed
from .coded import SMALLEST_OFFSET, CodedTensor, parameter_problem
from .dtypes import N_BYTES_OF_DTYPE
from .errors import FormatError
from .integrity import DTYPE_OF_NAME, NAME_OF_DTYPE
from .records import Record, Scale

# Elements that are tried at a time.
N_PIECE = 1 << 20
# Where in its interval a magnitude lies whose lowest planes are missing. Weights thin out towards large ones, so a
# little before the middle has the least error: on ResNet-20 within 0.6 % of the best, one to four planes missing.
MIDDLE = 7 / 16
# The smallest number of binary32. Numbers below 2**-126 are subnormal there, and a processor may be set to take those
# for 0: they are moved between binary32 and others as integers.
UNIT, SMALLEST_NORMAL = 2.0**-149, 2.0**-126


def plain_tensor(record: Record, stored: Tensor) -> Tensor:
    """The values of a plain record in the dtype of the record; raises FormatError for a NaN that would be widened."""
    dtype = DTYPE_OF_NAME[record.dtype]
    if stored.dtype != dtype and stored.is_floating_point() and bool(stored.isnan().any()):
        # IEEE 754 leaves open which NaN a conversion gives.
        raise FormatError(
            "F-03", f"values of {record.name!r}", f"a NaN stored as {record.stored}", "NaNs only unwidened"
        )
    return _converted(stored, dtype)


def coded_tensor(
    record: Record, stored: list[Tensor], found: list[Packed], flip: Packed | None, origin: Tensor | None = None
) -> CodedTensor:
    """A coded record with its planes from the highest, as a coarser tensor where the lowest are missing.

    With m planes missing a magnitude is known but for a number below 2**m, and is taken to lie :data:`MIDDLE` of the
    way to the largest: scale times 2**m, and an offset that puts the levels there. Indices of a trellis stand for
    every other magnitude, half a magnitude less on average, so that they are such a tensor with one plane more missing.

    Raises:
        FormatError: A scale or offset out of range.
    """
    scale = stored[0].to(torch.float32)
    offset = stored[1].to(torch.float32) if record.offset else None
    n_missing = (record.planes or 0) - len(found)
    if not found:
        found = [np.zeros(-(-record.n_weights // 8), np.uint8)]
    elif n_missing:
        middle = MIDDLE * (2.0**n_missing - 1)
        if record.trellis:
            middle, n_missing = 2 * middle - 0.5, n_missing + 1
        # A scale that is subnormal stays one, which is refused below wherever products of it are 0.
        scale = torch.where(_subnormal(scale), scale, scale * 2.0**n_missing)
        if offset is None:
            offset = torch.zeros(1, dtype=torch.float32, device="cpu")
        offset = (offset - middle) * 2.0**-n_missing
        offset = torch.where(offset.abs() < SMALLEST_OFFSET, 0.0, offset)
    whole = record.trellis and len(found) == record.planes
    if whole:
        found = trellis.magnitudes(found, record.n_weights)
    coded = CodedTensor(
        shape=record.shape,
        stream=record.stream,
        planes=tuple(torch.from_numpy(plane.copy()) for plane in found),
        scale=scale,
        base=record.base,
        flip=None if flip is None else torch.from_numpy(flip),
        offset=offset,
        dtype=DTYPE_OF_NAME[record.dtype],
        of=record.of,
        origin=origin,
        trellis=whole,
    )
    problem = parameter_problem(coded)
    if problem:
        raise FormatError("R-02", f"{problem[0]} of {record.name!r}", problem[1], problem[2])
    return coded


def plain_record(name: str, tensor: Tensor) -> tuple[Record, np.ndarray]:
    """Record and stored bytes, uint8 [n, n_bytes], of a plain tensor."""
    stored = smallest_exact(tensor.detach().cpu())
    record = Record(name, tuple(tensor.shape), dtype=_dtype(tensor), stored=_dtype(stored))
    return record, _bytes(stored)


def values_record(name: str, tensor: Tensor) -> tuple[Record, Iterator[tuple[str, Bits]]]:
    """Record of a tensor over the base ``values``, and the kinds and bits of its sections, made one at a time."""
    stored = smallest_exact(tensor.detach().cpu())
    record = Record(name, tuple(tensor.shape), _dtype(tensor), _dtype(stored), planes=1, base="values")
    return record, _value_sections(_bytes(stored))


def _value_sections(values: np.ndarray) -> Iterator[tuple[str, Bits]]:
    kept = _words(values) != 0
    yield "significance", Bits(np.packbits(kept, bitorder="little"), len(kept))
    if not kept.all():
        # One index less: with a mask over rows numpy makes an integer of eight bytes for each.
        values = _words(values)[kept].view(np.uint8).reshape(-1, values.shape[1])
    del kept
    for byte in reversed(range(values.shape[1])):
        yield f"byte {byte}", Bits(np.ascontiguousarray(values[:, byte]), 8 * len(values))


def values_tensor(record: Record, assembly: planes.Assembly, origin: Tensor | None = None) -> Tensor:
    """Inverse of :func:`values_record`, as near as it gets where bytes are missing.

    Floats lie in the middle of what their highest bytes leave open; of all else nothing is known, and it is 0, or that
    of the base.

    Raises:
        FormatError: As :func:`stored_tensor` and :func:`plain_tensor`.
    """
    n_kept, width = assembly.counts.n_new, N_BYTES_OF_DTYPE[str(record.stored)]
    found = list(assembly.value_bytes)
    if len(found) < width:
        if not found or origin is not None or "F" not in str(record.stored):
            whole = torch.zeros(record.n_weights, dtype=DTYPE_OF_NAME[record.dtype], device="cpu")
            return whole if origin is None else origin.flatten().clone()
        for fill in (0x80, *[0] * (width - len(found) - 1)):
            found.append(Bits(np.full(n_kept, fill, np.uint8), 8 * n_kept))
    (values,) = floats.values_from_planes(found, [(n_kept, width)])
    if n_kept < record.n_weights:
        spread = np.zeros((record.n_weights, width), np.uint8)
        kept = np.unpackbits(assembly.planes[0], count=record.n_weights, bitorder="little").view(bool)
        _words(spread)[kept] = _words(values)
        values = spread
    if origin is not None:
        return restored_tensor(record, values, origin)
    return plain_tensor(record, stored_tensor(values, str(record.stored)))


def difference_record(name: str, tensor: Tensor, origin: Tensor, of: str) -> tuple[Record, np.ndarray]:
    """Record of a tensor over one of the base, and the difference of their bits, uint8 [n, n_bytes]."""
    record = Record(name, tuple(tensor.shape), _dtype(tensor), _dtype(tensor), of=of)
    return record, bitdifference.difference(_bytes(tensor), _bytes(origin))


def restored_tensor(record: Record, folded: np.ndarray, origin: Tensor) -> Tensor:
    """Inverse of :func:`difference_record`; raises FormatError for a BOOL other than 0 and 1."""
    return stored_tensor(bitdifference.restored(folded, _bytes(origin)), record.dtype)


def difference_sections(folded: np.ndarray) -> Iterator[tuple[str, Bits]]:
    """Kinds and bits of the sections of a difference that has some of its own."""
    return _value_sections(folded)


def _words(values: np.ndarray) -> np.ndarray:
    """The memory of values uint8 [n, n_bytes] as one unsigned integer each."""
    return values.reshape(-1).view(f"u{values.shape[1]}")


def coded_record(name: str, coded: CodedTensor) -> tuple[Record, list[np.ndarray]]:
    """Record of a coded tensor and the stored bytes of its scale and offset."""
    described: list[Scale | None] = []
    stored = []
    for parameter in (coded.scale, coded.offset):
        if parameter is None:
            described.append(None)
            continue
        small = smallest_exact(parameter)
        # One value for one channel is the same as one a tensor; the shorter word wins.
        described.append(Scale("tensor" if len(parameter) == 1 else "channel", _dtype(small)))
        stored.append(_bytes(small))
    record = Record(
        name, coded.shape, dtype=NAME_OF_DTYPE[coded.dtype], planes=len(coded.planes) - coded.trellis,
        base=coded.base, stream=coded.stream, flip=coded.flip is not None, trellis=coded.trellis,
        scale=described[0], offset=described[1], of=coded.of,
    )  # fmt: skip
    return record, stored


def smallest_exact(tensor: Tensor) -> Tensor:
    """The tensor in the narrowest dtype from which widening gives back every bit."""
    candidates = {
        torch.float64: (torch.bfloat16, torch.float16, torch.float32),
        torch.float32: (torch.bfloat16, torch.float16),
        torch.int64: (torch.uint8, torch.int16, torch.int32),
        torch.int32: (torch.uint8, torch.int16),
    }
    # In pieces: most tensors fail in their first, and none costs memory of its size.
    pieces = torch.split(tensor.flatten(), N_PIECE)
    if tensor.is_floating_point() and any(bool(piece.isnan().any()) for piece in pieces):
        return tensor
    for dtype in candidates.get(tensor.dtype, ()):
        back = (_converted(_converted(piece, dtype), tensor.dtype) for piece in pieces)
        if all(map(torch.equal, map(integrity.raw_bytes, back), map(integrity.raw_bytes, pieces))):
            return _converted(tensor, dtype)
    return tensor


def _converted(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in another dtype, the same on every processor for what the narrower of the two holds exactly."""
    if dtype == tensor.dtype or torch.float64 not in (dtype, tensor.dtype):
        return tensor.to(dtype)
    if dtype == torch.float64:
        single = tensor.to(torch.float32)
        wide, small = single.to(dtype), _subnormal(single)
        bits = single.view(torch.int32)[small]
        values = (bits & 0x7FFFFF).to(dtype) * UNIT
        wide[small] = torch.where(bits < 0, -values, values)
        return wide
    single, small = tensor.to(torch.float32), tensor.abs() < SMALLEST_NORMAL
    values = tensor[small]
    bits = (values.abs() * UNIT**-1).to(torch.int32)
    single.view(torch.int32)[small] = torch.where(values.signbit(), bits | -(2**31), bits)
    return single.to(dtype)


def _subnormal(single: Tensor) -> Tensor:
    """Which numbers of binary32 are below the normal ones, 0 among them."""
    return single.view(torch.int32) & 0x7F800000 == 0


def _dtype(tensor: Tensor) -> str:
    return NAME_OF_DTYPE[tensor.dtype]


def _bytes(tensor: Tensor) -> np.ndarray:
    return integrity.raw_bytes(tensor).numpy().reshape(-1, tensor.element_size())


def stored_tensor(values: np.ndarray, dtype: str) -> Tensor:
    """Stored values, uint8 [n, n_bytes], as a tensor [n] of their stored dtype."""
    if dtype == "BOOL":
        if values.max(initial=0) > 1:
            raise FormatError("F-04", "values of dtype BOOL", int(values.max()), "0 or 1")
        return torch.from_numpy(values.reshape(-1) != 0)
    return torch.from_numpy(values.reshape(-1)).view(DTYPE_OF_NAME[dtype])
