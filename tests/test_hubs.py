"""The Hugging Face library on folders of this machine: what it makes of a hub's data sets it makes of these."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from smask.errors import DataError
from smask.readers.reading import Reading
from smask.search.data import load_dataset

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


def stored(folder: Path, parts: dict[str, dict[str, list[object]]], features: object) -> str:
    folder.mkdir()
    for part, columns in parts.items():
        datasets.Dataset.from_dict(columns, features=features).to_parquet(folder / f"{part}.parquet")
    return f"hf:{folder}"


def encoded(value: int, size: tuple[int, int] = (5, 4)) -> dict[str, object]:
    out = io.BytesIO()
    Image.fromarray(np.full((size[1], size[0], 3), value, np.uint8)).save(out, "PNG")
    return {"bytes": out.getvalue(), "path": None}


IMAGES = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["zebra", "ant"])})


def test_images_with_declared_classes(tmp_path: Path) -> None:
    parts = {
        "train": {"image": [encoded(i) for i in range(6)], "label": [i % 2 for i in range(6)]},
        "test": {"image": [encoded(100 + i) for i in range(2)], "label": [1, 0]},
    }
    data = load_dataset(stored(tmp_path / "set", parts, IMAGES))
    assert data.classes == ("zebra", "ant")
    assert data.x_train.shape == (6, 3, 4, 5)
    assert data.x_train[:, 0, 0, 0].tolist() == list(range(6))
    assert (data.x_test[:, 0, 0, 0].tolist(), data.y_test.tolist()) == ([100, 101], [1, 0])


def test_images_that_are_none(tmp_path: Path) -> None:
    for name, image, word in (("broken", {"bytes": b"GIF8", "path": None}, "not an image"), ("none", None, "missing")):
        parts = {"train": {"image": [encoded(1), encoded(2), image], "label": [0, 1, 0]}}
        with pytest.raises(DataError) as caught:
            load_dataset(stored(tmp_path / name, parts, IMAGES), Reading(image_size=(4, 5), channels=3))
        assert "image 3" in str(caught.value)
        assert word in caught.value.reason


def test_a_table(tmp_path: Path) -> None:
    features = datasets.Features(
        {"kind": datasets.Value("string"), "a": datasets.Value("int32"), "b": datasets.Value("float64")}
    )
    columns = {"kind": ["x", "y"] * 10, "a": list(range(20)), "b": [i / 4 for i in range(20)]}
    source = stored(tmp_path / "set", {"train": columns}, features)
    data = load_dataset(source, Reading(label="kind", test_part=1))
    assert (data.classes, data.columns) == (("x", "y"), True)
    assert data.x_train.tolist() == [[i, i / 4] for i in range(20)]
    assert data.y_train.tolist() == [0, 1] * 10
    with pytest.raises(DataError) as caught:
        load_dataset(source, Reading(label="colour"))
    assert "its columns are kind, a, b" in caught.value.reason


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load_dataset(f"hf:{tmp_path / 'none'}")
    assert "cannot be fetched" in caught.value.reason
    (tmp_path / "code").mkdir()
    (tmp_path / "code/code.py").write_text("raise SystemExit('code of a data set was run')")
    with pytest.raises(DataError):
        load_dataset(f"hf:{tmp_path / 'code'}")
