"""What is remembered of a tensor that is to be rounded: a sample, its energy, its largest weight."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from . import paths
from .leveling import squared_length
from .rounding import Floats, Rule, Spectrum

# Below this a tensor's record, scale and sections cost more than its planes save.
N_LEAST = 256
# Weights of a tensor that the search looks at.
N_SAMPLE = 1 << 16
# Elements of a matrix that are looked at before all of them, for what is a mask.
N_LOOKED_AT = 1 << 10


@dataclass(frozen=True, eq=False)
class Scanned:
    """A tensor, as far as the search for a step knows it.

    Attributes:
        sample: Magnitudes of what is to be coded of it, each standing for ``share`` weights.
        n_weights, largest: Of all of them.
        n_window: Weights of a convolution window; 1 of a matrix.
        energy: Of the tensor.
    """

    sample: Spectrum
    share: float
    n_weights: int
    n_window: int
    largest: float
    energy: float

    @classmethod
    def of(cls, windows: Floats, energy: float | None) -> Scanned:
        """Takes the sample; the windows become magnitudes. Without ``energy`` theirs is that of the tensor."""
        n_window, magnitudes = windows.shape[1], windows.reshape(-1)
        np.abs(magnitudes, out=magnitudes)
        # The stride is odd, so that it is no multiple of the size of a row, mostly.
        sample = Spectrum.of(magnitudes[:: len(magnitudes) // N_SAMPLE | 1])
        n, energy = len(magnitudes), squared_length(magnitudes) if energy is None else energy
        return cls(sample, n / len(sample.ascending), n, n_window, float(magnitudes.max()), energy)

    def on_trellis(self, step: float, rule: Rule) -> bool:
        """Whether a trellis beats plain rounding at a step and its rule.

        It does not at few bits a weight; and in a convolution window plain rounding can balance the errors of weights,
        which is worth more.
        """
        many_bits = rule.n_bits >= paths.LEAST_BITS * len(self.sample.ascending)
        return self.n_window == 1 and many_bits and self.largest < paths.LARGEST * paths.finer(step)


def is_coded(tensor: Tensor) -> bool:
    """Whether a tensor is a matrix of weights, or more than one, large enough to be rounded."""
    return _is_matrix(tensor) and tensor.numel() >= N_LEAST and not is_mask(tensor)


def is_mask(tensor: Tensor) -> bool:
    """Whether a matrix has no other number than one and 0, as causal masks have among the weights of a checkpoint.

    The number may be infinite. To be rounded it would have to be a multiple of a step that weights have, and an error
    relative to its length would say nothing of theirs; exact it takes few bytes.
    """
    if not _is_matrix(tensor) or not tensor.numel():
        return False
    # Every k-th element is enough to tell for nearly all matrices.
    sample = tensor.reshape(-1)[:: tensor.numel() // N_LOOKED_AT | 1]
    for values in (sample, tensor):
        others = values[values != 0]
        if len(others) and not bool((others == others[0]).all()):
            return False
    return True


def _is_matrix(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and sum(size > 1 for size in tensor.shape) > 1
