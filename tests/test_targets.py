"""What the project promises of a whole search; takes minutes: ``pytest -m long``."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import smask
from smask import architectures, named_nets
from smask.coded import CodedTensor
from smask.recipe import Recipe, attach
from smask.reconstruction import reconstruct
from smask.search.data import Batches, load_dataset
from test_packing import random_coded


@pytest.mark.long
def test_mnist_with_all_defaults(real_data: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "smask", "encode", "--data", str(real_data / "mnist"), "--arch", "lenet-300-100"]
    done = subprocess.run(
        [*command, "--json", "-q", "-o", str(tmp_path / "mnist.smask")], capture_output=True, check=True
    )
    report = json.loads(done.stdout)
    assert report["accuracy"] >= 0.983
    assert report["n_bytes"] == (tmp_path / "mnist.smask").stat().st_size <= 11_000
    assert report["n_plane_bytes"] <= report["entropy_bytes"]
    assert report["seconds_encode"] <= 0.02 * report["seconds_search"]


@pytest.mark.long
def test_digits_with_no_argument(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "smask", "encode", "--json", "-q"]
    done = subprocess.run(command, capture_output=True, check=True, cwd=tmp_path)
    report = json.loads(done.stdout)
    assert report["accuracy"] >= 0.95
    assert report["n_bytes"] == (tmp_path / "digits.smask").stat().st_size <= 1_500
    assert report["seconds_search"] < 60


def _answers_agree(path: Path, images: torch.Tensor) -> None:
    """Packed and dense, signs held and regenerated: the same answers to all images, logits within 1e-5."""
    dense = smask.load(path)
    packed = [smask.load(path, packed=True), smask.load(path, packed=True, regenerate_signs=True)]
    n_clear = 0
    with torch.inference_mode():
        for batch in images.split(500):
            want = dense(batch)
            for model in packed:
                got = model(batch)
                assert bool(((got - want).norm(dim=1) <= 1e-5 * want.norm(dim=1)).all())
                # Two logits closer to each other than that are no answer.
                top = want.topk(2).values
                clear = top[:, 0] - top[:, 1] > 2e-5 * want.norm(dim=1)
                assert torch.equal(got.argmax(1)[clear], want.argmax(1)[clear])
                n_clear += int(clear.sum())
    assert n_clear >= 0.99 * len(packed) * len(images)


@pytest.mark.long
def test_packed_lenet_answers_all_of_mnist_as_the_dense_one(real_data: Path, tmp_path: Path) -> None:
    data = load_dataset(str(real_data / "mnist"))
    mean, std = data.statistics()
    arch = named_nets.architecture("lenet-300-100", input_shape=data.input_shape, mean=mean, std=std)
    net = architectures.build(arch)
    found = smask.find_masks(net, Batches(data, batch_size=128, seed=0), density=0.05, epochs=1, seed=0)
    smask.save(found, tmp_path / "lenet.smask")
    assert len(data.x_test) == 10_000
    _answers_agree(tmp_path / "lenet.smask", data.inputs(data.x_test))


@pytest.mark.long
def test_packed_conv6_answers_all_of_cifar10_as_the_dense_one(real_data: Path, tmp_path: Path) -> None:
    """Random masks at 10 %: that packed and dense agree does not depend on what a net has learned."""
    image = pytest.importorskip("PIL.Image")
    image.MAX_IMAGE_PIXELS = None
    grid = np.asarray(image.open(real_data / "cifar10/test.webp").convert("RGB"))
    pixels = grid.reshape(100, 32, 100, 32, 3).transpose(0, 2, 4, 1, 3).reshape(10_000, 3, 32, 32)
    arch = named_nets.architecture("conv6", input_shape=(3, 32, 32), mean=(0.5,) * 3, std=(0.25,) * 3)
    net = architectures.build(arch)
    coded = {}
    for stream, (path, module) in enumerate(net.named_modules()):
        if isinstance(module, nn.Linear | nn.Conv2d):
            shape = tuple(module.weight.shape)
            masks = tuple(random_coded(shape, seed=stream, density=0.1).planes)
            scale = torch.full((shape[0],), float(module.weight[0].numel()) ** -0.5 * 4)
            coded[f"{path}.weight"] = CodedTensor(shape, stream, masks, scale)
            module.weight.data = reconstruct(coded[f"{path}.weight"], 3)
    attach(net, Recipe(3, coded, arch))
    smask.save(net, tmp_path / "conv6.smask")
    _answers_agree(tmp_path / "conv6.smask", torch.from_numpy(pixels).float() / 255)
