"""Which parameters of a module are masked, by what kind of module they belong to; shared ones are masked once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from ..errors import ArgumentError
from .norms import normed


@dataclass(frozen=True, eq=False)
class Maskable:
    """One parameter to mask.

    Attributes:
        weight: The parameter, float32 [C, ...].
        fan_in: Weights that one output sums, in the sense of He initialisation: twice the number where no ReLU halves
            what comes in.
        biases: State-dict names of the biases of its module, which start at zero.
        silent: Channels that stay zero.
        normed: Whether only a batch norm hears the module, so that factors of channels and biases do nothing.
        bias: What a channel of no weights still says, [C], or None: the bias of a linear layer or a convolution that no
            other module has. In recurrent cells it moves a gate, in transposed convolutions it is of other channels.
    """

    weight: nn.Parameter
    fan_in: float
    biases: tuple[str, ...] = ()
    silent: tuple[int, ...] = ()
    normed: bool = False
    bias: torch.Tensor | None = None


def _per_output(module: Any, weight: nn.Parameter) -> float:
    return weight[0].numel()


def _transposed(module: Any, weight: nn.Parameter) -> float:
    # [inputs, outputs / groups, ...]: a kernel of k pixels at stride s puts k / s**2 of them on each output.
    stride = 1.0
    for step in module.stride:
        stride *= step
    return weight.shape[0] / int(module.groups) * weight[0, 0].numel() / stride


def _lookup(module: Any, weight: nn.Parameter) -> float:
    return 2.0


def _no_relu(module: Any, weight: nn.Parameter) -> float:
    return 2.0 * weight[0].numel()


def _recurrent(module: Any, weight: nn.Parameter) -> float:
    # The spread that torch gives them, uniform within 1 / sqrt(hidden size).
    return 6.0 * int(module.hidden_size)


BIASED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
# Module types to how their weights begin; parameters of theirs whose name has "bias" in it are biases.
KINDS: Mapping[type[nn.Module], Callable[[Any, nn.Parameter], float]] = {
    **dict.fromkeys(BIASED, _per_output),
    **dict.fromkeys((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), _transposed),
    nn.Embedding: _lookup,
    nn.MultiheadAttention: _no_relu,
    **dict.fromkeys((nn.RNNBase, nn.RNNCellBase), _recurrent),
}


def maskable(model: nn.Module, only: Collection[str] | None = None) -> dict[str, Maskable]:
    """Parameters that are masked, by the first of their state-dict names, in the order of the state dict.

    Args:
        model: Any module.
        only: State-dict names to mask, of any module and with two or more dimensions; by default all weights of the
            kinds of :data:`KINDS`.

    Raises:
        ArgumentError: Nothing to mask, an unknown name, weights of another dtype, gradients that are not dense.
    """
    first: dict[int, str] = {}
    shared = set[int]()
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if first.setdefault(id(parameter), name) != name:
            shared.add(id(parameter))
    found, heard = dict[str, Maskable](), normed(model)
    for path, module, fan_in in _modules(model):
        own = [(name, p) for name, p in module.named_parameters(path, recurse=False) if "bias" not in _last(name)]
        biases = tuple(name for name, _ in module.named_parameters(path, recurse=False) if "bias" in _last(name))
        for name, weight in own:
            if isinstance(weight, UninitializedParameter):
                raise ArgumentError(
                    name, "a weight without a shape", "a model that has seen an input, for lazy modules"
                )
            if weight.dim() >= 2 and weight.numel():
                bias = module.bias if isinstance(module, BIASED) and weight is module.weight else None
                bias = None if id(bias) in shared else bias
                made = Maskable(weight, fan_in(module, weight), biases, _silent(module), path in heard, bias)
                found.setdefault(first[id(weight)], made)
        _check_module(path, module, own)
    if only is not None:
        found = {name: found.get(name) or _named(model, name) for name in only}
    ordered = {name: found[name] for name in first.values() if name in found}
    if len(ordered) < len(found):
        name = next(name for name in found if name not in ordered)
        raise ArgumentError("only", name, "the first of the names that its parameter has")
    if not ordered:
        raise ArgumentError("model", type(model).__name__, f"a model with {', '.join(k.__name__ for k in KINDS)}")
    for name, one in ordered.items():
        if one.weight.dtype != torch.float32:
            raise ArgumentError(name, str(one.weight.dtype), "weights of torch.float32")
    return ordered


def zero_biases(
    model: nn.Module, weights: Mapping[str, Maskable], *, learn: bool, given: Collection[str] = ()
) -> frozenset[str]:
    """Biases of masked modules start at zero, those given as they are, and stay so if they are not learned.

    Those that require no gradient are not touched. Those that start at zero before a batch norm, which takes them out,
    are not learned: nobody hears them, a file has them.

    Returns:
        Their names.
    """
    names = frozenset(name for one in weights.values() for name in one.biases)
    unheard = {name for one in weights.values() if one.normed for name in one.biases if name not in given}
    for name in names:
        bias = model.get_parameter(name)
        if name not in given and bias.requires_grad:
            nn.init.zeros_(bias)
        bias.requires_grad_(learn and bias.requires_grad and name not in unheard)
    return names


def _modules(model: nn.Module) -> Iterator[tuple[str, nn.Module, Callable[[Any, nn.Parameter], float]]]:
    for path, module in model.named_modules():
        for kind, fan_in in KINDS.items():
            if isinstance(module, kind):
                yield path, module, fan_in
                break


def _check_module(path: str, module: nn.Module, weights: list[tuple[str, nn.Parameter]]) -> None:
    if not weights and hasattr(module, "parametrizations"):
        raise ArgumentError(path, "a parametrised weight", "a plain one (torch.nn.utils.parametrize)")
    if isinstance(module, nn.Embedding) and module.sparse:
        raise ArgumentError(path, "sparse=True", "an embedding with dense gradients")


def _silent(module: nn.Module) -> tuple[int, ...]:
    padding = module.padding_idx if isinstance(module, nn.Embedding) else None
    return () if padding is None else (padding,)


def _named(model: nn.Module, name: str) -> Maskable:
    try:
        weight = model.get_parameter(name)
    except AttributeError:
        raise ArgumentError("only", name, "state-dict names of parameters") from None
    if weight.dim() < 2 or not weight.numel():
        raise ArgumentError("only", name, "parameters of two or more dimensions, none of them zero")
    return Maskable(weight, weight[0].numel())


def _last(name: str) -> str:
    return name.rpartition(".")[2]
