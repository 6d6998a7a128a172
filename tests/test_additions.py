"""The task of binary addition: several labels an input."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from smask.cli.main import main
from smask.errors import ArchitectureError, ArgumentError, DataError
from smask.search.accuracy import LabelScore, score
from smask.search.data import Dataset, load_dataset
from smask.search.tasks import Classification, labels_loss

# Of addition:12, both numbers in a row; they are in no file, and figures depend on them.
FIRST = [7385713, 5079094, 3036288]


def numbers(bits: torch.Tensor) -> np.ndarray:
    return bits.numpy().astype(np.int64) @ (1 << np.arange(bits.shape[1])[::-1])


@pytest.mark.parametrize(("n_bits", "n_train", "n_test"), [(5, 213, 43), (9, 50_000, 10_000), (12, 50_000, 10_000)])
def test_labels_are_bits_of_sums(n_bits: int, n_train: int, n_test: int) -> None:
    data = load_dataset(f"addition:{n_bits}")
    assert (data.x_train.shape, data.x_test.shape) == ((n_train, 2 * n_bits), (n_test, 2 * n_bits))
    assert (data.x_train.dtype, data.y_train.dtype, data.n_classes) == (torch.float32, torch.float32, n_bits)
    one, other = numbers(data.x_train[:, :n_bits]), numbers(data.x_train[:, n_bits:])
    assert np.array_equal(one + other, numbers(data.y_train))
    assert max(one.max(), other.max()) == 2 ** (n_bits - 1) - 1
    pairs = numbers(torch.cat([data.x_train, data.x_test]))
    assert len(np.unique(pairs)) == n_train + n_test  # no test pair is a training pair, none is twice there


def test_the_pairs_are_always_the_same() -> None:
    data = load_dataset("addition:12")
    assert torch.equal(data.x_train, load_dataset("addition:12").x_train)
    assert numbers(data.x_test[:3]).tolist() == FIRST


@pytest.mark.parametrize("name", ["4", "25", "x", "-12", "12.0", "٣٣", "9" * 400, "00120", "0" * 5000 + "9"])
def test_other_numbers_of_bits_are_refused(name: str) -> None:
    with pytest.raises(DataError) as caught:
        load_dataset(f"addition:{name}")
    assert caught.value.source == f"addition:{name}"


def two_inputs() -> Dataset:
    x, y = torch.tensor([[1.0, -2.0], [3.0, 4.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    return Dataset("two", x, y, x, y)


def test_the_score_counts_labels_and_whole_inputs() -> None:
    got = score(nn.Identity(), two_inputs())  # logits: right, right; right, wrong
    loss = np.log1p(np.exp([-1.0, -2.0, -3.0, 4.0])).mean()
    assert got == LabelScore(0.5, pytest.approx(loss, rel=1e-6), 2, 0.75)


def test_the_loss_is_that_of_labels() -> None:
    task = Classification(two_inputs())
    outputs = torch.tensor([[0.0, 2.0]])
    targets = torch.tensor([[1.0, 0.0]])
    assert float(task.loss(0.0)(outputs, targets)) == pytest.approx((np.log(2) + np.log1p(np.exp(2))) / 2)
    smooth = float(labels_loss(outputs, targets, label_smoothing=0.2))
    assert smooth == pytest.approx((np.log(2) + 0.1 * np.log1p(np.exp(-2)) + 0.9 * np.log1p(np.exp(2))) / 2)


def test_a_net_of_other_outputs_is_refused() -> None:
    for n_outputs in (1, 3):
        with pytest.raises(ArchitectureError) as caught:
            score(nn.Linear(2, n_outputs), two_inputs())
        assert "2 labels" in caught.value.differences[0]


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(tmp_path / "sums.smask")
    options = [
        "--data",
        "addition:6",
        "--arch",
        "mlp:12-64-6",
        "--density",
        "0.5",
        "--epochs",
        "60",
        "-q",
        "--json",
        "--batch-size",
        "32",
    ]
    assert main(["encode", *options, "-o", file, "--lr", "1e-2"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["label_accuracy"] > 0.65  # a net that says the most frequent bit has 0.57
    assert found["label_accuracy"] > found["accuracy"]
    assert main(["eval", file, "--data", "addition:6", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert {name: again[name] for name in ("accuracy", "label_accuracy", "loss")} == {
        name: found[name] for name in ("accuracy", "label_accuracy", "loss")
    }
    assert main(["eval", file, "--data", "addition:6"]) == 0
    assert "of labels" in capsys.readouterr().out
    assert main(["encode", *options, "-o", file, "--force", "--teacher", file]) == ArgumentError.exit_code
    assert "--teacher" in capsys.readouterr().err


def test_the_default_name_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["encode", "--data", "addition:5", "--arch", "mlp:10-8-5", "--epochs", "1", "-q"]) == 0
    assert (tmp_path / "addition-5.smask").exists()
