"""Coded bytes over the zero-order entropy, and the speed of coding, for i.i.d. bits and for the masks of files.

    python tools/codings_table.py                      # i.i.d. bits, densities 0.001 to 0.5
    python tools/codings_table.py mnist.smask          # the learned masks of a file as well
    python tools/codings_table.py --json

Speeds are megabytes of packed bits a second, on one thread. Beside the coding that the writer chooses stands the
rival that one would try first: zstd at level 19 over the packed bits, and the smallest of zlib, bz2 and lzma.
"""

from __future__ import annotations

import argparse
import bz2
import json
import lzma
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from smask import bitcoding, codec
from smask.bitcoding import Bits
from smask.frames import compress
from smask.measurement import facts
from smask.recipe import recipe_of

DENSITIES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)


def measured(bits: Bits, rounds: int = 3) -> dict[str, Any]:
    encode_seconds, decode_seconds = [], []
    for _ in range(rounds):
        start = time.perf_counter()
        coding, blob = bitcoding.encode(bits)
        middle = time.perf_counter()
        again = bitcoding.decode(blob, coding, n_bits=bits.n_bits, where="table")
        decode_seconds.append(time.perf_counter() - middle)
        encode_seconds.append(middle - start)
    if again.packed.tobytes() != bits.packed.tobytes():
        raise SystemExit("decoded bits differ")
    entropy = bitcoding.entropy_bytes(bits.n_ones, bits.n_bits) or 1.0
    raw = bits.packed[: 1 << 20].tobytes()
    sample = Bits(bits.packed[: 1 << 20], min(bits.n_bits, 8 << 20))
    sample_entropy = bitcoding.entropy_bytes(sample.n_ones, sample.n_bits) or 1.0
    rivals = min(len(packer(raw)) for packer in (lambda b: zlib.compress(b, 9), bz2.compress, lzma.compress))
    n_megabytes = len(bits.packed) / 1e6
    return {
        "n_bits": bits.n_bits,
        "density": round(bits.n_ones / bits.n_bits, 5),
        "coding": coding,
        "n_bytes": len(blob),
        "of_entropy": round(len(blob) / entropy, 4),
        "zstd19_packed_of_entropy": round(len(compress(raw, level=19)) / sample_entropy, 4),
        "best_of_zlib_bz2_lzma_of_entropy": round(rivals / sample_entropy, 4),
        "encode_mb_per_s": round(n_megabytes / min(encode_seconds), 1),
        "decode_mb_per_s": round(n_megabytes / min(decode_seconds), 1),
    }


def iid(n_bits: int) -> dict[str, dict[str, Any]]:
    random = np.random.default_rng(0)
    rows = {}
    for density in DENSITIES:
        ones = np.concatenate([random.random(1 << 20, np.float32) < density for _ in range(n_bits >> 20)])
        rows[f"i.i.d. {density}"] = measured(Bits(np.packbits(ones, bitorder="little"), len(ones)))
    return rows


def learned(path: str) -> dict[str, dict[str, Any]]:
    coded = recipe_of(codec.load(path)).coded
    rows = {
        f"{Path(path).name} {name}{f' plane {place}' * (len(tensor.planes) > 1)}": measured(
            Bits(plane.numpy(), tensor.n_weights)
        )
        for name, tensor in coded.items()
        for place, plane in enumerate(tensor.planes)
    }
    total = sum(row["n_bytes"] for row in rows.values())
    entropy = sum(row["n_bytes"] / row["of_entropy"] for row in rows.values())
    rows[f"{Path(path).name} all planes"] = {"n_bytes": total, "of_entropy": round(total / entropy, 4)}
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", help=".smask files whose learned masks are measured as well")
    parser.add_argument(
        "--megabits", type=int, default=64, help="size of the i.i.d. sections in 2^20 bits (default %(default)s)"
    )
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = iid(arguments.megabits << 20)
    for path in arguments.files:
        rows |= learned(path)
    if arguments.json:
        print(json.dumps({"machine": facts(), "rows": rows}, indent=1))
        return 0
    table = Table(
        "bits", "coding", "bytes", "of entropy", "zstd-19", "zlib/bz2/lzma", "encode MB/s", "decode MB/s", box=None
    )
    for name, row in rows.items():
        keys = (
            "coding",
            "n_bytes",
            "of_entropy",
            "zstd19_packed_of_entropy",
            "best_of_zlib_bz2_lzma_of_entropy",
            "encode_mb_per_s",
            "decode_mb_per_s",
        )
        table.add_row(name, *(str(row.get(key, "")) for key in keys))
    Console(width=140).print(table)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
