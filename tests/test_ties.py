"""What one module has under two names is the same bytes in a file, or the file is refused by who loads it."""

from pathlib import Path

import pytest
import torch
from torch import nn

import smask
from smask import codec
from smask.coded import CodedTensor
from smask.errors import ArchitectureError, FormatError
from smask.recipe import EXTERNAL, Recipe
from smask.reconstruction import reconstruct

LAYER = {"op": "linear", "inputs": 8, "outputs": 8, "bias": False}
ARCH = {"layers": [LAYER, LAYER | {"tied": "0.weight"}]}


def coded(bits: int, *planes: int, scale: float = 1.0) -> CodedTensor:
    rows = (torch.full((8,), plane, dtype=torch.uint8) for plane in (bits, *planes))
    return CodedTensor((8, 8), 0, tuple(rows), torch.tensor([scale]))


def file(first: CodedTensor, second: CodedTensor, arch: dict[str, object] = ARCH) -> bytes:
    masked = {"0.weight": first, "1.weight": second}
    return smask.encode({name: reconstruct(tensor, 3) for name, tensor in masked.items()}, Recipe(3, masked, arch))


@pytest.mark.clause("A-07")
@pytest.mark.parametrize("packed", [False, True])
def test_other_bytes_are_refused(packed: bool, vectors: Path) -> None:
    for data in (file(coded(5), coded(6)), (vectors / "reject/tied-to-other-bytes.smask").read_bytes()):
        assert smask.verify(data).same
        with pytest.raises(FormatError) as caught:
            smask.load(data, packed="auto" if packed else False)
        assert (caught.value.clause, caught.value.where) == ("A-07", "tensor '1.weight'")
    assert smask.load(file(coded(5), coded(5)), packed=packed).eval()


@pytest.mark.clause("A-07")
def test_other_bytes_in_a_coarser_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice one plane and one plane of twice the scale are the same weights as long as no plane is missing."""
    monkeypatch.setattr(codec, "_same_bits", lambda tensor, written: None)
    data = file(coded(5, 0), coded(5, scale=2.0))
    model = smask.load(data)
    assert model.get_parameter("1.weight") is model.get_parameter("0.weight")
    with pytest.raises(FormatError) as caught:
        smask.load(data, max_planes=1)
    assert caught.value.clause == "A-07"


def test_a_module_that_ties_what_differs() -> None:
    model = nn.Sequential(*(nn.Linear(8, 8, bias=False) for _ in range(2)))
    data = file(coded(5), coded(6), dict(EXTERNAL))
    assert not torch.equal(*smask.load(data, model=model).state_dict().values())
    model[1].weight = model[0].weight
    with pytest.raises(ArchitectureError) as caught:
        smask.load(data, model=model)
    assert caught.value.differences == ("0.weight and 1.weight are one in the model and differ in the file",)


@pytest.mark.clause("A-07")
@pytest.mark.parametrize("packed", [False, True])
def test_a_task_that_differs_changes_nothing(packed: bool) -> None:
    tasks = smask.Tasks(smask.pack({"a": file(coded(5), coded(5)), "b": file(coded(5), coded(6))}))
    model, x = tasks.load("a", packed=packed), torch.rand(2, 8)
    before = model(x)
    with pytest.raises(FormatError) as caught:
        tasks.switch(model, "b")
    assert caught.value.clause == "A-07"
    assert torch.equal(model(x), before)
