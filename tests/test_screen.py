"""What a person sees: names of files and tensors as they are, whatever they hold and wherever they are shown."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import smask
from smask.cli import bars, screen
from smask.cli.main import main

# Markup of rich, the end of a style that never began, and what rich would draw as a picture.
ODD = "a[bold]b[/c] :warning: d"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def file(here: Path) -> Path:
    """A file whose name, tensors and text are odd."""
    path = Path(f"{ODD}.smask".replace("/", ""))
    smask.convert_checkpoint({ODD: torch.randn(40, 30)}, path, bits=3, meta={ODD: ODD})
    return path


def shown(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([str(argument) for argument in arguments]) == 0
    out: str = capsys.readouterr().out
    return out


def test_names_are_text_and_no_markup(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("x[").mkdir()
    outputs = [Path(f"x[/b] {index}.safetensors") for index in range(4)]
    smask.convert_checkpoint({ODD: torch.randn(40, 30)}, "other.smask", bits=3)
    assert shown(capsys, "inspect", file).count(ODD) == 3
    assert f"output   {outputs[0]}" in shown(capsys, "decode", file, "-o", outputs[0])
    assert f" {ODD} " in shown(capsys, "decode", file, "-o", outputs[1], "--max-planes", 1)
    packed = shown(capsys, "pack", file, "other.smask", "--names", f"one,{ODD}", "-o", outputs[2])
    assert str(outputs[2]) in packed
    assert ODD in packed
    assert str(outputs[3]) in shown(capsys, "unpack", outputs[2], "--task", ODD, "-o", outputs[3])
    converted = shown(capsys, "convert", outputs[0], "-o", file, "--lossless", "--force", "--quiet")
    assert ODD in converted
    assert str(file) in converted


def test_narration_is_text(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    screen.say(f"{ODD}\x1b[2J")
    assert capsys.readouterr().err == f"{ODD}\\x1b[2J\n"
    monkeypatch.setenv("FORCE_COLOR", "1")
    with bars.stages(2) as progress:
        progress(ODD, 1)


def test_cells_of_several_lines(capsys: pytest.CaptureFixture[str]) -> None:
    screen.result({}, [("a", "b\nc\x1b[2J")], as_json=False)
    assert [line.strip() for line in capsys.readouterr().out.splitlines()] == ["a  b", "c\\x1b[2J"]


@pytest.mark.parametrize("as_json", [False, True])
def test_what_stdout_has_no_letters_for(here: Path, as_json: bool) -> None:
    smask.convert_checkpoint({"ключ": torch.ones(3)}, "m.smask")
    command = [sys.executable, "-m", "smask", "inspect", "m.smask", *["--json"] * as_json]
    done = subprocess.run(command, capture_output=True, check=False, env={**os.environ, "PYTHONIOENCODING": "latin-1"})
    assert done.returncode == 0, done.stderr
    text = done.stdout.decode("ascii")
    assert (json.loads(text)["tensors"][0]["name"] == "ключ") if as_json else (r"\u043a\u043b\u044e\u0447" in text)
