import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smask import bitcoding, contexts, planes, rangecoding, signs
from smask.bitcoding import Bits
from smask.contexts import Context
from smask.counting import Counts, blocks
from smask.rangecoding import Model

SIGNIFICANCE = (contexts.significance_reference, contexts.significance)
REFINEMENT = (contexts.refinement_reference, contexts.refinement)
SIGNS = (signs.signs_reference, signs.signs)
AT_ONCE = (contexts.significance_at_once, contexts.refinement_at_once, signs.signs_at_once)


def driven(model: Model, bits: list[bool]) -> list[int]:
    return rangecoding.driven(model, np.array(bits, bool)).tolist()


@pytest.mark.clause("K-04")
@pytest.mark.clause("K-05")
@pytest.mark.clause("K-06")
def test_vectors(vectors: Path) -> None:
    cases = json.loads((vectors / "contexts.json").read_text())
    assert {case["kind"] for case in cases} == {"significance", "flip", "refinement"}
    for case in cases:
        above = np.array(case["above"], np.int64).reshape(case["shape"])
        new = None
        if case["new"] is not None:
            new = np.unpackbits(
                np.frombuffer(bytes.fromhex(case["new"]), np.uint8), count=above.size, bitorder="little"
            )
            new = new.astype(bool).reshape(above.shape)
        packed = np.frombuffer(bytes.fromhex(case["bits"]), np.uint8)
        bits = np.unpackbits(packed, count=case["n_bits"], bitorder="little").astype(bool)
        context = Context(case["kind"], above, new)
        assert context.encode(bits).hex() == case["blob"]
        assert context.decode(bytes.fromhex(case["blob"]), where="").tolist() == bits.tolist()


@st.composite
def tensors(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, list[bool]]:
    """Signed magnitudes above, new weights, and more than enough bits."""
    shape = (draw(st.integers(0, 20)), draw(st.integers(0, 5)), *draw(st.lists(st.integers(0, 4), max_size=3)))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    above = (random.geometric(0.4, shape) - 1) * draw(st.sampled_from([0, 1, 5000]))
    new = (above == 0) & (random.random(shape) < 0.5)
    return np.where(random.random(shape) < 0.3, -above, above), new, (random.random(above.size) < 0.3).tolist()


@given(tensors(), st.integers(0, 255))
@settings(max_examples=120, deadline=None)
def test_fast_models_are_the_plain_ones(tensor: tuple[np.ndarray, np.ndarray, list[bool]], byte: int) -> None:
    above, new, bits = tensor
    flat = np.abs(above).reshape(*above.shape[:2], int(np.prod(above.shape[2:])))
    for pair, at_once, n, arguments in zip(
        (SIGNIFICANCE, REFINEMENT, SIGNS),
        AT_ONCE,
        (int((above == 0).sum()), int((above != 0).sum()), int(new.sum())),
        ((flat, byte), (flat, byte), (above, new)),
        strict=True,
    ):
        plain, fast = (driven(model(*arguments), bits[:n]) for model in pair)
        assert plain == fast
        assert plain == at_once(*arguments, np.array(bits[:n], bool)).tolist()
        assert len(fast) == n


@pytest.mark.clause("K-01")
def test_counts_by_hand() -> None:
    counts = Counts([32768, 100])
    assert counts.chances(np.array([0, 1, 0])).tolist() == [32768, 100, 32768]
    counts.see(np.array([0, 1, 0]), np.array([True, False, True]))
    # Six bits of one half and two ones; six of 100 / 65536 and a zero.
    assert counts.chances(np.array([0, 1])).tolist() == [65536 * 5 // 8, 100 * 6 // 7]
    for _ in range(20):
        counts.see(np.zeros(50_000, int), np.ones(50_000, bool))
    assert counts.chances(np.array([0])).tolist() == [65535]
    assert blocks(5) == [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)]
    assert [last - first for first, last in blocks(40)] == [2, 3] * 8


@pytest.mark.clause("K-02")
def test_densities_by_hand() -> None:
    assert contexts.density_of(0) == (16, 5)
    assert contexts.density_of(0x3F) == (31, 8)
    assert contexts.byte_of(1, 2) == 0
    assert contexts.byte_of(31, 256) == 0x3F
    assert contexts.byte_of(0, 100) == 0xF0
    # One context in the middle and nothing known: half an octave below and above the density.
    first = next(contexts.refinement(np.ones((1, 1, 1), np.int64), 0x10))
    assert first.tolist() == [65536 // 4]


@pytest.mark.clause("K-03")
def test_logarithms() -> None:
    values = np.array([1, 2, 3, 127, 128, 129, 255, 256, 2**53 - 1, 2**53, 2**61 - 1, 2**61, 2**62 - 1])
    assert contexts._logs(values).tolist() == [contexts._log(int(value)) for value in values]
    assert np.abs(contexts._logs(values) - 8 * np.log2(values.astype(float))).max() < 0.6
    assert contexts._log(1) == 0
    assert contexts._log(2**61) == 8 * 61


@pytest.mark.clause("K-04")
@pytest.mark.parametrize("model", SIGNIFICANCE)
def test_large_rows_and_columns_are_likelier(model: Callable[..., Model]) -> None:
    above = np.zeros((4, 4, 1), np.int64)
    above[1, 1] = 3
    chances = np.array(driven(model(above, 0x10), [False] * 15))
    chances = np.insert(chances, 5, 0).reshape(4, 4)
    # Row 1 and column 1 are known to hold a large weight.
    assert chances[1, 0] > chances[0, 0]
    assert chances[0, 1] > chances[0, 0]


@pytest.mark.clause("K-06")
@pytest.mark.parametrize("model", SIGNS)
def test_neighbours_lend_their_sign(model: Callable[..., Model]) -> None:
    # Two rows of one window of three: the middle weight is known, and in row 0 its neighbour turned out alike.
    above = np.array([[[0, -5, 0]], [[0, 2, 0]]], np.int64)
    new = above == 0
    first = driven(model(above, new), [True, True, False, False])
    assert first[:2] == [32768, 32768]
    # Contexts (3, 0) and (2, 0): what the first row taught is of another context.
    assert first[2:] == [32768, 32768]
    taught = driven(model(np.array([[[0, -5, 0]], [[0, 4, 0]]], np.int64), new), [True, True, False, False])
    assert taught[2:] == [65536 * 3 // 8] * 2
    # No window: the sign of column and row.
    matrix = np.array([[-1, 0], [-1, 0], [-1, 3], [0, 0]], np.int64)
    chances = driven(model(matrix, np.array([[False, True], [False, True], [False, False], [True, True]])), [True] * 4)
    assert len(chances) == 4
    assert chances[0] == 32768


@pytest.mark.parametrize("shape", [(90, 80), (40, 20, 3, 3)])
def test_trained_weights_are_coded_below_their_entropy(shape: tuple[int, ...]) -> None:
    """Rows and columns of their own sizes and smooth windows; all of it decoded again in order."""
    random = np.random.default_rng(3)
    weights = random.normal(0, 1, shape) * np.exp(random.normal(0, 1, (shape[0], *[1] * (len(shape) - 1))))
    for axis in range(2, len(shape)):
        weights = weights + np.roll(weights, 1, axis)
    levels = np.minimum(np.abs(weights) * 3, 15).astype(int).reshape(-1)
    rows = [np.packbits((levels >> p & 1).astype(bool), bitorder="little") for p in (3, 2, 1, 0)]
    flip = np.packbits((weights.reshape(-1) < 0) & (levels > 0), bitorder="little")
    above, assembly = planes.Above(shape, rows, flip), planes.Assembly(shape, n_planes=4, flip=True)
    n_coded, entropy = 0, 0.0
    for plane, kind, bits in planes.sections(rows, flip, levels.size):
        coding, blob = bitcoding.encode(bits, context=above.context(kind, 3 - plane))
        n_coded, entropy = n_coded + len(blob), entropy + bitcoding.entropy_bytes(bits.n_ones, bits.n_bits)
        n_bits = assembly.counts.n_bits(kind)
        context = assembly.context(kind, n_bits)
        got = bitcoding.decode(blob, coding, n_bits=n_bits, where="", context=context)
        assert got.packed.tobytes() == bits.packed.tobytes()
        assembly.add(kind, got)
    assert [plane.tobytes() for plane in assembly.planes] == [row.tobytes() for row in rows]
    assert assembly.flip is not None
    assert assembly.flip.tobytes() == flip.tobytes()
    assert n_coded < 0.97 * entropy


def test_context_is_made_when_it_is_used() -> None:
    """Two bytes a weight and more: nothing is worked out for a section that has another coding."""
    huge = planes.Above((2**40,), [], None)
    assert huge.context("significance", 0) is None
    assert planes.Above((2**22,), [], None).context("byte 1", 0) is None
    made = planes.Above((4,), [], None).context("significance", 0)
    assert made is not None
    assert made().above.shape == (4, 1)
    bits = Bits(np.array([5], np.uint8), 4)
    coding, blob = bitcoding.encode(bits, context=made)
    assert bitcoding.decode(blob, coding, n_bits=4, where="", context=made).packed.tolist() == [5]
