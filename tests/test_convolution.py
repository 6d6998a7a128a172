from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from smask import convolution, kernels, packing, tiles
from smask.convolution import Geometry
from smask.errors import ArgumentError
from smask.reconstruction import reconstruct
from test_packing import random_coded

# Weights, stride, padding, dilation, groups.
CASES = [
    ((8, 3, 3, 3), (1, 1), (1, 1), (1, 1), 1),
    ((8, 3, 5, 2), (2, 3), (2, 0), (1, 2), 1),
    ((12, 2, 3, 3), (1, 1), (1, 1), (2, 2), 3),
    ((9, 1, 3, 3), (1, 2), (1, 1), (1, 1), 9),
    ((64, 16, 3, 3), (1, 1), (1, 1), (1, 1), 2),
    ((1, 1, 1, 1), (1, 1), (0, 0), (1, 1), 1),
]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("n_tile_bytes", [1 << 21, 3000])
def test_convolution_and_its_gradient(
    case: tuple, dtype: torch.dtype, n_tile_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape, stride, padding, dilation, groups = case
    monkeypatch.setitem(tiles.level_tiles.__kwdefaults__, "n_tile_bytes", n_tile_bytes)
    monkeypatch.setattr(kernels, "N_COMPILE_WEIGHTS", 0 if n_tile_bytes > 3000 else 1 << 60)
    coded = random_coded(shape, planes=2, flips=True)
    packed = packing.pack(coded, 7)
    random = torch.Generator().manual_seed(0)
    x = torch.randn(2, shape[1] * groups, 11, 12, generator=random).to(dtype)
    bias = torch.randn(shape[0], generator=random)
    geometry = Geometry(shape[1:], stride, padding, dilation, groups)
    wide = x.double().requires_grad_()
    want = F.conv2d(wide, reconstruct(coded, 7).double(), bias.double(), stride, padding, dilation, groups)
    got = convolution.conv2d(x, packed, bias, geometry)
    assert got.dtype == dtype
    tolerance = {torch.float32: 2e-6, torch.float64: 1e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    assert (got.double() - want).abs().max() <= tolerance * want.abs().max()
    assert torch.equal(
        convolution.conv2d(x[0], packed, bias, geometry), convolution.conv2d(x[:1], packed, bias, geometry)[0]
    )
    gradient = torch.randn(want.shape, generator=random, dtype=torch.float64)
    (wanted,) = torch.autograd.grad(want, wide, gradient)
    found = convolution.conv2d_input_gradient(gradient.to(dtype), packed, geometry, shape=x.shape)
    assert found.dtype == dtype
    assert (found.double() - wanted).abs().max() <= tolerance * wanted.abs().max()


def test_refusals_name_what_is_wrong() -> None:
    packed = packing.pack(random_coded((8, 3, 3, 3)), 7)
    geometry = Geometry((3, 3, 3), (1, 1), (1, 1), (1, 1), 1)
    for x, want in (
        (torch.ones(2, 4, 9, 9), "[N, 3, H, W]"),
        (torch.ones(3, 9), "[N, 3, H, W]"),
        (
            torch.ones(2, 3, 9, 9, dtype=torch.int64),
            "torch.float32 or torch.bfloat16 or torch.float16 or torch.float64",
        ),
        (torch.ones(2, 3, 9, 9, device="meta"), "on cpu, as the weights"),
    ):
        with pytest.raises(ArgumentError) as error:
            convolution.conv2d(x, packed, None, geometry)
        assert (error.value.name, error.value.want) == ("x", want)
