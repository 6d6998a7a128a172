"""Conversion with inputs at hand: errors made good, statistics that follow, weights trained under their rounding."""

import copy
import json
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import smask
from conftest import NORMED, right
from smask.cli.main import main
from smask.conversion import refinement
from smask.conversion.converter import convert_checkpoint
from smask.conversion.feedback import Feedback, columns, levels_fed_back
from smask.conversion.goals import size_of
from smask.conversion.inputs import Inputs
from smask.conversion.leveling import Leveled
from smask.conversion.rounding import learn, levels_of
from smask.conversion.statistics import Statistics
from smask.errors import ArchitectureError, ArgumentError, DivergedError, TargetError
from smask.search.data import digits
from smask.search.distillation import divergence


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(12, 5, bias=False), (7, 3, 12)), (nn.Conv2d(4, 6, 3, bias=False), (2, 4, 7, 9)),
        (nn.Conv2d(4, 6, (3, 2), stride=2, padding=(2, 1), dilation=2, groups=2, bias=False), (2, 4, 9, 9)),
        (nn.Conv1d(4, 8, 5, stride=2, padding=2, groups=4, bias=False), (3, 4, 21)),
        (nn.Conv2d(3, 2, 3, padding="same", dilation=2, bias=False), (2, 3, 6, 6)),
        (nn.Conv1d(3, 2, 5, padding="same", bias=False), (2, 3, 11)),
    ],
)  # fmt: skip
def test_columns_are_what_weights_are_multiplied_with(layer: nn.Module, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    seen = columns(layer, x)
    weight = layer.weight.detach().reshape(len(seen), -1, seen.shape[2])
    products = seen @ weight.transpose(1, 2)
    out = layer(x).detach()
    want = out.reshape(-1, out.shape[-1]) if isinstance(layer, nn.Linear) else out.flatten(2).transpose(1, 2)
    if not isinstance(layer, nn.Linear):
        products = products.reshape(len(seen), len(x), -1, weight.shape[1]).permute(1, 2, 0, 3)
    assert torch.allclose(products.reshape(want.shape), want, atol=1e-5)


def test_feedback_without_common_inputs_is_lone_rounding() -> None:
    weights = np.random.default_rng(0).standard_normal((30, 40)).astype(np.float32) * 2
    rule = learn(np.abs(weights).reshape(-1))
    alone = levels_of(weights.reshape(-1, 1), rule).reshape(weights.shape)
    fed = levels_fed_back(weights, [Feedback.of(np.eye(40))], rule)
    # Edges of the rule join levels that the cheapest choice may still tell apart, by a hair.
    assert np.mean(fed != alone) < 0.01


def test_feedback_makes_errors_good() -> None:
    random = np.random.default_rng(1)
    inputs = random.standard_normal((500, 6)) @ random.standard_normal((6, 48)) + 0.3 * random.standard_normal(
        (500, 48)
    )
    weights = random.standard_normal((64, 48)).astype(np.float32) * 1.5
    rule = learn(np.abs(weights).reshape(-1))
    errors = []
    for levels in (
        levels_of(weights.reshape(-1, 1), rule).reshape(weights.shape),
        levels_fed_back(weights, [Feedback.of(inputs.T @ inputs)], rule),
    ):
        rounded = np.where(levels == 0, 0, levels - np.sign(levels) * rule.offset)
        errors.append(float(np.square(inputs @ (rounded - weights).T).sum()))
    assert errors[1] < 0.4 * errors[0]


def test_no_input_no_trouble() -> None:
    weights = np.ones((4, 6), np.float32)
    rule = learn(np.abs(weights).reshape(-1))
    assert (levels_fed_back(weights, [Feedback.of(np.zeros((6, 6)))], rule) == 1).all()
    assert not levels_fed_back(weights * 0, [Feedback.of(np.eye(6))], learn(np.zeros(24, np.float32))).any()


def test_statistics_follow_their_weights(normed_net: nn.Module, inputs: torch.Tensor) -> None:
    statistics, student = Statistics(normed_net, [inputs]), copy.deepcopy(normed_net)
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    statistics.follow(student, {})
    assert all(torch.allclose(tensor, before[name], atol=1e-6) for name, tensor in student.state_dict().items())
    # A layer three times as strong gives the same after a norm that follows.
    weights = {"0.weight": 3 * normed_net.state_dict()["0.weight"]}
    statistics.follow(student, weights)
    with torch.no_grad():
        got = torch.func.functional_call(student, weights, (inputs,))
        assert torch.allclose(got, normed_net(inputs), atol=0.05)
    assert torch.allclose(student[1].running_var, 9 * normed_net[1].running_var, rtol=1e-4)


def test_divergence() -> None:
    random = torch.Generator().manual_seed(0)
    for shape in ((5, 7), (2, 6, 9), (2, 4, 3, 3), (8, 1)):
        one, other = torch.randn(2, *shape, generator=random)
        assert float(divergence(one, one)) == pytest.approx(0, abs=1e-6)
        assert float(divergence(one, other)) > 0.1


@pytest.mark.parametrize("refine", [0, 4])
def test_inputs_help(normed_net: nn.Module, inputs: torch.Tensor, tmp_path: Path, refine: int) -> None:
    plain = convert_checkpoint(normed_net, tmp_path / "plain.smask", target_size=1700, arch=NORMED)
    steps: list[tuple[int, int, float]] = []
    report = convert_checkpoint(
        normed_net, tmp_path / "m.smask", target_size=1700, arch=NORMED, calibrate=inputs, refine=refine,
        trained=lambda *at: steps.append(at),
    )  # fmt: skip
    assert 0.99 * 1700 <= report.n_bytes <= 1700
    assert plain.n_bytes <= 1700
    assert smask.verify(tmp_path / "m.smask").same
    model, without = smask.load(tmp_path / "m.smask"), smask.load(tmp_path / "plain.smask")
    data = digits()
    with torch.no_grad():
        x = data.inputs(data.x_test)
        far, near = (float(divergence(net(x), normed_net(x))) for net in (without, model))
    assert near < (0.5 if refine else 0.9) * far
    assert right(model) > right(without) - 0.01
    assert len(steps) == (38 if refine else 0)
    if refine:
        assert [step for step, _, _ in steps] == list(range(1, 39))
        assert steps[-1][2] < steps[5][2]
    again = smask.decode(tmp_path / "m.smask")
    counts = [name for name in again if name.endswith("num_batches_tracked")]
    assert all(torch.equal(again[name], normed_net.state_dict()[name]) for name in counts)


def test_modules_and_prefixes(normed_net: nn.Module, inputs: torch.Tensor, tmp_path: Path) -> None:
    wrapped = nn.Sequential(OrderedDict(module=normed_net))
    for number, (source, model) in enumerate(
        ((wrapped, None), (wrapped.state_dict(), normed_net), (wrapped.state_dict(), wrapped))
    ):
        convert_checkpoint(source, tmp_path / f"{number}.smask", bits=3, calibrate=inputs, model=model)
    files = [(tmp_path / f"{number}.smask").read_bytes() for number in range(3)]
    assert files[0] == files[1] == files[2]
    rounded = copy.deepcopy(wrapped)
    rounded.load_state_dict(smask.decode(files[0]), strict=True)
    assert right(rounded) > right(normed_net) - 0.05


class Reader(nn.Module):
    """Tokens in, tokens out, a head that shares the table, and logits as other libraries give them."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(64, 32)
        self.norm = nn.LayerNorm(32)
        self.mix = nn.GRU(32, 32, batch_first=True)
        self.head = nn.Linear(32, 64, bias=False)
        self.head.weight = self.table.weight

    def forward(self, tokens: torch.Tensor) -> object:
        class Output:
            logits = self.head(self.mix(self.norm(self.table(tokens)))[0])

        return Output()


@pytest.mark.parametrize("refine", [0, 1])
def test_tokens(tmp_path: Path, refine: int) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Reader().eval()
        tokens = torch.randint(64, (96, 12))
    report = convert_checkpoint(model, tmp_path / "m.smask", bits=4, calibrate=tokens, refine=refine)
    assert report.bits_per_weight <= 4
    again = smask.decode(tmp_path / "m.smask")
    assert torch.equal(again["table.weight"], again["head.weight"])
    rounded = Reader()
    rounded.load_state_dict(again, strict=True)
    with torch.no_grad():
        far = divergence(model(tokens).logits * 0, model(tokens).logits)
        assert divergence(rounded.eval()(tokens).logits, model(tokens).logits) < 0.3 * far


def test_what_cannot_be(normed_net: nn.Module, inputs: torch.Tensor, tmp_path: Path) -> None:
    out, state = tmp_path / "m.smask", normed_net.state_dict()
    for source, options, name in (
        (state, {"bits": 3, "calibrate": inputs}, "calibrate"),
        (normed_net, {"max_error": 0.1, "calibrate": inputs}, "calibrate"),
        (normed_net, {"lossless": True, "calibrate": inputs}, "calibrate"),
        (normed_net, {"bits": 3, "refine": 2}, "refine"),
        (normed_net, {"bits": 3, "calibrate": inputs, "refine": -1}, "refine"),
        (normed_net, {"bits": 3, "calibrate": inputs[:0]}, "calibrate"),
        (normed_net, {"bits": 3, "calibrate": inputs * float("nan")}, "calibrate"),
        (normed_net, {"bits": 3, "calibrate": inputs, "base": state}, "calibrate"),  # nothing is left to be rounded
        (normed_net, {"bits": 3, "model": normed_net}, "model"),
    ):
        with pytest.raises(ArgumentError) as caught:
            convert_checkpoint(source, out, **options)
        assert caught.value.name == name
    with pytest.raises(ArchitectureError):
        convert_checkpoint(state, out, bits=3, calibrate=inputs, model=nn.Linear(64, 10))
    with pytest.raises(ArchitectureError) as fit:
        convert_checkpoint(normed_net, out, bits=3, calibrate=inputs[:, :, 0])
    assert "do not go through" in str(fit.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("refine", [0, 1])
def test_a_size_out_of_reach(normed_net: nn.Module, inputs: torch.Tensor, tmp_path: Path, refine: int) -> None:
    with pytest.raises(TargetError) as caught:
        convert_checkpoint(normed_net, tmp_path / "m.smask", target_size=300, calibrate=inputs, refine=refine)
    assert caught.value.target == 300 < caught.value.least < 1000
    assert list(tmp_path.iterdir()) == []


def test_a_loss_that_is_not_finite(
    normed_net: nn.Module, inputs: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refinement, "FLOAT_RATE", 1e30)
    with pytest.raises(DivergedError) as caught:
        convert_checkpoint(normed_net, tmp_path / "m.smask", bits=3, calibrate=inputs, refine=2)
    assert 1 < caught.value.step <= 19
    assert "--refine" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_same_inputs_same_order() -> None:
    x = torch.rand(40, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    one, other = Inputs(x, seed=1), Inputs(x, seed=1)
    assert torch.equal(one.batch(8), other.batch(8))
    assert [len(batch) for batch in one.all()] == [40]
    assert len(torch.cat(list(one.some(7)))) == 7


def test_command(normed_net: nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "net.json").write_text(json.dumps(NORMED))
    torch.save(normed_net.state_dict(), tmp_path / "m.pt")
    command = ["convert", str(tmp_path / "m.pt"), "-o", str(tmp_path / "m.smask"), "--target-size", "1.7kB"]
    command += ["--arch", str(tmp_path / "net.json"), "--calibrate", "digits", "--samples", "600"]
    assert main([*command, "--refine", "2", "--eval", "digits", "--json"]) == 0
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert report["n_bytes"] <= 1700
    assert report["accuracy_after"] > 0.8
    assert "refine 19/19 steps" in printed.err
    assert main([*command, "--samples", "0", "--force"]) == 2
    assert main([*command[:6], "--calibrate", "digits", "--force"]) == 2
    assert "--arch" in capsys.readouterr().err


@pytest.fixture(scope="module")
def tuned(normed_net: nn.Module) -> nn.Module:
    """The net fine-tuned for digits that are a pixel further, its first layer left as it was."""
    data = digits()
    x, y = data.inputs(data.x_train).roll(1, 3), data.y_train
    net = copy.deepcopy(normed_net).train()
    net[0].requires_grad_(False)
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=1e-3)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for _ in range(4):
            for index in torch.randperm(len(x)).split(64):
                optimizer.zero_grad()
                F.cross_entropy(net(x[index]), y[index]).backward()
                optimizer.step()
    return net.eval()


def test_over_a_base_with_inputs(
    normed_net: nn.Module, tuned: nn.Module, inputs: torch.Tensor, tmp_path: Path
) -> None:  # fmt: skip
    """A fine-tuned net as a difference: at the same bytes inputs keep more of it, and what the base gives stays."""
    base, x, far, size = normed_net.state_dict(), inputs.roll(1, 3), {}, 2000
    for name, more in (
        ("without", {}), ("rounded", {"calibrate": x}), ("refined", {"calibrate": x, "refine": 8}),
    ):  # fmt: skip
        out = tmp_path / f"{name}.smask"
        report = convert_checkpoint(tuned, out, target_size=size, base=base, arch=NORMED, **more)  # type: ignore[arg-type]
        assert report.n_bytes <= size
        assert smask.verify(out, base=base).same
        stored = {tensor.name: tensor.stored_as for tensor in report.tensors}
        assert stored["0.weight"] == "base"
        assert stored["3.weight"].startswith("base + ")
        assert torch.equal(smask.decode(out, base=base)["0.weight"], base["0.weight"])
        with torch.no_grad():
            far[name] = float(divergence(smask.load(out, base=base)(x), tuned(x)))
    assert far["refined"] < far["rounded"] < far["without"] / 2


def test_layers_without_a_norm_keep_their_length(
    inputs: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        widths = [(64, 96), (96, 96), (96, 96), (96, 10)]
        model = nn.Sequential(*(layer for a, b in widths for layer in (nn.ReLU(), nn.Linear(a, b)))).eval()
    x = inputs.flatten(1)
    far = {}
    for raises in (True, False):
        if not raises:
            monkeypatch.setattr(Leveled, "raised", lambda self, tensor, moments: self)
        made = convert_checkpoint(model, tmp_path / "m.smask", target_size=3900, calibrate=x, overwrite=True)
        rounded = smask.load(made.output, model=copy.deepcopy(model))
        with torch.no_grad():
            far[raises] = float(divergence(rounded(x), model(x)))
    assert far[True] < 0.8 * far[False]


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "target", "refine", "accuracy"),
    [
        ("resnet20-12fca82f.th", "95kB", 20, 0.914), ("resnet20-12fca82f.th", "60kB", 30, 0.910),
        ("resnet20-12fca82f.th", "40kB", 40, 0.890), ("resnet20-12fca82f.th", "30kB", 40, 0.865),
        ("resnet56-4bfd9763.th", "195kB", 15, 0.930), ("resnet56-4bfd9763.th", "130kB", 15, 0.920),
        ("resnet56-4bfd9763.th", "90kB", 20, 0.900),
    ],
)  # fmt: skip
def test_public_networks(
    real_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, target: str, refine: int,
    accuracy: float,
) -> None:  # fmt: skip
    from PIL import Image

    parts = {}
    labels = np.load(real_data / "cifar10/labels.npz")
    for part, file in (("train", "train_0.webp"), ("test", "test.webp")):
        grid = np.asarray(Image.open(real_data / "cifar10" / file).convert("RGB"))
        x = grid.reshape(100, 32, 100, 32, 3).transpose(0, 2, 1, 3, 4).reshape(10_000, 32, 32, 3)
        parts |= {f"x_{part}": x.transpose(0, 3, 1, 2), f"y_{part}": labels[f"y_{part}"][:10_000]}
    np.savez(tmp_path / "c.npz", **parts)
    arguments = ["--arch", name.split("-")[0], "--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225"]
    arguments += ["--calibrate", str(tmp_path / "c.npz"), "--refine", str(refine), "--eval", str(tmp_path / "c.npz")]
    arguments += ["--target-size", target, "--json"]
    assert main(["convert", str(real_data / "checkpoints" / name), "-o", str(tmp_path / "m.smask"), *arguments]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["n_bytes"] <= size_of(target)
    assert report["accuracy_after"] >= accuracy


def tied_net() -> nn.Module:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wte, self.middle, self.head = nn.Embedding(30, 16), nn.Linear(16, 16), nn.Linear(16, 30, bias=False)
            self.head.weight = self.wte.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(torch.tanh(self.middle(self.wte(x))))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Tied()


def test_tied_weights_are_trained_under_any_of_their_names(tmp_path: Path) -> None:
    model, tokens = tied_net(), torch.randint(30, (200, 8), generator=torch.Generator().manual_seed(1))
    distances = []
    for names in (list(model.state_dict()), sorted(model.state_dict())):
        state = {name: model.state_dict()[name] for name in names}
        report = convert_checkpoint(
            state, tmp_path / "m.smask", bits=6.0, calibrate=tokens, model=model, refine=20, overwrite=True
        )
        assert 5.8 < report.bits_per_weight <= 6
        again = copy.deepcopy(model)
        again.load_state_dict(smask.decode(tmp_path / "m.smask"))
        with torch.no_grad():
            distances.append(float(divergence(again(tokens), model(tokens))))
    # A file of weights as they were before their training is nearly four times as far.
    assert distances[1] < 1.6 * distances[0]


def test_equal_weights_of_two_layers_go_apart(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 16))
    model[2].weight.data.copy_(model[0].weight)
    x = torch.randn(200, 16, generator=torch.Generator().manual_seed(1))
    report = convert_checkpoint(model, tmp_path / "m.smask", bits=9, calibrate=x, refine=10)
    assert {tensor.stored_as.split()[-1] for tensor in report.tensors if "weight" in tensor.name} == {"planes"}
    again = smask.decode(tmp_path / "m.smask")
    assert not torch.equal(again["0.weight"], again["2.weight"])


@pytest.mark.parametrize("n", [2, 251])
def test_no_batch_of_one_input_meets_a_norm(tmp_path: Path, n: int) -> None:
    model = nn.Sequential(nn.Linear(32, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10)).eval()
    for refine in (0, 1):
        path = tmp_path / f"{refine}.smask"
        convert_checkpoint(model, path, bits=4, calibrate=torch.randn(n, 32), refine=refine)
        assert smask.verify(path).same


def test_one_input_is_too_few_for_norms_alone(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(32, 64), nn.BatchNorm1d(64)).eval()
    with pytest.raises(ArgumentError) as caught:
        convert_checkpoint(model, tmp_path / "m.smask", bits=4, calibrate=torch.randn(1, 32))
    assert caught.value.name == "calibrate"
    plain = nn.Sequential(nn.Linear(32, 64))
    convert_checkpoint(plain, tmp_path / "m.smask", bits=4, calibrate=torch.randn(1, 32))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_training_needs_nothing_of_the_callers_mode(tmp_path: Path, mode: type) -> None:
    x = torch.randn(60, 32, generator=torch.Generator().manual_seed(1))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))
    convert_checkpoint(model, tmp_path / "a.smask", bits=3, calibrate=x, refine=2)
    with mode():
        convert_checkpoint(model, tmp_path / "b.smask", bits=3, calibrate=x.clone(), refine=2)
    assert (tmp_path / "a.smask").read_bytes() == (tmp_path / "b.smask").read_bytes()


class Frozen(nn.Module):
    """A net that is only run."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(32, 32)

    @torch.no_grad()
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"refine": 1}, "refine"), ({"refine": 1.5}, "refine"), ({"calibrate": np.zeros((9, 32))}, "calibrate"),
        ({"bits": "3"}, "bits"), ({"meta": {"epoch": 1}}, "meta"), ({"meta": {1: "a"}}, "meta"),
        ({"meta": {"a": "\ud800"}}, "meta"), ({"arch": "resnet20"}, "arch"),
    ],
)  # fmt: skip
def test_arguments_of_other_kinds_are_named(tmp_path: Path, changes: dict[str, object], name: str) -> None:
    given = {"bits": 3.0, "calibrate": torch.zeros(9, 32), **changes}
    with pytest.raises(ArgumentError) as caught:
        convert_checkpoint(Frozen(), tmp_path / "m.smask", **given)  # type: ignore[arg-type]
    assert caught.value.name == name
    assert not list(tmp_path.iterdir())


def test_a_size_of_nothing_is_out_of_reach(tmp_path: Path) -> None:
    with pytest.raises(TargetError):
        convert_checkpoint(Frozen(), tmp_path / "m.smask", bits=1e-9, calibrate=torch.zeros(9, 32))


@pytest.mark.parametrize("problem", [AssertionError(), KeyError("x"), ValueError()])
def test_models_that_do_not_take_the_inputs(tmp_path: Path, problem: Exception) -> None:
    class Picky(Frozen):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise problem

    with pytest.raises(ArchitectureError) as caught:
        convert_checkpoint(Picky(), tmp_path / "m.smask", bits=3, calibrate=torch.zeros(9, 32))
    assert caught.value.differences[0].startswith("inputs of shape [32] do not go through the model")
