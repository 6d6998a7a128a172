"""Options of how training images are changed: what they make of a task, and what they refuse."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from smask.cli.image_changes import changed
from smask.cli.main import main
from smask.errors import ArgumentError
from smask.search.data import Dataset
from smask.search.tasks import Classification

NET = {
    "layers": [
        {"op": "conv2d", "inputs": 1, "outputs": 12, "kernel": 3, "padding": 1}, {"op": "batch-norm-2d", "features": 12}, "relu",
        {"op": "conv2d", "inputs": 12, "outputs": 24, "kernel": 3, "stride": 2}, {"op": "batch-norm-2d", "features": 24}, "relu",
        "global-average-pool", {"op": "linear", "inputs": 24, "outputs": 10},
    ]
}  # fmt: skip


def said(**options: Any) -> Namespace:
    return Namespace(**{"shift": None, "flip": False, "erase": 0, "cutmix": 0.0, "resize": None, **options})


@pytest.mark.parametrize(
    ("text", "sizes"), [(None, ()), ("6:0.5", ((6, 0.5),)), ("4:0.25,6:0.5", ((4, 0.25), (6, 0.5)))]
)
def test_sizes_of_a_task(digits_data: Dataset, text: str | None, sizes: tuple) -> None:
    assert changed(Classification(digits_data), said(resize=text)).sizes == sizes


@pytest.mark.parametrize("text", ["", "6", "6:", ":0.5", "6:x", "6.5:0.5", "8:0.5", "0:0.5", "-1:0.5", "6:0", "6:1",
                                  "6:nan", "6:0.5,", "4:0.5,6:0.5", "4:0.6,6:0.5", "6:1e400"])  # fmt: skip
def test_sizes_that_there_are_not(digits_data: Dataset, text: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        changed(Classification(digits_data), said(resize=text))
    assert (caught.value.name, caught.value.got) == ("--resize", text)
    assert "1 to 7 pixels" in str(caught.value)


def test_only_images_have_sizes(digits_data: Dataset) -> None:
    table = Dataset("t", digits_data.x_train.flatten(1), digits_data.y_train, digits_data.x_test, digits_data.y_test)
    with pytest.raises(ArgumentError) as caught:
        changed(Classification(table), said(resize="4:0.5"))
    assert caught.value.want == "images to make smaller"


@pytest.mark.parametrize("command", ["encode", "train"])
def test_a_command_begins_with_small_images(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.json").write_text(json.dumps(NET))
    line = [command, "--arch", "net.json", "--epochs", "6", "--lr", "0.01", "-q", "--json", "--force", "-o", "a.smask"]
    line += ["--density", "0.5"] if command == "encode" else []
    seen = []
    for sizes in (["--resize", "6:0.5"], ["--resize", "6:0.5"], []):
        assert main([*line, *sizes]) == 0
        seen.append(json.loads(capsys.readouterr().out))
    assert seen[0]["digest"] == seen[1]["digest"] != seen[2]["digest"]
    assert seen[0]["accuracy"] > 0.5


@pytest.mark.parametrize("command", ["encode", "train", "ticket"])
def test_a_net_of_one_size_is_refused(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    line = [command, "--resize", "6:0.5", "--epochs", "2", "-q", "-o", "a.smask"]
    assert main([*line, *(["--density", "0.5"] if command == "ticket" else [])]) == 6
    assert "inputs of shape [1, 6, 6] do not go through the model" in capsys.readouterr().err
    assert not Path("a.smask").exists()


@pytest.mark.parametrize(
    "options", [["--flip"], ["--cutmix", "0.5"], ["--resize", "24:0.6"], ["--shift", "3"], ["--erase", "2"]]
)
@pytest.mark.parametrize("command", ["encode", "train"])
def test_text_is_no_image(
    command: str,
    options: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("book.txt").write_text("all work and no play " * 100)
    line = [command, "--task", "lm", "--data", "book.txt", "--arch", "gpt:1x16x1x8", "-q", "-o", "a.smask"]
    assert main([*line, *options]) == 2
    assert f"{options[0]}: got" in capsys.readouterr().err
    assert not Path("a.smask").exists()
