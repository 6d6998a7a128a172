"""Rules from sorted magnitudes say what rounding does; errors of a window balance."""

import math

import numpy as np
import pytest

from smask.conversion import rounding
from smask.conversion.rounding import Rule, Spectrum, code_lengths, learn, levels_of


def magnitudes(n: int = 5000, seed: int = 0) -> np.ndarray:
    return np.abs(np.random.default_rng(seed).standard_normal(n, dtype=np.float32))


@pytest.mark.parametrize("step", [0.003, 0.1, 0.7, 1.5, 20.0])
def test_a_rule_says_what_rounding_gives(step: float) -> None:
    values = magnitudes()
    rule = Spectrum.of(values).rule(step)
    levels = levels_of((values / np.float32(step))[:, None], rule)[:, 0]
    counts = np.bincount(levels, minlength=len(rule.gains) + 1)
    assert rule.n_bits == pytest.approx(float(counts @ code_lengths(counts)), rel=1e-3)
    error = np.where(levels > 0, levels - rule.offset, 0) - values / step
    assert rule.error == pytest.approx(float((error**2).sum()), rel=1e-3, abs=1e-3)
    assert rule.offset == pytest.approx(rounding.centre(values / np.float32(step), levels), abs=2 / 256)


def test_learning_is_the_rule_at_step_one() -> None:
    one, other = learn(magnitudes() * 3), Spectrum.of(magnitudes()[::-1] * 3).rule(1.0)
    assert (one.offset, one.n_bits, one.error) == (other.offset, other.n_bits, other.error)
    assert one.edges.tobytes() == other.edges.tobytes()


@pytest.mark.parametrize("values", [[], [0.0, 0.0], [1.0], [0.25] * 100])
def test_odd_magnitudes(values: list[float]) -> None:
    array = np.array(values, np.float32)
    rule = Spectrum.of(array).rule(0.5)
    assert math.isfinite(rule.n_bits)
    assert 0 <= rule.error <= max(1, len(values))
    assert levels_of(array[:, None], rule).shape == (len(values), 1)


@pytest.mark.parametrize("n_edges", [1, 7, rounding.N_COMPARED, rounding.N_COMPARED + 1, 500])
def test_levels_are_the_edges_below(n_edges: int) -> None:
    edges = (np.arange(n_edges) + 0.6).astype(np.float32)
    scaled = np.concatenate([magnitudes() * 200 - 100, edges, -edges, [0.0, -0.0]]).astype(np.float32)[:, None]
    got = levels_of(scaled, Rule(0.0, np.zeros(n_edges, np.float32), edges, 0.0, 0.0))
    want = np.searchsorted(edges, np.abs(scaled), side="right") * np.where(scaled < 0, -1, 1)
    assert got.dtype == np.int32
    assert (got == want).all()


def test_errors_of_a_window_balance() -> None:
    random = np.random.default_rng(3)
    scaled = random.standard_normal((20_000, 9), dtype=np.float32) * 2
    rule = learn(np.abs(scaled).reshape(-1))

    def errors(levels: np.ndarray) -> tuple[float, float]:
        error = np.sign(levels) * (np.abs(levels) - rule.offset * (levels != 0)) - scaled
        return float((error**2).mean()), float((error.sum(1) ** 2).mean())

    alone, together = (
        errors(levels_of(scaled.reshape(-1, 1), rule).reshape(scaled.shape)),
        errors(levels_of(scaled, rule)),
    )
    assert together[1] < 0.5 * alone[1]
    assert together[0] < 1.3 * alone[0]
    # Windows do not know of each other, nor of the chunk that they are in.
    assert (levels_of(scaled[7:9], rule) == levels_of(scaled, rule)[7:9]).all()
