"""Tiles: some rows of a packed matrix turned into numbers, in a buffer that is used again and again.

Columns of a tile stand in *bit order*: all columns c with ``c & 7 == 0`` first, then those with 1, and so on, each in
rising order. So bit k of the bytes of a row becomes a contiguous slab of K'/8 columns, K' being the padded number of
columns, by one shift and one mask on 32-bit lanes of four columns. Activations are brought into the same order once a
call.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from . import compiler, philox
from .packing import PackedMatrix, SignSource, packed_bits, row_bytes, sign_bits

# Measured on 2 AVX-512 cores: smaller tiles pay for calls, larger ones leave the caches, and count as memory.
N_TILE_BYTES = 1 << 22
# Products of fewer rows leave AMX waiting: 256 rows of x and 4096 x 4096 took 7.5 ms with the tiles above, 5.5 with
# these. With the sums beside them these are what 16 MB allow.
N_TILE_BYTES_AMX = 11 << 20
# On a CUDA device every tile is two launches, and a product wants to be as large as the device.
N_TILE_BYTES_CUDA = 1 << 27
# Rooms of more bytes are not kept from call to call: a product of very many rows would hold its memory for good.
N_KEPT_BYTES = N_TILE_BYTES_AMX
# Plans of one matrix that are kept: of its kernels, compiled or not.
N_PLANS = 4
ONES = 0x01010101


class Tile(NamedTuple):
    """Rows ``start`` to ``end`` as numbers [end - start, K'], columns in bit order."""

    start: int
    end: int
    values: Tensor


class Step(NamedTuple):
    """How one tile is filled: views and functions that are the same at every call."""

    tile: Tile
    fill: Callable[[], object]


def tiles(packed: PackedMatrix, *, compile: bool, n_tile_bytes: int | None = None) -> Iterator[Tile]:
    """All rows of a matrix as int8 levels, tile by tile; a tile is valid until the next one is asked for.

    Args:
        packed: The matrix.
        compile: Whether to compile what fills a tile.
        n_tile_bytes: Size of the buffer, by default what suits the device.

    Yields:
        Signed levels, without offset and scale.
    """
    n_tile_bytes = n_tile_bytes or tile_bytes(packed.planes.device)
    for step in planned(packed, (compile, n_tile_bytes), partial(_steps, packed, compile, n_tile_bytes)):
        step.fill()
        yield step.tile


def level_tiles(
    packed: PackedMatrix, dtype: torch.dtype, *, compile: bool, n_tile_bytes: int | None = None
) -> Iterator[Tile]:
    """As :func:`tiles`, but levels in a floating dtype, offsets included."""
    n_tile_bytes = n_tile_bytes or tile_bytes(packed.planes.device)
    for start, end, levels in tiles(packed, compile=compile, n_tile_bytes=n_tile_bytes // dtype.itemsize):
        values = buffer(levels.numel(), dtype, levels.device, use="levels").view(levels.shape)
        (compiler.compiled(_convert, values, levels) if compile else _convert)(values, levels)
        if packed.offset is not None:
            offset = packed.offset if len(packed.offset) == 1 else packed.offset[start:end]
            values.sub_(values.sign().mul_(offset.to(dtype)[:, None]))
        yield Tile(start, end, values)


def tile_bytes(device: torch.device) -> int:
    """Bytes of a tile."""
    return N_TILE_BYTES_CUDA if device.type == "cuda" else N_TILE_BYTES


def bit_order(x: Tensor, n_columns: int) -> Tensor:
    """Columns [B, K] padded with zeros to K' and brought into bit order: [B, K'], contiguous."""
    if x.shape[1] != n_columns:
        x = F.pad(x, (0, n_columns - x.shape[1]))
    return x.view(len(x), n_columns // 8, 8).transpose(1, 2).reshape(len(x), n_columns)


def natural_order(x: Tensor, n_columns: int) -> Tensor:
    """The inverse of :func:`bit_order`: [B, K'] to [B, K]."""
    return x.view(len(x), 8, x.shape[1] // 8).transpose(1, 2).reshape(x.shape)[:, :n_columns]


def planned(packed: PackedMatrix, key: tuple[Any, ...], steps: Callable[[], list[Step]]) -> list[Step]:
    """Steps for a matrix, kept as long as its planes: cutting views takes longer than filling a small tile.

    Args:
        packed: The matrix.
        key: What else the steps depend on.
        steps: Makes them.
    """
    if packed.planes.is_cuda:  # what a plan holds could be gone when a CUDA graph is replayed
        return steps()
    plans = _LOCAL.plans.setdefault(packed.planes, {})  # type: ignore[no-untyped-call]
    key = (*key, packed.n_columns, packed.signs, packed.planes.data_ptr())
    if key not in plans:
        if len(plans) >= N_PLANS:
            plans.clear()
        # Kept tensors must not be those of an inference mode, which nobody may write into later.
        with torch.inference_mode(False), torch.no_grad():
            plans[key] = steps()
    return plans[key]  # type: ignore[no-any-return]


def rows_of_tiles(packed: PackedMatrix, n_row_bytes: int, n_tile_bytes: int) -> Iterator[slice]:
    """Rows of each tile: about equally many in as few as fit, a multiple of 16 where that many do."""
    n_most = max(1, n_tile_bytes // max(1, n_row_bytes))
    unit = 16 if n_most >= 16 else 1
    n_tiles = max(1, math.ceil(packed.n_rows / (n_most - n_most % unit)))
    n_rows = unit * max(1, math.ceil(packed.n_rows / n_tiles / unit))
    for start in range(0, packed.n_rows, n_rows):
        yield slice(start, min(start + n_rows, packed.n_rows))


def _steps(packed: PackedMatrix, compile: bool, n_tile_bytes: int) -> list[Step]:
    # Views of a detached alias: a view of the planes themselves would keep them alive, and with them this plan.
    planes = packed.planes.detach().view(torch.int32)
    n_columns = 8 * packed.planes.shape[2]
    steps, room = [], None
    for rows in rows_of_tiles(packed, n_columns, n_tile_bytes):
        n = rows.stop - rows.start
        if room is None:  # the first tile is the largest
            room = buffer(n * n_columns, torch.int8, planes.device, use="levels", n_least=n_tile_bytes)
        levels = room[: n * n_columns].view(n, n_columns)
        fill = _fill(levels, planes[:, rows], _signs(packed, rows, compile), compile)
        steps.append(Step(Tile(rows.start, rows.stop, levels), fill))
    return steps


def plane_steps(
    packed: PackedMatrix,
    fill: Callable[[Tensor, Tensor, Tensor], None],
    dtype: torch.dtype,
    *,
    compile: bool,
    n_tile_bytes: int,
    unit: int = 1,
) -> list[Step]:
    """Steps of a matrix of one plane without offset whose levels are made without converting a number.

    Args:
        packed: The matrix.
        fill: (levels, words of signs and words of masks, int32 [R, W] each, a set bit of a sign being -1): puts the 32
            levels of a word into 8 S numbers of int32 [R, 8, S, W].
        dtype: Of the levels, of S bytes.
        compile: Whether to compile ``fill``.
        n_tile_bytes: Size of the buffer.
        unit: Rows of a tile are made a multiple of this many by some of anything below the last.
    """
    # Views of a detached alias, as above.
    planes, n_words = packed.planes.detach().view(torch.int32), packed.planes.shape[2] // 4
    n_row, steps, room = 8 * dtype.itemsize * n_words, [], None
    for rows in rows_of_tiles(packed, 4 * n_row, n_tile_bytes):
        n = rows.stop - rows.start
        n_whole = unit * math.ceil(n / unit)
        if room is None:
            room = buffer(n_row * n_whole, torch.int32, planes.device, use="levels", n_least=n_tile_bytes // 4)
        out = room[: n_row * n_whole].view(n_whole, n_row)
        levels = out[:n].view(n, 8, dtype.itemsize, n_words)
        steps.append(
            Step(
                Tile(rows.start, rows.stop, out.view(dtype)),
                _plane_fill(levels, planes[:, rows], packed, rows, fill, compile),
            )
        )
    return steps


def _plane_fill(
    levels: Tensor, planes: Tensor, packed: PackedMatrix, rows: slice,
    fill: Callable[[Tensor, Tensor, Tensor], None], compile: bool,
) -> Callable[[], object]:  # fmt: skip
    mask, signs = planes[-1], _signs(packed, rows, compile)
    work = compiler.compiled(fill, levels, planes[0], mask) if compile else fill
    return partial(work, levels, planes[0], mask) if signs is None else lambda: work(levels, signs(), mask)


def _fill(levels: Tensor, planes: Tensor, signs: Callable[[], Tensor] | None, compile: bool) -> Callable[[], object]:
    out = levels.view(torch.int32).view(len(levels), 8, -1)
    if signs is None:
        return partial(compiler.compiled(_held_levels, out, planes) if compile else _held_levels, out, planes)
    work = compiler.compiled(_signed_levels, out, planes, planes[0]) if compile else _signed_levels
    return lambda: work(out, planes, signs())


def _signs(packed: PackedMatrix, rows: slice, compile: bool) -> Callable[[], Tensor] | None:
    if packed.signs is None:
        return None
    return partial(sign_words, packed.signs, packed.n_columns, rows, packed.planes.device, compile=compile)


def sign_words(signs: SignSource, n_columns: int, rows: slice, device: torch.device, *, compile: bool) -> Tensor:
    """Regenerated signs of rows as packed rows, int32 [R, K' / 32]; a set bit means -1."""
    n_rows, n_words = rows.stop - rows.start, row_bytes(n_columns) // 4
    if n_columns % 32 == 0:
        first, n = rows.start * n_words, n_rows * n_words
        if not compile or first % 4 or n % 4 or not philox.self_test(device):
            words = philox.words(signs.seed, signs.stream, start=first, n_words=n, device=device)
            return words.view(n_rows, n_words)
        origin = _numbers((first >> 2, signs.seed & philox.MASK, signs.seed >> 32, signs.stream), device)
        out = torch.empty((n >> 2, 4), dtype=torch.int32, device=device)
        compiler.compiled(_words, origin, out)(origin, out)
        return out.view(n_rows, n_words)
    bits = sign_bits(signs, torch.arange(rows.start, rows.stop, device=device), n_columns)
    return packed_bits(F.pad(bits, (0, 32 * n_words - n_columns))).view(torch.int32)


def _held_levels(out: Tensor, planes: Tensor) -> None:
    """Levels, four to a lane, from their bits: int32 [R, 8, W] from int32 [N, R, W]."""
    _magnitudes(out, planes[1:])
    # A byte of sign bit 1 is 2**8 - 2**P; what leaves the top byte of a lane is lost, as it should be.
    sign = (planes[0, :, None] >> _positions(planes)).bitwise_and_(ONES)
    out.add_(sign << 8).sub_(sign.bitwise_left_shift_(len(planes) - 1))


def _signed_levels(out: Tensor, planes: Tensor, signs: Tensor) -> None:
    """Levels from magnitudes and signs: the two's complement of a byte that is not zero carries into no other."""
    _magnitudes(out, planes)
    kept = planes[0]
    for plane in planes[1:]:
        kept = kept | plane
    sign = ((signs & kept)[:, None] >> _positions(planes)).bitwise_and_(ONES)
    out.bitwise_xor_((sign << 8).sub_(sign)).add_(sign)


def _magnitudes(out: Tensor, planes: Tensor) -> None:
    torch.bitwise_right_shift(planes[0, :, None], _positions(planes), out=out).bitwise_and_(ONES)
    for plane in planes[1:]:
        out.bitwise_left_shift_(1).bitwise_or_((plane[:, None] >> _positions(planes)).bitwise_and_(ONES))


def _convert(out: Tensor, levels: Tensor) -> None:
    out.copy_(levels)


def _words(origin: Tensor, out: Tensor) -> None:
    """Consecutive blocks of the generator, int32 [M, 4], from first block, low and high half of the seed, stream."""
    index = torch.arange(len(out), device=out.device) + origin[0]
    counter = (index & philox.MASK, index >> 32, torch.zeros_like(index) + origin[3], torch.zeros_like(index))
    for lane, values in enumerate(philox.blocks(counter, (origin[1], origin[2]))):  # type: ignore[arg-type]
        out[:, lane] = values


def _numbers(values: Sequence[int], device: torch.device) -> Tensor:
    """int64 [n]; without a copy from memory that may be paged out, which a CUDA graph cannot hold."""
    if device.type != "cuda":
        return torch.tensor(values, dtype=torch.int64, device=device)
    return torch.stack([torch.full((), value, dtype=torch.int64, device=device) for value in values])


def _positions(like: Tensor) -> Tensor:
    return torch.arange(8, dtype=like.dtype, device=like.device)[None, :, None]


class _Local(threading.local):
    """What a thread keeps: a buffer for each dtype and device, since fresh memory costs more than filling it; plans."""

    def __init__(self) -> None:
        self.buffers: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}
        self.plans: WeakIdKeyDictionary = WeakIdKeyDictionary()


_LOCAL = _Local()


def buffer(n: int, dtype: torch.dtype, device: torch.device, *, use: str, n_least: int = 0) -> Tensor:
    """Room for n numbers, [n], the same at every call of a thread for the same use while it is not large.

    On a CUDA device torch keeps memory by itself, and knows which of it a CUDA graph goes on using.
    Elsewhere room for ``n_least`` is made at once: plans would keep every smaller one alive.
    """
    if n * dtype.itemsize > N_KEPT_BYTES or device.type == "cuda":
        with torch.inference_mode(False):
            return torch.empty(n, dtype=dtype, device=device)
    key = (use, dtype, device)
    if key not in _LOCAL.buffers or len(_LOCAL.buffers[key]) < n:
        room = max(n, min(n_least, N_KEPT_BYTES // dtype.itemsize))
        with torch.inference_mode(False):
            _LOCAL.buffers[key] = torch.empty(room, dtype=dtype, device=device)
    return _LOCAL.buffers[key][:n]
