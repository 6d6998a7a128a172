"""The options of ``smask train`` for nets that are sparse while they are trained, and such a training."""

from __future__ import annotations

import argparse
import io
from typing import TYPE_CHECKING, Any

from . import bars, screen

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.distributed import ProcessGroup

    from ..runs.folder import Checkpoints
    from ..training.sparse import Sparse
    from .training_job import TrainingJob

# Options that say nothing without --sparse.
NUMBERS = ("every", "fraction", "rounds")
OPTIONS = ("density", "sparse_rule", "first_density", "last_density", *NUMBERS)
DENSITY, RULE = 0.1, "erk"
# Level of the rival.
ZSTD_LEVEL = 19


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    option = parser.add_argument_group("sparse training").add_argument
    option("--sparse", metavar="M", help="train a sparse net: rigl, set, gap or static, see below")
    option("--density", type=float, metavar="X", help=f"weights that are not zero, over all (default {DENSITY})")
    option("--sparse-rule", metavar="R", help=f"how layers share it: erk or uniform (default {RULE})")
    option("--first-density", type=float, metavar="X", help="density of the first layer")
    option("--last-density", type=float, metavar="X", help="density of the last layer")
    option("--every", type=int, metavar="N", help="rigl, set: steps between two exchanges (default at most 100)")
    option("--fraction", type=float, metavar="X", help="rigl, set: part of the weights in the first (default 0.3)")
    option("--rounds", type=int, metavar="N", help="gap: how often each partition of layers grows (default 2)")
    option(
        "--rank-timeout", type=float, default=600.0, metavar="S",
        help="gap under torchrun: seconds to wait for another process (default %(default).0f)",
    )  # fmt: skip


def check(arguments: argparse.Namespace) -> None:
    """Refuses what does not go together, before any data is read.

    Raises:
        ArgumentError: A value out of range, or an option that has nothing to say.
        UnsupportedError: An unknown method or rule.
    """
    from ..errors import ArgumentError, UnsupportedError
    from ..search.densities import RULES, check_density
    from ..training.sparse import METHODS, check_numbers

    if arguments.sparse is None:
        for name in OPTIONS:
            if getattr(arguments, name) is not None:
                raise ArgumentError(_dashed(name), getattr(arguments, name), "--sparse beside it")
        return
    if arguments.sparse not in METHODS:
        raise UnsupportedError("sparse method", arguments.sparse, tuple(METHODS))
    if arguments.file:
        raise ArgumentError("--sparse", arguments.sparse, "no FILE beside it: masks of a ticket stay as they are")
    for option in ("base", "spread"):
        if getattr(arguments, option) is not None:
            how = "none beside --sparse, whose weights begin normal, with the spread he"
            raise ArgumentError(f"--{option}", getattr(arguments, option), how)
    if arguments.sparse_rule is not None and arguments.sparse_rule not in RULES:
        raise UnsupportedError("density rule", arguments.sparse_rule, RULES)
    for name in ("density", "first_density", "last_density"):
        if getattr(arguments, name) is not None:
            check_density(_dashed(name), getattr(arguments, name))
    values = {name: getattr(arguments, name) for name in NUMBERS if getattr(arguments, name) is not None}
    for name, value in values.items():
        if name not in METHODS[arguments.sparse].numbers:
            raise ArgumentError(_dashed(name), value, f"none with --sparse {arguments.sparse}, which has no use of it")
    check_numbers(**{_dashed(name): value for name, value in values.items()})
    if not arguments.rank_timeout > 0:
        raise ArgumentError("--rank-timeout", arguments.rank_timeout, "seconds, more than 0")


def trained(job: TrainingJob, net: nn.Module, checkpoints: Checkpoints | None, group: ProcessGroup | None) -> Sparse:
    """The training that the options ask for."""
    from ..training.sparse import train_sparse
    from .encode_job import kept_on_interrupt

    arguments = job.arguments
    numbers: dict[str, Any] = {name: getattr(arguments, name) for name in NUMBERS}
    if checkpoints and checkpoints.place:
        job.say(f"goes on from {checkpoints.place}")
    with kept_on_interrupt(checkpoints), bars.search_bar(quiet=arguments.quiet, label="train") as bar:
        return train_sparse(
            net, job.batches(), method=arguments.sparse,
            density=DENSITY if arguments.density is None else arguments.density,
            density_rule=arguments.sparse_rule or RULE, first_density=arguments.first_density,
            last_density=arguments.last_density, group=group, checkpoints=checkpoints,
            **{name: value for name, value in numbers.items() if value is not None}, **job.options(bar),
        )  # fmt: skip


def fields(arguments: argparse.Namespace, found: Sparse) -> dict[str, Any]:
    """What there is to say of a sparse net in JSON."""
    return {
        "sparse": arguments.sparse, "density": found.density,
        "densities": {name: float(mask.float().mean()) for name, mask in found.masks.items()},
        "itop_rate": found.explored, "zstd_bytes": zstd_bytes(found.model.state_dict()), "zstd_level": ZSTD_LEVEL,
    }  # fmt: skip


def rows(found: Sparse, n_zstd: int) -> list[tuple[str, str]]:
    """The same for a table."""
    layers = [f"{name} {float(mask.float().mean()):.2%}" for name, mask in found.masks.items()]
    more = f" and {len(layers) - screen.N_SHOWN} more (--json has all)" if len(layers) > screen.N_SHOWN else ""
    return [
        ("density", f"{found.density:.2%} of the masked weights, {found.explored:.2%} at one time or another"),
        ("layers", ", ".join(layers[: screen.N_SHOWN]) + more),
        (f"as float32, zstd -{ZSTD_LEVEL}", f"{screen.n(n_zstd)} bytes"),
    ]


def zstd_bytes(state: dict[str, Tensor]) -> int:
    """The rival: all tensors as they are, zeros and all, as one zstd frame."""
    import zstandard

    from ..integrity import raw_bytes

    raw = io.BytesIO()
    for tensor in state.values():
        raw.write(raw_bytes(tensor).numpy().data)
    return len(zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(raw.getvalue()))


def _dashed(name: str) -> str:
    return f"--{name.replace('_', '-')}"
