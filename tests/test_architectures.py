import pytest
import torch
import torch.nn.functional as F
from torch import nn

from smask import architectures
from smask.errors import FormatError, UnsupportedError

LAYERS = [
    {"op": "normalize", "mean": [0.5, 0.4], "std": [0.2, 0.3]},
    {"op": "conv2d", "inputs": 2, "outputs": 8, "kernel": 3, "padding": 1, "stride": 2, "dilation": 1, "groups": 2, "bias": False},
    {"op": "batch-norm-2d", "features": 8},
    "relu",
    {"op": "residual", "relu": True, "body": [{"op": "conv2d", "inputs": 8, "outputs": 12, "kernel": 1, "stride": 2, "name": "c"}],
     "shortcut": [{"op": "pad-shortcut", "inputs": 8, "outputs": 12, "stride": 2}]},
    {"op": "stack", "name": "tail", "layers": ["gelu", {"op": "average-pool-2d", "kernel": 2}, {"op": "max-pool-2d", "kernel": 2, "stride": 1}]},
    "flatten",
    {"op": "dropout", "p": 0.5},
    {"op": "linear", "inputs": 12, "outputs": 6},
    {"op": "batch-norm-1d", "features": 6},
    {"op": "layer-norm", "features": 6},
    "silu", "tanh", "sigmoid", "identity",
]  # fmt: skip


def test_every_layer_is_what_torch_has() -> None:
    torch.manual_seed(0)
    model = architectures.build({"input": [2, 16, 16], "layers": LAYERS}).eval()
    conv, norm, body, linear, norm1, layer_norm = (
        model.get_submodule(name) for name in ("1", "2", "4.c", "8", "9", "10")
    )
    assert isinstance(conv, nn.Conv2d)
    assert (conv.stride, conv.padding, conv.groups, conv.bias) == ((2, 2), (1, 1), 2, None)
    x = torch.rand(3, 2, 16, 16)
    y = (x - torch.tensor([0.5, 0.4]).view(2, 1, 1)) / torch.tensor([0.2, 0.3]).view(2, 1, 1)
    y = norm(conv(y)).relu()
    zeros = torch.zeros(3, 2, 4, 4)
    y = (body(y) + torch.cat([zeros, y[:, :, ::2, ::2], zeros], 1)).relu()
    y = F.max_pool2d(F.avg_pool2d(F.gelu(y), 2), 2, 1)
    expected = F.silu(layer_norm(norm1(linear(y.flatten(1))))).tanh().sigmoid()
    assert torch.equal(model(x), expected)


def test_embedding_and_global_pool() -> None:
    words = architectures.build({"layers": [{"op": "embedding", "entries": 7, "features": 3}]})
    assert torch.equal(words(torch.tensor([2, 6])), words.get_parameter("0.weight")[[2, 6]])
    pool = architectures.build({"layers": ["global-average-pool"]})
    x = torch.rand(2, 3, 4, 5)
    assert torch.allclose(pool(x), x.mean((2, 3)))


def test_normalize_by_a_single_value_fits_any_input() -> None:
    model = architectures.build({"layers": [{"op": "normalize", "mean": [0.5], "std": [0.25]}]})
    for shape in ((2, 3), (2, 3, 4, 4)):
        assert torch.equal(model(torch.ones(shape)), torch.full(shape, 2.0))
    assert model.state_dict() == {}


def test_meta_allocates_nothing() -> None:
    wide = {"layers": [{"op": "linear", "inputs": 2**31 - 1, "outputs": 2**20}]}
    model = architectures.build(wide, device="meta")
    assert model.get_parameter("0.weight").shape == (2**20, 2**31 - 1)


def test_arch_is_remembered_without_defaults() -> None:
    model = architectures.build(
        {"layers": [{"op": "linear", "inputs": 2, "outputs": 1, "bias": True, "name": None}, "relu"]}
    )
    assert architectures.arch_of(model) == {"layers": [{"op": "linear", "inputs": 2, "outputs": 1}, "relu"]}
    assert architectures.arch_of(nn.Linear(1, 1)) is None


@pytest.mark.clause("A-01")
@pytest.mark.parametrize(
    "layers",
    [
        [{"op": "linear", "inputs": 0, "outputs": 1}], [{"op": "linear", "inputs": 1}], [{"op": "linear", "inputs": "1", "outputs": 1}],
        [{"op": "dropout", "p": 1.0}], [{"op": "conv2d", "inputs": 1, "outputs": 1, "kernel": 2**16}], [7], [None], [["relu"]], [{}], {}, "relu",
    ],
)  # fmt: skip
def test_wrong_types_and_values(layers: object) -> None:
    with pytest.raises(FormatError) as caught:
        architectures.build({"layers": layers})
    assert caught.value.clause == "A-01"


@pytest.mark.clause("A-01")
@pytest.mark.parametrize("op", ["torch.nn.Linear", "os.system", "__import__", "Linear", "_Layer", ""])
def test_no_string_is_looked_up(op: str) -> None:
    for layer in (op, {"op": op}):
        with pytest.raises(UnsupportedError) as caught:
            architectures.build({"layers": ["relu", layer]})
        assert caught.value.got == op
        assert "layers[1]" in caught.value.what


@pytest.mark.clause("A-02")
def test_too_many_layers() -> None:
    for layers in (["relu"] * 10_001, [{"op": "stack", "layers": ["relu"] * 9_999}, "relu"]):
        with pytest.raises(FormatError) as caught:
            architectures.build({"layers": layers})
        assert caught.value.clause == "A-02"


@pytest.mark.clause("A-03")
@pytest.mark.parametrize("name", ["forward", "training", "1", "a.b", "", "_modules"])
def test_names(name: str) -> None:
    with pytest.raises(FormatError) as caught:
        architectures.build(
            {
                "layers": [
                    {"op": "linear", "inputs": 1, "outputs": 1, "name": name},
                    "relu",
                    {"op": "stack", "layers": [], "name": "1"},
                ]
            }
        )
    assert caught.value.clause in ("A-01", "A-03")


@pytest.mark.clause("A-05")
@pytest.mark.parametrize(
    "layer",
    [
        {"op": "conv2d", "inputs": 3, "outputs": 4, "kernel": 1, "groups": 2},
        {"op": "pad-shortcut", "inputs": 4, "outputs": 3},
        {"op": "conv2d", "inputs": 2**31 - 1, "outputs": 2**31 - 1, "kernel": 2**15},
    ],
)
def test_arguments_that_do_not_go_together(layer: dict[str, object]) -> None:
    with pytest.raises(FormatError) as caught:
        architectures.build({"layers": [layer]}, device="meta")
    assert caught.value.clause == "A-05"
