"""A trained checkpoint as a file: to the bit, or as small as a goal asks."""

from __future__ import annotations

import contextlib
import copy
import os
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from .. import architectures, container
from ..draft import Draft
from ..errors import ArchitectureError, ArgumentError
from ..integrity import NAME_OF_DTYPE
from ..recipe import EXTERNAL
from .allocation import Search
from .calibration import CalibratedSearch, Calibration
from .checkpoints import Checkpoint, Entry, Source, open_checkpoint
from .goals import goal_of
from .report import ConversionReport, Rivals, bits_per_weight, n_of, raw_bytes, sizes

# The rival of the report works at its best level where that takes seconds, else at its usual one.
N_SMALL, BEST_LEVEL, USUAL_LEVEL = 1 << 23, 19, 3
COUNTER = ".num_batches_tracked"


def convert_checkpoint(
    source: Source,
    out: str | os.PathLike[str],
    *,
    lossless: bool | None = None,
    bits: float | None = None,
    target_size: str | int | None = None,
    max_error: float | None = None,
    calibrate: Tensor | None = None,
    refine: int = 0,
    model: nn.Module | None = None,
    arch: Mapping[str, Any] | None = None,
    key: str | None = None,
    meta: Mapping[str, str] | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
    trained: Callable[[int, int, float], None] | None = None,
) -> ConversionReport:
    """Writes a trained checkpoint as a file.

    Without a goal every tensor comes back bit for bit. With one, weight matrices become levels of one step over a
    seeded base, and the step is found for the goal; no data is needed. With inputs the weights are rounded for what the
    network does with these, trained if wanted, and batch norms get new statistics; the whole network is then in memory,
    and bytes may differ between machines, since sums of floats do. Tensors are read one at a time and coded
    sections wait in a temporary file beside the output, so that memory does not grow with the checkpoint. The output
    appears whole or not at all; the source is never touched.

    Args:
        source: Path of a checkpoint, an index or a folder; a module; or a state dict.
        out: File to write.
        lossless: True to forbid a goal; by default whatever the goal says.
        bits: Goal: most bits a weight, whole file over all tensors.
        target_size: Goal: most bytes of the whole file, as a number or ``60kB``; the file is at most 1 % smaller (some
            twenty bytes where it is tiny), unless sixteen planes a tensor do not fill it.
        max_error: Goal: largest Euclidean length of the difference over that of the weights, all matrices together.
        calibrate: Inputs [N, ...] as the network takes them, without labels; two thousand are plenty.
        refine: Passes over these inputs in which weights are trained under their rounding.
        model: The network, where neither ``source`` is one nor ``arch`` says what it is; needed for ``calibrate``.
        arch: Architecture for :func:`smask.load`; counters of batch norms that an old checkpoint lacks are added as 0.
        key: Name under which a nested checkpoint holds the wanted tensors.
        meta: Free text to keep, beside what the checkpoint carries.
        overwrite: Whether an existing file may be replaced.
        progress: Called after each tensor with the bytes done and those of all tensors; again for each pass.
        trained: Called after each step of ``refine`` with the steps done, those of all and the running loss.

    Raises:
        CheckpointError: The checkpoint is damaged, wants to run code, or holds something that cannot be kept.
        ArgumentError: The output or the goal is not usable.
        TargetError: No file of the checkpoint is so small.
        ArchitectureError: The checkpoint does not fit the architecture.
        OutputError: The system refused to write.
        OSError: The source cannot be read.
    """
    goals = {"bits": bits, "target_size": target_size, "max_error": max_error}
    if lossless is False and all(value is None for value in goals.values()):
        raise ArgumentError("lossless", lossless, f"True, or one of {', '.join(goals)}")
    if lossless and any(value is not None for value in goals.values()):
        raise ArgumentError("lossless", lossless, f"none of {', '.join(goals)} beside it")
    if calibrate is None and (refine or model is not None):
        raise ArgumentError("refine" if refine else "model", refine or type(model).__name__, "calibrate beside it")
    if refine < 0:
        raise ArgumentError("refine", refine, "at least 0")
    if calibrate is not None and bits is None and target_size is None:
        raise ArgumentError("calibrate", "inputs", "target_size or bits beside it")
    path = Path(out)
    container.check_output(path, overwrite=overwrite)
    started = time.perf_counter()
    checkpoint = open_checkpoint(source, key=key)
    if path.exists() and any(path.samefile(file) for file in checkpoint.files):
        raise ArgumentError("output", str(path), "another file than the source")
    wrapped = EXTERNAL
    if arch is not None:
        wrapped = _wrapped(arch, checkpoint.prefix)
        checkpoint = _completed(checkpoint, wrapped)
    raw = {entry.name: raw_bytes(entry) for entry in checkpoint.entries}
    aliases = {entry.name: entry.alias_of for entry in checkpoint.entries if entry.alias_of}
    n_raw = sum(n for name, n in raw.items() if name not in aliases)
    n_weights = sum(n_of(entry) for entry in checkpoint.entries if entry.name not in aliases)
    goal = goal_of(bits=bits, target_size=target_size, max_error=max_error, n_weights=n_weights)
    level = BEST_LEVEL if n_raw <= N_SMALL and goal is None else USUAL_LEVEL
    rivals = Rivals(checkpoint, aliases, level)
    n_done = 0

    def report_progress(entry: Entry) -> None:
        nonlocal n_done
        n_done = (n_done if n_done < sum(raw.values()) else 0) + raw[entry.name]
        if progress:
            progress(n_done, sum(raw.values()))

    texts = {**checkpoint.metadata, **(meta or {})}
    with contextlib.ExitStack() as stack:
        beside = stack.enter_context(container.atomic_output(path, overwrite=overwrite))

        def spool() -> BinaryIO:
            file: BinaryIO = stack.enter_context(tempfile.TemporaryFile(dir=path.parent))
            return file

        if goal is None:
            draft, lossy = _exact(checkpoint, spool(), rivals, report_progress), None
        else:
            if calibrate is None:
                search: Search | CalibratedSearch = Search(
                    checkpoint, goal, rivals, spool, report_progress, wrapped, texts
                )
            else:
                network = _network(checkpoint, model or source, arch and wrapped).float()
                calibration = Calibration(network, calibrate, refine, trained)
                search = CalibratedSearch(
                    checkpoint, goal, rivals, spool, report_progress, wrapped, texts, calibration=calibration
                )
            lossy = search.run()
            draft = lossy.draft
        with beside.open("xb") as file:
            described = draft.write(file, arch=wrapped, seed=0, meta=texts)
        n_bytes = beside.stat().st_size
    zstd_bytes, half_bytes, half_zstd_bytes = rivals.finish()
    return ConversionReport(
        source=checkpoint.source, output=str(path), key=checkpoint.key, prefix=checkpoint.prefix,
        ignored=checkpoint.ignored, aliases=aliases, n_weights=n_weights, raw_bytes=n_raw, n_bytes=n_bytes,
        zstd_bytes=zstd_bytes, zstd_level=level, half_bytes=half_bytes, half_zstd_bytes=half_zstd_bytes,
        bits_per_weight=bits_per_weight(n_bytes, n_weights), error=lossy.relative_error if lossy else 0.0,
        step=lossy.step if lossy else 0.0, moved=tuple(lossy.moved) if lossy else (),
        seconds=round(time.perf_counter() - started - rivals.seconds, 3), digest=described.digest,
        tensors=sizes(checkpoint, described, lossy.errors if lossy else {}),
    )  # fmt: skip


def model_of(source: Source, arch: Mapping[str, Any], *, key: str | None = None) -> nn.Module:
    """The architecture with the tensors of a checkpoint, before any conversion.

    Raises:
        CheckpointError: As for :func:`convert_checkpoint`.
        ArchitectureError: The checkpoint does not fit the architecture.
    """
    checkpoint = open_checkpoint(source, key=key)
    wrapped = _wrapped(arch, checkpoint.prefix)
    checkpoint = _completed(checkpoint, wrapped)
    model = architectures.build(wrapped)
    model.load_state_dict({entry.name: checkpoint.read(entry.name) for entry in checkpoint.entries})
    return model


def _network(checkpoint: Checkpoint, module: object, arch: Mapping[str, Any] | None) -> nn.Module:
    """A network of its own with the tensors of the checkpoint, under the names that these have there."""
    if arch is not None:
        network = architectures.build(arch)
    elif isinstance(module, nn.Module):
        network = copy.deepcopy(module).cpu()
        for name in reversed(checkpoint.prefix.rstrip(".").split(".") if checkpoint.prefix else []):
            if not any(key.startswith(f"{name}.") for key in network.state_dict()):
                network = nn.Sequential(OrderedDict({name: network}))
    else:
        raise ArgumentError("calibrate", "inputs", "arch or model beside it: a checkpoint does not say what to run")
    have, want = {entry.name for entry in checkpoint.entries}, network.state_dict()
    differences = [f"{name} is not in the checkpoint" for name in want if name not in have]
    differences += [f"{name} is not in the model" for name in have if name not in want]
    state = {entry.name: checkpoint.read(entry.name) for entry in checkpoint.entries if not differences}
    differences += [
        f"{name} is {list(tensor.shape)} in the checkpoint, {list(want[name].shape)} in the model"
        for name, tensor in state.items() if tensor.shape != want[name].shape
    ]  # fmt: skip
    if differences:
        raise ArchitectureError(tuple(sorted(differences)))
    network.load_state_dict(state)
    return network


def _exact(checkpoint: Checkpoint, spool: BinaryIO, rivals: Rivals, progress: Callable[[Entry], None]) -> Draft:
    draft = Draft(spool)
    for entry in checkpoint.entries:
        tensor = checkpoint.read(entry.name).cpu()
        rivals.take(entry, tensor)
        draft.add(entry.name, tensor)
        progress(entry)
    return draft


def _wrapped(arch: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The architecture inside of stacks that give its names the prefix of a wrapper."""
    layers = list(arch.get("layers", ()))
    for name in reversed(prefix.rstrip(".").split(".") if prefix else []):
        layers = [{"op": "stack", "name": name, "layers": layers}]
    return {**arch, "layers": layers}


def _completed(checkpoint: Checkpoint, arch: Mapping[str, Any]) -> Checkpoint:
    """The checkpoint with the counters that old batch norms lack; raises ArchitectureError if it does not fit then."""
    state = architectures.build(arch, "meta").state_dict()
    want = {name: (tuple(tensor.shape), NAME_OF_DTYPE[tensor.dtype]) for name, tensor in state.items()}
    got = {entry.name: (entry.shape, entry.dtype) for entry in checkpoint.entries}
    added = [name for name in want if name.endswith(COUNTER) and name not in got]
    differences = [f"{name} is not in the checkpoint" for name in want if name not in got and name not in added]
    differences += [f"{name} is not in the architecture" for name in got if name not in want]
    differences += [
        f"{name} is {got[name][1]} {list(got[name][0])} in the checkpoint, {shape[1]} {list(shape[0])} in the net"
        for name, shape in want.items() if name in got and got[name] != shape
    ]  # fmt: skip
    if differences:
        raise ArchitectureError(tuple(differences))

    def read(name: str) -> Tensor:
        return torch.tensor(0) if name in added else checkpoint.read(name)

    entries = (*checkpoint.entries, *(Entry(name, (), "I64") for name in added))
    return replace(checkpoint, entries=entries, read=read)
