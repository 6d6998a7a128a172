"""Checkpoints of other software, read tensor by tensor: what is in one is known before any tensor is.

============================================ ==================================================================
source                                       read through
============================================ ==================================================================
``.safetensors``                             safetensors, opened anew for each tensor
``*.index.json`` beside its shards           the files that it names, in the order of its ``weight_map``
a folder, as Hugging Face writes it          the one model file or index in it, safetensors before pickles
``.pt .pth .th .bin`` and any other suffix   ``torch.load(weights_only=True)``, see :mod:`.pickles`
``nn.Module``, state dict                    as it is
============================================ ==================================================================
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TypeAlias

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from . import pickles
from .dtypes import N_BYTES_OF_DTYPE
from .errors import ArgumentError, CheckpointError
from .integrity import NAME_OF_DTYPE
from .records import Name

Source: TypeAlias = str | os.PathLike[str] | nn.Module | Mapping[str, object]
MAX_DIMENSIONS = 8
# What torch and a file count to; without elements a tensor may have a shape that neither does.
MAX_COUNT = 2**62
# Prefixes that wrappers (DataParallel, torch.compile) put before every name.
WRAPPERS = ("module.", "_orig_mod.")
# What a folder is searched for; the first pattern that one file matches wins.
IN_FOLDER = (
    "*.safetensors.index.json", "model.safetensors", "*.safetensors", "*.bin.index.json", "pytorch_model.bin", "*.bin",
    "*.pt", "*.pth", "*.th",
)  # fmt: skip
# Bytes that tensors of a pickle take beyond what is in the file: a number in it, repeated, may ask for terabytes.
MAX_REPEATED = 1 << 28
FETCH_AGAIN = "fetch or save it again"


@dataclass(frozen=True)
class Entry:
    """One tensor of a checkpoint; ``alias_of`` names an earlier one that is the same view of the same memory."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    alias_of: str | None = None


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A checkpoint whose tensors are not read yet.

    Attributes:
        source: Path, or type of the object.
        entries: Tensors in the order of the checkpoint.
        read: Gives the tensor of a name, on its device; raises CheckpointError where the source is damaged.
        metadata: Text that safetensors files carry.
        key: Where in a nested checkpoint the tensors were found, from the outside in.
        ignored: What else the checkpoint holds, such as the state of an optimizer.
        files: What is read.
    """

    source: str
    entries: tuple[Entry, ...]
    read: Callable[[str], Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)
    key: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()

    @property
    def prefix(self) -> str:
        """What a wrapper put before every name; names are kept as they are."""
        prefix = ""
        while found := next((w for w in WRAPPERS if self._all_begin(prefix + w)), ""):
            prefix += found
        return prefix

    def _all_begin(self, prefix: str) -> bool:
        return bool(self.entries) and all(entry.name.startswith(prefix) for entry in self.entries)


def open_checkpoint(source: Source, *, key: str | None = None) -> Checkpoint:
    """Opens a checkpoint; no tensor is read and no code of the checkpoint is run.

    Args:
        source: Path of a file, an index or a folder; a module; or a state dict.
        key: Name under which a nested checkpoint holds the wanted tensors; found by itself where there is no doubt.

    Raises:
        CheckpointError: The checkpoint is damaged, wants to run code, or holds something that cannot be kept exactly.
        ArgumentError: A key for a checkpoint that is never nested.
        OSError: The path cannot be read.
    """
    if isinstance(source, nn.Module):
        return _from_tensors(type(source).__name__, source.state_dict(), key)
    if isinstance(source, Mapping):
        return _from_tensors("state dict", source, key)
    path = Path(source)
    if path.is_dir():
        path = _file_in(path)
    is_index = path.name.endswith(".index.json")
    if not is_index and path.suffix != ".safetensors":
        return _open_pickle(path, key)
    if key is not None:
        raise ArgumentError("key", key, f"none, since {path.name} is not nested")
    return _open_index(path) if is_index else _open_safetensors(path)


def _file_in(folder: Path) -> Path:
    for pattern in IN_FOLDER:
        found = sorted(folder.glob(pattern))
        if len(found) > 1:
            names = ", ".join(path.name for path in found[:4])
            raise CheckpointError(str(folder), f"several files {pattern}: {names}", advice="name one of them")
        if found:
            return found[0]
    raise CheckpointError(str(folder), "no checkpoint in this folder", advice=f"want one of {', '.join(IN_FOLDER)}")


def _open_safetensors(path: Path) -> Checkpoint:
    with path.open("rb"):
        pass  # safetensors has no reasons of the system in its errors
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            entries = [_entry(path, name, part.get_shape(), part.get_dtype()) for name, part in slices.items()]
    except (SafetensorError, OSError) as error:
        raise CheckpointError(str(path), f"not a whole safetensors file: {error}", advice=FETCH_AGAIN) from None

    def read(name: str) -> Tensor:
        # Opened each time: pages of the file that were seen do not add up in the memory of this process.
        try:
            with safe_open(path, "pt") as file:
                tensor: Tensor = file.get_tensor(name)
                return tensor
        except (SafetensorError, OSError) as error:
            raise CheckpointError(str(path), str(error), name, FETCH_AGAIN) from None

    return Checkpoint(str(path), tuple(entries), read, metadata, files=(path,))


def _open_index(path: Path) -> Checkpoint:
    try:
        weight_map = json.loads(path.read_bytes())["weight_map"]
        weight_map = msgspec.convert(weight_map, dict[str, str])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        reason = f"not an index of shards: {type(error).__name__} {error}".splitlines()[0]
        raise CheckpointError(str(path), reason, advice="want JSON with a weight_map of names to files") from None
    shards: dict[str, Checkpoint] = {}
    found: dict[tuple[str, str], Entry] = {}
    for name, shard in weight_map.items():
        if shard not in shards:
            shards[shard] = _open_shard(path, name, shard)
            found |= {(shard, entry.name): entry for entry in shards[shard].entries}
        if (shard, name) not in found:
            raise CheckpointError(shards[shard].source, "the index puts it here, it is not", name, FETCH_AGAIN)
    entries = [found[shard, name] for name, shard in weight_map.items()]
    ignored = [e.name for shard in shards.values() for e in shard.entries if e.name not in weight_map]
    metadata = next(iter(shards.values())).metadata if shards else {}
    return Checkpoint(
        str(path), tuple(entries), lambda name: shards[weight_map[name]].read(name), metadata, ignored=tuple(ignored),
        files=(path, *(file for shard in shards.values() for file in shard.files)),
    )  # fmt: skip


def _open_shard(index: Path, name: str, shard: str) -> Checkpoint:
    # Checked as text, for a cache of Hugging Face is made of links that lead elsewhere.
    parts = {*PurePosixPath(shard).parts, *PureWindowsPath(shard).parts}
    if not parts or ".." in parts or PurePosixPath(shard).is_absolute() or PureWindowsPath(shard).anchor:
        raise CheckpointError(
            str(index), f"shard {shard!r} is outside of the folder", name, "want names of files beside it"
        )
    path = index.parent / shard
    if not path.is_file():
        raise CheckpointError(str(index), f"shard {shard!r} is missing", name, f"fetch it to {index.parent}")
    return _open_safetensors(path) if path.suffix == ".safetensors" else _open_pickle(path, None)


def _open_pickle(path: Path, key: str | None) -> Checkpoint:
    archive = pickles.Archive(path, key)
    entries = _entries(path, archive.tensors)
    n_repeated = 0
    for name, tensor in archive.tensors.items():
        n_bytes, n_stored = math.prod(tensor.shape) * tensor.itemsize, tensor.untyped_storage().nbytes()
        n_repeated += max(0, n_bytes - n_stored)
        if n_repeated > MAX_REPEATED:
            reason = f"{n_bytes:,} bytes of {n_stored:,} in the file, repeated"
            raise CheckpointError(str(path), reason, name, "save it as it is: tensor.contiguous()")
    return Checkpoint(str(path), entries, archive.read, key=archive.key, ignored=archive.ignored, files=(path,))


def _from_tensors(source: str, mapping: Mapping[str, object], key: str | None) -> Checkpoint:
    found = pickles.find_tensors(source, mapping, key)
    entries = _entries(source, found.tensors)

    def read(name: str) -> Tensor:
        return pickles.plain(found.tensors[name])

    return Checkpoint(source, entries, read, key=found.key, ignored=found.ignored)


def _entries(source: object, tensors: Mapping[str, Tensor]) -> tuple[Entry, ...]:
    """Entries of tensors in memory, those that are the same view of the same storage as aliases of the first."""
    first: dict[tuple[object, ...], str] = {}
    entries = []
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_nested or tensor.is_meta:
            what = "no values (device meta)" if tensor.is_meta else f"layout {tensor.layout}, not dense"
            raise CheckpointError(str(source), what, name, "save it as a dense tensor: tensor.to_dense()")
        alias = None
        if tensor.numel():
            view = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.shape, tensor.stride())
            alias = first.setdefault((*view, tensor.dtype, tensor.device, tensor.is_neg()), name)
        dtype = NAME_OF_DTYPE.get(tensor.dtype, str(tensor.dtype))
        entries.append(_entry(source, name, tensor.shape, dtype, alias if alias != name else None))
    return tuple(entries)


def _entry(source: object, name: object, shape: Iterable[int], dtype: str, alias_of: str | None = None) -> Entry:
    """An entry, after what no file could keep is refused."""
    try:
        msgspec.convert(name, Name)
        text = str(name)
        text.encode()
    except (msgspec.ValidationError, UnicodeEncodeError):
        advice = "rename it: 1 to 512 characters, no control characters"
        raise CheckpointError(str(source), "a name that cannot be kept", repr(name)[:80], advice) from None
    dimensions = tuple(shape)
    if dtype not in N_BYTES_OF_DTYPE:
        advice = f"convert it to one of {', '.join(N_BYTES_OF_DTYPE)} first"
        raise CheckpointError(str(source), f"dtype {dtype}", text, advice)
    if len(dimensions) > MAX_DIMENSIONS:
        reason = f"{len(dimensions)} dimensions"
        raise CheckpointError(str(source), reason, text, f"reshape it to at most {MAX_DIMENSIONS}")
    if math.prod(max(1, n) for n in dimensions) > MAX_COUNT:
        raise CheckpointError(str(source), f"shape {list(dimensions)}", text, FETCH_AGAIN)
    return Entry(text, dimensions, dtype, alias_of)
