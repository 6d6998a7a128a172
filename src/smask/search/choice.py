"""Which method ``auto`` is: three coats in nets of few layers or with layer norms, one level in all others.

A 300-100 with one level and with three was right on this part of 10,000 training images set aside: MNIST in 20 passes
98.60 and 98.70 % at 16 kB (0.48 bits a weight), 98.45 and 98.78 at 32 kB (0.96); Fashion-MNIST in 60 and in 20 passes
89.67 and 89.69 at 20 kB, 89.61 and 89.59 at 32 kB. A language model of 54 kB, 18 masked tensors with layer norms, took
2.66 and 2.53 bits a byte in 3 passes. What one level saves is a third bit when run packed.

Three levels begin with as few weights as they end with, close to their threshold, so that the first gradients exchange
every mask at once. A deep net without norms recovers slowly: conv6, 133 kB, 20,000 images of CIFAR-10, 3 and 8 passes:
47 and 66 % with one level, whose density falls, 32 and 31 % with three, 52 and 56 % where their scores begin farther
apart. With batch norms it does not matter: resnet20, 20 kB, 5 passes there: 63.0 and 62.4 %.
"""

from __future__ import annotations

from torch import nn

AUTO = "auto"
# Masked weights up to which a net is no deep one.
N_SHALLOW = 4
# Norms with which it may be deep.
NORMS = (nn.LayerNorm, nn.RMSNorm)


def best(model: nn.Module, n_masked: int, *, trained: bool) -> str:
    """Name of the method.

    Args:
        model: What is searched.
        n_masked: Weight tensors that are masked.
        trained: Whether they are those of a checkpoint, which have magnitudes of their own.
    """
    normed = any(isinstance(module, NORMS) for module in model.modules())
    return "coats" if not trained and (normed or n_masked <= N_SHALLOW) else "single"
