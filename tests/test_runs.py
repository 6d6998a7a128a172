"""Searches that are interrupted, and what they leave behind."""

import functools
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import smask
from conftest import convolutional
from smask import Checkpoints
from smask.cli.main import main
from smask.errors import ArgumentError, CheckpointError, DivergedError, ResumeError
from smask.recipe import recipe_of
from smask.runs import folder as folder_module
from smask.runs.log import Log
from smask.search.data import Batches, Dataset
from smask.search.progress import Progress
from smask.search.snapshots import Snapshot

N_STEPS = 4 * 6


class StoppedError(Exception):
    pass


class Stopping(Checkpoints):
    """Keeps a checkpoint after every step and ends the process, as it were, after one of them."""

    def __init__(self, folder: Path, stop: int, *, resume: bool = False) -> None:
        super().__init__(folder, every=0, resume=resume)
        self.stop = stop

    def keep(self, snapshot: Snapshot) -> None:
        super().keep(snapshot)
        if snapshot.step == self.stop:
            raise StoppedError


def net(dataset: Dataset, kind: str = "own") -> nn.Module:
    if kind == "sizes":
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)
        )
    return convolutional(dataset, features=4, dropout=0.2)


def part_of(dataset: Dataset, n: int = 1200) -> Dataset:
    return replace(dataset, x_train=dataset.x_train[:n], y_train=dataset.y_train[:n])


def batches_of(kind: str, dataset: Dataset) -> Batches | DataLoader[tuple[Tensor, ...]]:
    if kind in ("own", "sizes"):
        sizes = ((6, 0.5),) if kind == "sizes" else ()
        return Batches(part_of(dataset), batch_size=200, seed=3, shift=1, sizes=sizes)
    data = TensorDataset(dataset.inputs(dataset.x_train[:1200]), dataset.y_train[:1200])
    generator = torch.Generator().manual_seed(4) if kind == "loader with generator" else None
    return DataLoader(data, batch_size=200, shuffle=True, generator=generator)


def search(kind: str, dataset: Dataset, checkpoints: Checkpoints | None, **options) -> bytes:
    model = smask.find_masks(
        net(dataset, kind), batches_of(kind, dataset), density=0.3, epochs=4, seed=1, checkpoints=checkpoints, **options
    )
    return smask.encode(model.state_dict(), recipe_of(model))


@pytest.mark.parametrize("kind", ["own", "sizes", "loader", "loader with generator"])
def test_a_resumed_search_ends_in_the_same_bytes(digits_data: Dataset, tmp_path: Path, kind: str) -> None:
    whole = search(kind, digits_data, None)
    # In the first epoch, at its end, between refreshes, after masks were fixed (step 22), after the last step.
    for stops in ((1, 6, 7), (13,), (22, 23), (N_STEPS,)):
        folder = tmp_path / str(stops[0])
        for stop in stops:
            with pytest.raises(StoppedError):
                search(kind, digits_data, Stopping(folder, stop, resume=True))
            torch.manual_seed(stop)  # another process has other states
        assert search(kind, digits_data, Checkpoints(folder, resume=True)) == whole, stops
        assert len(list(folder.iterdir())) <= 2


@pytest.mark.parametrize("method", ["single", "signs"])
def test_a_search_resumed_on_its_ramps_ends_in_the_same_bytes(
    digits_data: Dataset, tmp_path: Path, method: str
) -> None:
    whole = search("own", digits_data, None, method=method)
    with pytest.raises(StoppedError):
        search("own", digits_data, Stopping(tmp_path, 7), method=method)
    assert search("own", digits_data, Checkpoints(tmp_path, resume=True), method=method) == whole


def test_checkpoints_change_nothing(digits_data: Dataset, tmp_path: Path) -> None:
    assert search("own", digits_data, Checkpoints(tmp_path, every=0)) == search("own", digits_data, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"step-{step:08d}.safetensors" for step in (N_STEPS - 1, N_STEPS)
    ]


def test_another_search_is_refused_with_what_differs(digits_data: Dataset, tmp_path: Path) -> None:
    search("own", digits_data, Checkpoints(tmp_path))
    for options, names in (({"lr": 2e-3}, ["lr"]), ({"scale": "tensor", "hold": 0.5}, ["scale", "hold"])):
        with pytest.raises(ResumeError) as caught:
            search("own", digits_data, Checkpoints(tmp_path, resume=True), **options)
        assert [name for name, _, _ in caught.value.differences] == names
    assert "'hold'" not in str(caught.value)
    assert "scale is 'channel' there and 'tensor' here" in str(caught.value)
    with pytest.raises(ResumeError) as caught:
        smask.find_masks(
            net(part_of(digits_data, 800)), batches_of("own", part_of(digits_data, 800)), density=0.3, epochs=4, seed=1,
            checkpoints=Checkpoints(tmp_path, resume=True),
        )  # fmt: skip
    assert {name for name, _, _ in caught.value.differences} == {"batches", "n_batches", "arch"}
    smooth = functools.partial(F.cross_entropy, label_smoothing=0.1)
    with pytest.raises(ResumeError) as caught:
        search("own", digits_data, Checkpoints(tmp_path, resume=True), loss=smooth)
    assert caught.value.differences == (("loss", "cross_entropy", "cross_entropy()[('label_smoothing', 0.1)]"),)
    with pytest.raises(ArgumentError) as refused:
        Checkpoints(tmp_path)
    assert "--resume" in str(refused.value)


def test_damage_costs_one_checkpoint(digits_data: Dataset, tmp_path: Path) -> None:
    whole = search("own", digits_data, Checkpoints(tmp_path, every=0))
    last, before = sorted(tmp_path.iterdir(), reverse=True)
    content = bytearray(last.read_bytes())
    content[-100] ^= 1
    last.write_bytes(content)
    problems: list[str] = []
    kept = Checkpoints(tmp_path, resume=True, problem=problems.append)
    assert search("own", digits_data, kept) == whole
    assert "sha256" in problems[0]
    for path in (last, before):
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError) as caught:
        search("own", digits_data, Checkpoints(tmp_path, resume=True, problem=problems.append))
    assert caught.value.source == str(last)


def test_a_made_up_checkpoint_is_refused(digits_data: Dataset, tmp_path: Path) -> None:
    """Whole, with a sha256 that is right, and settings that are: but not the state of a search."""
    search("own", digits_data, Checkpoints(tmp_path))
    (path,) = tmp_path.iterdir()
    with safe_open(path, framework="pt") as file:
        good_metadata, good = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    numbers = json.loads(good_metadata["numbers"])
    changes = [
        ({"numbers": "{}"}, {}), ({"numbers": "[1]"}, {}), ({"numbers": "7" * 100}, {}), ({}, {"random.now.torch": torch.zeros(3)}),
        ({}, {"layer.1.weight.latent": torch.zeros(1, 2)}), ({}, {"adam.0.exp_avg": None}),
        ({"numbers": json.dumps(numbers | {"order": {"epoch": "x", "taken": None}})}, {}),
    ]  # fmt: skip
    for texts, tensors in changes:
        metadata = good_metadata | texts
        state = {name: tensor for name, tensor in (good | tensors).items() if tensor is not None}
        metadata["digest"] = folder_module._digest(state, metadata)
        save_file(state, path, metadata)
        with pytest.raises(CheckpointError) as caught:
            search("own", digits_data, Checkpoints(tmp_path, resume=True))
        assert caught.value.source == str(path)


def test_other_files_of_the_folder_are_left_alone(digits_data: Dataset, tmp_path: Path) -> None:
    for name in ("notes.txt", "step-1.safetensors", "model.safetensors"):
        (tmp_path / name).write_text("mine")
    search("own", digits_data, Checkpoints(tmp_path, every=0))
    assert len(list(tmp_path.iterdir())) == 5
    assert (tmp_path / "step-1.safetensors").read_text() == "mine"


def test_divergence_names_the_step_and_the_last_good_checkpoint(tmp_path: Path) -> None:
    good = (torch.rand(4, 3), torch.zeros(4, dtype=torch.long))
    bad = (torch.full((4, 3), float("nan")), good[1])
    with pytest.raises(DivergedError) as caught:
        smask.find_masks(
            nn.Linear(3, 2), [good] * 16 + [bad] + [good] * 60, epochs=1, checkpoints=Checkpoints(tmp_path, every=0)
        )
    assert caught.value.step == 17
    assert caught.value.checkpoint == str(tmp_path / "step-00000016.safetensors")
    # Looked at only now and then, the step is the same.
    with pytest.raises(DivergedError) as caught:
        smask.find_masks(nn.Linear(3, 2), [good] * 16 + [bad] + [good] * 60, epochs=1)
    assert (caught.value.step, caught.value.checkpoint) == (17, None)


def test_early_stopping(digits_data: Dataset, tmp_path: Path) -> None:
    def steps(**options) -> list[Progress]:
        seen: list[Progress] = []
        search("own", digits_data, Checkpoints(tmp_path, resume=True), hold=0.5, progress=seen.append, **options)
        return seen

    # Descent ends at step 10, the epoch at 12: the second value there is no gain.
    seen = steps(patience=1, validate=lambda model: 0.5)
    assert (seen[-1].step, seen[-1].n_steps) == (20, 20)
    assert seen[-1].validation == 0.5
    # Gains go on: nothing is cut short.
    for path in tmp_path.iterdir():
        path.unlink()
    values = iter(range(100))
    assert steps(patience=1, validate=lambda model: float(next(values)))[-1].step == N_STEPS


def test_log(tmp_path: Path) -> None:
    problems: list[str] = []
    log = Log(tmp_path / "log.jsonl", problem=problems.append)
    log.event("begin", arguments={"lr": 1e-3})
    for step in (40, 80):
        log.progress(Progress(step, 80, 1, 1, 0.5, 0.25, 1000, 0.75))
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["begin", "progress", "progress"]
    assert {"loss", "accuracy", "density", "n_bytes", "seconds_left"} <= set(lines[-1])
    assert lines[-1]["seconds_left"] == 0
    assert lines[-1]["validation"] is None
    log.progress(Progress(80, 80, 1, 1, 0.5, 0.25, 1000, validation=-2.5))
    last = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    assert last["validation_bits_per_byte"] == 2.5
    assert "validation" not in last
    with pytest.raises(ArgumentError) as caught:
        Log(tmp_path / "no" / "folder.jsonl")
    assert caught.value.name == "log"
    if Path("/dev/full").exists():
        full = Log("/dev/full", problem=problems.append)
        full.event("begin")
        full.event("end")
        assert len(problems) == 1
        assert "ENOSPC" in problems[0]


def command(*more: object) -> list[str]:
    fixed = ["encode", "--arch", "mlp:64-32-10", "--epochs", "40", "--device", "cpu", "-q", "--force"]
    return [*fixed, *map(str, more)]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
@pytest.mark.parametrize("n_kills", [1, pytest.param(6, marks=pytest.mark.long)])
def test_killed_again_and_again(tmp_path: Path, capsys: pytest.CaptureFixture[str], n_kills: int) -> None:
    assert main(command("-o", tmp_path / "whole.smask")) == 0
    folder, output = tmp_path / "run", tmp_path / "killed.smask"
    resumed = command("-o", output, "--checkpoint", folder, "--resume", "--checkpoint-every", 0.01)
    step = -1
    for _ in range(n_kills):
        process = subprocess.Popen([sys.executable, "-m", "smask", *resumed], stderr=subprocess.PIPE)
        try:
            while process.poll() is None:
                found = [int(path.name[5:13]) for path in folder.glob("step-*.safetensors")]
                if found and max(found) > step + 20:  # some way beyond the last kill, in the middle of whatever it does
                    step = max(found)
                    break
                time.sleep(0.002)
        finally:
            process.send_signal(signal.SIGKILL)
            process.communicate()
    assert step < 440  # killed before the end
    assert main(resumed) == 0
    assert output.read_bytes() == (tmp_path / "whole.smask").read_bytes()
    capsys.readouterr()
    assert main([*resumed, "--lr", "0.01"]) == 2
    assert "lr is 0.001 there and 0.01 here" in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="needs to mount a small disk")
def test_a_full_disk_does_not_end_the_search(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk is not allowed here")
    try:
        options = ("-o", tmp_path / "out.smask", "--checkpoint", disk, "--log", tmp_path / "log.jsonl")
        assert main(command(*options)) == 0
        err = capsys.readouterr().err
        assert "no checkpoint" in err
        assert "the search goes on" in err
        assert os.listdir(disk) == []
    finally:
        subprocess.run(["umount", disk], check=True)
    events = [json.loads(line)["event"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert (events[0], events[-1]) == ("begin", "result")
    assert "problem" in events
    assert smask.verify(tmp_path / "out.smask").same
