"""``smask eval``: accuracy and loss of a file on the test part of a dataset."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from . import bars, data_options, screen

EPILOG = f"""\
examples:
  smask eval digits.smask --data digits
  smask eval mnist.smask --data mnist/ --json
  smask eval mnist.smask --data mnist/ --packed
  smask eval tuned.smask --data mnist/ --base pretrained.pt
  smask eval resnet20.smask --data cifar10.npz --max-bytes 60kB
  smask eval photos.smask --data more-photos/ --test-part 1
  smask eval book.smask --data book.txt
  smask eval many.smask --task b --data b.npz

{data_options.KINDS}
"""


def add(commands: Any) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "eval", help="accuracy of a file on test data", description="Scores a file on the test part of a dataset.",
        epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    screen.add_reading(parser, device=True)
    screen.add_base(parser)
    screen.add_cut(parser)
    parser.add_argument("--data", default="digits", metavar="D", help="data with a test part (default %(default)s)")
    parser.add_argument(
        "--task", metavar="T",
        help="of a file of several tasks which; else classify or lm, where it is not what the file was searched for",
    )  # fmt: skip
    data_options.add(parser)
    parser.add_argument(
        "--packed", action="store_true", help="run on packed bits instead of dense weights (smask.load(packed=True))"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Loads, scores, reports."""
    from .. import codec, sources
    from ..errors import ArgumentError
    from ..prefixes import Cut
    from ..recipe import recipe_of
    from ..search.tasks import NAMES

    device = screen.device_of(arguments)
    packed, limits = arguments.packed, screen.limits_of(arguments)
    cut = screen.cut_of(arguments)
    data, name = sources.read(arguments.file, cut["max_bytes"]), arguments.task
    if sources.open_source(data, Cut(**cut), limits).manifest.tasks:
        arguments = argparse.Namespace(**{**vars(arguments), "task": None})
    elif name in (None, *NAMES):
        name = None
    else:
        raise ArgumentError("--task", name, f"{' or '.join(NAMES)}: the file holds one model")
    model = codec.load(data, device=device, packed=packed, base=arguments.base, task=name, limits=limits, **cut)
    coverage = getattr(model, codec.COVERAGE)
    recipe = recipe_of(model)
    task = data_options.task_of_file(arguments, recipe.arch, recipe.meta)
    with bars.compiling():
        scored = task.score(model, device=device)
    rows = [*screen.score_rows(scored), *screen.coverage_rows(coverage)]
    fields = {"file": arguments.file, "data": arguments.data, "device": str(device), "packed": packed, **asdict(scored)}
    fields |= {"task": name, "coverage": coverage.as_dict()}
    screen.result(fields, rows, as_json=arguments.json)
    return 0
