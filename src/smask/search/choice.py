"""Which method ``auto`` is: three coats over weights of the seed, one level over those of a trained checkpoint.

A 300-100 with one level and with three was right on this part of 10,000 training images set aside: MNIST in 20 passes
98.60 and 98.70 % at 16 kB (0.48 bits a weight), 98.45 and 98.78 at 32 kB (0.96); Fashion-MNIST in 60 and in 20 passes
89.67 and 89.69 at 20 kB, 89.61 and 89.59 at 32 kB. What one level saves is a third bit when run packed.

A mask that the first gradients exchange at once, in every layer, is what a deep net without norms recovers from slowly:
there scores begin far apart. conv6 at 133 kB, 3 passes over 20,000 images of CIFAR-10: 47 % with one level, with three
28 to 33 % where they begin evenly and 52 % where not. A 300-100 ends a tenth of a per cent better where they do.
"""

from __future__ import annotations

AUTO = "auto"
# Masked weights up to which a net is no deep one.
N_SHALLOW = 4


def best(n_masked: int, *, trained: bool) -> str:
    """Name of the method.

    Args:
        n_masked: Weight tensors that are masked.
        trained: Whether they are those of a checkpoint, which have magnitudes of their own.
    """
    if trained:
        return "single"
    return "coats" if n_masked <= N_SHALLOW else "deep-coats"
