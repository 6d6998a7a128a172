"""What coded planes of a lossy file cost beside their entropy, and what adaptive models of the levels would.

    python tools/context_bounds.py ../shared/data/checkpoints/resnet20-12fca82f.th --sizes 40kB,95kB

For every size: coded bytes of all sections, their zero-order entropy, and the bytes that ideal arithmetic coding would
take with an adaptive count (Krichevsky and Trofimov 1981) in each context of a model, flips included, in units of the
coded bytes. Levels are coded in unary: more than 0, more than 1 and so on. Contexts know only what was coded before:

    none      one count for each question
    row       mean level of the row so far (all earlier weights of the output channel)
    column    mean level of the input channel in earlier rows
    product   geometric mean of both
    window    mean level of the window so far
    all       a weighted mean of row, column, window and the same place of the neighbouring windows
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import gammaln

from smask import bitcoding, manifest, trellis
from smask.container import Limits
from smask.contents import contents_of
from smask.conversion.converter import convert_checkpoint
from smask.measurement import facts
from smask.records import bit_sections, n_byte_planes

EDGES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.1, 1.25, 1.5, 1.8, 2.2, 3)


def adaptive_bits(bits: np.ndarray, contexts: np.ndarray) -> float:
    """Bits that counts which begin at one half each, one pair a context, give to a sequence."""
    n = np.bincount(contexts)
    ones = np.bincount(contexts, weights=bits)
    nats = gammaln(n + 1) + 2 * gammaln(0.5) - gammaln(ones + 0.5) - gammaln(n - ones + 0.5)
    return float(nats.sum()) / math.log(2)


def contexts_of(levels: np.ndarray) -> dict[str, np.ndarray]:
    """Contexts [O, I, K] of levels [O, I, K], from what comes before in this order."""
    outputs, _, n_window = levels.shape
    mean = max(float(levels.mean()), 1e-6)
    flat = levels.reshape(outputs, -1)
    row = ((np.cumsum(flat, 1) - flat + 2 * mean) / (np.arange(flat.shape[1]) + 2)).reshape(levels.shape)
    columns = levels.sum(2)
    earlier = np.cumsum(columns, 0) - columns
    column = ((earlier + 2 * n_window * mean) / (n_window * (np.arange(outputs)[:, None] + 2)))[:, :, None]
    window = (np.cumsum(levels, 2) - levels + 1.5 * mean) / (np.arange(n_window) + 1.5)
    beside, above = np.zeros_like(levels), np.zeros_like(levels)
    beside[:, 1:], above[1:] = levels[:, :-1], levels[:-1]
    models = {
        "none": np.full(levels.shape, mean),
        "row": row,
        "column": np.broadcast_to(column, levels.shape),
        "product": np.sqrt(row * column),
        "window": window,
        "all": (row + column + 0.5 * window + 0.1 * (beside + above)) / 2.7,
    }
    return {name: np.searchsorted(EDGES, values / mean) for name, values in models.items()}


def measured(path: Path) -> dict[str, Any]:
    opened = manifest.open_file(path.read_bytes(), limits=Limits())
    records, contents = opened.manifest.tensors, contents_of(opened)
    coded = sum(blob.n_bytes for blob in opened.manifest.blobs[n_byte_planes(records) :])
    bits, zero_order = dict[str, float](), 0.0
    for tensor in contents.coded.values():
        levels, planes = np.zeros(tensor.n_weights), [plane.numpy() for plane in tensor.planes]
        for plane in trellis.indices(planes, tensor.n_weights) if tensor.trellis else planes:
            old = levels > 0
            ones = np.unpackbits(plane, count=tensor.n_weights, bitorder="little").astype(bool)
            for part in (old, ~old):
                zero_order += bitcoding.entropy_bytes(int(ones[part].sum()), int(part.sum()))
            levels = 2 * levels + ones
        n_flips = int((levels > 0).sum())
        zero_order += n_flips / 8
        shape = (tensor.shape[0], tensor.shape[1], -1) if len(tensor.shape) > 1 else (1, 1, -1)
        levels = levels.reshape(shape)
        for name, contexts in contexts_of(levels).items():
            bits[name] = bits.get(name, 0.0) + n_flips
            for level in range(int(levels.max())):
                asked = levels >= level
                bits[name] += adaptive_bits((levels > level)[asked], contexts[asked])
    return {
        "n_bytes": path.stat().st_size, "n_sections": len(bit_sections(records)), "coded_bytes": coded,
        "zero_order_bytes": round(zero_order), "coded_over_zero_order": round(coded / zero_order, 4),
        "adaptive_over_coded": {name: round(total / 8 / coded, 4) for name, total in bits.items()},
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--sizes", required=True, help="target sizes with commas between them")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for size in arguments.sizes.split(","):
            out = Path(folder) / "out.smask"
            convert_checkpoint(arguments.checkpoint, out, target_size=size, overwrite=True)
            rows.append({"target": size, **measured(out)})
    print(json.dumps({"machine": facts(), "checkpoint": arguments.checkpoint.name, "rows": rows}, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
