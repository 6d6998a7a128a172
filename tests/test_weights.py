"""Any module: what is masked, shared weights, and files that a module of the caller loads again."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import smask
from smask.errors import ArgumentError
from smask.recipe import recipe_of
from smask.search.weights import maskable

TEXT = b"the quick brown fox jumps over the lazy dog; pack my box with five dozen liquor jugs. " * 40


class Attending(nn.Module):
    """A small language model of one attention layer; what it reads tokens with also writes them."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embedding = nn.Embedding(128, width)
        self.position = nn.Embedding(16, width)
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, 128, bias=False)
        self.out.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        n = tokens.shape[1]
        x = self.embedding(tokens) + self.position.weight[:n]
        ahead = torch.ones(n, n, dtype=torch.bool).triu(1)
        return self.out(self.norm(x + self.attention(x, x, x, attn_mask=ahead, need_weights=False)[0]))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.Module], width: int = 32) -> None:
        super().__init__()
        self.embedding = nn.Embedding(128, width)
        self.cell = kind(width, width, batch_first=True)
        self.out = nn.Linear(width, 128)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(self.cell(self.embedding(tokens))[0])


class Stepping(nn.Module):
    """Cells instead of layers, and inputs by name."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.cell, self.out = nn.Embedding(128, 24), nn.GRUCell(24, 24), nn.Linear(24, 128)

    def forward(self, *, tokens: Tensor) -> Tensor:
        state, outputs = torch.zeros(len(tokens), 24), []
        for x in self.embedding(tokens).unbind(1):
            state = self.cell(x, state)
            outputs.append(self.out(state))
        return torch.stack(outputs, 1)


def text_batches(named: bool = False) -> list[tuple[object, Tensor]]:
    tokens = torch.tensor(list(TEXT[: 17 * 160])).view(20, 8, 17)
    return [({"tokens": rows[:, :-1]} if named else rows[:, :-1], rows[:, 1:]) for rows in tokens]


def next_token(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())


@pytest.mark.parametrize(
    ("make", "masked"),
    [
        (Attending, ["embedding.weight", "position.weight", "attention.in_proj_weight", "attention.out_proj.weight"]),
        (lambda: Recurrent(nn.LSTM), ["embedding.weight", "cell.weight_ih_l0", "cell.weight_hh_l0", "out.weight"]),
        (lambda: Recurrent(nn.GRU), ["embedding.weight", "cell.weight_ih_l0", "cell.weight_hh_l0", "out.weight"]),
        (Stepping, ["embedding.weight", "cell.weight_ih", "cell.weight_hh", "out.weight"]),
    ],
)
def test_language_models(make: Callable[[], nn.Module], masked: list[str]) -> None:
    torch.manual_seed(0)
    model, named = make(), make is Stepping
    batches = text_batches(named)
    found = smask.find_masks(model, batches, loss=next_token, density=0.3, epochs=8, lr=1e-2)
    assert list(recipe_of(found).coded) == masked
    x, y = batches[0]
    with torch.no_grad():
        outputs = found(**x) if named else found(x)
        assert float(next_token(outputs, y)) < 2.4  # single letters have an entropy of 2.9 nats
    data = smask.encode(found.state_dict(), recipe_of(found))
    assert smask.verify(data).same
    loaded = smask.load(data, model=make())
    with torch.no_grad():
        assert torch.equal(loaded(**x) if named else loaded(x), outputs)
    assert smask.encode(loaded.state_dict(), recipe_of(loaded)) == data


def test_a_shared_weight_is_stored_once() -> None:
    torch.manual_seed(0)
    found = smask.find_masks(Attending(), text_batches(), loss=next_token, density=0.3, epochs=1)
    assert found.out.weight is found.embedding.weight
    data = smask.encode(found.state_dict(), recipe_of(found))
    records = {report.name: report for report in smask.inspect(data).tensors}
    assert records["out.weight"].same == "embedding.weight"
    assert smask.load(data, model=Attending()).out.weight.count_nonzero() > 0
    untied = Attending()
    untied.out.weight = nn.Parameter(torch.zeros(128, 32))
    loaded = smask.load(data, model=untied)
    assert torch.equal(loaded.out.weight, found.out.weight)
    assert smask.encode(loaded.state_dict(), recipe_of(loaded)) == data


def test_a_module_used_twice() -> None:
    torch.manual_seed(0)
    inner = nn.Linear(6, 6)
    model = nn.Sequential(inner, nn.ReLU(), inner, nn.Linear(6, 2))
    found = smask.find_masks(model, [(torch.rand(8, 6), torch.zeros(8, dtype=torch.long))] * 4, density=0.5, epochs=2)
    assert list(recipe_of(found).coded) == ["0.weight", "3.weight"]
    assert found[0].weight is found[2].weight
    assert smask.verify(smask.encode(found.state_dict(), recipe_of(found))).same


def test_transposed_convolutions_and_another_loss() -> None:
    torch.manual_seed(0)
    rows = torch.rand(64, 1, 2)
    images = (rows[:, :, :1, None] * torch.linspace(0, 1, 8) + rows[:, :, 1:, None] * torch.linspace(1, 0, 8)[:, None])  # fmt: skip
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.ReLU(), nn.ConvTranspose2d(8, 8, 2, stride=2), nn.ReLU(),
        nn.ConvTranspose2d(8, 1, 3, padding=1),
    )  # fmt: skip
    found = smask.find_masks(model, [(images, images)] * 20, loss=F.mse_loss, density=0.5, epochs=15, lr=5e-3)
    assert list(recipe_of(found).coded) == ["0.weight", "2.weight", "4.weight"]
    with torch.no_grad():
        assert float(F.mse_loss(found(images), images)) < 0.3 * float(images.var())
    # A weight begins with the spread that keeps the size of what goes through.
    spread = {name: one.fan_in for name, one in maskable(model).items()}
    assert spread == {"0.weight": 9, "2.weight": 8, "4.weight": 72}


def test_padding_stays_zero() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 16, padding_idx=3), nn.Flatten(), nn.Linear(64, 2))
    tokens = torch.randint(0, 9, (32, 4))
    batches = [(tokens, tokens.sum(1) % 2)] * 10
    found = smask.find_masks(model, batches, density=0.5, epochs=4)
    assert not found[0].weight[3].any()
    assert found[0].weight.any(1).sum() >= 7


@pytest.mark.parametrize(
    ("module", "name", "bias"),
    [
        (nn.Linear(3, 4), "weight", "bias"),
        (nn.Conv2d(3, 4, 3), "weight", "bias"),
        (nn.Conv1d(3, 4, 3, bias=False), "weight", None),
        (nn.ConvTranspose2d(4, 4, 3), "weight", None),
        (nn.LSTM(4, 4), "weight_ih_l0", None),
        (nn.MultiheadAttention(8, 2), "in_proj_weight", None),
        (nn.MultiheadAttention(8, 2), "out_proj.weight", "out_proj.bias"),
    ],
)
def test_which_bias_is_that_of_the_channels(module: nn.Module, name: str, bias: str | None) -> None:
    assert maskable(module)[name].bias is (module.get_parameter(bias) if bias else None)


def test_a_bias_of_two_layers_is_that_of_no_channels() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    model[2].bias = model[0].bias
    assert [one.bias for one in maskable(model).values()] == [None, model[1].bias, None]


def test_inputs_of_several_arguments_and_chosen_parameters() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(torch.randn(5, 4)), nn.Bilinear(4, 4, 5)
            self.first = nn.Linear(4, 4)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.b(self.first(x), y) + x @ self.a.T

    torch.manual_seed(0)
    batches = [((torch.rand(8, 4), torch.rand(8, 4)), torch.arange(8) % 5)] * 6
    assert list(recipe_of(smask.find_masks(Own(), batches, epochs=1)).coded) == ["first.weight"]
    found = smask.find_masks(Own(), batches, epochs=1, density=0.5, only=["b.weight", "a"])
    assert list(recipe_of(found).coded) == ["a", "b.weight"]
    assert int(found.b.weight.count_nonzero()) + int(found.a.count_nonzero()) == 50
    for only in (["c"], ["b.bias"]):
        with pytest.raises(ArgumentError) as caught:
            smask.find_masks(Own(), batches, only=only)
        assert caught.value.name == "only"


def test_refused() -> None:
    empty = nn.Linear(2, 2)
    empty.weight = nn.Parameter(torch.empty(0, 2))
    for model, name in (
        (nn.Sequential(nn.Embedding(3, 3, sparse=True)), "0"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)), ""),
        (nn.LayerNorm(3), "model"),
        (nn.Linear(2, 2).double(), "weight"),
        (empty, "model"),
    ):
        with pytest.raises(ArgumentError) as caught:
            maskable(model)
        assert caught.value.name == name
    with pytest.raises(ArgumentError) as caught:
        maskable(empty, ["weight"])
    assert (caught.value.name, caught.value.got) == ("only", "weight")
