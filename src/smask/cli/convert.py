"""``smask convert``: a trained checkpoint as a file."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from . import screen

if TYPE_CHECKING:
    from ..conversion.lossless import ConversionReport

EPILOG = """\
examples:
  smask convert model.safetensors -o model.smask --lossless
  smask convert checkpoint.pt -o model.smask --lossless --key model_ema
  smask convert folder/of/a/hugging-face-model -o model.smask --lossless --json
  smask decode model.smask -o model.safetensors      the same tensors again, bit for bit

reads .safetensors, a *.index.json with its shards, a folder with either, and what torch.save wrote (.pt, .pth, .th,
.bin), which is loaded with weights_only=True and never otherwise.
"""


def add(commands: Any) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "convert", help="store a trained checkpoint",
        description="Stores a trained checkpoint. Pruned weights become a plane, all others are kept to the bit.",
        epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    option = parser.add_argument
    option("source", metavar="IN", help="checkpoint, index of shards, or folder")
    option("-o", "--output", required=True, metavar="OUT", help="file to write")
    option("--lossless", action="store_true", required=True, help="keep every bit (this release has no other way)")
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

    from ..conversion.lossless import convert_checkpoint

    with screen.byte_bar("convert", quiet=arguments.quiet) as progress:
        report = convert_checkpoint(
            arguments.source, arguments.output, lossless=arguments.lossless, key=arguments.key, meta=meta,
            overwrite=arguments.force, progress=progress,
        )  # fmt: skip
    for line in _notes(report):
        screen.say(screen.printable(line), quiet=arguments.quiet)
    if arguments.json:
        screen.result(report.as_dict(), [], as_json=True)
    else:
        _show(report)
    return 0


def _notes(report: ConversionReport) -> Iterator[str]:
    from ..container import Limits

    if report.key:
        yield f"tensors found under {' / '.join(report.key)}"
    if report.prefix:
        yield f"all names begin with {report.prefix}; they are kept so"
    if report.ignored:
        n_more = len(report.ignored) - 6
        shown = ", ".join(report.ignored[:6]) + (f" and {n_more} more" if n_more > 0 else "")
        yield f"not tensors of the model, left out: {shown}"
    n_elements = sum(tensor.n_weights for tensor in report.tensors)
    if n_elements > Limits().max_weights:
        yield f"commands that read the file need --max-weights {n_elements}"


def _show(report: ConversionReport) -> None:
    from rich.table import Table

    n, safe = screen.n, screen.safe
    table = Table(box=None, pad_edge=False)
    for heading in ("tensor", "shape", "dtype", "stored as", "raw bytes", "bytes", "bits a weight"):
        left = heading in ("tensor", "shape", "dtype", "stored as")
        table.add_column(heading, justify="left" if left else "right")
    for tensor in report.tensors:
        table.add_row(
            safe(tensor.name), "x".join(map(str, tensor.shape)) or "scalar", tensor.dtype, safe(tensor.stored_as),
            n(tensor.raw_bytes), n(tensor.n_bytes), f"{tensor.bits_per_weight:.4f}",
        )  # fmt: skip
    screen.show(table)

    def against(n_bytes: int) -> str:
        return f"{n(n_bytes)} bytes, the file is {report.n_bytes / max(1, n_bytes):.4f} of that"

    rows = [
        ("", ""),
        ("file", f"{safe(report.output)}, {n(report.n_bytes)} bytes"),
        ("tensors", f"{n(len(report.tensors))}, {n(len(report.aliases))} of them tied to another"),
        ("bits a weight", f"{report.bits_per_weight:.4f} over {n(report.n_weights)} weights, whole file"),
        ("raw", against(report.raw_bytes)),
        (f"raw, zstd -{report.zstd_level}", against(report.zstd_bytes)),
        ("time", f"{report.seconds:.2f} s"),
        ("tensors sha256", report.digest),
    ]
    screen.result({}, rows, as_json=False)
