"""What updates all that a search trains: Adam, which takes longer steps with scales; where the method wants that, Muon
for scores of convolutions, and scores that decay.

A score without a decay is a sum of all steps since the beginning; scores that decay are means over a part of it.
The decay is that of Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019, section 2. As many
passes over the data are remembered whatever the data and the net, as Wang and Aitchison, "How to set AdamW's weight
decay as you scale model and dataset size" (2024), find best for weights: it is said as what goes over a
search, and where signs are searched as what goes in a pass, if these are many. What it brings is in docs/ablations.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from .muon import AdamMuon
from .scores import MaskedWeight

# Of scores over a search at the rate of its start. Chosen on a narrow ResNet-18, a language model and MNIST; three
# times as much is as good for the first and the last, and costs the language model 0.03 bits a byte.
DECAY = 3.0
# In a step, over the learning rate, at most. Nothing above was tried in searches of less than 2,900 steps.
MOST_DECAY = 1.0
# As much for every pass at least where signs are searched, up to this in a step over the rate: masks that see the same
# data again and again learn what is of these alone, the more the longer they remember. That narrow ResNet-18, 60
# passes: begun as a trained net 83.6 % of test images (mean loss 0.618) with 3, 84.1 % (0.544) with 9; from nothing
# 83.7 % (0.539) with 9, 83.1 % (0.533) with 18.
DECAY_A_PASS, MOST_BY_PASSES = 0.15, 3.0
# What is kept of a parameter.
ADAM, MUON = {"step", "exp_avg", "exp_avg_sq"}, {"momentum"}


def decay_of(layer: MaskedWeight, *, lr: float, n_steps: int, n_passes: int = 1) -> float:
    """Part of a score that goes in a step, over the rate of that step; none of scores over a trained weight."""
    if not layer.method.decays or layer.origin is not None:
        return 0.0
    by_passes = DECAY_A_PASS * n_passes
    if layer.method.flips and by_passes > DECAY:
        return min(MOST_BY_PASSES, by_passes / (lr * n_steps))
    return min(MOST_DECAY, DECAY / (lr * n_steps))


def turns(layer: MaskedWeight) -> bool:
    """Whether scores take steps of Muon: those of convolutions whose rows are long, not over a trained weight.

    With rows of few weights it was worse: 79.6 instead of 80.2 % where the first convolution of a ResNet-18 had it.

    Its products cost about as much as passes, forward and backward, of two to four positions for each channel: little
    beside the thousands of positions of a batch of images, and several times the rest of a step of a perceptron.
    """
    return layer.method.turns and layer.origin is None and len(layer.shape) > 2 and not layer.has_few


def optimizer_of(
    others: Iterable[nn.Parameter],
    layers: Iterable[MaskedWeight],
    *,
    lr: float,
    n_steps: int,
    n_passes: int = 1,
    dtype: torch.dtype = torch.float32,
) -> torch.optim.Optimizer:
    """Adam and Muon over what requires a gradient; the entry ``pace`` of a group is a factor of its rate.

    A step of a score counts beside the distances between scores, which may follow the rate. One of a scale is what it
    is: then a higher rate does not make it longer, unless it were shorter than those of scores.

    On a CUDA device rates lie there, so that a recorded step sees them change. The products of Muon are in ``dtype``.
    """
    layers = [*layers]
    device = layers[0].scale.device
    there = device.type == "cuda"
    pace = max(1.0, layers[0].method.pace_of_scales / max(1.0, layers[0].stride))
    latents: dict[tuple[float, bool], list[nn.Parameter]] = {(0.0, False): [*others]}
    for layer in layers:
        kind = (decay_of(layer, lr=lr, n_steps=n_steps, n_passes=n_passes), turns(layer))
        latents.setdefault(kind, []).append(layer.latent)
    groups = [(some, 1.0, decay, muon) for (decay, muon), some in latents.items()]
    groups += [([layer.scale for layer in layers], pace, 0.0, False)]
    return AdamMuon(
        [
            {
                "params": [p for p in some if p.requires_grad],
                "pace": pace,
                "lr": torch.tensor(lr * pace, device=device) if there else lr * pace,
                "weight_decay": decay,
                "muon": muon,
            }
            for some, pace, decay, muon in groups
        ],
        [layer for layer in layers if turns(layer)],
        dtype=dtype,
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
    """The state of Adam and of Muon, ``adam.PLACE.PART``, not copied.

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
    turned = {parameter for group in optimizer.param_groups if group["muon"] for parameter in group["params"]}
    for index, parts in moments.items():
        parameter = parameters[index]
        if index in rows:
            parts |= {part: rows[index].part(tensor) for part, tensor in parts.items() if tensor.dim()}
        expected, mean = (MUON, "momentum") if parameter in turned else (ADAM, "exp_avg")
        if {*parts} != expected or parts[mean].shape != parameter.shape:
            raise ValueError(f"moments of parameter {index}")
        optimizer.state[parameter] = {
            part: tensor.to(parameter.device, torch.float32, copy=True) for part, tensor in parts.items()
        }
