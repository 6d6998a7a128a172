"""The base of a file: another checkpoint, whose tensors those of the file are over, known by one sha256."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from .checkpoints import Checkpoint, Entry
from .errors import BaseError, FormatError
from .integrity import DTYPE_OF_NAME, NAME_OF_DTYPE, Digest
from .records import Manifest, Record


class Base:
    """A checkpoint under its names without what a wrapper put before all of them.

    The order of its tensors, the form of its file and what else that holds do not matter: a state dict saved by
    ``torch.save``, as safetensors or as a lossless ``.smask`` file is the same base.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        prefix = checkpoint.prefix
        self._checkpoint = checkpoint
        self._entries = {entry.name.removeprefix(prefix): entry for entry in checkpoint.entries}

    @property
    def source(self) -> str:
        """Path, or type of the object."""
        return self._checkpoint.source

    @functools.cached_property
    def digest(self) -> str:
        """sha256 over all tensors in the order of their names; reads them one at a time.

        Raises:
            CheckpointError: The source is damaged.
        """
        running = Digest()
        for name in sorted(self._entries):
            running.update(name, self.tensor(name))
        return running.hexdigest()

    def entry(self, name: str) -> Entry | None:
        """What is known of a tensor before it is read; None where there is none of that name."""
        return self._entries.get(name)

    def tensor(self, name: str) -> Tensor:
        """A tensor on the CPU, which may share memory with the source: not to be changed."""
        return self._checkpoint.read(self._entries[name].name).detach().cpu()


class Origins:
    """Tensors of the base that a file asks for.

    Raises:
        BaseError: The file needs a base and has none, or another.
    """

    def __init__(self, described: Manifest, base: Base | None) -> None:
        want = described.base_digest
        if want is not None and (base is None or base.digest != want):
            source, got = (None, None) if base is None else (base.source, base.digest)
            raise BaseError(source, got, want, described.meta.get("base"))
        self._base = base

    def of(self, record: Record) -> Tensor | None:
        """The tensor that a record is over; None for a record over none.

        Raises:
            FormatError: The base has none that fits, so the file is wrong.
        """
        if record.of is None:
            return None
        assert self._base is not None
        where = f"base of {record.name!r}"
        entry = self._base.entry(record.origin)
        if entry is None:
            raise FormatError("I-04", where, f"no tensor {record.origin!r}", "a tensor of the base")
        want = f"{record.dtype} {list(record.shape)}"
        if entry.shape != record.shape or not (record.has_levels or entry.dtype == record.dtype):
            raise FormatError("I-04", where, f"{entry.dtype} {list(entry.shape)}", want)
        tensor = self._base.tensor(record.origin)
        if record.has_levels:
            problem = origin_problem(tensor)
            if problem:
                raise FormatError("S-06", where, problem, "a floating tensor whose values are finite in binary32")
        return tensor


def origin_problem(tensor: Tensor) -> str | None:
    """Why no mask of a tensor, nor levels over it, can be had; None where they can."""
    if not tensor.is_floating_point():
        return f"dtype {NAME_OF_DTYPE[tensor.dtype]}"
    if not bool(tensor.to(torch.float32).isfinite().all()):
        return "NaN, infinity or a magnitude beyond binary32"
    return None


def fits(record_shape: tuple[int, ...], record_dtype: str, entry: Entry | None) -> bool:
    """Whether a tensor can be stored over a tensor of the base."""
    if entry is None or entry.shape != record_shape:
        return False
    floating = DTYPE_OF_NAME[entry.dtype].is_floating_point and DTYPE_OF_NAME[record_dtype].is_floating_point
    return entry.dtype == record_dtype or floating
