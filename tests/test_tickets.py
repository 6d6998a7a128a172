"""Lottery tickets: criteria and treatments by hand, what a file holds, rounds that go on, the command line."""

import copy
import itertools
import json
import math
import os
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import smask
from smask import architectures, named_nets
from smask.bases import base_weights
from smask.cli.main import main
from smask.errors import ArgumentError, ResumeError, UnsupportedError
from smask.recipe import recipe_of
from smask.runs.rounds import Rounds
from smask.search.data import Batches, Dataset
from smask.training.criteria import CRITERIA, PLAIN, kept_by
from smask.training.initial import initial_model, origins_of
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


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, weight_decay=0.1, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01, weight_decay=0.1),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=2),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("copied", [False, True])
def test_masks_hold_under_any_optimizer(found: nn.Module, digits_data: Dataset, name: str, copied: bool) -> None:
    data = smask.encode(found.state_dict(), recipe_of(found))
    net, plain = smask.load(data, trainable=True), smask.load(data)
    assert net.training
    assert list(net.state_dict()) == list(plain.state_dict())
    if copied:
        net = pickle.loads(pickle.dumps(copy.deepcopy(net)))
    optimizer = OPTIMIZERS[name](net.parameters())
    for (x, y), _ in zip(Batches(digits_data, batch_size=256, seed=0), range(4), strict=False):

        def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(x), y)
            loss.backward()
            return loss

        optimizer.step(closure)
    for tensor in recipe_of(found).coded:
        weights, before = net.get_parameter(tensor), plain.get_parameter(tensor)
        assert not weights[before == 0].view(torch.int32).any()
        assert (weights != before)[before != 0].any()
    saved = smask.encode(net.state_dict(), recipe_of(net))
    assert torch.equal(smask.load(saved).state_dict()["2.weight"], net.state_dict()["2.weight"])


def test_an_optimizer_that_mixes_weights_is_put_right(found: nn.Module, digits_data: Dataset) -> None:
    net = smask.load(smask.encode(found.state_dict(), recipe_of(found)), trainable=True)
    weight = net.get_parameter("2.weight")
    outside = weight == 0
    optimizer = torch.optim.Muon([weight], lr=0.1)
    x, y = next(iter(Batches(digits_data, batch_size=256, seed=0)))
    nn.functional.cross_entropy(net(x), y).backward()
    optimizer.step()
    assert weight[outside].any()
    assert not net.state_dict()["2.weight"][outside].any()


def test_only_tickets_are_trainable(found: nn.Module, digits_data: Dataset) -> None:
    state, recipe = found.state_dict(), recipe_of(found)
    with pytest.raises(ArgumentError) as caught:
        smask.load(smask.encode(state, recipe), trainable=True, packed=True)
    assert caught.value.name == "packed"
    stored = smask.encode({name: value.clone() for name, value in state.items()}, without_masks(recipe))
    planes = smask.find_masks(
        small(digits_data), Batches(digits_data, batch_size=256, seed=0), method="multicoat", density=0.3, epochs=1
    )
    empty = copy.deepcopy(found)
    coded = dict(recipe.coded)
    name = next(iter(coded))
    coded[name] = type(coded[name])(**{**vars(coded[name]), "planes": (torch.zeros_like(coded[name].planes[0]),)})
    with torch.no_grad():
        empty.get_parameter(name).zero_()
    nothing = smask.encode(empty.state_dict(), type(recipe)(recipe.seed, coded, recipe.arch))
    for data, word in (
        (stored, "no mask"), (smask.encode(planes.state_dict(), recipe_of(planes)), "2 planes"), (nothing, "keeps nothing"),
    ):  # fmt: skip
        with pytest.raises(ArgumentError) as caught:
            smask.load(data, trainable=True)
        assert caught.value.name == "file"
        assert word in str(caught.value.got)


def without_masks(recipe):
    return type(recipe)(recipe.seed, {}, recipe.arch)


FAST = ["--arch", "mlp:64-48-10", "--epochs", "40", "--device", "cpu", "-q"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def printed(capsys: pytest.CaptureFixture[str], *words: object) -> dict:
    capsys.readouterr()
    assert main([*map(str, words), "--json"]) == 0
    report: dict = json.loads(capsys.readouterr().out)
    return report


def test_from_data_to_a_trained_file(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole way on digits: a dense rival, a ticket in two rounds, its training, that of reshuffled weights."""
    dense = printed(capsys, "train", "-o", "dense.smask", *FAST)
    found = printed(capsys, "ticket", "--rounds", 2, "--density", 0.2, "-o", "t.smask", *FAST)
    assert len(found["rounds"]) == 2
    assert found["rounds"][0]["accuracy"] == dense["accuracy"] > 0.93
    assert found["n_bytes"] < dense["n_bytes"] / 15
    trained = printed(capsys, "train", "t.smask", "--log", "log.jsonl", *FAST[2:])
    assert trained["file"] == "t-trained.smask"
    assert trained["untrained"] == {key: found[key] for key in ("accuracy", "loss")}
    assert trained["accuracy"] > 0.9
    assert trained["n_kept"] == found["n_kept"] - int(0.2**0.5 * 480 + 0.5)  # small tensors are stored whole
    weights, start = smask.load("t-trained.smask").state_dict(), smask.load("t.smask").state_dict()
    for name in ("2.weight", "4.weight"):
        assert torch.equal(weights[name] != 0, start[name] != 0)
    log = [json.loads(line) for line in (here / "log.jsonl").read_text().splitlines()]
    assert [log[0]["event"], log[-1]["event"], log[-1]["accuracy"]] == ["begin", "result", trained["accuracy"]]
    small = printed(capsys, "train", "t.smask", "--target-size", "1500", "-o", "small.smask", *FAST[2:])
    assert 1400 < small["n_bytes"] <= 1500 < trained["n_bytes"]
    assert small["accuracy"] > 0.8
    shuffled = printed(capsys, "ticket", "--kept", "reshuffle", "--pruned", "initial", "--train", *FAST)
    assert shuffled["file"] == "digits-trained.smask"
    assert shuffled["accuracy"] > 0.8 > shuffled["untrained"]["accuracy"]
    again = printed(capsys, "eval", "digits-trained.smask")
    assert again["accuracy"] == shuffled["accuracy"]


def test_interrupted_commands_go_on(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["ticket", "--rounds", "3", "--train", *FAST[:2], "--epochs", "2", "-q"]
    whole = printed(capsys, *words, "-o", "whole.smask")
    from smask.training import tickets

    calls = []

    def interrupted(*arguments, **options):
        calls.append(options["settings"]["round"])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    real = tickets.train_weights
    monkeypatch.setattr(tickets, "train_weights", interrupted)
    assert main([*words, "--checkpoint", "run", "-o", "t.smask"]) == 130
    assert "round-001" in capsys.readouterr().err
    assert not (here / "t.smask").exists()
    again = printed(capsys, *words, "--checkpoint", "run", "--resume", "-o", "t.smask")
    assert (here / "t.smask").read_bytes() == (here / "whole.smask").read_bytes()
    assert again["rounds"] == whole["rounds"]
    for other in (["--criterion", "movement"], ["--lr", "0.01"], ["--rounds", "4"]):
        assert main([*words, *other, "--checkpoint", "run", "--resume", "-o", "u.smask"]) == 2
        assert "holds checkpoints of another search" in capsys.readouterr().err
    assert main(["train", *FAST, "--checkpoint", "run/round-001", "--resume"]) == 2
    assert "round is 1 there and None here" in capsys.readouterr().err
    assert sorted(os.listdir(here)) == ["run", "t.smask", "whole.smask"]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["ticket", "--density", "0"], 2, ["--density", "above 0"]),
        (["ticket", "--last-density", "2"], 2, ["--last-density"]),
        (["ticket", "--rounds", "0"], 2, ["--rounds"]),
        (["ticket", "--criterion", "luck"], 4, ["luck", "large-final-same-sign", "movement"]),
        (["ticket", "--kept", "all"], 4, ["all", "reshuffle"]),
        (["ticket", "--signs", "all"], 4, ["signs", "random"]),
        (["ticket", "--pruned", "all"], 4, ["pruned", "initial"]),
        (["ticket", "--kept", "reshuffle"], 2, ["kept", "reshuffle", "--train"]),
        (["ticket", "--pruned", "initial"], 2, ["pruned", "initial", "--train"]),
        (["ticket", "--target-size", "4kB"], 2, ["--target-size", "--train"]),
        (["ticket", "--criterion", "large-final-diff-sign", "--epochs", "3", "--lr", "1e-9"], 2, ["diff-sign", "keeps a weight of"]),
        (["train", "--base", "cauchy"], 4, ["cauchy", "normal"]),
        (["train", "--optimizer", "lion"], 4, ["lion", "adam"]),
        (["train", "--rate", "linear"], 4, ["linear", "cosine"]),
        (["train", "--epochs", "0"], 2, ["--epochs"]),
        (["train", "--lr", "nan"], 2, ["lr"]),
        (["train", "--weight-decay", "-1"], 2, ["weight_decay"]),
        (["train", "--resume"], 2, ["--resume", "--checkpoint"]),
        (["train", "--target-size", "small"], 2, ["--target-size", "kB"]),
        (["train", "--task", "lm"], 2, ["--task lm", "--data"]),
        (["train", "missing.smask"], 3, ["missing.smask"]),
        (["train", "mask.smask", "--arch", "conv2"], 2, ["--arch", "FILE"]),
        (["train", "mask.smask", "--data", "nowhere"], 3, ["nowhere", "not found"]),
        (["train", "dense.smask"], 2, ["no mask", "smask ticket"]),
        (["train", "junk.smask"], 3, ["not a valid smask file"]),
        (["train", "--lr", "1e30", "--epochs", "3"], 1, ["the loss was", "step"]),
    ],
)  # fmt: skip
def test_what_the_commands_refuse(
    here: Path, found: nn.Module, capsys: pytest.CaptureFixture[str], words: list[str], code: int, said: list[str]
) -> None:
    smask.save(found, here / "mask.smask")
    (here / "dense.smask").write_bytes(smask.encode(found.state_dict(), without_masks(recipe_of(found))))
    (here / "junk.smask").write_bytes(b"junk")
    assert main([*words, "-q"]) == code
    line = capsys.readouterr().err
    assert all(word in line for word in said), line
    assert sorted(os.listdir(here)) == ["dense.smask", "junk.smask", "mask.smask"]
