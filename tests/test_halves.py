"""Tiles of bfloat16 levels made of bits: which column is where, and that levels are those of the plain formula."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from smask import compiler, halves, kernels
from smask.packing import PackedMatrix, dense_rows, pack
from test_packing import random_coded


def matrix(shape: tuple[int, int], *, regenerate: bool = False, **options: Any) -> PackedMatrix:
    return pack(random_coded(shape, **options), 7, regenerate_signs=regenerate)


def test_columns_of_pairs_are_sixteen_apart() -> None:
    order = halves.pair_order(torch.arange(64.0)[None], 64)[0].tolist()
    assert order[:6] == [0, 16, 32, 48, 1, 17]
    assert order[-2:] == [47, 63]
    padded = halves.pair_order(torch.ones(1, 3), 32)[0]
    assert padded.nonzero().flatten().tolist() == [0, 2, 4]


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("regenerate", [False, True])
@pytest.mark.parametrize("shape", [(40, 64), (33, 70), (1, 1), (17, 31)])
def test_levels_are_those_of_the_formula(shape: tuple[int, int], regenerate: bool, compile: bool) -> None:
    packed = matrix(shape, regenerate=regenerate)
    n_columns = 8 * packed.planes.shape[2]
    want = halves.pair_order((dense_rows(packed) / packed.scale[:, None]).round().bfloat16(), n_columns)
    n_seen = 0
    for start, end, levels in halves.pair_tiles(packed, compile=compile, n_tile_bytes=1 << 11):
        assert start == n_seen
        assert levels.dtype == torch.bfloat16
        assert torch.equal(levels, want[start:end])
        n_seen = end
    assert n_seen == shape[0]


def test_matrices_that_do_not_fit() -> None:
    assert halves.fits(matrix((4, 40)), torch.bfloat16)
    assert not halves.fits(matrix((4, 40)), torch.float32)
    assert not halves.fits(matrix((4, 40), planes=2), torch.bfloat16)


@pytest.mark.parametrize("amx", [False, True])
@pytest.mark.parametrize("regenerate", [False, True])
def test_rows_that_take_turns(monkeypatch: pytest.MonkeyPatch, regenerate: bool, amx: bool) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    packed = matrix((70, 100), regenerate=regenerate)
    x = torch.randn(10, 100, generator=torch.Generator().manual_seed(1)).bfloat16()
    whole = kernels.matmul(x, packed, torch.ones(70), kernel="tiled")
    want = x.double() @ dense_rows(packed).double().t() + 1
    assert float((whole.double() - want).norm() / want.norm()) < 4e-3
    monkeypatch.setattr(kernels, "N_TURN_BYTES_AMX" if amx else "N_TURN_BYTES", 3 * 200)
    assert torch.allclose(kernels.matmul(x, packed, torch.ones(70), kernel="tiled").float(), whole.float(), rtol=1e-2)


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("shape", [(2500, 100), (33, 64), (1, 1)])
def test_products_of_amx_are_those_of_others(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int], biased: bool, compile: bool
) -> None:
    """Levels times columns, over several tiles, instead of rows times levels; both round a sum to bfloat16."""
    monkeypatch.setattr(kernels, "N_TILE_BYTES_AMX", 1 << 18)
    monkeypatch.setattr(kernels, "N_SUMS_AMX", 9 * 2499)
    monkeypatch.setattr(kernels, "N_COMPILE_WEIGHTS", 0)
    packed, random = matrix(shape), torch.Generator().manual_seed(2)
    x = torch.randn(9, shape[1], generator=random).bfloat16()
    bias = torch.randn(shape[0], generator=random) if biased else None
    found = {}
    for amx in (False, True):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx)
        found[amx] = kernels.matmul(x, packed, bias, kernel="tiled" if compile else "eager")
    want = x.double() @ dense_rows(packed).double().t() + (bias.double() if bias is not None else 0)
    for y in found.values():
        assert y.dtype == torch.bfloat16
        assert float((y.double() - want).norm() / want.norm()) < 4e-3


def test_numbers_next_to_the_largest_do_not_overflow() -> None:
    packed = matrix((40, 64), density=1.0)
    x = torch.zeros(1, 64, dtype=torch.bfloat16)
    x[0, 20] = 3e38
    got = kernels.matmul(x, packed, kernel="tiled").double()
    want = x.double() @ dense_rows(packed).double().t()
    inside = want.abs() < 3.3e38
    assert inside.any()
    assert torch.allclose(got[inside], want[inside], rtol=1e-2)


@pytest.mark.parametrize("compile", [False, True])
def test_levels_of_a_cuda_device_are_twice_the_others(compile: bool) -> None:
    random = torch.Generator().manual_seed(0)
    words = torch.randint(-(2**31), 2**31 - 1, (2, 5, 7), dtype=torch.int32, generator=random)
    signs, mask = words[0] & words[1], words[1]
    once, twice = torch.empty(5, 8, 2, 7, dtype=torch.int32), torch.empty(5, 8, 2, 7, dtype=torch.int32)
    halves._fill(once, signs, mask)
    (compiler.compiled(halves._fill_twice, twice, signs, mask) if compile else halves._fill_twice)(twice, signs, mask)
    assert torch.equal(2 * once.view(torch.bfloat16), twice.view(torch.bfloat16))
    x = torch.randn(3, 7, 2, 16, generator=random).bfloat16()
    whole, half = torch.empty(3, 16, 7, 2, dtype=x.dtype), torch.empty(3, 16, 7, 2, dtype=x.dtype)
    halves._order(whole, x)
    halves._order_half(half, x)
    assert torch.equal(whole, 2 * half)
