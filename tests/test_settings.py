"""What a process has set for torch changes nothing: the default dtype, the default device, what becomes of subnormals."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch

import smask
from smask import architectures, bases, fills, manifest
from smask.coded import CodedTensor
from smask.errors import FormatError
from smask.integrity import digest
from smask.recipe import Recipe
from smask.reconstruction import reconstruct

Setting = Callable[[], AbstractContextManager[object]]


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def flushing() -> Iterator[None]:
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormals")
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


SETTINGS: dict[str, Setting] = {
    "float64": functools.partial(default_dtype, torch.float64), "bfloat16": functools.partial(default_dtype, torch.bfloat16),
    "meta": functools.partial(torch.device, "meta"), "flushing": flushing,
}  # fmt: skip


@pytest.fixture(params=SETTINGS)
def setting(request: pytest.FixtureRequest) -> Setting:
    """Tables that were made before are forgotten."""
    for table in (fills._TABLES, fills._SPREAD_TABLES):
        table.clear()
    bases.normal_table.cache_clear()
    return SETTINGS[request.param]


def digests(vectors: Path, base: object) -> dict[tuple[object, ...], str]:
    out = {}
    for path in sorted((vectors / "accept").glob("*.smask")):
        described = manifest.open_file(path.read_bytes(), limits=smask.Limits()).manifest
        for task in [task.name for task in described.tasks] or [None]:
            for max_planes in (None, 1, 2):
                tensors = smask.decode(path, base=base, task=task, max_planes=max_planes)
                out[path.stem, task, max_planes] = digest(tensors)
                if "layers" in described.arch and not described.tasks and max_planes is None:
                    out[path.stem, "loaded"] = digest(smask.load(path).state_dict())
    return out


@pytest.fixture(scope="module")
def plainly(vectors: Path) -> dict[tuple[object, ...], str]:
    return digests(vectors, smask.open_base(vectors / "accept/base.smask"))


@pytest.mark.clause("R-01")
def test_vectors(setting: Setting, plainly: dict[tuple[object, ...], str], vectors: Path) -> None:
    base = smask.open_base(vectors / "accept/base.smask")
    with setting():
        assert digests(vectors, base) == plainly


@pytest.mark.clause("R-09")
def test_a_coarser_tensor_without_offset(setting: Setting) -> None:
    """The offset of a thousand levels is no number of bfloat16."""
    planes = tuple(torch.tensor([255 * (plane < 3)], dtype=torch.uint8) for plane in range(12))
    coded = CodedTensor((8,), 0, planes, torch.ones(1), base="one")
    data = smask.encode({"w": reconstruct(coded, 0)}, Recipe(0, {"w": coded}))
    with setting():
        tensor = smask.decode(data, max_planes=1)["w"]
    assert tensor.tolist() == [2048 + 7 / 16 * 2047] * 8


@pytest.mark.clause("F-02")
@pytest.mark.clause("W-01")
@pytest.mark.parametrize(
    ("stored", "name", "largest"),
    [(torch.float16, "F16", 2**10 - 1), (torch.bfloat16, "BF16", 2**7 - 1), (torch.float32, "F32", 2**23 - 1)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_subnormal_values_are_widened_and_written(
    setting: Setting, stored: torch.dtype, name: str, largest: int, dtype: torch.dtype
) -> None:
    bits = {2: torch.int16, 4: torch.int32}[stored.itemsize]
    found = torch.tensor([0, 1, 2, 77, largest], dtype=bits)
    state = {"w": torch.cat([found, found | torch.iinfo(bits).min]).view(stored).to(dtype)}
    data = smask.encode(state, Recipe(0, {}))
    assert (manifest.open_file(data, limits=smask.Limits()).manifest.tensors[0].stored or "F32") == name
    with setting():
        again = smask.encode(state, Recipe(0, {}))
        decoded = digest(smask.decode(data))
    assert again == data
    assert decoded == digest(state)


@pytest.mark.clause("R-02")
@pytest.mark.parametrize("max_planes", [None, 1])
def test_subnormal_scales_are_refused(
    setting: Setting, max_planes: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where they count as 0 in a comparison, too."""
    planes = (torch.tensor([255], dtype=torch.uint8),) * 2
    coded = CodedTensor((8,), 0, planes, torch.tensor([2.0**-127]), base="one")
    with monkeypatch.context() as patch:
        patch.setattr("smask.codec._check_coded", lambda *_: None)
        data = smask.encode({"w": torch.zeros(8)}, Recipe(0, {"w": coded}))
    with setting(), pytest.raises(FormatError) as caught:
        smask.decode(data, max_planes=max_planes)
    assert caught.value.clause == "R-02"


def test_nets_have_parameters_of_float32(setting: Setting) -> None:
    layers = [
        {"op": "normalize", "mean": [0.1], "std": [0.3]}, {"op": "linear", "inputs": 4, "outputs": 4}, {"op": "batch-norm-1d", "features": 4},
        {"op": "layer-norm", "features": 4}, {"op": "attention", "features": 4, "heads": 2}, {"op": "embedding", "entries": 2, "features": 3},
        {"op": "positions", "entries": 2, "features": 3}, {"op": "conv2d", "inputs": 1, "outputs": 2, "kernel": 1}, {"op": "batch-norm-2d", "features": 2},
    ]  # fmt: skip
    with setting():
        model = architectures.build({"layers": layers})
    tensors = [*model.parameters(), *model.buffers()]
    assert {tensor.dtype for tensor in tensors if tensor.is_floating_point()} == {torch.float32}
    assert {tensor.device.type for tensor in tensors} == {"cpu"}
    assert torch.equal(model[0].mean, torch.tensor([0.1]))
