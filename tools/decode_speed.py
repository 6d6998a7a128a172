"""Speed of regenerating and masking a large signed tensor, against rivals in the same run.

    python tools/decode_speed.py                  # 100 million weights, one scale a channel
    python tools/decode_speed.py --weights 400M

Rivals: filling fresh memory with a constant, copying a dense float32 tensor of that size that is already in memory
(the least a loader can do), torch.load of it from a file, and torch.randn by torch's own generator, which is not
reproducible across devices. Fresh memory is about half of the cost of anything that writes 400 MB, so that the same is
also timed into a tensor that is there already.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from smask.coded import CodedTensor
from smask.measurement import facts, interleaved, ratio
from smask.reconstruction import reconstruct


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="100M", help="number of weights, in millions (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    n = int(arguments.weights.removesuffix("M")) * 1_000_000
    rows = n // 10_000
    random = torch.Generator().manual_seed(0)
    mask = torch.randint(0, 256, (n // 8,), generator=random, dtype=torch.uint8)
    scales = {"one scale a channel": torch.rand(rows, generator=random) + 0.5, "one scale": torch.tensor([0.5])}
    device = torch.device(arguments.device)

    coded = {name: CodedTensor((rows, 10_000), 0, (mask,), scale) for name, scale in scales.items()}
    given = torch.zeros(rows, 10_000, device=device)

    def timed(work: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            work()
            if device.type == "cuda":
                torch.cuda.synchronize()

        return run

    with tempfile.TemporaryDirectory() as folder:
        dense, path = torch.randn(rows, 10_000), Path(folder) / "dense.pt"
        torch.save(dense, path)
        works = {
            "fill of fresh memory": timed(lambda: torch.empty(rows, 10_000, device=device).fill_(1.0)),
            "copy of a dense tensor": timed(lambda: dense.to(device, copy=True)),
        }
        for name, tensor in coded.items():
            works[name] = timed(partial(reconstruct, tensor, 1, device=device))
        works["copy into a given tensor"] = timed(lambda: given.copy_(dense))
        for name, tensor in coded.items():
            works[f"{name}, into a given tensor"] = timed(partial(reconstruct, tensor, 1, out=given))
        works["torch.load of a dense file"] = timed(lambda: torch.load(path, map_location=device))
        works["torch.randn"] = timed(lambda: torch.randn(rows, 10_000, device=device))
        seconds = interleaved(works, rounds=arguments.rounds)
    rivals = ("fill of fresh memory", "copy of a dense tensor", "torch.load of a dense file", "torch.randn")
    report = {
        "machine": facts(),
        "n_weights": n,
        "device": str(device),
        "giga_weights_per_s": {name: round(n / statistics.median(values) / 1e9, 3) for name, values in seconds.items()},
        "best_giga_weights_per_s": {name: round(n / min(values) / 1e9, 3) for name, values in seconds.items()},
        "time_over": {name: ratio(seconds, "one scale a channel", name) for name in rivals}
        | {
            "copy into a given tensor": ratio(
                seconds, "one scale a channel, into a given tensor", "copy into a given tensor"
            )
        },
    }
    print(json.dumps(report, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
