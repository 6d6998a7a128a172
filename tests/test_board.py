"""Curves for TensorBoard, read back by its own reader."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import smask
from smask import Checkpoints
from smask.cli.main import main
from smask.errors import ArgumentError
from smask.runs.board import Board
from smask.search.data import Batches, Dataset
from smask.search.progress import Progress
from test_runs import StoppedError, Stopping

SMALL = ["--arch", "mlp:64-16-10", "--epochs", "10", "--device", "cpu", "-q"]


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Points of every curve of one folder, as TensorBoard shows them."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = reader.EventAccumulator(str(folder), size_guidance={reader.SCALARS: 0})
    found.Reload()
    return {tag: [(at.step, at.value) for at in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def at(step: int, loss: float = 0.5, **more: float) -> Progress:
    return Progress(step, 80, 1, 1, loss, 0.25, 1000, **more)


def test_every_report_is_a_point(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    board = Board(tmp_path)
    board.progress(at(40, accuracy=0.75))
    assert curves(tmp_path)["loss"] == [(40, 0.5)]  # there at once: a search may be killed
    board.progress(at(80, 0.25, accuracy=0.875, validation=0.5))
    board.begin("text")
    board.progress(at(40, validation=-2.5))
    assert curves(tmp_path) == {
        "loss": [(40, 0.5), (80, 0.25)], "accuracy": [(40, 0.75), (80, 0.875)], "density": [(40, 0.25), (80, 0.25)],
        "bytes": [(40, 1000), (80, 1000)], "validation/accuracy": [(80, 0.5)],
    }  # fmt: skip
    assert curves(tmp_path / "text")["validation/bits_per_byte"] == [(40, 2.5)]


def test_steps_done_again_are_shown_once(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    for first, losses in ((0, {20: 1.0, 40: 2.0, 60: 3.0}), (30, {40: 4.0, 60: 5.0, 80: 6.0})):
        board = Board(tmp_path)
        for step, loss in losses.items():
            board.progress(at(step, loss, first_step=first))
    assert curves(tmp_path)["loss"] == [(20, 1.0), (40, 4.0), (60, 5.0), (80, 6.0)]
    anew = Board(tmp_path)
    anew.progress(at(20, 7.0))
    assert curves(tmp_path)["loss"] == [(20, 7.0)]
    assert len(list(tmp_path.iterdir())) == 3  # nothing is deleted


def test_a_stopped_search_goes_on_in_the_same_folder(digits_data: Dataset, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")

    def search(folder: Path, keeper: Checkpoints | None, last_step: int = 1000) -> None:
        board = Board(folder)

        def progress(at: Progress) -> None:
            board.progress(at)
            if at.step >= last_step:
                raise StoppedError

        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        batches = Batches(digits_data, batch_size=200, seed=3)
        smask.find_masks(model, batches, density=0.3, epochs=12, checkpoints=keeper, progress=progress)

    search(tmp_path / "whole", None)
    whole = curves(tmp_path / "whole")
    _, (second, _), (third, _) = whole["loss"][:3]
    with pytest.raises(StoppedError):
        search(tmp_path / "curves", Stopping(tmp_path / "kept", second - 2))
    with pytest.raises(StoppedError):
        search(tmp_path / "curves", None, last_step=third)  # beyond the checkpoint
    search(tmp_path / "curves", Checkpoints(tmp_path / "kept", resume=True))
    again = curves(tmp_path / "curves")
    assert again["bytes"] == whole["bytes"]
    assert again["density"] == whole["density"]
    assert len(list((tmp_path / "curves").iterdir())) == 3


def test_what_cannot_be_written_is_told_once(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    problems: list[str] = []
    (tmp_path / "file").write_text("")
    with pytest.raises(ArgumentError) as caught:
        Board(tmp_path / "file")
    assert (caught.value.name, caught.value.got) == ("tensorboard", str(tmp_path / "file"))
    board = Board(tmp_path / "board", problem=problems.append)
    (tmp_path / "board/round").write_text("")
    board.begin("round")  # where a file is
    board.progress(at(40))
    board.progress(at(80))
    assert len(problems) == 1
    assert "EEXIST" in problems[0]


def test_full_disk_ends_the_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    real = Path.open
    monkeypatch.setattr(Path, "open", lambda path, mode="r", *a, **k: real(Path("/dev/full"), "wb", *a, **k))
    problems: list[str] = []
    board = Board(tmp_path, problem=problems.append)
    board.progress(at(40))
    board.progress(at(80))
    assert len(problems) == 1
    assert "ENOSPC" in problems[0]


def test_without_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "tensorboard"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    for command in ("encode", "train", "ticket"):
        words = [command, "--tensorboard", str(tmp_path / "curves"), "-o", str(tmp_path / "out.smask"), *SMALL]
        assert main(words) == 2
        assert "pip install 'smask[tensorboard]'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ArgumentError) as caught:
        Board(tmp_path / "curves")
    assert caught.value.name == "tensorboard"


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorboard")
    searched, found, trained = tmp_path / "encode", tmp_path / "ticket", tmp_path / "train"
    words = [
        "encode",
        *SMALL,
        "--method",
        "single",
        "-o",
        str(tmp_path / "a.smask"),
        "--validation",
        "0.2",
        "--checkpoint",
        str(tmp_path / "c"),
    ]
    assert main([*words, "--tensorboard", str(searched)]) == 0
    whole = curves(searched)
    assert set(whole) == {"loss", "accuracy", "density", "bytes", "validation/accuracy"}
    steps = [step for step, _ in whole["loss"]]
    assert steps == sorted(set(steps))
    assert whole["bytes"][-1][1] < whole["bytes"][0][1]
    assert main([*words, "--tensorboard", str(searched), "--resume", "--force"]) == 0  # nothing is left to do
    assert curves(searched) == whole
    assert main(["encode", *SMALL, "-o", str(tmp_path / "g.smask"), "--accuracy", "0.99", "--keep-best", "--density",
                 "0.4", "--tensorboard", str(tmp_path / "goal")]) == 0  # fmt: skip
    assert sorted(path.name for path in (tmp_path / "goal").iterdir()) == ["density-0.400000", "density-0.500000"]
    assert (
        main(
            ["ticket", *SMALL, "-o", str(tmp_path / "t.smask"), "--rounds", "2", "--train", "--tensorboard", str(found)]
        )
        == 0
    )
    assert sorted(path.name for path in found.iterdir()) == ["round-1", "round-2", "train"]
    assert {value for _, value in curves(found / "round-1")["density"]} == {1.0}
    assert curves(found / "train")["density"][0][1] < curves(found / "round-2")["density"][0][1] < 1
    assert main(["train", *SMALL, "-o", str(tmp_path / "n.smask"), "--tensorboard", str(trained)]) == 0
    assert set(curves(trained)) == {"loss", "accuracy", "density", "bytes"}
    assert capsys.readouterr().err == ""
