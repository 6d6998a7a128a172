"""Folders of images: classes, splits, sizes, modes, and everything that an image can be that it should not."""

import json
import os
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from smask.cli.main import main
from smask.errors import ArgumentError, DataError
from smask.readers.reading import Reading, remembered
from smask.search.data import load_dataset


def picture(path: Path, mode: str = "RGB", size: tuple[int, int] = (6, 4), value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(value)
    bands = {"L": (), "I;16": (), "RGB": (3,), "RGBA": (4,)}[mode]
    dtype = np.uint16 if mode == "I;16" else np.uint8
    Image.fromarray(random.integers(0, np.iinfo(dtype).max + 1, (size[1], size[0], *bands), dtype)).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index in range(20):
        picture(tmp_path / "set" / ("cat", "dog")[index % 2] / f"{index}.png", value=index)
    return tmp_path / "set"


def pixels(path: Path) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)


def test_a_flat_folder_is_split_by_seed(folder: Path) -> None:
    data = load_dataset(str(folder))
    assert data.classes == ("cat", "dog")
    assert (data.x_train.shape, data.x_test.shape) == ((18, 3, 4, 6), (2, 3, 4, 6))
    assert sorted(data.y_test.tolist()) == [0, 1]  # each class by itself
    by_label = [
        [pixels(folder / name / f"{i}.png") for i in range(20) if i % 2 == label]
        for label, name in enumerate(data.classes)
    ]
    for x, y in zip((*data.x_train, *data.x_test), (*data.y_train, *data.y_test), strict=True):
        assert any(torch.equal(x, image) for image in by_label[int(y)])
    again, other = load_dataset(str(folder)), load_dataset(str(folder), Reading(split_seed=1, test_part=0.3))
    assert torch.equal(again.x_test, data.x_test)
    assert len(other.x_test) == 6
    whole = load_dataset(str(folder), Reading(test_part=1))
    assert len(whole.x_test) == len(whole.x_train) == 20


def test_train_and_test_folders(tmp_path: Path) -> None:
    for part, n in (("train", 3), ("val", 2)):
        for name in ("10", "9"):
            for index in range(n):
                picture(tmp_path / part / name / f"{index}.png", value=index)
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "train/9/notes.txt").write_text("no image")
    data = load_dataset(str(tmp_path))
    assert (len(data.x_train), len(data.x_test), data.classes) == (6, 4, ("9", "10"))
    picture(tmp_path / "val/11/0.png")
    with pytest.raises(DataError) as caught:
        load_dataset(str(tmp_path))
    assert "'11' has test inputs" in caught.value.reason
    assert len(load_dataset(str(tmp_path), Reading(classes=("9", "10", "11"))).x_test) == 5


def test_modes_and_sizes(tmp_path: Path) -> None:
    for label in "ab":
        for index in range(2):
            picture(tmp_path / "grey" / label / f"{index}.png", "L", value=index)
        picture(tmp_path / "grey" / label / "wide.png", "I;16", value=3)
        picture(tmp_path / "mixed" / label / "0.png", "RGBA", (9, 9))
        picture(tmp_path / "mixed" / label / "1.jpg", "L", (40, 20))
    grey = load_dataset(str(tmp_path / "grey"))
    assert grey.x_train.shape[1:] == (1, 4, 6)
    wide = np.array(Image.open(tmp_path / "grey/a/wide.png")) >> 8
    found = torch.cat([grey.x_train, grey.x_test])[:, 0].numpy()
    assert any(np.array_equal(image, wide) for image in found)
    with pytest.raises(DataError) as caught:
        load_dataset(str(tmp_path / "mixed"))
    assert caught.value.source == str(tmp_path / "mixed/a/1.jpg")
    assert "40 x 20 pixels" in caught.value.reason
    assert "--image-size" in caught.value.reason
    mixed = load_dataset(str(tmp_path / "mixed"), Reading(image_size=(8, 5)))
    assert mixed.x_train.shape[1:] == (3, 8, 5)
    like = Reading(**remembered({}, (1, 7, 7)))
    assert load_dataset(str(tmp_path / "mixed"), like).x_train.shape[1:] == (1, 7, 7)


def test_an_image_is_turned_as_its_camera_says(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for label in "ab":
        for index in range(2):
            path = picture(tmp_path / label / f"{index}.png")
            Image.open(path).save(path, exif=exif)
    assert load_dataset(str(tmp_path)).x_train.shape[1:] == (3, 6, 4)


def bomb(width: int, height: int) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "not an image"), (b"GIF89a", "not an image"), (b"%!PS-Adobe-3.0 EPSF-3.0\n", "not an image"),
        (bomb(30_000, 30_000), "too many pixels"), (bomb(10_000, 9_000), "too many pixels"),
        (bomb(9_000, 8_000), "9000 x 8000 pixels, at most"), (bomb(60, 40), "unreadable image"),
    ],
)  # fmt: skip
def test_images_that_are_none(folder: Path, content: bytes, word: str) -> None:
    (folder / "cat/0.png").write_bytes(content)
    for reading in (Reading(), Reading(image_size=(4, 4), channels=3)):
        with pytest.raises(DataError) as caught:
            load_dataset(str(folder), reading)
        assert caught.value.source == str(folder / "cat/0.png")
        assert word in caught.value.reason


def test_a_damaged_image_is_an_error_of_ours(folder: Path) -> None:
    path = folder / "dog/1.png"
    whole = path.read_bytes()
    sources = set()
    for at in range(8, len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x41]) + whole[at + 1 :])
        try:
            load_dataset(str(folder), Reading(image_size=(4, 6)))
        except DataError as error:
            sources.add(error.source)
    assert sources == {str(path)}


def test_folders_that_are_no_data(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "files").mkdir()
    picture(tmp_path / "files/a.png")
    picture(tmp_path / "one/cat/0.png")
    picture(tmp_path / "few/a/0.png")
    picture(tmp_path / "few/b/0.png")
    (folder / "emu").mkdir()
    for name, word in (
        ("empty", "no folders"), ("files", "no folders"), ("one", "a single class: cat"), ("few", "'a' has a single input"),
        ("set", "no file of a class"),
    ):  # fmt: skip
        with pytest.raises(DataError) as caught:
            load_dataset(str(tmp_path / name))
        assert word in caught.value.reason, name


@pytest.mark.parametrize("name", [b"c\xe9", b"a\nb", b"\x1b[31m"])
def test_names_that_are_no_text(folder: Path, name: bytes) -> None:
    """Neither a manifest nor a terminal takes them; that is said before the search, not after it."""
    (folder / "cat").rename(folder / os.fsdecode(name))
    with pytest.raises(DataError) as caught:
        load_dataset(str(folder))
    assert "cannot be shown" in caught.value.reason
    (folder / os.fsdecode(name)).rename(folder / "chat\xa0noir")
    assert load_dataset(str(folder)).classes == ("chat\xa0noir", "dog")


def test_classes_of_the_net_come_first(folder: Path) -> None:
    data = load_dataset(str(folder), Reading(classes=("dog", "cat", "emu")))
    assert data.n_classes == 3
    assert load_dataset(str(folder)).y_test.tolist() != data.y_test.tolist()
    with pytest.raises(DataError) as caught:
        load_dataset(str(folder), Reading(classes=("dog", "emu")))
    assert "class 'cat', which the net does not have; it has dog, emu" in caught.value.reason


def test_without_pillow_it_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(DataError) as caught:
        load_dataset(str(folder))
    assert "pip install 'smask[images]'" in caught.value.reason


@pytest.mark.parametrize(
    "reading",
    [
        {"test_part": 0},
        {"test_part": 1.1},
        {"seconds": 0},
        {"seconds": float("nan")},
        {"image_size": (0, 4)},
        {"tokens": "words"},
    ],
)
def test_readings_out_of_range(reading: dict[str, object]) -> None:
    with pytest.raises(ArgumentError):
        Reading(**reading)


def test_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stripes across and stripes along, of several sizes; the file knows size and names."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    for index in range(80):
        name, axis = (("across", 0), ("along", 1))[index % 2]
        side = (16, 20)[index // 2 % 2]
        waves = np.sin(np.arange(side) * 2 + random.random() * 6) * 90 + 128
        image = np.broadcast_to(waves[:, None] if axis == 0 else waves[None], (side, side))
        (tmp_path / "set" / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray((image + random.normal(0, 9, image.shape)).clip(0, 255).astype(np.uint8)).save(
            tmp_path / "set" / name / f"{index}.png"
        )
    search = ["encode", "--data", "set", "--image-size", "16", "--arch", "mlp:256-16-2", "--epochs", "25", "--density", "0.4", "-q", "--json"]  # fmt: skip
    assert main([*search, "--test-part", "0.25", "--batch-size", "20", "-o", "a.smask"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["accuracy"] >= 0.9
    assert main(["inspect", "a.smask", "--json"]) == 0
    assert json.loads(json.loads(capsys.readouterr().out)["meta"]["data.classes"]) == ["across", "along"]
    assert main(["eval", "a.smask", "--data", "set", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == report["accuracy"]
    (tmp_path / "set/across").rename(tmp_path / "set/beyond")
    assert main(["eval", "a.smask", "--data", "set"]) == 3
    assert "class 'beyond'" in capsys.readouterr().err
    assert main(["encode", "--flip", "--data", "digits", "--image-size", "x", "-q"]) == 2
    assert main(["encode", "--erase", "9", "--data", "digits", "-q"]) == 2
    assert "1 to 8, the size of images" in capsys.readouterr().err
    assert main(["encode", "--cutmix", "1.5", "--data", "digits", "-q"]) == 2
    assert "a chance from 0 to 1" in capsys.readouterr().err
