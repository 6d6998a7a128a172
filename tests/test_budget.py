"""Sizes and accuracies as targets of a search."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import smask
from smask import TargetSize, architectures, named_nets
from smask.cli.main import main
from smask.errors import ArgumentError, UnreachableError
from smask.recipe import recipe_of
from smask.runs.goal import Trial, smallest
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
    best, tried = smallest(made, 0.95, density=start)
    assert 0.03 <= best.density <= 0.033
    assert len(tried) <= 12
    assert best in tried


def test_accuracy_out_of_reach() -> None:
    with pytest.raises(UnreachableError) as caught:
        smallest(made, 0.999, density=0.04)
    assert (caught.value.best, caught.value.target) == (0.99, 0.999)
    best, tried = smallest(made, 0.999, density=0.04, keep_best=True)
    assert best.accuracy == max(trial.accuracy for trial in tried)
    with pytest.raises(ArgumentError):
        smallest(made, 1.5, density=0.04)


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
