import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smask import bitcoding, rangecoding
from smask.contexts import Context
from smask.errors import FormatError
from smask.rangecoding import Chances, Model

ENCODERS = (rangecoding.encode_reference, rangecoding.encode)
DECODERS = (rangecoding.decode_reference, rangecoding.decode)


def parts_of(chances: Chances, *cuts: int) -> Model:
    """A model that knows all chances, and gives them in parts."""
    for first, last in zip((0, *cuts), (*cuts, len(chances)), strict=True):
        yield chances[first:last]


def integers(values: list[int]) -> Chances:
    return np.array(values, np.int64)


@pytest.mark.clause("E-02")
@pytest.mark.parametrize("encode", ENCODERS)
@pytest.mark.parametrize("decode", DECODERS)
def test_vectors(encode: Callable, decode: Callable, vectors: Path) -> None:
    cases = json.loads((vectors / "rangecoding.json").read_text())["accept"]
    assert max(len(case["chances"]) for case in cases) >= 300
    for case in cases:
        chances, packed = integers(case["chances"]), np.frombuffer(bytes.fromhex(case["bits"]), np.uint8)
        bits = np.unpackbits(packed, count=len(chances), bitorder="little").astype(bool)
        assert encode(bits, chances).hex() == case["blob"]
        assert decode(bytes.fromhex(case["blob"]), parts_of(chances), where="").tolist() == bits.tolist()


@pytest.mark.clause("E-01")
@pytest.mark.clause("E-03")
@pytest.mark.clause("E-04")
@pytest.mark.parametrize("decode", DECODERS)
def test_refused_vectors(decode: Callable, vectors: Path) -> None:
    cases = json.loads((vectors / "rangecoding.json").read_text())["reject"]
    assert {case["clause"] for case in cases} == {"E-01", "E-03", "E-04"}
    for case in cases:
        with pytest.raises(FormatError) as caught:
            decode(bytes.fromhex(case["blob"]), parts_of(integers(case["chances"])), where="here")
        assert (caught.value.clause, caught.value.where) == (case["clause"], "here"), case


@given(st.lists(st.tuples(st.sampled_from([1, 2, 300, 32768, 65000, 65535]), st.booleans()), max_size=120), st.data())
@settings(max_examples=150, deadline=None)
def test_both_ways_agree(pairs: list[tuple[int, bool]], data: st.DataObject) -> None:
    chances, bits = integers([k for k, _ in pairs]), np.array([bit for _, bit in pairs], bool)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(pairs)), max_size=3)))
    blob = rangecoding.encode(bits, chances)
    assert blob == rangecoding.encode_reference(bits, chances)
    for decode in DECODERS:
        assert decode(blob, parts_of(chances, *cuts), where="").tolist() == bits.tolist()


@given(st.binary(max_size=40), st.lists(st.integers(1, 65535), max_size=60))
@settings(max_examples=200, deadline=None)
def test_both_decoders_take_and_refuse_the_same(blob: bytes, chances: list[int]) -> None:
    outcomes = []
    for decode in DECODERS:
        try:
            outcomes.append(decode(blob, parts_of(integers(chances)), where="").tolist())
        except FormatError as error:
            outcomes.append(error.clause)
    assert outcomes[0] == outcomes[1]


def test_size_is_what_the_chances_say() -> None:
    random = np.random.default_rng(0)
    chances = random.integers(1, 65536, 20_000)
    bits = random.random(len(chances)) < chances / 65536
    n_bits = -np.log2(np.where(bits, chances, 65536 - chances) / 65536).sum()
    assert 0 <= len(rangecoding.encode(bits, chances)) - n_bits / 8 < 9


@pytest.mark.clause("E-05")
def test_bytes_and_large_tensors_have_no_contexts() -> None:
    with pytest.raises(FormatError) as caught:
        bitcoding.decode(bytes(5), "range", n_bits=8, where="here")
    assert (caught.value.clause, caught.value.where) == ("E-05", "here")


@pytest.mark.clause("E-06")
def test_work_goes_by_the_size_of_the_blob() -> None:
    context = Context("significance", np.zeros((8, 1000), np.int64))
    with pytest.raises(FormatError) as caught:
        bitcoding.decode(bytes(7), "range", n_bits=8000, where="here", context=lambda: context)
    assert caught.value.clause == "E-06"
    # And the writer takes another coding then.
    none = bitcoding.Bits(np.zeros(1000, np.uint8), 8000)
    assert bitcoding.encode(none, context=lambda: context)[0] != "range"


@pytest.mark.clause("E-01")
def test_density_is_there() -> None:
    context = Context("refinement", np.zeros((1, 1), np.int64))
    with pytest.raises(FormatError) as caught:
        context.decode(b"", where="here")
    assert caught.value.clause == "E-01"
