"""The model of byte planes: fast paths against the plain one, and there and back."""

import numpy as np
import pytest

from smask import bytemodel, rangecoding
from smask.bytemodel import Bytes
from smask.counting import Integers
from smask.errors import FormatError
from smask.rangecoding import Booleans


def known(n: int, kind: str, seed: int = 0) -> tuple[Bytes, Booleans]:
    random = np.random.default_rng(seed)
    above = {
        "highest": np.full(n, -1), "lower": random.integers(0, 300, n) * (random.random(n) < 0.6),
        "both": np.where(random.random(n) < 0.5, -1, random.integers(0, 2**56, n)),
    }[kind]  # fmt: skip
    apart = random.integers(1, 40)
    partners = np.where(np.arange(n) < apart, -1, np.arange(n) - apart)
    values = np.where(random.random(n) < 0.5, 0, random.integers(50, 60, n)).astype(np.uint8)
    return Bytes(above, partners), np.unpackbits(values, bitorder="little").view(bool)


def in_order(bits: Booleans) -> Booleans:
    """As the coding has them, one by one."""
    n = len(bits) // 8
    blocks = [range(first, min(first + 8, n)) for first in range(0, n, 8)]
    return np.array([bits[8 * i + j] for block in blocks for j in reversed(range(8)) for i in block], bool)


@pytest.mark.parametrize("kind", ["highest", "lower", "both"])
@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 100, 820])
def test_all_paths_give_the_same_chances(n: int, kind: str) -> None:
    given, bits = known(n, kind)
    wanted = rangecoding.driven(bytemodel.bytes_reference(given.above, given.partners), in_order(bits))
    found = rangecoding.driven(bytemodel.bytes_model(given.above, given.partners), in_order(bits))
    assert np.array_equal(found, wanted)
    assert np.array_equal(bytemodel.bytes_at_once(given.above, given.partners, bits), wanted)
    blob = given.encode(bits)
    assert blob == rangecoding.encode_reference(in_order(bits), wanted)
    assert np.array_equal(given.decode(blob, where="here"), bits)


def test_a_channel_without_weights_costs_its_floats_once() -> None:
    """Scales and biases that are zero together: of the second zero hardly a bit is coded."""
    random = np.random.default_rng(1)
    silent = random.random(400) < 0.6
    scales, biases = (np.where(silent, 0, random.integers(60, 63, 400)) for _ in range(2))
    bits = np.unpackbits(np.concatenate([scales, biases]).astype(np.uint8), bitorder="little").view(bool)
    none: Integers = np.full(800, -1)
    partners = np.concatenate([np.full(400, -1), np.arange(400)])
    together, apart = (len(Bytes(none, places).encode(bits)) for places in (partners, none))
    # An entropy of 0.97 bits for each of 400 zeros that are known beforehand: 48 bytes, all but a few of them saved.
    assert 30 < apart - together < 48


def test_damage_is_found() -> None:
    given, bits = known(60, "both")
    blob = given.encode(bits)
    for broken, clause in ((blob[:-1], "E-01"), (blob + bytes(4), "E-04")):
        with pytest.raises(FormatError) as caught:
            given.decode(broken, where="byte plane 1")
        assert (caught.value.clause, caught.value.where) == (clause, "byte plane 1")
