import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from smask import architectures, named_nets
from smask.errors import ArchitectureError, ArgumentError, UnsupportedError


@pytest.mark.parametrize(
    ("name", "n_weights", "n_parameters"),
    [
        ("lenet-300-100", 266_200, 266_610),  # Frankle and Carbin 2019, figure 2: 266 K
        ("mlp:784-1200-1200-10", 2_392_800, 2_395_210),
        ("mnist-cnn", 1_199_648, 1_199_882),  # printed by the PyTorch example
        ("conv2", 4_300_992, 4_301_642),  # Frankle and Carbin 2019, figure 2: 4.3 M
        ("conv4", 2_425_024, 2_425_930),  # 2.4 M
        ("conv6", 2_261_184, 2_262_602),  # Ramanujan et al. 2020: 2.26 M
        ("conv8", 5_275_840, 5_278_282),  # 5.28 M
        ("resnet18", 11_164_352, 11_173_962),  # 11.17 M of kuangliu/pytorch-cifar
        ("resnet18:16", 699_056, 701_466),
        ("resnet20", 268_336, 269_722),  # He et al. 2016, table 6: 0.27 M
        ("resnet32", 461_872, 464_154),  # 0.46 M
        ("resnet44", 655_408, 658_586),  # 0.66 M
        ("resnet56", 848_944, 853_018),  # 0.85 M
    ],
)
def test_published_parameter_counts(name: str, n_weights: int, n_parameters: int) -> None:
    arch = named_nets.architecture(name)
    model = architectures.build(arch).eval()
    parameters = list(model.parameters())
    assert sum(p.numel() for p in parameters) == n_parameters
    assert sum(p.numel() for p in parameters if p.dim() > 1) == n_weights
    assert model(torch.zeros(2, *arch["input"])).shape == (2, 10)


def test_gpt_is_causal_and_counts() -> None:
    arch = named_nets.architecture("gpt:3x48x4x32", n_classes=65)
    model = architectures.build(arch).eval()
    # Radford et al. 2019: 12 W**2 weights a block, embeddings and head beside them; two norms a block and one at the end.
    matrices = 3 * 12 * 48**2 + 2 * 65 * 48 + 32 * 48
    assert sum(p.numel() for p in model.parameters()) == matrices + 7 * 2 * 48
    tokens = torch.arange(20)[None] % 65
    changed = tokens.clone()
    changed[0, 12] = 64
    a, b = model(tokens), model(changed)
    assert a.shape == (1, 20, 65)
    assert torch.allclose(a[:, :12], b[:, :12], atol=1e-5)
    assert not torch.allclose(a[:, 12:], b[:, 12:], atol=1e-3)


def test_gpt_with_a_tied_head() -> None:
    arch = named_nets.architecture("gpt:1x16x2-tied", n_classes=20)
    assert arch["input"] == [named_nets.CONTEXT]
    model = architectures.build(arch)
    assert model.get_parameter("5.weight") is model.get_parameter("0.weight")


@pytest.mark.parametrize(
    "name",
    [
        "gpt:4x128",
        "gpt:4x130x4",
        "gpt:0x128x4",
        "gpt:4x128x4x9-tide",
        "gpt:1001x8x1",
        "gpt:1x1x1x1x1",
        "gpt:1x1x" + "1" * 5_000,
    ],
)
def test_unusable_sizes_of_a_gpt(name: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        named_nets.architecture(name)
    assert caught.value.name == "arch"


@pytest.mark.parametrize(
    "name", ["resnet18:0", "resnet18:-4", "resnet18:16-32", "resnet18:x", "resnet18:32768", "resnet18:" + "9" * 5_000]
)
def test_unusable_width_of_a_resnet(name: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        named_nets.architecture(name)
    assert (caught.value.name, caught.value.got) == ("arch", name)


def test_only_some_nets_have_a_width() -> None:
    with pytest.raises(UnsupportedError):
        named_nets.architecture("resnet20:16")


def test_gpt_for_data_that_are_no_tokens() -> None:
    with pytest.raises(ArchitectureError):
        named_nets.architecture("gpt:1x16x2", input_shape=(1, 8, 8), n_classes=10)


@pytest.mark.parametrize("name", ["lenet-300-100", "mnist-cnn", "conv4", "resnet18", "resnet20"])
def test_nets_follow_the_data(name: str) -> None:
    arch = named_nets.architecture(name, input_shape=(3, 40, 36), n_classes=7, mean=[0.1, 0.2, 0.3], std=[1, 1, 1])
    assert architectures.build(arch).eval()(torch.zeros(1, 3, 40, 36)).shape == (1, 7)


def test_file(tmp_path: Path) -> None:
    arch = {"layers": ["flatten", {"op": "linear", "inputs": 4, "outputs": 2}]}
    (tmp_path / "a.json").write_text(json.dumps(arch))
    assert named_nets.architecture(str(tmp_path / "a.json")) == arch
    (tmp_path / "b.json").write_text("[1]")
    (tmp_path / "c.json").write_text("{")
    (tmp_path / "d.json").write_bytes(b"\xff")
    for name in ("b", "c", "d", "missing"):
        with pytest.raises(ArgumentError) as caught:
            named_nets.architecture(str(tmp_path / f"{name}.json"))
        assert caught.value.name == "arch"


@pytest.mark.parametrize("name", ["alexnet", "mlp", "gpt", "lenet-300-100:3", "conv3", "resnet20:1", ""])
def test_unknown_names_list_the_known(name: str) -> None:
    with pytest.raises(UnsupportedError) as caught:
        named_nets.architecture(name)
    assert caught.value.known == named_nets.NAMES


@pytest.mark.parametrize(
    "name", ["mlp:", "mlp:784", "mlp:784-x-10", "mlp:784-0-10", "mlp:-5-3", "mlp:784-99999999999-10"]
)
def test_unusable_widths(name: str) -> None:
    with pytest.raises((ArgumentError, UnsupportedError)) as caught:
        named_nets.architecture(name)
    assert name.removeprefix("mlp:") in str(caught.value)


def test_misfits_are_named_together() -> None:
    with pytest.raises(ArchitectureError) as caught:
        named_nets.architecture("mlp:784-300-10", input_shape=(1, 8, 8), n_classes=12)
    assert len(caught.value.differences) == 2
    for name in ("conv6", "mnist-cnn"):
        with pytest.raises(ArchitectureError):
            named_nets.architecture(name, input_shape=(1, 4, 4))
    with pytest.raises(ArchitectureError):
        named_nets.architecture("conv6", input_shape=(64,))


def test_public_resnet20_checkpoint(real_data: Path) -> None:
    """The net is the published one: the public checkpoint loads strictly and has its published accuracy (91.73 %)."""
    arch = named_nets.architecture("resnet20", mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
    model = architectures.build(arch).eval()
    checkpoint = torch.load(real_data / "checkpoints/resnet20-12fca82f.th", weights_only=True, map_location="cpu")
    model.load_state_dict({name.removeprefix("module."): value for name, value in checkpoint["state_dict"].items()})
    grid = np.asarray(Image.open(real_data / "cifar10/test.webp").convert("RGB"))[:320]
    images = grid.reshape(10, 32, 100, 32, 3).transpose(0, 2, 4, 1, 3).reshape(1000, 3, 32, 32)
    labels = torch.from_numpy(np.load(real_data / "cifar10/labels.npz")["y_test"][:1000].astype(np.int64))
    with torch.no_grad():
        right = model(torch.from_numpy(images / np.float32(255))).argmax(1) == labels
    assert 0.90 <= float(right.float().mean()) <= 0.94
