"""Sweeps: every point a search, kept when it is done, taken up again; the picture where it can be drawn."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from smask.cli import sweep
from smask.cli.main import main, parser

OPTIONS = ["--", "--arch", "mlp:64-16-10", "--epochs", "2", "--device", "cpu"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def searched(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Commands run; each reports what follows from its options, a size of 1 is out of reach."""
    commands: list[list[str]] = []

    def fake(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        arguments = parser().parse_args(command[3:])
        if arguments.target_size == "1":
            return subprocess.CompletedProcess(command, 2, "", "smask: target size 1 bytes is out of reach\n")
        if arguments.target_size == "2":
            return subprocess.CompletedProcess(command, 130, "", "smask: interrupted\n")
        n_bytes = int(arguments.target_size)
        accuracy = 1 - 100 / n_bytes + arguments.seed / 100
        found = dict.fromkeys(sweep.KEYS, 1) | {"n_bytes": n_bytes - 1, "accuracy": accuracy}
        return subprocess.CompletedProcess(command, 0, json.dumps(found | {"more": 3}), "")

    monkeypatch.setattr(sweep.subprocess, "run", fake)
    return commands


def test_points_are_real_searches(here: Path) -> None:
    command = [sys.executable, "-m", "smask", "sweep", "--densities", "0.3,0.1", "-q", "--json", "-o", "c", *OPTIONS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    dense, sparse = json.loads(done.stdout)["points"]
    assert (dense["density"], sparse["density"]) == ("0.3", "0.1")
    assert 0 < sparse["n_kept"] < dense["n_kept"] < dense["n_weights"]
    assert sparse["n_bytes"] < dense["n_bytes"]
    assert sorted(path.name for path in here.iterdir() if path.suffix != ".png") == ["c.json"]


def test_points_of_text_are_in_bits_per_byte(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("fox.txt").write_text("the quick brown fox jumps over the lazy dog. " * 100)
    options = ["--", "--task", "lm", "--data", "fox.txt", "--arch", "gpt:1x16x1x16", "--epochs", "1"]
    assert main(["sweep", "--densities", "0.5", "-q", "-o", "t", *options]) == 0
    assert "bits per byte" in capsys.readouterr().out
    (point,) = json.loads(Path("t.json").read_text())["points"]
    assert 0 < point["bits_per_byte"] < 8
    assert "accuracy" not in point
    assert main(["sweep", "--densities", "0.5", "-q", "-o", "t", "--json", *options]) == 0
    assert json.loads(capsys.readouterr().out)["points"] == [point]


def test_one_search_for_every_method_size_and_seed(here: Path, searched: list[list[str]], capsys) -> None:
    assert main(["sweep", "--sizes", "400,800", "--methods", "auto,signed", "--seeds", "0,1", "--json", *OPTIONS]) == 0
    report = json.loads(capsys.readouterr().out)
    settings = [(point["method"], point["target-size"], point["seed"]) for point in report["points"]]
    assert settings == [(m, s, n) for m in ("auto", "signed") for s in ("400", "800") for n in ("0", "1")]
    assert report["options"] == OPTIONS[1:]
    assert {"--checkpoint", "--resume", "--epochs"} <= set(searched[0])
    assert set(report["points"][0]) == {"method", "target-size", "seed", "accuracy", *sweep.KEYS}


def test_points_that_are_there_are_kept(here: Path, searched: list[list[str]], capsys) -> None:
    main(["sweep", "--sizes", "400", "--json", *OPTIONS])
    first = json.loads(capsys.readouterr().out)["points"]
    assert main(["sweep", "--sizes", "800,400", "--json", *OPTIONS]) == 0
    assert json.loads(capsys.readouterr().out)["points"][1:] == first
    assert len(searched) == 2
    assert len(json.loads((here / "sweep.json").read_text())["points"]) == 2


def test_an_interrupt_keeps_what_is_done(here: Path, searched: list[list[str]], capsys) -> None:
    assert main(["sweep", "--sizes", "400,2,800", *OPTIONS]) == 130
    assert [point["target-size"] for point in json.loads((here / "sweep.json").read_text())["points"]] == ["400"]
    # What the search has kept so far is still there.
    assert len(list((here / "sweep.runs").iterdir())) == 1


def test_a_point_out_of_reach_is_noted_and_tried_again(here: Path, searched: list[list[str]], capsys) -> None:
    assert main(["sweep", "--sizes", "1,800", "-q", *OPTIONS]) == 1
    out = capsys.readouterr().out
    assert "smask encode --method auto --target-size 1 --seed 0: smask: target size 1 bytes is out of reach" in out
    assert "799 bytes  87.50%" in out
    assert "accuracy" in json.loads((here / "sweep.json").read_text())["points"][1]
    main(["sweep", "--sizes", "1,800", "-q", *OPTIONS])
    assert len(searched) == 3


def test_seeds_are_averaged(here: Path, searched: list[list[str]], capsys) -> None:
    main(["sweep", "--sizes", "400,800", "--seeds", "0,2", *OPTIONS])
    assert "799 bytes  88.50% (87.50% to 89.50%, 2 seeds)" in capsys.readouterr().out


def test_the_picture(here: Path, searched: list[list[str]], capsys) -> None:
    pytest.importorskip("matplotlib")
    main(["sweep", "--sizes", "400,800", "--methods", "auto,signed", "--seeds", "0,1", *OPTIONS])
    assert (here / "sweep.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("sweep", "want --sizes or --densities"),
        ("sweep --sizes 4kB --densities 0.1", "want --sizes or --densities"),
        ("sweep --sizes 4kB --seeds ,", "--seeds: got ','"),
        ("sweep --sizes 4kB -- --seed 3", "got '--seed'"),
        ("sweep --sizes 4kB -- --density=0.1", "got '--density=0.1'"),
        ("sweep --sizes 4kB -o missing/c", "there is no folder missing"),
    ],
)
def test_bad_options(here: Path, searched: list[list[str]], capsys, command: str, said: str) -> None:
    assert main(shlex.split(command)) in (2, 5)
    assert said in capsys.readouterr().err
    assert not searched
    assert not list(here.iterdir())


POINT = {"method": "auto", "density": "0.1", "seed": "0", "accuracy": 0.5, "n_bytes": 7}


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", '{"options": [], "points": 3}', '{"options": [], "points": [3]}', '{"options": [], "points": [{}]}',
        *(
            json.dumps({"options": [], "points": [POINT, POINT | change]})
            for change in ({"seed": 0}, {"accuracy": "high"}, {"n_bytes": None}, {"target-size": "4kB"})
        ),
    ],
)  # fmt: skip
def test_a_file_that_is_no_report(here: Path, searched: list[list[str]], capsys, text: str) -> None:
    (here / "sweep.json").write_text(text)
    assert main(["sweep", "--sizes", "400"]) == 3
    assert "it is not the report of a sweep" in capsys.readouterr().err
    assert (here / "sweep.json").read_text() == text


def test_a_report_of_other_options(here: Path, searched: list[list[str]], capsys) -> None:
    main(["sweep", "--sizes", "400", *OPTIONS])
    assert main(["sweep", "--sizes", "400", "--", "--epochs", "3"]) == 3
    assert "its points are of other options (--arch mlp:64-16-10 --epochs 2 --device cpu)" in capsys.readouterr().err
