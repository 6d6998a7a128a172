"""Batch norms in converted checkpoints: folded where that is asked for, with the statistics of rounded layers."""

import copy
import json
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

import smask
from conftest import NORMED, right
from smask import architectures
from smask.checkpoints import open_checkpoint
from smask.cli.main import main
from smask.conversion.batchnorms import BatchNorms
from smask.conversion.converter import convert_checkpoint
from smask.errors import ArchitectureError, ArgumentError
from smask.search.statistics import PARTS, folded

NORMS = ("1", "4")


def is_folded(state: dict[str, torch.Tensor], norm: str) -> bool:
    still = not bool(state[f"{norm}.running_mean"].any()) and bool((state[f"{norm}.running_var"] == 1).all())
    return still and not bool((state[f"{norm}.weight"] == 1).all())


@torch.no_grad()
def test_a_folded_file_gives_the_same_in_fewer_bytes(
    normed_net: nn.Module, inputs: torch.Tensor, tmp_path: Path
) -> None:  # fmt: skip
    plain = convert_checkpoint(normed_net, tmp_path / "plain.smask", max_error=0.01, arch=NORMED)
    report = convert_checkpoint(normed_net, tmp_path / "m.smask", max_error=0.01, arch=NORMED, fold_norms=True)
    assert (plain.folded, report.folded) == ((), NORMS)
    assert report.moved == plain.moved
    assert (report.step, report.error) == (plain.step, plain.error)
    assert report.n_bytes < plain.n_bytes
    state = smask.decode(tmp_path / "m.smask")
    assert list(state) == list(normed_net.state_dict())
    assert all(is_folded(state, norm) for norm in NORMS)
    assert smask.verify(tmp_path / "m.smask").same
    want, got = normed_net(inputs), smask.load(tmp_path / "m.smask")(inputs)
    assert float((got - want).norm() / want.norm()) < 0.02
    assert float((got - smask.load(tmp_path / "plain.smask")(inputs)).norm() / want.norm()) < 0.01


@torch.no_grad()
def test_the_epsilon_of_each_norm(normed_net: nn.Module, inputs: torch.Tensor, tmp_path: Path) -> None:
    net = copy.deepcopy(normed_net)
    for norm, eps in zip(NORMS, (0.3, 1e-3), strict=True):
        net.get_submodule(norm).eps = eps  # type: ignore[assignment]
    want = net(inputs)
    assert float((want - normed_net(inputs)).norm() / want.norm()) > 0.1
    convert_checkpoint(net, tmp_path / "m.smask", max_error=0.01, fold_norms=True)
    net.load_state_dict(smask.decode(tmp_path / "m.smask"))
    assert float((net(inputs) - want).norm() / want.norm()) < 0.02


def test_moved_statistics_are_folded(normed_net: nn.Module, tmp_path: Path) -> None:
    for name, folds in (("plain", False), ("m", True)):
        convert_checkpoint(normed_net, tmp_path / f"{name}.smask", bits=2, arch=NORMED, fold_norms=folds)
    plain, got = (smask.load(tmp_path / f"{name}.smask", trainable=False) for name in ("plain", "m"))
    assert right(got) > right(plain) - 0.05
    assert right(got) > 0.75


@pytest.mark.parametrize("names", ["of the net", "in the order of the alphabet"])
@torch.no_grad()
def test_norms_before_and_after_their_layers(
    normed_net: nn.Module, inputs: torch.Tensor, tmp_path: Path, names: str
) -> None:
    """A norm that is read before its layer, whose rounded weights it needs."""
    layers = [("conv1", "0"), ("bn1", "1"), ("relu1", "2"), ("conv2", "3"), ("bn2", "4"), ("relu2", "5"),
              ("pour", "6"), ("rest", "7")]  # fmt: skip
    named = nn.Sequential(OrderedDict((name, normed_net.get_submodule(old)) for name, old in layers))
    state = named.state_dict()
    if names != "of the net":
        state = {name: state[name] for name in sorted(state)}
        assert next(iter(state)).startswith("bn1")
    # Variances that go with the weights of their layer, so that these are moved with it.
    state["bn2.running_var"] = state["conv2.weight"].flatten(1).square().sum(1)
    nets = {}
    for folds in (False, True):
        report = convert_checkpoint(
            state, tmp_path / "m.smask", max_error=0.2, model=named if folds else None, fold_norms=folds, overwrite=True
        )
        assert report.moved == ("bn2",)
        assert sorted(report.folded) == ["bn1", "bn2"] * folds
        decoded = smask.decode(tmp_path / "m.smask")
        assert list(decoded) == list(state)
        nets[folds] = copy.deepcopy(named)
        nets[folds].load_state_dict(decoded)
    assert not torch.equal(nets[False].get_buffer("bn2.running_var"), state["bn2.running_var"])
    want, got = nets[False](inputs), nets[True](inputs)
    assert float((got - want).norm() / want.norm()) < 0.02


def test_sources(normed_net: nn.Module, tmp_path: Path) -> None:
    """A module, a state dict with a prefix and an architecture, one with a model beside it: the same bytes."""
    state = normed_net.state_dict()
    digests = {
        convert_checkpoint(source, tmp_path / "m.smask", max_error=0.1, fold_norms=True, overwrite=True, **more).digest
        for source, more in (
            (normed_net, {}), (state, {"arch": NORMED}), (state, {"model": normed_net}),
        )
    }  # fmt: skip
    assert len(digests) == 1
    wrapped = {f"module.{name}": tensor for name, tensor in state.items()}
    report = convert_checkpoint(wrapped, tmp_path / "w.smask", bits=4, fold_norms=True, arch=NORMED)
    assert report.folded == ("module.1", "module.4")
    assert all(is_folded(smask.decode(tmp_path / "w.smask"), norm) for norm in report.folded)


def test_norms_that_stay_as_they_are(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(32, 32)
            self.one, self.two, self.own, self.bare = (nn.BatchNorm1d(32, affine=index < 3) for index in range(4))
            self.two.weight = self.one.weight
            self.broken = nn.BatchNorm1d(32)

    net = Odd()
    torch.nn.init.uniform_(net.own.weight)
    net.broken.running_var.fill_(-1)  # type: ignore[union-attr]
    report = convert_checkpoint(net, tmp_path / "m.smask", bits=6, fold_norms=True)
    assert report.folded == ("own",)
    state = smask.decode(tmp_path / "m.smask")
    assert state["broken.running_var"].tolist() == [-1.0] * 32
    assert is_folded(state, "own")


def test_given_values_are_folded_too(normed_net: nn.Module) -> None:
    checkpoint, given = open_checkpoint(normed_net), {"1.running_mean": torch.full((16,), 3.0)}
    norms = BatchNorms(checkpoint, {}, {"1": 1e-5}, given, lambda *_: False)
    state = normed_net.state_dict()
    got = {name: norms.value(name, lambda layer: pytest.fail(layer)) for name in state}
    assert {name for name, value in got.items() if value is not None} == {f"1.{part}" for part in PARTS}
    model = architectures.build(NORMED)
    model.load_state_dict(state | given)
    for name, value in folded(model).items():
        if name.startswith("1."):
            own = got[name]
            assert own is not None
            assert torch.equal(own, value)
    assert (norms.moved, norms.folded) == ([], ["1"])


@pytest.mark.parametrize("refine", [0, 3])
def test_with_inputs(normed_net: nn.Module, inputs: torch.Tensor, tmp_path: Path, refine: int) -> None:
    for fold_norms in (None, False):  # by default what is made to run alone is only run
        report = convert_checkpoint(
            normed_net, tmp_path / "m.smask", target_size=1700, arch=NORMED, calibrate=inputs, refine=refine,
            fold_norms=fold_norms, overwrite=True,
        )  # fmt: skip
        assert report.n_bytes <= 1700
        assert (report.folded, report.moved) == (() if fold_norms is False else NORMS, ())
        decoded = smask.decode(tmp_path / "m.smask")
        assert all(is_folded(decoded, norm) == (fold_norms is None) for norm in NORMS)
        assert right(smask.load(tmp_path / "m.smask")) > 0.85


@pytest.mark.parametrize("calibrated", [False, True])
@torch.no_grad()
def test_over_a_base(normed_net: nn.Module, inputs: torch.Tensor, tmp_path: Path, calibrated: bool) -> None:
    """Norms that the base gives stay as they are, which costs nothing; others are folded and no differences from it."""
    base, chance = normed_net.state_dict(), torch.Generator().manual_seed(3)
    tuned = copy.deepcopy(normed_net)
    for name, tensor in tuned.state_dict().items():
        if name.startswith(("3.", "4.")) and tensor.is_floating_point():
            tensor.mul_(1 + 0.2 * torch.rand(tensor.shape, generator=chance))
    more = {"calibrate": inputs} if calibrated else {}
    sizes = {}
    for folds in (False, True):
        out = tmp_path / f"{folds}.smask"
        report = convert_checkpoint(tuned, out, bits=2, base=base, arch=NORMED, fold_norms=folds, **more)  # type: ignore[arg-type]
        assert report.folded == (("4",) if folds else ())
        stored = {tensor.name: tensor.stored_as for tensor in report.tensors}
        assert stored["1.running_mean"] == stored["1.weight"] == "base"
        assert (stored["4.running_mean"] == "shared") == folds
        assert smask.verify(out, base=base).same
        sizes[folds] = sum(tensor.n_bytes for tensor in report.tensors if tensor.name.startswith("4."))
    assert sizes[True] < sizes[False]
    want, got = tuned(inputs), smask.load(tmp_path / "True.smask", base=base)(inputs)
    assert float((got - want).norm() / want.norm()) < 0.2


def test_a_folded_checkpoint_is_refined(normed_net: nn.Module, inputs: torch.Tensor, tmp_path: Path) -> None:
    """In training norms go by each batch: weights that stand for statistics would be wrong by a factor there."""
    state = normed_net.state_dict() | folded(normed_net)
    for fold_norms in (False, True):
        report = convert_checkpoint(
            state, tmp_path / "m.smask", target_size=2000, arch=NORMED, calibrate=inputs, refine=3, overwrite=True,
            fold_norms=fold_norms,
        )  # fmt: skip
        assert right(smask.load(tmp_path / "m.smask")) > 0.85
        assert all(is_folded(smask.decode(tmp_path / "m.smask"), norm) == fold_norms for norm in NORMS)
        assert report.folded == (NORMS if fold_norms else ())


def test_refusals(normed_net: nn.Module, tmp_path: Path) -> None:
    state, out = normed_net.state_dict(), tmp_path / "m.smask"
    for source, wrong in (
        (normed_net, {}), (normed_net, {"lossless": True}), (normed_net, {"base": state}), (state, {"bits": 3}),
    ):  # fmt: skip
        with pytest.raises(ArgumentError) as caught:
            convert_checkpoint(source, out, fold_norms=True, **wrong)  # type: ignore[arg-type]
        assert (caught.value.name, caught.value.got) == ("fold_norms", True)
    with pytest.raises(ArchitectureError):
        convert_checkpoint(state, out, bits=3, fold_norms=True, model=nn.Linear(64, 10))
    assert not out.exists()


def test_the_command(
    normed_net: nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(normed_net.state_dict(), "m.pt")
    Path("net.json").write_text(json.dumps(NORMED))
    command = ["convert", "m.pt", "-o", "m.smask", "--bits", "4", "--fold-norms"]
    assert main(command) == 2
    assert "--fold-norms" in capsys.readouterr().err
    assert main([*command, "--arch", "net.json", "--json", "-q"]) == 0
    assert json.loads(capsys.readouterr().out)["folded"] == [*NORMS]
    assert main([*command, "--arch", "net.json", "--force", "--eval", "digits"]) == 0
    assert "2 batch norms folded" in " ".join(capsys.readouterr().out.split())
    # Trained on: statistics are measured first, and the net goes on from where it was.
    assert main(["train", "m.smask", "--data", "digits", "--epochs", "1", "-o", "t.smask", "--json", "-q"]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] > 0.9
