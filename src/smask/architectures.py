"""Architecture of the manifest to ``nn.Module``: a closed vocabulary of layers, interpreted through the types below.

No string from a file is ever imported or evaluated: a layer is one of the structs of :data:`Layer`, its arguments are
numbers within bounds, and everything else is refused.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeAlias, cast

import msgspec
import torch
from msgspec import Meta, Struct
from torch import nn

from .errors import FormatError, UnsupportedError
from .layers import RESERVED, TAKEN, WRAPPER, Attention, ChannelPad, GlobalAveragePool, InputNorm, Positions, Residual
from .manifest import canonical

ATTRIBUTE = "smask_arch"
# On a linear layer while a model is built: the name of the parameter that its weight is.
TIED = "smask_tied"
MAX_LAYERS = 10_000
MAX_DEPTH = 8

Size: TypeAlias = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Small: TypeAlias = Annotated[int, Meta(ge=1, le=2**15)]
Padding: TypeAlias = Annotated[int, Meta(ge=0, le=2**15)]
Values: TypeAlias = Annotated[tuple[float, ...], Meta(min_length=1, max_length=4096)]
ChildName: TypeAlias = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_]{1,64}\Z")]
StateName: TypeAlias = Annotated[str, Meta(min_length=1, max_length=512)]
Device: TypeAlias = torch.device | str


class _Layer(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, tag_field="op"):
    name: ChildName | None = None


class Linear(_Layer, tag="linear", frozen=True):
    inputs: Size
    outputs: Size
    bias: bool = True
    tied: StateName | None = None

    def build(self, device: Device) -> nn.Module:
        linear = nn.Linear(self.inputs, self.outputs, bias=self.bias, device=device, dtype=torch.float32)
        if self.tied is not None:
            setattr(linear, TIED, self.tied)
        return linear


class Conv2d(_Layer, tag="conv2d", frozen=True):
    inputs: Size
    outputs: Size
    kernel: Small
    stride: Small = 1
    padding: Padding = 0
    dilation: Small = 1
    groups: Size = 1
    bias: bool = True

    def build(self, device: Device) -> nn.Module:
        return nn.Conv2d(
            self.inputs, self.outputs, self.kernel, stride=self.stride, padding=self.padding, dilation=self.dilation,
            groups=self.groups, bias=self.bias, device=device, dtype=torch.float32,
        )  # fmt: skip


class BatchNorm1d(_Layer, tag="batch-norm-1d", frozen=True):
    features: Size

    def build(self, device: Device) -> nn.Module:
        return nn.BatchNorm1d(self.features, device=device, dtype=torch.float32)


class BatchNorm2d(_Layer, tag="batch-norm-2d", frozen=True):
    features: Size

    def build(self, device: Device) -> nn.Module:
        return nn.BatchNorm2d(self.features, device=device, dtype=torch.float32)


class LayerNorm(_Layer, tag="layer-norm", frozen=True):
    features: Size

    def build(self, device: Device) -> nn.Module:
        return nn.LayerNorm(self.features, device=device, dtype=torch.float32)


class Embedding(_Layer, tag="embedding", frozen=True):
    entries: Size
    features: Size

    def build(self, device: Device) -> nn.Module:
        return nn.Embedding(self.entries, self.features, device=device, dtype=torch.float32)


class Positions1d(_Layer, tag="positions", frozen=True):
    entries: Size
    features: Size

    def build(self, device: Device) -> nn.Module:
        return Positions(self.entries, self.features, device=device)


class SelfAttention(_Layer, tag="attention", frozen=True):
    features: Size
    heads: Size
    causal: bool = False
    bias: bool = True

    def build(self, device: Device) -> nn.Module:
        return Attention(self.features, self.heads, causal=self.causal, bias=self.bias, device=device)


class MaxPool2d(_Layer, tag="max-pool-2d", frozen=True):
    kernel: Small
    stride: Small | None = None
    padding: Padding = 0

    def build(self, device: Device) -> nn.Module:
        return nn.MaxPool2d(self.kernel, stride=self.stride, padding=self.padding)


class AveragePool2d(_Layer, tag="average-pool-2d", frozen=True):
    kernel: Small
    stride: Small | None = None
    padding: Padding = 0

    def build(self, device: Device) -> nn.Module:
        return nn.AvgPool2d(self.kernel, stride=self.stride, padding=self.padding)


class Dropout(_Layer, tag="dropout", frozen=True):
    p: Annotated[float, Meta(ge=0, lt=1)]

    def build(self, device: Device) -> nn.Module:
        return nn.Dropout(self.p)


class Normalize(_Layer, tag="normalize", frozen=True):
    mean: Values
    std: Values

    def build(self, device: Device) -> nn.Module:
        return InputNorm(self.mean, self.std)


class PadShortcut(_Layer, tag="pad-shortcut", frozen=True):
    inputs: Size
    outputs: Size
    stride: Small = 1

    def build(self, device: Device) -> nn.Module:
        return ChannelPad(self.inputs, self.outputs, self.stride)


class Stack(_Layer, tag="stack", frozen=True):
    layers: tuple[Layer, ...]

    def build(self, device: Device) -> nn.Module:
        return nn.Sequential(_children(self.layers, device))


class ResidualBlock(_Layer, tag="residual", frozen=True):
    body: tuple[Layer, ...]
    shortcut: tuple[Layer, ...] = ()
    relu: bool = False

    def build(self, device: Device) -> nn.Module:
        body = _children(self.body, device, TAKEN | {"shortcut"})
        return Residual(body, _children(self.shortcut, device), relu=self.relu)


Plain: TypeAlias = Literal["flatten", "relu", "gelu", "silu", "tanh", "sigmoid", "identity", "global-average-pool"]
Layer: TypeAlias = (
    Plain | Linear | Conv2d | BatchNorm1d | BatchNorm2d | LayerNorm | Embedding | Positions1d | SelfAttention
    | MaxPool2d | AveragePool2d | Dropout | Normalize | PadShortcut | Stack | ResidualBlock
)  # fmt: skip


class Layers(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The ``layers`` form: what one input looks like, without the batch dimension, and what is done to it."""

    layers: tuple[Layer, ...]
    input: Annotated[tuple[Size, ...], Meta(max_length=4)] = ()


PLAIN: Mapping[str, type[nn.Module]] = {
    "flatten": nn.Flatten, "relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid,
    "identity": nn.Identity, "global-average-pool": GlobalAveragePool,
}  # fmt: skip
STRUCTS = (
    Linear, Conv2d, BatchNorm1d, BatchNorm2d, LayerNorm, Embedding, Positions1d, SelfAttention, MaxPool2d,
    AveragePool2d, Dropout, Normalize, PadShortcut, Stack, ResidualBlock,
)  # fmt: skip
KNOWN = tuple(PLAIN) + tuple(str(struct.__struct_config__.tag) for struct in STRUCTS)


def parse(arch: Mapping[str, Any]) -> Layers:
    """Checks an architecture of kind ``layers``.

    Raises:
        FormatError: A wrong type or value, too many layers, too deep a nesting, arguments that do not go together.
        UnsupportedError: A layer that this release does not know.
    """
    for layer, where in _walk(arch.get("layers"), "arch.layers"):
        op = layer if isinstance(layer, str) else layer.get("op") if isinstance(layer, dict) else None
        if isinstance(op, str) and op not in KNOWN:
            raise UnsupportedError(f"layer at {where}", op, KNOWN)
    try:
        layers = msgspec.convert(dict(arch), Layers, strict=True)
    except msgspec.ValidationError as error:
        message, _, where = str(error).partition(" - at ")
        raise FormatError("A-01", f"arch {where.strip('`') or '$'}", message, "the type of the layer table") from None
    for layer, where in _walk(arch.get("layers"), "arch.layers"):
        if isinstance(layer, dict) and layer.get("op") == "normalize":
            good = all(math.isfinite(value) for value in (*layer["mean"], *layer["std"])) and 0 not in layer["std"]
            if not good or len(layer["mean"]) != len(layer["std"]):
                raise FormatError(
                    "A-04", where, "a mean and std that do not fit", "as many finite means as non-zero stds"
                )
    return layers


def build(arch: Mapping[str, Any], device: Device = "cpu") -> nn.Module:
    """A module with freshly initialised parameters; it remembers its architecture.

    Args:
        arch: Architecture of kind ``layers``.
        device: Of the parameters; ``meta`` allocates nothing.

    Raises:
        FormatError, UnsupportedError: As :func:`parse`.
    """
    layers = parse(arch)
    try:
        model = nn.Sequential(_children(layers.layers, device))
    except (RuntimeError, ValueError, TypeError, KeyError, OverflowError) as error:
        raise FormatError("A-05", "arch", str(error).splitlines()[0], "layers that torch can build") from None
    _tie(model)
    setattr(model, ATTRIBUTE, msgspec.json.decode(canonical(msgspec.to_builtins(layers))))
    return model


def arch_of(model: nn.Module) -> Mapping[str, Any] | None:
    """The architecture that :func:`build` made a module from, or None."""
    return cast("Mapping[str, Any] | None", getattr(model, ATTRIBUTE, None))


def _tie(model: nn.Module) -> None:
    """Gives linear layers that are tied their parameter, which an earlier layer has."""
    earlier: dict[str, nn.Parameter] = {}
    for path, module in model.named_modules():
        name = module.__dict__.pop(TIED, None)
        if name is not None:
            weight, found = cast("nn.Linear", module).weight, earlier.get(name)
            if found is None or found.shape != weight.shape:
                got = f"weight tied to {name!r}" + (f" of shape {list(found.shape)}" if found is not None else "")
                want = f"a parameter of an earlier layer, of shape {list(weight.shape)}"
                raise FormatError("A-07", f"arch layer {path}", got, want)
            module.register_parameter("weight", found)
        earlier |= dict(module.named_parameters(path, recurse=False))


def _children(layers: Sequence[Layer], device: Device, taken: Container[str] = TAKEN) -> OrderedDict[str, nn.Module]:
    children: OrderedDict[str, nn.Module] = OrderedDict()
    for index, layer in enumerate(layers):
        name = str(index) if isinstance(layer, str) or layer.name is None else layer.name
        if name in children or name in taken or (name.startswith(RESERVED) and name != WRAPPER):
            raise FormatError("A-03", f"arch layer {index}", f"name {name!r}", "a name that is free")
        children[name] = PLAIN[layer]() if isinstance(layer, str) else layer.build(device)
    return children


def _walk(layers: object, where: str, depth: int = 1) -> Iterator[tuple[Any, str]]:
    """All layers, nested ones too, as they stand in the JSON; refuses bombs before msgspec sees them."""
    count = 0
    stack = [(layers, where, depth)]
    while stack:
        siblings, path, level = stack.pop()
        if not isinstance(siblings, list | tuple):
            continue
        if level > MAX_DEPTH:
            raise FormatError("A-02", path, f"nesting {level} deep", f"at most {MAX_DEPTH}")
        count += len(siblings)
        if count > MAX_LAYERS:
            raise FormatError("A-02", path, f"more than {MAX_LAYERS} layers", f"at most {MAX_LAYERS}")
        for index, layer in enumerate(siblings):
            here = f"{path}[{index}]"
            yield layer, here
            if isinstance(layer, dict):
                stack += [(layer.get(field), f"{here}.{field}", level + 1) for field in ("layers", "body", "shortcut")]
