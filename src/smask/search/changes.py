"""How the images of a training batch are changed, on the device where they lie; all but their size by chance."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def shifted(x: Tensor, shift: int, random: torch.Generator) -> Tensor:
    """Every image moved by its own random number of pixels, up to ``shift``; its border fills in.

    Args:
        x: [N, channels, height, width] of any dtype.
        shift: Largest move in pixels.
        random: CPU generator.
    """
    n, channels, height, width = x.shape
    moves = _sent(torch.randint(-shift, shift + 1, (n, 2), generator=random), x.device)
    rows = (moves[:, :1] + torch.arange(height, device=x.device)).clamp_(0, height - 1)
    columns = (moves[:, 1:] + torch.arange(width, device=x.device)).clamp_(0, width - 1)
    # One gather over flat pixels: indexing by four tensors takes five times as long.
    pixels = (rows[:, :, None] * width + columns[:, None, :]).view(n, 1, -1).expand(-1, channels, -1)
    return x.flatten(2).gather(2, pixels).view(x.shape)


def mirrored(x: Tensor, random: torch.Generator) -> Tensor:
    """Every image, [N, channels, height, width], mirrored left to right with a probability of one half."""
    turned = _sent(torch.randint(0, 2, (len(x), 1, 1, 1), generator=random, dtype=torch.bool), x.device)
    return torch.where(turned, x.flip(3), x)


def erased(x: Tensor, n_pixels: int, mean: Tensor, random: torch.Generator) -> Tensor:
    """Every image without a square of so many pixels a side, its centre anywhere in the image.

    Args:
        x: [N, channels, height, width] of any dtype.
        n_pixels: Side of the square.
        mean: What is there instead, [channels, 1, 1] of the dtype of x.
        random: CPU generator.
    """
    rows, columns = (_spans(x, size, n_pixels, random) for size in x.shape[2:])
    return torch.where((rows[:, :, None] & columns[:, None, :])[:, None], mean, x)


def mixed(x: Tensor, y: Tensor, chance: float, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Some images with a rectangle of the one before them in the batch, and targets that are mixed as images are.

    CutMix, Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features", ICCV
    2019, section 3.1: the part is uniform, the rectangle has the form of the image and its centre anywhere, and targets
    count the pixels that it hides. Here every image has a rectangle of its own.

    Args:
        x: [N, channels, height, width] of any dtype.
        y: float32 [N, classes].
        chance: Of an image to get a rectangle.
        random: CPU generator.
    """
    drawn = torch.rand(2, len(x), 1, generator=random)
    part = torch.where(drawn[0] < chance, drawn[1].sqrt(), 0.0)
    rows, columns = (_spans(x, size, (part * size).round().to(torch.int64), random) for size in x.shape[2:])
    hidden = rows[:, :, None] & columns[:, None, :]
    theirs = hidden.to(torch.float32).mean((1, 2))[:, None]
    return torch.where(hidden[:, None], x.roll(1, 0), x), torch.lerp(y, y.roll(1, 0), theirs)


def resized(x: Tensor, n_pixels: int) -> Tensor:
    """Images, float32 [N, channels, height, width], whose shorter side has so many pixels."""
    shorter = min(x.shape[2:])
    sides = [max(1, round(side * n_pixels / shorter)) for side in x.shape[2:]]
    return F.interpolate(x, size=sides, mode="bilinear", antialias=True)


def _spans(x: Tensor, size: int, n_pixels: int | Tensor, random: torch.Generator) -> Tensor:
    """Where a span of so many pixels, int64 [N, 1] or the same for all images, lies that has its centre anywhere.

    Returns:
        bool [N, size] on the device of x.
    """
    first = torch.randint(0, size, (len(x), 1), generator=random) - n_pixels // 2
    first, last = (_sent(bound, x.device) for bound in (first, first + n_pixels))
    place = torch.arange(size, device=x.device)
    return (place >= first) & (place < last)


def _sent(numbers: Tensor, device: torch.device) -> Tensor:
    """Numbers on a device; a copy from memory that may be paged out would wait for all steps before it."""
    return numbers.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else numbers
