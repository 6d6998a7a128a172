"""Packed products against dense ones and torch's own low-bit kernels, measured in turns in one process.

On a CUDA device a product of few rows takes less time than its launch. So there the time of a row is that of its device
alone: calls are recorded in a CUDA graph, which goes through copies of the weights that together are larger than the
last cache, as the layers of a model are. What a single call takes that is launched from Python is said beside it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import compiler, kernels, measurement
from .errors import ArgumentError
from .packing import PackedMatrix, dense_rows
from .rivals import Weights, Work

# Rows of x above which a fused kernel takes seconds a call.
N_FUSED_ROWS = 8
# Seconds of one graph of calls on a CUDA device, beside which its launch is nothing.
GRAPH_S = 2e-3
# Calls that are launched one by one before their device is waited for.
N_QUEUED = 20
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
        launched_milliseconds: On a CUDA device: the same for calls that are launched one by one, without a graph.
    """

    name: str
    milliseconds: float
    best_milliseconds: float
    times_faster: dict[str, float]
    error: float | None
    weight_bytes: int
    peak_bytes: int | None
    compile_s: float
    launched_milliseconds: float | None = None


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
        weights = Weights(shape, planes, target)
        for batch in batches:
            yield _table(weights, batch, dtype, names, rounds, progress)


def _table(
    weights: Weights, batch: int, dtype: str, names: Sequence[str], rounds: int, progress: Callable[[str], None]
) -> Table:
    where = f"{weights.shape[0]} x {weights.shape[1]}, batch {batch}"
    random = torch.Generator().manual_seed(batch)
    wide = torch.randn(batch, weights.shape[1], generator=random).to(weights.device)
    x = wide.to(DTYPES[dtype])
    works = weights.rivals(wide)
    rivals = list(works)
    packed = weights.packed

    def product(kernel: str) -> Callable[[PackedMatrix], Callable[[], Tensor]]:
        return lambda weight: partial(kernels.matmul, x, weight, kernel=kernel)

    works["auto"] = weights.work(product("auto"), packed)
    works["auto, signs regenerated"] = weights.work(product("auto"), weights.regenerated)
    for name in names or [name for name in kernels.KERNELS if name != "reference"]:
        refused = name == "auto" or kernels.KERNELS[name].refuses(x, packed)
        if not refused and (names or name != "fused" or batch <= N_FUSED_ROWS):
            works[name] = weights.work(product(name), packed)
    want = x.double() @ dense_rows(packed).double().t()
    errors, peaks, compiling = {}, {}, {}
    with torch.inference_mode():
        for name, work in works.items():
            progress(f"{where}: {name}")
            spent: list[float] = []
            with compiler.listening(lambda _, seconds, spent=spent: spent.append(seconds or 0.0)):  # type: ignore[misc]
                got = work.run()
            compiling[name] = sum(spent)
            # Weights of nothing but zeros have exact products.
            errors[name] = float((got.double() - want).norm()) / (float(want.norm()) or 1.0) if work.packed else None
            del got
            peaks[name] = measurement.peak_bytes(work.run, weights.device)
        progress(f"{where}: {rounds} rounds of {len(works)} in turns")
        seconds, launched = _seconds(works, rounds, weights.device)
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
            round(1e3 * statistics.median(launched[name]), 4) if name in launched else None,
        )
        for name, work in works.items()
    ]
    return Table(weights.shape, batch, weights.n_planes, dtype, kernels.choose(x, packed), rows)


def _seconds(
    works: dict[str, Work], rounds: int, device: torch.device
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds of a call by name and round; on a CUDA device those of the device, and those of calls launched singly."""
    single: dict[str, Callable[[], object]] = {name: work.run for name, work in works.items()}
    if device.type != "cuda":
        return measurement.interleaved(single, rounds=rounds, repeats=5, budget_s=0.1), {}
    queued: dict[str, Callable[[], object]] = {
        name: partial(_queued, run, N_QUEUED, device) for name, run in single.items()
    }
    launched = measurement.interleaved(queued, rounds=min(rounds, 5))
    n_calls, replays = dict[str, int](), dict[str, Callable[[], object]]()
    for name, work in works.items():
        each = statistics.median(launched[name]) / N_QUEUED
        n_calls[name] = len(work.runs) * max(1, round(GRAPH_S / each / len(work.runs)))
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                for call in range(n_calls[name]):
                    work.runs[call % len(work.runs)]()
            replays[name] = partial(_queued, graph.replay, 1, device)
        except RuntimeError:  # what looks at values, or copies from the host, cannot be in a graph
            n_calls[name], replays[name] = N_QUEUED, queued[name]
    replayed = measurement.interleaved(replays, rounds=rounds)
    return (
        {name: [value / n_calls[name] for value in values] for name, values in replayed.items()},
        {name: [value / N_QUEUED for value in values] for name, values in launched.items()},
    )


def _queued(run: Callable[[], object], n: int, device: torch.device) -> None:
    for _ in range(n):
        run()
    torch.cuda.synchronize(device)
