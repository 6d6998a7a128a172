from __future__ import annotations

import pytest
import torch

from smask.fixedpoint import N_BLOCK_ROWS, fixed_point, recurs
from smask.tiles import natural_order


def value(x: torch.Tensor, n_digits: int, *, compile: bool = False) -> torch.Tensor:
    """What the digits say, float64 [B, K]."""
    n_columns = 32 * -(-x.shape[1] // 32)
    fixed = fixed_point(x, n_columns, n_digits=n_digits, compile=compile)
    number = sum(fixed.digits[index].double() * 256**index for index in range(n_digits))
    return natural_order(number * fixed.unit.double()[:, None], x.shape[1])


@pytest.mark.parametrize("n_digits", [1, 2, 3])
@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("n_rows", [1, 3, N_BLOCK_ROWS, N_BLOCK_ROWS + 1])
def test_error_is_at_most_half_a_unit(n_digits: int, compile: bool, n_rows: int) -> None:
    random = torch.Generator().manual_seed(n_digits)
    x = torch.randn(n_rows, 70, generator=random) * torch.logspace(-20, 20, n_rows)[:, None]
    unit = fixed_point(x, 96, n_digits=n_digits, compile=compile).unit.double()[:, None]
    assert bool(((value(x, n_digits, compile=compile) - x).abs() <= unit / 2).all())
    largest = x.abs().amax(1, keepdim=True).double()
    assert bool((unit * 128 * 256 ** (n_digits - 1) <= 2.02 * largest).all())


def test_bfloat16_is_exact_down_to_a_128th_of_the_largest() -> None:
    mantissas = torch.arange(128, 256).float()
    x = torch.cat([mantissas / 2**shift for shift in range(7, 14)])[None].bfloat16()
    assert torch.equal(value(x, 2), x.double())


@pytest.mark.parametrize("largest", [0.0, 1e-45, 1.2e-38, 1.0, 127.0, 127.5, 255 / 256, 65504.0, 3e38])
@pytest.mark.parametrize("n_digits", [1, 2, 3])
def test_extreme_rows(largest: float, n_digits: int) -> None:
    x = torch.zeros(2, 32)
    x[0, 3], x[1, 4] = largest, -largest
    error = (value(x, n_digits) - x.double()).abs().max().item()
    assert error <= max(2.0**-100, 1.02 * largest * 2.0 ** (1 - 8 * n_digits))


@pytest.mark.parametrize("poison", [float("inf"), float("-inf"), float("nan"), -float("nan"), 3.4e38])
@pytest.mark.parametrize("compile", [False, True])
def test_rows_without_digits_say_so(poison: float, compile: bool) -> None:
    x = torch.ones(3, 32)
    x[1, 7] = poison
    units = [fixed_point(row, 32, n_digits=2, compile=compile).unit.isnan().all() for row in x[:, None].unbind()]
    assert units == [False, True, False]
    assert fixed_point(x, 32, n_digits=2, compile=compile).unit.isnan().tolist() == [False, True, False]


def test_only_numbers_of_rows_that_recur_are_compiled() -> None:
    assert [n for n in range(260) if recurs(n)] == [1, 2, 4, 8, 16, 32, 64, 128, 192, 256]
