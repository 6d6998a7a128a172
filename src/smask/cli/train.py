"""``smask train``: train the weights of a ticket, or of a plain net, and write the file."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import data_options, image_changes, processes, screen, sparsity, training_job

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..search.tasks import Task
    from ..training.loop import Trained
    from ..training.sparse import Sparse

EPILOG = f"""\
examples:
  smask train digits-ticket.smask                       the ticket's weights, from where they begin
  smask train ticket.smask -o trained.smask --data mnist/
  smask train ticket.smask -o trained.smask --data mnist/ --target-size 40kB
  smask train -o dense.smask --data mnist/ --arch lenet-300-100    the same net without a mask
  smask train --data mnist/ --sparse rigl --density 0.02           sparse from the first step to the last
  torchrun --nproc-per-node 3 -m smask train --data mnist/ --sparse gap    each process grows a part of the layers

FILE is a ticket, as smask ticket writes it, or what smask encode has found. Weights that its masks keep are trained,
all others stay zero, and the result is stored to the bit: where the weights are as a plane, then their values. With
--target-size it is rounded, as by smask convert.

Without FILE a net is trained from weights of the seed, all of it or, with --sparse, a part that changes on the way:
  rigl    now and then the smallest weights go, and those come whose gradient is largest
  set     the smallest go, and others come by chance
  gap     parts of the layers are whole for a while in turn, then pruned; under torchrun all parts at the same time
  static  weights drawn once, for comparison

{data_options.KINDS}
"""


def add(commands: Any) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "train", help="train the weights of a ticket or of a plain net",
        description="Trains the weights that a ticket keeps, or without FILE all of a net that the seed begins.",
        epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("file", nargs="?", metavar="FILE", help="a ticket; without it a net is trained whole")
    training_job.add(parser)
    sparsity.add(parser)
    parser.add_argument("--target-size", metavar="SIZE", help="round the weights to a file of at most this size: 40kB")
    parser.add_argument("-o", "--output", metavar="OUT", help="file to write (default: name of FILE or data)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Trains, writes, reads back, scores what was read; of several processes the first writes and speaks."""
    if arguments.sparse is None:
        return _run(arguments, None)
    sparsity.check(arguments)
    with processes.joined(arguments.device, timeout=arguments.rank_timeout) as joined:
        alone = (
            {"quiet": True, "log": None, "tensorboard": None, "checkpoint": None, "resume": False}
            if joined.rank
            else {}
        )
        return _run(argparse.Namespace(**{**vars(arguments), **alone, "device": str(joined.device)}), joined)


def _run(arguments: argparse.Namespace, joined: processes.Processes | None) -> int:
    from .. import codec, container
    from ..conversion.goals import size_of
    from ..runs.folder import Checkpoints
    from ..search.statistics import restore
    from ..search.tasks import some_inputs

    if arguments.target_size is not None:
        size_of(arguments.target_size, name="--target-size")
    output = Path(arguments.output or f"{_stem(arguments)}-trained.smask")
    container.check_output(output, overwrite=arguments.force)
    training_job.check(arguments)
    sparsity.check(arguments)
    task, model, masks, name = _ticket(arguments) if arguments.file else _dense(arguments)
    task.check_fit(model)
    if arguments.file:
        restore(model, some_inputs(task))
    job = training_job.TrainingJob(arguments, task)
    checkpoints = None
    if arguments.checkpoint:
        checkpoints = Checkpoints(
            arguments.checkpoint, resume=arguments.resume, every=arguments.checkpoint_every, problem=job.problem
        )
    check_size(model, arguments)
    job.describe(name, model)
    fields: dict[str, Any] = {"arch": name}
    rows: list[tuple[str, str]] = []
    trained: Trained | Sparse
    if joined:
        trained = sparsity.trained(job, model, checkpoints, joined.group)
        if joined.rank:
            return 0
        fields |= sparsity.fields(arguments, trained) | {"ranks": joined.size}
        rows = sparsity.rows(trained, fields["zstd_bytes"])
    else:
        before = job.score(model)
        fields["untrained"] = screen.score_fields(before)
        rows = [("before", screen.score_rows(before)[0][1])]
        trained = job.train(model.cpu(), masks=masks, checkpoints=checkpoints)
    write(trained.model, output, arguments)
    # What is scored is what a user gets: the file, read back.
    scored = job.score(codec.load(output, device=job.device))
    n_pruned = sum(int((~mask).sum()) for mask in trained.masks.values())
    n_trained = sum(p.numel() for p in trained.model.parameters()) - n_pruned
    rows.append(("trained", f"{screen.n(n_trained)} parameters"))
    job.report(output, scored, fields | {"n_trained": n_trained}, rows)
    return 0


def check_size(model: nn.Module, arguments: argparse.Namespace) -> None:
    """Refuses a size that no file of the net has, before it is trained.

    Raises:
        ArgumentError: No size.
        TargetError: One below that of names and small parameters, as they are now.
    """
    from ..architectures import arch_of
    from ..conversion.converter import convert_checkpoint
    from ..conversion.goals import size_of
    from ..errors import TargetError

    if arguments.target_size is None:
        return
    n_bytes = size_of(arguments.target_size, name="--target-size")
    with tempfile.TemporaryDirectory() as folder:
        try:
            convert_checkpoint(model.cpu(), Path(folder) / "least.smask", target_size=1, arch=arch_of(model))
        except TargetError as error:
            if error.least > n_bytes:
                raise TargetError(n_bytes, error.least) from None


def write(model: nn.Module, output: Path, arguments: argparse.Namespace) -> None:
    """Writes trained weights: to the bit, or rounded to a size."""
    from .. import codec, container
    from ..conversion.converter import convert_checkpoint
    from ..recipe import recipe_of

    recipe = recipe_of(model)
    if arguments.target_size is None:
        container.write_atomic(output, codec.encode(model.state_dict(), recipe), overwrite=arguments.force)
    else:
        convert_checkpoint(
            model, output, target_size=arguments.target_size, arch=recipe.arch, meta=recipe.meta,
            overwrite=arguments.force,
        )  # fmt: skip


def _ticket(arguments: argparse.Namespace) -> tuple[Task, nn.Module, dict[str, Tensor], str]:
    """The data, the net of a file with its weights at the start, and its masks."""
    from .. import codec
    from ..errors import ArgumentError
    from ..masking import masks_of
    from ..recipe import recipe_of

    for option in ("arch", "base", "spread"):
        if getattr(arguments, option) is not None:
            raise ArgumentError(f"--{option}", getattr(arguments, option), "none beside FILE, which says it")
    model = codec.load(arguments.file)
    recipe = recipe_of(model)
    masks = masks_of(recipe.coded)
    task = data_options.task_of_file(arguments, recipe.arch, recipe.meta)
    return image_changes.changed(task, arguments), model, masks, str(arguments.file)


def _dense(arguments: argparse.Namespace) -> tuple[Task, nn.Module, dict[str, Tensor], str]:
    """The data, and a net with weights of the seed."""
    from ..training.initial import initial_model, origins_of
    from .encode_job import task_and_net

    task, net, name = task_and_net(arguments)
    origins = origins_of(net, base=arguments.base or "normal", spread=arguments.spread or "he")
    return task, initial_model(net, origins, seed=arguments.seed), {}, name


def _stem(arguments: argparse.Namespace) -> str:
    from .encode import stem_of

    return Path(arguments.file).stem if arguments.file else stem_of(arguments.data)
