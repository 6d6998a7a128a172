"""Masks of a file, and a module that keeps to them whatever optimiser trains it."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .coded import CodedTensor
from .errors import ArgumentError

TICKET = "a file with a mask for every large tensor, as smask ticket and smask encode write them"


def masks_of(coded: Mapping[str, CodedTensor]) -> dict[str, Tensor]:
    """Which weights of coded tensors have a level, bool [C, ...] by name.

    Raises:
        ArgumentError: There is none, one is a difference from another checkpoint, or one keeps nothing.
    """
    if not coded:
        raise ArgumentError("file", "no mask", TICKET)
    masks = {}
    for name, tensor in coded.items():
        if tensor.origin is not None and tensor.base != "file":
            raise ArgumentError("file", f"differences of {name!r} from another checkpoint", TICKET)
        packed = np.bitwise_or.reduce([plane.numpy() for plane in tensor.planes])
        bits = np.unpackbits(packed, count=tensor.n_weights, bitorder="little")
        if not bits.any():
            raise ArgumentError("file", f"a mask of {name!r} that keeps nothing", "a weight kept in every tensor")
        masks[name] = torch.from_numpy(bits.view(bool)).view(tensor.shape)
    return masks


def hold_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Makes a module keep weights outside of its masks at zero while it is trained; its state dict stays what it is.

    Gradients of these weights are zero, so that every optimiser that treats weights one by one (SGD with momentum and
    decay, Adam, AdamW, RMSprop and the like) leaves them at exactly zero. One that mixes them (Muon) moves them; they
    are put back before every forward pass and before the state dict is read. Copies and pickles of the module do the
    same.

    Args:
        model: Its parameters are hooked; they may be moved to another device later, not replaced. Masks that it keeps
            to already are replaced.
        masks: bool [C, ...] by state-dict name.
    """
    hold = _hold_of(model)
    if hold is None:
        hold = _Hold()
        model.register_forward_pre_hook(hold)
        model.register_state_dict_pre_hook(hold)  # type: ignore[no-untyped-call]
    hold.masks = dict(masks)
    hold(model)


def holds_masks(model: nn.Module) -> bool:
    """Whether a module keeps to masks."""
    return _hold_of(model) is not None


def _hold_of(model: nn.Module) -> _Hold | None:
    return next((hook for hook in model._forward_pre_hooks.values() if isinstance(hook, _Hold)), None)


class _Hold:
    def __init__(self) -> None:
        self.masks: dict[str, Tensor] = {}
        self._hooked: dict[str, weakref.ref[nn.Parameter]] = {}

    def __getstate__(self) -> dict[str, Tensor]:
        return self.masks

    def __setstate__(self, masks: dict[str, Tensor]) -> None:
        # Copies of parameters have no hooks.
        self.masks, self._hooked = masks, {}

    @torch.no_grad()
    def __call__(self, model: nn.Module, *_: Any) -> None:
        for name, mask in self.masks.items():
            weight = model.get_parameter(name)
            # The sum makes +0 of -0; through .data, for a pass of before may still want its gradients.
            weight.data.mul_(mask.to(weight.device)).add_(0.0)
            known = self._hooked.get(name)
            if weight.requires_grad and (known is None or known() is not weight):
                weight.register_hook(partial(self._within, name))  # type: ignore[no-untyped-call]
                self._hooked[name] = weakref.ref(weight)

    def _within(self, name: str, gradient: Tensor) -> Tensor:
        # Other masks may have no such name.
        mask = self.masks.get(name)
        return gradient if mask is None else gradient * mask.to(gradient.device)
