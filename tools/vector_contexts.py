"""Vectors of range coding, its contexts, and trellises, from the reference implementations; tools/vectors.py writes them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from smask import contexts, rangecoding, signs, trellis
from smask.coded import CodedTensor
from smask.rangecoding import Chances, Model

SHAPES = ((40, 6), (20, 3, 5), (18, 4, 3, 3), (5, 1), (70,), (3, 2, 2, 2, 2), (1, 50))


def fixed(chances: Chances) -> Model:
    """A model that knows all chances beforehand."""
    yield chances


def packed(bits: np.ndarray) -> str:
    return np.packbits(bits.astype(bool).reshape(-1), bitorder="little").tobytes().hex()


def rangecoding_vectors() -> dict[str, Any]:
    random = np.random.default_rng(21)
    accept = []
    for n, low, high in (
        (0, 1, 2),
        (1, 32768, 32769),
        (40, 1, 65536),
        (200, 60000, 65536),
        (300, 1, 300),
        (64, 65535, 65536),
    ):
        chances = random.integers(low, high, n)
        # Also what is unlikely: carries then run through many words.
        for bits in (random.random(n) < chances / 65536, random.random(n) < 0.5, np.arange(n) % 3 > 0):
            blob = rangecoding.encode_reference(bits, chances)
            accept.append({"chances": chances.tolist(), "bits": packed(bits), "blob": blob.hex()})
    half = [32768] * 40
    reject = [
        (half, bytes(7), "E-01"), (half, b"\xff" * 8, "E-03"), (half, bytes(16), "E-04"),
        ([], bytes(4), "E-04"), ([32768], bytes([0, 0, 0, 16]), "E-04"),
    ]  # fmt: skip
    rows = [{"chances": chances, "blob": blob.hex(), "clause": clause} for chances, blob, clause in reject]
    return {"accept": accept, "reject": rows}


def context_cases() -> Iterator[tuple[str, np.ndarray, np.ndarray | None, np.ndarray]]:
    """Kind, signed magnitudes above, new weights, bits."""
    random = np.random.default_rng(22)
    for shape in SHAPES:
        full = (*shape, 1, 1)[: max(2, len(shape))]
        for most in (0, 3, 9000):
            above = np.minimum(random.geometric(0.3, full) - 1, most) * (most // 30 + 1 if most else 0)
            signed = np.where(random.random(full) < 0.4, -above, above)
            new = (above == 0) & (random.random(full) < 0.6)
            yield "significance", signed, None, random.random(int((above == 0).sum())) < 0.3
            yield "flip", signed, new, random.random(int(new.sum())) < 0.4
            if most:
                yield "refinement", signed, None, random.random(int((above > 0).sum())) < 0.45
    # Densities at both ends, rows that lean far to one side, and refinements that differ by magnitude.
    yield "significance", np.zeros((90, 20), np.int64), None, np.zeros(1800, bool)
    yield "significance", np.zeros((90, 20), np.int64), None, np.ones(1800, bool)
    above = np.where(np.arange(90)[:, None] % 3, -1, 0) * np.ones((1, 80), np.int64)
    yield "flip", above, above == 0, random.random(30 * 80) < 0.9
    above = random.integers(1, 7, (60, 20))
    yield "refinement", above, None, random.random(above.size) < np.where(above > 3, 0.9, 0.2).reshape(-1)


def contexts_vectors() -> list[dict[str, Any]]:
    rows = []
    for kind, above, new, bits in context_cases():
        flat, head = np.abs(above).reshape(*above.shape[:2], -1), b""
        if new is not None:
            model = signs.signs_reference(above, new)
        else:
            head = bytes([contexts.byte_of(int(bits.sum()), len(bits))])
            reference = contexts.significance_reference if kind == "significance" else contexts.refinement_reference
            model = reference(flat, head[0])
        rows.append({
            "kind": kind, "shape": list(above.shape), "above": above.reshape(-1).tolist(),
            "new": None if new is None else packed(new), "n_bits": len(bits), "bits": packed(bits),
            "blob": (head + rangecoding.encode_reference(bits, rangecoding.driven(model, bits))).hex(),
        })  # fmt: skip
    return rows


def trellis_vectors() -> list[dict[str, Any]]:
    random, rows = np.random.default_rng(23), []
    for n, n_planes in ((0, 1), (1, 1), (30, 2), (1024, 1), (2500, 3)):
        indices = random.geometric(0.4, n) - 1 & (1 << n_planes) - 1
        planes = [np.frombuffer(bytes.fromhex(packed(indices >> p & 1)), np.uint8) for p in reversed(range(n_planes))]
        rows.append({
            "n_weights": n, "indices": [plane.tobytes().hex() for plane in planes],
            "magnitudes": [plane.tobytes().hex() for plane in trellis.magnitudes(planes, n)],
        })  # fmt: skip
    return rows


def trained_like(shape: tuple[int, ...], n_planes: int, seed: int, *, on_trellis: bool = False) -> CodedTensor:
    """Levels over the base ``one`` as those of trained weights: rows and columns of their own sizes, smooth windows."""
    random, n = np.random.default_rng(seed), int(np.prod(shape))
    sizes = [
        np.exp(random.normal(0, 0.7, [length if d == axis else 1 for d, length in enumerate(shape)])) for axis in (0, 1)
    ]
    weights = random.normal(0, 1, shape) * sizes[0] * sizes[1]
    for axis in range(2, len(shape)):
        weights = weights + np.roll(weights, 1, axis)
    levels = np.minimum(np.abs(weights) * 1.2, (1 << n_planes) - 1).astype(np.int64).reshape(-1)
    rows = [np.frombuffer(bytes.fromhex(packed(levels >> p & 1)), np.uint8) for p in reversed(range(n_planes))]
    if on_trellis:
        rows = trellis.magnitudes(rows, n)
    flip = np.frombuffer(bytes.fromhex(packed((weights.reshape(-1) < 0) & (levels > 0))), np.uint8)
    return CodedTensor(
        shape, 0, tuple(torch.from_numpy(row.copy()) for row in rows), torch.tensor([0.125]), "one",
        flip=torch.from_numpy(flip.copy()), offset=torch.tensor([0.0625]), trellis=on_trellis,
    )  # fmt: skip


def trained_tensors() -> dict[str, CodedTensor]:
    """Tensors of a file with all of this."""
    return {
        "conv": trained_like((20, 6, 3, 3), 3, 31), "long": trained_like((24, 5, 7), 2, 32),
        "matrix": trained_like((60, 50), 4, 33), "indices": trained_like((80, 40), 3, 34, on_trellis=True),
    }  # fmt: skip


def silent_tensors() -> dict[str, CodedTensor]:
    """The like with scales of channels, some of them zero, and a trellis, whose silent channels have bits."""
    silenced = {}
    for seed, (name, one) in enumerate(trained_tensors().items(), 41):
        scale = torch.rand(one.shape[0], generator=torch.Generator().manual_seed(seed)).bfloat16().float()
        scale[seed % 3 :: 3] = 0.0
        silenced[name] = replace(one, scale=scale, offset=one.offset if seed % 2 else None)
    none = replace(trained_like((7, 9), 2, 45), scale=torch.zeros(7), flip=None, offset=None, base="signed")
    return silenced | {"none": none}
