"""Shared fixtures: where the optional real data is, a small trained model, paths of the repository."""

from __future__ import annotations

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    # Tests run beside each other: threads of several processes would wait for each other, and for cores that are busy.
    # Commands that tests start have it from here too, and torch reads it when it is imported.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import smask
from smask import architectures, named_nets
from smask.recipe import Recipe
from smask.search.data import Batches, Dataset, digits

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def vectors() -> Path:
    return ROOT / "spec/vectors"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real data sets and checkpoints; tests that need it skip visibly without it."""
    folder = Path(os.environ.get("SMASK_DATA", ROOT.parent / "shared/data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set SMASK_DATA")
    return folder


@pytest.fixture(scope="session")
def digits_data() -> Dataset:
    return digits()


def convolutional(dataset: Dataset, *, features: int, dropout: float) -> nn.Module:
    """A net of the digits: batch norm has buffers, dropout draws random numbers in every step."""
    mean, std = dataset.statistics()
    torch.manual_seed(0)
    return architectures.build(
        {
            "layers": [
                {"op": "normalize", "mean": mean, "std": std},
                {"op": "conv2d", "inputs": 1, "outputs": features, "kernel": 3},
                {"op": "batch-norm-2d", "features": features}, "relu",
                {"op": "dropout", "p": dropout}, "flatten", {"op": "linear", "inputs": 36 * features, "outputs": 10},
            ]
        }
    )  # fmt: skip


@pytest.fixture(scope="session")
def found(digits_data: Dataset) -> torch.nn.Module:
    """A masked net of the bundled digits after a short search."""
    mean, std = digits_data.statistics()
    arch = named_nets.architecture("mlp:64-48-32-10", input_shape=(1, 8, 8), mean=mean, std=std)
    batches = Batches(digits_data, batch_size=64, seed=1)
    return smask.find_masks(
        architectures.build(arch), batches, method="single", density=0.2, epochs=15, seed=5, meta={"task": "digits"}
    )


def without_masks(recipe: Recipe) -> Recipe:
    """The recipe of the same weights stored as values."""
    return Recipe(recipe.seed, {}, recipe.arch)


NORMED = {
    "input": [1, 8, 8],
    "layers": [
        {"op": "conv2d", "inputs": 1, "outputs": 16, "kernel": 3, "padding": 1, "bias": False},
        {"op": "batch-norm-2d", "features": 16}, "relu",
        {"op": "conv2d", "inputs": 16, "outputs": 32, "kernel": 3, "stride": 2, "bias": False},
        {"op": "batch-norm-2d", "features": 32}, "relu", "flatten",
        {"op": "linear", "inputs": 288, "outputs": 10},
    ],
}  # fmt: skip


@pytest.fixture(scope="session")
def normed_net() -> nn.Module:
    """A small network with batch norms that knows its digits."""
    data = digits()
    x, y = data.inputs(data.x_train), data.y_train
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = architectures.build(NORMED)
        optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
        for _ in range(8):
            for index in torch.randperm(len(x)).split(64):
                optimizer.zero_grad()
                F.cross_entropy(model(x[index]), y[index]).backward()
                optimizer.step()
    return model.eval()


@pytest.fixture(scope="session")
def inputs() -> torch.Tensor:
    """Digits as a net takes them, [600, 1, 8, 8]."""
    data = digits()
    return data.inputs(data.x_train[:600])


def right(model: nn.Module) -> float:
    """The part of the test digits that a model is right on."""
    data = digits()
    with torch.no_grad():
        return float((model.eval()(data.inputs(data.x_test)).argmax(1) == data.y_test).float().mean())
