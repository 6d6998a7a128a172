import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from smask import architectures
from smask.conversion.networks import wrapped_in
from smask.errors import FormatError, UnsupportedError
from smask.layers import TAKEN

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


@pytest.mark.parametrize("causal", [False, True])
def test_attention_is_that_of_the_paper(causal: bool) -> None:
    """Softmax of q k / sqrt(d) over the values, written out for every head and place."""
    torch.manual_seed(1)
    model = architectures.build({"layers": [{"op": "attention", "features": 6, "heads": 2, "causal": causal}]})
    state = model.state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == {
        "0.qkv.weight": (18, 6), "0.qkv.bias": (18,), "0.out.weight": (6, 6), "0.out.bias": (6,),
    }  # fmt: skip
    x = torch.randn(2, 5, 6)
    q, k, v = (x @ state["0.qkv.weight"].T + state["0.qkv.bias"]).split(6, -1)
    mixed = torch.zeros(2, 5, 6)
    for n, t, head in ((n, t, head) for n in range(2) for t in range(5) for head in (slice(0, 3), slice(3, 6))):
        seen = t + 1 if causal else 5
        weights = (k[n, :seen, head] @ q[n, t, head] / 3**0.5).exp()
        mixed[n, t, head] = weights / weights.sum() @ v[n, :seen, head]
    expected = mixed @ state["0.out.weight"].T + state["0.out.bias"]
    assert torch.allclose(model(x), expected, atol=1e-6)


def test_positions() -> None:
    model = architectures.build({"layers": [{"op": "positions", "entries": 5, "features": 3}]})
    x, table = torch.randn(2, 4, 3), model.get_parameter("0.places.weight")
    assert torch.equal(model(x), x + table[:4])
    with pytest.raises(ValueError, match="positions has 5"):
        model(torch.zeros(1, 6, 3))


TIED = {"op": "linear", "inputs": 2, "outputs": 3, "bias": False, "tied": "0.weight"}


@pytest.mark.clause("A-07")
def test_tied_layers_share_one_parameter() -> None:
    model = architectures.build({"layers": [{"op": "embedding", "entries": 3, "features": 2}, TIED]})
    assert model.get_parameter("1.weight") is model.get_parameter("0.weight")
    assert architectures.arch_of(model)["layers"][1] == TIED
    again = copy.deepcopy(model)
    assert again.get_parameter("1.weight") is again.get_parameter("0.weight")


@pytest.mark.clause("A-07")
@pytest.mark.parametrize(
    "layers",
    [
        [TIED], [TIED | {"tied": "0.weight"}, {"op": "embedding", "entries": 3, "features": 2}],
        [{"op": "embedding", "entries": 2, "features": 2}, TIED],
        [{"op": "embedding", "entries": 3, "features": 2}, TIED | {"tied": "0"}],
        [{"op": "embedding", "entries": 3, "features": 2}, TIED | {"tied": "1.weight"}],
        ["relu", {"op": "linear", "inputs": 2, "outputs": 3}, TIED | {"tied": "__class__"}],
    ],
)  # fmt: skip
def test_tied_to_what_is_not_there(layers: list[object]) -> None:
    with pytest.raises(FormatError) as caught:
        architectures.build({"layers": layers}, device="meta")
    assert caught.value.clause == "A-07"


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


@pytest.mark.clause("A-01")
def test_a_field_does_not_steer_the_terminal() -> None:
    with pytest.raises(FormatError) as caught:
        architectures.build({"layers": [{"op": "linear", "inputs": 1, "outputs": 1, "bad\nkey\x1b[31m": 1}]})
    assert caught.value.clause == "A-01"
    assert "`bad\\nkey\\x1b[31m`" in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.clause("A-02")
def test_too_many_layers() -> None:
    for layers in (["relu"] * 10_001, [{"op": "stack", "layers": ["relu"] * 9_999}, "relu"]):
        with pytest.raises(FormatError) as caught:
            architectures.build({"layers": layers})
        assert caught.value.clause == "A-02"


@pytest.mark.clause("A-03")
@pytest.mark.parametrize(
    "name", ["forward", "training", "1", "a.b", "", "_modules", "_a", "smask_arch", "smask_recipe"]
)
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


@pytest.mark.clause("A-03")
def test_no_layer_hides_an_attribute_of_torch() -> None:
    """Of the release that is installed too: what is new there has no module."""
    assert set(TAKEN) > {"append", "forward", "training", "zero_grad"}
    for name in TAKEN | {name for name in dir(nn.Sequential()) if not name.startswith("_")}:
        layer = {"op": "linear", "inputs": 1, "outputs": 1, "name": name}
        for arch in (
            [layer],
            [{"op": "residual", "body": [layer]}],
            [{"op": "residual", "body": [], "shortcut": [layer]}],
        ):
            with pytest.raises(FormatError) as caught:
                architectures.build({"layers": arch})
            assert caught.value.clause == "A-03" if name in TAKEN else caught.value.clause in ("A-03", "A-05")


@pytest.mark.clause("A-03")
def test_names_of_a_compiled_checkpoint() -> None:
    """The wrapper of torch.compile stands before all of them; files of such checkpoints have it."""
    arch = wrapped_in({"layers": [{"op": "linear", "inputs": 1, "outputs": 1, "bias": False}]}, "module._orig_mod.")
    assert list(architectures.build(arch).state_dict()) == ["module._orig_mod.0.weight"]


@pytest.mark.clause("A-03")
def test_a_body_has_no_child_called_shortcut() -> None:
    layer = {"op": "linear", "inputs": 1, "outputs": 1, "bias": False}
    with pytest.raises(FormatError) as caught:
        architectures.build({"layers": [{"op": "residual", "body": [layer | {"name": "shortcut"}]}]})
    assert caught.value.clause == "A-03"
    for name in ("relu_after", "body_names", "relu", "a_shortcut"):
        model = architectures.build({"layers": [{"op": "residual", "body": [layer | {"name": name}], "relu": True}]})
        weight = model.get_parameter(f"0.{name}.weight")
        assert torch.equal(model(torch.ones(1, 1)), F.relu(weight + 1))
    assert architectures.build({"layers": [layer | {"name": "shortcut"}]}).get_parameter("shortcut.weight").shape == (
        1,
        1,
    )


@pytest.mark.clause("A-05")
@pytest.mark.parametrize(
    "layer",
    [
        {"op": "conv2d", "inputs": 3, "outputs": 4, "kernel": 1, "groups": 2},
        {"op": "pad-shortcut", "inputs": 4, "outputs": 3},
        {"op": "attention", "features": 4, "heads": 3},
        {"op": "conv2d", "inputs": 2**31 - 1, "outputs": 2**31 - 1, "kernel": 2**15},
    ],
)
def test_arguments_that_do_not_go_together(layer: dict[str, object]) -> None:
    with pytest.raises(FormatError) as caught:
        architectures.build({"layers": [layer]}, device="meta")
    assert caught.value.clause == "A-05"
