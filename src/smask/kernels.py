"""Matrix products with packed weights.

========== ===================================================== ======================================================
kernel     what it does                                          chosen for
========== ===================================================== ======================================================
reference  every bit becomes a number, then ``F.linear``         float64; never for speed
eager      a tile of rows becomes levels in a buffer that is     only when forced: what ``tiled`` is without a compiler
           used again, then ``F.linear``; plain operations
tiled      the same, tiles filled by compiled functions          CPUs without 8-bit dot products; 128 rows of bfloat16
                                                                 and more where the processor multiplies these, 512 on
                                                                 GPUs; what ``integer`` or ``float8`` refuse
fused      bits to levels, multiply and sum in one compiled      six rows of x or fewer (GPU 4) at two bits a weight,
           loop; nothing is written but the result               three at three bits, two at four, one at more
integer    a tile becomes 8-bit levels, x fixed-point digits;    CPUs with VNNI, all else
           ``torch._int_mm``, exact sums
int8       as ``integer`` with a single digit                    only when forced: 8-bit activations
float8     a tile becomes 8-bit floats, x two or three of them   GPUs that multiply such (compute capability 8.9), of
           (:mod:`smask.quarters`); ``torch._scaled_mm``         bfloat16 or float16, one plane
========== ===================================================== ======================================================

Why so: an 8-bit dot-product instruction multiplies four times as many numbers as one of float32, weights of a few bits
are 8-bit integers without any loss, and an integer sum is exact, whatever the order, the tile or the number of threads.
So two or three digits of x (:mod:`smask.fixedpoint`) at four times the speed beat float32 at its precision. A single
digit of a single row is a product of a matrix and a vector; up to :data:`N_VECTORS` of those, one after the other, take
less time than one product of matrices. Dot products of bfloat16 are as fast as two digits, and at many rows need less
around them: levels of one plane are made of bits alone (:mod:`smask.halves`), and one sum is written where it belongs.
AMX, many times as fast, wants larger tiles, and levels left of activations: it reorders what is right of a product.
Few rows are fastest fused: a shift, a mask and a multiplication make and use sixteen weights, and no tile is written.
Without a compiler, ``integer`` and ``tiled`` fill their tiles by plain operations, and ``fused`` is refused.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from . import compiler, halves, quarters
from .errors import ArgumentError, UnsupportedError
from .fixedpoint import N_DIGITS, FixedPoint, fixed_point, recurs
from .fused import fused
from .packing import PackedMatrix, dense_rows
from .sums import apply_scales, finish, finished
from .tiles import N_TILE_BYTES_AMX, bit_order, buffer, level_tiles, natural_order, tile_bytes, tiles

# Products with single vectors that are faster than one matrix product, measured on 2 AVX-512 cores.
N_VECTORS = 6
# Sums that are finished together; more are finished tile by tile, while they are in a cache.
N_SUMS = 1 << 18
# The same where AMX multiplies bfloat16.
N_SUMS_AMX = 1 << 21
# Rows of x and magnitude planes, one times the other, that are fastest fused.
N_FUSED = {"cpu": 6, "cuda": 8, "float8": 4}
# Rows of bfloat16 from which a CUDA device multiplies them as fast as two float8 numbers for each.
N_WIDE = 512
# Rows of bfloat16 from which products of halves beat those of two 8-bit digits, where the processor has the former.
N_HALVES = 128
# Activations, or their digits, that stay in a cache of a CPU; more rows take turns, each with all tiles.
N_TURN_BYTES, N_TURN_BYTES_AMX = 1 << 22, 1 << 25
# Smaller matrices are not worth seconds of compiling: plain operations take tens of microseconds longer.
N_COMPILE_WEIGHTS = 1 << 18
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def matmul(x: Tensor, packed: PackedMatrix, bias: Tensor | None = None, *, kernel: str = "auto") -> Tensor:
    """``x @ W.T + bias`` with packed weights, computed in float32 (float64 for a float64 x) and rounded once; in
    bfloat16 and rounded twice where ``tiled`` multiplies that.

    Args:
        x: float32, bfloat16, float16 or float64 [..., K] on the device of the weights; any strides.
        packed: Weights of R rows and K columns.
        bias: [R], or None.
        kernel: ``auto`` or a name of the table above.

    Returns:
        Dtype of x, [..., R].

    Raises:
        ArgumentError: Another number of columns, another device, a dtype that is not floating, a bias of another
            length.
        UnsupportedError: An unknown kernel, or one that cannot do this product; it says why.
    """
    _check(x, packed, bias)
    if kernel not in ("auto", *KERNELS):
        raise UnsupportedError("kernel", kernel, ("auto", *KERNELS))
    rows = _rows(x)
    name = choose(rows, packed) if kernel == "auto" else kernel
    reason = "" if kernel == "auto" else KERNELS[name].refuses(rows, packed)
    if reason:
        raise UnsupportedError("product for kernel " + name, reason, tuple(n for n in KERNELS if n != name))
    multiply = KERNELS[name if rows.numel() and packed.n_rows else "reference"].multiply
    # Entering a context takes longer than all checks, which a single row notices.
    y = torch.no_grad()(multiply)(rows, packed, bias) if torch.is_grad_enabled() else multiply(rows, packed, bias)
    return y if x.dim() == 2 else y.view(*x.shape[:-1], packed.n_rows)


def differentiable(x: Tensor, packed: PackedMatrix, bias: Tensor | None = None) -> Tensor:
    """:func:`matmul` by ``reference``, in operations that torch differentiates, forwards too, and batches."""
    _check(x, packed, bias)
    return reference(_rows(x), packed, bias).reshape(*x.shape[:-1], packed.n_rows)


def input_gradient(gradient: Tensor, packed: PackedMatrix) -> Tensor:
    """Gradient of the activations, [B, K], from that of the product, [B, R], by tiles in float32 or float64."""
    wide = torch.float64 if gradient.dtype == torch.float64 else torch.float32
    scaled = gradient.to(wide) * packed.scale
    columns = scaled.new_zeros(len(gradient), 8 * packed.planes.shape[2])
    for start, end, levels in level_tiles(packed, wide, compile=compiles(packed)):
        columns.addmm_(scaled[:, start:end], levels)
    return natural_order(columns, packed.n_columns).to(gradient.dtype).contiguous()


def choose(x: Tensor, packed: PackedMatrix) -> str:
    """Name of the kernel that ``auto`` means for activations [B, K]."""
    if x.dtype == torch.float64:
        return "reference"
    eighths = x.device.type == "cuda" and not quarters.refuses(x, packed)
    few = len(x) * packed.n_magnitude_bits <= N_FUSED.get("float8" if eighths else x.device.type, 0)
    if few and _is_large(packed) and not _not_fused(x, packed):
        return "fused"
    if eighths and (len(x) < N_WIDE or x.dtype != torch.bfloat16):
        return "float8"
    vnni = torch.cpu._is_vnni_supported() and not _not_integer(x, packed)
    narrow = x.dtype == torch.bfloat16 and torch.cpu._is_avx512_bf16_supported() and len(x) >= N_HALVES
    return "integer" if vnni and not narrow else "tiled"


def compiles(packed: PackedMatrix) -> bool:
    """Whether tiles of a matrix are filled by compiled functions."""
    return _is_large(packed) and compiler.available(packed.planes.device)


def _is_large(packed: PackedMatrix) -> bool:
    return packed.n_rows * packed.n_columns >= N_COMPILE_WEIGHTS


def reference(x: Tensor, packed: PackedMatrix, bias: Tensor | None) -> Tensor:
    """The dense weights, multiplied in float32 or float64."""
    if not len(x):
        return x.new_empty(0, packed.n_rows)
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    weights = dense_rows(packed).to(wide)
    return F.linear(x.to(wide), weights, None if bias is None else bias.to(wide)).to(x.dtype)


def tiled(x: Tensor, packed: PackedMatrix, bias: Tensor | None, *, compile: bool = True) -> Tensor:
    """Tiles of levels in the dtype of x, which holds them exactly without an offset; scales and bias at the end."""
    # Levels and their sums are not scaled yet, which float16 might not hold.
    narrow = x.dtype == torch.bfloat16 and packed.offset is None
    dtype = x.dtype if narrow or x.dtype == torch.float64 else torch.float32
    y, compile = x.new_empty(len(x), packed.n_rows), compile and compiles(packed)
    n_row = max(1, x.shape[1] * dtype.itemsize)
    standing = x.device.type == "cpu" and torch.cpu._is_amx_tile_supported() and halves.fits(packed, dtype)
    n_turn = max(1, (N_TURN_BYTES_AMX if standing else N_TURN_BYTES) // n_row if x.device.type == "cpu" else len(x))
    multiply = _multiply_standing if standing else _multiply_tiles
    for turn in range(0, len(x), n_turn):
        multiply(x[turn : turn + n_turn].to(dtype), packed, bias, y[turn : turn + n_turn], compile=compile)
    return y


def _multiply_standing(x: Tensor, packed: PackedMatrix, bias: Tensor | None, y: Tensor, *, compile: bool) -> None:
    """Levels times columns instead of rows times levels: what stands right of a product is brought into an order of
    AMX's own before, which takes less time for the smaller of the two."""
    columns = halves.pair_order(x, 8 * packed.planes.shape[2], compile=compile and recurs(len(x))).t()
    unit, whole = torch.ones(len(x), dtype=torch.float32, device=x.device), packed.n_rows * len(x) <= N_SUMS_AMX

    def room(n: int) -> Tensor:
        return buffer(n * len(x), x.dtype, x.device, use="products").view(n, len(x))

    sums = room(packed.n_rows) if whole else None
    for start, end, levels in halves.pair_tiles(packed, compile=compile, n_tile_bytes=N_TILE_BYTES_AMX):
        of_tile = room(end - start) if sums is None else sums[start:end]
        torch.mm(levels, columns, out=of_tile)
        if sums is None:
            finish(y[:, start:end], unit, (of_tile,), packed, bias, slice(start, end), compile=compile)
    if sums is not None:
        finish(y, unit, (sums,), packed, bias, slice(0, packed.n_rows), compile=compile)


def _multiply_tiles(x: Tensor, packed: PackedMatrix, bias: Tensor | None, y: Tensor, *, compile: bool) -> None:
    n_columns, n_bytes = 8 * packed.planes.shape[2], tile_bytes(x.device)
    if halves.fits(packed, x.dtype):
        columns = halves.pair_order(x, n_columns, compile=compile and recurs(len(x)))
        filled = halves.pair_tiles(packed, compile=compile, n_tile_bytes=n_bytes)
    else:
        columns, filled = bit_order(x, n_columns), level_tiles(packed, x.dtype, compile=compile, n_tile_bytes=n_bytes)
    for start, end, levels in filled:
        if x.dtype == y.dtype:
            torch.mm(columns, levels.t(), out=y[:, start:end])
        else:
            y[:, start:end] = finished(torch.mm(columns, levels.t()), packed, bias, slice(start, end))
    if x.dtype == y.dtype:
        apply_scales(y, packed, bias, compile=compile)


def integer(x: Tensor, packed: PackedMatrix, bias: Tensor | None, *, n_digits: int | None = None) -> Tensor:
    """Digits of x times tiles of levels, exact up to one rounding of x and float32 rounding at the end."""
    n_digits = n_digits or N_DIGITS[x.dtype]
    n_columns, compile = 8 * packed.planes.shape[2], compiles(packed)
    y = x.new_empty(len(x), packed.n_rows)
    n_turn = max(1, N_TURN_BYTES // max(1, n_digits * n_columns))
    for turn in range(0, len(x), n_turn):
        fixed = fixed_point(x[turn : turn + n_turn], n_columns, n_digits=n_digits, compile=compile)
        if not bool(fixed.unit.isfinite().all()):  # infinities and NaNs have no digits
            return tiled(x, packed, bias)
        _multiply_digits(fixed, packed, bias, y[turn : turn + n_turn], compile=compile)
    return y


def _multiply_digits(fixed: FixedPoint, packed: PackedMatrix, bias: Tensor | None, y: Tensor, *, compile: bool) -> None:
    """Sums of digits times levels, finished at once where they are few and tile by tile otherwise."""
    digits = fixed.digits.flatten(0, 1)
    n = len(digits)
    if packed.n_rows * n > N_SUMS:
        columns = digits.t()
        for start, end, levels in tiles(packed, compile=compile):
            out = buffer((end - start) * n, torch.int32, y.device, use="products").view(end - start, n)
            parts = torch._int_mm(levels, columns, out=out).view(end - start, len(fixed.digits), -1).unbind(1)
            finish(y[:, start:end], fixed.unit, parts, packed, bias, slice(start, end), compile=compile)
        return
    factors = [row.t() for row in torch.split(digits, 1)] if n <= N_VECTORS else [digits.t()]
    sums: Sequence[Tensor] = [
        torch.empty((packed.n_rows, n // len(factors)), dtype=torch.int32, device=y.device) for _ in factors
    ]
    pairs = list(zip(factors, sums, strict=True))
    for start, end, levels in tiles(packed, compile=compile):
        for factor, out in pairs:
            torch._int_mm(levels, factor, out=out[start:end])
    if len(sums) != len(fixed.digits):
        sums = torch.cat(list(sums), 1).view(packed.n_rows, len(fixed.digits), -1).unbind(1)
    finish(y, fixed.unit, sums, packed, bias, slice(0, packed.n_rows), compile=compile)


def _rows(x: Tensor) -> Tensor:
    return x if x.dim() == 2 else x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def _check(x: Tensor, packed: PackedMatrix, bias: Tensor | None) -> None:
    if x.dtype not in FLOATS:
        raise ArgumentError("x", str(x.dtype), " or ".join(map(str, FLOATS)))
    if not x.dim() or x.shape[-1] != packed.n_columns:
        raise ArgumentError("x", f"shape {list(x.shape)}", f"[..., {packed.n_columns}]")
    for name, tensor in (("x", x), ("bias", bias)):
        if tensor is not None and tensor.device != packed.planes.device:
            raise ArgumentError(name, f"on {tensor.device}", f"on {packed.planes.device}, as the weights")
    if bias is not None and bias.shape != (packed.n_rows,):
        raise ArgumentError("bias", f"shape {list(bias.shape)}", f"[{packed.n_rows}]")


def _not_fused(x: Tensor, packed: PackedMatrix) -> str:
    if packed.signs is not None or packed.offset is not None:
        return "regenerated signs or an offset"
    if x.dtype == torch.float64:
        return "float64"
    return "" if compiler.available(x.device) else f"no compiler for {x.device.type}"


def _not_integer(x: Tensor, packed: PackedMatrix) -> str:
    if packed.offset is not None:
        return "an offset"
    if x.dtype not in N_DIGITS or x.device.type != "cpu":
        return f"{x.dtype} on {x.device.type}"
    most = (2**31 - 1) // (128 << packed.n_magnitude_bits)  # what int32 sums of a digit hold
    return f"{packed.n_columns} columns, above {most}" if packed.n_columns > most else ""


@dataclass(frozen=True)
class Kernel:
    """A way to multiply.

    Attributes:
        multiply: (x [B, K], packed, bias) to [B, R].
        refuses: Why it cannot do a product, or nothing.
    """

    multiply: Callable[[Tensor, PackedMatrix, Tensor | None], Tensor]
    refuses: Callable[[Tensor, PackedMatrix], str] = lambda x, packed: ""


KERNELS = {
    "reference": Kernel(reference),
    "eager": Kernel(functools.partial(tiled, compile=False)),
    "tiled": Kernel(tiled),
    "fused": Kernel(fused, _not_fused),
    "integer": Kernel(integer, _not_integer),
    "int8": Kernel(functools.partial(integer, n_digits=1), _not_integer),
    "float8": Kernel(
        lambda x, packed, bias: quarters.float8(x, packed, bias, compile=compiles(packed)), quarters.refuses
    ),
}
