"""Tensors in whatever a loader gives: tuples, named ones too, lists, mappings, packed sequences."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ..errors import ArgumentError


def mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """The same with every tensor and packed sequence changed; what else there is stays."""
    if isinstance(value, Tensor | PackedSequence):
        return change(value)
    if isinstance(value, Mapping):
        return {name: mapped(part, change) for name, part in value.items()}
    if isinstance(value, tuple | list):
        parts = [mapped(part, change) for part in value]
        if isinstance(value, list):
            return parts
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value


def moved(value: Any, device: torch.device) -> Any:
    """The same with every tensor on the device."""
    return mapped(value, lambda tensor: tensor.to(device))


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors_in(part)
    elif isinstance(value, tuple | list):
        for part in value:
            yield from tensors_in(part)


def called(model: nn.Module, x: Any) -> Any:
    """Outputs for inputs that are one argument, a tuple or list of arguments, or a mapping of keyword arguments."""
    if isinstance(x, Mapping):
        return model(**x)
    several = isinstance(x, tuple | list) and not isinstance(x, PackedSequence)
    return model(*x) if several else model(x)


def pair_of(batch: Any) -> tuple[Any, Any]:
    """Inputs and targets.

    Raises:
        ArgumentError: The batch is something else.
    """
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        n = f" of {len(batch)}" if isinstance(batch, tuple | list) else ""
        raise ArgumentError("batches", f"{type(batch).__name__}{n}", "pairs of inputs and targets")
    return batch[0], batch[1]
