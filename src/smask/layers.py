"""Layers of the vocabulary that torch has no module for."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Names that no child has: those of methods and attributes that torch 2.13 gives nn.Sequential, which it would hide.
# Written out, so that the same files are valid under every release.
TAKEN = frozenset({
    "T_destination", "add_module", "append", "apply", "bfloat16", "buffers", "call_super_init", "children", "compile",
    "cpu", "cuda", "double", "dump_patches", "eval", "extend", "extra_repr", "float", "forward", "get_buffer",
    "get_extra_state", "get_parameter", "get_submodule", "half", "insert", "ipu", "load_state_dict", "modules", "mtia",
    "named_buffers", "named_children", "named_modules", "named_parameters", "parameters", "pop",
    "register_backward_hook", "register_buffer", "register_forward_hook", "register_forward_pre_hook",
    "register_full_backward_hook", "register_full_backward_pre_hook", "register_load_state_dict_post_hook",
    "register_load_state_dict_pre_hook", "register_module", "register_parameter", "register_state_dict_post_hook",
    "register_state_dict_pre_hook", "requires_grad_", "set_extra_state", "set_submodule", "share_memory", "state_dict",
    "to", "to_empty", "train", "training", "type", "xpu", "zero_grad",
})  # fmt: skip
# Nor does one have a name that begins so, but for the wrapper that torch.compile puts around all others.
RESERVED, WRAPPER = ("_", "smask_"), "_orig_mod"


class InputNorm(nn.Module):
    """(x - mean) / std along dimension 1; not part of the state dict."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32, device="cpu"), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32, device="cpu"), persistent=False)

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
    """body(x) + shortcut(x), optionally through ReLU; the children of the body keep their own names.

    Its own attributes begin with an underscore, as no child does.
    """

    def __init__(self, body: OrderedDict[str, nn.Module], shortcut: OrderedDict[str, nn.Module], *, relu: bool) -> None:
        super().__init__()
        self.shortcut = nn.Sequential(shortcut)
        self._relu = relu
        self._body_names = tuple(body)
        for name, module in body.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for name in self._body_names:
            y = self._modules[name](y)  # type: ignore[misc]
        y = y + self.shortcut(x)
        return F.relu(y) if self._relu else y


class GlobalAveragePool(nn.Module):
    """Mean over the last two dimensions."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((-2, -1))


class Positions(nn.Module):
    """Adds a learned vector of its own to each place of a sequence, [N, T, features] with T up to ``entries``."""

    def __init__(self, entries: int, features: int, *, device: torch.device | str) -> None:
        super().__init__()
        # A module, not a bare parameter: searches mask it and packed layers replace it as any other embedding.
        self.places = nn.Embedding(entries, features, device=device, dtype=torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-2] > self.places.num_embeddings:
            raise ValueError(f"a sequence of {x.shape[-2]} places, positions has {self.places.num_embeddings}")
        y: Tensor = self.places(torch.arange(x.shape[-2], device=x.device))
        return x + y


class Attention(nn.Module):
    """Scaled dot-product attention of several heads (Vaswani et al., "Attention Is All You Need", 2017, section 3.2).

    Args:
        features: Of an input and an output; each head takes an equal part.
        heads: Number of heads.
        causal: Whether a place sees only itself and those before it.
        bias: Whether the two linear layers have one.
        device: Of the parameters.
    """

    def __init__(self, features: int, heads: int, *, causal: bool, bias: bool, device: torch.device | str) -> None:
        super().__init__()
        if features % heads:
            raise ValueError(f"attention of {features} features by {heads} heads")
        self.heads, self.causal = heads, causal
        self.qkv = nn.Linear(features, 3 * features, bias=bias, device=device, dtype=torch.float32)
        self.out = nn.Linear(features, features, bias=bias, device=device, dtype=torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(-3, -2) for part in self.qkv(x).chunk(3, -1)
        )
        y = F.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        z: Tensor = self.out(y.transpose(-3, -2).flatten(-2))
        return z
