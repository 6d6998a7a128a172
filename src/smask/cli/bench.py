"""``smask bench``: speed, memory and agreement of packed products beside their rivals."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ..errors import ArgumentError
from . import bars, screen

if TYPE_CHECKING:
    from ..bench import Table

EPILOG = """\
examples:
  smask bench                                          4096 x 4096, all batches, a few minutes
  smask bench --shape 1024x4096 --batch 1,8 --planes 2
  smask bench --kernels integer,tiled --activations float32 --json > bench.json

All ways of one shape and batch take turns in every round; "times faster" is the median over the rounds of a rival's
time over theirs. Packed products take activations of --activations; rivals those they are made for. On a CUDA device
times are those of calls in a CUDA graph that goes through more weights than its last cache holds; "launched" is a call
by itself, launched from Python.
"""


def add(commands: Any) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "bench", help="speed and memory of packed products",
        description="Measures products with packed weights against dense ones and torch's low-bit kernels.",
        epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument(
        "--shape",
        action="append",
        metavar="RxK",
        help="rows and columns of the weights; repeatable (default 4096x4096)",
    )
    parser.add_argument(
        "--batch", default="1,4,16,64,256,1024", metavar="N,N", help="rows of activations (default %(default)s)"
    )
    parser.add_argument(
        "--planes", type=int, default=1, metavar="P", help="planes of the magnitude, 1 to 7 (default %(default)s)"
    )
    parser.add_argument(
        "--activations", default="bfloat16", metavar="DTYPE", help="bfloat16, float16 or float32 (default %(default)s)"
    )
    parser.add_argument("--kernels", default="", metavar="K,K", help="only these kernels, and auto (default all)")
    parser.add_argument("--rounds", type=int, default=15, metavar="N", help="rounds (default %(default)s)")
    parser.add_argument("--json", action="store_true", help="result as one JSON object")
    screen.add_device(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Measures, reports."""
    shapes = [_shape(text) for text in arguments.shape or ["4096x4096"]]
    batches = [_number(text, "--batch") for text in arguments.batch.split(",")]
    names = [name for name in arguments.kernels.split(",") if name]
    from .. import measurement
    from ..bench import measure

    device = screen.device_of(arguments)
    tables: list[Table] = []
    with bars.stages(len(shapes) * len(batches)) as progress, bars.compiling():
        for table in measure(
            shapes, batches, planes=arguments.planes, dtype=arguments.activations, names=names,
            rounds=arguments.rounds, device=device, progress=lambda text: progress(text, len(tables)),
        ):  # fmt: skip
            tables.append(table)
            if not arguments.json:
                _show(table)
    if arguments.json:
        fields = {"machine": measurement.facts(), "device": str(device), "tables": [t.as_dict() for t in tables]}
        screen.result(fields, [], as_json=True)
    return 0


def _show(measured: Table) -> None:
    from rich.table import Table as Screen

    rivals = [row.name for row in measured.rows if row.error is None]
    short = [name.removeprefix("dense ") for name in rivals]
    title = (
        f"{measured.shape[0]} x {measured.shape[1]}, {measured.planes} plane{'s' * (measured.planes > 1)} and signs, "
        f"batch {measured.batch}, {measured.dtype}; auto is {measured.chosen}"
    )
    table = Screen(box=None, pad_edge=False, title=title, title_justify="left")
    table.add_column("")
    launched = measured.rows[0].launched_milliseconds is not None
    headings = ["ms", "best", *["launched"] * launched, *(f"x {name}" for name in short)]
    for heading in (*headings, "error", "MB held", "MB peak", "compiled in"):
        table.add_column(heading, justify="right")
    for row in measured.rows:
        table.add_row(
            row.name, f"{row.milliseconds:.3f}", f"{row.best_milliseconds:.3f}",
            *(f"{row.launched_milliseconds:.3f}" for _ in range(launched)),
            *(f"{row.times_faster[name]:.2f}" if name in row.times_faster else "" for name in rivals),
            "" if row.error is None else f"{row.error:.0e}", f"{row.weight_bytes / 1e6:.2f}",
            "" if row.peak_bytes is None else f"{row.peak_bytes / 1e6:.1f}",
            f"{row.compile_s:.1f} s" if row.compile_s else "",
        )  # fmt: skip
    screen.show(table)
    print()


def _shape(text: str) -> tuple[int, int]:
    rows, _, columns = text.partition("x")
    return _number(rows, "--shape"), _number(columns, "--shape")


def _number(text: str, option: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 8 and 1 <= int(text) <= 1 << 20):
        raise ArgumentError(option, text, "numbers from 1 to 1048576, such as 4096x4096 or 1,16")
    return int(text)
