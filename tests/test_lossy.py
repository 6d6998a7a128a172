"""Lossy conversion without data: sizes and errors that were asked for, statistics that follow, nothing lost silently."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from threadpoolctl import threadpool_limits

import smask
from smask import architectures, manifest, named_nets
from smask.cli.main import main
from smask.conversion.converter import convert_checkpoint
from smask.conversion.goals import size_of
from smask.errors import ArchitectureError, ArgumentError, CheckpointError, TargetError
from test_stored_tensors import exactly


def net(name: str) -> dict[str, torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return architectures.build(named_nets.architecture(name)).state_dict()


def relative(state: dict[str, torch.Tensor], again: dict[str, torch.Tensor], names: list[str]) -> float:
    error = sum(float((state[name].double() - again[name].double()).square().sum()) for name in names)
    return (error / sum(float(state[name].double().square().sum()) for name in names)) ** 0.5


@pytest.mark.parametrize(("text", "n_bytes"), [("60kB", 60_000), ("1.5MB", 1_500_000), (700, 700), ("2 k", 2000)])
def test_sizes(text: str | int, n_bytes: int) -> None:
    assert size_of(text) == n_bytes


@pytest.mark.parametrize("text", ["", "kB", "-3", "0", "1e5", "5 kiB", "nan", "1" + 400 * "0" + "GB"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        size_of(text)
    assert (caught.value.name, caught.value.got) == ("target_size", text)


@pytest.mark.parametrize("target", [60_000, 150_000])
def test_target_size(tmp_path: Path, target: int) -> None:
    state = net("resnet20")
    report = convert_checkpoint(state, tmp_path / "m.smask", target_size=target)
    assert 0.99 * target <= report.n_bytes <= target
    assert report.n_bytes == (tmp_path / "m.smask").stat().st_size
    assert smask.verify(tmp_path / "m.smask").same
    again = smask.decode(tmp_path / "m.smask")
    assert list(again) == list(state)
    coded = [tensor.name for tensor in report.tensors if "planes" in tensor.stored_as]
    assert len(coded) == 20
    assert relative(state, again, coded) == pytest.approx(report.error, rel=1e-4)
    for tensor in report.tensors:
        if tensor.name in coded:
            assert relative(state, again, [tensor.name]) == pytest.approx(tensor.error, rel=1e-4)


def test_bits_and_error(tmp_path: Path) -> None:
    state = net("lenet-300-100")
    report = convert_checkpoint(state, tmp_path / "bits.smask", bits=2.5)
    assert 2.47 < report.bits_per_weight <= 2.5
    report = convert_checkpoint(state, tmp_path / "error.smask", max_error=0.03)
    assert 0.029 < report.error <= 0.03


def test_range_coding_is_a_choice(tmp_path: Path) -> None:
    files, codings = [], []
    for number, choice in enumerate((None, True, False)):
        path = tmp_path / f"{number}.smask"
        convert_checkpoint(net("resnet20"), path, max_error=0.3, range_coding=choice)
        files.append(path.read_bytes())
        codings.append({blob.coding for blob in manifest.open_file(files[-1], limits=smask.Limits()).manifest.blobs})
    assert files[0] == files[1]
    assert "range" in codings[0]
    assert "range" not in codings[2]
    assert smask.decode(files[0])["conv1.weight"].equal(smask.decode(files[2])["conv1.weight"])


def along(weight: torch.Tensor, again: torch.Tensor) -> float:
    """What is left of a tensor along itself."""
    return float((weight.double() * again.double()).sum() / weight.double().square().sum())


def test_layers_without_a_norm_keep_their_length(tmp_path: Path) -> None:
    state = net("resnet20")
    convert_checkpoint(state, tmp_path / "m.smask", bits=1.3)
    again = smask.decode(tmp_path / "m.smask")
    # A norm makes any length good, so that the least squared error is free there.
    assert all(
        along(tensor, again[name]) < 0.9
        for name, tensor in state.items()
        if name.startswith("layer") and tensor.dim() == 4
    )
    state = net("lenet-300-100")
    convert_checkpoint(state, tmp_path / "bits.smask", bits=1.3)
    again = smask.decode(tmp_path / "bits.smask")
    assert all(along(state[name], again[name]) > 0.93 for name in state if state[name].dim() == 2)


def test_an_error_asked_for_is_the_least_of_its_size(tmp_path: Path) -> None:
    state = net("lenet-300-100")
    error = convert_checkpoint(state, tmp_path / "error.smask", max_error=0.4)
    size = convert_checkpoint(state, tmp_path / "size.smask", target_size=error.n_bytes)
    assert error.error < 0.97 * size.error


def test_what_is_no_weight_is_kept(tmp_path: Path) -> None:
    random = torch.Generator().manual_seed(1)
    state = {
        "none": torch.zeros(0, 3), "scalar": torch.tensor(3.0), "ids": torch.arange(3000), "on": torch.ones(60, 60) > 0,
        "zeros": torch.zeros(40, 40), "half": torch.randn(40, 50, generator=random).half(),
        "wide": torch.randn(40, 50, generator=random).double(), "norm": 1 + torch.randn(50, generator=random) / 10,
    }  # fmt: skip
    state["tied"] = state["wide"]
    convert_checkpoint(state, tmp_path / "m.smask", max_error=0.1)
    again = smask.decode(tmp_path / "m.smask")
    assert all(exactly(again[name], state[name]) for name in ("none", "scalar", "ids", "on", "zeros"))
    assert {name: tensor.dtype for name, tensor in again.items()} == {n: t.dtype for n, t in state.items()}
    assert exactly(again["tied"], again["wide"])
    assert relative(state, again, ["half", "wide"]) < 0.12
    assert relative(state, again, ["norm"]) < 0.01


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_no_numbers_are_refused_by_name(tmp_path: Path, bad: float) -> None:
    state = {"a": torch.randn(40, 40), "b": torch.tensor([1.0, bad])}
    with pytest.raises(CheckpointError) as caught:
        convert_checkpoint(state, tmp_path / "m.smask", bits=4)
    assert caught.value.tensor == "b"
    assert list(tmp_path.iterdir()) == []


def test_goals_that_cannot_be(tmp_path: Path) -> None:
    state, out = net("lenet-300-100"), tmp_path / "m.smask"
    with pytest.raises(TargetError) as small:
        convert_checkpoint(state, out, target_size=500)
    assert small.value.target == 500 < small.value.least < 2000
    convert_checkpoint(state, out, target_size=small.value.least)
    assert out.stat().st_size <= small.value.least
    out.unlink()
    for goals, name in (
        ({"bits": 3, "max_error": 0.1}, "bits and max_error"), ({"bits": 0}, "bits"), ({"max_error": 1.5}, "max_error"),
        ({"bits": 3, "lossless": True}, "lossless"), ({"max_error": 1e-9}, "max_error"),
    ):  # fmt: skip
        with pytest.raises(ArgumentError) as caught:
            convert_checkpoint(state, out, **goals)
        assert caught.value.name == name
    assert list(tmp_path.iterdir()) == []


@pytest.mark.clause("W-01")
def test_same_checkpoint_same_bytes_at_a_goal(tmp_path: Path) -> None:
    for number in range(2):
        convert_checkpoint(net("lenet-300-100"), tmp_path / f"{number}.smask", bits=2)
    assert (tmp_path / "0.smask").read_bytes() == (tmp_path / "1.smask").read_bytes()


@pytest.mark.clause("W-01")
def test_threads_do_not_change_bytes(tmp_path: Path) -> None:
    state = {**net("resnet20"), "head": torch.randn(600, 1000, generator=torch.Generator().manual_seed(3)) / 30}
    n_threads, written = torch.get_num_threads(), []
    for goal in ({"bits": 2}, {"max_error": 0.1}):
        for number in (1, 3):
            try:
                torch.set_num_threads(number)
                with threadpool_limits(number):
                    convert_checkpoint(state, tmp_path / "m.smask", overwrite=True, **goal)
            finally:
                torch.set_num_threads(n_threads)
            written.append((tmp_path / "m.smask").read_bytes())
    assert written[0] == written[1] != written[2] == written[3]


@pytest.mark.parametrize("form", ["state dict", "alphabetic"])
def test_batch_norms_follow_their_layers(tmp_path: Path, form: str) -> None:
    """On inputs that share a mean, moved statistics are nearer to the true ones than those left behind."""
    random = torch.Generator().manual_seed(2)
    inputs = torch.randn(4000, 24, 9, generator=random) * 0.5 + torch.rand(24, 1, generator=random) + 0.5
    weight = torch.randn(48, 24, 3, 3, generator=random) * torch.rand(48, 1, 1, 1, generator=random)

    def statistics(weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        outputs = torch.einsum("nik,cik->nc", inputs, weights.flatten(2))
        return outputs.mean(0), outputs.var(0)

    mean, variance = statistics(weight)
    state = {"conv1.weight": weight, "bn1.weight": torch.ones(48), "bn1.bias": torch.zeros(48)}
    state |= {"bn1.running_mean": mean, "bn1.running_var": variance}
    source: object = state
    if form == "alphabetic":
        save_file(state, source := tmp_path / "m.safetensors")
    report = convert_checkpoint(source, tmp_path / "m.smask", bits=2.5)
    assert report.moved == ("bn1",)
    again = smask.decode(tmp_path / "m.smask")
    true_mean, _ = statistics(again["conv1.weight"])
    deviation = variance.sqrt()
    left = ((mean - true_mean) / deviation).square().mean()
    followed = ((again["bn1.running_mean"] - true_mean) / deviation).square().mean()
    assert followed < 0.5 * left


def test_an_architecture_loads(tmp_path: Path) -> None:
    state = {f"module.{name}": t for name, t in net("resnet20").items() if not name.endswith("num_batches_tracked")}
    arch = named_nets.architecture("resnet20", mean=[0.5] * 3, std=[0.25] * 3)
    convert_checkpoint(state, tmp_path / "m.smask", target_size="80kB", arch=arch)
    model = smask.load(tmp_path / "m.smask")
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    with pytest.raises(ArchitectureError) as caught:
        convert_checkpoint(state, tmp_path / "n.smask", bits=3, arch=named_nets.architecture("resnet32"))
    assert any("layer1.3" in difference for difference in caught.value.differences)


def test_command(found: torch.nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arch = tmp_path / "net.json"
    arch.write_text(json.dumps(architectures.arch_of(found) or dict(found.smask_recipe.arch)))
    torch.save({"model": found.state_dict(), "best_acc": np.float64(0.9)}, tmp_path / "m.pt")
    command = ["convert", str(tmp_path / "m.pt"), "-o", str(tmp_path / "m.smask"), "--arch", str(arch)]
    assert main([*command, "--max-error", "0.05", "--eval", "digits", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["accuracy_after"] == pytest.approx(report["accuracy_before"], abs=0.03)
    assert report["n_bytes"] < report["half_zstd_bytes"] < report["raw_bytes"]
    assert main([*command, "--bits", "4", "--force"]) == 0
    assert "planes" in capsys.readouterr().out
    assert main([*command[:4], "--bits", "4", "--eval", "digits", "--force"]) == 2
    assert main([*command[:4], "--target-size", "40", "--force"]) == 2
    assert "small parameters alone" in capsys.readouterr().err


@pytest.mark.long
def test_a_gigabyte_takes_less_than_two_of_memory() -> None:
    pytest.importorskip("resource")
    tool = Path(__file__).parents[1] / "tools/convert_cost.py"
    done = subprocess.run([sys.executable, tool, "--bits", "3"], capture_output=True, text=True, check=True)
    report = json.loads(done.stdout)
    assert report["convert"]["raw_bytes"] > 0.98e9
    assert report["convert"]["peak_bytes"] < 1e9
    assert report["decode"]["peak_bytes"] < 2e9
    assert report["convert"]["n_bytes"] <= 3 / 8 * report["convert"]["n_weights"]


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "target", "accuracy"),
    [
        ("resnet20-12fca82f.th", "72kB", 0.883), ("resnet20-12fca82f.th", "95kB", 0.906),
        ("resnet20-12fca82f.th", "122kB", 0.913), ("resnet20-12fca82f.th", "155kB", 0.916),
        ("resnet56-4bfd9763.th", "195kB", 0.905), ("resnet56-4bfd9763.th", "265kB", 0.929),
        ("resnet56-4bfd9763.th", "400kB", 0.933),
    ],
)  # fmt: skip
def test_public_networks(real_data: Path, tmp_path: Path, capsys, name: str, target: str, accuracy: float) -> None:
    from PIL import Image

    grid = np.asarray(Image.open(real_data / "cifar10/test.webp").convert("RGB"))
    x = grid.reshape(100, 32, 100, 32, 3).transpose(0, 2, 1, 3, 4).reshape(10_000, 32, 32, 3).transpose(0, 3, 1, 2)
    y = np.load(real_data / "cifar10/labels.npz")["y_test"]
    np.savez(tmp_path / "c.npz", x_train=x[:100], y_train=y[:100], x_test=x, y_test=y)
    arguments = ["--arch", name.split("-")[0], "--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225"]
    arguments += ["--eval", str(tmp_path / "c.npz"), "--target-size", target, "--json"]
    assert main(["convert", str(real_data / "checkpoints" / name), "-o", str(tmp_path / "m.smask"), *arguments]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["n_bytes"] <= size_of(target)
    assert report["accuracy_after"] >= accuracy
