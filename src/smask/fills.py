"""Weights from planes, signs and scales, written into memory that is there: fast paths of :mod:`.reconstruction`."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from . import bases
from .coded import CodedTensor

# Weights of one working chunk on a CPU: small enough for its last cache, large enough for all of torch's threads.
N_CHUNK = 1 << 21
# The like where several buffers of float32 are in use at once.
N_CHUNK_LEVELS = 1 << 18
# Signs are made for more weights at a time: the generator's lanes are 1/16 of the size of the weights.
N_CHUNK_SIGNS = 1 << 24
# Below this binary32 is subnormal, which a processor may be set to flush.
SMALLEST_NORMAL = 2.0**-126


def fill_of(coded: CodedTensor) -> Callable[[CodedTensor, int, Tensor], None]:
    """The fastest way to fill float32 [n] with the weights of a coded tensor, those of the base not added yet."""
    if coded.base not in bases.SIGNS:
        return fill_general
    return fill_ternary if len(coded.planes) == 1 else fill_signed


def fill_ternary(coded: CodedTensor, seed: int, out: Tensor) -> None:
    """One plane over signs: two bytes, signs and mask, select eight values at a time from a table of -1, 0, 1."""
    device = out.device
    mask = coded.planes[0].to(device)
    flip = None if coded.flip is None else coded.flip.to(device)
    scale = coded.scale if coded.offset is None else coded.scale * (1.0 - coded.offset)
    scale, signed_zeros = scale.to(device), bool((scale <= 0).any())
    table = _ternary_table(str(device))
    n_whole = coded.n_weights // 8
    bytes_out = out[: 8 * n_whole].view(-1, 8)
    outer, inner = (N_CHUNK_SIGNS // 8, N_CHUNK // 8) if device.type == "cpu" else (max(1, len(mask)),) * 2
    for first in range(0, len(mask), outer):
        last = min(first + outer, len(mask))
        signs = bases.sign_bytes(
            seed, stream=coded.stream, start_byte=first, n_bytes=last - first, device=device, kind=coded.base
        )
        if flip is not None:
            signs = signs ^ flip[first:last]
        for start in range(first, last, inner):
            end = min(start + inner, last)
            index = (mask[start:end].to(torch.int32) << 8).bitwise_or_(signs[start - first : end - first])
            whole = min(end, n_whole) - start
            torch.index_select(table, 0, index[:whole], out=bytes_out[start : start + whole])
            if end > n_whole:  # the last byte of a tensor whose size is no multiple of eight
                out[8 * n_whole :] = table[index[-1]][: coded.n_weights - 8 * n_whole]
            for piece, factor in _row_pieces(out, scale, 8 * start, min(8 * end, coded.n_weights), coded.n_weights):
                piece.mul_(factor)
                if signed_zeros:
                    piece.add_(0.0)


def fill_signed(coded: CodedTensor, seed: int, out: Tensor) -> None:
    """Planes over signs: signs and kept weights as in :func:`fill_ternary`, levels eight at a time from a table."""
    device, n = out.device, coded.n_weights
    planes = [plane.to(device) for plane in coded.planes]
    flip = None if coded.flip is None else coded.flip.to(device)
    scale = coded.scale.to(device)
    offset = None if coded.offset is None else coded.offset.to(device)
    table, spread = _ternary_table(str(device)), _spread_table(str(device))
    n_bytes = len(planes[0])
    outer, inner = (N_CHUNK_SIGNS // 8, N_CHUNK_LEVELS // 8) if device.type == "cpu" else (max(1, n_bytes),) * 2
    for first in range(0, n_bytes, outer):
        last = min(first + outer, n_bytes)
        signs = bases.sign_bytes(
            seed, stream=coded.stream, start_byte=first, n_bytes=last - first, device=device, kind=coded.base
        )
        if flip is not None:
            signs = signs ^ flip[first:last]
        for start in range(first, last, inner):
            end = min(start + inner, last)
            kept = torch.zeros(end - start, dtype=torch.uint8, device=device)
            q: Tensor | None = None
            for group in range(0, len(planes), 8):  # so many bits one byte of a lane holds
                lanes = torch.zeros(end - start, dtype=torch.int64, device=device)
                for plane in planes[group : group + 8]:
                    kept |= plane[start:end]
                    lanes = (lanes << 1).bitwise_or_(spread.index_select(0, plane[start:end].to(torch.int32)))
                q = _joined(q, lanes.view(torch.uint8), min(8, len(planes) - group))
            assert q is not None
            level, stop = q.to(torch.float32), min(8 * end, n)
            for parameter, change in ((offset, Tensor.sub_), (scale, Tensor.mul_)):
                if parameter is not None:
                    for piece, value in _row_pieces(level, parameter, 8 * start, stop, n, origin=8 * start):
                        change(piece, value)
            index = (kept.to(torch.int32) << 8).bitwise_or_(signs[start - first : end - first])
            weights = table.index_select(0, index).view(-1).mul_(level).add_(0.0)
            out[8 * start : stop] = weights[: stop - 8 * start]


def _joined(high: Tensor | None, low: Tensor, n_low: int) -> Tensor:
    return low if high is None else (high.to(torch.int32) << n_low) | low


def _row_pieces(
    out: Tensor, scale: Tensor, start: int, end: int, n_weights: int, *, origin: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Cuts the weights start to end into a partial row, whole rows and a partial row, each with its scale.

    ``out`` begins with weight ``origin``.
    """
    row_length = n_weights // len(scale)
    while start < end:
        row = start // row_length
        n_rows = (end - start) // row_length
        if start % row_length or not n_rows:
            stop = min(end, (row + 1) * row_length)
            yield out[start - origin : stop - origin], scale[row]
        else:
            stop = start + n_rows * row_length
            yield out[start - origin : stop - origin].view(n_rows, row_length), scale[row : row + n_rows, None]
        start = stop


def _ternary_table(device: str) -> Tensor:
    """float32 [65536, 8]: row ``mask << 8 | signs`` holds the eight weights of two bytes."""
    if device not in _TABLES:
        row = torch.arange(1 << 16, device="cpu")[:, None]
        position = torch.arange(8, device="cpu")
        sign = (1 - 2 * (row >> position & 1)).to(torch.float32)
        kept = (row >> 8 + position & 1) == 1
        _TABLES[device] = torch.where(kept, sign, 0.0).to(device)
    return _TABLES[device]


def _spread_table(device: str) -> Tensor:
    """int64 [256]: the eight bits of a byte, one in each byte, in the order of memory."""
    if device not in _SPREAD_TABLES:
        row, position = (torch.arange(n, dtype=torch.uint8, device="cpu") for n in (256, 8))
        bits = (row[:, None] >> position).bitwise_and_(1)
        _SPREAD_TABLES[device] = bits.view(torch.int64)[:, 0].to(device)
    return _SPREAD_TABLES[device]


_TABLES: dict[str, Tensor] = {}
_SPREAD_TABLES: dict[str, Tensor] = {}


def fill_general(coded: CodedTensor, seed: int, out: Tensor) -> None:
    """Any base and number of planes, chunk by chunk."""
    device, n = out.device, coded.n_weights
    planes = [plane.to(device) for plane in coded.planes]
    flip = None if coded.flip is None else coded.flip.to(device)
    at = _channel_values(coded, device)
    step = N_CHUNK if device.type == "cpu" else max(8, -(-n // 8) * 8)
    for start in range(0, n, step):
        end = min(start + step, n)
        window = slice(start >> 3, (end + 7) >> 3)
        q = torch.zeros(end - start, dtype=torch.int32, device=device)
        for plane in planes:
            q = (q << 1).bitwise_or_(bits_of(plane[window], end - start))
        level = q.to(torch.float32)
        if coded.offset is not None:
            level -= at(coded.offset, start, end)
        weights = level.mul_(at(coded.scale, start, end))
        if coded.base == "file":
            assert coded.origin is not None
            weights *= flushed(coded.origin.flatten()[start:end].to(device, torch.float32))
            weights = flushed(weights)
        else:
            weights *= bases.base_weights(
                coded.base, seed, stream=coded.stream, start=start, n_weights=end - start, device=device
            )
        if flip is not None:
            weights = torch.where(bits_of(flip[window], end - start) != 0, -weights, weights)
        out[start:end] = torch.where(q == 0, 0.0, weights).add_(0.0)


def _channel_values(coded: CodedTensor, device: torch.device) -> Callable[[Tensor, int, int], Tensor]:
    row_length = max(1, coded.n_weights // max(1, coded.shape[0]))

    def at(parameter: Tensor, start: int, end: int) -> Tensor:
        """Values of a scale or offset for the weights start to end."""
        parameter = parameter.to(device)
        if len(parameter) == 1:
            return parameter
        return parameter[torch.arange(start, end, device=device) // row_length]

    return at


def bits_of(packed: Tensor, n_bits: int) -> Tensor:
    """uint8 [n_bits] of 0 and 1 from packed bits."""
    position = torch.arange(8, dtype=torch.uint8, device=packed.device)
    return (packed[:, None] >> position).bitwise_and_(1).flatten()[:n_bits]


def flushed(values: Tensor) -> Tensor:
    """Values with those below binary32's normal numbers as 0."""
    return torch.where(values.abs() < SMALLEST_NORMAL, 0.0, values)
