"""Coded tensors in memory and the formula that turns them into weights, exact to the bit.

    q[i] = sum_p 2**p * mask_p[i]
    W[i] = 0                                                             where q[i] = 0
    W[i] = (-1)**flip[i] * round(round(scale[c] * level) * base[i])      elsewhere, level = round(q[i] - offset[c])
    a zero W[i] is +0

Over another checkpoint, whose tensor of the same shape is ``origin``, that is the base (base ``file``), or W is added
to it; numbers below 2**-126 in magnitude then count as 0, in the origin and in the result.

All operations are IEEE 754 binary32, rounded to nearest even, in this order; ``c`` is the channel of i (0 for one
scale a tensor). The result is then rounded to the dtype of the tensor. Scales lie in {0} and [2**-64, 2**64] in
magnitude, so that no product is subnormal and a processor set to flush subnormals gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from . import bases, philox
from .errors import ArgumentError

SMALLEST_SCALE, LARGEST_SCALE = 2.0**-64, 2.0**64
SMALLEST_OFFSET, LARGEST_OFFSET = 2.0**-40, 2.0**16
# Weights of one working chunk on a CPU: small enough for its last cache, large enough for all of torch's threads.
N_CHUNK = 1 << 21
# The like where several buffers of float32 are in use at once.
N_CHUNK_LEVELS = 1 << 18
# Below this binary32 is subnormal, which a processor may be set to flush.
SMALLEST_NORMAL = 2.0**-126
# Signs are made for more weights at a time: the generator's lanes are 1/16 of the size of the weights.
N_CHUNK_SIGNS = 1 << 24


@dataclass(frozen=True, eq=False)
class CodedTensor:
    """A tensor as planes over a seeded base.

    Attributes:
        shape: Dimensions; n is their product, C is ``shape[0]``.
        base: Kind of the base; ``file`` for the values of ``origin``.
        stream: Stream of the generator.
        planes: Packed bits, uint8 [ceil(n / 8)] each, most significant plane first, on the CPU.
        flip: Packed flip bits, uint8 [ceil(n / 8)], zero where the weight is zero, or None.
        scale: float32 [1] or [C].
        offset: float32 [1] or [C], or None for 0.
        dtype: Floating dtype of the weights.
        of: Name of the tensor of another checkpoint that this one is over, empty for its own name; None for none.
        origin: That tensor, floating [``shape``], finite in binary32. Weights are added to it, or, with the base
            ``file``, it is masked.
    """

    shape: tuple[int, ...]
    stream: int
    planes: tuple[Tensor, ...]
    scale: Tensor
    base: str = "signed"
    flip: Tensor | None = None
    offset: Tensor | None = None
    dtype: torch.dtype = torch.float32
    of: str | None = None
    origin: Tensor | None = None

    @property
    def n_weights(self) -> int:
        """Number of weights."""
        n = 1
        for size in self.shape:
            n *= size
        return n

    @property
    def n_channels(self) -> int:
        """Channels of the scale: 1 or ``shape[0]``."""
        return max(len(self.scale), 1 if self.offset is None else len(self.offset))


def parameter_problem(coded: CodedTensor) -> tuple[str, float, str] | None:
    """The first scale or offset outside the range in which the formula is exact, as (parameter, got, want)."""
    magnitude = coded.scale.abs()
    good = (magnitude == 0) | ((magnitude >= SMALLEST_SCALE) & (magnitude <= LARGEST_SCALE))
    if not bool(good.all()):
        return "scale", float(coded.scale[~good][0]), "0 or a magnitude in [2**-64, 2**64]"
    if coded.offset is not None:
        magnitude = coded.offset.abs()
        good = (magnitude == 0) | ((magnitude >= SMALLEST_OFFSET) & (magnitude <= LARGEST_OFFSET))
        if not bool(good.all()):
            return "offset", float(coded.offset[~good][0]), "0 or a magnitude in [2**-40, 2**16]"
    return None


def reconstruct_reference(coded: CodedTensor, seed: int, *, device: torch.device | str = "cpu") -> Tensor:
    """Plain and slow :func:`reconstruct`: the formula on whole tensors."""
    n = coded.n_weights
    q = torch.zeros(n, dtype=torch.int64)
    for plane in coded.planes:
        q = 2 * q + _bits(plane, n)
    channel = torch.arange(n) // max(1, n // max(1, coded.shape[0]))
    scale = coded.scale if len(coded.scale) == 1 else coded.scale[channel]
    level = q.to(torch.float32)
    if coded.offset is not None:
        level = level - (coded.offset if len(coded.offset) == 1 else coded.offset[channel])
    origin = None if coded.origin is None else _flushed(coded.origin.flatten().to(torch.float32))
    if coded.base == "file":
        assert origin is not None
        weights = (scale * level) * origin
    else:
        weights = (scale * level) * bases.base_weights(coded.base, seed, stream=coded.stream, start=0, n_weights=n)
    if coded.flip is not None:
        weights = torch.where(_bits(coded.flip, n).bool(), -weights, weights)
    weights = torch.where(q == 0, 0.0, weights)
    if origin is not None:
        weights = _flushed(weights if coded.base == "file" else origin + weights)
    weights = weights + 0.0
    return weights.reshape(coded.shape).to(coded.dtype).to(device)


def reconstruct(
    coded: CodedTensor, seed: int, *, device: torch.device | str = "cpu", out: Tensor | None = None
) -> Tensor:
    """Weights of a coded tensor.

    Args:
        coded: The tensor; its scales and offsets have passed :func:`parameter_problem`.
        seed: Seed of the file.
        device: Where the weights are wanted; they are computed there.
        out: Contiguous tensor of the same dtype and shape to write into, on any device; ``device`` is then its own.

    Returns:
        ``coded.dtype`` [``coded.shape``], the same bits on every device and with any number of threads.

    Raises:
        ArgumentError: ``out`` has another shape or dtype, or is not contiguous.
    """
    if out is not None:
        if out.shape != coded.shape or out.dtype != coded.dtype or not out.is_contiguous():
            want = f"a contiguous tensor of {coded.dtype} {list(coded.shape)}"
            raise ArgumentError("out", f"{out.dtype} {list(out.shape)}, strides {out.stride()}", want)
        device = out.device
    device = torch.device(device)
    philox.self_test(device)
    if out is not None and coded.dtype == torch.float32:
        weights = out.detach().view(-1)
    else:
        weights = torch.empty(coded.n_weights, dtype=torch.float32, device=device)
    fill = _fill_general if coded.base != "signed" else _fill_ternary if len(coded.planes) == 1 else _fill_signed
    fill(coded, seed, weights)
    if coded.origin is not None and coded.base != "file":
        _add_origin(coded, weights)
    if out is None:
        return weights.view(coded.shape).to(coded.dtype)
    if coded.dtype != torch.float32:
        out.detach().copy_(weights.view(coded.shape))
    return out


def _flushed(values: Tensor) -> Tensor:
    """Values with those below binary32's normal numbers as 0."""
    return torch.where(values.abs() < SMALLEST_NORMAL, 0.0, values)


def _add_origin(coded: CodedTensor, weights: Tensor) -> None:
    """Weights over those of the base, in place and chunk by chunk."""
    assert coded.origin is not None
    origin = coded.origin.flatten()
    for start in range(0, len(weights), N_CHUNK):
        piece = weights[start : start + N_CHUNK]
        piece += _flushed(origin[start : start + N_CHUNK].to(piece.device, torch.float32))
        piece.copy_(_flushed(piece)).add_(0.0)


def _fill_ternary(coded: CodedTensor, seed: int, out: Tensor) -> None:
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
        signs = bases.sign_bytes(seed, stream=coded.stream, start_byte=first, n_bytes=last - first, device=device)
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


def _fill_signed(coded: CodedTensor, seed: int, out: Tensor) -> None:
    """Planes over signs: signs and kept weights as in :func:`_fill_ternary`, levels eight at a time from a table."""
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
        signs = bases.sign_bytes(seed, stream=coded.stream, start_byte=first, n_bytes=last - first, device=device)
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
        row = torch.arange(1 << 16)[:, None]
        position = torch.arange(8)
        sign = (1 - 2 * (row >> position & 1)).to(torch.float32)
        kept = (row >> 8 + position & 1) == 1
        _TABLES[device] = torch.where(kept, sign, 0.0).to(device)
    return _TABLES[device]


def _spread_table(device: str) -> Tensor:
    """int64 [256]: the eight bits of a byte, one in each byte, in the order of memory."""
    if device not in _SPREAD_TABLES:
        row = torch.arange(256, dtype=torch.uint8)[:, None]
        bits = (row >> torch.arange(8, dtype=torch.uint8)).bitwise_and_(1)
        _SPREAD_TABLES[device] = bits.view(torch.int64)[:, 0].to(device)
    return _SPREAD_TABLES[device]


_TABLES: dict[str, Tensor] = {}
_SPREAD_TABLES: dict[str, Tensor] = {}


def _fill_general(coded: CodedTensor, seed: int, out: Tensor) -> None:
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
            q = (q << 1).bitwise_or_(_bits(plane[window], end - start))
        level = q.to(torch.float32)
        if coded.offset is not None:
            level -= at(coded.offset, start, end)
        weights = level.mul_(at(coded.scale, start, end))
        if coded.base == "file":
            assert coded.origin is not None
            weights *= _flushed(coded.origin.flatten()[start:end].to(device, torch.float32))
            weights = _flushed(weights)
        else:
            weights *= bases.base_weights(
                coded.base, seed, stream=coded.stream, start=start, n_weights=end - start, device=device
            )
        if flip is not None:
            weights = torch.where(_bits(flip[window], end - start) != 0, -weights, weights)
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


def _bits(packed: Tensor, n_bits: int) -> Tensor:
    """uint8 [n_bits] of 0 and 1 from packed bits."""
    position = torch.arange(8, dtype=torch.uint8, device=packed.device)
    return (packed[:, None] >> position).bitwise_and_(1).flatten()[:n_bits]
