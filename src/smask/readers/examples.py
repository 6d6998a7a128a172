"""Labelled examples as arrays, and their split into a training and a test part."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..errors import DataError
from .reading import Reading

MAX_CLASSES = 65_536
# What a reader puts into memory at most; a few bytes of a file can ask for much more.
MAX_BYTES = 1 << 33


@dataclass(frozen=True, eq=False)
class Part:
    """Some examples.

    Attributes:
        x: uint8 or float32 [N, ...].
        y: int64 [N].
    """

    x: np.ndarray
    y: np.ndarray


@dataclass(frozen=True, eq=False)
class Examples:
    """What a reader found.

    Attributes:
        train: Training part, or all where ``test`` is None.
        test: Test part where the data has one of its own.
        classes: Names in order of label, None where labels are numbers from 0.
        facts: What a file has to say for its net to be used on other data.
        columns: Whether features are of different kinds.
        pictures: Whether three-dimensional inputs are pictures, which may be moved and mirrored.
    """

    train: Part
    test: Part | None
    classes: tuple[str, ...] | None
    facts: Mapping[str, str] = field(default_factory=dict)
    columns: bool = False
    pictures: bool = True


def parted(source: str, examples: Examples, reading: Reading) -> tuple[Part, Part]:
    """Training and test part; examples without a test part are split by seed, each class by itself.

    Raises:
        DataError: A class that is too small to be split, or that only the test part has.
    """
    if examples.test is not None:
        unseen = np.setdiff1d(examples.test.y, examples.train.y)
        if len(unseen) and examples.classes and reading.classes is None:
            raise DataError(source, f"class {examples.classes[unseen[0]]!r} has test inputs and none to train on")
        return examples.train, examples.test
    whole = examples.train
    if reading.test_part == 1:
        return whole, whole
    random = np.random.default_rng(reading.split_seed)
    held = np.zeros(len(whole.y), bool)
    for label in range(int(whole.y.max()) + 1):
        members = np.flatnonzero(whole.y == label)
        if len(members) == 1:
            name = examples.classes[label] if examples.classes else label
            raise DataError(source, f"class {name!r} has a single input; one to train and one to test are needed")
        n = min(max(1, round(len(members) * reading.test_part)), len(members) - 1)
        held[random.permutation(members)[:n]] = True
    return Part(whole.x[~held], whole.y[~held]), Part(whole.x[held], whole.y[held])


def numbered(source: str, names: Sequence[str], wanted: tuple[str, ...] | None) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels of names, int64 [N], and the classes: those wanted, or those that are there in order.

    Names that are all whole numbers are ordered as numbers.

    Raises:
        DataError: No names, a single class, too many, one that is not among the wanted, or that is no text.
    """
    there = set(names)
    for name in there:
        if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name):  # control, or half of a character
            raise DataError(source, f"class {name!r} has characters that cannot be shown")
    classes = wanted or tuple(sorted(there, key=_order(there)))
    number = {name: index for index, name in enumerate(classes)}
    for name in names:
        if name not in number:
            shown = ", ".join(classes[:8]) + (" ..." if len(classes) > 8 else "")
            raise DataError(source, f"class {name!r}, which the net does not have; it has {shown}")
    if len(classes) < 2:
        raise DataError(source, f"{'a single class' if classes else 'no class'}: {', '.join(classes)}; two are needed")
    if len(classes) > MAX_CLASSES:
        raise DataError(source, f"{len(classes):,} classes, at most {MAX_CLASSES:,} are possible")
    return np.array([number[name] for name in names], np.int64), classes


def check_size(source: str, n_bytes: int) -> None:
    """Raises DataError for data that memory is not meant to hold."""
    if n_bytes > MAX_BYTES:
        raise DataError(source, f"{n_bytes:,} bytes as an array, at most {MAX_BYTES:,} are read into memory")


def _order(names: set[str]) -> Callable[[str], tuple[int, str]]:
    numeric = all(name.removeprefix("-").isdecimal() and len(name) < 20 for name in names)
    return (lambda name: (int(name), name)) if numeric else (lambda name: (0, name))
