"""Tensors whose values are in the file: the base ``values`` and tensors that are the same as another."""

import hashlib
import math
from pathlib import Path

import pytest
import torch

import smask
from smask import manifest
from smask.draft import N_OWN_SECTIONS
from smask.errors import ArgumentError
from smask.integrity import DTYPE_OF_NAME, raw_bytes
from smask.planes import Assembly
from smask.recipe import Recipe
from smask.records import Record, bit_sections
from smask.stored_tensors import values_record, values_tensor


def exactly(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(raw_bytes(a), raw_bytes(b))


def any_bits(dtype: torch.dtype, shape: tuple[int, ...], *, density: float, seed: int = 0) -> torch.Tensor:
    """Elements of random bytes, NaNs with payloads among them; the rest is zero."""
    random = torch.Generator().manual_seed(seed)
    n = math.prod(shape)
    if dtype == torch.bool:
        return (torch.rand(n, generator=random) < density).reshape(shape)
    content = torch.randint(0, 256, (n, dtype.itemsize), generator=random, dtype=torch.uint8)
    content[torch.rand(n, generator=random) >= density] = 0
    return content.reshape(-1).view(dtype).reshape(shape)


def there_and_back(tensor: torch.Tensor) -> torch.Tensor:
    record, sections = values_record("t", tensor)
    assembly = Assembly(record.shape, n_planes=1, flip=False)
    for kind, bits in sections:
        assert bits.n_bits == assembly.counts.n_bits(kind)
        assembly.add(kind, bits)
    return values_tensor(record, assembly).reshape(record.shape)


@pytest.mark.clause("R-05")
@pytest.mark.clause("S-05")
@pytest.mark.parametrize("dtype", DTYPE_OF_NAME.values(), ids=str)
@pytest.mark.parametrize("density", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("shape", [(), (1,), (0,), (7, 13), (3, 0), (5, 3, 3, 3)])
def test_every_bit_comes_back(dtype: torch.dtype, density: float, shape: tuple[int, ...]) -> None:
    tensor = any_bits(dtype, shape, density=density)
    assert exactly(there_and_back(tensor), tensor)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor([0.0, -0.0, 1.0, float("inf"), -float("inf"), 2.0**-149]),
        torch.tensor([0, 0x7FC00001, -1, 0x7F800001], dtype=torch.int32).view(torch.float32),
        torch.tensor([0.0, 0.5, -0.0], dtype=torch.float64),
        torch.arange(12.0).reshape(3, 4).T,
    ],
)
def test_odd_values(tensor: torch.Tensor) -> None:
    assert exactly(there_and_back(tensor), tensor)


@pytest.mark.clause("P-02")
@pytest.mark.clause("P-04")
def test_sections_of_values_come_before_planes_and_byte_by_byte() -> None:
    narrow = Record("n", (2,), dtype="U8", stored="U8", planes=1, base="values")
    other = Record("v", (4,), planes=2, scale=None)
    record, made = values_record("w", torch.tensor([0.0, 0.1, -0.0]))
    sections = list(made)
    assert [(kind, bits.n_bits) for kind, bits in sections] == [
        ("significance", 3), ("byte 3", 16), ("byte 2", 16), ("byte 1", 16), ("byte 0", 16),
    ]  # fmt: skip
    assert bit_sections((other, record, narrow)) == [
        (1, 0, "significance"), (2, 0, "significance"), (1, 0, "byte 3"), (1, 0, "byte 2"), (1, 0, "byte 1"),
        (1, 0, "byte 0"), (2, 0, "byte 0"),
        (0, 1, "significance"), (0, 0, "significance"), (0, 0, "refinement"),
    ]  # fmt: skip
    assert sections[1][1].packed.tobytes() == bytes([0x3D, 0x80])


def test_stored_in_the_narrowest_exact_dtype() -> None:
    record, sections = values_record("w", torch.tensor([0.0, 0.5], dtype=torch.float64))
    assert (record.dtype, record.stored) == ("F64", "BF16")
    assert len(list(sections)) == 3


@pytest.mark.clause("M-14")
def test_equal_tensors_are_stored_once_and_come_back_apart(vectors: Path) -> None:
    one = any_bits(torch.float32, (N_OWN_SECTIONS,), density=1.0)
    data = smask.encode({"a": one, "b": one.clone(), "c": one.to(torch.float64), "d": one[None]}, Recipe(0, {}))
    same = {record.name: record.same for record in manifest.open_file(data, limits=smask.Limits()).manifest.tensors}
    assert same == {"a": None, "b": "a", "c": None, "d": None}
    tensors = smask.decode(data)
    assert exactly(tensors["b"], one)
    tensors["a"].zero_()
    assert exactly(tensors["b"], one)
    assert [(tensor.name, tensor.same) for tensor in smask.inspect(data).tensors if tensor.same] == [("b", "a")]
    assert smask.verify(data).same


@pytest.mark.clause("W-01")
def test_large_tensors_have_sections_of_their_own() -> None:
    state = {
        "large": any_bits(torch.bfloat16, (N_OWN_SECTIONS,), density=0.1),
        "small": any_bits(torch.bfloat16, (N_OWN_SECTIONS - 1,), density=0.1),
    }
    data = smask.encode(state, Recipe(0, {}))
    assert [tensor.base for tensor in smask.inspect(data).tensors] == ["values", None]
    decoded = smask.decode(data)
    assert all(exactly(decoded[name], tensor) for name, tensor in state.items())
    assert smask.encode(decoded, Recipe(0, {})) == data


@pytest.mark.clause("M-08")
def test_values_need_no_seed() -> None:
    data = smask.encode({"a": any_bits(torch.float32, (N_OWN_SECTIONS,), density=0.5)}, Recipe(7, {}))
    assert smask.inspect(data).seed is None


def test_report_counts_values() -> None:
    tensor = any_bits(torch.float32, (100, 200), density=0.1)
    data = smask.encode({"a": tensor}, Recipe(0, {}))
    (report,) = smask.inspect(data).tensors
    n_kept = int((tensor.view(torch.int32) != 0).sum())
    assert (report.base, report.n_planes, report.n_kept) == ("values", 1, n_kept)
    assert 4 * n_kept < report.entropy_bytes < report.n_bytes < 4 * n_kept + 20_000 / 8
    assert len(report.codings) == 5


def test_foreign_dtypes_are_named() -> None:
    with pytest.raises(ArgumentError) as caught:
        smask.encode({"phase": torch.zeros(3, dtype=torch.complex64)}, Recipe(0, {}))
    assert (caught.value.name, caught.value.got) == ("phase", "torch.complex64")


def test_large_byte_planes_find_their_matches() -> None:
    """Values that repeat: matches pay, though single bytes are spread evenly."""
    row = any_bits(torch.float32, (1000,), density=1.0)
    data = smask.encode({"rows": row.repeat(200, 1)}, Recipe(0, {}))
    assert len(data) < 5000
    assert (
        hashlib.sha256(raw_bytes(smask.decode(data)["rows"]).numpy()).digest()
        == hashlib.sha256(raw_bytes(row.repeat(200, 1)).numpy()).digest()
    )
