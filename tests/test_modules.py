from __future__ import annotations

import copy
import io
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import smask
from smask import architectures, modules, named_nets, replacement
from smask.errors import ArgumentError, UnsupportedError
from smask.modules import PackedConv2d, PackedEmbedding, PackedLinear
from smask.recipe import Recipe, attach
from smask.reconstruction import reconstruct
from test_packing import random_coded

SEED = 77


def linear(**options: bool) -> PackedLinear:
    return PackedLinear(random_coded((20, 70), planes=2), SEED, bias=torch.arange(20.0), **options)


def convolution(**options: bool) -> PackedConv2d:
    return PackedConv2d(random_coded((8, 3, 3, 3), flips=True), SEED, bias=torch.ones(8), padding=1, **options)


def embedding(**options: bool) -> PackedEmbedding:
    return PackedEmbedding(random_coded((50, 40)), SEED, **options)


LAYERS = {"linear": linear, "convolution": convolution, "embedding": embedding}


def inputs(layer: nn.Module) -> torch.Tensor:
    random = torch.Generator().manual_seed(1)
    if isinstance(layer, PackedEmbedding):
        return torch.randint(0, 50, (3, 4), generator=random)
    return torch.randn(*((5, 70) if isinstance(layer, PackedLinear) else (2, 3, 9, 9)), generator=random)


@pytest.fixture(params=LAYERS)
def layer(request: pytest.FixtureRequest) -> modules.PackedLayer:
    return LAYERS[request.param]()


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("regenerate", [False, True])
def test_a_packed_layer_gives_what_the_dense_one_gives(kind: str, regenerate: bool) -> None:
    layer = LAYERS[kind](regenerate_signs=regenerate)
    dense, x = layer.materialize(), inputs(layer)
    assert type(dense) is layer.kind
    assert torch.equal(dense.weight, reconstruct(layer.coded(), SEED))
    torch.testing.assert_close(layer(x), dense(x), rtol=1e-5, atol=1e-4)
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), dense(x), rtol=1e-5, atol=1e-4)
    if kind == "embedding":
        assert torch.equal(layer(x), dense(x))


def test_state_survives_state_dict(layer: modules.PackedLayer) -> None:
    other = copy.deepcopy(layer)
    for buffer in other.buffers():
        buffer.zero_()
    assert not torch.equal(other(inputs(layer)), layer(inputs(layer)))
    stream = io.BytesIO()
    torch.save(layer.state_dict(), stream)
    stream.seek(0)
    other.load_state_dict(torch.load(stream, weights_only=True))
    assert torch.equal(other(inputs(layer)), layer(inputs(layer)))


@pytest.mark.parametrize("strict", [False, True])
def test_state_of_other_signs_is_refused(strict: bool) -> None:
    """Bits of the same shape: of another seed, another stream, and of two planes beside one whose signs are held."""
    coded = random_coded((16, 32))
    layers = {
        "those of seed 1, stream 3": PackedLinear(coded, 1, regenerate_signs=True),
        "those of seed 8589934594, stream 3": PackedLinear(coded, (2 << 32) + 2, regenerate_signs=True),
        "those of seed 1, stream 4": PackedLinear(replace(coded, stream=4), 1, regenerate_signs=True),
        "signs that are held": PackedLinear(coded, 1),
        "those of seed 1, stream 5": PackedLinear(
            replace(random_coded((16, 32), planes=2), stream=5), 1, regenerate_signs=True
        ),
    }
    for got, given in layers.items():
        state = io.BytesIO()
        torch.save(nn.Sequential(given).state_dict(), state)
        state.seek(0)
        state = torch.load(state, weights_only=True)
        for want, layer in layers.items():
            model = copy.deepcopy(nn.Sequential(layer))
            if got == want:
                model.load_state_dict(state, strict=strict)
                continue
            with pytest.raises(RuntimeError, match=f"signs of 0.planes: got {got} in the state dict, want {want} as"):
                model.load_state_dict(state, strict=strict)
            assert torch.equal(model[0].weight(), layer.weight())


def test_the_default_device_is_no_concern_of_what_is_held() -> None:
    layer, coded = linear(regenerate_signs=True), replace(random_coded((20, 70), planes=2, seed=1), stream=4)
    packed = layer.packed(coded, SEED)
    with torch.device("meta"):
        layer.take(coded, SEED, packed)
    assert layer.source.tolist() == layer.signs
    assert torch.equal(layer.weight(), reconstruct(coded, SEED))


def test_state_survives_copies_and_pickles(layer: modules.PackedLayer) -> None:
    want = layer(inputs(layer))
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), copy.copy(layer)):
        assert torch.equal(twin(inputs(layer)), want)
        assert repr(twin) == repr(layer)


def test_halving_leaves_bits_and_scales_alone(layer: modules.PackedLayer) -> None:
    want = layer(inputs(layer))
    half = copy.deepcopy(layer).half()
    assert half.scale.dtype == torch.float32
    assert torch.equal(half.scale, layer.scale)
    assert torch.equal(half.planes, layer.planes)
    x = inputs(layer)
    got = half(x.half() if x.is_floating_point() else x)
    torch.testing.assert_close(got.float(), want, rtol=2e-3, atol=2e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_have_the_dtype_of_dense_ones(layer: modules.PackedLayer, dtype: torch.dtype) -> None:
    dense, x = layer.materialize(), inputs(layer)
    narrow = copy.deepcopy(layer).to(dtype)
    for twin in (narrow, copy.deepcopy(narrow), pickle.loads(pickle.dumps(narrow)), copy.deepcopy(narrow).to("cpu")):
        again, want = twin.materialize(), copy.deepcopy(dense).to(dtype)
        assert again.state_dict().keys() == want.state_dict().keys()
        for name, tensor in again.state_dict().items():
            assert tensor.dtype == dtype
            assert torch.equal(tensor, want.state_dict()[name])
        x = x.to(dtype) if x.is_floating_point() else x
        assert twin(x).dtype == want(x).dtype == dtype
    assert torch.equal(layer.coded().scale, narrow.coded().scale)
    assert narrow.coded().dtype == torch.float32
    back = narrow.float()
    assert torch.equal(back.weight(), dense.weight)
    assert torch.equal(back(inputs(layer)), layer(inputs(layer)))
    assert back.state_dict().keys() == layer.state_dict().keys()


def test_embeddings_in_bfloat16_are_those_of_dense_ones() -> None:
    layer = embedding()
    dense, ids = layer.materialize().bfloat16(), inputs(layer)
    assert torch.equal(layer.bfloat16()(ids), dense(ids))
    wide = PackedEmbedding(replace(random_coded((50, 40)), dtype=torch.bfloat16), SEED)
    dense = wide.materialize().float()  # rounded before
    assert torch.equal(wide.float()(ids), dense(ids))


def test_moving_to_a_device_and_back(layer: modules.PackedLayer) -> None:
    if torch.cuda.is_available():
        there = copy.deepcopy(layer).cuda()
        torch.testing.assert_close(there(inputs(layer).cuda()).cpu(), layer(inputs(layer)), rtol=1e-4, atol=1e-4)
    meta = copy.deepcopy(layer).to("meta")
    assert {buffer.device.type for buffer in meta.buffers()} == {"meta"}
    empty = meta.to_empty(device="cpu")
    empty.load_state_dict(layer.state_dict())
    assert torch.equal(empty(inputs(layer)), layer(inputs(layer)))


def test_compiled_whole(layer: modules.PackedLayer) -> None:
    model = nn.Sequential(layer, nn.ReLU())
    whole = torch.compile(model, fullgraph=True, backend="aot_eager")
    for context in (torch.enable_grad(), torch.inference_mode()):
        with context:
            assert torch.equal(whole(inputs(layer)), model(inputs(layer)))


# Torch's compiler warns of parts of torch when it is first imported.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
def test_compiled_whole_by_inductor() -> None:
    model = nn.Sequential(linear(), nn.ReLU(), nn.Linear(20, 3))
    whole = torch.compile(model, fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(whole(inputs(model[0])), model(inputs(model[0])))


@pytest.mark.parametrize("kind", ["linear", "convolution"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(kind: str, dtype: torch.dtype) -> None:
    """The dtype of a dense layer, and the numbers of a product of narrow activations that is rounded once."""
    layer = LAYERS[kind]()
    dense, x = layer.materialize(), inputs(layer)
    whole = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for gradients in (False, True):
        given, found = x.clone().requires_grad_(gradients), []
        with torch.set_grad_enabled(gradients):
            want = layer(x.to(dtype))
            with torch.autocast("cpu", dtype=dtype):
                for net in (layer, whole):
                    assert torch.equal(net(given), want)
                    found.append(net(given))
                assert dense(given).dtype == want.dtype == dtype
                assert layer(x.double()).dtype == torch.float64
        if gradients:
            (gradient,) = torch.autograd.grad(found[0].float().sum(), given)
            (wanted,) = torch.autograd.grad(dense(given).sum(), given)
            torch.testing.assert_close(gradient, wanted, rtol=2e-2, atol=0.1)
    if kind == "linear":
        layer.kernel = "reference"  # in float32, whatever autocast makes of such products
        exact = (x.to(dtype).double() @ dense.weight.double().t() + dense.bias).to(dtype)
        with torch.no_grad(), torch.autocast("cpu", dtype=dtype):
            assert (layer(x) == exact).float().mean() > 0.95


def test_exported(layer: modules.PackedLayer) -> None:
    x = inputs(layer)
    program = torch.export.export(nn.Sequential(layer), (x,))
    assert torch.equal(program.module()(x), layer(x))


@pytest.mark.parametrize("kind", ["linear", "convolution"])
@pytest.mark.parametrize("regenerate", [False, True])
def test_gradients_of_activations_and_bias(kind: str, regenerate: bool) -> None:
    """Against numerical differences: float64 runs on the reference."""
    layer = LAYERS[kind](regenerate_signs=regenerate).double()
    x = inputs(layer)[:1, :, :3, :3] if kind == "convolution" else inputs(layer)[:2]
    assert layer.bias is not None

    def product(x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        layer.bias.data = bias.data
        return torch.func.functional_call(layer, {"bias": bias}, (x,))

    arguments = (x.double().requires_grad_(), layer.bias.detach().clone().requires_grad_())
    assert torch.autograd.gradcheck(product, arguments)


def test_gradients_in_float32_are_those_of_the_dense_layer() -> None:
    for layer in (linear(), convolution()):
        dense, x = layer.materialize(), inputs(layer).requires_grad_()
        (want,) = torch.autograd.grad(dense(x).square().sum(), x)
        (got,) = torch.autograd.grad(layer(x).square().sum(), x)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_gradients_of_an_empty_batch(kind: str) -> None:
    layer = LAYERS[kind]()
    for shape in ((0,), (0, 3)) if kind == "linear" else ((0,),):
        x = torch.empty(*shape, *inputs(layer).shape[1:], requires_grad=True)
        layer(x).sum().backward()
        assert x.grad.shape == x.shape
        assert not layer.bias.grad.any()


def test_what_is_around_a_packed_layer_can_be_trained() -> None:
    before = linear()
    model = nn.Sequential(nn.Linear(7, 70), before, nn.Linear(20, 1))
    x, y = torch.randn(64, 7), torch.randn(64, 1)
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(20):
        loss = (model(x) - y).square().mean()
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses[-1] < losses[0] / 2
    assert torch.equal(before.planes, linear().planes)


@pytest.mark.parametrize("padding", ["same", "valid", (2, 1)])
@pytest.mark.parametrize("size", [(3, 3), (2, 4)])
def test_paddings_of_convolutions(padding: str | tuple[int, int], size: tuple[int, int]) -> None:
    layer = PackedConv2d(random_coded((4, 3, *size)), SEED, padding=padding, dilation=2)
    dense = layer.materialize()
    assert dense.padding == padding
    x = torch.randn(2, 3, 12, 13)
    torch.testing.assert_close(layer(x), dense(x), rtol=1e-5, atol=1e-5)


def test_embedding_refuses_foreign_rows() -> None:
    for ids in ([50], [-1, 3]):
        with pytest.raises(ArgumentError) as error:
            embedding()(torch.tensor(ids))
        assert (error.value.name, error.value.want) == ("ids", "0 to 49")
        assert str(ids[0]) in str(error.value.got)


def test_refusals_name_what_is_wrong() -> None:
    with pytest.raises(UnsupportedError) as unsupported:
        PackedLinear(random_coded((4, 32)), 0, kernel="magic")
    assert unsupported.value.got == "magic"
    for build in (PackedLinear, PackedEmbedding):
        with pytest.raises(ArgumentError) as error:
            build(random_coded((4, 3, 3, 3)), 0)
        assert (error.value.name, error.value.got) == ("coded", "shape [4, 3, 3, 3]")
    with pytest.raises(ArgumentError):
        PackedConv2d(random_coded((4, 32)), 0)
    with pytest.raises(ArgumentError) as error:
        linear()(torch.ones(2, 71))
    assert (error.value.got, error.value.want) == ("shape [2, 71]", "[..., 70]")
    wrong = linear()
    wrong.planes = wrong.planes[:, :, :4]
    with pytest.raises(ArgumentError) as error:
        wrong(torch.ones(2, 70))
    assert (error.value.name, error.value.got) == ("planes", "torch.uint8 [3, 20, 4]")
    with pytest.raises(RuntimeError, match="size mismatch"):
        linear().load_state_dict(PackedLinear(random_coded((20, 33), planes=2), 0, bias=torch.ones(20)).state_dict())


class Net(nn.Module):
    """All kinds of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, 48)
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4 * 48, 5)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)[:, None, None, :].contiguous()
        return self.head(self.norm(self.conv(x)).flatten(1))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file of three coded layers of an external architecture."""
    torch.manual_seed(0)
    model = Net()
    coded = {
        "embed.weight": random_coded((30, 48), seed=1),
        "conv.weight": random_coded((4, 1, 3, 3), planes=2, flips=True, seed=2),
        "head.weight": random_coded((5, 192), seed=3),
    }
    for name, tensor in coded.items():
        model.get_parameter(name).data = reconstruct(tensor, SEED)
    attach(model, Recipe(SEED, coded, meta={"from": "a test"}))
    smask.save(model, tmp_path / "net.smask")
    return tmp_path / "net.smask"


@pytest.mark.parametrize("regenerate", [False, True])
def test_loading_packed(file: Path, regenerate: bool) -> None:
    dense = smask.load(file, model=Net())
    packed = smask.load(file, model=Net(), packed=True, regenerate_signs=regenerate)
    kinds = [type(module) for module in (packed.embed, packed.conv, packed.head)]
    assert kinds == [PackedEmbedding, PackedConv2d, PackedLinear]
    assert not packed.training
    assert not any(module.training for module in packed.modules())
    ids = torch.arange(20)
    torch.testing.assert_close(packed(ids), dense(ids), rtol=1e-5, atol=1e-4)
    assert bool(packed.head.signs) == regenerate
    assert "embed.weight" not in packed.state_dict()


def test_a_packed_model_is_saved_after_it_is_made_dense(file: Path, tmp_path: Path) -> None:
    packed = smask.load(file, model=Net(), packed=True)
    with pytest.raises(ArgumentError) as error:
        smask.save(packed, tmp_path / "again.smask")
    assert "smask.materialize" in error.value.want
    assert smask.materialize(packed) is packed
    smask.save(packed, tmp_path / "again.smask")
    assert (tmp_path / "again.smask").read_bytes() == file.read_bytes()
    assert smask.materialize(packed) is packed


def test_a_packed_model_in_bfloat16_is_made_dense(file: Path, tmp_path: Path) -> None:
    dense = smask.load(file, model=Net()).bfloat16()
    packed = smask.materialize(smask.load(file, model=Net(), packed=True).bfloat16())
    for name, tensor in dense.state_dict().items():
        assert torch.equal(packed.state_dict()[name], tensor)
    assert torch.equal(packed(torch.arange(20)), dense(torch.arange(20)))
    for model in (dense, packed):  # a file has weights to the bit
        with pytest.raises(ArgumentError) as error:
            smask.save(model, tmp_path / "narrow.smask")
        assert "torch.bfloat16" in str(error.value.got)


def test_auto_packs_what_is_large(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not any(isinstance(m, modules.PackedLayer) for m in smask.load(file, model=Net(), packed="auto").modules())
    monkeypatch.setattr(replacement, "N_AUTO_WEIGHTS", 900)
    model = smask.load(file, model=Net(), packed="auto")
    assert [type(m) for m in (model.embed, model.conv, model.head)] == [PackedEmbedding, nn.Conv2d, PackedLinear]
    with pytest.raises(ArgumentError) as error:
        smask.load(file, model=Net(), packed="yes")
    assert error.value.name == "packed"


def test_what_no_packed_layer_holds_is_refused_or_left_dense(tmp_path: Path) -> None:
    class Foreign(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(3, 4, 5)
            self.head = nn.Linear(32, 4)

    model = Foreign()
    coded = {"conv.weight": random_coded((4, 3, 5)), "head.weight": random_coded((4, 32))}
    for name, tensor in coded.items():
        model.get_parameter(name).data = reconstruct(tensor, SEED)
    attach(model, Recipe(SEED, coded))
    smask.save(model, tmp_path / "foreign.smask")
    with pytest.raises(UnsupportedError) as error:
        smask.load(tmp_path / "foreign.smask", model=Foreign(), packed=True)
    assert "conv.weight" in error.value.what
    assert error.value.got == "no packed layer for Conv1d"
    obstacles = replacement.unpackable(nn.ModuleDict({"a": nn.Conv2d(3, 4, 3, padding_mode="circular"), "b": nn.Embedding(3, 4, max_norm=1.0)}), {"a.weight": random_coded((4, 3, 3, 3)), "b.weight": random_coded((3, 4))})  # fmt: skip
    assert set(obstacles) == {"a.weight", "b.weight"}
    assert isinstance(smask.load(tmp_path / "foreign.smask", model=Foreign(), packed="auto").conv, nn.Conv1d)


class Encoder(nn.Module):
    """A layer of torch that reads the weights of its parts where they are never trained."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 1)
        self.head = nn.Linear(32, 4)

    def forward(self, x: torch.Tensor, padding: torch.Tensor | None = None) -> torch.Tensor:
        return self.head(self.layers(x, src_key_padding_mask=padding))


# Of torch's own nested tensors.
@pytest.mark.filterwarnings("ignore:.*nested tensors:UserWarning")
def test_what_torch_reads_itself_stays_dense(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, path = Encoder(), tmp_path / "encoder.smask"
    names = ("layers.layers.0.linear1.weight", "layers.layers.0.linear2.weight", "head.weight")
    coded = {name: random_coded(tuple(model.get_parameter(name).shape), seed=i) for i, name in enumerate(names)}
    for name, tensor in coded.items():
        model.get_parameter(name).data = reconstruct(tensor, SEED)
    attach(model, Recipe(SEED, coded))
    smask.save(model, path)
    with pytest.raises(UnsupportedError) as error:
        smask.load(path, model=Encoder(), packed=True)
    assert error.value.got == "a weight that TransformerEncoderLayer reads itself"
    monkeypatch.setattr(replacement, "N_AUTO_WEIGHTS", 1)
    packed, dense = smask.load(path, model=Encoder(), packed="auto"), smask.load(path, model=Encoder())
    assert [*replacement.packed_layers(packed)] == ["head.weight"]
    x, padding = torch.randn(2, 5, 32), torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    for context in (torch.no_grad(), torch.enable_grad()):
        with context:
            torch.testing.assert_close(packed(x), dense(x), rtol=1e-5, atol=1e-4)
            torch.testing.assert_close(packed(x, padding), dense(x, padding), rtol=1e-5, atol=1e-4)


def test_a_net_of_the_vocabulary(found: nn.Module, tmp_path: Path) -> None:
    smask.save(found, tmp_path / "digits.smask")
    packed = smask.load(tmp_path / "digits.smask", packed=True)
    x = torch.rand(16, 1, 8, 8)
    dense = smask.load(tmp_path / "digits.smask")
    with torch.no_grad():
        torch.testing.assert_close(packed(x), dense(x), rtol=1e-5, atol=1e-5)


class Lookup(torch.utils.data.Dataset):
    """Runs a packed layer in the workers of a loader."""

    def __init__(self, layer: PackedEmbedding) -> None:
        self.layer = layer

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.layer(torch.tensor(index))


def test_workers_of_a_loader() -> None:
    layer = embedding()
    loader = torch.utils.data.DataLoader(Lookup(layer), batch_size=3, num_workers=1, multiprocessing_context="spawn")
    assert torch.equal(torch.cat(list(loader)), layer(torch.arange(6)))


def test_packed_nets_answer_as_dense_ones_do() -> None:
    """LeNet-300-100 and conv6 with random masks; trained ones in the long tests."""
    for name, shape in (("lenet-300-100", (1, 28, 28)), ("conv6", (3, 32, 32))):
        arch = named_nets.architecture(name, input_shape=shape, mean=(0.5,) * shape[0], std=(0.3,) * shape[0])
        dense = architectures.build(arch).eval()
        weights = {f"{path}.weight": m for path, m in dense.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
        coded = {
            key: random_coded(tuple(m.weight.shape), seed=i, density=0.1, channels=True)
            for i, (key, m) in enumerate(weights.items())
        }
        for key, module in weights.items():
            module.weight.data = reconstruct(coded[key], SEED)
        packed = copy.deepcopy(dense)
        replacement.pack_layers(packed, coded, SEED)
        x = torch.rand(8, *shape, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            want, got = dense(x), packed(x)
        assert (got - want).norm() <= 1e-5 * want.norm()
        assert torch.equal(got.argmax(1), want.argmax(1))
