"""Sizes and accuracies as targets of a search."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

import smask
from smask import TargetSize, architectures, named_nets
from smask.cli.main import main
from smask.errors import ArgumentError, UnreachableError
from smask.recipe import recipe_of
from smask.runs.goal import Goal, Trial, smallest
from smask.search.budget import TOLERANCE
from smask.search.data import Batches, Dataset
from smask.search.snapshots import Snapshot


def net(dataset: Dataset, widths: str = "64-200-10") -> nn.Module:
    mean, std = dataset.statistics()
    torch.manual_seed(0)
    return architectures.build(named_nets.architecture(f"mlp:{widths}", input_shape=(1, 8, 8), mean=mean, std=std))


def size_of(model: nn.Module) -> int:
    return len(smask.encode(model.state_dict(), recipe_of(model)))


@pytest.mark.parametrize("size", [900, 1100, "1.6kB"])
@pytest.mark.parametrize("rule", ["erk", "uniform"])
def test_a_size_is_met_from_below(digits_data: Dataset, size: int | str, rule: str) -> None:
    batches = Batches(digits_data, batch_size=128, seed=0)
    target = TargetSize(size)
    model = smask.find_masks(net(digits_data), batches, target=target, density_rule=rule, epochs=6, meta={"by": "me"})
    assert target.n_bytes * 0.99 <= size_of(model) <= target.n_bytes


def test_a_size_is_met_by_few_files(digits_data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of nine on the way, and twice the least one and those that lead to the size; halves would take fifteen each."""
    sizes, measure = [], TargetSize.measure

    def measured(target: TargetSize, model: nn.Module) -> int:
        sizes.append(measure(target, model))
        return sizes[-1]

    monkeypatch.setattr(TargetSize, "measure", measured)
    batches = Batches(digits_data, batch_size=128, seed=0)
    model = smask.find_masks(net(digits_data, "64-600-300-10"), batches, target=TargetSize("12kB"), epochs=8)
    assert 12_000 * (1 - TOLERANCE) <= size_of(model) <= 12_000
    assert len(sizes) <= 9 + 2 * 7


def test_a_layer_that_the_caller_sets_keeps_its_density(digits_data: Dataset) -> None:
    batches = Batches(digits_data, batch_size=128, seed=0)
    model = smask.find_masks(net(digits_data), batches, target=TargetSize(1500), last_density=0.25, epochs=4)
    assert size_of(model) <= 1500
    assert int((model[4].weight != 0).sum()) == 500


def test_no_size_is_exceeded_where_all_weights_are_not_needed(digits_data: Dataset) -> None:
    model = smask.find_masks(
        net(digits_data), Batches(digits_data, batch_size=128, seed=0), target=TargetSize("1MB"), epochs=2
    )
    kept = sum(int((model.state_dict()[name] != 0).sum()) for name in recipe_of(model).coded)
    assert kept == pytest.approx(0.5 * 74 * 200, rel=0.01)


def test_an_impossible_size_names_the_least(digits_data: Dataset) -> None:
    batches = Batches(digits_data, batch_size=128, seed=0)
    with pytest.raises(UnreachableError) as caught:
        smask.find_masks(net(digits_data), batches, target=TargetSize(200), epochs=4)
    assert caught.value.target == 200
    model = smask.find_masks(net(digits_data), batches, target=TargetSize(200, keep_best=True), epochs=4)
    assert caught.value.best == pytest.approx(size_of(model), rel=0.2)
    for name in recipe_of(model).coded:
        assert int((model.state_dict()[name] != 0).sum()) == 1  # no layer is left without a weight


def test_a_size_is_met_across_an_interruption(digits_data: Dataset, tmp_path: Path) -> None:
    class Stop(smask.Checkpoints):
        def keep(self, snapshot: Snapshot) -> None:
            super().keep(snapshot)
            if snapshot.step == 33:
                raise KeyboardInterrupt

    def search(checkpoints: smask.Checkpoints | None) -> bytes:
        batches = Batches(digits_data, batch_size=128, seed=0)
        model = smask.find_masks(net(digits_data), batches, target=TargetSize(1000), epochs=6, checkpoints=checkpoints)
        return smask.encode(model.state_dict(), recipe_of(model))

    whole = search(None)
    with pytest.raises(KeyboardInterrupt):
        search(Stop(tmp_path, every=0))
    assert search(smask.Checkpoints(tmp_path, resume=True)) == whole


def made(density: float) -> Trial:
    """Accuracy 0.95 from a density of 0.03 on."""
    return Trial(density, bytes(round(10_000 * density)), min(0.99, 0.95 + (density - 0.03)))


@pytest.mark.parametrize("start", [0.5, 0.04, 0.03, 0.002])
def test_smallest_file_of_an_accuracy(start: float) -> None:
    best, tried = smallest(made, Goal("accuracy", 0.95), density=start)
    assert 0.03 <= best.density <= 0.033
    assert len(tried) <= 12
    assert best in tried


def test_accuracy_out_of_reach() -> None:
    with pytest.raises(UnreachableError) as caught:
        smallest(made, Goal("accuracy", 0.999), density=0.04)
    assert (caught.value.best, caught.value.target) == (0.99, 0.999)
    best, tried = smallest(made, Goal("accuracy", 0.999), density=0.04, keep_best=True)
    assert best.judged == max(trial.judged for trial in tried)
    for kind, value in (("accuracy", 1.5), ("accuracy", 0.0), ("bits_per_byte", 8.5), ("bits_per_byte", math.nan)):
        with pytest.raises(ArgumentError) as refused:
            Goal(kind, value)
        assert refused.value.name == kind


def test_fewest_bytes_for_bits_per_byte() -> None:
    """Of text fewer bits are better: at a density of 0.1 here 2.5 of them, one more at a tenth of that."""

    def text(density: float) -> Trial:
        return Trial(density, bytes(round(10_000 * density)), -2.5 - math.log10(0.1 / density))

    best, tried = smallest(text, Goal("bits_per_byte", 2.8), density=0.3)
    assert 0.1 / 10**0.3 <= best.density <= 1.1 * 0.1 / 10**0.3
    assert -best.judged <= 2.8
    assert best in tried
    with pytest.raises(UnreachableError) as caught:
        smallest(text, Goal("bits_per_byte", 1.5), density=0.3)
    assert caught.value.what == "bits_per_byte"
    assert caught.value.best == pytest.approx(2.5 - math.log10(5))
    assert "bits per byte 1.5000 is out of reach, the best is 1.8010 (5,000 bytes" in str(caught.value)


QUICK = ["encode", "--arch", "mlp:64-32-10", "--epochs", "8", "--device", "cpu", "-q", "--json"]


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*QUICK, "--target-size", "0.6kB"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["n_bytes"] == Path("digits.smask").stat().st_size <= 600
    options = ["--accuracy", "50%", "--force", "--checkpoint", "run", "--log", "log.jsonl"]
    assert main([*QUICK, *options]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["validation"] >= 0.5
    assert report["n_bytes"] == min(trial["n_bytes"] for trial in report["trials"] if trial["validation"] >= 0.5)
    # All searches are there already; going on repeats none.
    content = Path("digits.smask").read_bytes()
    assert main([*QUICK, *options, "--resume"]) == 0
    assert json.loads(capsys.readouterr().out)["seconds_search"] < 10
    assert Path("digits.smask").read_bytes() == content


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--target-size", "100"], "the best is"), (["--target-size", "many"], "kB"), (["--accuracy", "140%"], "97%"),
        (["--accuracy", "0.9", "--target-size", "8kB"], "one of them"), (["--accuracy", "1.0", "--epochs", "1"], "the best is"),
        (["--density", "0.1", "--target-size", "8kB"], "one of them"),
    ],
)  # fmt: skip
def test_refused_and_nothing_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str], word: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*QUICK, *arguments]) == 2
    assert word in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
