"""``smask verify``: prove that this device regenerates what was written."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from . import screen

EPILOG = """\
examples:
  smask verify mnist.smask
  smask verify mnist.smask --device cuda
  smask verify many.smask --task b
  smask verify tuned.smask --base pretrained.safetensors

exit code 0: every tensor is bit-identical; 1: it is not; 3: the file is damaged.
"""


def add(commands: Any) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "verify", help="regenerate all tensors and compare their sha256",
        description="Regenerates all tensors on a device and compares their sha256 with the one in the file.",
        epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    screen.add_reading(parser, device=True)
    screen.add_base(parser)
    screen.add_task(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Verifies and answers."""
    from .. import verification

    outcome = verification.verify(
        arguments.file, device=screen.device_of(arguments), base=arguments.base, task=arguments.task,
        limits=screen.limits_of(arguments),
    )  # fmt: skip
    answer = "yes, every tensor is bit-identical" if outcome.same else "NO, this device gives other tensors"
    if outcome.differing:
        answer += f": tasks {', '.join(outcome.differing)}"
    rows = [
        ("same", answer),
        ("regenerated", outcome.digest),
        ("in the file", outcome.expected),
        ("device", f"{outcome.device}, generator on {outcome.generator}"),
    ]
    screen.result({"file": arguments.file, **asdict(outcome)}, rows, as_json=arguments.json)
    return 0 if outcome.same else 1
