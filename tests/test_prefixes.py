"""The beginning of a file as a coarser model: which it is, that it says so, that it is never taken for the whole."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import smask
from smask import errors, integrity, manifest, prefixes
from smask.cli.main import main
from smask.conversion.converter import convert_checkpoint
from smask.integrity import raw_bytes
from smask.planes import Assembly
from smask.prefixes import Cut
from smask.recipe import Recipe
from smask.reconstruction import reconstruct
from smask.records import Record, Scale
from smask.stored_tensors import coded_tensor

MLP = {"layers": [{"inputs": 40, "op": "linear", "outputs": 30}, {"inputs": 30, "op": "linear", "outputs": 20}]}


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    shapes = {"0.weight": (30, 40), "0.bias": (30,), "1.weight": (20, 30), "1.bias": (20,)}
    return {name: torch.randn(shape, generator=random) * 0.1 for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def lossy(state, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("lossy") / "m.smask"
    convert_checkpoint(state, path, max_error=0.01, arch=MLP)
    return path.read_bytes()


def error(state: dict[str, torch.Tensor], again: dict[str, torch.Tensor]) -> float:
    return sum(float((state[name] - again[name]).square().sum()) for name in state)


@pytest.mark.clause("P-05")
@pytest.mark.clause("P-06")
@pytest.mark.clause("P-07")
@pytest.mark.clause("R-09")
def test_vectors(vectors: Path) -> None:
    for case in json.loads((vectors / "progressive.json").read_text()):
        data = (vectors / f"accept/{case['file']}.smask").read_bytes()
        base = vectors / "accept/base.smask"
        for asked in ({"max_bytes": case["n_bytes"]}, {"partial": True}):
            given = data if "max_bytes" in asked else data[: case["n_bytes"]]
            tensors = smask.decode(given, base=base, task=case.get("task"), **asked)
            assert integrity.digest(tensors) == case["digest"]
            assert tensors.coverage.n_bytes == case["n_used"] <= len(data)
            there = {t.name: [t.n_present, t.unit] for t in tensors.coverage.tensors if t.n_present < t.n_total}
            assert there == case["missing"]
            assert tensors.coverage.complete == (not there)


@pytest.mark.clause("R-09")
def test_points_of_a_coarser_level_by_hand() -> None:
    record = Record("w", (8,), planes=3, scale=Scale("tensor", "F32"), offset=Scale("tensor", "F32"))
    top = np.array([0b00001111], np.uint8)
    second = np.array([0b00110011], np.uint8)
    for planes, levels in (
        ([], [0] * 8),
        ([top], [4 + 7 / 16 * 3 - 0.125] * 4 + [0] * 4),
        ([top, second], [6 + 7 / 16 - 0.125] * 2 + [4 + 7 / 16 - 0.125] * 2 + [2 + 7 / 16 - 0.125] * 2 + [0] * 2),
    ):
        assembly = Assembly((8,), n_planes=3, flip=False)
        assembly.planes += planes
        coded = coded_tensor(record, [torch.tensor([0.5]), torch.tensor([0.125])], assembly.planes, assembly.flip)
        assert (reconstruct(coded, 0).abs() * 2).tolist() == levels


@pytest.mark.clause("P-06")
def test_every_plane_more_is_nearer(lossy: bytes, state) -> None:
    errors_at, n_bytes = [], []
    total = smask.decode(lossy).coverage.n_file_planes
    for n_planes in range(total + 1):
        tensors = smask.decode(lossy, max_planes=n_planes)
        assert tensors.coverage.n_planes == n_planes
        errors_at.append(error(state, tensors))
        n_bytes.append(tensors.coverage.n_bytes)
        assert integrity.digest(smask.decode(lossy, max_bytes=n_bytes[-1])) == integrity.digest(tensors)
    assert errors_at == sorted(errors_at, reverse=True)
    assert tuple(n_bytes[1:-1]) == prefixes.plane_ends(manifest.open_file(lossy, limits=smask.Limits()))[:-1]
    assert n_bytes[-1] == len(lossy)
    assert torch.equal(smask.decode(lossy, max_planes=99)["0.weight"], smask.decode(lossy)["0.weight"])


@pytest.mark.clause("P-05")
def test_a_plain_decode_takes_no_part_of_a_file(lossy: bytes) -> None:
    cut = lossy[: len(lossy) // 2]
    for read in (smask.decode, smask.load, smask.verify, smask.inspect):
        with pytest.raises(errors.FormatError) as caught:
            read(cut)
        assert caught.value.clause == "C-04"
    # Nor does a number of bytes that the file does not have.
    for asked in ({"max_bytes": len(cut) + 1}, {"max_planes": 1}, {"max_bytes": 2 * len(lossy)}):
        with pytest.raises(errors.FormatError) as caught:
            smask.decode(cut, **asked)
        assert caught.value.clause == "C-04"
    assert not smask.decode(cut, partial=True, max_bytes=len(lossy)).coverage.complete
    damaged = lossy[:-1] + bytes([lossy[-1] ^ 1])
    for asked in ({}, {"partial": True}, {"max_planes": 1}, {"max_bytes": len(lossy)}):
        with pytest.raises(errors.IntegrityError):
            smask.decode(damaged, **asked)


def test_a_beginning_that_holds_no_model(lossy: bytes) -> None:
    opened = manifest.open_file(lossy, limits=smask.Limits())
    least = opened.n_head_bytes + sum(blob.n_bytes for blob in opened.manifest.blobs[:2])
    for n_bytes, want in ((1, 11), (20, opened.n_head_bytes), (opened.n_head_bytes, least), (least - 1, least)):
        with pytest.raises(errors.PrefixError) as caught:
            smask.decode(lossy, max_bytes=n_bytes)
        assert (caught.value.n_bytes, caught.value.least) == (n_bytes, want)
    assert not any(map(torch.any, [smask.decode(lossy, max_bytes=least)[name] for name in ("0.weight", "1.weight")]))
    with pytest.raises(errors.FormatError) as refused:
        smask.decode(b"PK\x03\x04", partial=True)
    assert refused.value.clause == "C-01"
    for name, value in (("max_bytes", 0), ("max_planes", -1)):
        with pytest.raises(errors.ArgumentError) as unusable:
            smask.decode(lossy, **{name: value})
        assert (unusable.value.name, unusable.value.got) == (name, value)


def test_a_coarser_model_is_a_model(lossy: bytes, tmp_path: Path) -> None:
    """It runs, and is saved as a smaller file, which gives it again to the bit."""
    whole, coarse = smask.load(lossy), smask.load(lossy, max_planes=3)
    assert whole.smask_coverage.complete
    assert not coarse.smask_coverage.complete
    smask.save(coarse, tmp_path / "coarse.smask")
    assert (tmp_path / "coarse.smask").stat().st_size < 0.8 * len(lossy)
    again = smask.decode(tmp_path / "coarse.smask")
    assert all(torch.equal(tensor, again[name]) for name, tensor in coarse.state_dict().items())
    assert smask.verify(tmp_path / "coarse.smask").same
    x = torch.rand(2, 40)
    with torch.no_grad():
        assert 0 < float((whole(x) - coarse(x)).abs().max()) < 0.3


@pytest.mark.clause("P-07")
def test_stored_floats_lose_their_low_bytes_first() -> None:
    weights = torch.randn(60, 60, generator=torch.Generator().manual_seed(0))
    words = torch.arange(1100)
    data = smask.encode({"w": weights, "i": words}, Recipe(0, {}))
    for part in range(len(data) // 2, len(data) - 40, 400):
        tensors = smask.decode(data, max_bytes=part)
        found = {tensor.name: tensor.n_present for tensor in tensors.coverage.tensors}
        assert torch.equal(tensors["i"], words if found["i"] == 2 else torch.zeros_like(words))
        assert found["w"] in (1, 2, 3, 4)
        assert float((tensors["w"] - weights).abs().max()) <= 2.0 ** (9 - 8 * found["w"]) * 4
        if found["w"] == 2:
            bits = weights.view(torch.int32) & ~0xFFFF | 0x8000
            assert torch.equal(raw_bytes(tensors["w"]), raw_bytes(bits))


def test_cut_tensors_are_dropped_plane_by_plane(lossy: bytes) -> None:
    """Within a plane, tensors whose sections are there have one more than those whose are not."""
    ends = prefixes.plane_ends(manifest.open_file(lossy, limits=smask.Limits()))
    seen = set()
    for n_bytes in range(ends[2], ends[3], 7):
        opened = prefixes.open_cut(lossy, Cut(max_bytes=n_bytes), limits=smask.Limits())
        coverage = prefixes.coverage_of(opened)
        assert coverage.n_planes == 3
        seen.add(tuple(tensor.n_present for tensor in coverage.tensors))
    assert len(seen) == 2
    assert {tuple(np.diff(pair)) for pair in zip(*sorted(seen), strict=True)} == {(0,), (1,)}


def test_command_line(lossy: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, part, out = tmp_path / "m.smask", tmp_path / "part.smask", tmp_path / "out.safetensors"
    whole.write_bytes(lossy)
    part.write_bytes(lossy[:1000])
    assert main(["decode", str(part), "-o", str(out)]) == 3
    assert not out.exists()
    assert "truncated" in capsys.readouterr().err
    assert main(["decode", str(part), "-o", str(out), "--partial", "--json"]) == 0
    fields = json.loads(capsys.readouterr().out)
    assert fields["verified"] is False
    assert fields["coverage"]["complete"] is False
    assert fields["coverage"]["n_bytes"] <= 1000 < fields["coverage"]["n_file_bytes"] == len(lossy)
    assert fields["digest"] == integrity.digest(smask.decode(lossy, max_bytes=1000))
    assert main(["decode", str(whole), "-o", str(out), "--force", "--max-bytes", "1kB"]) == 0
    shown = capsys.readouterr().out
    assert "not verified" in shown
    assert f"of {len(lossy):,} bytes" in shown
    assert main(["decode", str(whole), "-o", str(out), "--force", "--max-planes", "99", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["verified"] is True
    assert main(["decode", str(whole), "-o", str(out), "--force", "--max-bytes", "12"]) == 3
    assert "no model yet" in capsys.readouterr().err
