"""Searches over a seed that begin as a trained net: first weights are near its own, the file needs only the seed."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import smask
from conftest import convolutional
from smask.cli.main import main
from smask.errors import ArchitectureError, ArgumentError, ResumeError
from smask.manifest import open_file
from smask.recipe import recipe_of
from smask.search.accuracy import score
from smask.search.data import Batches, Dataset
from smask.search.initialisation import masked_weights
from smask.search.methods import METHODS
from smask.search.scores import MaskedWeight
from smask.search.weights import Maskable
from test_pretrained import encoded, net_of, trained_on
from test_ranks import Held


@pytest.fixture(scope="module")
def trained(digits_data: Dataset) -> dict[str, Tensor]:
    """A net that tells all digits apart."""
    return trained_on(digits_data, net_of(digits_data, 10), accuracy=0.95)


def searched(digits_data: Dataset, trained: object = None, **options) -> nn.Module:
    start = None if trained is None else smask.open_base(trained)
    settings = {"density": 0.2, "epochs": 3, "start": start, "method": "signs", **options}
    return smask.find_masks(net_of(digits_data, 10), Batches(digits_data, batch_size=64, seed=0), **settings)


def begun(weights: Tensor, method: str, **options) -> MaskedWeight:
    parameter = nn.Parameter(torch.zeros_like(weights))
    layers = masked_weights(
        {"w": Maskable(parameter, float(weights[0].numel()))}, {"w": 0.1}, METHODS[method], starts={"w": weights},
        **options,
    )  # fmt: skip
    return layers["w"]


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("options", [{}, {"per_channel": False}, {"base": "normal", "stride": 3.0}])
def test_first_weights_are_near_the_trained_ones(method: str, options: dict[str, object]) -> None:
    """Of all factors of what is masked first the scale is the one that leaves the smallest difference."""
    weights = torch.randn(24, 200, generator=torch.Generator().manual_seed(1)) * 0.03
    layer = begun(weights, method, **options)
    layer.seed_draws(0)
    layer.write()
    written = layer.weight.clone()
    products = (written * (weights - written)).sum(1)
    scale = written.square().sum(1)
    off, size = (products, scale) if layer.per_channel else (products.sum(), scale.sum())
    if not METHODS[method].draws:  # what is drawn may be farther from the weights than nothing is
        assert bool((off.abs() <= 1e-4 * size).all())
    assert bool((written * weights).sum() > 0)
    assert bool((layer.scale > 0).all())


@torch.no_grad()
def test_ramps_of_signs_cut_off_the_trained_weights() -> None:
    weights = torch.randn(8, 500, generator=torch.Generator().manual_seed(2)) * 0.1
    layer = begun(weights, "signs")
    layer.write()
    assert torch.equal(layer.latent.sign(), weights.sign())
    cut = weights.clamp(-2 * float(weights.abs().median()), 2 * float(weights.abs().median()))
    cosine = nn.functional.cosine_similarity(layer.weight.flatten(), cut.flatten(), dim=0)
    assert float(cosine) > 0.999
    # About as far from each other as scores that are drawn.
    drawn = METHODS["signs"].initial(weights.shape, torch.Generator().manual_seed(0))
    assert float(layer.latent.abs().mean()) == pytest.approx(float(drawn.mean()), rel=0.02)


def test_a_weight_that_is_zero_begins_as_without_a_start() -> None:
    layer = begun(torch.zeros(4, 9), "signs")
    drawn = METHODS["signs"].initial(torch.Size((4, 9)), torch.Generator().manual_seed(0))
    assert torch.equal(layer.scores(), drawn)
    assert len(layer.scale.unique()) == 1
    assert float(layer.scale.detach().min()) > 0


def test_padding_stays_zero() -> None:
    parameter = nn.Parameter(torch.zeros(5, 40))
    weights = torch.randn(5, 40, generator=torch.Generator().manual_seed(1))
    layers = masked_weights(
        {"w": Maskable(parameter, 2.0, silent=(3,))}, {"w": 0.3}, METHODS["signs"], starts={"w": weights}
    )
    assert [scale == 0 for scale in layers["w"].scale.flatten().tolist()] == [False, False, False, True, False]


def test_a_short_search_ends_near_the_trained_net(digits_data: Dataset, trained: dict[str, Tensor]) -> None:
    found, plain = searched(digits_data, trained), searched(digits_data)
    assert score(found, digits_data).accuracy > max(0.9, score(plain, digits_data).accuracy + 0.05)


def test_the_file_needs_only_the_seed(digits_data: Dataset, trained: dict[str, Tensor]) -> None:
    data = encoded(searched(digits_data, trained))
    described = open_file(data, limits=smask.Limits()).manifest
    assert described.base_digest is None
    assert {(r.base, r.of) for r in described.tensors if r.planes} == {("signed", None)}
    again = smask.load(data)
    assert encoded(again) == data
    assert smask.verify(data).same
    report = next(tensor for tensor in smask.inspect(data).tensors if tensor.name == "2.weight")
    assert 0.4 < report.n_flipped / report.n_kept < 0.6  # its signs are those of the trained net, not of the seed


def test_what_is_not_masked_begins_as_there(digits_data: Dataset) -> None:
    """Of a running mean that is moved by a tenth in every step, so much is left after them."""
    net, found = convolutional(digits_data, features=4, dropout=0.0), []
    batches = Batches(digits_data, batch_size=256, seed=0)
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()} | {"2.weight": torch.full((4,), 2.0)}
    net[2].requires_grad_(False)
    for more in (0.0, 40.0):
        start = smask.open_base(state | {"2.running_mean": state["2.running_mean"] + more})
        model = smask.find_masks(
            net, batches, density=0.2, epochs=1, float_dtype=torch.float32, float_bits=None, start=start
        )
        assert torch.equal(model.state_dict()["2.weight"], state["2.weight"])
        found.append(model.state_dict()["2.running_mean"])
    torch.testing.assert_close(found[1] - found[0], torch.full((4,), 40 * 0.9 ** len(batches)), rtol=1e-3, atol=1e-3)


def test_layers_of_other_shapes_begin_as_without(digits_data: Dataset, trained: dict[str, Tensor]) -> None:
    smaller = {**trained, "6.weight": trained["6.weight"][:5], "6.bias": trained["6.bias"][:5]}
    found = searched(digits_data, smaller, epochs=10)
    assert {one.base for one in recipe_of(found).coded.values()} == {"signed"}
    assert score(found, digits_data).accuracy > 0.9


def test_a_resumed_search_gives_the_same_bytes(digits_data: Dataset, trained: dict[str, Tensor]) -> None:
    held = Held(30)
    whole = encoded(searched(digits_data, trained, checkpoints=held))
    assert encoded(searched(digits_data, trained, checkpoints=Held(0, held.held))) == whole


def test_another_start_is_another_search(digits_data: Dataset, trained: dict[str, Tensor], tmp_path: Path) -> None:
    searched(digits_data, trained, epochs=1, checkpoints=smask.Checkpoints(tmp_path))
    with pytest.raises(ResumeError) as caught:
        searched(digits_data, epochs=1, checkpoints=smask.Checkpoints(tmp_path, resume=True))
    assert [name for name, _, _ in caught.value.differences] == ["start"]


def test_starts_that_do_not_fit(digits_data: Dataset, trained: dict[str, Tensor]) -> None:
    with pytest.raises(ArchitectureError) as caught:
        searched(digits_data, {"0.weight": torch.ones(2, 2)})
    assert caught.value.differences[0] == "2.weight is not in the checkpoint"
    with pytest.raises(ArgumentError) as broken:
        searched(digits_data, {**trained, "4.weight": trained["4.weight"] / 0})
    assert broken.value.name == "4.weight"
    with pytest.raises(ArgumentError) as both:
        searched(digits_data, trained, origin=smask.open_base(trained))
    assert both.value.name == "start"


def test_command_line(digits_data: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``smask train`` writes what a search begins as, with its architecture and normalisation."""
    first, out = str(tmp_path / "trained.smask"), str(tmp_path / "out.smask")
    arrays = {name: getattr(digits_data, name).numpy() for name in ("x_train", "y_train", "x_test", "y_test")}
    np.savez(tmp_path / "digits.npz", **{k: v * 15 if k[0] == "x" else v for k, v in arrays.items()})
    data = str(tmp_path / "digits.npz")
    assert main(["train", "--data", data, "--arch", "mlp:64-96-10", "--epochs", "12", "-o", first, "-q"]) == 0
    capsys.readouterr()
    encode = ["encode", "--data", data, "--epochs", "10", "--density", "0.2", "-o", out, "-q", "--force"]
    assert main([*encode, "--start", first, "--json"]) == 0
    fields = json.loads(capsys.readouterr().out)
    assert fields["accuracy"] > 0.9
    assert (fields["start"], fields["new"], "base_digest" in fields) == (first, [], False)
    assert fields["start_accuracy"] > 0.85  # of training inputs, before the first step
    assert smask.inspect(out).arch == smask.inspect(first).arch
    assert main([*encode, "--start", first, "--arch", "mlp:64-96-10", "--mean", "0.5", "--std", "0.25"]) == 0
    assert "began as" in capsys.readouterr().out
    assert smask.inspect(out).arch["layers"][0]["mean"] == [0.5]
