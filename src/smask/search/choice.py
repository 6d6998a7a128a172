"""Which method ``auto`` is: three coats in nets of few layers, or small ones with layer norms; else one level, and with
batch norms and enough bytes, or where it begins as a trained net, signs that are searched too.

A 300-100 with one level and with three was right on this part of 10,000 training images set aside: MNIST in 20 passes
98.60 and 98.70 % at 16 kB (0.48 bits a weight), 98.45 and 98.78 at 32 kB (0.96); Fashion-MNIST in 60 and in 20 passes
89.67 and 89.69 at 20 kB, 89.61 and 89.59 at 32 kB. What one level saves is a third bit when run packed.

Three levels begin with as few weights as they end with, close to their threshold, so that the first gradients exchange
every mask at once. A deep net without norms recovers slowly: conv6, 133 kB, 20,000 images of CIFAR-10, 3 and 8 passes:
47 and 66 % with one level, whose density falls, 32 and 31 % with three, 52 and 56 % where their scores begin farther
apart. With batch norms it does not matter: resnet20, 20 kB, 5 passes there: 63.0 and 62.4 %. With layer norms three are
better in few bytes: a language model of 0.8 million weights took 2.66 and 2.64 bits a byte with one level, 2.53 and
2.56 with three at 54 kB (3 passes, two seeds), 2.52 and 2.53 at 97 kB; by density 2.50 at 109 kB and 2.53 at 117.
All this was before ramps, with which one level takes 2.44 bits at 96 kB and still 2.65 at 54.

Signs of their own cost a bit for each kept weight: at equal bytes fewer are kept. What they bring in a net with batch
norms at 0.8 bits a weight, and cost in one without norms at 0.2, is in docs/ablations.md; half a bit lies between.
The signs of a trained net are right; of those of a seed half are.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from .weights import Maskable

AUTO = "auto"
# Masked weights up to which a net is no deep one.
N_SHALLOW = 4
# Norms with which it may be deep where it is to be small: so many bits of a file for each weight, so many weights kept.
LAYER_NORMS = (nn.LayerNorm, nn.RMSNorm)
FEW_BITS, FEW_KEPT = 0.7, 0.1
# And those with which signs are searched in deep nets, from so many bits and weights on.
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
SIGN_BITS, SIGN_KEPT = 0.5, 0.1


def best(
    model: nn.Module,
    weights: Mapping[str, Maskable],
    *,
    trained: bool,
    density: float,
    n_bytes: int | None,
    begun: bool = False,
) -> str:
    """Name of the method.

    Args:
        model: What is searched.
        weights: Those that are masked.
        trained: Whether they are those of a checkpoint, which have magnitudes of their own.
        density: What is to be kept of them, where there is no size to be met.
        n_bytes: The size to be met, or None.
        begun: Whether a search over the seed begins as a trained net.
    """
    if trained:
        return "single"
    if begun:
        return "signs"
    n_weights = sum(one.weight.numel() for one in weights.values())

    def at_most(bits: float, kept: float) -> bool:
        return density <= kept if n_bytes is None else 8 * n_bytes <= bits * n_weights

    def has(kinds: tuple[type[nn.Module], ...]) -> bool:
        return any(isinstance(module, kinds) for module in model.modules())

    if len(weights) <= N_SHALLOW or (has(LAYER_NORMS) and at_most(FEW_BITS, FEW_KEPT)):
        return "coats"
    return "signs" if has(BATCH_NORMS) and not at_most(SIGN_BITS, SIGN_KEPT) else "single"
