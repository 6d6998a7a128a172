import copy

import pytest
import torch
from torch import Tensor, nn

import smask
from smask import architectures, named_nets
from smask.errors import ArgumentError, DivergedError, UnsupportedError
from smask.recipe import recipe_of
from smask.reconstruction import reconstruct
from smask.search.accuracy import score
from smask.search.data import Batches, Dataset
from smask.search.methods import METHODS
from smask.search.progress import Progress


def small(dataset: Dataset, widths: str = "64-24-10") -> nn.Module:
    mean, std = dataset.statistics()
    torch.manual_seed(0)
    return architectures.build(named_nets.architecture(f"mlp:{widths}", input_shape=(1, 8, 8), mean=mean, std=std))


def test_learns_digits(found: nn.Module, digits_data: Dataset) -> None:
    assert score(found, digits_data).accuracy > 0.9
    assert score(small(digits_data), digits_data).accuracy < 0.4


def test_counts_are_exact_and_weights_are_of_the_base(found: nn.Module) -> None:
    recipe = recipe_of(found)
    assert [coded.stream for coded in recipe.coded.values()] == [0, 1, 2]
    n_kept = n_weights = 0
    for name, coded in recipe.coded.items():
        weights = found.state_dict()[name]
        kept = weights != 0
        n_kept, n_weights = n_kept + int(kept.sum()), n_weights + weights.numel()
        assert torch.equal(weights, reconstruct(coded, recipe.seed))
        assert torch.equal(weights.abs(), kept * coded.scale.abs()[:, None])
    assert n_kept / n_weights == pytest.approx(0.2, abs=0.002)


@pytest.mark.parametrize(
    "options", [{}, {"base": "normal", "scale": "tensor"}, {"learn_scale": False, "learn_bias": False}]
)
def test_same_seed_same_bytes(digits_data: Dataset, options: dict[str, object]) -> None:
    def search(seed: int) -> bytes:
        batches = Batches(digits_data, batch_size=128, seed=seed)
        model = smask.find_masks(small(digits_data), batches, density=0.3, epochs=2, seed=seed, **options)
        return smask.encode(model.state_dict(), recipe_of(model))

    torch.manual_seed(123)
    first = search(1)
    state = torch.random.get_rng_state()
    assert search(1) == first
    assert torch.equal(torch.random.get_rng_state(), state)  # the caller's generator is left alone
    assert search(2) != first


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_and_is_a_file(digits_data: Dataset, method: str) -> None:
    batches = Batches(digits_data, batch_size=64, seed=0)
    model = smask.find_masks(small(digits_data, "64-64-10"), batches, method=method, density=0.3, epochs=12)
    data = smask.encode(model.state_dict(), recipe_of(model))
    loaded = smask.load(data)
    assert smask.verify(data).same
    assert score(loaded, digits_data).accuracy > 0.6
    kept = sum(int((loaded.state_dict()[name] != 0).sum()) for name in recipe_of(model).coded)
    assert kept / (74 * 64) == pytest.approx(0.3, abs=0.01)


def test_no_biases_and_no_learned_scales(digits_data: Dataset) -> None:
    model = smask.find_masks(
        small(digits_data), Batches(digits_data, batch_size=256, seed=0), density=0.5, epochs=1,
        learn_scale=False, learn_bias=False, scale="tensor",
    )  # fmt: skip
    assert not model.get_parameter("2.bias").any()
    assert len(recipe_of(model).coded["2.weight"].scale) == 1


def test_the_model_of_the_caller_is_not_changed(digits_data: Dataset) -> None:
    model = small(digits_data)
    before = copy.deepcopy(model.state_dict())
    smask.find_masks(model, Batches(digits_data, batch_size=256, seed=0), density=0.5, epochs=1)
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training


def test_batch_norm_convolutions_and_rounding(digits_data: Dataset) -> None:
    arch = {
        "layers": [
            {"op": "conv2d", "inputs": 1, "outputs": 8, "kernel": 3, "bias": False}, {"op": "batch-norm-2d", "features": 8},
            "relu", "flatten", {"op": "linear", "inputs": 288, "outputs": 10},
        ]
    }  # fmt: skip
    model = smask.find_masks(
        architectures.build(arch), Batches(digits_data, batch_size=64, seed=0), density=0.3, epochs=4,
        norm_statistics=True,
    )  # fmt: skip
    state = model.state_dict()
    assert int(state["1.num_batches_tracked"]) == 4 * 22
    assert float(state["1.running_var"].std()) > 0
    for name in ("1.running_mean", "1.weight", "4.bias"):
        assert torch.equal(state[name], state[name].bfloat16().float())
    assert score(model, digits_data).accuracy > 0.8


def test_progress_and_density(digits_data: Dataset) -> None:
    seen: list[Progress] = []
    smask.find_masks(
        small(digits_data), Batches(digits_data, batch_size=32, seed=0), method="single", density=0.05, epochs=4,
        progress=seen.append,
    )  # fmt: skip
    assert [at.step for at in seen] == sorted({*range(40, 177, 40), 176})
    assert seen[-1].n_steps == 176
    densities = [at.density for at in seen]
    assert densities == sorted(densities, reverse=True)
    assert densities[-1] == pytest.approx(0.05)
    assert seen[-1].epoch == seen[-1].n_epochs == 4
    assert seen[-1].accuracy is not None
    assert 0.2 < seen[-1].accuracy <= 1
    assert seen[0].n_bytes > seen[-1].n_bytes


def test_three_levels_keep_the_density_of_the_end_all_along(digits_data: Dataset) -> None:
    seen: list[Progress] = []
    batches = Batches(digits_data, batch_size=32, seed=0)
    smask.find_masks(small(digits_data), batches, density=0.05, epochs=2, progress=seen.append)
    assert len(seen) > 1
    assert [at.density for at in seen] == pytest.approx([0.05] * len(seen), rel=1e-3)


def test_estimated_bytes_are_near_the_file(digits_data: Dataset) -> None:
    seen: list[Progress] = []
    model = smask.find_masks(
        small(digits_data, "64-300-10"), Batches(digits_data, batch_size=256, seed=0), density=0.1, epochs=4,
        progress=seen.append,
    )  # fmt: skip
    assert seen[-1].n_bytes == pytest.approx(len(smask.encode(model.state_dict(), recipe_of(model))), rel=0.1)


def test_a_channel_that_keeps_no_weight_keeps_no_floats(digits_data: Dataset) -> None:
    net = small(digits_data, "64-60-10")
    model = smask.find_masks(net, Batches(digits_data, batch_size=64, seed=0), density=0.02, epochs=6)
    state, n_silent = model.state_dict(), 0
    for name, coded in recipe_of(model).coded.items():
        silent = ~(state[name] != 0).any(1)
        bias = state[name.replace("weight", "bias")]
        assert torch.equal(coded.scale == 0, silent)
        assert bool((bias[silent] == 0).all())
        assert float((bias[~silent] != 0).float().mean()) > 0.8  # the others are never active
        n_silent += int(silent.sum())
    assert n_silent > 10
    reports = smask.inspect(smask.encode(state, recipe_of(model))).tensors
    assert sum(report.n_empty_channels for report in reports) == n_silent


def test_short_mantissas(digits_data: Dataset) -> None:
    def search(n_bits: int | None) -> nn.Module:
        return smask.find_masks(
            small(digits_data), Batches(digits_data, batch_size=256, seed=0), density=0.3, epochs=3, float_bits=n_bits
        )

    exact, short = search(None), search(2)
    for name in ("2.bias", "4.bias"):
        mantissas = short.state_dict()[name].view(torch.int32) & 0x7FFFFF
        assert not (mantissas & (1 << 21) - 1).any()
        assert torch.allclose(exact.state_dict()[name], short.state_dict()[name], rtol=0.13, atol=0)
    sizes = [len(smask.encode(model.state_dict(), recipe_of(model))) for model in (exact, short)]
    assert sizes[1] < sizes[0] - 10


@pytest.mark.parametrize(
    "norm", [nn.BatchNorm1d(16), nn.LayerNorm(16), nn.GroupNorm(4, 16)], ids=lambda norm: type(norm).__name__
)
def test_biases_and_statistics_of_norms_have_a_bit_more(digits_data: Dataset, norm: nn.Module) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), norm, nn.ReLU(), nn.Linear(16, 10))

    def search(n_bits: int | None) -> dict[str, Tensor]:
        batches = Batches(digits_data, batch_size=64, seed=0)
        options = {"density": 0.5, "epochs": 3, "norm_statistics": True}
        return smask.find_masks(model, batches, float_bits=n_bits, **options).state_dict()

    exact, short = search(None), search(3)
    floats = {name.partition(".")[2] for name in exact if name.startswith("2.")} - {"num_batches_tracked", "weight"}
    assert {"bias"} <= floats <= {"bias", "running_mean", "running_var"}
    for name in floats:
        mantissas = short[f"2.{name}"].view(torch.int32) & 0x7FFFFF
        assert not (mantissas & (1 << 19) - 1).any()
        assert (mantissas & 1 << 19).any()
        assert torch.allclose(exact[f"2.{name}"], short[f"2.{name}"], rtol=1 / 32, atol=0)
        assert not torch.equal(exact[f"2.{name}"], short[f"2.{name}"])
    assert torch.equal(exact["2.weight"], short["2.weight"])
    assert all(torch.equal(search(22)[name], exact[name]) for name in exact)


def test_frozen_parameters_stay(digits_data: Dataset) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.Linear(16, 10))
    model[2].requires_grad_(False)
    found = smask.find_masks(model, Batches(digits_data, batch_size=256, seed=0), density=0.5, epochs=2)
    assert torch.equal(found[2].weight, model[2].weight)
    assert found[2].running_mean.any()
    assert [p.requires_grad for p in found.parameters()] == [p.requires_grad for p in model.parameters()]


def test_interrupt_goes_through(digits_data: Dataset) -> None:
    def interrupt(at: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        smask.find_masks(small(digits_data), Batches(digits_data, batch_size=32, seed=0), epochs=4, progress=interrupt)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"density": 0}, "density"), ({"density": 1.5}, "density"), ({"epochs": 0}, "epochs"), ({"lr": 0}, "lr"),
        ({"lr": float("nan")}, "lr"), ({"seed": -1}, "seed"), ({"seed": 2**64}, "seed"), ({"patience": 0}, "patience"), ({"float_bits": 0}, "float_bits"), ({"float_bits": 23}, "float_bits"), ({"hold": 0.6, "settle": 0.5}, "hold and settle"),
    ],
)  # fmt: skip
def test_values_out_of_range(digits_data: Dataset, options: dict[str, object], name: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        smask.find_masks(small(digits_data), Batches(digits_data, batch_size=256, seed=0), **options)
    assert caught.value.name == name


@pytest.mark.parametrize(
    ("option", "known"), [("method", "edge-popup"), ("base", "signed"), ("scale", "channel"), ("density_rule", "erk")]
)
def test_unknown_names_list_the_known(digits_data: Dataset, option: str, known: str) -> None:
    with pytest.raises(UnsupportedError) as caught:
        smask.find_masks(small(digits_data), Batches(digits_data, batch_size=256, seed=0), **{option: "nonsense"})
    assert caught.value.got == "nonsense"
    assert known in caught.value.known


def test_nothing_to_do() -> None:
    for batches in ([], iter([(torch.rand(2, 2), torch.zeros(2))])):
        with pytest.raises(ArgumentError) as caught:
            smask.find_masks(nn.Linear(2, 2), batches)
        assert caught.value.name == "batches"
    with pytest.raises(ArgumentError) as caught:
        smask.find_masks(nn.Linear(2, 2).half(), [(torch.rand(2, 2), torch.zeros(2))])
    assert caught.value.name == "weight"
    with pytest.raises(ArgumentError) as caught:
        smask.find_masks(nn.ReLU(), [(torch.rand(2, 2), torch.zeros(2))])
    assert caught.value.name == "model"


def test_a_loss_that_explodes_is_named() -> None:
    batches = [(torch.full((4, 3), float("inf")), torch.zeros(4, dtype=torch.long))] * 50
    with pytest.raises(DivergedError) as caught:
        smask.find_masks(nn.Linear(3, 2), batches, density=0.5, epochs=1)
    assert caught.value.step == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_search_on_cuda(digits_data: Dataset) -> None:
    batches = Batches(digits_data, batch_size=64, seed=0, device="cuda")
    model = smask.find_masks(small(digits_data, "64-128-10"), batches, density=0.2, epochs=20, device="cuda")
    data = smask.encode(model.state_dict(), recipe_of(model))
    assert smask.verify(data).same
    assert score(smask.load(data), digits_data).accuracy > 0.9
