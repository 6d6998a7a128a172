"""Lossless conversion: every bit comes back, pruned checkpoints shrink, dense ones beat zstd."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import zstandard
from safetensors.torch import load_file, save_file
from torch import nn

import smask
from conftest import ROOT
from smask import architectures, named_nets
from smask.cli.main import main
from smask.conversion.converter import convert_checkpoint
from smask.errors import ArgumentError, CheckpointError, OutputError
from smask.integrity import DTYPE_OF_NAME, raw_bytes
from test_stored_tensors import any_bits, exactly


def zstd_bytes(state: dict[str, torch.Tensor]) -> int:
    raw = b"".join(raw_bytes(tensor).numpy().tobytes() for tensor in state.values())
    return len(zstandard.ZstdCompressor(level=19).compress(raw))


def pruned(state: dict[str, torch.Tensor], density: float) -> dict[str, torch.Tensor]:
    """The largest weights of every matrix."""
    out = {}
    for name, tensor in state.items():
        out[name] = tensor.clone()
        if tensor.dim() > 1:
            size = tensor.abs().flatten()
            out[name][tensor.abs() < size.sort(descending=True).values[round(density * len(size)) - 1]] = 0
    return out


def net(name: str = "lenet-300-100") -> dict[str, torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return architectures.build(named_nets.architecture(name)).state_dict()


def comes_back(state: dict[str, torch.Tensor], out: Path) -> None:
    decoded = smask.decode(out)
    assert list(decoded) == list(state)
    assert all(exactly(decoded[name], tensor) for name, tensor in state.items())
    assert smask.verify(out).same


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(60, 40)
        self.mix = nn.Linear(40, 40)
        self.head = nn.Linear(40, 60, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("positions", torch.arange(50))
        self.register_buffer("causal", torch.ones(40, 40).tril().bool())


@pytest.mark.parametrize("form", ["state dict", "pt", "legacy", "safetensors"])
def test_every_bit_of_every_dtype(tmp_path: Path, form: str) -> None:
    state = {
        f"{name}.{density}.{len(shape)}": any_bits(dtype, shape, density=density)
        for name, dtype in DTYPE_OF_NAME.items()
        for density in (0.0, 0.2, 1.0)
        for shape in ((), (3, 0), (11,), (40, 60))
    }
    source: object = state
    if form == "safetensors":
        save_file(state, source := tmp_path / "m.safetensors", {"note": "kept"})
    elif form != "state dict":
        torch.save({"model": state}, source := tmp_path / "m.pt", _use_new_zipfile_serialization=form == "pt")
    report = convert_checkpoint(source, tmp_path / "m.smask")
    assert report.n_bytes == (tmp_path / "m.smask").stat().st_size
    decoded = smask.decode(tmp_path / "m.smask")
    assert set(decoded) == set(state)
    assert all(exactly(decoded[name], tensor) for name, tensor in state.items())
    assert smask.verify(tmp_path / "m.smask").digest == report.digest
    assert smask.inspect(tmp_path / "m.smask").meta == ({"note": "kept"} if form == "safetensors" else {})


def test_odd_floats(tmp_path: Path) -> None:
    odd = torch.tensor([0.0, -0.0, float("inf"), -float("inf"), 2.0**-149, float("nan")]).repeat(500)
    odd[-1] = torch.tensor(0x7F800001, dtype=torch.int32).view(torch.float32)  # a signalling NaN
    convert_checkpoint({"odd": odd, "turned": odd.view(60, 50).T}, tmp_path / "m.smask")
    comes_back({"odd": odd, "turned": odd.view(60, 50).T}, tmp_path / "m.smask")


def test_a_bool_that_is_neither_is_refused(tmp_path: Path) -> None:
    save_file({"flags": torch.tensor([True, False])}, tmp_path / "m.safetensors")
    data = bytearray((tmp_path / "m.safetensors").read_bytes())
    data[-2] = 2
    (tmp_path / "m.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        convert_checkpoint(tmp_path / "m.safetensors", tmp_path / "m.smask")
    assert caught.value.tensor == "flags"
    assert os.listdir(tmp_path) == ["m.safetensors"]


@pytest.mark.parametrize("density", [0.5, 0.1, 0.02])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pruned_checkpoints_shrink(tmp_path: Path, density: float, dtype: torch.dtype) -> None:
    state = {name: tensor.to(dtype) for name, tensor in pruned(net(), density).items()}
    report = convert_checkpoint(state, tmp_path / "m.smask")
    comes_back(state, tmp_path / "m.smask")
    assert report.n_bytes < zstd_bytes(state)
    assert report.n_bytes < 1.15 * density * report.raw_bytes + report.n_weights / 8
    weights = next(tensor for tensor in smask.inspect(tmp_path / "m.smask").tensors if tensor.base)
    assert weights.n_kept == int((state[weights.name] != 0).sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ["lenet-300-100", "mnist-cnn", "resnet20"])
def test_dense_checkpoints_are_no_larger_than_zstd(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    state = {key: t.to(dtype) if t.is_floating_point() else t for key, t in net(name).items() if t.numel() < 500_000}
    report = convert_checkpoint(state, tmp_path / "m.smask")
    comes_back(state, tmp_path / "m.smask")
    assert report.n_bytes < report.zstd_bytes
    assert report.zstd_level == 19
    assert abs(report.zstd_bytes - zstd_bytes(state)) < 100


def test_other_tensors_are_no_larger_than_zstd(tmp_path: Path) -> None:
    """Integers, masks, repetitions and copies: what an entropy coder of single bytes would not see."""
    random = torch.Generator().manual_seed(3)
    row = torch.randn(5000, generator=random)
    state = {
        "rows": row.repeat(60, 1), "ids": torch.arange(100_000), "codes": torch.randint(0, 16, (300, 300), generator=random),
        "causal": torch.ones(700, 700).tril().bool(), "bias": torch.full((300, 300), float("-inf")).triu(1),
        "one": torch.randn(300, 400, generator=random), "ones": torch.ones(300, 400), "steps": torch.tensor(1000),
    }  # fmt: skip
    state["copy"] = state["one"].clone()
    report = convert_checkpoint(state, tmp_path / "m.smask")
    comes_back(state, tmp_path / "m.smask")
    assert report.n_bytes < zstd_bytes(state)


def test_real_checkpoints(real_data: Path, tmp_path: Path) -> None:
    for name in ("resnet20-12fca82f.th", "resnet56-4bfd9763.th", "lenet_mnist_model.pth"):
        source = real_data / "checkpoints" / name
        report = convert_checkpoint(source, tmp_path / "m.smask", overwrite=True)
        saved = torch.load(source, weights_only=True, map_location="cpu")
        comes_back(saved.get("state_dict", saved), tmp_path / "m.smask")
        assert report.n_bytes < 0.91 * report.zstd_bytes
        sparse = pruned(saved.get("state_dict", saved), 0.1)
        report = convert_checkpoint(sparse, tmp_path / "m.smask", overwrite=True)
        comes_back(sparse, tmp_path / "m.smask")
        assert report.n_bytes < 0.9 * report.zstd_bytes


def test_a_tied_module_loads_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = Tied()
    report = convert_checkpoint(model, tmp_path / "m.smask", meta={"author": "me"})
    assert report.aliases == {"head.weight": "embed.weight"}
    assert report.n_weights == 60 * 40 + 40 * 40 + 40 + 50 + 40 * 40
    assert {t.name: t.stored_as for t in report.tensors}["head.weight"] == "same as embed.weight"
    comes_back(model.state_dict(), tmp_path / "m.smask")
    assert main(["decode", str(tmp_path / "m.smask"), "-o", str(tmp_path / "m.safetensors"), "--json"]) == 0
    other = Tied()
    other.load_state_dict(load_file(tmp_path / "m.safetensors"), strict=True)
    assert all(exactly(other.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    loaded = smask.load(tmp_path / "m.smask", model=Tied())
    assert loaded.head.weight is loaded.embed.weight
    assert all(exactly(loaded.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    smask.save(loaded, tmp_path / "again.smask")
    assert (tmp_path / "again.smask").read_bytes() == (tmp_path / "m.smask").read_bytes()
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "m.smask")]) == 0
    text = capsys.readouterr().out
    assert "same as embed.weight" in text
    assert "values, 1 plane" in text
    assert "meta author" in text


def test_report_adds_up(tmp_path: Path) -> None:
    state = pruned(net("mnist-cnn"), 0.2) | {"steps": torch.tensor(3)}
    report = convert_checkpoint({"state_dict": state, "epoch": 2}, tmp_path / "m.smask")
    inspected = smask.inspect(tmp_path / "m.smask")
    assert (report.key, report.ignored, report.prefix) == (("state_dict",), ("epoch",), "")
    assert report.raw_bytes == sum(tensor.nbytes for tensor in state.values())
    parts = sum(tensor.n_bytes for tensor in report.tensors)
    assert abs(parts - inspected.n_plane_bytes - inspected.n_float_bytes) <= len(report.tensors)
    assert report.bits_per_weight == pytest.approx(8 * report.n_bytes / report.n_weights, abs=1e-3)
    assert report.digest == inspected.digest
    assert json.loads(json.dumps(report.as_dict()))["tensors"][0]["name"] == next(iter(state))


@pytest.mark.clause("W-01")
def test_same_checkpoint_same_bytes(tmp_path: Path) -> None:
    state = pruned(net(), 0.3)
    torch.save(state, tmp_path / "m.pt")
    for number, source in enumerate((state, tmp_path / "m.pt", state)):
        convert_checkpoint(source, tmp_path / f"{number}.smask")
    assert len({(tmp_path / f"{number}.smask").read_bytes() for number in range(3)}) == 1


def test_the_output_is_untouched_by_what_fails(tmp_path: Path) -> None:
    out = tmp_path / "m.smask"
    out.write_text("mine")
    good, bad = {"a": torch.ones(5000)}, {"a": torch.ones(5000), "b": torch.zeros(2, dtype=torch.complex64)}

    def interrupt(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(ArgumentError) as existing:
        convert_checkpoint(good, out)
    assert existing.value.name == "output"
    with pytest.raises(CheckpointError) as foreign:
        convert_checkpoint(bad, out, overwrite=True)
    assert foreign.value.tensor == "b"
    with pytest.raises(KeyboardInterrupt):
        convert_checkpoint(good, out, overwrite=True, progress=interrupt)
    with pytest.raises(ArgumentError) as lossy:
        convert_checkpoint(good, out, overwrite=True, lossless=False)
    assert lossy.value.name == "lossless"
    assert out.read_text() == "mine"
    assert os.listdir(tmp_path) == ["m.smask"]
    torch.save(good, tmp_path / "m.pt")
    with pytest.raises(ArgumentError) as itself:
        convert_checkpoint(tmp_path / "m.pt", tmp_path / "m.pt", overwrite=True)
    assert itself.value.want == "another file than the source"
    (tmp_path / "m.index.json").write_text(json.dumps({"weight_map": {"a": "m.pt"}}))
    with pytest.raises(ArgumentError):
        convert_checkpoint(tmp_path / "m.index.json", tmp_path / "m.pt", overwrite=True)
    assert torch.equal(torch.load(tmp_path / "m.pt")["a"], good["a"])


def test_a_source_that_goes_away_meanwhile(tmp_path: Path) -> None:
    source = tmp_path / "m.safetensors"
    save_file({"a": torch.ones(5000), "b": torch.zeros(5000)}, source)

    def remove(_done: int, _total: int) -> None:
        source.unlink()

    with pytest.raises(CheckpointError) as caught:
        convert_checkpoint(source, tmp_path / "m.smask", progress=remove)
    assert caught.value.tensor == "b"
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: Path("/dev/full").open("w+b", buffering=0))  # noqa: SIM115
    with pytest.raises(OutputError) as caught:
        convert_checkpoint({"a": torch.randn(5000)}, tmp_path / "m.smask")
    assert "ENOSPC" in caught.value.reason
    assert os.listdir(tmp_path) == []


def test_memory_does_not_grow_with_the_checkpoint(tmp_path: Path) -> None:
    pytest.importorskip("resource")
    command = [sys.executable, ROOT / "tools/convert_cost.py", "--tensor-weights", str(1 << 20)]
    peaks = {}
    for megabytes in (13, 84):
        done = subprocess.run([*command, "--megabytes", str(megabytes)], capture_output=True, text=True, check=True)
        report = json.loads(done.stdout)
        peaks[megabytes] = report["convert"]["peak_bytes"]
        assert report["convert"]["over_zstd"] < 1
    assert peaks[84] - peaks[13] < 20e6


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = {f"module.{name}": tensor for name, tensor in pruned(net(), 0.1).items()}
    torch.save({"state_dict": state, "epoch": 1, "note\x1b[2J": "x"}, tmp_path / "m.pt")
    arguments = ["convert", str(tmp_path / "m.pt"), "-o", str(tmp_path / "m.smask"), "--lossless"]
    assert main([*arguments, "--meta", "author=me"]) == 0
    out, err = capsys.readouterr()
    for word in ("module.1.weight", "values", "zstd -19", "bits a weight"):
        assert word in out
    assert "state_dict" in err
    assert "module." in err
    assert "epoch, note\\x1b[2J" in err
    assert "\x1b" not in err
    assert main(arguments) == 2
    assert "--force" in capsys.readouterr().err
    assert main([*arguments, "--force", "--json", "-q"]) == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert err == ""
    assert report["n_bytes"] == (tmp_path / "m.smask").stat().st_size
    assert report["prefix"] == "module."
    (tmp_path / "text.pt").write_text("weights")
    assert main(["convert", str(tmp_path / "text.pt"), "-o", str(tmp_path / "x.smask"), "--lossless"]) == 3
    err = capsys.readouterr().err
    assert "text.pt" in err
    assert "Traceback" not in err
    assert main(["convert", str(tmp_path / "no.pt"), "-o", str(tmp_path / "x.smask"), "--lossless"]) == 3
    assert not (tmp_path / "x.smask").exists()
    with pytest.raises(SystemExit):
        main(["convert", str(tmp_path / "m.pt"), "-o", str(tmp_path / "x.smask")])


def test_independent_decoder_agrees_on_a_converted_checkpoint(tmp_path: Path) -> None:
    state = pruned(net("mlp:30-60-40-10"), 0.2) | {"ids": torch.arange(2000), "copy": torch.arange(2000)}
    report = convert_checkpoint(state, tmp_path / "a.smask")
    done = subprocess.run(
        [sys.executable, ROOT / "tools/refdecode.py", tmp_path / "a.smask"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert report.digest in done.stdout
