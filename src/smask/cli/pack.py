"""``smask pack``: files of one model each as one file of several tasks."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from . import screen

EPILOG = """\
examples:
  smask pack a.smask b.smask -o many.smask                 tasks a and b
  smask pack run1/out.smask run2/out.smask --names night,day -o many.smask
  smask eval many.smask --task b --data b.npz
  smask unpack many.smask --task b -o b.smask

All files have one seed or base: what they share is stored once, so that a further task of the same layers costs its
masks and floats and some twenty bytes. One with others, such as a head for more classes, says what they are.
"""


def add(commands: Any) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "pack", help="put several files into one, a task each", epilog=EPILOG,
        description="Puts files of one seed or base into one file of several tasks.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("files", nargs="+", metavar="FILE", help=".smask files")
    parser.add_argument("--names", metavar="N,N,...", help="of the tasks (default: those of the files, without ending)")
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="file to write")
    parser.add_argument("--force", action="store_true", help="overwrite an existing file")
    parser.add_argument(
        "--max-weights", type=int, metavar="N", help="refuse files with more weights than this (default 2^30)"
    )
    parser.add_argument("--json", action="store_true", help="result as one JSON object")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Reads, packs, writes."""
    from .. import container, inspection, packs

    container.check_output(arguments.output, overwrite=arguments.force)
    files, limits = _named(arguments), screen.limits_of(arguments)
    data = packs.pack(files, limits=limits)
    sizes = [Path(source).stat().st_size for source in files.values()]
    # The limit is one of each file; what they make together is ours.
    report = inspection.inspect(data, limits=container.Limits(max_weights=2**62))
    container.write_atomic(arguments.output, data, overwrite=arguments.force)
    fields = {
        "output": arguments.output, "tasks": list(files), "n_bytes": len(data), "n_bytes_apart": sum(sizes),
        "n_plane_bytes": report.n_plane_bytes, "n_float_bytes": report.n_float_bytes,
        "n_overhead_bytes": report.n_overhead_bytes, "digest": report.digest,
        "own_layers": [task.name for task in report.tasks if task.arch is not None],
    }  # fmt: skip
    n, names, n_own = screen.n, list(files), len(fields["own_layers"])
    shown = ", ".join(names[: screen.N_SHOWN]) + (
        f" and {len(names) - screen.N_SHOWN} more" * (len(names) > screen.N_SHOWN)
    )
    rows = [
        ("output", arguments.output),
        ("tasks", f"{n(len(names))}: {shown}"),
        *([("layers of their own", f"{n(n_own)} of the tasks")] if n_own else []),
        ("bytes", f"{screen.byte_line(report)}"),
        ("apart", f"{n(sum(sizes))} bytes"),
        ("sha256", report.digest),
    ]
    screen.result(fields, rows, as_json=arguments.json)
    return 0


def _named(arguments: argparse.Namespace) -> dict[str, str]:
    """Files by the names of their tasks.

    Raises:
        ArgumentError: Other numbers of names and files, or a name twice.
    """
    from ..errors import ArgumentError

    names = arguments.names.split(",") if arguments.names is not None else [Path(f).stem for f in arguments.files]
    if len(names) != len(arguments.files):
        raise ArgumentError("--names", arguments.names, f"{len(arguments.files)} names, one for each file")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ArgumentError("task", twice, "another name for each file: --names A,B,...")
    return dict(zip(names, arguments.files, strict=True))
