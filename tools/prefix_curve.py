"""Accuracy of prefixes of one converted file, beside files converted separately to those sizes.

    python tools/prefix_curve.py ../shared/data/checkpoints/resnet20-12fca82f.th --arch resnet20 --data cifar10.npz \\
        --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225 --target-size 155kB --sizes 60kB,72kB,95kB,122kB

Prefixes end with each plane and at the sizes asked for. A separate file of a size that no conversion reaches has null.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import smask
from smask import named_nets
from smask.conversion.converter import convert_checkpoint
from smask.conversion.goals import size_of
from smask.conversion.networks import model_of
from smask.errors import TargetError
from smask.measurement import facts
from smask.search.accuracy import score
from smask.search.data import load_dataset


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--arch", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--mean")
    parser.add_argument("--std")
    parser.add_argument("--target-size", default="155kB")
    parser.add_argument("--sizes", default="", help="sizes of further prefixes, with commas between them")
    arguments = parser.parse_args()
    mean, std = (text and [float(part) for part in text.split(",")] for text in (arguments.mean, arguments.std))
    arch = named_nets.architecture(arguments.arch, mean=mean, std=std)
    data = load_dataset(arguments.data)
    before = score(model_of(arguments.checkpoint, arch), data).accuracy
    with tempfile.TemporaryDirectory() as folder:
        path, other = Path(folder) / "whole.smask", Path(folder) / "other.smask"
        convert_checkpoint(arguments.checkpoint, path, target_size=arguments.target_size, arch=arch)
        ends = smask.inspect(path).plane_ends
        sizes = {*ends[1:-1], *map(size_of, filter(None, arguments.sizes.split(","))), path.stat().st_size}
        rows: list[dict[str, Any]] = []
        for size in sorted(sizes):
            model = smask.load(path, max_bytes=size)
            coverage = model.smask_coverage
            row = {"prefix_bytes": size, "planes": coverage.n_planes, "accuracy": score(model, data).accuracy}
            smask.save(model, other)
            row["saved_bytes"] = other.stat().st_size
            try:
                report = convert_checkpoint(arguments.checkpoint, other, target_size=size, arch=arch, overwrite=True)
                row |= {"separate_bytes": report.n_bytes, "separate_accuracy": score(smask.load(other), data).accuracy}
            except TargetError:
                row |= {"separate_bytes": None, "separate_accuracy": None}
            rows.append(row)
            print(row, file=sys.stderr, flush=True)
    fields = {"checkpoint": arguments.checkpoint.name, "target_size": arguments.target_size, "accuracy_before": before}
    print(json.dumps({"machine": facts(), **fields, "plane_ends": ends, "prefixes": rows}, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
