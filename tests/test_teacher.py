"""Searches that learn from a trained network."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import smask
from smask import architectures, named_nets
from smask.cli.main import main
from smask.errors import ArchitectureError, ArgumentError, ResumeError
from smask.search.accuracy import score
from smask.search.data import Batches, Dataset
from smask.search.distillation import relative_entropy
from smask.search.objective import Objective
from test_ranks import Held

ARCH = "mlp:64-48-10"


def trained(dataset: Dataset, *, normalized: bool) -> nn.Module:
    mean, std = dataset.statistics() if normalized else (None, None)
    torch.manual_seed(0)
    net = architectures.build(named_nets.architecture(ARCH, input_shape=(1, 8, 8), mean=mean, std=std))
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(12):
        for x, y in Batches(dataset, batch_size=64, seed=0):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()
    return net.eval()


@pytest.fixture(scope="module")
def teacher(digits_data: Dataset) -> nn.Module:
    return trained(digits_data, normalized=True)


def student(dataset: Dataset, **options) -> nn.Module:
    mean, std = dataset.statistics()
    torch.manual_seed(1)
    net = architectures.build(named_nets.architecture("mlp:64-48-10", input_shape=(1, 8, 8), mean=mean, std=std))
    batches = options.pop("batches", None) or Batches(dataset, batch_size=64, seed=0)
    return smask.find_masks(net, batches, density=0.3, epochs=10, **options)


def test_a_mask_without_labels(digits_data: Dataset, teacher: nn.Module) -> None:
    unlabelled = [(x, None) for x, _ in Batches(digits_data, batch_size=64, seed=0)]
    found = student(digits_data, teacher=teacher, teacher_weight=1.0, batches=unlabelled)
    assert score(found, digits_data).accuracy > 0.85
    x = digits_data.inputs(digits_data.x_test)
    with torch.no_grad():
        assert relative_entropy(found(x), teacher(x)) < 0.3
        assert (found(x).argmax(1) == teacher(x).argmax(1)).float().mean() > 0.85


def test_the_parts_of_the_mixture(teacher: nn.Module) -> None:
    torch.manual_seed(0)
    x, y, outputs = torch.rand(6, 1, 8, 8), torch.randint(10, (6,)), torch.randn(6, 10)
    loss = nn.functional.cross_entropy
    with torch.no_grad():
        p, q = teacher(x).double().softmax(1), outputs.double().softmax(1)
    apart = (p * (p / q).log()).sum(1).mean().float()
    assert torch.allclose(apart, relative_entropy(outputs, teacher(x)))
    got = Objective.of(loss, teacher, 0.25, torch.device("cpu"))(outputs, x, y)
    assert torch.allclose(got, 0.25 * apart + 0.75 * loss(outputs, y))
    assert torch.equal(Objective(loss)(outputs, x, y), loss(outputs, y))

    def refuse(outputs: Tensor, targets: Tensor) -> Tensor:
        raise AssertionError

    assert torch.allclose(Objective.of(refuse, teacher, 1.0, torch.device("cpu"))(outputs, x, None), apart)
    other = Objective.of(loss, teacher, 1.0, torch.device("cpu"), nn.functional.mse_loss)
    assert torch.equal(other(outputs, x, None), nn.functional.mse_loss(outputs, teacher(x)))


def test_the_teacher_stays_as_it_is(digits_data: Dataset) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.BatchNorm1d(10), nn.Dropout(0.5)).train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    student(digits_data, teacher=net)
    assert net.training
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize("weight", [0.0, -1.0, 1.5, float("nan")])
def test_weights_out_of_range(digits_data: Dataset, teacher: nn.Module, weight: float) -> None:
    with pytest.raises(ArgumentError) as caught:
        student(digits_data, teacher=teacher, teacher_weight=weight)
    assert caught.value.name == "teacher_weight"


def test_outputs_of_another_shape(digits_data: Dataset) -> None:
    with pytest.raises(ArchitectureError) as caught:
        student(digits_data, teacher=nn.Sequential(nn.Flatten(), nn.Linear(64, 12)))
    assert "[64, 12]" in str(caught.value)
    assert "[64, 10]" in str(caught.value)


def test_another_teacher_is_another_search(digits_data: Dataset, teacher: nn.Module, tmp_path: Path) -> None:
    student(digits_data, teacher=teacher, checkpoints=smask.Checkpoints(tmp_path))
    with pytest.raises(ResumeError) as caught:
        student(
            digits_data, teacher=trained(digits_data, normalized=False), teacher_weight=0.9,
            checkpoints=smask.Checkpoints(tmp_path, resume=True),
        )  # fmt: skip
    assert [name for name, _, _ in caught.value.differences] == ["teacher", "teacher_weight"]


def test_a_resumed_search_with_a_teacher(digits_data: Dataset, teacher: nn.Module) -> None:
    held = Held(30)
    whole = student(digits_data, teacher=teacher, checkpoints=held).state_dict()
    again = student(digits_data, teacher=teacher, checkpoints=Held(0, held.held)).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in whole.items())


def encode(folder: Path, *options: str) -> list[str]:
    return ["encode", "--arch", "mlp:64-32-10", "--epochs", "10", "--density", "0.4", "--device", "cpu", "-o", str(folder / "o.smask"), "--force", *options]  # fmt: skip


def test_command_line(digits_data: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mean, std = digits_data.statistics()
    normalization = ["--teacher-mean", str(mean[0]), "--teacher-std", str(std[0])]
    named, plain, own = tmp_path / "named.pt", tmp_path / "plain.pt", tmp_path / "own.smask"
    whole = trained(digits_data, normalized=True)
    torch.save(whole.state_dict(), named)
    torch.save(trained(digits_data, normalized=False).state_dict(), plain)
    smask.save(smask.find_masks(whole, Batches(digits_data, batch_size=64, seed=0), density=0.5, epochs=6), own)
    arch = tmp_path / "arch.json"
    arch.write_text(json.dumps(architectures.arch_of(whole)))
    for options in (
        [str(named), "--teacher-arch", ARCH, *normalization],
        [str(named), "--teacher-arch", str(arch)],
        [str(plain), "--teacher-arch", ARCH],
        [str(own)],
    ):
        assert main(encode(tmp_path, "--json", "--teacher", *options)) == 0
        printed = capsys.readouterr()
        report = json.loads(printed.out)
        assert report["teacher"] == options[0]
        assert report["teacher_accuracy"] > 0.9
        assert "training inputs" in printed.err
        assert report["accuracy"] > 0.5
    assert main(encode(tmp_path, "--teacher", str(own), "--teacher-weight", "1", "-q")) == 0
    assert "own.smask, right on" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        (["--teacher-weight", "0.5"], 2, "--teacher beside it"),
        (["--teacher-arch", "mlp:64-10"], 2, "--teacher beside it"),
        (["--teacher", "absent.pt"], 3, "absent.pt"),
        (["--teacher", "garbage.pt"], 3, "garbage.pt"),
        (["--teacher", "other.pt"], 6, "is not in the"),
        (["--teacher", "other.pt", "--teacher-arch", "nonsense"], 4, "nonsense"),
        (["--teacher", "other.pt", "--teacher-weight", "2"], 2, "--teacher-weight"),
        (["--teacher", "other.pt", "--teacher-mean", "0.1"], 2, "both or none"),
        (["--teacher", "other.pt", "--teacher-mean", "a", "--teacher-std", "1"], 2, "--teacher-mean"),
    ],
)
def test_bad_teachers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: list[str], code: int,
    text: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("garbage.pt").write_bytes(b"\x80garbage")
    torch.save(nn.Linear(3, 3).state_dict(), "other.pt")
    assert main(encode(tmp_path, *options)) == code
    assert text in capsys.readouterr().err
    assert not (tmp_path / "o.smask").exists()
