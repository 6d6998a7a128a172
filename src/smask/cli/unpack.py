"""``smask unpack``: one task of several as a file of its own."""

from __future__ import annotations

import argparse
from typing import Any

from . import screen

EPILOG = """\
examples:
  smask unpack many.smask --task b -o b.smask
  smask unpack many.smask --task b -o b.smask --base pretrained.safetensors

The file is the one that was packed, to the byte where the same release of zstd wrote both.
"""


def add(commands: Any) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "unpack", help="take one task out of a file of several",
        description="Writes one task of several as a file of its own, and checks its sha256.",
        epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    screen.add_reading(parser, device=False)
    screen.add_base(parser)
    parser.add_argument("--task", required=True, metavar="NAME", help="which task")
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="file to write")
    parser.add_argument("--force", action="store_true", help="overwrite an existing file")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Reads, checks, writes."""
    from .. import container

    container.check_output(arguments.output, overwrite=arguments.force)

    from ..tasks import Tasks

    data = Tasks(arguments.file, base=arguments.base, limits=screen.limits_of(arguments)).extract(arguments.task)
    container.write_atomic(arguments.output, data, overwrite=arguments.force)
    fields = {"file": arguments.file, "task": arguments.task, "output": arguments.output, "n_bytes": len(data)}
    rows = [("output", arguments.output), ("bytes", screen.n(len(data)))]
    screen.result(fields, rows, as_json=arguments.json)
    return 0
