from __future__ import annotations

import pytest
import torch
from torch._inductor.utils import fresh_cache, run_and_get_code

from smask import compiler, fused, packing
from smask.reconstruction import reconstruct
from test_packing import random_coded


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("planes", [1, 3])
@pytest.mark.parametrize("n_rows", [1, 2, 3])
def test_rows_that_share_a_loop(n_rows: int, planes: int, compile: bool) -> None:
    """As on a CUDA device, where the levels made of bits are used for several rows of x."""
    coded = random_coded((70, 96), planes=planes)
    packed = packing.pack(coded, 11)
    x = torch.randn(n_rows, 96, generator=torch.Generator().manual_seed(0))
    columns = torch.empty(n_rows, 8, 4, 3)
    fused._slabs(columns, x.view(n_rows, 3, 4, 8))
    y = torch.empty(n_rows, 70)
    arguments = (columns, packed.planes.view(torch.int32), packed.scale, *y.unbind())
    (compiler.compiled(fused._fused, *arguments, contract=True) if compile else fused._fused)(*arguments)
    want = x.double() @ reconstruct(coded, 11).double().t()
    assert (y.double() - want).abs().max() <= 1e-6 * 4**planes * 96


@pytest.mark.parametrize("amx", [False, True])
@pytest.mark.parametrize("n_rows", [1, 2, 5])
def test_loops_of_processors_with_amx_and_without(monkeypatch: pytest.MonkeyPatch, n_rows: int, amx: bool) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(compiler, "_MADE", {})  # what was compiled for the other kind is not found again
    coded = random_coded((48, 160))
    x = torch.randn(n_rows, 160, generator=torch.Generator().manual_seed(0))
    got = fused.fused(x, packing.pack(coded, 11), None)
    want = x.double() @ reconstruct(coded, 11).double().t()
    assert (got.double() - want).abs().max() <= 1e-6 * want.abs().max() * 160


@pytest.mark.skipif(not compiler.available(), reason="no compiler")
def test_two_rows_are_one_loop() -> None:
    """Nothing between bits and sums lies in memory; Inductor would write what is added up for the second row."""
    packed = packing.pack(random_coded((256, 2048)), 11)
    columns, y = torch.ones(2, 8, 4, 64), torch.empty(2, 256)
    arguments = (columns, packed.planes.view(torch.int32), packed.scale, *y.unbind())
    written = {}
    for one_loop in (False, True):
        with fresh_cache():
            options = compiler._options(contract=True, one_loop=one_loop)
            _, codes = run_and_get_code(compiler._inductor, fused._fused, arguments, options)
        written[one_loop] = any("empty_strided_cpu((256, 64)" in code for code in codes)
    assert written == {False: True, True: False}


def test_slabs_hold_half_of_every_column() -> None:
    x = torch.arange(64.0).view(1, 64)
    columns = torch.empty(1, 8, 4, 2)
    fused._slabs(columns, x.view(1, 2, 4, 8))
    for word in range(2):
        for bit in range(32):
            assert columns[0, bit & 7, bit >> 3, word] == (32 * word + bit) / 2
