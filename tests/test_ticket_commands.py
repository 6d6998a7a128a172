"""`smask ticket` and `smask train`: from data to files, interrupted and resumed, and what they refuse."""

import json
import os
from pathlib import Path

import pytest
import torch
from torch import nn

import smask
from conftest import without_masks
from smask.cli.main import main
from smask.recipe import recipe_of

FAST = ["--arch", "mlp:64-48-10", "--epochs", "40", "--device", "cpu", "-q"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def printed(capsys: pytest.CaptureFixture[str], *words: object) -> dict:
    capsys.readouterr()
    assert main([*map(str, words), "--json"]) == 0
    report: dict = json.loads(capsys.readouterr().out)
    return report


def test_from_data_to_a_trained_file(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole way on digits: a dense rival, a ticket in two rounds, its training, that of reshuffled weights."""
    dense = printed(capsys, "train", "-o", "dense.smask", *FAST)
    found = printed(capsys, "ticket", "--rounds", 2, "--density", 0.2, "-o", "t.smask", *FAST)
    assert len(found["rounds"]) == 2
    assert found["rounds"][0]["accuracy"] == dense["accuracy"] > 0.93
    assert found["n_bytes"] < dense["n_bytes"] / 15
    trained = printed(capsys, "train", "t.smask", "--log", "log.jsonl", *FAST[2:])
    assert trained["file"] == "t-trained.smask"
    assert trained["untrained"] == {key: found[key] for key in ("accuracy", "loss")}
    assert trained["accuracy"] > 0.9
    assert trained["n_kept"] == found["n_kept"] - int(0.2**0.5 * 480 + 0.5)  # small tensors are stored whole
    weights, start = smask.load("t-trained.smask").state_dict(), smask.load("t.smask").state_dict()
    for name in ("2.weight", "4.weight"):
        assert torch.equal(weights[name] != 0, start[name] != 0)
    log = [json.loads(line) for line in (here / "log.jsonl").read_text().splitlines()]
    assert [log[0]["event"], log[-1]["event"], log[-1]["accuracy"]] == ["begin", "result", trained["accuracy"]]
    small = printed(capsys, "train", "t.smask", "--target-size", "1500", "-o", "small.smask", *FAST[2:])
    assert 1400 < small["n_bytes"] <= 1500 < trained["n_bytes"]
    assert small["accuracy"] > 0.8
    shuffled = printed(capsys, "ticket", "--kept", "reshuffle", "--pruned", "initial", "--train", *FAST)
    assert shuffled["file"] == "digits-trained.smask"
    assert shuffled["accuracy"] > 0.8 > shuffled["untrained"]["accuracy"]
    again = printed(capsys, "eval", "digits-trained.smask")
    assert again["accuracy"] == shuffled["accuracy"]


def test_interrupted_commands_go_on(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["ticket", "--rounds", "3", "--train", *FAST[:2], "--epochs", "2", "-q"]
    whole = printed(capsys, *words, "-o", "whole.smask")
    from smask.training import tickets

    calls = []

    def interrupted(*arguments, **options):
        calls.append(options["settings"]["round"])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    real = tickets.train_weights
    monkeypatch.setattr(tickets, "train_weights", interrupted)
    assert main([*words, "--checkpoint", "run", "-o", "t.smask"]) == 130
    assert "round-001" in capsys.readouterr().err
    assert not (here / "t.smask").exists()
    again = printed(capsys, *words, "--checkpoint", "run", "--resume", "-o", "t.smask")
    assert (here / "t.smask").read_bytes() == (here / "whole.smask").read_bytes()
    assert again["rounds"] == whole["rounds"]
    for other in (["--criterion", "movement"], ["--lr", "0.01"], ["--rounds", "4"]):
        assert main([*words, *other, "--checkpoint", "run", "--resume", "-o", "u.smask"]) == 2
        assert "holds checkpoints of another search" in capsys.readouterr().err
    assert main(["train", *FAST, "--checkpoint", "run/round-001", "--resume"]) == 2
    assert "round is 1 there and None here" in capsys.readouterr().err
    assert sorted(os.listdir(here)) == ["run", "t.smask", "whole.smask"]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["ticket", "--density", "0"], 2, ["--density", "above 0"]),
        (["ticket", "--last-density", "2"], 2, ["--last-density"]),
        (["ticket", "--rounds", "0"], 2, ["--rounds"]),
        (["ticket", "--criterion", "luck"], 4, ["luck", "large-final-same-sign", "movement"]),
        (["ticket", "--kept", "all"], 4, ["all", "reshuffle"]),
        (["ticket", "--signs", "all"], 4, ["signs", "random"]),
        (["ticket", "--pruned", "all"], 4, ["pruned", "initial"]),
        (["ticket", "--kept", "reshuffle"], 2, ["kept", "reshuffle", "--train"]),
        (["ticket", "--pruned", "initial"], 2, ["pruned", "initial", "--train"]),
        (["ticket", "--target-size", "4kB"], 2, ["--target-size", "--train"]),
        (["ticket", "--criterion", "large-final-diff-sign", "--epochs", "3", "--lr", "1e-9"], 2, ["diff-sign", "keeps a weight of"]),
        (["train", "--base", "cauchy"], 4, ["cauchy", "normal"]),
        (["train", "--optimizer", "lion"], 4, ["lion", "adam"]),
        (["train", "--rate", "linear"], 4, ["linear", "cosine"]),
        (["train", "--epochs", "0"], 2, ["--epochs"]),
        (["train", "--lr", "nan"], 2, ["lr"]),
        (["train", "--weight-decay", "-1"], 2, ["weight_decay"]),
        (["train", "--resume"], 2, ["--resume", "--checkpoint"]),
        (["train", "--target-size", "100"], 2, ["100 bytes", "small parameters alone"]),
        (["ticket", "--train", "--target-size", "100"], 2, ["100 bytes", "small parameters alone"]),
        (["ticket", "--train", "--target-size", "4zz"], 2, ["--target-size", "kB"]),
        (["train", "--target-size", "small"], 2, ["--target-size", "kB"]),
        (["train", "--task", "lm"], 2, ["--task lm", "--data"]),
        (["train", "missing.smask"], 3, ["missing.smask"]),
        (["train", "mask.smask", "--arch", "conv2"], 2, ["--arch", "FILE"]),
        (["train", "mask.smask", "--data", "nowhere"], 3, ["nowhere", "not found"]),
        (["train", "dense.smask"], 2, ["no mask", "smask ticket"]),
        (["train", "junk.smask"], 3, ["not a valid smask file"]),
        (["train", "--lr", "1e30", "--epochs", "3"], 1, ["the loss was", "step"]),
    ],
)  # fmt: skip
def test_what_the_commands_refuse(
    here: Path, found: nn.Module, capsys: pytest.CaptureFixture[str], words: list[str], code: int, said: list[str]
) -> None:
    smask.save(found, here / "mask.smask")
    (here / "dense.smask").write_bytes(smask.encode(found.state_dict(), without_masks(recipe_of(found))))
    (here / "junk.smask").write_bytes(b"junk")
    assert main([*words, "-q"]) == code
    line = capsys.readouterr().err
    assert all(word in line for word in said), line
    assert sorted(os.listdir(here)) == ["dense.smask", "junk.smask", "mask.smask"]
