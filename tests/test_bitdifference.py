"""Differences of bits: small for near numbers, exact for all."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smask.bitdifference import difference, difference_reference, n_bytes_estimated, restored


def as_bytes(values: np.ndarray) -> np.ndarray:
    return values.view(np.uint8).reshape(len(values), -1)


@pytest.mark.clause("R-08")
@pytest.mark.parametrize("made", [difference, difference_reference])
def test_by_hand(made) -> None:
    old = np.array([0, 255, 7, 100, 0, 128], np.uint8)
    new = np.array([255, 0, 7, 90, 128, 0], np.uint8)
    # d = -1, 1, 0, -10, -128, -128
    assert made(as_bytes(new), as_bytes(old)).ravel().tolist() == [1, 2, 0, 19, 255, 255]


@pytest.mark.clause("R-08")
@given(st.sampled_from([1, 2, 4, 8]), st.integers(0, 2**32))
def test_any_bits_come_back(width: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    old, new = random.integers(0, 256, (2, 9, width), dtype=np.uint8)
    new[:3] = old[:3]
    folded = difference(new, old)
    assert np.array_equal(folded, difference_reference(new, old))
    assert np.array_equal(restored(folded, old), new)
    assert not folded[:3].any()


def test_near_floats_have_zeros_in_high_bytes() -> None:
    old = np.array([1.0, -1.0, 0.5, 3.0], np.float32)
    new = np.nextafter(old, np.float32(0)).astype(np.float32)  # across a power of two: every bit of 1.0 would change
    assert difference(as_bytes(new), as_bytes(old)).tolist() == [[1, 0, 0, 0]] * 4
    random = np.random.default_rng(0)
    old = random.standard_normal(5000).astype(np.float32)
    new = old + np.float32(1e-4) * random.standard_normal(5000).astype(np.float32)
    folded, exclusive = difference(as_bytes(new), as_bytes(old)), as_bytes(new) ^ as_bytes(old)
    assert n_bytes_estimated(folded) < n_bytes_estimated(exclusive) < n_bytes_estimated(as_bytes(new))
