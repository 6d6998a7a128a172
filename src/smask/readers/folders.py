"""Folders with a folder for each class: files of a kind, in ``train`` and ``test`` or all together."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from ..errors import DataError

TRAIN, TEST = ("train", "training"), ("test", "testing", "val", "valid", "validation")


@dataclass(frozen=True)
class Listing:
    """Files and the names of their classes, in order of path.

    Attributes:
        train, test: (file, class) of each; ``test`` is empty where the folder has no such part.
    """

    train: tuple[tuple[Path, str], ...]
    test: tuple[tuple[Path, str], ...]


def listing(root: Path, suffixes: Collection[str]) -> Listing:
    """Files of some kinds below a folder, by class.

    Raises:
        DataError: Nothing there, files beside the folders of the classes, a folder without such a file.
    """
    parts = {path.name.lower(): path for path in _folders(root)}
    train = next((parts[name] for name in TRAIN if name in parts), None)
    test = next((parts[name] for name in TEST if name in parts), None)
    if train is None:
        return Listing(_by_class(root, suffixes), ())
    return Listing(_by_class(train, suffixes), _by_class(test, suffixes) if test else ())


def suffixes_in(root: Path) -> set[str]:
    """Suffixes of the files up to three folders below, in lower case."""
    found: set[str] = set()
    level = [root]
    for _ in range(3):
        paths = [path for folder in level for path in _entries(folder)]
        found |= {path.suffix.lower() for path in paths if path.is_file()}
        level = [path for path in paths if path.is_dir()]
    return found


def _by_class(root: Path, suffixes: Collection[str]) -> tuple[tuple[Path, str], ...]:
    found: list[tuple[Path, str]] = []
    for folder in _folders(root):
        files = [path for path in _entries(folder) if path.suffix.lower() in suffixes and path.is_file()]
        if not files:
            raise DataError(str(folder), f"no file of a class here; want {', '.join(sorted(suffixes))}")
        found += [(path, folder.name) for path in files]
    if not found:
        raise DataError(str(root), "no folders; want one for each class, with its files")
    return tuple(found)


def _folders(root: Path) -> list[Path]:
    return [path for path in _entries(root) if path.is_dir()]


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise DataError(str(folder), f"unreadable: {error.strerror or error}") from None
