"""The command line as a user meets it: whole processes, or main() where a process adds nothing."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import smask
from smask.cli.main import main, parser

QUICK = ["--arch", "mlp:64-16-10", "--density", "0.3", "--epochs", "2", "--device", "cpu"]


def run(*arguments: object, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "smask", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **options)


@pytest.fixture
def file(found: torch.nn.Module, tmp_path: Path) -> Path:
    smask.save(found, tmp_path / "model.smask")
    return tmp_path / "model.smask"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fails(capsys: pytest.CaptureFixture[str], code: int, *arguments: object) -> str:
    """Runs main, checks the exit code and that one line of ours is all there is to see."""
    assert main([str(argument) for argument in arguments]) == code
    out, err = capsys.readouterr()
    assert out == ""
    lines = [line for line in err.splitlines() if line.startswith("smask: ")]
    assert len(lines) == 1
    assert "Traceback" not in err
    return lines[0]


def test_encode_eval_inspect_verify_decode(here: Path) -> None:
    encoded = run("encode", *QUICK, "--json", "--meta", "author=me", "--seed", 3)
    assert encoded.returncode == 0, encoded.stderr
    report = json.loads(encoded.stdout)
    assert report["file"] == "digits.smask"
    assert report["n_bytes"] == (here / "digits.smask").stat().st_size
    assert report["ratio_to_fp32"] == pytest.approx(report["fp32_bytes"] / report["n_bytes"], abs=0.01)
    assert "2/2" in encoded.stderr

    evaluated = json.loads(run("eval", "digits.smask", "--data", "digits", "--json").stdout)
    assert evaluated["accuracy"] == report["accuracy"]
    assert evaluated["loss"] == pytest.approx(report["loss"])

    inspected = json.loads(run("inspect", "digits.smask", "--json").stdout)
    assert inspected["meta"] == {"author": "me"}
    assert inspected["n_bytes"] == report["n_bytes"]
    assert inspected["seed"] == 3

    verified = run("verify", "digits.smask")
    assert verified.returncode == 0
    assert "bit-identical" in verified.stdout

    decoded = run("decode", "digits.smask", "-o", "digits.safetensors", "--json")
    assert decoded.returncode == 0, decoded.stderr
    tensors = load_file("digits.safetensors")
    expected = smask.decode("digits.smask")
    assert set(tensors) == set(expected)
    assert all(torch.equal(tensors[name], expected[name]) for name in tensors)
    assert sorted(os.listdir(here)) == ["digits.safetensors", "digits.smask"]


def test_same_command_same_bytes(here: Path) -> None:
    for name in ("a", "b"):
        assert run("encode", *QUICK, "-q", "-o", f"{name}.smask").returncode == 0
    assert (here / "a.smask").read_bytes() == (here / "b.smask").read_bytes()


def test_tables_are_readable(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(file)]) == 0
    text = capsys.readouterr().out
    for word in ("2.weight", "48x64", "signed, 1 plane", "entropy", "times smaller than", "meta task"):
        assert word in text
    assert main(["eval", str(file)]) == 0
    assert "%" in capsys.readouterr().out


def test_every_command_has_help_with_examples() -> None:
    commands = next(action.choices for action in parser()._actions if action.choices)
    known = {
        "bench",
        "convert",
        "encode",
        "eval",
        "decode",
        "inspect",
        "pack",
        "sweep",
        "ticket",
        "train",
        "unpack",
        "verify",
    }
    assert set(commands) == known
    for command in commands.values():
        assert "examples:" in command.format_help()
    assert "exit codes" in parser().format_help()
    assert run("--version").stdout.split() == ["smask", smask.__version__]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--density", "0"], 2, ["--density", "above 0"]),
        (["--density", "1.5"], 2, ["--density", "1.5"]),
        (["--density", "nan"], 2, ["--density"]),
        (["--last-density", "2"], 2, ["--last-density"]),
        (["--epochs", "0"], 2, ["--epochs"]),
        (["--batch-size", "-1"], 2, ["--batch-size"]),
        (["--seed", "-1"], 2, ["--seed"]),
        (["--resume"], 2, ["--resume", "--checkpoint"]),
        (["--checkpoint", "run", "--checkpoint-every", "nan"], 2, ["--checkpoint-every"]),
        (["--validation", "1"], 2, ["--validation"]),
        (["--patience", "0"], 2, ["--patience"]),
        (["--label-smoothing", "1"], 2, ["--label-smoothing"]),
        (["--float-bits", "0"], 2, ["--float-bits"]),
        (["--float-bits", "23"], 2, ["float_bits", "22"]),
        (["--log", "no/such/folder.jsonl"], 2, ["log", "ENOENT"]),
        (["--meta", "novalue"], 2, ["--meta", "KEY=TEXT"]),
        (["--method", "magic"], 4, ["magic", "auto", "edge-popup", "multicoat"]),
        (["--arch", "alexnet"], 4, ["alexnet", "lenet-300-100", "resnet20"]),
        (["--base", "cauchy"], 4, ["cauchy", "signed"]),
        (["--arch", "missing.json"], 2, ["missing.json"]),
        (["--arch", "mlp:784-10"], 6, ["784", "64"]),
        (["--arch", "mlp:64-9"], 6, ["9 outputs", "10 classes"]),
        (["--arch", "resnet20:3"], 4, ["resnet20:3"]),
        (["--data", "nowhere"], 3, ["nowhere", "not found"]),
        (["--device", "cuda:99"], 6, ["cuda:99"]),
        (["--device", "abacus"], 6, ["abacus"]),
        (["-o", "no/such/folder.smask"], 2, ["existing folder"]),
    ],
)
def test_encode_refuses(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, words: list[str]
) -> None:
    line = fails(capsys, code, "encode", "-q", *arguments)
    assert all(word in line for word in words), line
    assert os.listdir(here) == []


def test_encode_refuses_labels_out_of_range(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x, y = np.zeros((4, 8, 8), np.uint8), np.arange(4)
    np.savez("bad.npz", x_train=x, y_train=y, x_test=x, y_test=y + 1)
    assert "labels 1 to 4, want 0 to 3" in fails(capsys, 3, "encode", "-q", "--data", "bad.npz")
    assert os.listdir(here) == ["bad.npz"]


def test_existing_output_is_kept_without_force(here: Path, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("digits.smask").write_text("mine")
    Path("out.safetensors").write_text("mine")
    assert "--force" in fails(capsys, 2, "encode", "-q")
    assert "--force" in fails(capsys, 2, "decode", file, "-o", "out.safetensors")
    assert Path("digits.smask").read_text() == Path("out.safetensors").read_text() == "mine"
    assert main(["encode", "-q", "--force", *QUICK]) == 0
    assert main(["decode", str(file), "-o", "out.safetensors", "--force"]) == 0
    assert smask.verify("digits.smask").same
    assert len(load_file("out.safetensors")) == 6


@pytest.mark.parametrize("command", ["eval", "inspect", "verify", "decode"])
def test_bad_files(here: Path, file: Path, vectors: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    more = ["-o", "out.safetensors"] if command == "decode" else []
    good = file.read_bytes()
    flipped = bytearray(good)
    flipped[-40] ^= 16
    for name, content in (
        ("cut", good[:-5]),
        ("long", good + b"\0"),
        ("flipped", flipped),
        ("text", b"hello"),
        ("none", b""),
    ):
        Path(name).write_bytes(content)
        fails(capsys, 3, command, name, *more)
    assert "missing.smask" in fails(capsys, 3, command, "missing.smask", *more)
    fails(capsys, 3, command, ".", *more)
    fails(capsys, 4, command, vectors / "reject/version-2.smask", *more)
    assert "max_weights" in fails(capsys, 5, command, vectors / "reject/terabytes.smask", *more)
    fails(capsys, 5, command, file, "--max-weights", 10, *more)
    assert not Path("out.safetensors").exists()


def test_a_file_does_not_steer_the_terminal(
    found: torch.nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from dataclasses import replace

    recipe = replace(found.smask_recipe, meta={"k[red]\x1b[2J": "a\x1b]0;title\x07[bold]b"})
    (tmp_path / "a.smask").write_bytes(smask.encode(found.state_dict(), recipe))
    assert main(["inspect", str(tmp_path / "a.smask")]) == 0
    text = capsys.readouterr().out
    assert "\x1b" not in text
    assert "\\x1b]0;title\\x07[bold]b" in text


def test_a_tensor_that_safetensors_cannot_name(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    smask.convert_checkpoint({"__metadata__": torch.ones(2)}, "model.smask")
    assert "'__metadata__'" in fails(capsys, 5, "decode", "model.smask", "-o", "model.safetensors")
    assert os.listdir(here) == ["model.smask"]


def test_verify_says_no(file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from smask import bases

    exact = bases.sign_bytes
    monkeypatch.setattr(bases, "sign_bytes", lambda *a, **k: exact(*a, **k) ^ 1)
    assert main(["verify", str(file)]) == 1
    assert "NO" in capsys.readouterr().out
    fails(capsys, 3, "decode", file, "-o", file.with_suffix(".safetensors"))
    assert not file.with_suffix(".safetensors").exists()


def test_eval_on_data_that_does_not_fit(here: Path, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x, y = np.zeros((40, 9, 9), np.uint8), np.arange(40) % 10
    np.savez("other.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    assert "do not go through" in fails(capsys, 6, "eval", file, "--data", "other.npz")
    x = np.zeros((40, 8, 8), np.uint8)
    np.savez("more.npz", x_train=x, y_train=np.arange(40), x_test=x, y_test=np.arange(40))
    assert "40 classes" in fails(capsys, 6, "eval", file, "--data", "more.npz")


def test_usage_errors_exit_with_two() -> None:
    for arguments in ([], ["nonsense"], ["decode"], ["encode", "--density", "x"]):
        assert run(*arguments).returncode == 2


@pytest.mark.skipif(not hasattr(signal, "SIGINT") or os.name == "nt", reason="needs POSIX signals")
def test_interrupt_leaves_nothing(here: Path) -> None:
    command = [sys.executable, "-m", "smask", "encode", "--epochs", "100000"]
    # A shell starts what it puts into the background with SIGINT ignored, which children inherit; a signal with a handler
    # is at its default in a child. Not by preexec_fn: Python warns of that where threads run, as those of torch do.
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, previous)
    try:
        assert process.stderr is not None
        assert "parameters" in process.stderr.readline()  # the search begins
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert (out, err.strip().splitlines()[-1]) == ("", "smask: interrupted; nothing was written")
    assert "Traceback" not in err
    assert os.listdir(here) == []


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
def test_interrupt_that_arrives_as_another_error() -> None:
    # Python 3.11 makes a RuntimeError of what is raised while a class tells an attribute its name, as enumerations do.
    script = """
import signal
from smask.cli import inspect, main
class Slow:
    def __set_name__(self, owner, name):
        signal.raise_signal(signal.SIGINT)
def run(arguments):
    type("Late", (), {"slow": Slow()})
inspect.run = run
signal.signal(signal.SIGINT, signal.default_int_handler)
main.sys.argv[1:] = ["inspect", "x"]
main.entry()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "smask: interrupted; nothing was written\n")


@pytest.mark.skipif(
    shutil.which("mount") is None or os.name == "nt" or os.geteuid() != 0, reason="needs to mount a small disk"
)
def test_full_disk_leaves_nothing(tmp_path: Path, file: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", disk], capture_output=True, check=False
    ).returncode:
        pytest.skip("mounting a small disk is not allowed here")
    try:
        for arguments in (
            ["decode", file, "-o", disk / "out.safetensors"],
            [
                "encode",
                "-q",
                "--arch",
                "mlp:64-600-500-10",
                "--epochs",
                "1",
                "--density",
                "0.5",
                "-o",
                disk / "out.smask",
            ],
        ):
            done = run(*arguments)
            assert done.returncode == 5
            assert "nothing was written" in done.stderr
            assert os.listdir(disk) == []
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_closed_pipe_is_no_error(file: Path) -> None:
    command = f"{sys.executable} -m smask inspect {file} --json | head -c 1"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, check=False)
    assert done.stdout == "{"
    assert done.stderr == ""
