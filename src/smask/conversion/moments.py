"""Batch-norm statistics of a rounded layer, from those of the layer that was trained: without data.

A batch norm after a layer remembers mean and variance of what the layer gave. Rounding moves both, and running them on
data again would tell how far. Without data: the mean is the sum of the weights of each input channel times the mean
of that channel, for every output; many equations for few unknowns, solved by ridge regression. The variance goes with
the energy of the weights under the inputs that :mod:`.rounding` assumes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ..checkpoints import Entry
from .rounding import COMMON

MEAN, VARIANCE = ".running_mean", ".running_var"
FLOATING = ("F16", "BF16", "F32", "F64")
# A ridge of this part of the mean eigenvalue: the common mean of all channels is taken where the equations say little.
RIDGE = 0.1
# Variances that a norm remembers go with the energies of the weights of its own layer; of another's they do not.
LEAST_CORRELATION = 0.3
# No variance is moved by more than this factor: a model of the inputs, not a measurement, says how far.
LARGEST_MOVE = 4.0
# More input channels than this would take seconds to solve for.
MOST_INPUTS = 2048


def norms_after(entries: Sequence[Entry]) -> dict[str, str]:
    """Names of weights, each with the name of the batch norm that follows its layer in the same block.

    That one is the next in the order of the checkpoint; where the order is that of the alphabet and says nothing,
    the one with the same number (``conv1``, ``bn1``), or the next number in a sequence (``0``, ``1``).
    """
    names = [entry.name for entry in entries]
    means = {name for name in names if name.endswith(MEAN)}
    channels = {entry.name.removesuffix(VARIANCE): entry.shape for entry in entries if entry.name.endswith(VARIANCE)}
    channels = {norm: shape for norm, shape in channels.items() if norm + MEAN in means}
    by_number: dict[tuple[str, str], list[str]] = {}
    for norm in channels:
        by_number.setdefault((_block(norm), _number(norm)), []).append(norm)
    alphabetic = names == sorted(names)
    found = {}
    following: list[str] = []
    for entry in reversed(entries):
        layer, dot, last = entry.name.rpartition(".")
        if entry.name.endswith(VARIANCE) and layer in channels:
            following = [layer]
        if len(entry.shape) < 2 or entry.dtype not in FLOATING:
            continue
        if dot and last == "weight" and entry.shape[1] <= MOST_INPUTS:
            numbered = by_number.get((_block(layer), _next_number(layer)), [])
            for norm in numbered if alphabetic else following:
                if channels[norm] == entry.shape[:1] and _block(norm) == _block(layer):
                    found[entry.name] = norm
        following = []
    n_layers = Counter(found.values())
    return {name: norm for name, norm in found.items() if n_layers[norm] == 1}


def _block(module: str) -> str:
    return module.rpartition(".")[0]


def _number(module: str) -> str:
    found = re.search(r"(\d*)$", module.rpartition(".")[2])
    assert found is not None
    return found[0]


def _next_number(layer: str) -> str:
    """The number of the norm after a layer: in a sequence the next one, else its own."""
    number = _number(layer)
    return str(int(number) + 1) if number and layer.rpartition(".")[2] == number else number


def moved(
    before: npt.NDArray[np.float32], after: npt.NDArray[np.float32], mean: npt.NDArray[np.float64],
    variance: npt.NDArray[np.float64], *, bias: npt.NDArray[np.float64] | float = 0.0,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]] | None:  # fmt: skip
    """Mean and variance [C] that a batch norm would remember after its layer was rounded.

    Args:
        before: Weights as trained, [C, I, K] with K weights of a window.
        after: The same, rounded.
        mean, variance: As remembered, [C].
        bias: Of the layer, which the mean contains.

    Returns:
        Both, or None where the statistics do not look like those of this layer.
    """
    energy = _energy(before)
    if not (variance > 0).all() or not (energy > 0).all() or not np.isfinite(mean).all():
        return None
    logs = np.log(variance) - np.log(variance).mean(), np.log(energy) - np.log(energy).mean()
    spread = _length(logs[0]) * _length(logs[1])
    if spread > 0 and float(logs[0] @ logs[1]) / spread < LEAST_CORRELATION:
        return None
    sums, change = before.sum(2, dtype=np.float64), (after - before).sum(2, dtype=np.float64)
    weight = 1 / np.sqrt(variance)
    sums_w, mean_w = sums * weight[:, None], (mean - bias) * weight
    common = sums_w.sum(1)
    level = float(common @ mean_w) / max(float(common @ common), 1e-30)
    if sums.shape[1] == 1:
        # One input channel a row, be it the same (one colour) or its own (a depth-wise convolution).
        ridge = RIDGE * float((sums_w**2).mean())
        inputs = level + sums_w * (mean_w[:, None] - sums_w * level) / np.maximum(sums_w**2 + ridge, 1e-30)
        shift = (change * inputs).sum(1)
    else:
        gram = sums_w.T @ sums_w
        gram += max(RIDGE * float(np.trace(gram)) / len(gram), 1e-30) * np.eye(len(gram))
        shift = change @ (level + np.linalg.solve(gram, sums_w.T @ (mean_w - common * level)))
    factor = np.clip(_energy(after) / energy, 1 / LARGEST_MOVE, LARGEST_MOVE)
    return mean + shift, variance * factor


def _length(values: npt.NDArray[np.float64]) -> float:
    return float(np.sqrt(values @ values))


def _energy(weights: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Energy [C] of the outputs over inputs of energy one, a part of it common to each window."""
    common = COMMON if weights.shape[2] > 1 else 0.0
    own = np.einsum("cik,cik->c", weights, weights, dtype=np.float64)
    together = weights.sum(2, dtype=np.float64)
    energy: npt.NDArray[np.float64] = (1 - common) * own + common * np.einsum("ci,ci->c", together, together)
    return energy
