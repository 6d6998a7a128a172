"""Checkpoints of other software: what is read, and what is refused with file, tensor and advice."""

import collections
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import smask
from smask import pickles
from smask.checkpoints import open_checkpoint
from smask.errors import ArgumentError, CheckpointError, DataError
from smask.integrity import raw_bytes


def tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {
        "z.weight": torch.randn(7, 30, generator=random),
        "z.half": torch.randn(5, generator=random).half(),
        "a.brain": torch.randn(3, 4, generator=random).bfloat16(),
        "a.double": torch.randn(2, generator=random).double(),
        "a.count": torch.tensor(7),
        "a.mask": torch.tensor([True, False]),
        "a.none": torch.zeros(0, 3),
        "a.turned": torch.randn(4, 6, generator=random).T,
    }


def agrees(path: object, expected: dict[str, torch.Tensor], *, in_order: bool = True) -> None:
    checkpoint = open_checkpoint(path)
    names = [entry.name for entry in checkpoint.entries]
    assert names == list(expected) if in_order else set(names) == set(expected)
    for entry in checkpoint.entries:
        tensor = checkpoint.read(entry.name)
        want = expected[entry.name]
        assert (entry.shape, tensor.shape, tensor.dtype) == (want.shape, want.shape, want.dtype)
        assert torch.equal(raw_bytes(tensor), raw_bytes(want))
        assert not tensor.requires_grad


def refused(path: object, **options) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path, **options)
    assert isinstance(caught.value, DataError)
    assert caught.value.exit_code == 3
    assert caught.value.advice
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("name", ["m.pt", "m.pth", "m.th", "m.bin", "m"])
@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_torch_save(tmp_path: Path, name: str, zipped: bool) -> None:
    torch.save(tensors(), tmp_path / name, _use_new_zipfile_serialization=zipped)
    agrees(tmp_path / name, tensors())
    agrees(str(tmp_path / name), tensors())


def test_a_mapped_file_is_mapped_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickles, "N_BYTES_MAPPED", 100)
    torch.save({"state_dict": tensors()}, tmp_path / "m.pt")
    agrees(tmp_path / "m.pt", tensors())


def test_safetensors_with_metadata(tmp_path: Path) -> None:
    state = {name: tensor.contiguous() for name, tensor in tensors().items()}
    save_file(state, tmp_path / "m.safetensors", {"format": "pt", "note": "é"})
    agrees(tmp_path / "m.safetensors", state, in_order=False)
    assert open_checkpoint(tmp_path / "m.safetensors").metadata == {"format": "pt", "note": "é"}
    with pytest.raises(ArgumentError) as caught:
        open_checkpoint(tmp_path / "m.safetensors", key="ema")
    assert caught.value.name == "key"


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards_and_the_folder_of_a_model(tmp_path: Path, suffix: str) -> None:
    state = {name: tensor.contiguous() for name, tensor in tensors().items()}
    names = list(state)
    weight_map = {}
    for number, part in enumerate((names[:3], names[3:])):
        shard = f"model-{number}.{suffix}"
        content = {name: state[name] for name in part} | {f"extra{number}": torch.zeros(1)}
        save_file(content, tmp_path / shard) if suffix == "safetensors" else torch.save(content, tmp_path / shard)
        weight_map |= dict.fromkeys(part, shard)
    index = tmp_path / f"model.{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    (tmp_path / "config.json").write_text("{}")
    for path in (index, tmp_path):
        agrees(path, state)
    assert open_checkpoint(tmp_path).ignored == ("extra0", "extra1")
    (tmp_path / f"model-1.{suffix}").unlink()
    error = refused(tmp_path)
    assert (error.source, error.tensor) == (str(index), names[3])
    assert f"model-1.{suffix}" in error.reason


@pytest.mark.parametrize("shard", ["../model.bin", "/etc/passwd", "a/../../b.bin", "C:\\x.bin", "..\\x.bin", "", "."])
def test_an_index_does_not_lead_out_of_its_folder(tmp_path: Path, shard: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    torch.save({"w": torch.zeros(2)}, tmp_path / "model.bin")
    (folder / "x.index.json").write_text(json.dumps({"weight_map": {"w": shard}}))
    error = refused(folder / "x.index.json")
    assert error.tensor == "w"
    assert "outside" in error.reason or "missing" in error.reason


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}', "[" * 100_000])
def test_bad_indices(tmp_path: Path, text: str) -> None:
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(text)
    assert refused(path).source == str(path)


def test_an_index_that_names_too_much(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "s.safetensors")
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {"a": "s.safetensors", "b": "s.safetensors"}}))
    error = refused(path)
    assert (error.source, error.tensor) == (str(tmp_path / "s.safetensors"), "b")


def test_folders_that_leave_a_doubt(tmp_path: Path) -> None:
    assert "no checkpoint" in refused(tmp_path).reason
    for name in ("a.pt", "b.pt"):
        torch.save({}, tmp_path / name)
    assert "a.pt, b.pt" in refused(tmp_path).reason
    save_file(tensors() | {"a.turned": torch.zeros(1)}, tmp_path / "model.safetensors")
    assert open_checkpoint(tmp_path).source == str(tmp_path / "model.safetensors")


def test_modules_and_state_dicts() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    agrees(net, net.state_dict())
    agrees(net.state_dict(), net.state_dict())
    agrees({}, {})
    assert open_checkpoint(net).source == "Sequential"


@pytest.mark.parametrize("zipped", [True, False])
def test_tied_tensors_are_aliases(tmp_path: Path, zipped: bool) -> None:
    whole = torch.arange(12.0)
    state = {
        "first": whole, "part": whole[:6], "shaped": whole.view(3, 4), "turned": whole.view(3, 4).T,
        "tied": whole, "again": whole, "equal": whole.clone(), "none": torch.zeros(0), "nothing": torch.zeros(0),
    }  # fmt: skip
    torch.save(state, tmp_path / "m.pt", _use_new_zipfile_serialization=zipped)
    for source in (state, tmp_path / "m.pt"):
        aliases = {entry.name: entry.alias_of for entry in open_checkpoint(source).entries if entry.alias_of}
        assert aliases == {"tied": "first", "again": "first"}
        agrees(source, state)


def test_values_whose_sign_is_kept_beside_them(tmp_path: Path) -> None:
    wave = torch.tensor([1 + 2j, 3 - 4j])
    state = {"real": wave.real, "imaginary": wave.imag, "negative": wave.conj().imag}
    torch.save(state, tmp_path / "m.pt")
    for source in (state, tmp_path / "m.pt"):
        agrees(source, {name: tensor.resolve_neg() for name, tensor in state.items()})
        assert not any(entry.alias_of for entry in open_checkpoint(source).entries)
        assert len(smask.open_base(source).digest) == 64


@pytest.mark.parametrize("zipped", [True, False])
def test_repeated_numbers(tmp_path: Path, zipped: bool) -> None:
    """A tensor of kilobytes that asks for terabytes is refused, a bias spread over a few rows is not."""
    state = {"row": torch.arange(5.0).expand(3, 5), "one": torch.zeros(1).expand(2**20)}
    path = tmp_path / "m.pt"
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    agrees(path, state)
    for many in ((2**40,), (2**31, 2**31), (2**27,)):
        wide = {"fine": torch.zeros(3), "wide": torch.zeros(1).expand(many)}
        torch.save(wide, path, _use_new_zipfile_serialization=zipped)
        error = refused(path)
        assert (error.source, error.tensor) == (str(path), "wide")
        assert "of 4 in the file" in error.reason
        assert len(open_checkpoint(wide).entries) == 2
    torch.save({str(n): torch.zeros(1, n).expand(2**22, n) for n in range(1, 9)}, path)
    assert refused(path).tensor == "6"


def test_nested_checkpoints(tmp_path: Path) -> None:
    state = collections.OrderedDict((f"module.{name}", tensor) for name, tensor in tensors().items())
    saved = {"epoch": 3, "model": {"state_dict": state}, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}}
    torch.save(saved, tmp_path / "m.pt")
    checkpoint = open_checkpoint(tmp_path / "m.pt")
    assert checkpoint.key == ("model", "state_dict")
    assert checkpoint.prefix == "module."
    assert checkpoint.ignored == ("epoch", "optimizer")
    agrees(tmp_path / "m.pt", state)
    assert open_checkpoint({"module._orig_mod.a": torch.zeros(1)}).prefix == "module._orig_mod."
    assert open_checkpoint({"module.a": torch.zeros(1), "b": torch.zeros(1)}).prefix == ""

    two = {"student": {"w": torch.zeros(2)}, "teacher": {"w": torch.ones(2)}}
    assert "student, teacher" in refused(two).reason
    assert torch.equal(open_checkpoint(two, key="teacher").read("w"), torch.ones(2))
    assert "student, teacher" in refused(two, key="dean").advice
    assert r"line\nend, \x1b[2J" in str(refused({"line\nend": two["student"], "\x1b[2J": two["teacher"]}))
    assert open_checkpoint({"weights_of_mine": two["teacher"]}).key == ("weights_of_mine",)
    mixed = {"w": torch.zeros(2), "version": 1}
    assert open_checkpoint(mixed).ignored == ("version",)


def test_nothing_to_find() -> None:
    for saved in ({"epoch": 1}, {"model": {"epoch": 1}}, {"model": torch.nn}):
        assert "no tensors" in refused(saved).reason
    itself: dict[str, object] = {}
    itself["model"] = itself["state_dict"] = itself
    refused(itself)
    itself["w"] = torch.zeros(1)
    assert "deep" in refused(itself).reason


def test_a_dict_in_many_places_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class Counted(dict[object, object]):
        n_looks = 0

        def values(self):
            Counted.n_looks += 1
            return super().values()

    shared = Counted(dict.fromkeys(range(50), 0))
    chain: object = Counted({"w": torch.zeros(1)})
    for _ in range(50):
        chain = Counted({"inner": chain})
    assert "no tensors" in refused({f"k{number}": shared for number in range(50)}).reason
    assert "several places" in refused({f"k{number}": Counted({"inner": chain}) for number in range(50)}).reason
    assert Counted.n_looks <= 1 + 51 + 50


class Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle 2", "pickle 4"])
def test_a_pickle_that_wants_to_run_code(tmp_path: Path, kind: str) -> None:
    path, saved = tmp_path / "evil.pt", {"w": torch.zeros(2), "x": Evil(tmp_path / "pwned")}
    if kind.startswith("pickle"):
        path.write_bytes(pickle.dumps({"x": saved["x"]}, protocol=int(kind[-1])))
    else:
        torch.save(saved, path, _use_new_zipfile_serialization=kind == "zip")
    error = refused(path)
    assert error.source == str(path)
    if kind != "pickle 4":  # torch does not read it as far as there
        assert "mkdir" in error.reason
        assert "state_dict" in error.advice
    assert not (tmp_path / "pwned").exists()


def test_files_that_are_none(tmp_path: Path) -> None:
    torch.save(tensors(), tmp_path / "good.pt")
    torch.save(tensors(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    save_file({"a": torch.zeros(40)}, tmp_path / "good.safetensors")
    good, old, safe = ((tmp_path / name).read_bytes() for name in ("good.pt", "old.pt", "good.safetensors"))
    for name, content in {
        "text.pt": b"weights of my net\n", "empty.pt": b"", "zip.pt": b"PK\x03\x04" + bytes(60), "zeros.pt": bytes(500),
        "cut.pt": good[:-100], "half.pt": good[: len(good) // 2], "old-cut.pt": old[:-30],
        "text.safetensors": b"weights of my net\n", "empty.safetensors": b"", "cut.safetensors": safe[:-1], "head.safetensors": safe[:30],
    }.items():  # fmt: skip
        (tmp_path / name).write_bytes(content)
        assert refused(tmp_path / name).source == str(tmp_path / name), name
    for saved in ([torch.zeros(2)], torch.zeros(2), "text", 3):
        torch.save(saved, tmp_path / "other.pt")
        assert "state dict" in refused(tmp_path / "other.pt").reason
    for name in ("missing.pt", "missing.safetensors", "missing.index.json"):
        with pytest.raises(FileNotFoundError):
            open_checkpoint(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "tensor", "word"),
    [
        ("wave", torch.zeros(2, dtype=torch.complex64), "complex64"),
        ("tiny", torch.zeros(2).to(torch.float8_e4m3fn), "float8_e4m3fn"),
        ("sparse", torch.eye(3).to_sparse(), "sparse"),
        ("meta", torch.zeros(3, device="meta"), "meta"),
        ("deep", torch.zeros([1] * 9), "9 dimensions"),
        ("a\nb", torch.zeros(1), "name"),
        ("", torch.zeros(1), "name"),
        ("\ud800", torch.zeros(1), "name"),
        (3, torch.zeros(1), "name"),
    ],
)  # fmt: skip
def test_what_cannot_be_kept_is_refused_with_its_name(name: object, tensor: torch.Tensor, word: str) -> None:
    error = refused({"fine": torch.zeros(1), name: tensor})
    assert error.tensor == (name if word != "name" else repr(name))
    assert word in error.reason


def test_foreign_dtypes_of_safetensors(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2), "f8": torch.zeros(2).to(torch.float8_e5m2)}, tmp_path / "m.safetensors")
    error = refused(tmp_path / "m.safetensors")
    assert (error.tensor, error.reason) == ("f8", "dtype F8_E5M2")


@pytest.mark.parametrize("shape", [[2**63, 0], [0, 2**62, 2], [2**62 + 1, 0], [2**64, 0]])
def test_shapes_of_nothing_that_torch_cannot_count(tmp_path: Path, shape: list[int]) -> None:
    head = json.dumps({"w": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}}).encode()
    (tmp_path / "m.safetensors").write_bytes(len(head).to_bytes(8, "little") + head)
    assert str(tmp_path / "m.safetensors") in str(refused(tmp_path / "m.safetensors"))


def test_real_checkpoints(real_data: Path) -> None:
    checkpoint = open_checkpoint(real_data / "checkpoints/resnet20-12fca82f.th")
    assert (checkpoint.key, checkpoint.prefix, checkpoint.ignored) == (("state_dict",), "module.", ("best_prec1",))
    assert len(checkpoint.entries) == 97
    assert open_checkpoint(real_data / "checkpoints/lenet_mnist_model.pth").key == ()


def test_numpy_scalars_beside_the_tensors(tmp_path: Path) -> None:
    extra = {"best_acc": np.float64(0.9), "epoch": np.int64(3), "loss": np.float32(0.1), "done": np.bool_(True)}
    torch.save({"state_dict": tensors(), **extra}, tmp_path / "m.pt")
    agrees(tmp_path / "m.pt", tensors())
    assert set(open_checkpoint(tmp_path / "m.pt").ignored) == set(extra)
