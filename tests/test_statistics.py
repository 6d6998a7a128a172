"""Batch norms without statistics: they run as before, and have them again for one that trains on."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import smask
from smask import codec
from smask.cli import pretrained
from smask.recipe import recipe_of
from smask.search.data import Batches, Dataset
from smask.search.statistics import PARTS, folded, lasting, restore
from smask.search.tasks import Classification, some_inputs
from test_norms import Digits, Net, searched


def settled(net: nn.Module, seed: int = 0) -> nn.Module:
    """A net whose norms have seen other inputs than standard ones."""
    random = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor in (module.running_mean, module.running_var, module.weight, module.bias):
                if tensor is not None:
                    tensor.data.copy_(torch.rand(tensor.shape, generator=random) + 0.2)
    return net.eval()


def test_folded_norms_run_as_before() -> None:
    torch.manual_seed(0)
    net, x = settled(Net()), torch.randn(5, 1, 8, 8)
    before = net(x)
    state = net.state_dict()
    found = folded(net)
    norms = ("norm", "both_norm", "twice_norms.0", "twice_norms.1", "up_norm", "late_norm")
    assert {*found} == {f"{norm}.{part}" for norm in norms for part in PARTS}  # the last has neither weight nor bias
    assert all(torch.equal(state[name], value) for name, value in net.state_dict().items())
    net.load_state_dict(state | found)
    torch.testing.assert_close(net(x), before, rtol=1e-5, atol=1e-5)
    assert float(net.late_norm.running_mean.abs().max()) == 0  # type: ignore[union-attr]
    assert net.late_norm.running_var.tolist() == [1.0] * 4  # type: ignore[union-attr]


def test_norms_that_are_not_folded() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.own = nn.BatchNorm1d(3), nn.BatchNorm1d(3), nn.BatchNorm1d(3)
            self.two.weight = self.one.weight
            self.again = self.without = nn.BatchNorm1d(3, track_running_stats=False)
            self.group = nn.GroupNorm(1, 3)

    net = settled(Shared())
    assert {name.split(".")[0] for name in folded(net)} == {"own"}
    assert folded(net, but={"own.running_var"}) == {}
    net.own.bias.requires_grad_(False)
    assert folded(net) == {}
    assert folded(nn.BatchNorm2d(2).double())["weight"].dtype == torch.float64


def test_what_lasts_of_buffers() -> None:
    net = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3, affine=False))
    net.register_buffer("mean", torch.ones(2))
    net.register_buffer("count", torch.ones(2, dtype=torch.int64))
    assert [tensor.data_ptr() for tensor in lasting(net)] == [
        tensor.data_ptr() for tensor in (net.mean, net[1].running_mean, net[1].running_var)
    ]


def test_a_search_folds_its_norms(digits_data: Dataset) -> None:
    """The same masks, the same outputs but for rounding, in fewer bytes."""
    kept, found = (searched(digits_data, norm_statistics=keeps, float_bits=None) for keeps in (True, False))
    one, two = recipe_of(kept).coded, recipe_of(found).coded
    assert all(torch.equal(a, b) for name in one for a, b in zip(one[name].planes, two[name].planes, strict=True))
    assert float(kept.first_norm.running_mean.abs().max()) > 0.01  # type: ignore[union-attr,operator]
    for norm in (found.first_norm, found.second_norm):
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        assert not norm.running_mean.any()
        assert (norm.running_var == 1).all()
    x = digits_data.inputs(digits_data.x_test)
    with torch.no_grad():
        a, b = kept(x), found(x)
    assert float((a - b).norm() / a.norm()) < 0.02
    n_bytes = [len(codec.encode(net.state_dict(), recipe_of(net))) for net in (kept, found)]
    assert n_bytes[1] < n_bytes[0] - 40


def test_norms_over_a_checkpoint_stay_as_they_are(digits_data: Dataset) -> None:
    """Its own statistics cost nothing, folded ones would."""
    torch.manual_seed(2)
    trained = settled(Digits()).state_dict()
    found = searched(digits_data, origin=smask.open_base(trained), method="single", epochs=1)
    assert float(found.first_norm.running_var.std()) > 0  # type: ignore[union-attr,operator]


def trained_on(net: nn.Module, x: Tensor) -> nn.Module:
    """A net whose statistics are those of some inputs."""
    net.train()
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = None  # the mean of all that is seen
            module.reset_running_stats()
    with torch.no_grad():
        net(x)
    return net.eval()


@pytest.mark.parametrize("training", [False, True])
def test_statistics_come_back(training: bool) -> None:
    """As they were, where the inputs are, and outputs do not change whatever these are."""
    torch.manual_seed(1)
    x, other = torch.randn(40, 1, 8, 8), torch.randn(40, 1, 8, 8) * 2 + 1
    net = trained_on(Digits(), x)
    for norm in (net.first_norm, net.second_norm):
        assert isinstance(norm, nn.BatchNorm2d)
        nn.init.uniform_(norm.weight, 0.5, 2)
        nn.init.uniform_(norm.bias, -1, 1)
    trained_on(net, x)
    state, before = {name: t.clone() for name, t in net.state_dict().items()}, net(x)
    net.load_state_dict(state | folded(net))
    net.train(training)
    calls: list[int] = []
    net.first_norm.register_forward_pre_hook(lambda *given: calls.append(1))
    assert restore(net, [x[:30], x[30:]]) == 2
    assert net.training == net.first_norm.training == training
    assert restore(net, [x]) == 0  # they have them now
    assert len(calls) == 2
    net.eval()
    torch.testing.assert_close(net(x), before, rtol=1e-3, atol=1e-4)
    for name, tensor in net.state_dict().items():
        if "norm" in name and "num_" not in name:  # variances are those of a sample here, with n - 1
            torch.testing.assert_close(tensor, state[name], rtol=5e-3, atol=1e-3)
    net.load_state_dict(state | folded(net))
    assert restore(net, [other]) == 2
    torch.testing.assert_close(net(x), before, rtol=1e-3, atol=1e-3)


def test_what_has_nothing_to_restore() -> None:
    fresh = Net()
    state = {name: tensor.clone() for name, tensor in fresh.state_dict().items()}
    assert restore(fresh, [torch.randn(4, 1, 8, 8)]) == 0
    assert restore(nn.Linear(3, 2), []) == 0
    assert all(torch.equal(state[name], tensor) for name, tensor in fresh.state_dict().items())

    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.spare = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
            nn.init.constant_(self.norm.weight, 2.0)
            nn.init.constant_(self.spare.weight, 2.0)

        def forward(self, *, x: Tensor) -> Tensor:
            return self.norm(x)  # type: ignore[no-any-return]

    net = Unused()
    assert restore(net, [{"x": torch.randn(9, 2)}]) == 1
    assert net.spare.weight.tolist() == [2.0, 2.0]


def test_a_model_that_fails_is_left_as_it_was() -> None:
    net = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1))
    nn.init.constant_(net[0].weight, 2.0)
    net.train()
    with pytest.raises(RuntimeError):
        restore(net, [torch.randn(3, 2), torch.randn(3, 5)])
    assert net.training
    assert net[0].weight.tolist() == [2.0, 2.0]
    assert not net[0]._forward_pre_hooks


def test_training_goes_on_where_a_search_ended(digits_data: Dataset) -> None:
    """In training a folded norm is another function, with its statistics nearly the same."""
    found, batches = searched(digits_data, epochs=6), [*Batches(digits_data, batch_size=240, seed=3)]
    x, y = batches[0]

    def loss(model: nn.Module, *, training: bool) -> float:
        model.train(training)
        with torch.no_grad():
            return float(F.cross_entropy(model(x), y))

    run = loss(found, training=False)
    folded_in_training = loss(
        codec.load(codec.encode(found.state_dict(), recipe_of(found)), model=Digits()), training=True
    )
    found.eval()
    restore(found, (x for x, _ in batches))
    assert loss(found, training=False) == pytest.approx(run, rel=1e-3)
    assert abs(loss(found, training=True) - run) < 0.3 * abs(folded_in_training - run)


def test_a_start_without_statistics_has_them_again(digits_data: Dataset) -> None:
    task, start = Classification(digits_data), searched(digits_data).state_dict()
    assert [len(x) for x in some_inputs(task)] == [128] * 8
    net = Digits()
    named = pretrained.with_statistics(smask.open_base(start), net, None, task)
    assert float(named.tensor("first_norm.running_var").std()) > 0
    assert torch.equal(named.tensor("last.weight"), start["last.weight"])
    assert not net.first_norm.running_mean.any()  # type: ignore[union-attr,operator]
    begun = Digits()
    begun.load_state_dict({name: named.tensor(name) for name in start})
    before = Digits()
    before.load_state_dict(start)
    x = digits_data.inputs(digits_data.x_test)
    with torch.no_grad():
        torch.testing.assert_close(begun.eval()(x), before.eval()(x), rtol=1e-3, atol=1e-3)
    # What the net does not have in this shape, or the start not at all, is still not of the start.
    del start["last.bias"]
    named = pretrained.with_statistics(smask.open_base(start), net, None, task)
    assert named.entry("last.bias") is None
    whole = smask.open_base(begun.state_dict())
    assert pretrained.with_statistics(whole, net, None, task) is whole
