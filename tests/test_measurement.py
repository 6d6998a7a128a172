from __future__ import annotations

import time

import pytest
import torch

from smask import measurement


def test_facts_name_the_machine() -> None:
    facts = measurement.facts()
    assert facts["torch"] == torch.__version__
    assert facts["cores"] >= 1
    assert isinstance(facts["vnni"], bool)
    assert isinstance(facts["amx"], bool)


def test_works_take_turns() -> None:
    calls: list[str] = []
    works = {name: (lambda name=name: calls.append(name)) for name in "abc"}
    seconds = measurement.interleaved(works, rounds=12)
    rounds = ["".join(calls[start : start + 3]) for start in range(len(calls) - 36, len(calls), 3)]
    assert {"".join(sorted(one)) for one in rounds} == {"abc"}
    assert len(set(rounds)) > 2  # who comes first differs
    assert [len(values) for values in seconds.values()] == [12] * 3
    again: list[str] = []
    measurement.interleaved({name: (lambda name=name: again.append(name)) for name in "abc"}, rounds=12)
    assert again[-36:] == calls[-36:]


def test_ratio_is_taken_round_by_round() -> None:
    assert measurement.ratio({"a": [2.0, 40.0, 3.0], "b": [1.0, 10.0, 1.0]}, "a", "b") == {
        "median": 3.0,
        "min": 2.0,
        "max": 4.0,
    }


def test_slow_works_are_called_less() -> None:
    calls = []
    measurement.interleaved({"slow": lambda: (calls.append(0), time.sleep(0.02))}, rounds=1, repeats=100, budget_s=0.01)
    assert len(calls) == 3


def test_peak_of_memory() -> None:
    peak = measurement.peak_bytes(lambda: torch.ones(25_000_000).sum(), torch.device("cpu"))
    if peak is None:
        pytest.skip("the system tells no peak")
    assert 80e6 < peak < 200e6
    small = measurement.peak_bytes(lambda: torch.ones(1000).sum(), torch.device("cpu"))
    assert small is not None
    assert small < 20e6
