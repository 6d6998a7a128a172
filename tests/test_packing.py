from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from smask import packing
from smask.coded import CodedTensor
from smask.errors import ArgumentError, UnsupportedError
from smask.reconstruction import reconstruct

SHAPES = [(1, 1), (3, 32), (5, 33), (7, 100), (64, 256), (2, 3, 3, 3), (6, 0), (0, 5), (4,)]


def random_coded(
    shape: tuple[int, ...],
    *,
    planes: int = 1,
    flips: bool = False,
    offset: bool = False,
    channels: bool = True,
    seed: int = 0,
    density: float = 0.5,
) -> CodedTensor:
    """A coded tensor with random planes."""
    random = torch.Generator().manual_seed(seed)
    n = 1
    for size in shape:
        n *= size

    def bits(p: float) -> torch.Tensor:
        values = (torch.rand(n, generator=random) < p).to(torch.uint8)
        values = torch.nn.functional.pad(values, (0, -n % 8)).view(-1, 8)
        return (values << torch.arange(8, dtype=torch.uint8)).sum(1, dtype=torch.uint8)

    masks = tuple(bits(density) for _ in range(planes))
    kept = masks[0].clone()
    for mask in masks[1:]:
        kept |= mask
    n_scales = shape[0] if channels else 1
    scale = torch.rand(n_scales, generator=random) + 0.5
    return CodedTensor(
        shape, 3, masks, scale, flip=bits(0.3) & kept if flips else None,
        offset=torch.rand(n_scales, generator=random) / 2 if offset else None,
    )  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("planes", "flips", "offset"), [(1, False, False), (1, True, False), (3, True, True)])
@pytest.mark.parametrize("regenerate", [False, True])
def test_dense_rows_are_the_weights_bit_for_bit(
    shape: tuple[int, ...], planes: int, flips: bool, offset: bool, regenerate: bool
) -> None:
    coded = random_coded(shape, planes=planes, flips=flips, offset=offset)
    packed = packing.pack(coded, 2**63 + 9, regenerate_signs=regenerate)
    want = reconstruct(coded, 2**63 + 9).reshape(packed.n_rows, packed.n_columns)
    assert torch.equal(packing.dense_rows(packed).view(torch.int32), want.view(torch.int32))
    some = torch.arange(0, packed.n_rows, 2)
    assert torch.equal(packing.dense_rows(packed, some).view(torch.int32), want[some].view(torch.int32))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("planes", "flips"), [(1, False), (1, True), (4, True)])
@pytest.mark.parametrize("regenerate", [False, True])
def test_unpacking_gives_the_coded_tensor_back(
    shape: tuple[int, ...], planes: int, flips: bool, regenerate: bool
) -> None:
    coded = random_coded(shape, planes=planes, flips=flips, offset=planes > 1)
    packed = packing.pack(coded, 5, regenerate_signs=regenerate)
    again = packing.unpack(packed, seed=5, form=replace(coded, planes=(), flip=None))
    assert again.shape == coded.shape
    assert all(torch.equal(a, b) for a, b in zip(again.planes, coded.planes, strict=True))
    if coded.flip is None or not coded.flip.any():
        assert again.flip is None
    else:
        assert again.flip is not None
        assert torch.equal(again.flip, coded.flip)
    assert torch.equal(again.scale, coded.scale)


def test_bits_are_all_that_is_held() -> None:
    coded = random_coded((64, 4096), channels=False)
    held, regenerated = packing.pack(coded, 1), packing.pack(coded, 1, regenerate_signs=True)
    assert held.n_bytes == 64 * 4096 * 2 // 8 + 4
    assert regenerated.n_bytes == 64 * 4096 // 8 + 4
    assert packing.pack(random_coded((8, 32), planes=3), 1).planes.shape == (4, 8, 4)


def test_a_flipped_tensor_holds_its_signs() -> None:
    packed = packing.pack(random_coded((8, 32), flips=True), 1, regenerate_signs=True)
    assert packed.signs is None


@pytest.mark.parametrize("density", [0.0, 1.0])
def test_masks_of_zeros_and_of_ones(density: float) -> None:
    coded = random_coded((9, 40), planes=2, flips=True, density=density)
    assert torch.equal(packing.dense_rows(packing.pack(coded, 4)), reconstruct(coded, 4))


def test_refusals_name_what_is_wrong() -> None:
    coded = random_coded((4, 32))
    with pytest.raises(UnsupportedError) as unsupported:
        packing.pack(CodedTensor((4, 32), 0, coded.planes, coded.scale, base="normal"), 0)
    assert unsupported.value.got == "normal"
    packed = packing.pack(coded, 0)
    with pytest.raises(ArgumentError) as error:
        packing.PackedMatrix(packed.planes[:, :, :3], 32, packed.scale)
    assert error.value.name == "planes"
    assert error.value.got == "torch.uint8 [2, 4, 3]"
    assert "[planes, rows, 4]" in error.value.want
    with pytest.raises(ArgumentError) as error:
        packing.PackedMatrix(packed.planes, 32, torch.ones(3))
    assert (error.value.name, error.value.want) == ("scale", "[1] or [4]")
    with pytest.raises(ArgumentError) as error:
        packing.pack(random_coded((4, 32), planes=8), 0)
    assert "8 planes" in str(error.value.got)
