"""Model to file and back: ``save``, ``load``, ``decode``."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from . import architectures, container, groups, integrity, masking, prefixes, replacement
from .coded import CodedTensor, parameter_problem
from .container import Limits
from .contents import contents_of, dense_tensors
from .draft import Draft
from .errors import ArchitectureError, ArgumentError, UnsupportedError
from .fit import check_fit
from .integrity import NAME_OF_DTYPE
from .origins import Base
from .prefixes import Cut
from .recipe import Recipe, attach, recipe_of
from .reconstruction import reconstruct
from .records import Manifest, Record
from .sources import DEFAULT_LIMITS, BaseSource, Source, Tensors, base_of, check_device, open_source
from .ties import check_ties, tied_parameters

# Attribute of a loaded model.
COVERAGE = "smask_coverage"


def encode(state: Mapping[str, Tensor], recipe: Recipe) -> bytes:
    """Bytes of the file that holds a state dict; the same arguments give the same bytes.

    Args:
        state: All tensors of the model in state-dict order, on any device.
        recipe: Its coded tensors, seed and architecture.

    Returns:
        The whole file.

    Raises:
        ArgumentError: A coded tensor whose weights are no longer what its recipe gives, a scale out of range, or a
            dtype that the format does not have.
    """
    missing = sorted(set(recipe.coded) - set(state))
    if missing:
        raise ArgumentError("state", f"no tensor {missing[0]!r}", "every tensor of the recipe")
    n_weights = sum(tensor.numel() for tensor in state.values())
    n_bits = sum(_bits_of(tensor, recipe.coded.get(name)) for name, tensor in state.items())
    draft, written = Draft(io.BytesIO(), n_weights=n_weights, n_bits=n_bits), dict[str, Tensor]()
    for name, tensor in state.items():
        coded = recipe.coded.get(name)
        if coded is None:
            first = _same_bits(tensor, written)
            over = recipe.origins.get(name)
            if first is None:
                draft.add(name, tensor, over if over and over[1].shape == tensor.shape else None)
            else:  # one weight of two modules
                draft.append(tensor, Record(name, tuple(tensor.shape), NAME_OF_DTYPE[tensor.dtype], same=first))
            continue
        _check_coded(name, tensor, coded, recipe.seed)
        written[name] = tensor
        draft.add_coded(name, tensor, coded)
    if recipe.base_digest is None and any(record.of is not None for record in draft.records):
        raise ArgumentError("recipe", "tensors over a base without base_digest", "smask.open_base(...).digest")
    out = io.BytesIO()
    draft.write(out, arch=recipe.arch, seed=recipe.seed, meta=recipe.meta, base_digest=recipe.base_digest)
    return out.getvalue()


def _bits_of(tensor: Tensor, coded: CodedTensor | None) -> int:
    """Bits of the planes or values of a tensor, before they are coded."""
    return 8 * tensor.element_size() * tensor.numel() if coded is None else coded.n_bits


def save(model: nn.Module, path: str | os.PathLike[str], *, overwrite: bool = True) -> int:
    """Writes a model found by :func:`smask.find_masks` or loaded by :func:`load`.

    Coded tensors are written as their masks, everything else in the smallest dtype that holds it exactly, so that
    loading gives the same state dict bit for bit. The file appears whole or not at all.

    Args:
        model: Carries its recipe.
        path: Where to.
        overwrite: Whether an existing file may be replaced.

    Returns:
        Size of the file in bytes.

    Raises:
        ArgumentError: The model carries no recipe or was changed since, or the path is not usable.
        OutputError: The system refused to write.
    """
    recipe = recipe_of(model)
    if replacement.packed_layers(model):
        raise ArgumentError("model", "packed layers", "dense ones: call smask.materialize(model) first")
    data = encode(model.state_dict(), recipe)
    container.write_atomic(Path(path), data, overwrite=overwrite)
    return len(data)


def decode(
    source: Source,
    *,
    device: torch.device | str = "cpu",
    base: BaseSource | None = None,
    task: str | None = None,
    max_planes: int | None = None,
    max_bytes: int | None = None,
    partial: bool = False,
    limits: Limits = DEFAULT_LIMITS,
) -> Tensors:
    """State dict of a file, regenerated bit for bit, or as near as the beginning of the file gives it.

    Args:
        source: Path or bytes of a file.
        device: Where the tensors are wanted.
        base: Checkpoint that the file is over, where it is over one: whatever :func:`smask.convert_checkpoint` reads,
            or a ``.smask`` file.
        task: Which of several the file holds, where it holds several.
        max_planes: Use only so many planes of the file, from the highest: a coarser model.
        max_bytes: Look only at so many bytes from the start of the file: a coarser model.
        partial: Take a file that ends early, as a download that was broken off, for a coarser model.
        limits: What the file may ask for.

    Returns:
        Tensors by name, in the order of the model. ``coverage`` of them says what of the file was used
        (:class:`smask.prefixes.Coverage`); the sha256 of a coarser model is in no file, so nothing verifies it.

    Raises:
        FormatError, UnsupportedError, LimitError, IntegrityError: The file is not valid, not known or too large.
        PrefixError: The beginning of the file holds no model yet.
        BaseError: The file is over a checkpoint that was not given, or over another.
        CheckpointError: The base is damaged or wants to run code.
        ArgumentError: A number of planes or bytes that makes no sense, a base that needs another, or no task of the
            file.
        DeviceError: The device is absent.
        OSError: The path cannot be read.
    """
    target = check_device(device)
    opened = open_source(source, Cut(max_bytes, max_planes, partial), limits)
    number = groups.number_of(opened.manifest, task)
    tensors = dense_tensors(contents_of(opened, base_of(opened, base, limits), number), target)
    return Tensors(tensors, prefixes.coverage_of(opened, task))


def load(
    source: Source,
    *,
    device: torch.device | str = "cpu",
    model: nn.Module | None = None,
    packed: bool | Literal["auto"] = False,
    regenerate_signs: bool = False,
    trainable: bool = False,
    base: BaseSource | None = None,
    task: str | None = None,
    max_planes: int | None = None,
    max_bytes: int | None = None,
    partial: bool = False,
    limits: Limits = DEFAULT_LIMITS,
) -> nn.Module:
    """A model ready to run, in evaluation mode; it can be saved again and then gives the same bytes.

    A packed model holds bits instead of weights in its coded layers (:mod:`smask.modules`) and runs on them.
    :func:`smask.materialize` makes it dense, which it has to be to be saved. A model over a base holds the tensors of
    that too, to be saved again. The attribute ``smask_coverage`` of the model says what of the file was used; a coarser
    model can be saved as a file of its own, and so can one of several tasks; :class:`smask.Tasks` moves a model from
    one to another.

    Args:
        source: Path or bytes of a file.
        device: Where the model is wanted.
        model: Module to fill, for files whose architecture is ``external``; its tensors are replaced.
        packed: False for dense weights, True for packed ones in every coded layer, ``auto`` for packed ones in layers
            that are large enough to be faster so.
        regenerate_signs: Packed layers make their signs anew at every call instead of holding them.
        trainable: The masked net ready to train, in training mode: whatever optimiser moves it, weights that are not
            kept stay zero (:func:`smask.masking.hold_masks`). Saved, it is the weights that it has then, to the bit.
        base, task, max_planes, max_bytes, partial: As for :func:`decode`.
        limits: What the file may ask for.

    Raises:
        ArchitectureError: Names, shapes or dtypes of the module differ from those of the file, the module has as one
            what differs there, or the file needs a module and none was given.
        ArgumentError: Another value of ``packed``, no task of the file, or ``trainable`` with packed layers or a file
            that is no ticket: one of differences from a checkpoint, with a mask that keeps nothing, or without any.
        UnsupportedError: ``packed=True`` and a coded tensor that no packed layer can hold.
        FormatError, LimitError, IntegrityError, PrefixError, BaseError, DeviceError, OSError: As :func:`decode`.
    """
    if trainable and packed:
        raise ArgumentError("packed", packed, "False beside trainable")
    target = check_device(device)
    opened = open_source(source, Cut(max_bytes, max_planes, partial), limits)
    arch, number = groups.arch_of(opened.manifest, task), groups.number_of(opened.manifest, task)
    described = model is None
    if model is None:
        if arch.get("kind") == "external":
            raise ArchitectureError(("the file has no architecture of its own: pass load(..., model=your_module)",))
        model = architectures.build(arch, device="meta")
    check_fit(model, groups.records_of(opened.manifest, task))
    found = base_of(opened, base, limits)
    read = contents_of(opened, found, number)
    check_ties(model, read, described=described)
    masks = masking.masks_of(read.all_coded) if trainable else {}
    # What names another tensor may be packed by itself.
    bits = _to_pack(model, read.all_coded, packed)
    model = replacement.pack_layers(model, bits, read.seed, regenerate_signs=regenerate_signs)
    tied = tied_parameters(model)
    # What a packed layer holds is there already; the fit of all names was checked above.
    model.load_state_dict(dense_tensors(read, target, without=bits), strict=not bits, assign=True)
    for first, *others in tied:
        for owner, _, attribute in (name.rpartition(".") for name in others):
            setattr(model.get_submodule(owner), attribute, model.get_parameter(first))
    model.to(target)
    setattr(model, COVERAGE, prefixes.coverage_of(opened, task))
    if trainable:
        masking.hold_masks(model, masks)
        attach(model, trainable_recipe(opened.manifest, task))
        return model.train()
    dense = {name: tensor for name, tensor in read.coded.items() if name not in bits}
    attach(model, recipe_for(opened.manifest, task, dense, found))
    return model.eval()


def trainable_recipe(described: Manifest, task: str | None) -> Recipe:
    """What a trainable model is written again from: its weights, to the bit."""
    return Recipe(described.seed or 0, {}, groups.arch_of(described, task), groups.meta_of(described, task))


def recipe_for(described: Manifest, task: str | None, coded: Mapping[str, CodedTensor], base: Base | None) -> Recipe:
    """What a model of a file, or of one of its tasks, is written again from."""
    origins = {}
    for place, index in groups.holders(described, groups.number_of(described, task)).items():
        name, record = described.tensors[place].name, described.tensors[index]
        if base and record.of is not None and not record.has_levels:
            origins[name] = ("" if record.origin == name else record.origin, base.tensor(record.origin))
    arch, meta = groups.arch_of(described, task), groups.meta_of(described, task)
    return Recipe(described.seed or 0, coded, arch, meta, described.base_digest, origins)


def _to_pack(model: nn.Module, coded: dict[str, CodedTensor], packed: bool | str) -> dict[str, CodedTensor]:
    """The coded tensors that packed layers will hold."""
    if packed not in (False, True, "auto"):
        raise ArgumentError("packed", packed, "True, False or 'auto'")
    if not packed:
        return {}
    obstacles = replacement.unpackable(model, coded)
    if packed == "auto":
        return {
            name: tensor
            for name, tensor in coded.items()
            if name not in obstacles and tensor.n_weights >= replacement.N_AUTO_WEIGHTS
        }
    if obstacles:
        name, reason = next(iter(obstacles.items()))
        raise UnsupportedError(f"packed layer of {name!r}", reason, ("load(..., packed='auto')",))
    return coded


def _same_bits(tensor: Tensor, written: Mapping[str, Tensor]) -> str | None:
    """Name of the first coded tensor of the same dtype, shape and bits."""
    for name, other in written.items():
        alike = other.shape == tensor.shape and other.dtype == tensor.dtype
        if alike and torch.equal(integrity.raw_bytes(other), integrity.raw_bytes(tensor)):
            return name
    return None


def _check_coded(name: str, tensor: Tensor, coded: CodedTensor, seed: int) -> None:
    problem = parameter_problem(coded)
    if problem:
        raise ArgumentError(f"{problem[0]} of {name}", problem[1], problem[2])
    again = reconstruct(coded, seed)
    if again.dtype != tensor.dtype or again.shape != tensor.shape:
        raise ArgumentError(
            name, f"{tensor.dtype} {tuple(tensor.shape)}", f"{again.dtype} {tuple(again.shape)} as its mask"
        )
    if not torch.equal(integrity.raw_bytes(again), integrity.raw_bytes(tensor)):
        raise ArgumentError(name, "weights that were changed", "the weights that its mask gives; find masks again")
