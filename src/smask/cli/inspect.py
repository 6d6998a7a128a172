"""``smask inspect``: what a file holds, without torch."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ..errors import printable
from . import screen

if TYPE_CHECKING:
    from ..inspection import TaskReport, TensorReport

EPILOG = """\
examples:
  smask inspect mnist.smask
  smask inspect mnist.smask --json | jq .bits_per_weight
  smask inspect many.smask --task b
"""


def add(commands: Any) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "inspect", help="show what a file holds", description="Shows tensors, densities, bytes and entropy of a file.",
        epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    screen.add_reading(parser, device=False)
    screen.add_task(parser)
    parser.set_defaults(run=run)


def _form(tensor: TensorReport) -> str:
    if tensor.same:
        return f"same as {tensor.same}"
    over = "" if tensor.of is None else "base" if tensor.of == tensor.name else f"base {tensor.of!r}"
    planes = f"{tensor.n_planes} plane{'s' * (tensor.n_planes > 1)}"
    if tensor.n_flipped is not None:
        planes += f", {tensor.n_flipped / max(1, tensor.n_kept or 0):.0%} flipped"
    if tensor.base == "file":
        return f"{over}, {planes}"
    if not tensor.n_planes:
        return f"float, {tensor.dtype}" + f" over {over}" * bool(over)
    return f"{tensor.base}, {planes}" + f", over {over}" * bool(over)


def _by_channel(tensor: TensorReport) -> str:
    if tensor.n_kept_of_channels is None:
        return ""
    size = max(1, tensor.n_weights // tensor.shape[0] if tensor.shape else 1)
    fewest, most = (f"{100 * n_kept / size:.2f}" for n_kept in tensor.n_kept_of_channels)
    return f"{fewest} to {most}%"


def _task_line(task: TaskReport) -> str:
    kept = f"{screen.n(task.n_plane_bytes)} bytes of planes, {task.n_kept / max(1, task.n_weights):.2%} kept"
    kept += ", layers of its own" if task.arch is not None else ""
    return f"{kept}, sha256 begins with {task.digest}" + "".join(f"; {key}: {text}" for key, text in task.meta.items())


def run(arguments: argparse.Namespace) -> int:
    """Reads and reports."""
    from rich.table import Table

    from ..inspection import inspect

    report = inspect(arguments.file, task=arguments.task, limits=screen.limits_of(arguments))
    if arguments.json:
        screen.result(report.as_dict(), [], as_json=True)
        return 0
    n = screen.n
    table = Table(box=None, pad_edge=False)
    if report.tasks:
        table.add_column("task")
    for heading in (
        "tensor",
        "shape",
        "coded as",
        "kept",
        "by channel",
        "bytes",
        "bits a weight",
        "entropy",
        "codings",
    ):
        table.add_column(heading, justify="left" if heading in ("tensor", "shape", "coded as", "codings") else "right")
    for tensor in report.tensors:
        coded = printable(_form(tensor))
        size = max(1, tensor.n_weights)
        numbers = (
            (
                f"{(tensor.n_kept or 0) / size:.2%}",
                _by_channel(tensor),
                n(tensor.n_bytes),
                f"{8 * tensor.n_bytes / size:.4f}",
                f"{8 * tensor.entropy_bytes / size:.4f}",
            )
            if tensor.n_planes
            else ("", "", "", "", "")
        )
        table.add_row(
            *([printable(tensor.task)] if tensor.task else []),
            printable(tensor.name),
            "x".join(map(str, tensor.shape)) or "scalar",
            coded,
            *numbers,
            " ".join(tensor.codings),
        )
    screen.show(table)
    ends = report.plane_ends
    n_empty = sum(tensor.n_empty_channels for tensor in report.tensors)
    n_channels = sum(tensor.shape[0] for tensor in report.tensors if tensor.n_planes and tensor.shape)
    rows = [
        ("", ""),
        ("file", screen.byte_line(report)),
        ("planes", f"{report.n_plane_bytes / (report.entropy_bytes or 1):.3f} of their zero-order entropy"),
        ("bits a weight", f"{report.bits_per_weight:.4f} over {n(report.n_weights)} coded weights"),
        *([("empty channels", f"{n(n_empty)} of {n(n_channels)} output channels keep no weight")] if n_empty else []),
        ("against fp32", f"{report.fp32_bytes / report.n_bytes:.1f} times smaller than {n(report.fp32_bytes)} bytes"),
        ("seed", "none" if report.seed is None else str(report.seed)),
        ("tensors sha256", report.digest),
        *([("over a base", f"sha256 of its tensors {report.base_digest}")] if report.base_digest else []),
        *([("prefixes", f"first 1 to {len(ends)} planes: {', '.join(map(n, ends))} bytes")] if len(ends) > 1 else []),
        *((f"meta {key}", text) for key, text in report.meta.items()),
        *((f"task {task.name}", _task_line(task)) for task in report.tasks if arguments.task in (None, task.name)),
    ]  # fmt: skip
    screen.result({}, [(printable(left), printable(right)) for left, right in rows], as_json=False)
    return 0
