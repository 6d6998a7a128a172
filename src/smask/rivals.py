"""What packed products are measured beside: dense ones and torch's own low-bit kernels, over random weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .coded import CodedTensor
from .packing import PackedMatrix, pack
from .reconstruction import reconstruct

SEED = 1
N_GROUP = 128  # columns of one scale in torch's 4-bit kernel
# Weights that are multiplied one after the other on a CUDA device, over the size of the last cache.
N_CACHES = 2


@dataclass(frozen=True)
class Work:
    """A product, and the same with other copies of the weights."""

    runs: Sequence[Callable[[], Tensor]]
    weight_bytes: int
    packed: bool

    @property
    def run(self) -> Callable[[], Tensor]:
        return self.runs[0]


class Weights:
    """Random weights of one shape in every form that is compared."""

    def __init__(self, shape: tuple[int, int], planes: int, device: torch.device) -> None:
        n_rows, n_columns = self.shape = shape
        self.n_planes, self.device = planes, device
        random = torch.Generator().manual_seed(0)
        n_bytes = (n_rows * n_columns + 7) // 8
        masks = tuple(torch.randint(0, 256, (n_bytes,), generator=random, dtype=torch.uint8) for _ in range(planes))
        if n_rows * n_columns % 8:
            for mask in masks:
                mask[-1] &= (1 << n_rows * n_columns % 8) - 1
        coded = CodedTensor(shape, 0, masks, torch.rand(n_rows, generator=random) + 0.5)
        self.packed = _to(pack(coded, SEED), device)
        self.regenerated = _to(pack(coded, SEED, regenerate_signs=True), device)
        self.coded = replace(coded, planes=tuple(mask.to(device) for mask in masks), scale=coded.scale.to(device))
        self.dense = reconstruct(self.coded, SEED, device=device)

    def rivals(self, x: Tensor) -> dict[str, Work]:
        """Dense products and torch's low-bit kernels, each in the dtype it is made for; x is float32."""
        half, dense, dense_half = x.bfloat16(), self.dense, self.dense.bfloat16()
        works = {
            "dense float32": self.work(lambda weight: partial(F.linear, x, weight), dense),
            "dense bfloat16": self.work(lambda weight: partial(F.linear, half, weight), dense_half),
        }
        works |= self._low_bit_on_cpu(half) if self.device.type == "cpu" else self._low_bit_on_cuda(half)
        given = torch.empty_like(dense)

        def materialised() -> Tensor:
            return F.linear(x, reconstruct(self.coded, SEED, out=given))

        return works | {"materialised": Work([materialised], self.regenerated.n_bytes, False)}

    def work(self, product: Callable[[Any], Callable[[], Tensor]], weight: Any, *others: Tensor) -> Work:
        """A product with a weight, a tensor or a packed matrix, on a CUDA device with copies of it.

        Args:
            product: Makes a function of a weight.
            weight: It.
            others: What belongs to the weight and is not copied.
        """
        packed = isinstance(weight, PackedMatrix)
        n_bytes = weight.n_bytes if packed else _n_bytes(weight)
        n_copies = 1
        if self.device.type == "cuda":
            cache = torch.cuda.get_device_properties(self.device).L2_cache_size
            n_copies = math.ceil(N_CACHES * cache / n_bytes)
        copies = [_copy(weight) if packed else weight.clone() for _ in range(n_copies - 1)]
        return Work([product(one) for one in (weight, *copies)], n_bytes + sum(map(_n_bytes, others)), packed)

    def _low_bit_on_cpu(self, half: Tensor) -> dict[str, Work]:
        n_rows, n_columns = self.shape
        works: dict[str, Work] = {}
        # These kernels do not check their arguments: torch 2.13 crashes at other sizes.
        if n_rows % 64 or n_columns % N_GROUP:
            return works
        if hasattr(torch, "_weight_int4pack_mm_for_cpu"):
            codes = torch.zeros(n_rows, n_columns, dtype=torch.int32)
            four = torch._convert_weight_to_int4pack_for_cpu(codes, 1)
            groups = self._groups()
            multiply = torch._weight_int4pack_mm_for_cpu
            works["int4pack"] = self.work(lambda weight: partial(multiply, half, weight, N_GROUP, groups), four, groups)
        if hasattr(torch, "_weight_int8pack_mm"):
            eight, scale = torch.ones(n_rows, n_columns, dtype=torch.int8), torch.ones(n_rows, dtype=torch.bfloat16)
            works["int8pack"] = self.work(
                lambda weight: partial(torch._weight_int8pack_mm, half, weight, scale), eight, scale
            )
        return works

    def _low_bit_on_cuda(self, half: Tensor) -> dict[str, Work]:
        n_rows, n_columns = self.shape
        if n_rows % 64 or n_columns % N_GROUP or not hasattr(torch, "_convert_weight_to_int4pack"):
            return {}
        codes, groups = torch.zeros(n_rows, n_columns // 2, dtype=torch.uint8, device=self.device), self._groups()
        four = torch._convert_weight_to_int4pack(codes, 8)
        multiply = torch._weight_int4pack_mm
        return {"int4pack": self.work(lambda weight: partial(multiply, half, weight, N_GROUP, groups), four, groups)}

    def _groups(self) -> Tensor:
        """Scales and zeros of torch's 4-bit kernels."""
        n_rows, n_columns = self.shape
        return torch.ones(n_columns // N_GROUP, n_rows, 2, dtype=torch.bfloat16, device=self.device)


def _n_bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _copy(packed: PackedMatrix) -> PackedMatrix:
    return replace(packed, planes=packed.planes.clone())


def _to(packed: PackedMatrix, device: torch.device) -> PackedMatrix:
    return PackedMatrix(packed.planes.to(device), packed.n_columns, packed.scale.to(device), None, packed.signs)
