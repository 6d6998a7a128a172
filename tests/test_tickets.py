"""Lottery tickets: criteria and treatments by hand, what a file holds, rounds that go on, the command line."""

import itertools
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import smask
from smask import architectures, named_nets
from smask.bases import base_weights
from smask.errors import ArgumentError, ResumeError, UnsupportedError
from smask.recipe import recipe_of
from smask.runs.rounds import Rounds
from smask.search.data import Batches, Dataset
from smask.training.criteria import CRITERIA, PLAIN, kept_by
from smask.training.initial import SPREADS, initial_model, origins_of
from smask.training.tickets import Ticket, find_ticket, layer_ends
from smask.training.treatments import Treatment

INITIAL = torch.tensor([0.1, -0.4, 0.8, -1.0])
FINAL = torch.tensor([0.9, -0.5, -0.6, 0.1])
# Root mean squares: initial sqrt(1.81 / 4), final sqrt(1.43 / 4).
ALPHA = math.sqrt(1.81 / 1.43)
BY_HAND = {
    "large-final": [0.9, 0.5, 0.6, 0.1],
    "small-final": [-0.9, -0.5, -0.6, -0.1],
    "large-init": [0.1, 0.4, 0.8, 1.0],
    "small-init": [-0.1, -0.4, -0.8, -1.0],
    "large-init-large-final": [0.1, 0.4, 0.6 * ALPHA, 0.1 * ALPHA],
    "small-init-small-final": [-0.9 * ALPHA, -0.5 * ALPHA, -0.8, -1.0],
    "magnitude-increase": [0.8, 0.1, -0.2, -0.9],
    "movement": [0.8, 0.1, 1.4, 1.1],
}
SAME = [True, True, False, False]


def scores(name: str, seed: int = 0) -> list[float]:
    found: list[float] = CRITERIA[name](INITIAL, FINAL, torch.Generator().manual_seed(seed)).tolist()
    return found


@pytest.mark.parametrize("name", BY_HAND)
def test_criteria_by_hand(name: str) -> None:
    assert scores(name) == pytest.approx(BY_HAND[name])
    for variant, same in (("same-sign", True), ("diff-sign", False)):
        want = [value if is_same is same else -math.inf for value, is_same in zip(BY_HAND[name], SAME, strict=True)]
        assert scores(f"{name}-{variant}") == pytest.approx(want)


def test_every_criterion_has_its_answer() -> None:
    assert {*BY_HAND, "random"} == {*PLAIN}
    assert len(CRITERIA) == 27
    assert scores("random") == scores("random", 0) != scores("random", 1)
    assert scores("random-diff-sign")[:2] == [-math.inf, -math.inf]


def kept(name: str, mask: list[bool], n_kept: int) -> list[bool]:
    found: list[bool] = kept_by(
        CRITERIA[name], torch.tensor([mask]), INITIAL[None], FINAL[None], n_kept=n_kept, random=torch.Generator()
    ).tolist()[0]
    return found


def test_pruning_by_hand() -> None:
    every = [True] * 4
    assert kept("large-final", every, 2) == [True, False, True, False]
    assert kept("large-final", [False, True, True, True], 2) == [False, True, True, False]  # what is gone stays away
    assert kept("large-final-same-sign", every, 3) == [True, True, False, False]  # fewer, but none of the other kind
    assert kept("movement-diff-sign", every, 1) == [False, False, True, False]
    assert kept("large-final-same-sign", [False, False, True, True], 1) == [False] * 4
    tied = torch.ones(1, 4)
    found = kept_by(
        CRITERIA["large-final"], tied.bool(), tied, tied, n_kept=2, random=torch.Generator()
    )  # equal ones in order of index
    assert found.tolist() == [[True, True, False, False]]


def test_the_last_layer_is_pruned_at_half_the_rate() -> None:
    assert layer_ends(["a", "b", "c"], density=0.64) == {"a": 0.64, "b": 0.64, "c": 0.8}
    assert layer_ends(["a"], density=0.64) == {"a": 0.64}
    assert layer_ends(["a", "b"], density=0.64, last=0.1) == {"a": 0.64, "b": 0.1}
    for options, name in (({"density": 0.0}, "density"), ({"density": 1.0, "last": 2.0}, "last_density")):
        with pytest.raises(ArgumentError) as caught:
            layer_ends(["a", "b"], **options)
        assert caught.value.name == name


def small(dataset: Dataset) -> nn.Module:
    mean, std = dataset.statistics()
    torch.manual_seed(0)
    return architectures.build(named_nets.architecture("mlp:64-32-10", input_shape=(1, 8, 8), mean=mean, std=std))


@pytest.mark.parametrize("base", ["normal", "uniform", "signed"])
def test_initial_weights_are_those_of_the_seed(digits_data: Dataset, base: str) -> None:
    net = small(digits_data)
    start = initial_model(net, origins_of(net, base=base), seed=7)
    for stream, name in enumerate(("2.weight", "4.weight")):
        weights = start.get_parameter(name).detach()
        unit = base_weights(base, 7, stream=stream, start=0, n_weights=weights.numel()).view(weights.shape)
        scale = float(weights[0, 0] / unit[0, 0])
        assert torch.allclose(weights, unit * scale)
        assert float(weights.square().mean().sqrt()) == pytest.approx(math.sqrt(2 / weights.shape[1]), rel=0.1)
    assert not start.get_parameter("2.bias").any()
    assert net.get_parameter("2.bias").any()  # a copy
    with pytest.raises(UnsupportedError) as caught:
        origins_of(net, base="values")
    assert caught.value.got == "values"


def test_spreads_of_initial_weights() -> None:
    net = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 10))
    found = {spread: origins_of(net, spread=spread) for spread in SPREADS}
    for name in ("0.weight", "3.weight"):
        torch.manual_seed(0)
        drawn = {
            "he": nn.init.kaiming_normal_(torch.empty(net.get_parameter(name).shape)),
            "glorot": nn.init.xavier_normal_(torch.empty(net.get_parameter(name).shape)),
        }
        for spread, values in drawn.items():
            assert float(found[spread][name].deviation) == pytest.approx(float(values.std()), rel=0.1)
    assert float(found["glorot"]["0.weight"].deviation) == pytest.approx(math.sqrt(2 / (27 + 576)))
    with pytest.raises(UnsupportedError) as caught:
        origins_of(net, spread="wide")
    assert (caught.value.what, caught.value.got, caught.value.known) == ("spread", "wide", ("he", "glorot"))


def ticket(dataset: Dataset, *, epochs: int = 4, **options) -> Ticket:
    batches = Batches(dataset, batch_size=128, seed=0)
    return find_ticket(small(dataset), batches, epochs=epochs, **({"density": 0.3, "seed": 5} | options))


def both(found: Ticket, dataset: Dataset, name: str = "2.weight") -> tuple[Tensor, Tensor, Tensor]:
    """Mask, weights of the ticket and initial weights of a layer."""
    net = small(dataset)
    start = initial_model(net, origins_of(net), seed=5)
    return found.masks[name], found.model.get_parameter(name).detach(), start.get_parameter(name).detach()


def test_treatments_of_kept_weights(digits_data: Dataset) -> None:
    def weights(kept: str, signs: str, pruned: str = "zero") -> tuple[Tensor, Tensor]:
        mask, got, initial = both(ticket(digits_data, epochs=1, treatment=Treatment(kept, signs, pruned)), digits_data)
        assert torch.equal(got[~mask], initial[~mask] if pruned == "initial" else torch.zeros(int((~mask).sum())))
        return got[mask], initial[mask]

    for name in ("rewind", "reinit", "constant", "reshuffle"):
        for signs, least, most in (("kept", 1.0, 1.0), ("random", 0.4, 0.6)):
            got, initial = weights(name, signs)
            assert least <= float((got.sign() == initial.sign()).float().mean()) <= most
            same = float((got.abs() == initial.abs()).float().mean())
            assert (same == 1) if name == "rewind" else same < 0.05
            if name == "constant":
                assert got.abs().unique().tolist() == pytest.approx([math.sqrt(2 / 64)], rel=0.01)
            if name == "reshuffle":
                assert torch.equal(got.abs().sort().values, initial.abs().sort().values)
            if name == "reinit":
                assert float(got.square().mean()) == pytest.approx(2 / 64, rel=0.2)
    got, initial = weights("rewind", "kept", "initial")
    assert torch.equal(got, initial)
    with pytest.raises(UnsupportedError) as caught:
        Treatment("rewound")
    assert (caught.value.what, caught.value.got) == ("kept", "rewound")


@pytest.mark.parametrize(
    ("treatment", "base", "flips"),
    [
        (Treatment(), "normal", False),
        (Treatment("rewind", "random"), "normal", True),
        (Treatment("reinit"), "normal", True),
        (Treatment("reinit", "random"), "normal", False),
        (Treatment("constant"), "signed", True),
        (Treatment("constant", "random"), "signed", False),
    ],
)
def test_a_file_holds_the_ticket_exactly(
    digits_data: Dataset, tmp_path: Path, treatment: Treatment, base: str, flips: bool
) -> None:
    found = ticket(digits_data, epochs=1, treatment=treatment, criterion="movement")
    smask.save(found.model, tmp_path / "t.smask")
    report = smask.inspect(tmp_path / "t.smask")
    assert report.seed == 5
    said = {"ticket.criterion": "movement"}
    said |= {} if treatment.kept == "rewind" else {"ticket.kept": treatment.kept}
    said |= {} if treatment.signs == "kept" else {"ticket.signs": treatment.signs}
    assert report.meta == said
    assert {tensor.base for tensor in report.tensors if tensor.n_planes} == {base}
    assert all((coded.flip is not None) is flips for coded in recipe_of(found.model).coded.values())
    loaded = smask.load(tmp_path / "t.smask")
    for name, value in found.model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    assert smask.verify(tmp_path / "t.smask").same


def test_what_no_file_holds_is_refused(digits_data: Dataset, tmp_path: Path) -> None:
    for treatment, name in ((Treatment("reshuffle"), "kept"), (Treatment(pruned="initial"), "pruned")):
        with pytest.raises(ArgumentError) as caught:
            treatment.check_file()
        assert caught.value.name == name
        found = ticket(digits_data, epochs=1, treatment=treatment)
        with pytest.raises(ArgumentError):
            smask.save(found.model, tmp_path / "t.smask")
        assert bool(found.outside) is (name == "pruned")
    for options, name in (({"rounds": 0}, "rounds"), ({"seed": 2**64}, "seed"), ({"density": 2.0}, "density")):
        with pytest.raises(ArgumentError) as caught:
            ticket(digits_data, **options)
        assert caught.value.name == name
    with pytest.raises(UnsupportedError) as unknown:
        ticket(digits_data, criterion="large")
    assert unknown.value.known == tuple(CRITERIA)


def test_rounds_keep_a_part_of_what_was_kept(digits_data: Dataset) -> None:
    nets = []
    found = ticket(digits_data, density=0.125, rounds=3, trained=lambda n, one: nets.append((n, one)))
    assert [n for n, _ in nets] == [1, 2, 3]
    counts = [{name: int(mask.sum()) for name, mask in one.masks.items()} for _, one in nets] + [
        {name: int(mask.sum()) for name, mask in found.masks.items()}
    ]
    assert [one["2.weight"] for one in counts] == [2048, 1024, 512, 256]
    assert [one["4.weight"] for one in counts] == [round(320 * 0.125 ** (r / 6)) for r in range(4)]
    masks = [one.masks["2.weight"] for _, one in nets] + [found.masks["2.weight"]]
    assert all(bool((before | ~after).all()) for before, after in itertools.pairwise(masks))
    for (_, one), mask in zip(nets, masks, strict=False):  # each round trained what was kept then, and nothing else
        assert torch.equal(one.model.get_parameter("2.weight") != 0, mask)


def test_a_resumed_ticket_ends_in_the_same_bytes(digits_data: Dataset, tmp_path: Path) -> None:
    def data(found: Ticket) -> bytes:
        return smask.encode(found.model.state_dict(), recipe_of(found.model))

    class StoppedError(Exception):
        pass

    def stop(n_round: int, _: object) -> None:
        if n_round == 2:
            raise StoppedError

    options = {"rounds": 3, "criterion": "random", "epochs": 2}
    whole = data(ticket(digits_data, **options))
    with pytest.raises(StoppedError):
        ticket(digits_data, trained=stop, checkpoints=Rounds(tmp_path), **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["round-001", "round-002"]
    torch.manual_seed(3)
    assert data(ticket(digits_data, checkpoints=Rounds(tmp_path, resume=True), **options)) == whole
    with pytest.raises(ResumeError) as caught:
        ticket(digits_data, checkpoints=Rounds(tmp_path, resume=True), **(options | {"criterion": "movement"}))
    assert [name for name, _, _ in caught.value.differences] == ["criterion"]
    with pytest.raises(ArgumentError) as refused:
        Rounds(tmp_path)
    assert "--resume" in refused.value.want
    with pytest.raises(ArgumentError) as refused:
        Rounds(tmp_path / "round-001", resume=True)  # a folder of one training
    assert refused.value.name == "checkpoint"
