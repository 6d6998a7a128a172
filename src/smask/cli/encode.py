"""``smask encode``: search a supermask and write the file."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from . import data_options, decoupled_options, float_options, image_changes, pretrained, processes, screen

EPILOG = f"""\
examples:
  smask encode                                     bundled digits, writes digits.smask
  smask encode --data mnist/ --arch lenet-300-100 -o mnist.smask
  smask encode --data cifar10.npz --arch conv6 --density 0.1 --epochs 50 --device cuda
  smask encode --data mnist/ --arch mlp:784-1200-1200-10 --density 0.01 --json
  smask encode --data mnist/ --target-size 4kB
  smask encode --data mnist/ --accuracy 97%
  smask encode --data mnist/ --teacher cnn.pt --teacher-arch mnist-cnn    learns from a trained network too
  smask encode --data cifar10.npz --arch resnet18 --start trained.pt --target-size 900kB    begins as a trained net
  smask encode --data fashion/ --base mnist.pt --arch lenet-300-100       masks of trained weights, a file for each task
  smask encode --data fashion/ --base mnist.smask --leave-out 2           the first layer stays as it is
  torchrun --nproc-per-node 4 -m smask encode --data cifar10.npz --arch conv6    one search on four devices
  smask encode --data mnist/ --checkpoint run/ --log run.jsonl            then, after a crash, the same with --resume
  smask encode --data mnist/ --tensorboard curves/                        then: tensorboard --logdir curves/
  smask encode --data photos/ --image-size 32 --arch conv4 --flip
  smask encode --data iris.csv --label species --arch mlp:4-32-3
  smask encode --task lm --data book.txt --arch gpt:4x128x4 --density 0.3
  smask encode --task lm --data book.txt --bits-per-byte 2.5      the smallest file that predicts as well as that
  smask encode --data mnist/ --decouple dni --dni-labels          layers learn from synthetic gradients
  torchrun --nproc-per-node 2 -m smask encode --data mnist/ --decouple dni      a block on each process, at once
  smask encode --data addition:12 --arch mlp:24-128-64-12 --density 0.5

{data_options.KINDS}
methods: auto, which is coats up to four masked layers, and with layer norms at up to 0.7 bits a weight (kept weights
have three levels; three bits a weight when run packed); in deeper nets with batch norms, above half a bit a weight or a
tenth kept, and with --start, signs (one level, and signs are searched too, for about a bit each; two bits when run
packed); else and over --base single (one level, signs of the seed; two bits, or one with signs made anew); threshold
(as single, chooses the density of every layer), and to compare with edge-popup, bernoulli, bernoulli-expected,
bernoulli-tutorial, biprop, signed, multicoat, rigl-mask, set-mask.
architectures: lenet-300-100, mlp:WIDTHS, mnist-cnn, conv2, conv4, conv6, conv8, resnet18[:WIDTH], resnet20, resnet32,
resnet44, resnet56, gpt:LAYERSxWIDTHxHEADS[xCONTEXT][-tied], or a .json file as in the specification, section 13.
"""


def add(commands: Any) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "encode", help="search a supermask and write a .smask file", epilog=EPILOG,
        description="Searches which weights of a frozen, seed-generated network to keep and writes the file.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    option = parser.add_argument
    option("--data", default="digits", metavar="D", help="training and test data (default %(default)s)")
    option("--task", default="classify", choices=("classify", "lm"), help="lm: predict text (default %(default)s)")
    option(
        "--arch", metavar="A",
        help="architecture (default mlp:64-128-10 for digits, gpt:4x128x4 for --task lm, else lenet-300-100)",
    )  # fmt: skip
    option("--method", default="auto", metavar="M", help="search method (default %(default)s); see below")
    option(
        "--density",
        type=float,
        metavar="X",
        help="kept weights over all weights (default 0.5 over a checkpoint, 0.08 for digits, 0.3 for lm, else 0.04)",
    )
    option("--target-size", metavar="SIZE", help="largest file of at most this size: 8kB; chooses the density")
    option(
        "--accuracy",
        metavar="A",
        help="smallest file that reaches it on a validation part: 0.97 or 97%%; several searches",
    )
    option("--bits-per-byte", type=float, metavar="B", help="the same of a text (--task lm): at most this many, 2.5")
    option("--keep-best", action="store_true", help="write the best file where a target is out of reach")
    option(
        "--density-rule", default="erk", metavar="R", help="how layers share it: erk or uniform (default %(default)s)"
    )
    option("--first-density", type=float, metavar="X", help="density of the first layer")
    option("--last-density", type=float, metavar="X", help="density of the last layer")
    option(
        "--epochs",
        type=int,
        metavar="N",
        help="passes over the data (default: about 18,000 steps, 10 to 300 epochs)",
    )
    option("--batch-size", type=int, metavar="B", help="inputs a step (default 128; 32 windows of a text)")
    option("--lr", type=float, default=1e-3, metavar="L", help="learning rate of Adam (default %(default)s)")
    option(
        "--label-smoothing",
        type=float,
        default=0.0,
        metavar="X",
        help="part of every target spread over all classes (default %(default)s)",
    )
    option("--seed", type=int, default=0, metavar="S", help="of the weights and of the search (default %(default)s)")
    option(
        "--base", default="signed", metavar="B",
        help="signed, uniform or normal numbers of the seed, or a checkpoint or .smask file (default %(default)s)",
    )  # fmt: skip
    float_options.add(option)
    option(
        "--meta", action="append", default=[], metavar="KEY=TEXT", help="free text to keep in the file; may be repeated"
    )
    option("--device", default="auto", help="auto (CUDA where there is one), cpu, cuda, cuda:1 (default %(default)s)")
    data_options.add(parser)
    image_changes.add(parser)
    add_teacher(parser.add_argument_group("teacher").add_argument)
    pretrained.add(parser.add_argument_group("with a trained checkpoint (--start, --base)").add_argument)
    processes.add(parser.add_argument_group("scale").add_argument)
    decoupled_options.add(parser.add_argument_group("decoupled search").add_argument)
    run_options = parser.add_argument_group("long runs").add_argument
    run_options("--checkpoint", metavar="DIR", help="keep the state of the search in DIR, to go on after a crash")
    run_options("--resume", action="store_true", help="go on from the last checkpoint in DIR, if there is one")
    run_options(
        "--checkpoint-every", type=float, default=60.0, metavar="S", help="seconds between two (default %(default).0f)"
    )
    run_options("--log", metavar="FILE", help="append progress to FILE, one JSON object a line")
    run_options("--tensorboard", metavar="DIR", help="curves of the search in DIR (pip install 'smask[tensorboard]')")
    run_options("--validation", type=float, metavar="X", help="part of the training data that only judges the search")
    run_options(
        "--patience", type=int, metavar="N",
        help="fix the masks early, N epochs after the last gain at the end density (in accuracy on the validation "
        "part, else in training loss)",
    )  # fmt: skip
    option("-o", "--output", metavar="OUT", help="file to write (default: name of the data with .smask)")
    option("--force", action="store_true", help="overwrite an existing file")
    option("--json", action="store_true", help="result as one JSON object")
    option("-q", "--quiet", action="store_true", help="no narration and no progress bar")
    parser.set_defaults(run=run)


def add_teacher(option: Any) -> None:
    """Options of a search that learns from a trained network."""
    option("--teacher", metavar="IN", help="also learn from the outputs of this network: a checkpoint or .smask file")
    option("--teacher-arch", metavar="A", help="its architecture (default: that of --arch; .smask files say theirs)")
    option("--teacher-mean", metavar="M,M,M", help="what it subtracts from each channel (default: nothing)")
    option("--teacher-std", metavar="S,S,S", help="what it then divides by; inputs are 0 to 1 before")
    option(
        "--teacher-weight", type=float, metavar="X",
        help="its part in the loss; at 1 labels are not used (default 0.5)",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Searches, writes, reads back, scores what was read; of several processes the first writes and speaks."""
    if not arguments.rank_timeout > 0:
        from ..errors import ArgumentError

        raise ArgumentError("--rank-timeout", arguments.rank_timeout, "seconds, more than 0")
    with processes.joined(arguments.device, timeout=arguments.rank_timeout) as joined:
        return _run(arguments, joined)


def _run(arguments: argparse.Namespace, joined: processes.Processes) -> int:
    from .. import container

    output = Path(arguments.output or f"{stem_of(arguments.data)}.smask")
    container.check_output(output, overwrite=arguments.force)
    _check(arguments)
    meta = screen.meta_of(arguments)

    from .. import codec, inspection
    from .encode_job import Job

    job = Job(arguments, meta, joined)
    started = time.perf_counter()
    data, found = job.run()
    if joined.rank:
        return 0
    searched = time.perf_counter()
    container.write_atomic(output, data, overwrite=arguments.force)
    # What is scored is what a user gets: the file, read back.
    scored = job.whole.score(codec.load(data, device=job.device, base=job.base), device=job.device)
    report = inspection.inspect(data)
    fields = {
        "file": str(output), "data": arguments.data, "task": arguments.task, "arch": job.name,
        **screen.score_fields(scored), "n_test": scored.n_inputs, "epochs": job.epochs, "seed": arguments.seed,
        "device": str(job.device), **screen.file_fields(report),
        "seconds_search": round(searched - started - job.seconds_encode, 3),
        "seconds_encode": round(job.seconds_encode, 3), "ranks": joined.size,
        "clamped": [tensor.name for tensor in report.tensors if tensor.base and tensor.n_kept == 1 < tensor.n_weights],
        **decoupled_options.fields(arguments, job.n_blocks), **found,
    }  # fmt: skip
    if job.log:
        job.log.event("result", **fields)
    n = screen.n
    rows = [
        ("file", str(output)),
        *screen.score_rows(scored),
        *screen.file_rows(report),
        ("time", f"search {searched - started:.1f} s, encode {job.seconds_encode:.2f} s"),
    ]  # fmt: skip
    if fields["clamped"]:
        rows.insert(
            4, ("one weight left", f"{_some(fields['clamped'])}: at this density nothing, if one were not kept")
        )
    if job.target_bytes and len(data) < 0.99 * job.target_bytes:
        rows.insert(
            4,
            (
                "target",
                f"{n(job.target_bytes)} bytes were asked for; more than half of the weights would bring nothing",
            ),
        )
    if "teacher" in found:
        right = f"{found['teacher_accuracy']:.2%} of some training inputs"
        rows.insert(2, ("teacher", f"{found['teacher']}, right on {right}"))
    if "new" in found:
        new = f"; seeded, since it has none: {_some(found['new'])}" if found["new"] else ""
        digest = f", sha256 of its tensors {job.base.digest}" if job.base else ""
        named = ("base", arguments.base) if job.base else ("began as", arguments.start)
        rows.insert(1, (named[0], f"{named[1]}{digest}{new}"))
    if "trials" in found:
        unit, form = ("bits per byte", ".4f") if arguments.task == "lm" else ("accuracy", ".2%")
        tried = (f"{n(trial['n_bytes'])} bytes {trial['validation']:{form}}" for trial in found["trials"])
        rows.insert(2, ("searches", f"validation {unit} of each: {', '.join(tried)}"))
    screen.result(fields, rows, as_json=arguments.json)
    return 0


def _some(names: list[str]) -> str:
    more = f" and {len(names) - screen.N_SHOWN} more" if len(names) > screen.N_SHOWN else ""
    return ", ".join(names[: screen.N_SHOWN]) + more


def stem_of(data: str) -> str:
    """Name of the data without folder and ending, or without the name of the collection."""
    collection, colon, name = data.partition(":")
    if colon and collection == "addition":
        return f"addition-{name}"
    return Path(name if colon and collection in ("openml", "hf") else data).resolve().stem


def _check(arguments: argparse.Namespace) -> None:
    """What needs no data is refused before any is read."""
    from ..errors import ArgumentError, UnsupportedError
    from ..runs import board
    from ..search.choice import AUTO
    from ..search.densities import RULES, check_density
    from ..search.methods import METHODS

    if arguments.task == "lm" and arguments.accuracy is not None:
        raise ArgumentError("--accuracy", arguments.accuracy, "--bits-per-byte B with --task lm")
    if arguments.task != "lm" and arguments.bits_per_byte is not None:
        raise ArgumentError("--bits-per-byte", arguments.bits_per_byte, "--task lm beside it, or --accuracy A")
    if arguments.task == "lm" and arguments.data == "digits":
        raise ArgumentError("--task lm", "no text", "--data FILE.txt beside it")
    names = ("density", "target_size", "accuracy", "bits_per_byte")
    goals = [name for name in names if getattr(arguments, name) is not None]
    if goals[1:] and goals not in (["density", "accuracy"], ["density", "bits_per_byte"]):
        raise ArgumentError(" and ".join(f"--{name.replace('_', '-')}" for name in goals), "both", "one of them")
    for option in ("density", "first_density", "last_density"):
        if getattr(arguments, option) is not None:
            check_density(f"--{option.replace('_', '-')}", getattr(arguments, option))
    for option, known in (
        ("method", (AUTO, *METHODS)),
        ("density_rule", RULES),
        ("scale", ("channel", "tensor")),
    ):
        if getattr(arguments, option) not in known:
            raise UnsupportedError(option.replace("_", " "), getattr(arguments, option), known)
    pretrained.check(arguments)
    decoupled_options.check(arguments)
    if arguments.tensorboard:
        board.check_installed(arguments.tensorboard)
    if arguments.resume and not arguments.checkpoint:
        raise ArgumentError("--resume", True, "it together with --checkpoint DIR")
    if not arguments.checkpoint_every >= 0:
        raise ArgumentError("--checkpoint-every", arguments.checkpoint_every, "seconds, 0 or more")
    if arguments.validation is not None and not 0 < arguments.validation < 1:
        raise ArgumentError("--validation", arguments.validation, "a part above 0 and below 1")
    if not 0 <= arguments.label_smoothing < 1:
        raise ArgumentError("--label-smoothing", arguments.label_smoothing, "a part from 0 to below 1")
    if arguments.teacher is None:
        for option in ("teacher_arch", "teacher_mean", "teacher_std", "teacher_weight"):
            if getattr(arguments, option) is not None:
                raise ArgumentError(f"--{option.replace('_', '-')}", getattr(arguments, option), "--teacher beside it")
    elif arguments.teacher_weight is not None and not 0 < arguments.teacher_weight <= 1:
        raise ArgumentError("--teacher-weight", arguments.teacher_weight, "a number above 0 and at most 1")
    for option, least in (
        ("epochs", 1),
        ("accumulate", 1),
        ("batch_size", 1),
        ("shift", 0),
        ("erase", 0),
        ("seed", 0),
        ("patience", 1),
        ("float_bits", 1),
    ):
        value = getattr(arguments, option)
        if value is not None and value < least:
            raise ArgumentError(f"--{option.replace('_', '-')}", value, f"{least} or more")
