"""``smask decode``: regenerate all tensors and write them as safetensors."""

from __future__ import annotations

import argparse
from typing import Any

from . import screen

EPILOG = """\
examples:
  smask decode mnist.smask -o mnist.safetensors
  smask decode mnist.smask -o mnist.safetensors --force --device cuda
  smask decode tuned.smask -o tuned.safetensors --base pretrained.safetensors
  smask decode many.smask -o b.safetensors --task b
  smask decode model.smask -o coarse.safetensors --max-bytes 60kB
  smask decode broken-download.smask -o coarse.safetensors --partial --json

--max-planes, --max-bytes and --partial give the coarser model that the beginning of a file holds. Its sha256 is in no
file, and that of the file cannot be checked: of damage only what breaks a zstd frame is seen.
"""

# Where a safetensors file has its text.
RESERVED = "__metadata__"


def add(commands: Any) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "decode", help="write the tensors of a file as .safetensors",
        description="Regenerates all tensors, checks their sha256 and writes them as safetensors.",
        epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    screen.add_reading(parser, device=True)
    screen.add_base(parser)
    screen.add_task(parser)
    screen.add_cut(parser)
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="file to write")
    parser.add_argument("--force", action="store_true", help="overwrite an existing file")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Decodes, checks, writes."""
    from .. import container

    container.check_output(arguments.output, overwrite=arguments.force)

    from safetensors import SafetensorError
    from safetensors.torch import save_file

    from .. import codec, groups, integrity, sources
    from ..errors import IntegrityError, OutputError
    from ..prefixes import Cut

    limits, cut = screen.limits_of(arguments), screen.cut_of(arguments)
    data = sources.read(arguments.file, cut["max_bytes"])
    described = sources.open_source(data, Cut(**cut), limits).manifest
    device, task = screen.device_of(arguments), arguments.task
    tensors = codec.decode(data, device=device, base=arguments.base, task=task, limits=limits, **cut)
    coverage = tensors.coverage
    actual, want = integrity.digest(tensors), groups.digest_of(described, task)
    if coverage.complete and not actual.startswith(want):
        raise IntegrityError("regenerated tensors", actual, want)
    if RESERVED in tensors:
        # A tensor may have that name, safetensors would write it, and nobody could read the file.
        raise OutputError(arguments.output, f"safetensors has no tensors called {RESERVED!r}, and the file has one")
    # transformers and others refuse a file that does not say which library its tensors are for.
    metadata = {"format": "pt", **groups.meta_of(described, task), "smask_digest": actual}
    with container.atomic_output(arguments.output, overwrite=arguments.force) as beside:
        try:
            save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, beside, metadata)
        except SafetensorError as error:  # its way to say that the disk is full
            raise OutputError(arguments.output, str(error)) from None
        n_bytes = beside.stat().st_size
    fields = {
        "file": arguments.file,
        "output": arguments.output,
        "n_tensors": len(tensors),
        "n_bytes": n_bytes,
        "digest": actual,
        "verified": coverage.complete,
        "coverage": coverage.as_dict(),
    }
    rows = [
        ("output", arguments.output),
        ("tensors", screen.n(len(tensors))),
        ("bytes", screen.n(n_bytes)),
        *screen.coverage_rows(coverage),
        ("sha256", f"{actual} ({'as written' if coverage.complete else 'not verified: a coarser model'})"),
    ]
    screen.result(fields, rows, as_json=arguments.json)
    return 0
