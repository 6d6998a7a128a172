"""The trained checkpoint of ``smask encode``, masked (``--base``) or where it begins (``--start``): options, net."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from ..origins import Base
    from ..search.tasks import Task

OPTIONS = ("initial", "leave_out")


def add(option: Any) -> None:
    """Options of a search over a trained checkpoint, or that begins as one."""
    option(
        "--start", metavar="IN",
        help="begin with the signs and magnitudes of a checkpoint or .smask file, and with its other floats; what is "
        "written has the weights of the seed, and needs it no more",
    )  # fmt: skip
    option(
        "--initial", choices=("magnitude", "random"),
        help="first masks over --base: those of magnitude pruning, or any (default magnitude)",
    )  # fmt: skip
    option(
        "--mean", metavar="M,M,M", help="what the checkpoint subtracts from each channel (default: that of the data)"
    )
    option("--std", metavar="S,S,S", help="what it then divides by; inputs are 0 to 1 before")
    option(
        "--leave-out", nargs="+", action="extend", metavar="NAME",
        help="layers or weights that stay as in --base, unmasked, at no cost; statistics of norms follow the data",
    )  # fmt: skip
    option(
        "--train", nargs="+", action="extend", default=[], metavar="NAME",
        help="layers or weights that are trained instead of masked, and stored",
    )  # fmt: skip


def check(arguments: argparse.Namespace) -> None:
    """What needs no data is refused before any is read.

    Raises:
        UnsupportedError: ``--base`` is no kind of numbers and no file.
        ArgumentError: Options of a checkpoint without one, two checkpoints, or one of mean and std.
    """
    from ..bases import N_WEIGHTS_PER_WORD
    from ..errors import ArgumentError, UnsupportedError

    if arguments.base in N_WEIGHTS_PER_WORD:
        for option in OPTIONS:
            if getattr(arguments, option) is not None:
                name = f"--{option.replace('_', '-')}"
                raise ArgumentError(name, getattr(arguments, option), "--base CHECKPOINT beside it")
    elif not Path(arguments.base).exists():
        raise UnsupportedError("base", arguments.base, (*N_WEIGHTS_PER_WORD, "a checkpoint or .smask file"))
    elif arguments.start is not None:
        raise ArgumentError("--base and --start", "two checkpoints", "--base to mask its weights, --start to begin so")
    if (arguments.mean is None) != (arguments.std is None):
        raise ArgumentError("--mean and --std", "one of them", "both or none")
    if arguments.mean is not None and checkpoint_of(arguments) is None:
        raise ArgumentError("--mean and --std", arguments.mean, "--start or --base CHECKPOINT beside it")


def checkpoint_of(arguments: argparse.Namespace) -> str | None:
    """What ``--base`` or ``--start`` names, None where the base is seeded and nothing begins it."""
    from ..bases import N_WEIGHTS_PER_WORD

    named: str | None = arguments.start if arguments.base in N_WEIGHTS_PER_WORD else arguments.base
    return named


def open_named(arguments: argparse.Namespace) -> Base | None:
    """The checkpoint, None where there is none.

    Raises:
        CheckpointError, FormatError, LimitError, IntegrityError, OSError: The file cannot be read.
        ArgumentError: A ``.smask`` file that is itself over another, or of several tasks.
    """
    from ..sources import open_base

    named = checkpoint_of(arguments)
    return None if named is None else open_base(named)


def own_arch(arguments: argparse.Namespace, n_classes: int) -> dict[str, Any] | None:
    """The architecture of a checkpoint that is a ``.smask`` file and has one, with a head for so many classes.

    None where ``--arch`` says what it is, or nothing does.
    """
    from .. import container, manifest

    path = Path(checkpoint_of(arguments) or "")
    if arguments.arch is not None or not path.is_file():
        return None
    data = path.read_bytes()
    if data[: len(container.MAGIC)] != container.MAGIC:
        return None
    arch = manifest.open_file(data, limits=container.Limits()).manifest.arch
    return None if arch.get("kind") == "external" else _headed(arch, n_classes)


def _headed(arch: Mapping[str, Any], n_classes: int) -> dict[str, Any]:
    layers = list(arch.get("layers", ()))
    if layers and isinstance(layers[-1], dict) and layers[-1].get("op") == "linear":
        layers[-1] = layers[-1] | {"outputs": n_classes}
    return {**arch, "layers": layers}


def masked_names(net: nn.Module, base: Base | None, arguments: argparse.Namespace) -> list[str] | None:
    """Weights to mask, None for all; what is left out stays as it is in the net, whatever is trained beside it.

    Raises:
        ArgumentError: A name of no layer, one that the base does not have, or nothing to mask.
    """
    from ..errors import ArgumentError
    from ..search.weights import maskable

    names, others = list(maskable(net)), set[str]()
    for option, given in (("--leave-out", arguments.leave_out or []), ("--train", arguments.train)):
        for name in given:
            parts = [one for one, _ in net.named_parameters() if one == name or one.startswith(f"{name}.")]
            if not parts:
                known = ", ".join(dict.fromkeys(masked.rpartition(".")[0] or masked for masked in names))
                raise ArgumentError(option, name, f"a layer or weight of the net: {known}")
            others.update(parts)
            for part in parts if option == "--leave-out" else ():
                parameter, entry = net.get_parameter(part), base.entry(part) if base else None
                if entry is None or entry.shape != tuple(parameter.shape):
                    raise ArgumentError(option, name, f"what the base has in the shape that the net wants; see {part}")
                parameter.requires_grad_(False)
    if not others:
        return None
    kept = [name for name in names if name not in others]
    if not kept:
        raise ArgumentError("--leave-out and --train", "every layer", "at least one layer left to mask")
    return kept


def with_statistics(start: Base, net: nn.Module, masked: list[str] | None, task: Task) -> Base:
    """The checkpoint that a search begins as, its batch norms with statistics again where it was kept without."""
    from ..search.pretrained import Taken
    from ..search.statistics import restore
    from ..search.tasks import some_inputs
    from ..search.weights import maskable
    from ..sources import open_base

    begun = copy.deepcopy(net)
    taken = Taken.of(start, begun, maskable(begun, masked))
    if not restore(begun, some_inputs(task)):
        return start
    return open_base(
        {name: t for name, t in begun.state_dict().items() if name in taken.masked or name in taken.others}
    )


def new_layers(net: nn.Module, base: Base, masked: list[str] | None) -> list[str]:
    """Masked weights that the checkpoint does not have and that are seeded, or begin as without one."""
    from ..search.weights import maskable

    found = []
    for name, one in maskable(net, masked).items():
        entry = base.entry(name)
        if entry is None or entry.shape != tuple(one.weight.shape):
            found.append(name)
    return found
