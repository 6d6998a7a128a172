"""Options that say what data is and how it is read, and the task that they and a file make of it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from ..readers.reading import Reading
    from ..search.data import Dataset
    from ..search.tasks import Task

KINDS = """\
data: digits (bundled), a folder of idx files (.gz or not), an .npz with x_train, y_train, x_test, y_test; a folder of
images or WAV files with a folder for each class, in train/ and test/ or not; a table, .csv, .tsv or .parquet, with a
column of labels; openml:NAME or openml:ID; hf:NAME of the Hugging Face hub; addition:12, made here, two numbers of 12
bits and the bits of their sum; for --task lm any text file. What has no test part of its own is split by --split-seed;
of a text the last part is held out."""


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the options to a command."""
    option = parser.add_argument_group("how data is read").add_argument
    option("--label", metavar="NAME", help="column of labels in a table, by name or number (default: label, else last)")
    option(
        "--test-part", type=float, metavar="X",
        help="part held out where the data has no test part (default 0.1); 1 takes all of it",
    )  # fmt: skip
    option("--split-seed", type=int, metavar="S", help="of that choice (default 0)")
    option("--image-size", metavar="HxW", help="cut and scale images to this many pixels: 32 or 32x48")
    option("--seconds", type=float, metavar="S", help="cut or pad sounds to this length (default 1)")
    option("--tokens", choices=("bytes", "characters"), help="of a text (default bytes)")


def reading_of(arguments: argparse.Namespace, remembered: Mapping[str, Any] | None = None) -> Reading:
    """What the options say; what a file remembers comes first where they say nothing.

    Raises:
        ArgumentError: A value out of range.
    """
    from ..readers.reading import Reading

    said: dict[str, Any] = {
        "label": arguments.label, "test_part": arguments.test_part, "seconds": arguments.seconds,
        "image_size": _size_of(arguments.image_size), "tokens": arguments.tokens, "split_seed": arguments.split_seed,
    }  # fmt: skip
    chosen = {name: value for name, value in said.items() if value is not None}
    return Reading(**{**(remembered or {}), **chosen})


def dataset_for(arguments: argparse.Namespace, source: str, arch: Mapping[str, Any]) -> Dataset:
    """Labelled data as a net of this architecture wants it.

    Raises:
        DataError: Missing, unreadable or inconsistent data.
    """
    from ..readers.reading import remembered
    from ..search.data import load_dataset

    shape = arch.get("input")
    kept = remembered({}, tuple(shape) if isinstance(shape, list | tuple) else None)
    return load_dataset(source, reading_of(arguments, kept))


def inputs_of(arguments: argparse.Namespace, source: str, arch: Mapping[str, Any], n_inputs: int) -> Tensor:
    """So many training inputs for a net of this architecture: windows of a text where --tokens says that it is one.

    Raises:
        DataError: Missing, unreadable or inconsistent data.
        ArchitectureError: A language model that does not say how many tokens it takes.
    """
    from ..search.tasks import context_of
    from ..search.text import load_text

    if arguments.tokens:
        return load_text(source, reading_of(arguments)).windows(n_inputs, context_of(arch))
    return dataset_for(arguments, source, arch).sample(n_inputs)


def task_of_file(arguments: argparse.Namespace, arch: Mapping[str, Any], meta: Mapping[str, str]) -> Task:
    """The data as the net of a file wants it.

    Raises:
        DataError: Missing, unreadable or inconsistent data.
        ArchitectureError: A language model that does not say how many tokens it takes.
    """
    from ..readers.reading import TOKENS_KEY, remembered
    from ..search.data import load_dataset
    from ..search.tasks import Classification, Language, context_of
    from ..search.text import load_text

    shape = arch.get("input")
    kept = remembered(meta, tuple(shape) if isinstance(shape, list | tuple) else None)
    reading = reading_of(arguments, kept)
    if TOKENS_KEY in meta or arguments.task == "lm":
        return Language(load_text(arguments.data, reading), context_of(arch))
    return Classification(load_dataset(arguments.data, reading))


def _size_of(text: str | None) -> tuple[int, int] | None:
    from ..errors import ArgumentError

    if text is None:
        return None
    sides = text.split("x")
    if len(sides) > 2 or not all(side.isascii() and side.isdigit() and len(side) < 6 for side in sides):
        raise ArgumentError("--image-size", text, "pixels, 32 or HEIGHTxWIDTH like 32x48")
    return int(sides[0]), int(sides[-1])
