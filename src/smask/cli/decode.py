"""``smask decode``: regenerate all tensors and write them as safetensors."""

from __future__ import annotations

import argparse
from typing import Any

from . import screen

EPILOG = """\
examples:
  smask decode mnist.smask -o mnist.safetensors
  smask decode mnist.smask -o mnist.safetensors --force --device cuda
"""


def add(commands: Any) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "decode", help="write the tensors of a file as .safetensors",
        description="Regenerates all tensors, checks their sha256 and writes them as safetensors.",
        epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    screen.add_reading(parser, device=True)
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="file to write")
    parser.add_argument("--force", action="store_true", help="overwrite an existing file")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Decodes, checks, writes."""
    from .. import container

    container.check_output(arguments.output, overwrite=arguments.force)

    from safetensors import SafetensorError
    from safetensors.torch import save_file

    from .. import codec, integrity, manifest
    from ..errors import IntegrityError, OutputError

    limits = screen.limits_of(arguments)
    data = codec.read(arguments.file)
    described = manifest.open_file(data, limits=limits).manifest
    tensors = codec.decode(data, device=screen.device_of(arguments), limits=limits)
    actual = integrity.digest(tensors)
    if actual != described.digest:
        raise IntegrityError("regenerated tensors", actual, described.digest)
    # transformers and others refuse a file that does not say which library its tensors are for.
    metadata = {"format": "pt", **described.meta, "smask_digest": actual}
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
    }
    rows = [
        ("output", arguments.output),
        ("tensors", screen.n(len(tensors))),
        ("bytes", screen.n(n_bytes)),
        ("sha256", f"{actual} (as written)"),
    ]
    screen.result(fields, rows, as_json=arguments.json)
    return 0
