import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smask import bitcoding, frames
from smask.bitcoding import Bits
from smask.errors import FormatError, UnsupportedError
from smask.frames import compress

ENCODERS = (bitcoding.gaps_reference, bitcoding.gaps_fast)
DECODERS = (bitcoding.bits_from_gaps_reference, bitcoding.bits_from_gaps_fast)


def random_bits(n: int, density: float, seed: int = 0) -> Bits:
    ones = np.random.default_rng(seed).random(n) < density
    return Bits(np.packbits(ones, bitorder="little"), n)


@pytest.mark.clause("B-02")
@pytest.mark.clause("B-03")
@pytest.mark.clause("B-04")
def test_accept_vectors(vectors: Path) -> None:
    for case in json.loads((vectors / "bitcoding.json").read_text())["accept"]:
        for coding, blob in case["blobs"].items():
            got = bitcoding.decode(bytes.fromhex(blob), coding, n_bits=case["n_bits"], where="vector")
            assert got.packed.tobytes().hex() == case["bits"], coding


@pytest.mark.clause("B-01")
@pytest.mark.clause("B-05")
@pytest.mark.clause("B-06")
@pytest.mark.clause("B-07")
@pytest.mark.clause("Z-01")
def test_reject_vectors(vectors: Path) -> None:
    cases = json.loads((vectors / "bitcoding.json").read_text())["reject"]
    assert {case["clause"] for case in cases} == {"B-01", "B-02", "B-03", "B-05", "B-06", "B-07", "E-05", "Z-01"}
    for case in cases:
        with pytest.raises(FormatError) as caught:
            bitcoding.decode(bytes.fromhex(case["blob"]), case["coding"], n_bits=case["n_bits"], where="here")
        assert (caught.value.clause, caught.value.where) == (case["clause"], "here"), case


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("density", [0, 0.0005, 0.01, 0.2, 0.9, 1])
def test_gaps_round_trip(encoder, decoder, density: float) -> None:
    # More bits than a working chunk of the fast paths, and not a multiple of eight.
    bits = random_bits(bitcoding.N_CHUNK_BITS * 2 + 13 if density < 0.3 else 20_005, density)
    gaps = encoder(bits)
    assert gaps == bitcoding.gaps_reference(bits)
    assert decoder(gaps, bits.n_bits, where="").packed.tobytes() == bits.packed.tobytes()


@given(st.lists(st.sampled_from([0, 1, 254, 255, 256, 509, 510, 511, 5000]), max_size=30), st.integers(0, 600))
@settings(max_examples=80, deadline=None)
def test_gaps_around_the_escape(gaps: list[int], tail: int) -> None:
    bits = np.zeros(sum(gap + 1 for gap in gaps) + tail, bool)
    if gaps:
        bits[np.cumsum(np.array(gaps) + 1) - 1] = True
    section = Bits(np.packbits(bits, bitorder="little"), len(bits))
    for encoder in ENCODERS:
        for decoder in DECODERS:
            assert decoder(encoder(section), len(bits), where="").packed.tobytes() == section.packed.tobytes()


@pytest.mark.clause("B-05")
@given(st.binary(max_size=60), st.integers(0, 4000))
@settings(max_examples=150, deadline=None)
def test_any_gap_bytes_are_judged_alike(gaps: bytes, n_bits: int) -> None:
    outcomes = []
    for decoder in DECODERS:
        try:
            outcomes.append(decoder(gaps, n_bits, where="w").packed.tobytes())
        except FormatError as error:
            outcomes.append((error.clause, error.got, error.want))
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 1000, 100_001])
@pytest.mark.parametrize("density", [0, 0.002, 0.05, 0.3, 0.5, 0.95, 1])
def test_encode_round_trip_and_choice(n: int, density: float) -> None:
    bits = random_bits(n, density, seed=n)
    coding, blob = bitcoding.encode(bits)
    assert len(blob) <= len(bits.packed)  # raw is always a candidate
    assert bitcoding.decode(blob, coding, n_bits=n, where="").packed.tobytes() == bits.packed.tobytes()
    assert bitcoding.encode(bits) == (coding, blob)


@pytest.mark.parametrize(("density", "coding"), [(0.5, "raw"), (0.3, "zstd"), (0.1, "gap-zstd"), (0.002, "gap-zstd")])
def test_within_two_percent_of_the_entropy(density: float, coding: str) -> None:
    bits = random_bits(1 << 21, density)
    got, blob = bitcoding.encode(bits)
    assert got == coding
    assert len(blob) <= 1.02 * bitcoding.entropy_bytes(bits.n_ones, bits.n_bits)


def test_entropy() -> None:
    assert bitcoding.entropy_bytes(0, 10) == bitcoding.entropy_bytes(10, 10) == 0
    assert bitcoding.entropy_bytes(400, 800) == 100
    assert bitcoding.entropy_bytes(88, 800) == pytest.approx(49.99, abs=0.01)


@pytest.mark.clause("Z-01")
@pytest.mark.parametrize(("coding", "clause"), [("zstd", "B-03"), ("gap-zstd", "B-07")])
def test_frame_that_declares_too_much_is_never_decompressed(
    monkeypatch: pytest.MonkeyPatch, coding: str, clause: str
) -> None:
    bomb = compress(bytes(1 << 20), level=19)
    monkeypatch.setattr(frames.zstandard, "ZstdDecompressor", lambda **_: pytest.fail("decompressed"))
    with pytest.raises(FormatError) as caught:
        bitcoding.decode(bomb, coding, n_bits=100, where="bomb")
    assert caught.value.clause == clause


@pytest.mark.clause("M-11")
def test_unknown_coding() -> None:
    with pytest.raises(UnsupportedError) as caught:
        bitcoding.decode(b"", "rans", n_bits=0, where="")
    assert caught.value.got == "rans"
