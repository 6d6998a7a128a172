import gzip
import io
import re
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from smask.errors import ArgumentError, DataError
from smask.readers import examples
from smask.readers.arrays import IDX_FILES
from smask.search import data


def idx(array: np.ndarray) -> bytes:
    code = {"uint8": 8, "int32": 12, "float32": 13}[array.dtype.name]
    head = struct.pack(f">BBBB{array.ndim}I", 0, 0, code, array.ndim, *array.shape)
    return head + array.astype(array.dtype.newbyteorder(">")).tobytes()


def arrays(n: int = 6) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        "x_train": random.integers(0, 256, (n, 4, 5), dtype=np.uint8), "y_train": np.arange(n, dtype=np.uint8) % 3,
        "x_test": random.integers(0, 256, (2, 4, 5), dtype=np.uint8), "y_test": np.array([0, 2], np.uint8),
    }  # fmt: skip


def write_idx(folder: Path, parts: dict[str, np.ndarray], *, zipped: bool) -> Path:
    folder.mkdir(exist_ok=True)
    for name, stem in IDX_FILES.items():
        raw = idx(parts[name])
        path = folder / f"{stem}-idx{parts[name].ndim}-ubyte{'.gz' * zipped}"
        path.write_bytes(gzip.compress(raw) if zipped else raw)
    return folder


@pytest.mark.parametrize("zipped", [False, True])
def test_idx_folder(tmp_path: Path, zipped: bool) -> None:
    parts = arrays()
    dataset = data.load_dataset(str(write_idx(tmp_path / "set", parts, zipped=zipped)))
    assert dataset.input_shape == (1, 4, 5)
    assert dataset.n_classes == 3
    assert torch.equal(dataset.x_train[:, 0], torch.from_numpy(parts["x_train"]))
    assert dataset.y_test.tolist() == [0, 2]
    assert torch.equal(dataset.inputs(dataset.x_test), dataset.x_test / 255)


def test_npz_forms(tmp_path: Path) -> None:
    parts = arrays()
    for name, change, shape in (
        ("grey", {}, (1, 4, 5)),
        ("nhwc", {part: np.repeat(parts[part][..., None], 3, 3) for part in ("x_train", "x_test")}, (3, 4, 5)),
        ("nchw", {part: np.repeat(parts[part][:, None], 3, 1) for part in ("x_train", "x_test")}, (3, 4, 5)),
        ("flat", {part: parts[part].reshape(-1, 20).astype(np.float64) for part in ("x_train", "x_test")}, (20,)),
        ("column", {"y_train": parts["y_train"][:, None], "y_test": parts["y_test"][:, None]}, (1, 4, 5)),
    ):
        np.savez(tmp_path / f"{name}.npz", **(parts | change))
        dataset = data.load_dataset(str(tmp_path / f"{name}.npz"))
        assert dataset.input_shape == shape, name
        assert dataset.inputs(dataset.x_train).dtype == torch.float32
        mean, std = dataset.statistics()
        assert len(mean) == len(std) == (3 if shape[0] == 3 else 1)


BAD_ARRAYS = {
    "labels out of range": {"y_test": np.array([0, 3], np.uint8)},
    "labels -1": {"y_train": np.arange(6) - 1},
    "want integers": {"y_train": np.arange(6) / 2},
    "want uint8 or floats": {"x_train": np.zeros((6, 4, 5), "<U3"), "x_test": np.zeros((2, 4, 5), "<U3")},
    "not finite": {"x_train": np.full((6, 4, 5), np.nan), "x_test": np.zeros((2, 4, 5))},
    "5 labels": {"y_train": np.arange(5)},
    "differ in shape": {"x_test": np.zeros((2, 4, 4), np.uint8)},
    "want [N, ...]": {"x_train": np.zeros(6, np.uint8)},
    "0 inputs": {"x_train": np.zeros((0, 4, 5), np.uint8), "y_train": np.zeros(0, np.uint8)},
}


@pytest.mark.parametrize("problem", BAD_ARRAYS)
def test_inconsistent_arrays(tmp_path: Path, problem: str) -> None:
    np.savez(tmp_path / "a.npz", **(arrays() | BAD_ARRAYS[problem]))
    with pytest.raises(DataError) as caught:
        data.load_dataset(str(tmp_path / "a.npz"))
    assert caught.value.source == str(tmp_path / "a.npz")
    word = problem if problem != "labels out of range" else "labels 0 to 3, want 0 to 2"
    assert word in caught.value.reason


def test_unreadable_sources(tmp_path: Path) -> None:
    folder = write_idx(tmp_path / "set", arrays(), zipped=False)
    images = folder / "train-images-idx3-ubyte"
    whole = images.read_bytes()
    for content in (
        b"",
        whole[:3],
        whole[:-1],
        whole + b"x",
        b"\1" + whole[1:],
        whole[:2] + b"\x07" + whole[3:],
        b"\0\0\x08\xff",
    ):
        images.write_bytes(content)
        with pytest.raises(DataError) as caught:
            data.load_dataset(str(folder))
        assert caught.value.source == str(images)
    images.unlink()
    (folder / "train-images.gz").write_bytes(b"no gzip")
    for source in (folder, tmp_path / "none", tmp_path / "none.npz", __file__):
        with pytest.raises(DataError):
            data.load_dataset(str(source))
    (tmp_path / "bad.npz").write_bytes(b"PK no zip")
    np.savez(tmp_path / "lacks.npz", x_train=np.zeros(3))
    np.savez(tmp_path / "pickled.npz", **(arrays() | {"y_train": np.array([print] * 6, dtype=object)}))
    for name in ("bad", "lacks", "pickled"):
        with pytest.raises(DataError):
            data.load_dataset(str(tmp_path / f"{name}.npz"))


def test_an_idx_header_of_terabytes_is_refused(tmp_path: Path) -> None:
    folder = write_idx(tmp_path / "set", arrays(), zipped=False)
    (folder / "train-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03" + b"\xff" * 12)
    with pytest.raises(DataError) as caught:
        data.load_dataset(str(folder))
    assert "its header asks for" in caught.value.reason


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("shape", [(1,) * 255, (2**32 - 1, 2**32 - 1, 2**32 - 1, 0), (2**31, 2**31)])
def test_idx_headers_of_no_array(tmp_path: Path, shape: tuple[int, ...], zipped: bool) -> None:
    folder = write_idx(tmp_path / "set", arrays(), zipped=zipped)
    images = next(folder.glob("train-images*"))
    raw = struct.pack(f">BBBB{len(shape)}I", 0, 0, 8, len(shape), *shape) + b"\0" * (shape[0] == 1)
    images.write_bytes(gzip.compress(raw) if zipped else raw)
    with pytest.raises(DataError) as caught:
        data.load_dataset(str(folder))
    assert caught.value.source == str(images)


def header(shape: tuple[int, ...], version: int = 1, descr: str = "|u1") -> bytes:
    """Of an array in an ``.npz``."""
    out = io.BytesIO()
    write = np.lib.format.write_array_header_1_0 if version == 1 else np.lib.format.write_array_header_2_0
    write(out, {"descr": descr, "fortran_order": False, "shape": shape})
    return out.getvalue()


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "no array x_train"),
        (b"hello", "unreadable"),
        (header((2**50,)), "asks for 1,125,899,906,842,624"),
        (header((2**32, 2**32), version=2), "asks for 18,446,744,073,709,551,616"),
        (header((1,), descr="<U100000000"), "asks for 400,000,000"),
        (header((-1,)), "unreadable"),
        (header((2**63, 0)), "unreadable"),
        (header((2**64, 0)), "unreadable"),
        (header((1,), descr="|O") + b"\0" * 8, "unreadable"),
    ],
)  # fmt: skip
def test_members_of_an_npz_that_are_no_arrays(tmp_path: Path, content: bytes, word: str) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for name in IDX_FILES:
            archive.writestr(f"{name}.npy" if content else name, content)
    with pytest.raises(DataError) as caught:
        data.load_dataset(str(tmp_path / "a.npz"))
    assert caught.value.source == str(tmp_path / "a.npz")
    assert word in caught.value.reason


def test_files_that_are_no_npz(tmp_path: Path) -> None:
    whole, path = tmp_path / "whole.npz", tmp_path / "a.npz"
    np.savez(whole, **arrays())
    # Of each member twice, before it and in the table at the end: the flags, where 1 says encrypted, and the coding.
    raw, places = whole.read_bytes(), ((b"PK\3\4", 6), (b"PK\1\2", 8))
    for offset, value, word in ((0, 1, "encrypted"), (2, 99, "compression")):
        changed = bytearray(raw)
        for magic, place in places:
            for at in (found.start() for found in re.finditer(re.escape(magic), raw)):
                changed[at + place + offset] = value
        path.write_bytes(changed)
        with pytest.raises(DataError) as caught:
            data.load_dataset(str(path))
        assert word in caught.value.reason
    np.savez(path, **{"line\nend": np.zeros(3)})
    with pytest.raises(DataError) as caught:
        data.load_dataset(str(path))
    assert r"it has line\nend" in str(caught.value)
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(DataError) as caught:
        data.load_dataset(str(path))
    assert "not a zip" in caught.value.reason


@pytest.mark.parametrize("form", ["npz", "idx", "idx.gz"])
def test_arrays_larger_than_memory_is_meant_to_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    """Refused by what headers say, before anything is decompressed."""
    parts = arrays(1000)
    source = tmp_path / "a.npz"
    if form == "npz":
        np.savez_compressed(source, **parts)
    else:
        source = write_idx(tmp_path / "set", parts, zipped=form == "idx.gz")
    data.load_dataset(str(source))
    monkeypatch.setattr(examples, "MAX_BYTES", 20_000 - 1)
    monkeypatch.setattr(np.lib.format, "read_array", None)
    monkeypatch.setattr(np, "frombuffer", None)
    with pytest.raises(DataError) as caught:
        data.load_dataset(str(source))
    assert "at most 19,999 are read" in caught.value.reason


def test_digits(digits_data: data.Dataset) -> None:
    assert (len(digits_data.x_train), len(digits_data.x_test)) == (1438, 359)
    assert digits_data.input_shape == (1, 8, 8)
    assert float(digits_data.inputs(digits_data.x_train).max()) == 1.0
    assert sorted(set(digits_data.y_test.tolist())) == list(range(10))


def test_batches_are_seeded_and_cover_the_data(digits_data: data.Dataset) -> None:
    def epoch(batches: data.Batches) -> torch.Tensor:
        return torch.cat([y for _, y in batches])

    first, again, other = (data.Batches(digits_data, batch_size=100, seed=seed) for seed in (1, 1, 2))
    one = epoch(first)
    assert len(first) == 14
    assert len(one) == 1400
    assert torch.equal(epoch(again), one)
    assert not torch.equal(epoch(other), one)
    assert not torch.equal(epoch(first), one)  # the next epoch has another order
    whole = data.Batches(digits_data, batch_size=10**6, seed=0)
    assert len(whole) == 1
    assert sorted(epoch(whole).tolist()) == sorted(digits_data.y_train.tolist())


@pytest.mark.parametrize("changes", [{}, {"shift": 2, "flip": True}, {"erase": 5}, {"cutmix": 0.5}])
def test_channels_last_is_the_same_in_another_order_of_memory(changes: dict) -> None:
    x = torch.arange(40 * 3 * 8 * 6).remainder(251).to(torch.uint8).view(40, 3, 8, 6)
    dataset = data.Dataset("test", x, torch.arange(40), x[:2], torch.arange(2))
    plain, other = (
        data.Batches(dataset, batch_size=16, seed=1, channels_last=last, **changes) for last in (False, True)
    )
    for (one, y), (same, labels) in zip(plain, other, strict=True):
        assert torch.equal(one, same)
        assert torch.equal(y, labels)
        assert one.is_contiguous()
        assert same.is_contiguous(memory_format=torch.channels_last)
        assert not same.is_contiguous()


def test_mnist_as_distributed(real_data: Path) -> None:
    dataset = data.load_dataset(str(real_data / "mnist"))
    assert (dataset.x_train.shape, dataset.x_test.shape) == ((60_000, 1, 28, 28), (10_000, 1, 28, 28))
    assert dataset.statistics() == ([0.1307], [0.3081])


def test_validation_part() -> None:
    whole = data.digits()
    rest, judge = whole.validation(0.25, seed=1)
    assert (len(rest.x_train), len(judge.x_test)) == (1078, 360)
    assert torch.equal(rest.x_test, whole.x_test)
    both = torch.cat([rest.x_train, judge.x_test]).flatten(1)
    assert both.unique(dim=0).shape == whole.x_train.flatten(1).unique(dim=0).shape
    again, other = whole.validation(0.25, seed=1)[1], whole.validation(0.25, seed=2)[1]
    assert torch.equal(judge.x_test, again.x_test)
    assert not torch.equal(judge.x_test, other.x_test)
    for part in (0, 1, 0.0001, float("nan")):
        with pytest.raises(ArgumentError):
            whole.validation(part, seed=0)


def test_fingerprint_says_what_batches_depend_on() -> None:
    whole = data.digits()
    prints = {
        data.Batches(dataset, batch_size=size, seed=seed, shift=shift).fingerprint()
        for dataset in (whole, whole.validation(0.5, seed=0)[0])
        for size, seed, shift in ((32, 0, 0), (64, 0, 0), (32, 1, 0), (32, 0, 1), (32, 0, 0))
    }
    assert len(prints) == 8
