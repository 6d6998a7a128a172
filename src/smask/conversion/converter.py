"""A trained checkpoint as a file: to the bit, or as small as a goal asks."""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from .. import container
from ..checkpoints import Checkpoint, Entry, Source, open_checkpoint
from ..draft import Draft
from ..errors import ArgumentError
from ..recipe import EXTERNAL, texts_of
from ..search.statistics import foldable
from ..sources import BaseSource, open_base
from .allocation import Search
from .calibration import CalibratedSearch, Calibration
from .goals import goal_of
from .networks import completed, network_of, wrapped_in
from .overlay import Overlay
from .report import ConversionReport, Rivals, bits_per_weight, n_of, raw_bytes, sizes

# The rival of the report works at its best level where that takes seconds, else at its usual one.
N_SMALL, BEST_LEVEL, USUAL_LEVEL = 1 << 23, 19, 3


def convert_checkpoint(
    source: Source,
    out: str | os.PathLike[str],
    *,
    lossless: bool | None = None,
    bits: float | None = None,
    target_size: str | int | None = None,
    max_error: float | None = None,
    base: BaseSource | None = None,
    calibrate: Tensor | None = None,
    refine: int = 0,
    model: nn.Module | None = None,
    arch: Mapping[str, Any] | None = None,
    range_coding: bool | None = None,
    fold_norms: bool | None = None,
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
        base: Checkpoint to store over, or a ``.smask`` file; decoding then needs it. A tensor becomes a mask of the one
            of the same name and shape, a difference, or nothing; where that does not pay it is stored as without.
        calibrate: Inputs [N, ...] as the network takes them, without labels; two thousand are plenty. Over a base,
            differences from it are rounded and trained; what is that of the base stays so.
        refine: Passes over these inputs in which weights are trained under their rounding.
        model: The network, where neither ``source`` is one nor ``arch`` says what it is; needed for ``calibrate`` and
            ``fold_norms``.
        arch: Architecture for :func:`smask.load`; counters of batch norms that an old checkpoint lacks are added as 0.
        range_coding: True for the smallest planes, which decode at 2 to 20 million weights a second; False for planes
            that decode at over a hundred million where the model is large; by default in models of up to four
            million weights, which take a second or so.
        fold_norms: Whether batch norms are stored without statistics, as one factor and one term a channel: the network
            gives what it would with them, in fewer bytes, but the decoded tensors of norms are others. Before such
            a network is trained on, its statistics are measured again, as ``smask train`` and ``--start`` do. By
            default where there are inputs.
        key: Name under which a nested checkpoint holds the wanted tensors.
        meta: Free text to keep, beside what the checkpoint carries.
        overwrite: Whether an existing file may be replaced.
        progress: Called after each tensor with the bytes done and those of all tensors; again for each pass.
        trained: Called after each step of ``refine`` with the steps done, those of all and the running loss.

    Raises:
        CheckpointError: The checkpoint is damaged, wants to run code, or holds something that cannot be kept.
        ArgumentError: The output, the goal or another argument is not usable.
        TargetError: No file of the checkpoint is so small.
        ArchitectureError: The checkpoint does not fit the architecture or the model, or the inputs do not.
        DivergedError: The loss of ``refine`` is no longer finite.
        OutputError: The system refused to write.
        OSError: The source cannot be read.
    """
    goals = {"bits": bits, "target_size": target_size, "max_error": max_error}
    if lossless is False and all(value is None for value in goals.values()):
        raise ArgumentError("lossless", lossless, f"True, or one of {', '.join(goals)}")
    if lossless and any(value is not None for value in goals.values()):
        raise ArgumentError("lossless", lossless, f"none of {', '.join(goals)} beside it")
    if calibrate is None and (refine or (model is not None and not fold_norms)):
        raise ArgumentError("refine" if refine else "model", refine or type(model).__name__, "calibrate beside it")
    fold_norms = calibrate is not None if fold_norms is None else fold_norms
    if fold_norms and calibrate is None and all(value is None for value in goals.values()):
        raise ArgumentError("fold_norms", True, f"one of {', '.join(goals)} beside it")
    if not isinstance(refine, int) or refine < 0:
        raise ArgumentError("refine", refine, "a whole number of passes, at least 0")
    if arch is not None and not isinstance(arch, Mapping):
        raise ArgumentError("arch", arch, "an architecture, such as named_nets.architecture gives for a name")
    if calibrate is not None and bits is None and target_size is None:
        raise ArgumentError("calibrate", "inputs", "target_size or bits beside it")
    texts = texts_of(meta)
    path = Path(out)
    container.check_output(path, overwrite=overwrite)
    started = time.perf_counter()
    checkpoint = open_checkpoint(source, key=key)
    if path.exists() and any(path.samefile(file) for file in checkpoint.files):
        raise ArgumentError("output", str(path), "another file than the source")
    if path.exists() and isinstance(base, str | os.PathLike) and path.samefile(base):
        raise ArgumentError("output", str(path), "another file than the base")
    overlay = None if base is None else Overlay(open_base(base), checkpoint.prefix)
    wrapped = EXTERNAL
    if arch is not None:
        wrapped = wrapped_in(arch, checkpoint.prefix)
        checkpoint = completed(checkpoint, wrapped)
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

    texts = {**checkpoint.metadata, **texts}
    with contextlib.ExitStack() as stack:
        # Whatever the caller does with gradients: training needs them.
        stack.enter_context(torch.inference_mode(mode=False))
        stack.enter_context(torch.enable_grad())
        beside = stack.enter_context(container.atomic_output(path, overwrite=overwrite))

        def spool() -> BinaryIO:
            file: BinaryIO = stack.enter_context(tempfile.TemporaryFile(dir=path.parent))
            return file

        if goal is None:
            draft, lossy = _exact(checkpoint, spool(), rivals, report_progress, overlay, range_coding), None
        else:
            network = None
            if calibrate is not None or fold_norms:
                wanted = "fold_norms" if calibrate is None else "calibrate"
                network = network_of(checkpoint, model or source, None if arch is None else wrapped, wanted=wanted)
            folds = foldable(network) if network is not None and fold_norms else {}
            if network is None or calibrate is None:
                search: Search | CalibratedSearch = Search(
                    checkpoint, goal, rivals, spool, report_progress, wrapped, texts, overlay,
                    ranged=range_coding, folds=folds,
                )  # fmt: skip
            else:
                calibration = Calibration(network.float(), calibrate, refine, trained)
                search = CalibratedSearch(
                    checkpoint, goal, rivals, spool, report_progress, wrapped, texts, calibration=calibration,
                    overlay=overlay, ranged=range_coding, folds=folds,
                )  # fmt: skip
            lossy = search.run()
            draft = lossy.draft
        with beside.open("xb") as file:
            digest = overlay.base.digest if overlay else None
            described = draft.write(file, arch=wrapped, seed=0, meta=texts, base_digest=digest)
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
        folded=tuple(lossy.folded) if lossy else (),
        base=overlay.base.source if overlay else None, base_digest=described.base_digest,
    )  # fmt: skip


def _exact(
    checkpoint: Checkpoint, spool: BinaryIO, rivals: Rivals, progress: Callable[[Entry], None],
    overlay: Overlay | None, ranged: bool | None,
) -> Draft:  # fmt: skip
    draft = Draft(spool, n_weights=sum(math.prod(entry.shape) for entry in checkpoint.entries), ranged=ranged)
    for entry in checkpoint.entries:
        tensor = checkpoint.read(entry.name).cpu()
        rivals.take(entry, tensor)
        draft.add(entry.name, tensor, overlay.over(entry.name, entry.shape, entry.dtype) if overlay else None)
        progress(entry)
    return draft
