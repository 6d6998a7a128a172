"""Ramps: weights near their threshold are kept in part, so that a search that begins can tell how much each is wanted.

A mask that is all or nothing changes whole weights at once, millions of them in every hundred steps of a deep net, and
most of them by chance. On a ramp around the threshold a weight grows from nothing to its base, and its score moves it
by as little as it moves itself. Ramps narrow in a line until masks are fixed, where rows have few weights sooner. What
they bring, and where nothing, is in docs/ablations.md.

Where signs are searched too a score is the magnitude of a latent, and ramps begin at a foot, above which there are as
many weights that are not kept as are kept. As wide as the
threshold is high was too much where few are kept: in the end what lies on a ramp becomes whole or nothing, and the loss
of conv6, 3 % kept, rose by 0.25 when masks were fixed.

The parts are those of a clamped line (a hard sigmoid). That masks begin soft and harden is from Savarese, Silva and
Maire, "Winning the Lottery with Continuous Sparsification", NeurIPS 2020, whose sigmoids have a gradient of their own.
Here the gradient of a score is straight through, as without a ramp.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from .scores import MaskedWeight

# Where a hard sigmoid of torch goes from 0 to 1.
N_SIGMOID = 6.0
# Ramps of rows with few weights end after this part of the way. Some of a row's weights are on the ramp to its end, and
# become whole or nothing at once: in sums of many that is lost in the noise, but the first convolution of a ResNet-18,
# 27 weights a row, by itself made 0.12 of the 0.14 by which the loss rose; none of the 20 other layers made 0.003.
PART_OF_FEW = 0.6
# Weights above the foot of a ramp over those that are kept. MNIST in 4 and 8 kB, 5 passes, two seeds: 97.6 and 98.3 %
# with 1.5, 97.9 and 98.2 % with 2.
N_ON_RAMP = 2.0


class Ramp:
    """The ramp of one layer.

    Attributes:
        width: In scores, 0 for none.
    """

    def __init__(self, device: torch.device) -> None:
        self.width, self._slope = 0.0, 0.0
        # In memory, where a recorded step sees them change.
        self._middle, self._rise = (torch.zeros((), device=device) for _ in range(2))

    def place(self, middle: float, width: float) -> None:
        """Puts it around a threshold; a threshold that is infinite has none."""
        self.width = width if math.isfinite(middle) else 0.0
        if self.width:
            self._slope = N_SIGMOID / self.width
            self._middle.fill_(-self._slope * middle)
            self._rise.fill_(self._slope)

    def parts(self, latent: Tensor, sign: Tensor | None, *, out: Tensor) -> Tensor:
        """How much is kept, 0 to 1, of weights with scores ``latent * sign``, float32 [c, ...] in memory ``out``.

        Without ``sign`` scores are magnitudes of latents.
        """
        if sign is not None and out.device.type == "cpu":
            torch.addcmul(self._middle, latent, sign, value=self._slope, out=out)
        else:
            ranks = torch.abs(latent, out=out) if sign is None else torch.mul(latent, sign, out=out)
            torch.addcmul(self._middle, ranks, self._rise, out=out)
        return F.hardsigmoid(out, inplace=True)


def place_ramps(layers: Iterable[MaskedWeight], part: float) -> None:
    """Ramps around the thresholds that layers have now, of this part of the width that their method begins with.

    Args:
        layers: Those of this process.
        part: Of ordinary rows; 1 at the beginning.
    """
    of_few = max(0.0, 1 - (1 - part) / PART_OF_FEW)
    for layer in layers:
        if layer.method.ramp and layer.origin is None:
            own = of_few if layer.has_few else part
            middle = layer.threshold[0]
            unit = 2 * (middle - layer.foot) if layer.method.flips else layer.stride
            layer.ramp.place(middle, layer.method.ramp * unit * own)
