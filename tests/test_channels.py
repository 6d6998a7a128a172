"""Which channels have bits, and how many weights of each are kept."""

import math

import numpy as np
import pytest
import torch

import smask
from smask.channels import Heard, kept_of_channels
from smask.coded import CodedTensor
from smask.recipe import Recipe
from smask.reconstruction import reconstruct
from smask.records import Record, Scale


@pytest.mark.parametrize("shape", [(5, 3), (40_000, 7), (3, 200_003), (9, 2, 5), (4, 0), (0, 4), (0,), ()])
def test_channels_of_any_shape(shape: tuple[int, ...]) -> None:
    random = np.random.default_rng(3)
    planes = random.random((2, *shape)) < 0.3
    if shape:
        planes[:, :1] = False
    packed = [np.packbits(plane.reshape(-1), bitorder="little") for plane in planes]
    wanted = planes.any(0).reshape(shape[0] if shape else 1, math.prod(shape[1:])).sum(1)
    assert kept_of_channels(packed, shape).tolist() == wanted.tolist()


def record(shape: tuple[int, ...], dtype: str = "BF16", **fields: object) -> Record:
    return Record("w", shape, planes=2, scale=Scale("channel", dtype), **fields)


@pytest.mark.clause("P-08")
@pytest.mark.parametrize("n_row", [1, 3, 8, 60_000])
def test_bits_of_heard_channels_and_back(n_row: int) -> None:
    random = np.random.default_rng(n_row)
    scale = random.integers(1, 256, (21, 2)).astype(np.uint8)
    scale[::3] = 0
    scale[3, 1] = 0x80  # a sign alone
    heard = Heard.of(record((21, n_row)), [scale])
    assert heard.shape == (14, n_row)
    bits = random.random((21, n_row)) < 0.3
    taken = heard.taken(np.packbits(bits.reshape(-1), bitorder="little"))
    live = np.arange(21) % 3 > 0
    assert taken.tobytes() == np.packbits(bits[live].reshape(-1), bitorder="little").tobytes()
    bits[~live] = False
    assert heard.spread(taken).tobytes() == np.packbits(bits.reshape(-1), bitorder="little").tobytes()


@pytest.mark.clause("P-08")
def test_which_records_have_silent_channels() -> None:
    zeros = np.zeros((4, 2), np.uint8)
    assert Heard.of(record((4, 5)), [zeros]).shape == (0, 5)
    assert Heard.of(record((4, 0)), [zeros]).n_weights == 0
    for other in (
        record((4, 5), trellis=True),
        Record("w", (4, 5), planes=1, scale=Scale("tensor", "BF16")),
        Record("w", (4, 5), planes=1, base="values", stored="BF16"),
    ):
        assert Heard.of(other, [zeros]).marks is None
    one = np.array([[0, 0], [1, 0], [0, 1], [0, 128]], np.uint8)
    assert Heard.of(record((4, 5)), [one]).shape == (2, 5)


@pytest.mark.clause("P-08")
@pytest.mark.parametrize("n_planes", [1, 3])
@pytest.mark.parametrize("flip", [False, True])
def test_a_silent_channel_costs_no_bits(n_planes: int, flip: bool) -> None:
    torch.manual_seed(0)
    planes = tuple(torch.randint(0, 256, (64 * 100 // 8,), dtype=torch.uint8) for _ in range(n_planes))
    signs = torch.randint(0, 256, (800,), dtype=torch.uint8) if flip else None
    sizes = []
    for scale in (torch.ones(64), torch.ones(64).index_fill_(0, torch.arange(0, 64, 2), 0.0)):
        coded = CodedTensor((64, 100), 0, planes, scale, flip=signs)
        weights = reconstruct(coded, 3)
        data = smask.encode({"w": weights}, Recipe(3, {"w": coded}))
        sizes.append(smask.inspect(data).n_plane_bytes)
        assert torch.equal(smask.decode(data)["w"], weights)
        assert smask.verify(data).same
        report = smask.inspect(data).tensors[0]
        assert report.n_kept == int((weights != 0).sum())
        assert report.n_empty_channels == int((scale == 0).sum())
    assert sizes[1] == pytest.approx(sizes[0] / 2, rel=0.01)
