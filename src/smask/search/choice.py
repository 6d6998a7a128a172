"""Which method ``auto`` is: three coats in nets of few layers; in deeper ones signs; over a trained one masks alone.

A 300-100 with one level and with three was right on this part of 10,000 training images set aside: MNIST in 20 passes
98.60 and 98.70 % at 16 kB (0.48 bits a weight), 98.45 and 98.78 at 32 kB (0.96); Fashion-MNIST in 60 and in 20 passes
89.67 and 89.69 at 20 kB, 89.61 and 89.59 at 32 kB. What one level saves is a third bit when run packed.

Three levels begin with as few weights as they end with, close to their threshold, so that the first gradients exchange
every mask at once. A deep net without norms recovers slowly: conv6, 133 kB, 20,000 images of CIFAR-10, 3 and 8 passes:
47 and 66 % with one level, whose density falls, 32 and 31 % with three, 52 and 56 % where their scores begin farther
apart.

What signs of their own bring in deep nets, at equal bytes, is in docs/searches.md.
"""

from __future__ import annotations

AUTO = "auto"
# Masked weights up to which a net is no deep one.
N_SHALLOW = 4


def best(n_masked: int, *, trained: bool) -> str:
    """Name of the method.

    Args:
        n_masked: Weight tensors that are masked.
        trained: Whether they are those of a checkpoint, which have magnitudes and signs of their own.
    """
    if trained:
        return "single"
    return "coats" if n_masked <= N_SHALLOW else "signs"
