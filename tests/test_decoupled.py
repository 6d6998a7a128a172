"""Decoupled searches: nets in blocks, guides by hand-computed answers, whole searches, what is refused."""

import json
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import smask
from conftest import convolutional
from smask import architectures, named_nets
from smask.cli.main import main
from smask.errors import ArchitectureError, ArgumentError, CheckpointError, ResumeError, UnsupportedError
from smask.recipe import recipe_of
from smask.search.accuracy import score
from smask.search.blocks import Block, cut, shapes_between
from smask.search.data import Batches, Dataset
from smask.search.decoupled import LAG, DecoupledSearch
from smask.search.guides import DECOUPLINGS, RATE, Generator, LocalClassifier
from smask.search.initialisation import masked_weights
from smask.search.methods import METHODS
from smask.search.objective import Objective
from smask.search.plan import check_options, planned
from smask.search.precision import Precision
from smask.search.progress import Progress
from smask.search.ranks import Ranks
from smask.search.schedule import Schedule
from smask.search.steps import Search
from smask.search.weights import maskable
from smask.search.wires import Inside
from test_ranks import Held

CPU = torch.device("cpu")
WAYS: list[dict[str, Any]] = [{"decouple": "dni"}, {"decouple": "dni", "dni_labels": True}, {"decouple": "local"}]


def net(dataset: Dataset, widths: str = "64-48-32-10") -> nn.Module:
    mean, std = dataset.statistics()
    torch.manual_seed(0)
    return architectures.build(named_nets.architecture(f"mlp:{widths}", input_shape=(1, 8, 8), mean=mean, std=std))


def search(dataset: Dataset, **options: Any) -> nn.Module:
    model = options.pop("model", None) or net(dataset)
    batches = options.pop("batches", None) or Batches(dataset, batch_size=64, seed=2)
    return smask.find_masks(model, batches, **{"density": 0.3, "epochs": 4, "seed": 1, **options})


def encoded(model: nn.Module) -> bytes:
    return smask.encode(model.state_dict(), recipe_of(model))


def blocks_of(*widths: int, n_blocks: int | None = None) -> tuple[Block, ...]:
    chain = [nn.Flatten()]
    for inputs, outputs in pairwise(widths):
        chain += [nn.Linear(inputs, outputs), nn.ReLU()]
    model = nn.Sequential(*chain)
    return cut(model, maskable(model), n_blocks)


# Cutting


def test_a_block_begins_at_each_masked_module() -> None:
    blocks = blocks_of(6, 5, 4, 3)
    assert [[type(m).__name__ for m in block.modules] for block in blocks] == [
        ["Flatten", "Linear", "ReLU"], ["Linear", "ReLU"], ["Linear", "ReLU"],
    ]  # fmt: skip
    assert [block.masked for block in blocks] == [("1.weight",), ("3.weight",), ("5.weight",)]
    assert blocks[1].names == {"3.weight", "3.bias"}


@pytest.mark.parametrize(
    ("widths", "n_blocks", "masked"),
    [
        # 784 x 256 of 399,872 weights are half of them
        ((784, 256, 256, 256, 256, 10), 2, [1, 4]),
        # 2 of 8 and 6 of 8: 4 x 1, 1 x 4, 4 x 1, 1 x 4, 4 weights each
        ((4, 1, 4, 1, 4), 2, [2, 2]),
        ((4, 1, 4, 1, 4), 3, [1, 2, 1]),
        # the first has nearly all; each of the others has still one
        ((100, 100, 2, 2, 2), 4, [1, 1, 1, 1]),
        ((2, 2, 2, 100, 100), 3, [2, 1, 1]),
    ],
)
def test_blocks_have_about_as_many_weights(widths: Sequence[int], n_blocks: int, masked: list[int]) -> None:
    assert [len(block.masked) for block in blocks_of(*widths, n_blocks=n_blocks)] == masked


def test_chains_in_chains_and_residuals() -> None:
    model = architectures.build(named_nets.architecture("resnet20"))
    blocks = cut(model, maskable(model), None)
    assert len(blocks) == 1 + 9 + 1  # a residual block is not cut
    assert blocks[1].masked == ("layer1.0.conv1.weight", "layer1.0.conv2.weight")
    assert sorted(name for block in blocks for name in block.masked) == sorted(maskable(model))
    shapes = shapes_between(blocks, torch.rand(2, 3, 32, 32))
    assert (shapes[0], shapes[4], shapes[-1]) == ((2, 16, 32, 32), (2, 32, 16, 16), (2, 10))


def test_looking_at_shapes_changes_nothing() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 2))
    model[2].eval()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert shapes_between(cut(model, maskable(model), None), torch.rand(5, 3)) == ((5, 4), (5, 2))
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert [module.training for module in model] == [True, True, False, True]


def tied() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    return model


class Other(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(3, 4), nn.Linear(4, 2)


@pytest.mark.parametrize(
    ("model", "n_blocks", "name"),
    [
        (Other(), None, "decouple"), (nn.Linear(3, 4), None, "decouple"), (nn.Sequential(nn.Linear(3, 4)), None, "decouple"),
        (tied(), None, "decouple"), (nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), 3, "blocks"),
        (nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), 1, "blocks"),
    ],
)  # fmt: skip
def test_nets_that_cannot_be_cut(model: nn.Module, n_blocks: int | None, name: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        cut(model, maskable(model), n_blocks)
    assert caught.value.name == name


def test_weights_shared_inside_a_block_are_no_obstacle() -> None:
    model = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    model[2].weight = model[1].weight
    assert [len(block.masked) for block in cut(model, maskable(model), 2)] == [1, 1]


# Guides


def half_square(outputs: Tensor, targets: Tensor) -> Tensor:
    return ((outputs - targets) ** 2).sum(1).mean() / 2


def searches(model: nn.Sequential, way: str, *, labels: bool) -> tuple[Search, DecoupledSearch]:
    """An ordinary search and a decoupled one, of copies of the same net."""
    made = []
    for decoupled in (False, True):
        copy = nn.Sequential(*(nn.Linear(m.in_features, m.out_features) for m in model))
        copy.load_state_dict(model.state_dict())
        weights = maskable(copy)
        layers = masked_weights(weights, dict.fromkeys(weights, 0.5), METHODS["single"])
        schedule, rest = (
            Schedule.of(100, lr=1e-3, hold=0.5, settle=0.1),
            {"precision": Precision("fp32", CPU), "seed": 0},
        )
        if decoupled:
            plan = planned(way, copy, weights, blocks=None, labels=labels, ranks=Ranks(None, CPU))
            assert plan is not None
            made.append(DecoupledSearch(copy, layers, schedule, plan=plan, ranks=Ranks(None, CPU), **rest))
        else:
            made.append(Search(copy, layers, schedule, **rest))
        made[-1].prepare(refresh=True)
        made[-1].write()
    return made[0], made[1]


def test_an_exact_generator_gives_the_ordinary_step() -> None:
    torch.manual_seed(0)
    plain, decoupled = searches(nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3), nn.Linear(3, 2)), "dni", labels=True)
    x, y = torch.randn(7, 5), torch.randn(7, 2)
    decoupled._shapes_for(x, y)  # makes the generators
    weights = [m.weight.detach().double() for m in decoupled.model]
    biases = [m.bias.detach().double() for m in decoupled.model]
    with torch.no_grad():
        # The loss is |M h + c - y|^2 / 2 where M h + c is all that comes behind h: its gradient is M^T (M h + c - y).
        for place, (m, c) in enumerate(
            [(weights[2] @ weights[1], weights[2] @ biases[1] + biases[2]), (weights[2], biases[2])]
        ):
            guide = decoupled._guides[place]
            guide.map.weight.copy_(m.T @ m)
            guide.map.bias.copy_(m.T @ c)
            guide.term.weight.copy_(-m.T)
    totals = [float(one.gradients([(x, y)], Objective(half_square), None)) for one in (plain, decoupled)]
    assert totals[0] == totals[1]
    for name, layer in plain.layers.items():
        other = decoupled.layers[name]
        assert layer.latent.grad.norm() > 0
        assert torch.allclose(layer.latent.grad, other.latent.grad, rtol=1e-4, atol=1e-6)
        assert torch.allclose(layer.scale.grad, other.scale.grad, rtol=1e-4, atol=1e-6)
    for one, other in zip(plain.model, decoupled.model, strict=True):
        assert torch.allclose(one.bias.grad, other.bias.grad, rtol=1e-4, atol=1e-6)


def test_an_untrained_generator_moves_nothing_but_the_last_block() -> None:
    torch.manual_seed(0)
    _, decoupled = searches(nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 2)), "dni", labels=False)
    decoupled.gradients([(torch.randn(7, 5), torch.randn(7, 2))], Objective(half_square), None)
    first, last = decoupled.layers.values()
    assert not first.latent.grad.any()
    assert last.latent.grad.any()


def test_a_generator_predicts_for_one_input_and_learns_by_squares() -> None:
    guide = Generator(torch.Size([2, 2]), 3, several=False)
    guide.ready(CPU)
    outputs, labels = torch.tensor([[1.0, 2.0], [3.0, -1.0]]), torch.tensor([2, 0])
    gradient = torch.tensor([[0.5, -1.0], [0.25, 0.0]])  # of a mean over two inputs: twice that is wanted
    # Errors are 0 - 2 g; their products with outputs, summed: [[-1, 2], [-.5, 0]]^T @ outputs = [[-2.5, -1.5], [2, 4]].
    guide.correct(outputs, labels, gradient, 0.5)
    assert torch.allclose(guide.map.weight.grad, torch.tensor([[-2.5, -1.5], [2.0, 4.0]]) * 2 / 4)
    assert torch.allclose(guide.term.weight.grad, torch.tensor([[-0.5, 0.0], [0.0, 0.0], [-1.0, 2.0]]) * 2 / 4)
    # The first step of Adam is the rate in the direction against the sign.
    step = RATE / 2
    assert torch.allclose(guide.map.weight, step * torch.tensor([[1.0, 1.0], [-1.0, -1.0]]), atol=1e-7)
    assert torch.allclose(guide.map.bias, step * torch.tensor([1.0, -1.0]), atol=1e-7)
    expected = step * torch.tensor([[3.0 + 1 + 1, -3.0 - 1 - 1], [2.0 + 1 + 1, -2.0 - 1 - 0]]) / 2
    assert torch.allclose(guide.predicted(outputs, labels), expected, atol=1e-7)


def test_a_generator_brings_its_prediction_into_the_block() -> None:
    guide = Generator(torch.Size([2, 2]), 0, several=False)
    guide.ready(CPU)
    with torch.no_grad():
        guide.map.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
        guide.map.bias.copy_(torch.tensor([0.0, 1.0]))
    weight = torch.tensor([[1.0, -1.0]], requires_grad=True)
    x = torch.tensor([[2.0], [4.0]])
    guide.backward(x @ weight, x, None, Objective(half_square), 1.0)
    # outputs [[2, -2], [4, -4]]: predictions [[2, -3], [4, -7]] / 2; times inputs 2 and 4: (4 + 16) / 2, (-6 - 28) / 2
    assert torch.equal(weight.grad, torch.tensor([[10.0, -17.0]]))
    assert guide.map.weight.grad is None


@pytest.mark.parametrize(
    ("shape", "y", "n"),
    [
        ((3, 4), torch.zeros(3, dtype=torch.long), 10), ((3, 5, 4), torch.zeros(3, 5, dtype=torch.long), 10),
        ((3, 4, 6, 6), torch.zeros(3, dtype=torch.long), 10), ((3, 4), torch.ones(3, 7), 7), ((3, 5, 4), torch.ones(3, 7), 7),
    ],
)  # fmt: skip
def test_generators_of_vectors_sequences_and_images(shape: tuple[int, ...], y: Tensor, n: int) -> None:
    outputs = torch.Size([3, 5, 10]) if y.dim() == 2 and not y.is_floating_point() else torch.Size([3, 10])
    guide = DECOUPLINGS["dni"].guide(torch.Size(shape), outputs, y, True)
    guide.ready(CPU)
    assert isinstance(guide, Generator)
    assert n in guide.term.weight.shape
    gradient = torch.randn(shape)
    guide.correct(torch.randn(shape), y, gradient, 1.0)
    assert guide.predicted(torch.randn(shape), y).shape == shape
    assert all(parameter.grad.any() for parameter in guide.parameters())


@pytest.mark.parametrize("y", [None, torch.zeros(3, 5, dtype=torch.long), torch.zeros(3), {"a": torch.zeros(3)}])
def test_labels_that_a_generator_cannot_see(y: Any) -> None:
    with pytest.raises(ArgumentError) as caught:
        DECOUPLINGS["dni"].guide(torch.Size([3, 4]), torch.Size([3, 10]), y, True)
    assert caught.value.name == "dni_labels"


def test_a_local_classifier_and_its_block_learn_from_one_loss() -> None:
    guide = LocalClassifier(torch.Size([1, 2]), torch.Size([1, 2]))
    guide.ready(CPU)
    with torch.no_grad():
        guide.map.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    weight = torch.tensor([[1.0, 1.0]], requires_grad=True)
    x = torch.tensor([[math.log(3.0)]])
    guide.backward(x @ weight * torch.tensor([[1.0, 0.0]]), x, torch.tensor([1]), Objective(F.cross_entropy), 0.5)
    # Logits (log 3, 0): probabilities 3/4 and 1/4, their gradient (3/4, -3/4); only the first reaches the block.
    assert torch.allclose(weight.grad, torch.tensor([[0.75 * math.log(3.0), 0.0]]))
    assert torch.allclose(guide.map.bias, torch.tensor([-RATE / 2, RATE / 2]), atol=1e-7)


def test_a_local_classifier_averages_places() -> None:
    for shape, outputs, n in (((5, 3, 4, 4), (5, 2), 12), ((5, 7, 4), (5, 2), 4), ((5, 7, 4), (5, 7, 2), 4)):
        guide = LocalClassifier(torch.Size(shape), torch.Size(outputs))
        assert guide.map.in_features == n
        assert guide(torch.rand(shape)).shape == outputs
    with torch.no_grad():
        guide = LocalClassifier(torch.Size([1, 2, 1]), torch.Size([1, 1]))
        guide.map.weight.fill_(3.0)
        guide.map.bias.zero_()
        assert guide(torch.tensor([[[1.0], [2.0]]])).tolist() == [[4.5]]
    for outputs in ((5, 2, 4, 4), (5, 4, 2)):
        with pytest.raises(ArgumentError) as caught:
            LocalClassifier(torch.Size([5, 3, 4, 4]), torch.Size(outputs))
        assert caught.value.name == "decouple"


def test_answers_come_in_the_order_of_what_was_sent() -> None:
    wire, tensors = Inside(), [torch.full((1,), float(i)) for i in range(3)]
    waits = [wire.send(tensor, answered=True) for tensor in tensors]
    for _ in tensors:
        wire.answer(wire.take(tensors[0]) * 10)
    assert [float(wait()) for wait in waits if wait] == [0, 10, 20]
    assert wire.send(tensors[0], answered=False) is None


def test_a_generator_learns_from_the_answer_of_an_earlier_step() -> None:
    torch.manual_seed(0)
    _, decoupled = searches(nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 2)), "dni", labels=False)
    moved = []
    for _ in range(LAG + 2):
        decoupled.gradients([(torch.randn(7, 5), torch.randn(7, 2))], Objective(half_square), None)
        moved.append(bool(decoupled._guides[0].map.weight.any()))
    assert moved == [False] * LAG + [True, True]
    assert len(decoupled._unanswered[0]) == LAG


# Whole searches


@pytest.mark.parametrize("way", WAYS)
def test_learns_digits(digits_data: Dataset, way: dict[str, Any]) -> None:
    found = search(digits_data, epochs=16, **way)
    # Without labels synthetic gradients end anywhere between 0.53 and 0.83, as the seed has it; all others above 0.86.
    assert score(found, digits_data).accuracy > (0.45 if way == {"decouple": "dni"} else 0.8)
    assert smask.verify(encoded(found)).same


@pytest.mark.parametrize("way", WAYS)
def test_norms_dropout_and_images(digits_data: Dataset, way: dict[str, Any]) -> None:
    model = convolutional(digits_data, features=12, dropout=0.1)
    found = search(digits_data, model=model, epochs=10, density=0.5, **way)
    assert score(found, digits_data).accuracy > 0.7
    assert int(found.state_dict()["2.num_batches_tracked"]) == 220


def test_guides_make_a_difference(digits_data: Dataset) -> None:
    found = {
        json.dumps(way): encoded(search(digits_data, epochs=2, **way))
        for way in ({}, *WAYS, {"decouple": "dni", "blocks": 2})
    }
    assert len({*found.values()}) == len(found)


def test_a_size_a_validation_and_a_teacher(digits_data: Dataset) -> None:
    seen: list[Progress] = []
    found = search(
        digits_data, decouple="dni", dni_labels=True, target=smask.TargetSize("900"), teacher=net(digits_data), teacher_weight=0.1,
        validate=lambda model: score(model, digits_data).accuracy, progress=seen.append, precision="bf16", epochs=6,
    )  # fmt: skip
    assert 890 <= len(encoded(found)) <= 900
    assert seen[-1].validation is not None
    assert seen[-1].accuracy is not None
    assert (seen[-1].step, seen[-1].n_steps) == (6 * 22, 6 * 22)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("step", [1, 80])
def test_resumed_to_the_same_bytes(digits_data: Dataset, way: dict[str, Any], step: int) -> None:
    # The first has fewer steps than answers that are waited for, masks are fixed at the last.
    held = Held(step)
    whole = search(digits_data, checkpoints=held, **way)
    assert held.held is not None
    torch.manual_seed(99)
    assert encoded(search(digits_data, checkpoints=Held(0, held.held), **way)) == encoded(whole)


def test_a_state_that_is_not_of_these_guides(digits_data: Dataset) -> None:
    held = Held(3)
    search(digits_data, checkpoints=held, decouple="dni")
    assert held.held is not None
    del held.held.tensors["guide.0.parameter.map.weight"]
    with pytest.raises(CheckpointError) as caught:
        search(digits_data, checkpoints=Held(0, held.held), decouple="dni")
    assert "guides" in caught.value.reason


# What is refused


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"blocks": 2}, "blocks"), ({"dni_labels": True}, "dni_labels"), ({"decouple": "local", "dni_labels": True}, "dni_labels"),
        ({"decouple": "dni", "shard": True}, "shard"), ({"decouple": "dni", "accumulate": 2}, "accumulate"),
        ({"decouple": "dni", "precision": "fp16"}, "precision"), ({"decouple": "dni", "blocks": 1}, "blocks"),
        ({"decouple": "dni", "blocks": 4}, "blocks"), ({"decouple": "dni", "model": Other()}, "decouple"),
    ],
)  # fmt: skip
def test_what_does_not_go_together(digits_data: Dataset, options: dict[str, Any], name: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        search(digits_data, **options)
    assert caught.value.name == name


def test_unknown_ways(digits_data: Dataset) -> None:
    with pytest.raises(UnsupportedError) as caught:
        search(digits_data, decouple="x")
    assert (caught.value.what, caught.value.known) == ("decouple", ("off", "dni", "local"))


@pytest.mark.parametrize(
    ("size", "blocks", "device", "name"),
    [(2, 3, CPU, "blocks"), (3, 2, CPU, "blocks"), (2, None, torch.device("cuda"), "device")],
)
def test_processes_have_a_block_each(size: int, blocks: int | None, device: torch.device, name: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        check_options("dni", blocks, False, size=size, device=device)
    assert caught.value.name == name


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(64, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.map(x.flatten(1))
        return y, y


class Sum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(8, 10)

    def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
        y: Tensor = self.map(pair[0] + pair[1])
        return y


def test_blocks_give_one_tensor(digits_data: Dataset) -> None:
    with pytest.raises(ArchitectureError) as caught:
        search(digits_data, model=nn.Sequential(Pair(), Sum()), decouple="dni")
    assert caught.value.differences == ("block 1 of 2 gives no tensor of floats [N, ...]",)


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [
        "encode",
        "--arch",
        "mlp:64-24-16-10",
        "--epochs",
        "3",
        "--device",
        "cpu",
        "--force",
        "-o",
        str(tmp_path / "x.smask"),
    ]
    way = ["--decouple", "dni", "--blocks", "2", "--dni-labels"]
    assert main([*options, *way, "--json"]) == 0
    out, told = capsys.readouterr()
    report = json.loads(out)
    assert {name: report[name] for name in ("decouple", "blocks", "dni_labels")} == {
        "decouple": "dni", "blocks": 2, "dni_labels": True,
    }  # fmt: skip
    assert "decoupled (dni) in 2 blocks" in told
    assert main([*options, "--decouple", "local", "--json", "-q"]) == 0
    assert json.loads(capsys.readouterr().out)["blocks"] == 3
    assert main([*options, "--json"]) == 0
    assert "decouple" not in json.loads(capsys.readouterr().out)
    run = str(tmp_path / "run")
    assert main([*options, *way, "-q", "--checkpoint", run]) == 0
    assert main([*options, "-q", "--checkpoint", run, "--resume"]) == ResumeError.exit_code
    assert "decouple is {'way': 'dni', 'blocks': 2, 'labels': True} there" in capsys.readouterr().err
    for wrong, code, words in (
        (["--decouple", "x"], 4, "unknown decouple 'x'"), (["--blocks", "2"], 2, "blocks: got 2"),
        (["--decouple", "dni", "--accumulate", "2"], 2, "accumulate: got 2"),
        (["--decouple", "local", "--blocks", "9"], 2, "blocks: got 9, want 2 to 3"),
    ):  # fmt: skip
        assert main([*options, *wrong]) == code
        assert words in capsys.readouterr().err
