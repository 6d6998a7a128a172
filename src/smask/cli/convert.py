"""``smask convert``: a trained checkpoint as a file."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import printable
from . import bars, data_options, screen

if TYPE_CHECKING:
    from ..conversion.report import ConversionReport

# From this error on little is left of a tensor.
MOSTLY = 0.9

EPILOG = """\
examples:
  smask convert model.safetensors -o model.smask --lossless
  smask convert model.safetensors -o model.smask --target-size 1.5MB
  smask convert model.safetensors -o model.smask --max-error 0.05 --json
  smask convert resnet20.th -o resnet20.smask --bits 3 --arch resnet20 --mean 0.485,0.456,0.406 \\
      --std 0.229,0.224,0.225 --eval cifar10.npz
  smask convert resnet20.th -o small.smask --target-size 40kB --arch resnet20 --mean 0.485,0.456,0.406 \\
      --std 0.229,0.224,0.225 --calibrate cifar10.npz --refine 40
  smask convert photos.pt -o photos.smask --bits 3 --arch conv4.json --calibrate photos/ --eval photos/
  smask convert gpt.pt -o gpt.smask --bits 2 --arch gpt:4x128x4 --calibrate book.txt --tokens bytes
  smask convert checkpoint.pt -o model.smask --lossless --key model_ema
  smask convert large.safetensors -o smallest.smask --bits 3 --range-coding
  smask convert tuned.pt -o tuned.smask --base pretrained.safetensors --lossless
  smask convert tuned.pt -o tuned.smask --base pretrained.safetensors --max-error 0.005
  smask convert tuned.pt -o tuned.smask --base pretrained.pt --target-size 20kB --arch resnet20 --calibrate mine.npz
  smask convert folder/of/a/hugging-face-model -o model.smask --lossless --json
  smask decode model.smask -o model.safetensors      tensors for other software

reads .safetensors, a *.index.json with its shards, a folder with either, and what torch.save wrote (.pt, .pth, .th,
.bin), which is loaded with weights_only=True and never otherwise.

With --calibrate every layer is rounded for the inputs that it sees, and statistics of batch norms follow; --refine then
trains the weights under their own rounding to give the outputs of the original, for a few minutes. Labels are not used.

With --fold-norms, and by default with --calibrate, weights and biases of batch norms make up for their statistics,
which are 0 and 1 then: 4 % fewer bytes at 30 kB of a ResNet-20, 2 % at 72 kB. Before it trains such a net on,
"smask train" measures them again.

With --base a tensor becomes a mask of that of the same name and shape there, a difference from it, or nothing at all;
one that is not there, or is farther from it than from zero, is stored as without. The error stays that over the length
of the weights, not of the difference.
"""


def add(commands: Any) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "convert", help="store a trained checkpoint",
        description="Stores a trained checkpoint, to the bit (zeros become a plane) or as signed levels of one step, "
        "which a size, bits a weight or an error asks for (of two steps where one gives no such size).",
        epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    option = parser.add_argument
    option("source", metavar="IN", help="checkpoint, index of shards, or folder")
    option("-o", "--output", required=True, metavar="OUT", help="file to write")
    goal = parser.add_mutually_exclusive_group(required=True)
    goal.add_argument("--lossless", action="store_true", help="keep every bit")
    goal.add_argument("--bits", type=float, metavar="X", help="at most X bits a weight, whole file over all tensors")
    goal.add_argument("--target-size", metavar="SIZE", help="at most so large a file, and at most 1 %% smaller: 60kB")
    goal.add_argument(
        "--max-error", type=float, metavar="E", help="length of the difference at most E times that of the weights"
    )
    option("--base", metavar="BASE", help="store over this checkpoint or .smask file, which decoding then needs")
    option("--calibrate", metavar="DATA", help="with --arch: round for what the net does on the training part of DATA")
    option("--samples", type=int, default=2000, metavar="N", help="inputs taken of it, labels unseen (default 2000)")
    option("--refine", type=int, default=0, metavar="EPOCHS", help="passes over them that train weights as rounded")
    option("--arch", metavar="A", help="a named net or JSON file, so that smask can load and run the file")
    option("--mean", metavar="M,M,M", help="with --arch: what is subtracted from each channel of an input")
    option("--std", metavar="S,S,S", help="with --arch: what it is then divided by")
    option("--eval", metavar="DATA", help="with --arch: accuracy before and after, on the test part of DATA")
    data_options.add(parser)
    option(
        "--range-coding", action=argparse.BooleanOptionalAction,
        help="planes 3 to 6 %% smaller that decode more slowly (default: in models of up to 4 million weights)",
    )  # fmt: skip
    option(
        "--fold-norms", action=argparse.BooleanOptionalAction,
        help="with --arch: batch norms without statistics, for nets that only run (default: with --calibrate)",
    )  # fmt: skip
    option("--key", metavar="K", help="where a nested checkpoint has its tensors (default: found if there is no doubt)")
    option("--meta", action="append", default=[], metavar="KEY=TEXT", help="free text to keep; may be repeated")
    option("--force", action="store_true", help="overwrite an existing file")
    option("--json", action="store_true", help="result as one JSON object")
    option("-q", "--quiet", action="store_true", help="no narration and no progress bar")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Converts and reports."""
    from .. import container

    container.check_output(arguments.output, overwrite=arguments.force)
    meta = screen.meta_of(arguments)
    arch = _arch(arguments)
    scored = _scored_before(arguments, arch)

    from ..conversion.converter import convert_checkpoint

    calibrate = _inputs(arguments, arch)
    with bars.conversion_bar(quiet=arguments.quiet) as (progress, trained):
        report = convert_checkpoint(
            arguments.source, arguments.output, lossless=arguments.lossless or None, bits=arguments.bits,
            target_size=arguments.target_size, max_error=arguments.max_error, arch=arch, key=arguments.key, meta=meta,
            base=arguments.base, calibrate=calibrate, refine=arguments.refine,
            range_coding=arguments.range_coding, fold_norms=arguments.fold_norms, overwrite=arguments.force,
            progress=progress, trained=trained,
        )  # fmt: skip
    for line in _notes(report):
        screen.say(line, quiet=arguments.quiet)
    if arguments.eval:
        scored |= _scored_after(arguments, report, arch or {})
    if arguments.json:
        screen.result({**report.as_dict(), **scored}, [], as_json=True)
    else:
        _show(report, scored)
    return 0


def _arch(arguments: argparse.Namespace) -> dict[str, Any] | None:
    from .. import named_nets
    from ..errors import ArgumentError

    if arguments.arch is None:
        for option in ("mean", "std", "eval", "calibrate", "fold_norms"):
            if getattr(arguments, option) not in (None, False):
                raise ArgumentError(
                    f"--{option.replace('_', '-')}", getattr(arguments, option), "--arch beside it"
                )  # fmt: skip
        return None
    if (arguments.mean is None) != (arguments.std is None):
        raise ArgumentError("--mean and --std", "one of them", "both or none")
    mean, std = (screen.numbers_of(arguments, option) for option in ("mean", "std"))
    return named_nets.architecture(arguments.arch, mean=mean, std=std)


def _inputs(arguments: argparse.Namespace, arch: dict[str, Any] | None) -> Any:
    """Inputs for a calibration."""
    from ..errors import ArgumentError

    if arguments.calibrate is None or arch is None:
        return None
    if arguments.samples < 1:
        raise ArgumentError("--samples", arguments.samples, "at least 1")
    return data_options.inputs_of(arguments, arguments.calibrate, arch, arguments.samples)


def _scored_before(arguments: argparse.Namespace, arch: dict[str, Any] | None) -> dict[str, Any]:
    if arguments.eval is None or arch is None:
        return {}
    from ..conversion.networks import model_of
    from ..search.accuracy import score

    model = model_of(arguments.source, arch, key=arguments.key)
    scored = score(model, data_options.dataset_for(arguments, arguments.eval, arch))
    return {"data": arguments.eval, "n_test": scored.n_inputs, "accuracy_before": scored.accuracy}


def _scored_after(arguments: argparse.Namespace, report: ConversionReport, arch: dict[str, Any]) -> dict[str, Any]:
    from .. import codec
    from ..container import Limits
    from ..search.accuracy import score

    limits = Limits(max_weights=max(Limits().max_weights, sum(tensor.n_weights for tensor in report.tensors)))
    # What is scored is what a user gets: the file, read back.
    data = data_options.dataset_for(arguments, arguments.eval, arch)
    scored = score(codec.load(arguments.output, base=arguments.base, limits=limits), data)
    return {"accuracy_after": scored.accuracy}


def _notes(report: ConversionReport) -> Iterator[str]:
    from ..container import Limits

    if report.key:
        yield f"tensors found under {' / '.join(report.key)}"
    if report.prefix:
        yield f"all names begin with {report.prefix}; they are kept so"
    if report.ignored:
        yield f"not tensors of the model, left out: {_listed(report.ignored)}"
    lost = [tensor.name for tensor in report.tensors if tensor.error > MOSTLY and tensor.error > 2 * report.error]
    if lost:
        yield f"mostly lost beside larger weights, whose step they have: {_listed(lost)}; a larger file keeps them"
    n_elements = sum(tensor.n_weights for tensor in report.tensors)
    if n_elements > Limits().max_weights:
        yield f"commands that read the file need --max-weights {n_elements}"


def _listed(names: Sequence[str]) -> str:
    n_more = len(names) - 6
    return ", ".join(names[:6]) + (f" and {n_more} more" if n_more > 0 else "")


def _show(report: ConversionReport, scored: dict[str, Any]) -> None:
    from rich.table import Table

    n = screen.n
    table = Table(box=None, pad_edge=False)
    for heading in ("tensor", "shape", "dtype", "stored as", "raw bytes", "bytes", "bits a weight", "error"):
        left = heading in ("tensor", "shape", "dtype", "stored as")
        table.add_column(heading, justify="left" if left else "right")
    for tensor in report.tensors:
        table.add_row(
            printable(tensor.name), "x".join(map(str, tensor.shape)) or "scalar", tensor.dtype,
            printable(tensor.stored_as), n(tensor.raw_bytes), n(tensor.n_bytes), f"{tensor.bits_per_weight:.4f}",
            f"{tensor.error:.4f}" if tensor.error else "0",
        )  # fmt: skip
    screen.show(table)

    def against(n_bytes: int) -> str:
        return f"{n(n_bytes)} bytes, the file is {report.n_bytes / max(1, n_bytes):.4f} of that"

    rows = [
        ("", ""),
        ("file", f"{report.output}, {n(report.n_bytes)} bytes"),
        ("tensors", f"{n(len(report.tensors))}, {n(len(report.aliases))} of them tied to another"),
        ("bits a weight", f"{report.bits_per_weight:.4f} over {n(report.n_weights)} weights, whole file"),
        ("raw", against(report.raw_bytes)),
        (f"raw, zstd -{report.zstd_level}", against(report.zstd_bytes)),
        ("floats as F16", against(report.half_bytes)),
        (f"these, zstd -{report.zstd_level}", against(report.half_zstd_bytes)),
        ("time", f"{report.seconds:.2f} s"),
        ("tensors sha256", report.digest),
    ]
    if report.step:
        moved = f", statistics of {n(len(report.moved))} batch norms moved with their layers" if report.moved else ""
        moved += f", {n(len(report.folded))} batch norms folded" if report.folded else ""
        rows.insert(4, ("error", f"{report.error:.4f} of the weights' length, step {report.step:.4g}{moved}"))
    if report.base_digest:
        rows.insert(2, ("base", f"{report.base or ''}, sha256 of its tensors {report.base_digest}"))
    if scored:
        before, after = scored["accuracy_before"], scored["accuracy_after"]
        rows.insert(2, ("accuracy", f"{after:.2%} of {n(scored['n_test'])} test inputs, {before:.2%} before"))
    screen.result({}, rows, as_json=False)
