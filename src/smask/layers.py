"""Layers of the vocabulary that torch has no module for."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class InputNorm(nn.Module):
    """(x - mean) / std along dimension 1; not part of the state dict."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, device="cpu"), persistent=False)
        self.register_buffer("std", torch.tensor(std, device="cpu"), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        shape = (-1,) + (1,) * (x.dim() - 2)
        return (x - self.mean.to(x.dtype).view(shape)) / self.std.to(x.dtype).view(shape)


class ChannelPad(nn.Module):
    """Parameter-free shortcut: every ``stride``-th pixel, zero channels on both sides (He et al. 2016, option A)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        if outputs < inputs:
            raise ValueError(f"pad-shortcut from {inputs} to {outputs} channels")
        before = (outputs - inputs) // 2
        self.padding = (0, 0, 0, 0, before, outputs - inputs - before)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], self.padding)


class Residual(nn.Module):
    """body(x) + shortcut(x), optionally through ReLU; the children of the body keep their own names."""

    def __init__(self, body: OrderedDict[str, nn.Module], shortcut: OrderedDict[str, nn.Module], *, relu: bool) -> None:
        super().__init__()
        self.shortcut = nn.Sequential(shortcut)
        self.relu_after = relu
        self.body_names = tuple(body)
        for name, module in body.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for name in self.body_names:
            y = self._modules[name](y)  # type: ignore[misc]
        y = y + self.shortcut(x)
        return F.relu(y) if self.relu_after else y


class GlobalAveragePool(nn.Module):
    """Mean over the last two dimensions."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((-2, -1))
