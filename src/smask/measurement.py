"""Facts of the machine that a figure was measured on, timing in turns, and peaks of memory."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import platform
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import torch
import zstandard


def facts() -> dict[str, Any]:
    """Processor, cores, threads, versions: whatever a figure depends on."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "vnni": torch.cpu._is_vnni_supported(),
        "amx": torch.cpu._is_amx_tile_supported(),
        "torch_threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": numpy.__version__,
        "zstd": ".".join(map(str, zstandard.ZSTD_VERSION)),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    fields = [line.partition(":") for line in lines]
    names = [value.strip() for key, _, value in fields if key.strip() == "model name"]
    flags = next((value.split() for key, _, value in fields if key.strip() == "flags"), [])
    return (names[0] if names else platform.processor()) + (" (AVX-512)" if "avx512f" in flags else "")


def interleaved(
    works: dict[str, Callable[[], object]], *, rounds: int, repeats: int = 1, budget_s: float = 1.0
) -> dict[str, list[float]]:
    """Seconds of each work in every round; the works take turns, so that a drift of the machine meets them all.

    Every round has another order, the same in every run: what a work leaves in the caches meets each of the others.

    Args:
        works: What to time, by name.
        rounds: Rounds counted, after one that is not.
        repeats: Calls of each work a round, fewer for a work that would take longer than the budget.
        budget_s: Seconds for one work in one round.
    """
    times = {}
    for name, work in works.items():
        work()
        start = time.perf_counter()
        work()
        times[name] = max(1, min(repeats, int(budget_s / (time.perf_counter() - start))))
    seconds: dict[str, list[float]] = {name: [] for name in works}
    order, shuffled = list(works), random.Random(0)
    for _ in range(rounds):
        shuffled.shuffle(order)
        for name in order:
            work = works[name]
            start = time.perf_counter()
            for _ in range(times[name]):
                work()
            seconds[name].append((time.perf_counter() - start) / times[name])
    return seconds


def ratio(seconds: dict[str, list[float]], one: str, other: str) -> dict[str, float]:
    """Median and spread of one / other, round by round."""
    ratios = sorted(a / b for a, b in zip(seconds[one], seconds[other], strict=True))
    return {"median": round(statistics.median(ratios), 3), "min": round(ratios[0], 3), "max": round(ratios[-1], 3)}


def peak_bytes(work: Callable[[], object], device: torch.device) -> int | None:
    """Most memory that a call holds beyond what was held before it; None where the system does not tell.

    On a CPU it is what the process has resident, so that memory kept from earlier calls does not count; what the C
    library kept is given back first.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device) - before)
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew
        before = _resident("VmRSS")
        work()
        return _resident("VmHWM") - before
    except OSError:
        return None


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))
