import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smask import bitcoding, planes
from smask.bitcoding import Bits
from smask.errors import FormatError

IMPLEMENTATIONS = (planes.sections_reference, planes.sections)


def packed(text: str) -> np.ndarray:
    return np.frombuffer(bytes.fromhex(text), np.uint8)


@pytest.mark.clause("P-01")
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_vectors(implementation, vectors: Path) -> None:
    for case in json.loads((vectors / "planes.json").read_text()):
        flip = None if case["flip"] is None else packed(case["flip"])
        got = implementation([packed(plane) for plane in case["planes"]], flip, case["n_weights"])
        assert [
            {"plane": plane, "kind": kind, "n_bits": bits.n_bits, "bits": bits.packed.tobytes().hex()}
            for plane, kind, bits in got
        ] == case["sections"]


@pytest.mark.clause("P-03")
@given(
    magnitudes=st.lists(st.integers(0, 31), max_size=70),
    n_planes=st.integers(1, 5),
    flip=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=80, deadline=None)
def test_assembly_is_the_inverse(magnitudes: list[int], n_planes: int, flip: bool, seed: int) -> None:
    values = np.array(magnitudes, int) & (1 << n_planes) - 1
    rows = [np.packbits(values >> p & 1 == 1, bitorder="little") for p in reversed(range(n_planes))]
    flips = (np.random.default_rng(seed).random(len(values)) < 0.5) & (values > 0)
    packed_flips = np.packbits(flips, bitorder="little") if flip else None
    assembly = planes.Assembly((len(values),), n_planes=n_planes, flip=flip)
    for _, kind, bits in planes.sections(rows, packed_flips, len(values)):
        assert assembly.counts.n_bits(kind) == bits.n_bits
        assembly.add(kind, bits)
    assert [plane.tobytes() for plane in assembly.planes] == [row.tobytes() for row in rows]
    assert (assembly.flip.tobytes() if flip else None) == (packed_flips.tobytes() if flip else None)


@pytest.mark.parametrize(
    "n", [0, 1, 7, 8, 9, 63, 64, 65, 1000, 8 * planes.N_CHUNK_BYTES + 8, 20 * planes.N_CHUNK_BYTES + 3]
)
@pytest.mark.parametrize("density", [0, 0.01, 0.4, 1])
def test_extracted_bits_are_deposited_again(n: int, density: float) -> None:
    random = np.random.default_rng(n)
    where, bits = (np.packbits(random.random(n) < part, bitorder="little") for part in (density, 0.5))
    got, want = planes.extract(bits, where), planes.extract_reference(bits, where)
    assert (got.n_bits, got.packed.tobytes()) == (want.n_bits, want.packed.tobytes())
    back = planes.deposit(got, where)
    assert back.tobytes() == planes.deposit_reference(got, where).tobytes() == (bits & where).tobytes()


def test_flips_of_weights_that_are_not_kept_are_dropped() -> None:
    mask, flips = np.array([0b0101], np.uint8), np.array([0b1111], np.uint8)
    (_, _, _), (_, kind, bits) = planes.sections([mask], flips, 4)
    assert (kind, bits.n_bits, bits.packed.tolist()) == ("flip", 2, [0b11])


def test_single_plane_is_not_copied() -> None:
    mask = np.array([7, 1], np.uint8)
    assembly = planes.Assembly((9,), n_planes=1, flip=False)
    assembly.add("significance", Bits(mask, 9))
    assert assembly.planes[0] is mask


@pytest.mark.clause("E-04")
@pytest.mark.parametrize("shape", [(0, 2**40), (2**40, 0), (2, 3, 4)])
def test_sections_without_bits_need_no_context(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the shape, their blobs are judged as those of other sections are."""
    monkeypatch.setattr(planes.Above, "_context", None)
    assembly = planes.Assembly(shape, n_planes=2, flip=True)
    if assembly.n_weights:
        assembly.add("significance", Bits(np.full(3, 255, np.uint8), 24))
    for kind, blob in (("significance", b"\x07"), ("flip", b""), ("refinement", b"\x07")):
        context = assembly.context(kind, 0)
        assert bitcoding.decode(blob, "range", n_bits=0, where="", context=context).n_bits == 0
        wrong = {"E-04": blob + bytes(4), "E-01": blob + bytes(3)} | ({"E-01": b""} if blob else {})
        for clause, bad in wrong.items():
            with pytest.raises(FormatError) as caught:
                bitcoding.decode(bad, "range", n_bits=0, where="", context=context)
            assert caught.value.clause == clause
