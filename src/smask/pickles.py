"""Files of ``torch.save``: loaded with ``weights_only=True`` or not at all, and searched for tensors.

torch from 2.10 on runs no code of a file loaded so (CVE-2025-32434 and CVE-2026-24747 are fixed there).
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core.multiarray import scalar
from torch import Tensor

from .errors import CheckpointError

ZIP_MAGIC = b"PK\x03\x04"
# Under these names training scripts keep the model; the first that is there wins.
CONTAINERS = ("state_dict", "model_state_dict", "model", "module", "net", "network", "weights", "params")
MAX_NESTING = 8
# A mapped file is mapped anew after so many bytes, for the pages that were seen count as memory of this process.
N_BYTES_MAPPED = 1 << 28
# What makes a numpy scalar, such as the ``best_acc`` of many training scripts: numbers of these dtypes, no code. numpy
# 1 had the function in another module, and files of its time say so.
NUMPY_SCALARS: list[Any] = [
    np.dtype,
    *{type(np.dtype(code)) for code in "?bhiqlBHIQLefd"},
    scalar,
    (scalar, "numpy.core.multiarray.scalar"),
]
SAVE_TENSORS = "where you trust it, save its tensors alone: torch.save(model.state_dict(), ...) or safetensors"


@dataclass(frozen=True, eq=False)
class Found:
    """Tensors of a nested checkpoint, the keys that lead to them, and the names of all else."""

    tensors: Mapping[str, Tensor]
    key: tuple[str, ...]
    ignored: tuple[str, ...]


class Archive:
    """One file of ``torch.save``, its tensors mapped rather than read where its form allows.

    Raises:
        CheckpointError: Not such a file, a damaged one, or one that wants to run code.
        OSError: The path cannot be read.
    """

    def __init__(self, path: Path, key: str | None) -> None:
        self._path, self._asked = path, key
        with path.open("rb") as file:
            self._head = file.read(16)
        self._load()

    def _load(self) -> None:
        found = find_tensors(str(self._path), _loaded(self._path, self._head), self._asked)
        self.tensors, self.key, self.ignored = found.tensors, found.key, found.ignored
        self._n_read = 0

    def read(self, name: str) -> Tensor:
        """The tensor of a name."""
        if self._n_read > N_BYTES_MAPPED and self._head.startswith(ZIP_MAGIC):
            self.tensors = {}
            self._load()
        tensor = plain(self.tensors[name])
        self._n_read += tensor.nbytes
        return tensor


def _loaded(path: Path, head: bytes) -> object:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old forms and unusual pickles; what matters is an error
            with torch.serialization.safe_globals(NUMPY_SCALARS):
                return torch.load(path, map_location="cpu", weights_only=True, mmap=head.startswith(ZIP_MAGIC))
    except MemoryError:
        raise
    except Exception as error:  # bytes of others: the unpickler fails in any way there is
        foreign = re.search(r"GLOBAL ([\w.]+)", str(error))
        if foreign:
            reason = f"its pickle asks for {foreign[1]}, and a checkpoint gets to run no code here"
            raise CheckpointError(str(path), reason, advice=SAVE_TENSORS) from None
        unknown = re.search(r"WeightsUnpickler error:\s*(.+)", str(error))
        if unknown:
            reason = f"not a pickle of tensors alone ({unknown[1]})"
            raise CheckpointError(str(path), reason, advice=SAVE_TENSORS) from None
        said = " ".join([type(error).__name__, *str(error).splitlines()[:1]])[:120]
        reason = f"not a whole file of torch.save ({said}), it begins with {head!r}"
        raise CheckpointError(str(path), reason, advice="fetch or save it again, or save it as safetensors") from None


def plain(tensor: Tensor) -> Tensor:
    """A tensor without history, whose memory has its values: torch may keep a sign for all of them beside it."""
    return tensor.detach().resolve_neg()


def find_tensors(source: str, loaded: object, key: str | None) -> Found:
    """The state dict in a nested checkpoint.

    Args:
        source: Name used in errors.
        loaded: What was saved.
        key: Name under which to look; None to find it.

    Raises:
        CheckpointError: No tensors, several places that hold some, or no such key.
    """
    value, path, ignored = loaded, list[str](), list[str]()
    holders = _holders(loaded) if isinstance(loaded, Mapping) else set()
    for _ in range(MAX_NESTING):
        if not isinstance(value, Mapping):
            what = f"a {type(value).__name__} where a state dict is wanted"
            raise CheckpointError(source, what, advice="save a dict of names and tensors")
        inner = [name for name, part in value.items() if id(part) in holders]
        direct = {name: part for name, part in value.items() if isinstance(part, Tensor)}
        known = [name for name in CONTAINERS if name in inner]
        if key is not None and not path:
            if key not in inner:
                known_keys = ", ".join(map(str, inner)) or "none"
                raise CheckpointError(source, f"no tensors under {key!r}", advice=f"keys with tensors: {known_keys}")
            chosen = key
        elif known:
            chosen = known[0]
        elif direct:
            ignored += [str(name) for name in value if name not in direct]
            return Found(direct, tuple(path), tuple(ignored))
        elif len(inner) == 1:
            chosen = inner[0]
        elif inner:
            places = ", ".join(map(str, inner))
            raise CheckpointError(source, f"tensors in several places: {places}", advice="choose one with key / --key")
        elif value:
            raise CheckpointError(source, "no tensors in it", advice="save a dict of names and tensors")
        else:
            return Found({}, (), ())
        ignored += [str(name) for name in value if name != chosen]
        path.append(str(chosen))
        value = value[chosen]
    raise CheckpointError(source, f"nested more than {MAX_NESTING} deep", advice="save the state dict alone")


def _holders(mapping: Mapping[object, object]) -> set[int]:
    """By identity, which mappings of a nested one hold tensors at any depth: a pickle can hold a dict many times.

    Each is looked at once, and a dict may hold itself.
    """
    within: dict[int, list[int]] = {id(mapping): []}
    found, stack = list[int](), [mapping]
    while stack:
        outer = stack.pop()
        for part in outer.values():
            if isinstance(part, Tensor):
                found.append(id(outer))
            elif isinstance(part, Mapping):
                if id(part) not in within:
                    within[id(part)] = []
                    stack.append(part)
                within[id(part)].append(id(outer))
    holders: set[int] = set()
    while found:
        holder = found.pop()
        if holder not in holders:
            holders.add(holder)
            found += within[holder]
    return holders
