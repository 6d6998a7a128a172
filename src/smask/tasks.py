"""A file of several tasks, opened once: models of each, and models moved from one to another in place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from . import architectures, codec, groups, integrity, masking, packs, replacement, sources
from .container import Limits
from .contents import Contents, contents_of, dense_tensors
from .errors import ArgumentError, IntegrityError, UnsupportedError
from .fit import check_fit
from .modules import PackedLayer
from .packing import PackedMatrix
from .parts import parts_of
from .prefixes import Cut
from .recipe import attach
from .reconstruction import reconstruct
from .sources import DEFAULT_LIMITS, BaseSource, Source
from .ties import check_ties


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

    def switch(self, model: nn.Module, task: str) -> None:
        """Puts a task into a model of another one: into the memory that its tensors have, on the device they are on.

        The model then carries the recipe of the task, so that it can be saved, and is what :meth:`load` gives, to the
        bit. Packed layers stay packed, in the same memory where a task has as many planes and scales as the other. A
        trainable model stays trainable, under the masks of the task. A file that is damaged is refused before anything
        is changed.

        Args:
            model: Of the architecture of the task, dense or packed.
            task: Which task.

        Raises:
            ArgumentError: No task of the file, weights of more planes than a packed layer holds, or a trainable model
                and a task that is no ticket.
            UnsupportedError: Weights of the task that no packed layer holds, where the model has one.
            ArchitectureError: Names, shapes or dtypes of the model are not those of the task, or it has as one what
                differs there.
            FormatError, UnsupportedError, LimitError, IntegrityError, BaseError: As :func:`smask.decode`.
        """
        described = self._opened.manifest
        check_fit(model, groups.records_of(described, task))
        read, layers = self._contents(task), replacement.packed_layers(model)
        arch = groups.arch_of(described, task)
        # Of packed layers the file says which are one parameter.
        own = arch.get("kind") != "external"
        check_ties(architectures.build(arch, "meta") if own and layers else model, read, described=own)
        bits = {name: self._bits_of(read, name, layer) for name, layer in layers.items()}
        trainable = masking.holds_masks(model)
        masks = masking.masks_of(read.all_coded) if trainable else {}
        held = [*model.parameters(), *model.buffers()]
        # What was loaded in an inference mode can be written in one only; gradients are no concern of either.
        with torch.inference_mode(any(tensor.is_inference() for tensor in held)), torch.no_grad():
            _write(model.state_dict(), layers, read, bits)
        if trainable:
            masking.hold_masks(model, masks)
            attach(model, codec.trainable_recipe(described, task))
            return
        dense = {name: coded for name, coded in read.coded.items() if name not in layers}
        attach(model, codec.recipe_for(described, task, dense, self._base))

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

    def _bits_of(self, read: Contents, name: str, layer: PackedLayer) -> PackedMatrix:
        coded = read.coded.get(read.same.get(name, name))
        if coded is None:
            want = ("a task with planes here", "smask.materialize(model) before")
            raise UnsupportedError(f"packed layer of {name!r}", "weights without planes", want)
        return layer.packed(coded, read.seed)

    def _contents(self, task: str) -> Contents:
        number = groups.number_of(self._opened.manifest, task)
        return contents_of(self._opened, self._base, number, parts=self._parts)


def _write(
    state: Mapping[str, Tensor], layers: Mapping[str, PackedLayer], read: Contents, bits: Mapping[str, PackedMatrix]
) -> None:
    for name in read.names:
        first = read.same.get(name, name)
        if name in layers:
            layers[name].take(read.coded[first], read.seed, bits[name])
            continue
        tensor = state[name]
        if first in read.plain:
            tensor.copy_(read.plain[first])
        elif tensor.is_contiguous():
            reconstruct(read.coded[first], read.seed, out=tensor)
        else:
            tensor.copy_(reconstruct(read.coded[first], read.seed, device=tensor.device))
