"""What a person sees: results on stdout, narration on stderr; options that several commands have."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from ..errors import printable

if TYPE_CHECKING:
    from ..inspection import FileReport
    from ..prefixes import Coverage
    from ..search.accuracy import Score
    from ..search.text import TextScore

# Tensors named one by one where there may be thousands.
N_SHOWN = 12


def console(**options: Any) -> Console:
    """A console to which text is text: brackets and colons are of names, of files and of tensors."""
    return Console(highlight=False, markup=False, emoji=False, **options)


def say(text: str, *, quiet: bool = False) -> None:
    """One line of narration."""
    if not quiet:
        console(stderr=True).print(printable(text), soft_wrap=True)


def result(fields: dict[str, Any], rows: Sequence[tuple[str, str]], *, as_json: bool) -> None:
    """The result, as one JSON object or as rows of a table, whose cells may have several lines."""
    if as_json:
        print(json.dumps(fields, indent=1, default=str))
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*("\n".join(map(printable, cell.split("\n"))) for cell in row))
    show(table)


def show(table: Table) -> None:
    """A table on stdout, of printable text; wide enough for its words where stdout is no terminal."""
    screen = console()
    if not screen.is_terminal:
        screen = console(width=140)
    screen.print(table)


def score_fields(scored: Score | TextScore) -> dict[str, Any]:
    """What a score is called in JSON; the number of inputs is the caller's."""
    return {name: value for name, value in asdict(scored).items() if name != "n_inputs"}


def score_rows(scored: Score | TextScore) -> list[tuple[str, str]]:
    """The same for a table."""
    from ..search.accuracy import LabelScore, Score

    if isinstance(scored, LabelScore):
        whole = f"{scored.accuracy:.2%} of {n(scored.n_inputs)} held-out inputs with all labels right"
        return [("accuracy", f"{whole}, {scored.label_accuracy:.2%} of labels, loss {scored.loss:.4f}")]
    if isinstance(scored, Score):
        return [("accuracy", f"{scored.accuracy:.2%} of {n(scored.n_inputs)} held-out inputs, loss {scored.loss:.4f}")]
    part = f"of {n(scored.n_text_bytes)} held-out bytes"
    return [("prediction", f"{scored.bits_per_byte:.4f} bits per byte {part}, {scored.loss:.4f} nats a token")]


def file_fields(report: FileReport) -> dict[str, Any]:
    """What a file that was just written is called in JSON."""
    names = ("n_bytes", "n_plane_bytes", "n_float_bytes", "n_overhead_bytes", "n_weights", "n_kept", "entropy_bytes",
             "bits_per_weight", "fp32_bytes", "digest")  # fmt: skip
    fields = {name: getattr(report, name) for name in names}
    return fields | {"ratio_to_fp32": round(report.fp32_bytes / report.n_bytes, 2)}


def file_rows(report: FileReport) -> list[tuple[str, str]]:
    """The same for a table."""
    entropy = 8 * report.entropy_bytes / max(1, report.n_weights)
    return [
        ("bytes", byte_line(report)),
        ("weights", f"{n(report.n_weights)}, kept {n(report.n_kept)} ({report.n_kept / max(1, report.n_weights):.2%})"),
        ("bits a weight", f"{report.bits_per_weight:.4f}, entropy bound {entropy:.4f}"),
        ("against fp32", f"{n(report.fp32_bytes)} bytes, {report.fp32_bytes / report.n_bytes:.1f} times as large"),
    ]  # fmt: skip


def byte_line(report: FileReport) -> str:
    """Bytes of a file and where they go."""
    parts = f"planes {n(report.n_plane_bytes)}, floats {n(report.n_float_bytes)}, overhead {n(report.n_overhead_bytes)}"
    return f"{n(report.n_bytes)} bytes: {parts}"


def n(count: float) -> str:
    """A number with thousands separators."""
    return f"{count:,.0f}"


def add_reading(parser: argparse.ArgumentParser, *, device: bool) -> None:
    """Options of every command that reads a file."""
    parser.add_argument("file", help="a .smask file")
    parser.add_argument(
        "--max-weights", type=int, metavar="N", help="refuse files with more weights than this (default 2^30)"
    )
    parser.add_argument("--json", action="store_true", help="result as one JSON object")
    if device:
        add_device(parser)


def add_base(parser: argparse.ArgumentParser) -> None:
    """The option that names the checkpoint that a file is over."""
    parser.add_argument(
        "--base", metavar="BASE", help="checkpoint or .smask file that the file is over, where it is over one"
    )


def add_task(parser: argparse.ArgumentParser) -> None:
    """The option that names one of the tasks of a file."""
    parser.add_argument("--task", metavar="NAME", help="which task, of a file that holds several")


def add_cut(parser: argparse.ArgumentParser) -> None:
    """Options for the coarser model that the beginning of a file holds."""
    option = parser.add_argument
    option("--max-planes", type=int, metavar="K", help="use only K planes, from the highest: a coarser model")
    option("--max-bytes", metavar="SIZE", help="look only at the first SIZE bytes (60kB, 1.5MB): a coarser model")
    option("--partial", action="store_true", help="take a file that ends early, a broken download, as a coarser model")


def cut_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """What these options say, as arguments of :func:`smask.decode`."""
    from ..conversion.goals import size_of

    max_bytes = None if arguments.max_bytes is None else size_of(arguments.max_bytes, name="max_bytes")
    return {"max_bytes": max_bytes, "max_planes": arguments.max_planes, "partial": arguments.partial}


def coverage_rows(coverage: Coverage) -> list[tuple[str, str]]:
    """What of a file was used, for a table; nothing where it was all."""
    if coverage.complete:
        return []
    rows = [
        ("used", f"{n(coverage.n_bytes)} of {n(coverage.n_file_bytes)} bytes"),
        ("planes", f"{coverage.n_planes} of {coverage.n_file_planes} in all tensors that have them"),
    ]
    cut = [tensor for tensor in coverage.tensors if tensor.n_present < tensor.n_total]
    shown = [f"{printable(t.name)} {t.n_present} of {t.n_total} {t.unit}" for t in cut[:N_SHOWN]]
    more = [f"and {len(cut) - N_SHOWN} more tensors (--json has all)"] if len(cut) > N_SHOWN else []
    return [*rows, ("coarser", "\n".join(shown + more))]


def add_device(parser: argparse.ArgumentParser) -> None:
    """The option that says where."""
    parser.add_argument(
        "--device", default="auto", help="auto (CUDA where there is one), cpu, cuda, cuda:1 (default %(default)s)"
    )


def meta_of(arguments: argparse.Namespace) -> dict[str, str]:
    """Free text of the options --meta."""
    from ..errors import ArgumentError

    meta = {}
    for pair in arguments.meta:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise ArgumentError("--meta", pair, "KEY=TEXT")
        meta[key] = text
    return meta


def numbers_of(arguments: argparse.Namespace, option: str) -> list[float] | None:
    """Numbers with commas between them, as an option gives them."""
    from ..errors import ArgumentError

    text = getattr(arguments, option)
    try:
        return None if text is None else [float(part) for part in text.split(",")]
    except ValueError:
        raise ArgumentError(f"--{option.replace('_', '-')}", text, "numbers with commas between them") from None


def limits_of(arguments: argparse.Namespace) -> Any:
    """Limits with what the user allowed."""
    from ..container import Limits

    return Limits() if arguments.max_weights is None else Limits(max_weights=arguments.max_weights)


def device_of(arguments: argparse.Namespace) -> Any:
    """The device asked for, checked."""
    import torch

    from ..sources import check_device

    name = arguments.device
    return check_device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
