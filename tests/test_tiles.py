"""Tiles of levels: which rows are in which, and in what memory."""

from __future__ import annotations

import pytest
import torch

from smask import halves, kernels
from smask import tiles as tiles_of
from smask.modules import PackedLinear
from smask.packing import PackedMatrix, pack
from smask.reconstruction import reconstruct
from smask.tiles import bit_order, buffer, natural_order, rows_of_tiles, tiles
from test_packing import random_coded

CPU = torch.device("cpu")


def test_columns_in_bit_order() -> None:
    x = torch.arange(32.0)[None]
    assert bit_order(x, 32)[0, :8].tolist() == [0, 8, 16, 24, 1, 9, 17, 25]
    assert torch.equal(natural_order(bit_order(x[:, :30], 32), 30), x[:, :30])


def test_tiles_hold_every_row_once() -> None:
    coded = random_coded((600, 4096))
    packed, dense = pack(coded, 7), reconstruct(coded, 7).double()
    seen = []
    for start, end, levels in tiles(packed, compile=False, n_tile_bytes=1 << 19):
        seen += range(start, end)
        got = natural_order(levels, 4096).double() * packed.scale[start:end, None].double()
        assert torch.equal(got.float(), dense[start:end].float())
    assert seen == list(range(600))


@pytest.mark.parametrize("n_rows", [0, 1, 15, 16, 17, 100, 4096])
@pytest.mark.parametrize("n_tile_bytes", [100, 1 << 10, 1700, 90_112, 1 << 20])
def test_tiles_are_about_equal_and_cover_all_rows(n_rows: int, n_tile_bytes: int) -> None:
    packed = PackedMatrix(torch.zeros(2, n_rows, 4, dtype=torch.uint8), 32, torch.ones(1))
    rows = [*rows_of_tiles(packed, 64, n_tile_bytes)]
    assert [row for one in rows for row in range(one.start, one.stop)] == [*range(n_rows)]
    sizes, most = [one.stop - one.start for one in rows], max(1, n_tile_bytes // 64)
    unit = 16 if most >= 16 else 1
    assert all(size <= most and size % unit == 0 for size in sizes[:-1])
    assert len(sizes) <= -(-n_rows // (most - most % unit))  # no more than the largest ones would be
    if n_tile_bytes == 90_112 and n_rows == 4096:
        assert sizes == [1376, 1376, 1344]  # not 1408, 1408 and 1280


@pytest.mark.parametrize("regenerate_signs", [False, True])
def test_plans_are_made_once(regenerate_signs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for matrices that are made anew of the same planes, as layers do at every call."""
    layer, made = PackedLinear(random_coded((40, 64)), 7, regenerate_signs=regenerate_signs), []
    monkeypatch.setattr(tiles_of, "_steps", lambda *args, make=tiles_of._steps: made.append(args) or make(*args))
    for _ in range(3):
        list(tiles(layer.matrix(), compile=False))
    assert len(made) == 1


def test_large_rooms_are_not_kept() -> None:
    few, many = (buffer(n, torch.float32, CPU, use="test") for n in (8, 1 << 22))
    assert len(many) == 1 << 22
    assert buffer(8, torch.float32, CPU, use="test").data_ptr() == few.data_ptr()


def test_rooms_begin_with_what_they_will_need() -> None:
    few = buffer(8, torch.int16, CPU, use="a test of rooms", n_least=1000)
    assert len(few) == 8
    more = buffer(1000, torch.int16, CPU, use="a test of rooms", n_least=1000)
    assert (len(more), more.data_ptr()) == (1000, few.data_ptr())
    # No more than may be kept.
    assert buffer(8, torch.int16, CPU, use="another", n_least=1 << 40).untyped_storage().nbytes() <= 16 << 20


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tiles_of_small_matrices_are_small_on_cuda(dtype: torch.dtype) -> None:
    packed = pack(random_coded((64, 64)), 7)
    there = PackedMatrix(packed.planes.cuda(), 64, packed.scale.cuda(), None, packed.signs)
    assert halves.fits(there, dtype) == (dtype == torch.bfloat16)
    x = torch.ones(300, 64, dtype=dtype, device="cuda")
    kernels.matmul(x, there, kernel="eager")  # libraries make their own rooms the first time
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    kernels.matmul(x, there, kernel="eager")
    assert torch.cuda.max_memory_allocated() - before < 1 << 20
