"""Searches whose base is a trained checkpoint: masks of its weights, what else is taken of it, what nothing costs."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import smask
from conftest import convolutional
from smask import architectures, codec, named_nets
from smask.cli.main import main
from smask.errors import ArchitectureError, ArgumentError, BaseError, ResumeError, UnsupportedError
from smask.integrity import raw_bytes
from smask.manifest import open_file
from smask.recipe import recipe_of
from smask.search.accuracy import score
from smask.search.data import Batches, Dataset
from smask.search.initialisation import masked_weights
from smask.search.methods import METHODS
from smask.search.pretrained import ordered_by_magnitude
from smask.search.weights import Maskable, maskable
from test_ranks import Held


def half(dataset: Dataset, first: int) -> Dataset:
    """Five of the ten classes, as classes of their own."""
    train, test = (dataset.y_train // 5 == first // 5), (dataset.y_test // 5 == first // 5)
    return replace(
        dataset, x_train=dataset.x_train[train], y_train=dataset.y_train[train] - first,
        x_test=dataset.x_test[test], y_test=dataset.y_test[test] - first,
    )  # fmt: skip


def net_of(dataset: Dataset, n_classes: int = 5, arch: str = "mlp:64-96-48-{}") -> nn.Module:
    mean, std = dataset.statistics()
    described = named_nets.architecture(arch.format(n_classes), input_shape=(1, 8, 8), mean=mean, std=std)
    torch.manual_seed(0)
    return architectures.build(described)


@pytest.fixture(scope="module")
def lower(digits_data: Dataset) -> Dataset:
    return half(digits_data, 0)


@pytest.fixture(scope="module")
def upper(digits_data: Dataset) -> Dataset:
    return half(digits_data, 5)


@pytest.fixture(scope="module")
def trained(digits_data: Dataset, lower: Dataset) -> dict[str, Tensor]:
    """A net that tells the digits 0 to 4 apart."""
    return trained_on(lower, net_of(digits_data), accuracy=0.98)


def trained_on(dataset: Dataset, net: nn.Module, *, accuracy: float) -> dict[str, Tensor]:
    """What a net is after ten passes, right on more than that part of the test inputs."""
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(10):
        for x, y in Batches(dataset, batch_size=64, seed=0):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()
    assert score(net, dataset).accuracy > accuracy
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def searched(digits_data: Dataset, upper: Dataset, trained: dict[str, Tensor], **options) -> nn.Module:
    net = options.pop("net", None) or net_of(digits_data)
    settings = {"density": 0.5, "epochs": 25, "lr": 3e-3, "origin": smask.open_base(trained), **options}
    return smask.find_masks(net, Batches(upper, batch_size=64, seed=0), **settings)


def encoded(model: nn.Module) -> bytes:
    return codec.encode(model.state_dict(), recipe_of(model))


def exactly(one: Tensor, other: Tensor) -> bool:
    return torch.equal(raw_bytes(one), raw_bytes(other))


def test_masked_to_other_classes(digits_data: Dataset, upper: Dataset, trained: dict[str, Tensor]) -> None:
    found = searched(digits_data, upper, trained)
    data = encoded(found)
    again = smask.load(data, base=trained)
    assert score(again, upper).accuracy > 0.93 > 0.5 > score(net_with(digits_data, trained), upper).accuracy
    assert encoded(again) == data
    assert smask.verify(data, base=trained).same
    described = open_file(data, limits=smask.Limits()).manifest
    assert described.base_digest == smask.open_base(trained).digest
    assert [(r.name, r.base, r.of) for r in described.tensors if r.planes] == [
        (f"{layer}.weight", "file", "") for layer in (2, 4, 6)
    ]
    for name, scale in ((f"{layer}.weight", again.smask_recipe.coded[f"{layer}.weight"].scale) for layer in (2, 4, 6)):
        weight = again.state_dict()[name]
        masked = scale[:, None] * trained[name]
        assert bool(((weight == 0) | (weight == masked)).all())
        assert int((weight != 0).sum()) == round(0.5 * weight.numel())


def net_with(digits_data: Dataset, trained: dict[str, Tensor]) -> nn.Module:
    net = net_of(digits_data)
    net.load_state_dict(trained)
    return net


def test_what_is_not_changed_costs_nothing(digits_data: Dataset, upper: Dataset, trained: dict[str, Tensor]) -> None:
    """A mask alone, over one layer: everything else is that of the base, to the bit."""
    net = net_of(digits_data)
    net.requires_grad_(False)
    found = searched(
        digits_data, upper, trained, net=net, only=["4.weight"], learn_scale=False, learn_bias=False, epochs=2
    )
    data = encoded(found)
    report = smask.inspect(data)
    assert report.n_plane_bytes == 96 * 48 // 8
    assert report.n_float_bytes == 2  # the scale, one in bfloat16
    state = smask.decode(data, base=trained)
    assert all(exactly(state[name], tensor) for name, tensor in trained.items() if name != "4.weight")
    assert {float(v) for v in (state["4.weight"] / trained["4.weight"]).unique()} == {0.0, 1.0}


def test_another_base_is_refused(digits_data: Dataset, upper: Dataset, trained: dict[str, Tensor]) -> None:
    data = encoded(searched(digits_data, upper, trained, epochs=1))
    other = {**trained, "6.bias": trained["6.bias"] + 1}
    for wrong in (other, None):
        for read in (smask.load, smask.decode, smask.verify):
            with pytest.raises(BaseError) as caught:
                read(data, base=wrong)
            assert caught.value.want == smask.open_base(trained).digest
            assert caught.value.got == (None if wrong is None else smask.open_base(other).digest)


def test_another_base_is_another_search(
    digits_data: Dataset, upper: Dataset, trained: dict[str, Tensor], tmp_path: Path
) -> None:
    searched(digits_data, upper, trained, epochs=1, checkpoints=smask.Checkpoints(tmp_path))
    other = smask.open_base({**trained, "6.bias": trained["6.bias"] + 1})
    kept = smask.Checkpoints(tmp_path, resume=True)
    with pytest.raises(ResumeError) as caught:
        searched(digits_data, upper, trained, epochs=1, origin=other, initial="random", checkpoints=kept)
    assert [name for name, _, _ in caught.value.differences] == ["origin", "initial"]


def test_a_resumed_search_gives_the_same_bytes(
    digits_data: Dataset, upper: Dataset, trained: dict[str, Tensor]
) -> None:
    held = Held(20)
    whole = encoded(searched(digits_data, upper, trained, epochs=3, checkpoints=held))
    assert encoded(searched(digits_data, upper, trained, epochs=3, checkpoints=Held(0, held.held))) == whole


def test_a_new_head_is_seeded(digits_data: Dataset, trained: dict[str, Tensor]) -> None:
    found = searched(digits_data, digits_data, trained, net=net_of(digits_data, 10))
    coded = recipe_of(found).coded
    assert [(name, one.base) for name, one in coded.items()] == [
        ("2.weight", "file"), ("4.weight", "file"), ("6.weight", "signed"),
    ]  # fmt: skip
    data = encoded(found)
    assert score(smask.load(data, base=trained), digits_data).accuracy > 0.9
    assert encoded(smask.load(data, base=trained)) == data


def test_norms_begin_as_in_the_base(digits_data: Dataset) -> None:
    """Convolution, batch norm, dropout: what is trained or moves is stored, the rest is that of the base."""
    net = convolutional(digits_data, features=4, dropout=0.1)
    base = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    base["2.running_mean"] += 3
    net[2].requires_grad_(False)
    found = searched(digits_data, digits_data, base, net=net, epochs=2)
    data = encoded(found)
    again = smask.load(data, base=base)
    assert encoded(again) == data
    forms = {tensor.name: (tensor.base, tensor.of) for tensor in smask.inspect(data).tensors}
    assert forms["1.weight"] == ("file", "1.weight")
    assert forms["2.weight"] == (None, "2.weight")  # does not require a gradient
    assert forms["2.running_mean"] == (None, None)
    assert not torch.allclose(again.state_dict()["2.running_mean"], base["2.running_mean"])


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("biprop", "single")])
def test_other_methods(digits_data: Dataset, upper: Dataset, trained: dict[str, Tensor], method: str) -> None:
    found = searched(digits_data, upper, trained, method=method, epochs=4)
    data = encoded(found)
    again = smask.load(data, base=trained)
    assert encoded(again) == data
    assert all(one.base == "file" and one.stream == 0 for one in recipe_of(found).coded.values())


def test_distilled_from_the_unmasked_base(digits_data: Dataset, lower: Dataset, trained: dict[str, Tensor]) -> None:
    """Task-agnostic: no label is seen, and half of the weights say what all of them did."""
    net = net_with(digits_data, trained)
    unlabelled = [(x, None) for x, _ in Batches(lower, batch_size=64, seed=0)]
    found = smask.find_masks(
        net_of(digits_data), unlabelled, density=0.3, epochs=15, origin=smask.open_base(trained), teacher=net,
        teacher_weight=1.0,
    )  # fmt: skip
    assert score(found, lower).accuracy > 0.95


def test_first_masks_are_those_of_magnitude_pruning(digits_data: Dataset, trained: dict[str, Tensor]) -> None:
    weights = maskable(net_of(digits_data))
    origins = {name: trained[name] for name in weights}
    for method in METHODS.values():
        layers = masked_weights(weights, dict.fromkeys(weights, 0.25), method, origins=origins, initial="magnitude")
        for name, layer in layers.items():
            n_kept = layer.n_weights // 4
            largest = trained[name].abs().flatten().argsort(descending=True, stable=True)[:n_kept]
            assert set(layer.order()[:n_kept].tolist()) == set(largest.tolist())


def test_scores_dealt_by_magnitude() -> None:
    drawn, weights = torch.tensor([[0.3, -0.1], [0.2, 0.0]]), torch.tensor([[-2.0, 0.5], [3.0, -0.1]])
    assert torch.equal(ordered_by_magnitude(drawn, weights), torch.tensor([[0.2, 0.0], [0.3, -0.1]]))


@torch.no_grad()
def test_one_step_by_hand() -> None:
    """A score's gradient is that of its weight times its base: in latents, times the base's magnitude."""
    weight = nn.Parameter(torch.zeros(1, 4))
    origin = torch.tensor([[2.0, -3.0, 2.0**-140, 0.5]])
    layer = masked_weights(
        {"w": Maskable(weight, 4.0)}, {"w": 0.5}, METHODS["single"], origins={"w": origin}, initial="magnitude"
    )["w"]
    assert layer.kind == "file"
    assert torch.equal(layer.base, torch.tensor([[2.0, -3.0, 0.0, 0.5]]))
    assert torch.equal(layer.scale.detach(), torch.ones(1, 1))
    assert layer.n_usable == 3
    layer.refresh(2 / 3)
    layer.write()
    assert torch.equal(weight, torch.tensor([[2.0, -3.0, 0.0, 0.0]]))
    weight.grad = torch.ones(1, 4)
    layer.take_gradient()
    assert torch.equal(layer.latent.grad, torch.tensor([[2.0, 3.0, 0.0, 0.5]]))
    assert torch.equal(layer.scale.grad, torch.tensor([[-1.0]]))


def test_bases_that_do_not_fit(digits_data: Dataset, upper: Dataset, trained: dict[str, Tensor]) -> None:
    with pytest.raises(ArchitectureError) as caught:
        searched(digits_data, upper, {"0.weight": torch.ones(2, 2), "4.weight": torch.ones(3)})
    assert caught.value.differences == (
        "2.weight is not in the checkpoint", "4.weight is F32 [3] in the checkpoint, [48, 96] in the net",
        "6.weight is not in the checkpoint",
    )  # fmt: skip
    with pytest.raises(ArgumentError) as broken:
        searched(digits_data, upper, {**trained, "4.weight": trained["4.weight"] / 0})
    assert (broken.value.name, str(broken.value.got)) == ("4.weight", "NaN, infinity or a magnitude beyond binary32")
    with pytest.raises(ArgumentError) as unfit:
        searched(digits_data, upper, trained, method="biprop")
    assert unfit.value.name == "method"
    with pytest.raises(UnsupportedError) as unknown:
        searched(digits_data, upper, trained, initial="sign")
    assert unknown.value.known == ("magnitude", "random")


@pytest.fixture
def folder(upper: Dataset, trained: dict[str, Tensor], tmp_path: Path) -> Path:
    arrays = {name: getattr(upper, name).numpy() for name in ("x_train", "y_train", "x_test", "y_test")}
    np.savez(tmp_path / "upper.npz", **{k: v * 15 if k[0] == "x" else v for k, v in arrays.items()})
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in trained.items()}}, tmp_path / "base.pt")
    return tmp_path


def encode(folder: Path, *options: str) -> list[str]:
    data, out = str(folder / "upper.npz"), str(folder / "out.smask")
    return ["encode", "--data", data, "--epochs", "12", "--lr", "3e-3", "-o", out, "-q", "--force", "--json", *options]


def test_command_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = str(folder / "base.pt")
    assert main(encode(folder, "--base", base, "--arch", "mlp:64-96-48-5")) == 0
    fields = json.loads(capsys.readouterr().out)
    assert fields["accuracy"] > 0.85
    assert (fields["base"], fields["new"], fields["n_kept"]) == (base, [], fields["n_weights"] // 2)
    assert main(["eval", fields["file"], "--data", str(folder / "upper.npz"), "--base", base, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == fields["accuracy"]
    assert main(["verify", fields["file"]]) == 6
    assert fields["base_digest"] in capsys.readouterr().err


def test_layers_left_out(folder: Path, trained: dict[str, Tensor], capsys: pytest.CaptureFixture[str]) -> None:
    base = str(folder / "base.pt")
    options = ["--base", base, "--arch", "mlp:64-96-48-5", "--leave-out", "2", "4.bias", "--train", "6"]
    assert main(encode(folder, *options)) == 0
    fields = json.loads(capsys.readouterr().out)
    state = smask.decode(fields["file"], base=base)
    assert all(exactly(state[name], trained[name]) for name in ("2.weight", "2.bias", "4.bias"))
    forms = {t.name: (t.base, t.of) for t in smask.inspect(fields["file"]).tensors}
    assert forms["4.weight"] == ("file", "4.weight")
    assert forms["2.weight"] == (None, "2.weight")
    assert forms["6.weight"] == (None, None)
    assert not exactly(state["6.weight"], trained["6.weight"])


def test_architecture_and_head_from_a_smask_base(
    folder: Path, found: nn.Module, capsys: pytest.CaptureFixture[str]
) -> None:
    smask.save(found, folder / "digits.smask")
    assert main(encode(folder, "--base", str(folder / "digits.smask"), "--epochs", "1")) == 0
    fields = json.loads(capsys.readouterr().out)
    assert fields["new"] == ["6.weight"]
    arch = smask.inspect(fields["file"]).arch
    assert arch["layers"][0] == recipe_of(found).arch["layers"][0]  # its normalisation too
    assert arch["layers"][-1]["outputs"] == 5


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--base", "nowhere.pt"], 4, ["nowhere.pt", "checkpoint"]),
        (["--leave-out", "2"], 2, ["--leave-out", "--base CHECKPOINT"]),
        (["--initial", "random"], 2, ["--initial", "--base CHECKPOINT"]),
        (["--base", "{base}", "--mean", "0.5"], 2, ["--std", "both"]),
        (["--mean", "0.5", "--std", "0.5"], 2, ["--start or --base"]),
        (["--base", "{base}", "--start", "{base}"], 2, ["--base and --start"]),
        (["--start", "nowhere.pt"], 3, ["nowhere.pt"]),
        (["--base", "{base}", "--arch", "mlp:64-96-48-5", "--leave-out", "3"], 2, ["'3'", "2, 4, 6"]),
        (["--base", "{base}", "--arch", "mlp:64-96-48-5", "--leave-out", "2", "4", "6"], 2, ["one layer left"]),
        (["--base", "{base}", "--arch", "mlp:64-96-47-5", "--leave-out", "4"], 2, ["4.weight"]),
        (["--base", "{base}", "--arch", "mlp:64-32-16-5"], 6, ["[96, 64] in the checkpoint, [32, 64] in the net"]),
    ],
)  # fmt: skip
def test_usage(
    folder: Path, capsys: pytest.CaptureFixture[str], options: list[str], code: int, said: list[str]
) -> None:
    assert main(encode(folder, *(option.format(base=folder / "base.pt") for option in options))) == code
    err = capsys.readouterr().err
    assert all(part in err for part in said)
    assert not (folder / "out.smask").exists()


def test_weights_that_are_zero_in_the_base_are_never_kept(
    digits_data: Dataset, upper: Dataset, trained: dict[str, Tensor]
) -> None:
    """Half of a pruned base are half of what it has left; a target counts the same way."""
    name = "2.weight"
    pruned = {**trained, name: torch.where(trained[name].abs() > trained[name].abs().quantile(0.75), trained[name], 0)}
    n_left = int((pruned[name] != 0).sum())
    for method in ("auto", "edge-popup"):
        found = searched(digits_data, upper, pruned, density_rule="uniform", method=method, epochs=4)
        assert int((found.state_dict()[name] != 0).sum()) == round(n_left / 2)
        report = next(tensor for tensor in smask.inspect(encoded(found)).tensors if tensor.name == name)
        assert report.n_kept == round(n_left / 2)
    small = searched(digits_data, upper, pruned, target=smask.TargetSize(1200), epochs=4)
    assert 1190 < len(encoded(small)) <= 1200
