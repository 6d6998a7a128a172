"""What a caller names: the file to read, the checkpoint that it is over, the device it is wanted on."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor, nn

from . import container, groups, manifest, prefixes
from .checkpoints import Checkpoint, open_checkpoint
from .container import Limits
from .contents import contents_of, dense_tensors
from .errors import ArgumentError, DeviceError
from .manifest import Opened
from .origins import Base
from .prefixes import Coverage, Cut

Source: TypeAlias = str | os.PathLike[str] | bytes
BaseSource: TypeAlias = str | os.PathLike[str] | bytes | nn.Module | Mapping[str, object] | Base
DEFAULT_LIMITS = Limits()


class Tensors(dict[str, Tensor]):
    """Tensors by name, in the order of the model; ``coverage`` says which part of the file they were made from."""

    coverage: Coverage

    def __init__(self, tensors: Mapping[str, Tensor], coverage: Coverage) -> None:
        super().__init__(tensors)
        self.coverage = coverage


def read(source: Source, n_bytes: int | None = None) -> bytes:
    """The bytes of a file, or its first so many; bytes are taken as they are."""
    if isinstance(source, bytes):
        return source if n_bytes is None else source[:n_bytes]
    with Path(source).open("rb") as file:
        return file.read() if n_bytes is None else file.read(n_bytes)


def open_base(source: BaseSource, *, limits: Limits = DEFAULT_LIMITS, key: str | None = None) -> Base:
    """A checkpoint that files are over.

    Args:
        source: Whatever :func:`smask.convert_checkpoint` reads, or a ``.smask`` file, which is decoded.
        limits: What a ``.smask`` file may ask for.
        key: Name under which a nested checkpoint holds the wanted tensors.

    Raises:
        CheckpointError: The checkpoint is damaged or wants to run code.
        ArgumentError: A ``.smask`` file that is itself over another checkpoint, or of several tasks.
        FormatError, UnsupportedError, LimitError, IntegrityError: A ``.smask`` file that is not valid or too large.
        OSError: The path cannot be read.
    """
    if isinstance(source, Base):
        return source
    if isinstance(source, nn.Module | Mapping):
        return Base(open_checkpoint(source, key=key))
    if isinstance(source, bytes) or _is_smask(Path(source)):
        opened = manifest.open_file(read(source), limits=limits)
        name = "bytes" if isinstance(source, bytes) else str(source)
        if opened.manifest.base_digest is not None:
            raise ArgumentError("base", name, "a checkpoint that needs no other: smask decode writes it whole")
        groups.check_single(opened.manifest, "base", name)
        tensors = dense_tensors(contents_of(opened), torch.device("cpu"))
        found = open_checkpoint(tensors)
        return Base(Checkpoint(name, found.entries, found.read))
    return Base(open_checkpoint(source, key=key))


def open_source(source: Source, cut: Cut, limits: Limits) -> Opened:
    """A file, or as much of its beginning as is wanted, with all checks that this allows."""
    return prefixes.open_cut(read(source, cut.max_bytes), cut, limits=limits)


def base_of(opened: Opened, base: BaseSource | None, limits: Limits) -> Base | None:
    """The base that was given, opened only where the file needs it."""
    return None if base is None or opened.manifest.base_digest is None else open_base(base, limits=limits)


def _is_smask(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(container.MAGIC)) == container.MAGIC


def check_device(device: torch.device | str) -> torch.device:
    """The device, after a first tensor on it.

    Raises:
        DeviceError: No such device here.
    """
    try:
        target = torch.device(device)
        torch.empty(1, device=target)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise DeviceError(str(device), str(error).splitlines()[0]) from None
    return target
