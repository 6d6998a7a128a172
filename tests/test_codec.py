import copy
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import smask
from smask import draft, errors, named_nets
from smask.architectures import build
from smask.coded import CodedTensor
from smask.integrity import raw_bytes
from smask.recipe import Recipe, recipe_of
from smask.reconstruction import reconstruct


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return list(a) == list(b) and all(
        a[name].dtype == b[name].dtype and torch.equal(raw_bytes(a[name]), raw_bytes(b[name])) for name in a
    )


@pytest.fixture
def file(found: nn.Module, tmp_path: Path) -> Path:
    smask.save(found, tmp_path / "model.smask")
    return tmp_path / "model.smask"


def test_accept_vectors(vectors: Path) -> None:
    from hashlib import sha256

    expected = json.loads((vectors / "accept/expected.json").read_text())
    assert set(expected) == {path.stem for path in (vectors / "accept").glob("*.smask")}
    for name, tensors in expected.items():
        data = (vectors / f"accept/{name}.smask").read_bytes()
        tasks = [task.name for task in smask.inspect(data).tasks] or [None]
        models = {task: smask.decode(data, base=vectors / "accept/base.smask", task=task) for task in tasks}
        assert [(t.get("task"), t["name"], t["shape"]) for t in tensors] == [
            (task, name, list(tensor.shape)) for task, model in models.items() for name, tensor in model.items()
        ]
        for tensor in tensors:
            decoded = models[tensor.get("task")][tensor["name"]]
            assert sha256(raw_bytes(decoded).numpy().tobytes()).hexdigest() == tensor["sha256"], name
        assert smask.verify(data, base=vectors / "accept/base.smask").same


@pytest.mark.parametrize("flips", [False, True])
def test_masks_of_more_weights_are_range_coded_too(flips: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What counts is bits where they are known: a plane of 60,000 weights, flips of kept ones, eight values of 16."""
    random = torch.Generator().manual_seed(3)
    kept = torch.rand(200, 300, generator=random) < torch.rand(300, generator=random) ** 2  # some inputs say more
    bits = torch.from_numpy(np.packbits(kept.flatten().numpy(), bitorder="little"))
    flip = bits & torch.randint(256, bits.shape, dtype=torch.uint8, generator=random) if flips else None
    coded = CodedTensor((200, 300), 1, (bits,), torch.ones(1), flip=flip)
    state = {"w": reconstruct(coded, 7), "v": torch.ones(8, dtype=torch.bfloat16)}
    monkeypatch.setattr(draft, "MOST_RANGED", 0)
    sizes, n_bits = [], 60_000 + 8 * 16 + (int(kept.sum()) if flips else 0)
    for most in (n_bits, n_bits - 1):
        monkeypatch.setattr(draft, "MOST_RANGED_BITS", most)
        data = smask.encode(state, Recipe(7, {"w": coded}))
        assert smask.verify(data).same
        sizes.append(len(data))
    assert sizes[0] < (0.9 if flips else 0.8) * sizes[1]


CLAUSES_OF_REJECTED = (
    "C-01", "C-02", "C-03", "C-04", "Z-01", "M-01", "M-02", "M-03", "M-04", "M-05", "M-06", "M-07", "M-08", "M-09", "M-12", "M-13", "M-14",
    "M-15", "M-16", "M-17", "M-18", "B-02", "E-01", "E-05", "E-06", "F-03", "F-04", "R-02", "I-03", "I-04", "S-06", "A-01", "A-02", "A-03", "A-04", "A-05", "A-07",
    "T-01",
)  # fmt: skip


@pytest.mark.clause("A-01")
@pytest.mark.clause("A-02")
@pytest.mark.clause("A-03")
@pytest.mark.clause("A-04")
@pytest.mark.clause("A-05")
@pytest.mark.clause("M-01")
@pytest.mark.clause("M-02")
@pytest.mark.clause("M-03")
@pytest.mark.clause("M-04")
@pytest.mark.clause("M-05")
@pytest.mark.clause("M-06")
@pytest.mark.clause("M-07")
@pytest.mark.clause("M-08")
@pytest.mark.clause("M-09")
@pytest.mark.clause("M-10")
@pytest.mark.clause("M-11")
@pytest.mark.clause("M-12")
@pytest.mark.clause("M-13")
@pytest.mark.clause("M-14")
@pytest.mark.clause("M-15")
@pytest.mark.clause("M-16")
@pytest.mark.clause("M-17")
@pytest.mark.clause("M-18")
@pytest.mark.clause("I-03")
@pytest.mark.clause("I-04")
@pytest.mark.clause("S-06")
@pytest.mark.clause("F-03")
@pytest.mark.clause("F-04")
@pytest.mark.clause("R-02")
@pytest.mark.clause("L-01")
def test_reject_vectors(vectors: Path) -> None:
    expected = json.loads((vectors / "reject/expected.json").read_text())
    assert set(expected) == {path.stem for path in (vectors / "reject").glob("*.smask")}
    assert {case["clause"] for case in expected.values()} == {*CLAUSES_OF_REJECTED, None}
    for name, case in expected.items():
        read = smask.load if case["by"] == "loader" else smask.decode
        with pytest.raises(getattr(errors, case["error"])) as caught:
            read(vectors / f"reject/{name}.smask", base=vectors / "accept/base.smask")
        assert getattr(caught.value, "clause", None) == case["clause"], name
        assert "\n" not in str(caught.value)


def test_a_tied_language_model_runs_dense_and_packed(vectors: Path, tmp_path: Path) -> None:
    file = vectors / "accept/language.smask"
    model, packed = smask.load(file), smask.load(file, packed=True)
    assert model.get_parameter("5.weight") is model.get_parameter("0.weight")
    tokens = torch.tensor([[0, 4, 2], [1, 1, 3]])
    assert model(tokens).shape == (2, 3, 5)
    difference = packed(tokens).float() - model(tokens)
    assert difference.norm() < 0.02 * model(tokens).norm()
    assert same(smask.materialize(packed).state_dict(), model.state_dict())
    smask.save(model, tmp_path / "again.smask")
    assert (tmp_path / "again.smask").read_bytes() == file.read_bytes()


def test_save_and_load(found: nn.Module, file: Path) -> None:
    model = smask.load(file)
    assert not model.training
    assert same(model.state_dict(), found.state_dict())
    assert same(smask.decode(file), found.state_dict())
    x = torch.rand(3, 1, 8, 8)
    assert torch.equal(model(x), found(x))
    assert recipe_of(model).meta == {"task": "digits"}


@pytest.mark.clause("W-01")
def test_same_model_same_bytes(found: nn.Module, file: Path, tmp_path: Path) -> None:
    again = [smask.load(file), copy.deepcopy(smask.load(file)), pickle.loads(pickle.dumps(smask.load(file)))]
    for model in again:
        assert smask.save(model, tmp_path / "again.smask") == file.stat().st_size
        assert (tmp_path / "again.smask").read_bytes() == file.read_bytes()
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert smask.encode(found.state_dict(), recipe_of(found)) == file.read_bytes()
    finally:
        torch.set_num_threads(n_threads)


@pytest.mark.clause("W-01")
def test_environment_does_not_matter(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "again.smask"
    code = f"import smask; smask.save(smask.load({str(file)!r}), {str(out)!r})"
    odd = {"OMP_NUM_THREADS": "1", "LC_ALL": "C", "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo", "ZSTD_CLEVEL": "1"}
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | odd, cwd=tmp_path)
    assert out.read_bytes() == file.read_bytes()


def test_overhead_of_a_perceptron() -> None:
    """At most 400 bytes beside planes and floats for three layers, at most 40 for a further one."""

    def overhead(widths: str) -> int:
        arch = named_nets.architecture(f"mlp:{widths}", mean=[0.1307], std=[0.3081])
        state, coded = dict(build(arch).state_dict()), {}
        random = torch.Generator().manual_seed(0)
        for stream, name in enumerate(name for name in state if name.endswith("weight")):
            n = state[name].numel()
            mask = torch.randint(0, 256, (-(-n // 8),), generator=random, dtype=torch.uint8)
            if n % 8:
                mask[-1] &= (1 << n % 8) - 1
            coded[name] = CodedTensor(
                tuple(state[name].shape), stream, (mask,), torch.rand(len(state[name])).bfloat16().float()
            )
            state[name] = reconstruct(coded[name], 0)
        state = {name: t if name in coded else t.bfloat16().float() for name, t in state.items()}
        return smask.inspect(smask.encode(state, Recipe(0, coded, arch))).n_overhead_bytes

    three, eight = overhead("784-300-100-10"), overhead("784-300-250-200-150-120-110-100-10")
    assert three <= 400
    assert (eight - three) / 5 <= 40


@pytest.mark.clause("A-06")
def test_external_module(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    batches = [(torch.rand(8, 6), torch.randint(0, 3, (8,))) for _ in range(3)]
    found = smask.find_masks(model, batches, density=0.5, epochs=2)
    smask.save(found, tmp_path / "x.smask")
    with pytest.raises(errors.ArchitectureError, match="model=your_module"):
        smask.load(tmp_path / "x.smask")
    fresh = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    loaded = smask.load(tmp_path / "x.smask", model=fresh)
    assert loaded is fresh
    assert same(loaded.state_dict(), found.state_dict())
    wrong = nn.Sequential(nn.Linear(6, 5, bias=False), nn.BatchNorm1d(4), nn.Linear(4, 3).half())
    before = copy.deepcopy(wrong.state_dict())
    with pytest.raises(errors.ArchitectureError) as caught:
        smask.load(tmp_path / "x.smask", model=wrong)
    assert caught.value.differences == (
        "0.bias is in the file but not in the model",
        "0.weight is F32 [5, 6] in the model, F32 [4, 6] in the file",
        "2.weight is F16 [3, 4] in the model, F32 [3, 4] in the file",
        "2.bias is F16 [3] in the model, F32 [3] in the file",
    )
    assert same(wrong.state_dict(), before)


def test_changed_weights_are_not_saved(found: nn.Module, tmp_path: Path) -> None:
    changed = copy.deepcopy(found)
    with torch.no_grad():
        changed.get_parameter("2.weight").mul_(2)
    with pytest.raises(errors.ArgumentError) as caught:
        smask.save(changed, tmp_path / "x.smask")
    assert "changed" in str(caught.value)
    with pytest.raises(errors.ArgumentError) as caught:
        smask.save(nn.Linear(2, 2), tmp_path / "x.smask")
    assert caught.value.name == "model"
    assert os.listdir(tmp_path) == []


def test_biases_may_be_trained_on(file: Path, tmp_path: Path) -> None:
    model = smask.load(file)
    with torch.no_grad():
        model.get_parameter("2.bias").add_(0.1)
    smask.save(model, tmp_path / "b.smask")
    assert same(smask.load(tmp_path / "b.smask").state_dict(), model.state_dict())


@pytest.mark.clause("C-04")
def test_every_truncation_is_refused(found: nn.Module) -> None:
    data = smask.encode(found.state_dict(), recipe_of(found))
    for n_bytes in range(len(data)):
        with pytest.raises(errors.FormatError):
            smask.decode(data[:n_bytes])


@pytest.mark.clause("L-01")
def test_limits_are_the_callers(file: Path) -> None:
    n_values = sum(tensor.numel() for tensor in smask.decode(file).values())
    for read in (smask.decode, smask.load, smask.verify, smask.inspect):
        read(file, limits=smask.Limits(max_weights=n_values))
        with pytest.raises(errors.LimitError) as caught:
            read(file, limits=smask.Limits(max_weights=n_values - 1))
        assert caught.value.asked == n_values


@pytest.mark.clause("L-01")
def test_terabytes_are_refused_in_little_memory(vectors: Path) -> None:
    pytest.importorskip("resource")
    code = (
        "import resource, smask.manifest as m, sys\n"
        "from smask import Limits\n"
        "from smask.errors import LimitError\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2**29, 2**29))\n"
        "names = 'terabytes', 'beyond-64-bits', 'scales-without-weights', 'nothing-of-terabytes', 'nothing-beyond-64-bits'\n"
        "for name in names:\n"
        "    try: m.open_file(open(f'{sys.argv[1]}/{name}.smask', 'rb').read(), limits=Limits())\n"
        "    except LimitError as error: print(error.limit)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, vectors / "reject"], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["max_weights"] * 5


def test_absent_device_is_named(file: Path) -> None:
    for read in (smask.decode, smask.load, smask.verify):
        with pytest.raises(errors.DeviceError) as caught:
            read(file, device="cuda:77")
        assert caught.value.device == "cuda:77"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_regenerates_the_same(file: Path, found: nn.Module) -> None:
    assert smask.verify(file, device="cuda").same
    model = smask.load(file, device="cuda")
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"cuda"}
    assert same({name: tensor.cpu() for name, tensor in model.state_dict().items()}, found.state_dict())
