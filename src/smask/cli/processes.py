"""Several processes for one command, as ``torchrun`` starts them; the first of them writes and speaks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch.distributed import ProcessGroup


@dataclass(frozen=True)
class Processes:
    """The processes of a command.

    Attributes:
        group: None for one alone.
        device: Of this process.
        rank, size: This process, from 0, and how many there are.
    """

    group: ProcessGroup | None
    device: torch.device
    rank: int = 0
    size: int = 1


def add(option: Any) -> None:
    """Options for large models and several devices."""
    option(
        "--precision", default="fp32", choices=("fp32", "bf16", "fp16"),
        help="arithmetic of the model, scores stay fp32 (default %(default)s)",
    )  # fmt: skip
    option(
        "--accumulate", type=int, default=1, metavar="N",
        help="make a step of N batches one after the other: as a batch N times as large, in the memory of one",
    )  # fmt: skip
    option(
        "--shard", action="store_true",
        help="under torchrun: spread weights, scores and their moments over the processes (FSDP); not with fp16",
    )  # fmt: skip
    option(
        "--rank-timeout", type=float, default=600.0, metavar="S",
        help="under torchrun: seconds to wait for another process (default %(default).0f)",
    )  # fmt: skip


def rank() -> int:
    """Which of the processes that ``torchrun`` started this is, 0 for one alone."""
    return _number("RANK") if _size() > 1 else 0


@contextmanager
def joined(device: str, *, timeout: float) -> Iterator[Processes]:
    """Joins the other processes, where there are some.

    Args:
        device: ``auto``, ``cpu``, ``cuda`` (each process then has one of its own) or one by number.
        timeout: Seconds to wait for another process, at the beginning and later.

    Raises:
        ArgumentError: More processes than CUDA devices, or one device for several processes.
        RankError: The others do not come.
        DeviceError: No such device here.
    """
    import torch
    import torch.distributed as dist

    from ..errors import ArgumentError, RankError
    from ..sources import check_device

    size, local = _size(), _number("LOCAL_RANK")
    name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if size <= 1:
        yield Processes(None, check_device(name))
        return
    if name == "cuda":
        if local >= torch.cuda.device_count():
            want = f"at most as many processes on a machine as CUDA devices, which are {torch.cuda.device_count()}"
            raise ArgumentError("--nproc-per-node", local + 1, want)
        name = f"cuda:{local}"
        torch.cuda.set_device(local)
    elif name.startswith("cuda:"):
        raise ArgumentError("--device", device, "cuda without a number, for each process takes one of its own")
    here = check_device(name)
    backend = "nccl" if here.type == "cuda" else "gloo"
    try:
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
    except (RuntimeError, ValueError) as error:
        reason = f"the others did not come within {timeout:.0f} s ({str(error).splitlines()[0][:200]})"
        raise RankError(rank(), size, reason) from None
    yield Processes(dist.group.WORLD, here, dist.get_rank(), size)
    # Not after an error: this would wait for those who will not come.
    dist.destroy_process_group()


def _size() -> int:
    """How many processes ``torchrun`` started; a number without an address is of another launcher."""
    return _number("WORLD_SIZE") if "RANK" in os.environ and "MASTER_ADDR" in os.environ else 1


def _number(name: str) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdigit() else 0
