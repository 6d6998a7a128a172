"""What updates all that a search trains: Adam, which takes longer steps with scales where the method wants that."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from .scores import MaskedWeight


def optimizer_of(others: Iterable[nn.Parameter], layers: Iterable[MaskedWeight], *, lr: float) -> torch.optim.Optimizer:
    """Fused Adam over what requires a gradient; the entry ``pace`` of a group is a factor of its rate.

    A step of a score counts beside the distances between scores, which may follow the rate. One of a scale is what it
    is: then a higher rate does not make it longer, unless it were shorter than those of scores.

    On a CUDA device rates lie there, so that a recorded step sees them change.
    """
    layers = [*layers]
    device = layers[0].scale.device
    there = device.type == "cuda"
    pace = max(1.0, layers[0].method.pace_of_scales / max(1.0, layers[0].stride))
    groups = (
        ([*others, *(layer.latent for layer in layers)], 1.0),
        ([layer.scale for layer in layers], pace),
    )
    return torch.optim.Adam(
        [
            {
                "params": [p for p in some if p.requires_grad],
                "pace": pace,
                "lr": torch.tensor(lr * pace, device=device) if there else lr * pace,
            }
            for some, pace in groups
        ],
        fused=True,
        capturable=there,
    )


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Of the next step."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr * group["pace"])
        else:
            group["lr"] = lr * group["pace"]


def forget_gradients(optimizer: torch.optim.Optimizer) -> None:
    """As ``zero_grad``, whose note for the profiler takes a hundredth of a step of a small net."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None


def parameters_of(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """In the order in which its state counts them."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def moments_of(optimizer: torch.optim.Optimizer, rows: Mapping[int, MaskedWeight]) -> dict[str, Tensor]:
    """The state of Adam, ``adam.PLACE.PART``, not copied.

    Args:
        optimizer: It.
        rows: Layers of the parameters that lie in rows on several ranks, by place; what is theirs comes whole.
    """
    found = {}
    for place, moments in optimizer.state_dict()["state"].items():
        spread = rows.get(place)
        for part, tensor in moments.items():
            found[f"adam.{place}.{part}"] = spread.whole(tensor) if spread and tensor.dim() else tensor
    return found


def restore_moments(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], rows: Mapping[int, MaskedWeight]
) -> None:
    """Takes over what :func:`moments_of` gave, found among other tensors.

    Raises:
        ValueError: Other parts, or moments of another shape.
    """
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("adam."):
            _, place, part = name.split(".")
            moments.setdefault(int(place), {})[part] = tensor
    parameters = parameters_of(optimizer)
    for index, parts in moments.items():
        if index in rows:
            parts |= {part: rows[index].part(tensor) for part, tensor in parts.items() if tensor.dim()}
        if {*parts} != {"step", "exp_avg", "exp_avg_sq"} or parts["exp_avg"].shape != parameters[index].shape:
            raise ValueError(f"moments of parameter {index}")
    optimizer.load_state_dict(optimizer.state_dict() | {"state": moments})
