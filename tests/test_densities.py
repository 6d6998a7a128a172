import math

import pytest

from smask.errors import ArgumentError, UnsupportedError
from smask.search.densities import cubic, layer_densities

LENET = {"a": (300, 784), "b": (100, 300), "c": (10, 100)}


def kept(densities: dict[str, float]) -> float:
    return sum(densities[name] * math.prod(shape) for name, shape in LENET.items())


@pytest.mark.parametrize("density", [0.004, 0.04, 0.3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("rule", ["erk", "uniform"])
def test_total_is_met(density: float, rule: str) -> None:
    densities = layer_densities(LENET, density=density, rule=rule)
    assert kept(densities) == pytest.approx(density * 266_200)
    assert list(densities) == list(LENET)
    assert max(densities.values()) <= max(0.5, density) + 1e-12


def test_erk_by_hand() -> None:
    densities = layer_densities(LENET, density=0.02)
    share = 0.02 * 266_200 / (1084 + 400 + 110)
    assert densities == pytest.approx({"a": share * 1084 / 235_200, "b": share * 400 / 30_000, "c": share * 110 / 1000})


def test_first_and_last_stay_outside_the_sharing() -> None:
    densities = layer_densities(LENET, density=0.05, first=0.04, last=1.0)
    assert (densities["a"], densities["c"]) == (0.04, 1.0)
    assert kept(densities) == pytest.approx(0.05 * 266_200)
    assert layer_densities({"a": (3, 3)}, density=0.5, first=0.2, last=0.3) == {"a": 0.3}


@pytest.mark.parametrize("bad", [0, -0.1, 1.0001, float("nan"), float("inf")])
def test_outside_the_range(bad: float) -> None:
    for fields in ({"density": bad}, {"density": 0.5, "first": bad}, {"density": 0.5, "last": bad}):
        with pytest.raises(ArgumentError) as caught:
            layer_densities(LENET, **fields)
        assert "above 0 and at most 1" in caught.value.want


def test_nothing_left_and_unknown_rule() -> None:
    with pytest.raises(ArgumentError) as caught:
        layer_densities(LENET, density=0.01, first=0.5)
    assert caught.value.name == "density"
    with pytest.raises(UnsupportedError) as unknown:
        layer_densities(LENET, density=0.01, rule="magic")
    assert unknown.value.known == ("erk", "uniform")


def test_cubic() -> None:
    assert cubic(0, start=0.5, end=0.1) == 0.5
    assert cubic(1, start=0.5, end=0.1) == cubic(3, start=0.5, end=0.1) == 0.1
    assert cubic(0.5, start=0.5, end=0.1) == pytest.approx(0.15)
