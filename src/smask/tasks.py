"""A file of several tasks, opened once: models of each, and models moved from one to another in place."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from . import codec, groups, integrity, modules, packs, sources
from .container import Limits
from .contents import Contents, contents_of, dense_tensors
from .errors import ArgumentError, IntegrityError
from .parts import parts_of
from .prefixes import Cut
from .recipe import attach
from .reconstruction import reconstruct
from .sources import DEFAULT_LIMITS, BaseSource, Source


class Tasks:
    """A file of several tasks that is read and checked once.

        tasks = smask.Tasks("many.smask")
        model = tasks.load("a")
        tasks.switch(model, "b")

    Args:
        source: Path or bytes of a file.
        base: Checkpoint that the file is over, where it is over one.
        limits: What the file may ask for.

    Attributes:
        names: The tasks, in the order of the file.

    Raises:
        ArgumentError: A file of one model.
        FormatError, UnsupportedError, LimitError, IntegrityError: The file is not valid, not known or too large.
        CheckpointError: The base is damaged or wants to run code.
        OSError: A path cannot be read.
    """

    def __init__(self, source: Source, *, base: BaseSource | None = None, limits: Limits = DEFAULT_LIMITS) -> None:
        self._data, self._limits = sources.read(source), limits
        self._opened = sources.open_source(self._data, Cut(), limits)
        self.names = tuple(task.name for task in self._opened.manifest.tasks)
        if not self.names:
            raise ArgumentError("source", "a file of one model", "one of several tasks, from smask.pack")
        self._base = sources.base_of(self._opened, base, limits)
        self._parts = parts_of(self._opened)

    def load(
        self, task: str, *, device: torch.device | str = "cpu", model: nn.Module | None = None,
        packed: bool | Literal["auto"] = False, regenerate_signs: bool = False,
    ) -> nn.Module:  # fmt: skip
        """The model of a task, as :func:`smask.load` gives it; raises what that raises."""
        return codec.load(
            self._data, task=task, device=device, model=model, packed=packed, regenerate_signs=regenerate_signs,
            base=self._base, limits=self._limits,
        )  # fmt: skip

    @torch.no_grad()
    def switch(self, model: nn.Module, task: str) -> None:
        """Puts a task into a model of another one: into the memory that its tensors have, on the device they are on.

        The model then carries the recipe of the task, so that it can be saved, and is what :meth:`load` gives, to the
        bit. A file that is damaged is refused before anything is changed.

        Args:
            model: Of the architecture of the task, dense.
            task: Which task.

        Raises:
            ArgumentError: No task of the file, or a model with packed layers.
            ArchitectureError: Names, shapes or dtypes of the model are not those of the task.
            FormatError, UnsupportedError, LimitError, IntegrityError, BaseError: As :func:`smask.decode`.
        """
        if any(isinstance(module, modules.PackedLayer) for module in model.modules()):
            raise ArgumentError("model", "packed layers", "dense ones: load(..., packed=True) makes another model")
        described = self._opened.manifest
        codec.check_fit(model, groups.records_of(described, task))
        read = self._contents(task)
        for name, tensor in model.state_dict().items():
            first = read.same.get(name, name)
            if first in read.plain:
                tensor.copy_(read.plain[first])
            elif tensor.is_contiguous():
                reconstruct(read.coded[first], read.seed, out=tensor)
            else:
                tensor.copy_(reconstruct(read.coded[first], read.seed, device=tensor.device))
        attach(model, codec.recipe_for(described, task, read.coded, self._base))

    def extract(self, task: str) -> bytes:
        """The file of one model that :func:`smask.pack` was given for a task.

        Raises:
            ArgumentError: No task of the file.
            FormatError, UnsupportedError, LimitError, IntegrityError, BaseError: As :func:`smask.decode`.
        """
        tensors = dense_tensors(self._contents(task), torch.device("cpu"))
        digest, want = integrity.digest(tensors), groups.digest_of(self._opened.manifest, task)
        if not digest.startswith(want):
            raise IntegrityError(f"regenerated tensors of task {task!r}", digest, want)
        return packs.single(self._opened, task, digest)

    def _contents(self, task: str) -> Contents:
        number = groups.number_of(self._opened.manifest, task)
        return contents_of(self._opened, self._base, number, parts=self._parts)
