"""Options of how training images are changed, and the task with these changes."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..search.tasks import Classification, Task


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the options to a command."""
    option = parser.add_argument_group("how training images are changed").add_argument
    option(
        "--shift", type=int, metavar="P", help="move them by up to P pixels (default 1, 0 for images under 16 pixels)"
    )
    option("--flip", action="store_true", help="mirror every other one left to right, by chance")
    option(
        "--erase", type=int, default=0, metavar="P", help="hide a square of P pixels a side in each, anywhere (cutout)"
    )
    option(
        "--cutmix", type=float, default=0.0, metavar="C",
        help="with this chance give one a rectangle of another, and that part of its label: 0.5",
    )  # fmt: skip
    option(
        "--resize", metavar="P:X",
        help="make their shorter side P pixels in the first part X of the epochs, which then take less time, for nets "
        "that take images of any size: 24:0.6, or 16:0.3,24:0.6 for one size after another",
    )  # fmt: skip


def changed(task: Task, arguments: argparse.Namespace) -> Task:
    """The task with the changes of training images that the options say.

    Raises:
        ArgumentError: Something to mirror, to erase parts of, to mix or to make smaller that is no image, or no part
            or size of one.
    """
    from ..errors import ArgumentError
    from ..search.tasks import Classification

    images = isinstance(task, Classification) and len(task.data.input_shape) == 3 and task.data.augmented
    wanted = {
        "shift": "to move", "flip": "to mirror", "erase": "to erase parts of", "cutmix": "to cut rectangles from",
        "resize": "to make smaller",
    }  # fmt: skip
    for option, want in wanted.items():
        if getattr(arguments, option) and not images:
            raise ArgumentError(f"--{option}", getattr(arguments, option), f"images {want}")
    if not isinstance(task, Classification):
        return task
    shift = arguments.shift
    if shift is None:
        shift = 1 if images and min(task.data.input_shape[1:]) >= 16 else 0
    if arguments.erase and not 0 < arguments.erase <= min(task.data.input_shape[1:]):
        raise ArgumentError("--erase", arguments.erase, f"1 to {min(task.data.input_shape[1:])}, the size of images")
    if not 0 <= arguments.cutmix <= 1:
        raise ArgumentError("--cutmix", arguments.cutmix, "a chance from 0 to 1")
    sizes = () if arguments.resize is None else _sizes_of(arguments.resize, task)
    return replace(task, shift=shift, flip=arguments.flip, erase=arguments.erase, cutmix=arguments.cutmix, sizes=sizes)


def _sizes_of(text: str, task: Classification) -> tuple[tuple[int, float], ...]:
    """Pixels, and the part of the epochs at which they end, one size after another."""
    from ..errors import ArgumentError

    side, sizes = min(task.data.input_shape[1:]), list[tuple[int, float]]()
    want = f"1 to {side - 1} pixels and a part of the epochs, above 0 and below 1, each later than the one before"
    for size in text.split(","):
        pixels, _, part = size.partition(":")
        try:
            n_pixels, end = int(pixels), float(part)
        except ValueError:
            raise ArgumentError("--resize", text, f"PIXELS:PART like 24:0.6, {want}") from None
        if not 0 < n_pixels < side or not (sizes[-1][1] if sizes else 0) < end < 1:
            raise ArgumentError("--resize", text, want)
        sizes.append((n_pixels, end))
    return tuple(sizes)
