"""Layers that hold packed bits and run on them: in place of ``nn.Linear``, ``nn.Conv2d`` and ``nn.Embedding``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import convolution, kernels, operators
from .coded import CodedTensor
from .convolution import Geometry
from .errors import ArgumentError, UnsupportedError
from .packing import PackedMatrix, dense_rows, pack, unpack


class PackedLayer(nn.Module):
    """What packed layers share: bits, scale and offset as buffers, everything else as plain attributes.

    Layers that stand for one parameter have the same object as ``tie``, to be one again when they are dense. Where
    signs are regenerated a buffer says of what, so that a state dict is refused whose signs are others.

    The scale stays float32 under ``.half()`` and its like: it is a coefficient of the formula, not an activation. What
    becomes a weight again has the dtype that a dense one would have then, while the bits stay those of the file.
    """

    planes: Tensor
    scale: Tensor
    offset: Tensor | None
    source: Tensor | None
    kind: ClassVar[type[nn.Module]]

    def __init__(self, coded: CodedTensor, seed: int, *, regenerate_signs: bool = False) -> None:
        super().__init__()
        packed = pack(coded, seed, regenerate_signs=regenerate_signs)
        for name, tensor in _tensors(packed).items():
            self.register_buffer(name, tensor)
        self.n_columns = packed.n_columns
        self.seed, self.form, self.dtype = seed, _form(coded), coded.dtype
        self.signs: list[int] = operators.sign_numbers(packed.signs)
        self.tie = object()

    def matrix(self) -> PackedMatrix:
        """The weights as the kernels take them."""
        return operators.packed_matrix(self.planes, self.scale, self.offset, n_columns=self.n_columns, signs=self.signs)

    def coded(self) -> CodedTensor:
        """The weights as a file holds them."""
        return unpack(self.matrix(), seed=self.seed, form=self.form)

    def weight(self) -> Tensor:
        """The dense weights, on the device of the bits; until ``.half()`` or its like bit for bit those of the file."""
        return dense_rows(self.matrix()).to(self.form.dtype).to(self.dtype).view(self.form.shape)

    def packed(self, coded: CodedTensor, seed: int) -> PackedMatrix:
        """Other weights, as this layer would hold them; raises what :func:`smask.packing.pack` raises."""
        return pack(coded, seed, regenerate_signs=bool(self.signs))

    @torch.no_grad()
    def take(self, coded: CodedTensor, seed: int, packed: PackedMatrix) -> None:
        """Holds other weights of the same shape, in the memory that it has where they are of the same form.

        Args:
            coded: Weights.
            seed: Seed of the file.
            packed: The same, of :meth:`packed`.
        """
        for name, new in _tensors(packed).items():
            own = getattr(self, name)
            if own is not None and new is not None and own.shape == new.shape:
                own.copy_(new)
            else:
                setattr(self, name, None if new is None else new.to(self.planes.device))
        self.seed, self.form = seed, _form(coded)
        self.signs = operators.sign_numbers(packed.signs)

    def _narrow(self, x: Tensor) -> Tensor:
        """Under autocast: in its dtype, as of a dense layer, but what is computed wider for that stays so."""
        kind = x.device.type
        like = x.is_floating_point() and x.dtype != torch.float64
        with torch.autocast(kind, enabled=False):
            return self.forward(x.to(torch.get_autocast_dtype(kind)) if like else x)  # type: ignore[no-any-return]

    def _dense(self, layer: nn.Module, bias: Tensor | None = None) -> nn.Module:
        layer.weight = nn.Parameter(self.weight())
        if bias is not None:
            layer.bias = bias
        return layer.train(self.training)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PackedLayer:
        exact = {name: getattr(self, name) for name in ("scale", "offset")}
        self.dtype = fn(torch.empty(0, dtype=self.dtype, device=self.planes.device)).dtype
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, value in exact.items():
            # What has its dtype still was moved only, perhaps to memory without any numbers yet.
            if value is not None and getattr(self, name).dtype != value.dtype:
                setattr(self, name, value.to(self.planes.device))
        return self

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Tensor], prefix: str, local_metadata: Mapping[str, Any], strict: bool,
        missing_keys: list[str], unexpected_keys: list[str], error_msgs: list[str],
    ) -> None:  # fmt: skip
        source = state_dict.get(f"{prefix}source")
        signs = [] if source is None else source.tolist()
        if f"{prefix}planes" in state_dict and signs != self.signs:  # bits of the same shape are other weights
            got, want = _signs_text(signs), _signs_text(self.signs)
            error_msgs.append(f"signs of {prefix}planes: got {got} in the state dict, want {want} as in the layer.")
            return
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

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
        if torch._C._is_any_autocast_enabled() and torch.is_autocast_enabled(x.device.type):
            return self._narrow(x)
        if operators.transformed():
            return kernels.differentiable(x, self.matrix(), self.bias)
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
        if torch._C._is_any_autocast_enabled() and torch.is_autocast_enabled(x.device.type):
            return self._narrow(x)
        if self.border is not None:
            x = F.pad(x, self.border)
        if operators.transformed():
            return convolution.differentiable(x, self.matrix(), self.bias, self.geometry)
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
        if operators.transformed():
            return F.embedding(ids, self.weight())
        rows: Tensor = operators.embedding(
            ids, self.planes, self.scale, self.offset, self.n_columns, self.signs, self.form.dtype
        )
        return rows.to(self.dtype)

    def materialize(self) -> nn.Embedding:
        """An ``nn.Embedding`` with the same weights."""
        layer = nn.Embedding(self.num_embeddings, self.embedding_dim, self.padding_idx, device="meta")
        return self._dense(layer)  # type: ignore[return-value]


def _tensors(packed: PackedMatrix) -> dict[str, Tensor | None]:
    """What a layer holds of a matrix, by the name of the buffer."""
    signs = operators.sign_numbers(packed.signs)
    source = torch.tensor(signs, dtype=torch.int64, device=packed.planes.device) if signs else None
    return {"planes": packed.planes, "scale": packed.scale, "offset": packed.offset, "source": source}


def _signs_text(numbers: Sequence[int]) -> str:
    source = operators.sign_source(numbers)
    return f"those of seed {source.seed}, stream {source.stream}" if source else "signs that are held"


def _form(coded: CodedTensor) -> CodedTensor:
    return replace(coded, planes=(), flip=None, scale=torch.empty(0, dtype=torch.float32, device="cpu"), offset=None)


def _parameter(bias: Tensor | None) -> nn.Parameter | None:
    return bias if bias is None or isinstance(bias, nn.Parameter) else nn.Parameter(bias)
