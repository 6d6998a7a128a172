import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

import smask
from smask import bitcoding, floats
from smask.errors import FormatError
from smask.integrity import raw_bytes
from smask.recipe import Recipe
from smask.stored_tensors import smallest_exact


@pytest.mark.clause("F-01")
def test_vectors(vectors: Path) -> None:
    for case in json.loads((vectors / "floats.json").read_text()):
        values = [
            np.frombuffer(bytes.fromhex(value["bytes"]), np.uint8).reshape(-1, value["n_bytes"])
            for value in case["values"]
        ]
        planes = floats.byte_planes(values)
        assert [plane.packed.tobytes().hex() for plane in planes] == case["byte_planes"]
        shapes = [value.shape for value in values]
        assert floats.plane_lengths(shapes) == [len(plane.packed) for plane in planes]
        again = floats.values_from_planes(planes, shapes)
        assert [value.tobytes() for value in again] == [value.tobytes() for value in values]


@pytest.mark.clause("F-05")
def test_ranged_vectors(vectors: Path) -> None:
    n_ranged = 0
    for case in json.loads((vectors / "floats.json").read_text()):
        values = [
            np.frombuffer(bytes.fromhex(value["bytes"]), np.uint8).reshape(-1, value["n_bytes"])
            for value in case["values"]
        ]
        higher = floats.Higher([value.shape for value in values])
        planes = floats.byte_planes(values)
        for byte, plane, blob in zip(reversed(range(len(planes))), planes, case["ranged"], strict=True):
            context = higher.context(byte)
            if blob is None:
                assert (context, len(plane.packed) > 4096) == (None, True)
                continue
            assert context is not None
            bits = np.unpackbits(plane.packed, bitorder="little").view(bool)
            assert context().encode(bits).hex() == blob
            found = bitcoding.decode(bytes.fromhex(blob), "range", n_bits=plane.n_bits, where="", context=context)
            assert found.packed.tobytes() == plane.packed.tobytes()
            higher.see(byte, plane.packed)
            n_ranged += 1
        again = floats.decode(floats.encode(values), [value.shape for value in values])
        assert [plane.packed.tobytes() for plane in again] == [plane.packed.tobytes() for plane in planes]
    assert n_ranged > 15


@pytest.mark.clause("E-05")
def test_long_planes_are_not_ranged() -> None:
    with pytest.raises(FormatError) as caught:
        floats.decode([("range", bytes(8))], [(4097, 1)])
    assert caught.value.clause == "E-05"
    assert floats.decode(floats.encode([np.zeros((4097, 1), np.uint8)]), [(4097, 1)])[0].n_ones == 0


@pytest.mark.clause("L-01")
def test_long_planes_take_little_more_than_themselves() -> None:
    """No integer of eight bytes is kept for each of their values, only for those of short ones above."""
    n = 1 << 20
    wide, tensor = np.arange(8 * 5, dtype=np.uint8).reshape(5, 8), np.zeros((n, 1), np.uint8)
    blobs = floats.encode([wide, tensor])
    tracemalloc.start()
    planes = floats.decode(blobs, [wide.shape, tensor.shape])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [len(plane.packed) for plane in planes] == [5] * 7 + [n + 5]
    assert peak < 3 * n


@pytest.mark.clause("F-02")
@pytest.mark.parametrize(
    ("tensor", "stored"),
    [
        (torch.tensor([1.5, -2.0]), torch.bfloat16),
        (torch.tensor([1 + 2**-10]), torch.float16),
        (torch.tensor([2.0**-24, 1 + 2**-10]), torch.float16),  # a subnormal of float16
        (torch.tensor([0.1]), torch.float32),
        (torch.tensor([float("inf"), -0.0]), torch.bfloat16),
        (torch.tensor([0x7FC00001], dtype=torch.int32).view(torch.float32), torch.float32),  # a NaN with a payload
        (torch.tensor([1.0], dtype=torch.float64), torch.bfloat16),
        (torch.tensor([0.1], dtype=torch.float64), torch.float64),
        (torch.tensor(255), torch.uint8),
        (torch.tensor([-1]), torch.int16),
        (torch.tensor([70_000]), torch.int32),
        (torch.tensor([2**40]), torch.int64),
        (torch.tensor([True]), torch.bool),
        (torch.zeros(0), torch.bfloat16),
    ],
)
def test_stored_in_the_narrowest_exact_dtype(tensor: torch.Tensor, stored: torch.dtype) -> None:
    assert smallest_exact(tensor).dtype == stored
    again = smask.decode(smask.encode({"t": tensor}, Recipe(0, {})))["t"]
    assert (again.dtype, again.shape) == (tensor.dtype, tensor.shape)
    assert torch.equal(raw_bytes(again), raw_bytes(tensor))


def test_flushing_subnormals_changes_nothing() -> None:
    state = {"t": torch.tensor([2.0**-24, 2.0**-130, 1.0]), "d": torch.tensor([2.0**-1070], dtype=torch.float64)}
    expected = smask.encode(state, Recipe(0, {}))
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormals")
    try:
        assert smask.encode(state, Recipe(0, {})) == expected
        again = smask.decode(expected)
    finally:
        torch.set_flush_denormal(False)
    assert all(torch.equal(raw_bytes(again[name]), raw_bytes(state[name])) for name in state)
