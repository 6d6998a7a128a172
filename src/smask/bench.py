"""Packed products against dense ones and torch's own low-bit kernels, measured in turns in one process."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import compiler, kernels, measurement
from .coded import CodedTensor
from .errors import ArgumentError
from .packing import PackedMatrix, dense_rows, pack
from .reconstruction import reconstruct

SEED = 1
N_GROUP = 128  # columns of one scale in torch's 4-bit kernel
# Rows of x above which a fused kernel takes seconds a call.
N_FUSED_ROWS = 8
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class Row:
    """One way to multiply at one shape and batch.

    Attributes:
        name: A kernel, ``auto`` for the chosen one, or a rival.
        milliseconds: Median over the rounds.
        best_milliseconds: Fastest round.
        times_faster: Median over the rounds of a rival's time over this one's, by rival.
        error: Norm of the difference to the reference in float64 over its norm; None for rivals.
        weight_bytes: What the weights hold resident.
        peak_bytes: Most memory held during a call beyond weights and what stays between calls, or None.
        compile_s: Seconds spent compiling at the first call.
    """

    name: str
    milliseconds: float
    best_milliseconds: float
    times_faster: dict[str, float]
    error: float | None
    weight_bytes: int
    peak_bytes: int | None
    compile_s: float


@dataclass(frozen=True)
class Table:
    """All rows of one shape and batch.

    Attributes:
        shape: [R, K].
        batch: Rows of x.
        planes: Planes of the magnitude; signs come on top.
        dtype: Of the activations of packed products.
        chosen: Kernel that ``auto`` means here.
        rows: One a kernel or rival.
    """

    shape: tuple[int, int]
    batch: int
    planes: int
    dtype: str
    chosen: str
    rows: list[Row] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class _Work:
    run: Callable[[], Tensor]
    weight_bytes: int
    packed: bool


def measure(
    shapes: Sequence[tuple[int, int]],
    batches: Sequence[int],
    *,
    planes: int = 1,
    dtype: str = "bfloat16",
    names: Sequence[str] = (),
    rounds: int = 15,
    device: torch.device | str = "cpu",
    progress: Callable[[str], None] = lambda text: None,
) -> Iterator[Table]:
    """Measures every shape at every batch.

    Args:
        shapes: Rows and columns of the weights.
        batches: Rows of activations.
        planes: Planes of the magnitude, 1 to 7.
        dtype: Dtype of the activations of packed products: ``bfloat16``, ``float16`` or ``float32``.
        names: Kernels to measure; all that do the product where there are none. ``auto`` is always measured.
        rounds: Rounds in which all take turns.
        device: Where.
        progress: Told what is being done.

    Raises:
        ArgumentError: A size below one, an unknown kernel or dtype.
    """
    if dtype not in DTYPES:
        raise ArgumentError("dtype", dtype, " or ".join(DTYPES))
    unknown = set(names) - {"auto", *kernels.KERNELS}
    if unknown:
        raise ArgumentError("kernels", min(unknown), ", ".join(kernels.KERNELS))
    if not 1 <= planes <= 7 or rounds < 1 or min(batches, default=0) < 1 or min(map(min, shapes), default=0) < 1:
        raise ArgumentError("sizes", [list(shapes), list(batches), planes, rounds], "all positive, at most 7 planes")
    target = torch.device(device)
    for shape in shapes:
        progress(f"weights of {shape[0]} x {shape[1]}")
        weights = _Weights(shape, planes, target)
        for batch in batches:
            yield _table(weights, batch, dtype, names, rounds, progress)


class _Weights:
    """Random weights of one shape in every form that is compared."""

    def __init__(self, shape: tuple[int, int], planes: int, device: torch.device) -> None:
        n_rows, n_columns = self.shape = shape
        self.n_planes, self.device = planes, device
        random = torch.Generator().manual_seed(0)
        n_bytes = (n_rows * n_columns + 7) // 8
        masks = tuple(torch.randint(0, 256, (n_bytes,), generator=random, dtype=torch.uint8) for _ in range(planes))
        if n_rows * n_columns % 8:
            for mask in masks:
                mask[-1] &= (1 << n_rows * n_columns % 8) - 1
        self.coded = CodedTensor(shape, 0, masks, torch.rand(n_rows, generator=random) + 0.5)
        self.packed = _to(pack(self.coded, SEED), device)
        self.regenerated = _to(pack(self.coded, SEED, regenerate_signs=True), device)
        self.dense = reconstruct(self.coded, SEED, device=device)

    def rivals(self, x: Tensor) -> dict[str, _Work]:
        """Dense products and torch's low-bit kernels, each in the dtype it is made for; x is float32."""
        half, dense, dense_half = x.bfloat16(), self.dense, self.dense.bfloat16()
        n_rows, n_columns = self.shape
        works = {
            "dense float32": _Work(lambda: F.linear(x, dense), 4 * dense.numel(), False),
            "dense bfloat16": _Work(lambda: F.linear(half, dense_half), 2 * dense.numel(), False),
        }
        # These kernels do not check their arguments: torch 2.13 crashes at other sizes.
        usable = self.device.type == "cpu" and n_rows % 64 == 0 and n_columns % N_GROUP == 0
        if usable and hasattr(torch, "_weight_int4pack_mm_for_cpu"):
            codes = torch.zeros(n_rows, n_columns, dtype=torch.int32)
            four = torch._convert_weight_to_int4pack_for_cpu(codes, 1)
            groups = torch.ones(n_columns // N_GROUP, n_rows, 2, dtype=torch.bfloat16)
            run = partial(torch._weight_int4pack_mm_for_cpu, half, four, N_GROUP, groups)
            works["int4pack"] = _Work(run, four.numel() * four.element_size() + 2 * groups.numel(), False)
        if usable and hasattr(torch, "_weight_int8pack_mm"):
            eight, scale = torch.ones(n_rows, n_columns, dtype=torch.int8), torch.ones(n_rows, dtype=torch.bfloat16)
            run = partial(torch._weight_int8pack_mm, half, eight, scale)
            works["int8pack"] = _Work(run, eight.numel() + 2 * n_rows, False)
        given = torch.empty_like(dense)

        def materialised() -> Tensor:
            return F.linear(x, reconstruct(self.coded, SEED, out=given))

        return works | {"materialised": _Work(materialised, self.regenerated.n_bytes, False)}


def _table(
    weights: _Weights, batch: int, dtype: str, names: Sequence[str], rounds: int, progress: Callable[[str], None]
) -> Table:
    where = f"{weights.shape[0]} x {weights.shape[1]}, batch {batch}"
    random = torch.Generator().manual_seed(batch)
    wide = torch.randn(batch, weights.shape[1], generator=random).to(weights.device)
    x = wide.to(DTYPES[dtype])
    works = weights.rivals(wide)
    rivals = list(works)
    packed, regenerated = weights.packed, weights.regenerated
    works["auto"] = _Work(partial(kernels.matmul, x, packed), packed.n_bytes, True)
    works["auto, signs regenerated"] = _Work(partial(kernels.matmul, x, regenerated), regenerated.n_bytes, True)
    for name in names or [name for name in kernels.KERNELS if name != "reference"]:
        refused = name == "auto" or kernels.KERNELS[name].refuses(x, packed)
        if not refused and (names or name != "fused" or batch <= N_FUSED_ROWS):
            works[name] = _Work(partial(kernels.matmul, x, packed, kernel=name), packed.n_bytes, True)
    want = x.double() @ dense_rows(packed).double().t()
    errors, peaks, compiling = {}, {}, {}
    with torch.inference_mode():
        for name, work in works.items():
            progress(f"{where}: {name}")
            spent: list[float] = []
            with compiler.listening(lambda _, seconds, spent=spent: spent.append(seconds or 0.0)):  # type: ignore[misc]
                got = work.run()
            compiling[name] = sum(spent)
            errors[name] = float((got.double() - want).norm() / want.norm()) if work.packed else None
            del got
            peaks[name] = measurement.peak_bytes(work.run, weights.device)
        progress(f"{where}: {rounds} rounds of {len(works)} in turns")
        synchronised: dict[str, Callable[[], object]] = {
            name: partial(_synchronised, work.run, weights.device) for name, work in works.items()
        }
        seconds = measurement.interleaved(synchronised, rounds=rounds, repeats=5, budget_s=0.1)
    rows = [
        Row(
            name,
            round(1e3 * statistics.median(seconds[name]), 4),
            round(1e3 * min(seconds[name]), 4),
            {rival: measurement.ratio(seconds, rival, name)["median"] for rival in rivals if rival != name},
            errors[name],
            work.weight_bytes,
            peaks[name],
            round(compiling[name], 2),
        )
        for name, work in works.items()
    ]
    return Table(weights.shape, batch, weights.n_planes, dtype, kernels.choose(x, packed), rows)


def _synchronised(run: Callable[[], Tensor], device: torch.device) -> None:
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _to(packed: PackedMatrix, device: torch.device) -> PackedMatrix:
    return PackedMatrix(packed.planes.to(device), packed.n_columns, packed.scale.to(device), None, packed.signs)
