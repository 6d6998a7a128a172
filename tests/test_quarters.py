"""Products of float8 numbers: parts that add up to activations, levels made of bits, and what is not finite."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from smask import kernels, quarters, tiles
from smask.errors import UnsupportedError
from smask.packing import PackedMatrix, dense_rows, pack
from test_packing import random_coded

pytestmark = pytest.mark.skipif(
    not quarters._available(torch.device("cpu")), reason="this torch has no float8 products on processors"
)
BOTH = [torch.bfloat16, torch.float16]


def matrix(shape: tuple[int, int], *, regenerate: bool = False, **options: Any) -> PackedMatrix:
    return pack(random_coded(shape, **options), 7, regenerate_signs=regenerate)


def parts_of(x: torch.Tensor, *, compile: bool = False) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The number that the parts of x [B, 32 W] are, in float64 and bit order; units; how many are not finite."""
    n, n_words = len(x), x.shape[1] // 32
    unit, n_infinite = torch.empty(n), torch.empty(n)
    parts = torch.empty(quarters.N_PARTS[x.dtype], n, 8, n_words, 4, dtype=torch.float8_e4m3fn)
    arguments = (x.view(n, n_words, 4, 8), unit, n_infinite, *parts.unbind())
    (quarters.compiler.compiled(quarters._divide, *arguments) if compile else quarters._divide)(*arguments)
    whole = sum(part.double().view(n, -1) / 16**place for place, part in enumerate(parts))
    return whole * 2 * unit[:, None].double(), unit, n_infinite


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("dtype", BOTH)
def test_parts_are_the_number(dtype: torch.dtype, compile: bool) -> None:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(5, 64, generator=random) * torch.exp2(torch.randint(-13, 1, (5, 64), generator=random))
    x = (x * torch.tensor([1.0, 3e-3, 900.0, 0.0, 1.0])[:, None]).to(dtype)
    got, _, n_infinite = parts_of(x, compile=compile)
    want = tiles.bit_order(x, 64).double()
    near = want.abs() >= want.abs().amax(1, keepdim=True) / 2**13
    assert torch.equal(torch.where(near, got, 0.0), torch.where(near, want, 0.0))
    assert ((got - want).abs() <= want.abs().amax(1, keepdim=True) / 2**21).all()
    assert near.sum() > 200
    assert n_infinite.tolist() == [0.0] * 5


def test_numbers_from_the_smallest_to_the_largest() -> None:
    x = torch.zeros(6, 32, dtype=torch.bfloat16)
    for row, top in enumerate((3.38e38, 1e30, 1.0, 1e-30, 2e-37, 1e-40)):
        x[row, :3] = torch.tensor([top, -top / 3, top / 5])
    got, _, n_infinite = parts_of(x)
    want = tiles.bit_order(x, 32).double()
    assert torch.equal(got[:5], want[:5])
    assert (got[5] - want[5]).abs().max() < 2**-133  # far below the smallest normal number
    assert not n_infinite.any()


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("regenerate", [False, True])
@pytest.mark.parametrize("shape", [(40, 64), (33, 70), (1, 1), (17, 31)])
def test_levels_are_twice_those_of_the_formula(shape: tuple[int, int], regenerate: bool, compile: bool) -> None:
    packed = matrix(shape, regenerate=regenerate)
    n_columns = 8 * packed.planes.shape[2]
    want = tiles.bit_order((dense_rows(packed) / packed.scale[:, None]).round(), n_columns)
    n_seen = 0
    for start, end, levels in quarters.quarter_tiles(packed, compile=compile, n_tile_bytes=1 << 10):
        assert start == n_seen
        assert levels.dtype == torch.float8_e4m3fn
        assert len(levels) % 16 == 0
        assert torch.equal(levels[: end - start].float(), 2 * want[start:end])
        n_seen = end
    assert n_seen == shape[0]


@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize("regenerate", [False, True])
@pytest.mark.parametrize("shape", [(70, 100), (16, 32), (1, 1), (280, 1000)])
@pytest.mark.parametrize("n_rows", [1, 8, 9, 64])
def test_products(shape: tuple[int, int], regenerate: bool, dtype: torch.dtype, n_rows: int) -> None:
    packed, random = matrix(shape, regenerate=regenerate), torch.Generator().manual_seed(n_rows)
    x = torch.randn(n_rows, shape[1], generator=random).to(dtype)
    for bias in (None, torch.randn(shape[0], generator=random)):
        got = kernels.matmul(x, packed, bias, kernel="float8")
        want = x.double() @ dense_rows(packed).double().t() + (0 if bias is None else bias.double())
        assert (got.dtype, got.shape) == (dtype, want.shape)
        # A rounding to the dtype, and nothing else.
        assert ((got.double() - want).abs() <= want.abs() * torch.finfo(dtype).eps + 1e-4).all()


@pytest.mark.parametrize("compile", [False, True])
def test_tiles_are_joined(monkeypatch: pytest.MonkeyPatch, compile: bool) -> None:
    monkeypatch.setattr(kernels, "N_COMPILE_WEIGHTS", 0 if compile else 1 << 30)
    monkeypatch.setattr(quarters.quarter_tiles, "__kwdefaults__", {"n_tile_bytes": 1 << 12})
    packed, x = matrix((170, 100)), torch.randn(4, 100, generator=torch.Generator().manual_seed(1)).bfloat16()
    want = x.double() @ dense_rows(packed).double().t() + 1
    got = kernels.matmul(x, packed, torch.ones(170), kernel="float8")
    assert ((got.double() - want).abs() <= want.abs() * 2**-8 + 1e-4).all()


@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize("compile", [False, True])
def test_infinities_and_nans_spread_as_in_the_reference(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, compile: bool
) -> None:
    monkeypatch.setattr(kernels, "N_COMPILE_WEIGHTS", 0 if compile else 1 << 30)
    packed, inf = matrix((70, 100), density=0.9), float("inf")
    x = torch.randn(8, 100, generator=torch.Generator().manual_seed(2)).to(dtype)
    x[0, 5], x[1, 6], x[2, 7] = inf, -inf, float("nan")
    x[3, 5:8], x[4, 5], x[4, 9], x[5, 5], x[5, 6] = inf, inf, -inf, inf, float("nan")
    x[6, :] = inf
    got = kernels.matmul(x, packed, torch.ones(70), kernel="float8")
    want = kernels.matmul(x, packed, torch.ones(70), kernel="reference")
    assert got[:6].isinf().any(1).tolist() == [True, True, False, True, True, False]
    torch.testing.assert_close(got, want, equal_nan=True, rtol=1e-2, atol=1e-2)


def test_numbers_next_to_the_largest_do_not_overflow() -> None:
    packed = matrix((40, 64), density=1.0)
    x = torch.zeros(1, 64, dtype=torch.bfloat16)
    x[0, 20] = 3e38
    got = kernels.matmul(x, packed, kernel="float8").double()
    want = x.double() @ dense_rows(packed).double().t()
    inside = want.abs() < 3.3e38
    assert inside.any()
    assert torch.allclose(got[inside], want[inside], rtol=1e-2)


def test_what_it_refuses() -> None:
    x, packed = torch.ones(2, 40, dtype=torch.bfloat16), matrix((4, 40))
    assert quarters.refuses(x, packed) == ""
    for activations, weights in (
        (x.float(), packed), (x, matrix((4, 40), planes=2)), (x, matrix((4, 40), planes=1, offset=True)),
    ):  # fmt: skip
        with pytest.raises(UnsupportedError) as error:
            kernels.matmul(activations, weights, kernel="float8")
        assert error.value.what == "product for kernel float8"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("regenerate", [False, True])
@pytest.mark.parametrize(("dtype", "n_rows"), [(torch.bfloat16, 5), (torch.bfloat16, 64), (torch.float16, 64)])
def test_cuda(dtype: torch.dtype, n_rows: int, regenerate: bool) -> None:
    packed = matrix((600, 4096), regenerate=regenerate)
    there = PackedMatrix(packed.planes.cuda(), 4096, packed.scale.cuda(), None, packed.signs)
    x = torch.randn(n_rows, 4096, generator=torch.Generator().manual_seed(1)).to(dtype)
    x[0, 5] = float("inf")
    if not quarters.refuses(x.cuda(), there):
        assert kernels.choose(x.cuda(), there) == "float8"
    got = kernels.matmul(x.cuda(), there, torch.ones(600).cuda()).cpu().double()
    want = x.double() @ dense_rows(packed).double().t() + 1
    torch.testing.assert_close(got[0], want[0], equal_nan=True)
    assert float((got[1:] - want[1:]).norm() / want[1:].norm()) < 4e-3
