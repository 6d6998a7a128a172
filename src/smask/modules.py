"""Layers that hold packed bits and run on them: in place of ``nn.Linear``, ``nn.Conv2d`` and ``nn.Embedding``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import convolution, kernels, operators
from .bases import SIGNS
from .coded import CodedTensor
from .convolution import Geometry
from .errors import ArgumentError, UnsupportedError
from .packing import PackedMatrix, dense_rows, pack, unpack
from .recipe import attach, recipe_of

# ``auto`` packs layers of at least as many weights: smaller ones are faster dense.
N_AUTO_WEIGHTS = 1 << 20


class PackedLayer(nn.Module):
    """What packed layers share: bits, scale and offset as buffers, everything else as plain attributes.

    The scale stays float32 under ``.half()`` and its like: it is a coefficient of the formula, not an activation.
    """

    planes: Tensor
    scale: Tensor
    offset: Tensor | None
    kind: ClassVar[type[nn.Module]]

    def __init__(self, coded: CodedTensor, seed: int, *, regenerate_signs: bool = False) -> None:
        super().__init__()
        packed = pack(coded, seed, regenerate_signs=regenerate_signs)
        self.register_buffer("planes", packed.planes)
        self.register_buffer("scale", packed.scale)
        self.register_buffer("offset", packed.offset)
        self.n_columns = packed.n_columns
        self.seed, self.form = seed, replace(coded, planes=(), flip=None, scale=torch.empty(0), offset=None)
        self.signs: list[int] = operators.sign_numbers(packed.signs)

    def matrix(self) -> PackedMatrix:
        """The weights as the kernels take them."""
        return operators.packed_matrix(self.planes, self.scale, self.offset, n_columns=self.n_columns, signs=self.signs)

    def coded(self) -> CodedTensor:
        """The weights as a file holds them."""
        return unpack(self.matrix(), seed=self.seed, form=self.form)

    def weight(self) -> Tensor:
        """The dense weights, on the device of the bits, bit for bit those of the file."""
        return dense_rows(self.matrix()).to(self.form.dtype).view(self.form.shape)

    def _dense(self, layer: nn.Module, bias: Tensor | None = None) -> nn.Module:
        layer.weight = nn.Parameter(self.weight())
        if bias is not None:
            layer.bias = bias
        return layer.train(self.training)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PackedLayer:
        exact = {name: getattr(self, name) for name in ("scale", "offset")}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, value in exact.items():
            if value is not None:
                setattr(self, name, value.to(self.planes.device))
        return self

    def extra_repr(self) -> str:
        held = "signs regenerated" if self.signs else "signs held"
        return f"{list(self.form.shape)}, {len(self.planes)} bits a weight, {held}, {self.matrix().n_bytes:,} bytes"


class PackedLinear(PackedLayer):
    """``nn.Linear`` on packed bits.

    Args:
        coded: Weights [R, K] over a base of signs.
        seed: Seed of the file.
        bias: [R], a parameter of the layer, or None.
        regenerate_signs: Make the signs anew at every call instead of holding them.
        kernel: ``auto``, or a kernel of :mod:`smask.kernels` that is always used.
    """

    kind = nn.Linear
    bias: nn.Parameter | None

    def __init__(
        self, coded: CodedTensor, seed: int, *, bias: Tensor | None = None, regenerate_signs: bool = False,
        kernel: str = "auto",
    ) -> None:  # fmt: skip
        super().__init__(coded, seed, regenerate_signs=regenerate_signs)
        if len(coded.shape) != 2:
            raise ArgumentError("coded", f"shape {list(coded.shape)}", "[outputs, inputs]")
        if kernel not in ("auto", *kernels.KERNELS):
            raise UnsupportedError("kernel", kernel, ("auto", *kernels.KERNELS))
        self.out_features, self.in_features = coded.shape
        self.kernel = kernel
        self.register_parameter("bias", _parameter(bias))

    @classmethod
    def of(cls, layer: nn.Linear, coded: CodedTensor, seed: int, *, regenerate_signs: bool) -> PackedLinear:
        """The layer with packed weights in place of its own."""
        return cls(coded, seed, bias=layer.bias, regenerate_signs=regenerate_signs)

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling() or torch.is_grad_enabled():
            y: Tensor = operators.linear(
                x, self.planes, self.scale, self.offset, self.bias, self.n_columns, self.signs, self.kernel
            )
            return y
        return kernels.matmul(x, self.matrix(), self.bias, kernel=self.kernel)

    def materialize(self) -> nn.Linear:
        """An ``nn.Linear`` with the same weights and the same bias."""
        layer = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        return self._dense(layer, self.bias)  # type: ignore[return-value]


class PackedConv2d(PackedLayer):
    """``nn.Conv2d`` with zero padding on packed bits.

    Args:
        coded: Weights [R, C / groups, height, width] over a base of signs.
        seed: Seed of the file.
        bias: [R], a parameter of the layer, or None.
        stride, padding, dilation, groups: As of ``nn.Conv2d``.
        regenerate_signs: Make the signs anew at every call instead of holding them.
    """

    kind = nn.Conv2d
    bias: nn.Parameter | None

    def __init__(
        self, coded: CodedTensor, seed: int, *, bias: Tensor | None = None, stride: int | tuple[int, ...] = 1,
        padding: int | tuple[int, ...] | str = 0, dilation: int | tuple[int, ...] = 1, groups: int = 1,
        regenerate_signs: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(coded, seed, regenerate_signs=regenerate_signs)
        if len(coded.shape) != 4:
            raise ArgumentError("coded", f"shape {list(coded.shape)}", "[outputs, inputs of a group, height, width]")
        outputs, inputs, *size = coded.shape
        # torch checks the arguments, makes pairs of them and works out what "same" means.
        like = nn.Conv2d(inputs * groups, outputs, size, stride, padding, dilation, groups, device="meta")  # type: ignore[arg-type]
        left, right, top, bottom = like._reversed_padding_repeated_twice
        even = (left, top) == (right, bottom)
        self.border = None if even else (left, right, top, bottom)
        padded = (top, left) if even else (0, 0)
        self.geometry = Geometry((inputs, *size), like.stride, padded, like.dilation, groups)
        self.padding = padding
        self.in_channels, self.out_channels = inputs * groups, outputs
        self.register_parameter("bias", _parameter(bias))

    @classmethod
    def of(cls, layer: nn.Conv2d, coded: CodedTensor, seed: int, *, regenerate_signs: bool) -> PackedConv2d:
        """The layer with packed weights in place of its own."""
        return cls(
            coded, seed, bias=layer.bias, stride=layer.stride, padding=layer.padding, dilation=layer.dilation,
            groups=layer.groups, regenerate_signs=regenerate_signs,
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        if self.border is not None:
            x = F.pad(x, self.border)
        if torch.compiler.is_compiling() or torch.is_grad_enabled():
            kernel, *pairs, groups = (list(field) if isinstance(field, tuple) else field for field in self.geometry)
            y: Tensor = operators.conv2d(
                x, self.planes, self.scale, self.offset, self.bias, self.n_columns, self.signs, kernel, *pairs, groups
            )
            return y
        return convolution.conv2d(x, self.matrix(), self.bias, self.geometry)

    def materialize(self) -> nn.Conv2d:
        """An ``nn.Conv2d`` with the same weights and the same bias."""
        (_, *size), stride, _, dilation, groups = self.geometry
        layer = nn.Conv2d(
            self.in_channels, self.out_channels, size, stride, self.padding, dilation, groups, self.bias is not None,  # type: ignore[arg-type]
            device="meta",
        )  # fmt: skip
        return self._dense(layer, self.bias)  # type: ignore[return-value]


class PackedEmbedding(PackedLayer):
    """``nn.Embedding`` on packed bits: only the rows asked for become numbers.

    Args:
        coded: Weights [entries, features] over a base of signs.
        seed: Seed of the file.
        padding_idx: As of ``nn.Embedding``; the entry is looked up like any other.
        regenerate_signs: Make the signs anew at every call instead of holding them.
    """

    kind = nn.Embedding

    def __init__(
        self, coded: CodedTensor, seed: int, *, padding_idx: int | None = None, regenerate_signs: bool = False
    ) -> None:
        super().__init__(coded, seed, regenerate_signs=regenerate_signs)
        if len(coded.shape) != 2:
            raise ArgumentError("coded", f"shape {list(coded.shape)}", "[entries, features]")
        self.num_embeddings, self.embedding_dim = coded.shape
        self.padding_idx = padding_idx

    @classmethod
    def of(cls, layer: nn.Embedding, coded: CodedTensor, seed: int, *, regenerate_signs: bool) -> PackedEmbedding:
        """The layer with packed weights in place of its own."""
        return cls(coded, seed, padding_idx=layer.padding_idx, regenerate_signs=regenerate_signs)

    def forward(self, ids: Tensor) -> Tensor:
        rows: Tensor = operators.embedding(
            ids, self.planes, self.scale, self.offset, self.n_columns, self.signs, self.form.dtype
        )
        return rows

    def materialize(self) -> nn.Embedding:
        """An ``nn.Embedding`` with the same weights."""
        layer = nn.Embedding(self.num_embeddings, self.embedding_dim, self.padding_idx, device="meta")
        return self._dense(layer)  # type: ignore[return-value]


Packed: TypeAlias = PackedLinear | PackedConv2d | PackedEmbedding
LAYERS: Mapping[type[nn.Module], Any] = {layer.kind: layer for layer in (PackedLinear, PackedConv2d, PackedEmbedding)}


def unpackable(model: nn.Module, coded: Mapping[str, CodedTensor]) -> dict[str, str]:
    """Coded tensors that no packed layer can hold, by name, and why."""
    owners = {f"{path}.weight".lstrip("."): module for path, module in model.named_modules()}
    return {name: reason for name in coded if (reason := _obstacle(owners.get(name), coded[name]))}


def pack_layers(
    model: nn.Module, coded: Mapping[str, CodedTensor], seed: int, *, regenerate_signs: bool = False
) -> None:
    """Replaces layers of a model by packed ones, in place.

    Args:
        model: Its coded weights may be on the ``meta`` device; biases are taken over.
        coded: Weights to pack, by state-dict name, none of them :func:`unpackable`.
        seed: Seed of the file.
        regenerate_signs: Make signs anew at every call instead of holding them.
    """
    for name, tensor in coded.items():
        path = name.removesuffix("weight").removesuffix(".")
        layer = model.get_submodule(path)
        packed = LAYERS[type(layer)].of(layer, tensor, seed, regenerate_signs=regenerate_signs)
        model.set_submodule(path, packed.train(layer.training), strict=True)


def materialize(model: nn.Module) -> nn.Module:
    """Replaces all packed layers of a model by dense ones, in place; the model can be saved again afterwards.

    Returns:
        The model, or its dense replacement where the model itself is a packed layer.
    """
    packed = {path: module for path, module in model.named_modules() if isinstance(module, Packed)}
    coded = {f"{path}.weight".lstrip("."): module.coded() for path, module in packed.items()}
    for path, module in packed.items():
        if not path:
            return module.materialize()
        model.set_submodule(path, module.materialize(), strict=True)
    if packed:
        recipe = recipe_of(model)
        attach(model, replace(recipe, coded=dict(recipe.coded) | coded))
    return model


def _obstacle(layer: nn.Module | None, coded: CodedTensor) -> str:
    if layer is None or type(layer) not in LAYERS:
        return f"no packed layer for {'a tensor that is no weight' if layer is None else type(layer).__name__}"
    if coded.base not in SIGNS:
        return f"base {coded.base}"
    if coded.origin is not None:
        return "levels over another checkpoint"
    if len(coded.planes) > 7:
        return f"{len(coded.planes)} planes"
    if isinstance(layer, nn.Conv2d) and layer.padding_mode != "zeros":
        return f"padding mode {layer.padding_mode}"
    if isinstance(layer, nn.Embedding) and (layer.max_norm is not None or layer.scale_grad_by_freq or layer.sparse):
        return "an embedding with max_norm, scale_grad_by_freq or sparse"
    return ""


def _parameter(bias: Tensor | None) -> nn.Parameter | None:
    return bias if bias is None or isinstance(bias, nn.Parameter) else nn.Parameter(bias)
