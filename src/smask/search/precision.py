"""Arithmetic of passes through the model; scores, their gradients and their moments are always float32."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from ..errors import UnsupportedError
from .unfolding import Unfolding

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
HALVES = (torch.bfloat16, torch.float16)


class Precision:
    """How passes compute: in float32, or in a half precision where torch holds that to be safe (autocast).

    The range of float16 ends at 65,504 and 6e-8, so that its losses are scaled, and steps whose gradients overflow are
    left out (Micikevicius et al., "Mixed Precision Training", ICLR 2018, section 3.2).

    Args:
        name: One of :data:`DTYPES`.
        device: Of the search.

    Raises:
        UnsupportedError: An unknown name.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        if name not in DTYPES:
            raise UnsupportedError("precision", name, tuple(DTYPES))
        self._dtype, self._device = DTYPES[name], device
        self._scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")

    @property
    def looks(self) -> bool:
        """Whether steps are decided by values of gradients."""
        return self._scaler.is_enabled()

    @property
    def products(self) -> torch.dtype:
        """Of products outside the model: float16 would not do where sums are large."""
        return torch.float32 if self._dtype == torch.float32 else torch.bfloat16

    @contextmanager
    def passes(self) -> Iterator[None]:
        """Around a pass through the model."""
        whole = self._dtype == torch.float32
        with (
            nullcontext() if whole else torch.autocast(self._device.type, self._dtype),
            Unfolding() if Unfolding.helps(self._device, self._dtype) else nullcontext(),
        ):
            yield

    def outputs(self, outputs: Any) -> Any:
        """Outputs of a pass for a loss: a tensor in half precision becomes float32."""
        return outputs.float() if isinstance(outputs, Tensor) and outputs.dtype in HALVES else outputs

    def backward(self, value: Tensor) -> None:
        """Backward pass; gradients are scaled by what :meth:`step` takes out again."""
        self._scaler.scale(value).backward()  # type: ignore[no-untyped-call]

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """A step of the optimiser, unless gradients overflowed."""
        self._scaler.step(optimizer)
        self._scaler.update()

    def numbers(self) -> dict[str, Any]:
        """The state: the scale and what decides the next ones."""
        return dict(self._scaler.state_dict())

    def restore(self, numbers: Mapping[str, Any]) -> None:
        """Takes over what :meth:`numbers` gave."""
        if self._scaler.is_enabled():
            self._scaler.load_state_dict(dict(numbers))
