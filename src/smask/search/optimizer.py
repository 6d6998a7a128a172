"""What updates all that a search trains: Adam, which takes longer steps with scales and lets scores decay where the
method wants that.

A score without a decay is a sum of all steps since the beginning; scores that decay are means over a part of it.
The decay is that of Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019, section 2, and
forgets the same part of a short and a long search, as Wang and Aitchison, "How to set AdamW's weight decay as you scale
model and dataset size" (2024), find best for weights. What it brings is in docs/searches.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from .scores import MaskedWeight

# Of scores over a search at the rate of its start. Chosen on a narrow ResNet-18, a language model and MNIST; three
# times as much is as good for the first and the last, and costs the language model 0.03 bits a byte.
DECAY = 3.0
# In a step, over the learning rate, at most. Nothing above was tried in searches of less than 2,900 steps.
MOST_DECAY = 1.0


def decay_of(layer: MaskedWeight, *, lr: float, n_steps: int) -> float:
    """Part of a score that goes in a step, over the rate of that step; none of scores over a trained weight."""
    return min(MOST_DECAY, DECAY / (lr * n_steps)) if layer.method.decays and layer.origin is None else 0.0


def optimizer_of(
    others: Iterable[nn.Parameter], layers: Iterable[MaskedWeight], *, lr: float, n_steps: int
) -> torch.optim.Optimizer:
    """Fused Adam over what requires a gradient; the entry ``pace`` of a group is a factor of its rate.

    A step of a score counts beside the distances between scores, which may follow the rate. One of a scale is what it
    is: then a higher rate does not make it longer, unless it were shorter than those of scores.

    On a CUDA device rates lie there, so that a recorded step sees them change.
    """
    layers = [*layers]
    device = layers[0].scale.device
    there = device.type == "cuda"
    pace = max(1.0, layers[0].method.pace_of_scales / max(1.0, layers[0].stride))
    latents: dict[float, list[nn.Parameter]] = {0.0: [*others]}
    for layer in layers:
        latents.setdefault(decay_of(layer, lr=lr, n_steps=n_steps), []).append(layer.latent)
    groups = [(some, 1.0, decay) for decay, some in latents.items()]
    groups += [([layer.scale for layer in layers], pace, 0.0)]
    return torch.optim.AdamW(
        [
            {
                "params": [p for p in some if p.requires_grad],
                "pace": pace,
                "lr": torch.tensor(lr * pace, device=device) if there else lr * pace,
                "weight_decay": decay,
            }
            for some, pace, decay in groups
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
