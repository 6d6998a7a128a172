"""CSV and Parquet with a column of labels, and the two collections, whose network is not ours to test."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import sklearn.datasets
import torch

from smask.cli.main import main
from smask.errors import DataError
from smask.readers.reading import Reading, remembered
from smask.search.data import load_dataset

HEADED = "width,height,species\n" + "".join(f"{i},{i / 2},{('a', 'b')[i % 2]}\n" for i in range(20))


def table(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def sums(path: str, **reading: object) -> tuple[list[float], tuple[str, ...] | None]:
    """Columns summed, and the classes."""
    data = load_dataset(path, Reading(test_part=1, **reading))
    return data.x_train.sum(0).tolist(), data.classes


def test_forms_of_a_csv(tmp_path: Path) -> None:
    bare = HEADED.split("\n", 1)[1]
    for name, text in (
        ("head.csv", HEADED), ("none.csv", bare), ("tabs.tsv", HEADED.replace(",", "\t")),
        ("semicolons.csv", HEADED.replace(",", ";")), ("bom.csv", "\ufeff" + HEADED), ("crlf.csv", HEADED.replace("\n", "\r\n")),
        ("blank.csv", HEADED + "\n , ,\n"), ("quoted.csv", HEADED.replace("width", '"wi\n""dth"')),
        ("spaces.csv", HEADED.replace(",", " , ")),
    ):  # fmt: skip
        assert sums(table(tmp_path / name, text)) == ([190.0, 95.0], ("a", "b")), name


def test_the_column_of_labels(tmp_path: Path) -> None:
    path = table(tmp_path / "t.csv", "label,x,kind\n" + "".join(f"{i % 3},{i},{10 + i % 2}\n" for i in range(12)))
    assert sums(path) == ([66.0, 126.0], ("0", "1", "2"))
    assert sums(path, label="kind") == ([12.0, 66.0], ("10", "11"))
    assert sums(path, label="3") == ([12.0, 66.0], ("10", "11"))
    numbers = table(tmp_path / "n.csv", "".join(f"{i % 2},{i}\n" for i in range(12)))
    assert sums(numbers, label="1") == ([66.0], ("0", "1"))
    for source, label, word in (
        (path, "colour", "no column 'colour': its columns are label, x, kind"), (path, "4", "no column '4'"),
        (numbers, "x", "it has no header; give a number from 1 to 2"), (path, "x", None),
        (numbers, "0000000019", "no column '0000000019'"), (numbers, "1" * 5000, "give a number from 1 to 2"),
    ):  # fmt: skip
        if word is None:
            assert len(load_dataset(source, Reading(label=label, test_part=1)).classes or ()) == 12
            continue
        with pytest.raises(DataError) as caught:
            load_dataset(source, Reading(label=label))
        assert word in caught.value.reason


def test_columns_are_normalised_each_by_itself(tmp_path: Path) -> None:
    data = load_dataset(
        table(tmp_path / "t.csv", "x,y,z,k\n" + "".join(f"{i * 1e6},{i * 1e-6},7,{i % 2}\n" for i in range(40)))
    )
    mean, std = data.statistics()
    x = data.x_train.numpy().astype(np.float64)
    assert mean == pytest.approx(x.mean(0).tolist(), rel=1e-3)
    assert std[:2] == pytest.approx(x.std(0)[:2].tolist(), rel=1e-3)
    assert std[2] == 1.0
    assert data.columns
    # each class by itself
    assert np.bincount(data.y_test.numpy()).tolist() == [2, 2]


def test_pixels_are_bytes(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).integers(1, 255, (10, 64))
    rows[0, :2] = 0, 255
    text = "".join(",".join(map(str, [*row, index % 2])) + "\n" for index, row in enumerate(rows))
    data = load_dataset(table(tmp_path / "p.csv", text), Reading(test_part=1))
    assert data.x_train.dtype == torch.uint8
    assert data.x_train.tolist() == rows.tolist()
    assert len(data.statistics()[0]) == 1
    # A file remembers it, for tables that do not look like it.
    kept = remembered(data.meta, None)
    few = table(tmp_path / "few.csv", "".join(text.splitlines(keepends=True)[1:]))
    assert load_dataset(few, Reading(test_part=1)).x_test.dtype == torch.float32
    assert load_dataset(few, Reading(**kept)).x_test.dtype == torch.uint8
    assert load_dataset(str(tmp_path / "p.csv"), Reading(classes=("0", "1"), pixels=False)).columns
    with pytest.raises(DataError) as caught:
        load_dataset(table(tmp_path / "p.csv", text.replace("255", "255.5")), Reading(**kept))
    assert "takes pixels" in caught.value.reason


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "empty"), ("\n\n", "empty"), ("a,b\n", "no rows"), ("1\n2\n", "one cell"),
        (HEADED + "1,2\n", "line 22 has 2 cells, the first has 3"), (HEADED + "1,2,a,4\n", "line 22 has 4 cells"),
        (HEADED + "1,two,a\n", "line 22, column 'height' holds 'two'"), (HEADED + "1,,a\n", "line 22, column 'height' is empty"),
        (HEADED + "1,2,\n", "line 22, column 'species': the label is missing"), (HEADED + "nan,2,a\n", "column 'width' holds 'nan'"),
        (HEADED + "1,inf,a\n", "holds 'inf'"), (HEADED + "1,1e39,a\n", "holds '1e39'"), (HEADED + "1,1_0,a\n", "holds '1_0'"),
        (HEADED + '1,"2,a\n', "line"), (HEADED + '1,"2"x,a\n', "line 22"), ("x,k\n1,a\n2,a\n", "a single class: a"),
        ("x,k\n1,a\n2,a\n3,b\n", "'b' has a single input"), ("x,k\n1,0.5\n2,0.25\n", "are no classes"),
    ],
)  # fmt: skip
def test_tables_that_are_no_data(tmp_path: Path, text: str, word: str) -> None:
    with pytest.raises(DataError) as caught:
        load_dataset(table(tmp_path / "t.csv", text))
    assert caught.value.source == str(tmp_path / "t.csv")
    assert word in caught.value.reason


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    for content, word in (
        (b"a,b\n1,\xff\n", "not UTF-8"),
        (b"a,b\n1,\0\n", "line"),
        (b'"' + b"x" * 200_000, "field larger"),
    ):
        (tmp_path / "t.csv").write_bytes(content)
        with pytest.raises(DataError) as caught:
            load_dataset(str(tmp_path / "t.csv"))
        assert word in caught.value.reason or word == "line"
    (tmp_path / "t.csv").unlink()
    (tmp_path / "t.xlsx").write_bytes(b"PK")
    for name in ("t.csv", "t.xlsx", "openml:"):
        with pytest.raises(DataError):
            load_dataset(str(tmp_path / name))


def parquet(path: Path, **columns: object) -> str:
    arrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet").write_table(arrow.table(columns), path)
    return str(path)


def test_parquet_is_as_the_csv(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    i = np.arange(20)
    kinds = np.array(["a", "b"])[i % 2]
    for name, labels in (
        ("plain", kinds),
        ("dictionary", arrow.array(kinds).dictionary_encode()),
        ("flags", i % 2 == 1),
        ("floats", i % 2.0),
    ):
        path = parquet(
            tmp_path / f"{name}.parquet", width=i, height=i / 2, wide=arrow.array([bool(n) for n in i]), species=labels
        )
        totals, classes = sums(path)
        assert totals == [190.0, 95.0, 19.0]
        assert classes == {"flags": ("False", "True"), "floats": ("0", "1")}.get(name, ("a", "b"))


def test_parquet_that_is_no_data(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    good = parquet(tmp_path / "good.parquet", x=[1, 2, 3, 4], label=["a", "b", "a", "b"])
    for columns, word in (
        ({"x": [1, None, 3], "label": ["a", "b", "a"]}, "row 2, column 'x'"), ({"x": [1, 2, 3], "label": ["a", None, "a"]}, "row 2, column 'label'"),
        ({"x": ["1", "two", "3"], "label": ["a", "b", "a"]}, "row 2, column 'x' holds 'two'"), ({"label": ["a", "b"]}, "want features"),
        ({"x": [[1], [2]], "label": ["a", "b"]}, "row 1, column 'x'"), ({"x": arrow.array([], arrow.int64()), "label": arrow.array([], arrow.string())}, "no rows"),
        ({"x": [1.0, 1e300, 2.0], "label": ["a", "b", "a"]}, "row 2, column 'x'"),
        ({"x": [1, 2], "label": [[1, 2], [3]]}, "row 1, column 'label'"), ({"x": [1, 2], "label": [{"a": 1}, {"a": 2}]}, "want one label"),
    ):  # fmt: skip
        with pytest.raises(DataError) as caught:
            load_dataset(parquet(tmp_path / "bad.parquet", **columns))
        assert word in caught.value.reason
    whole = Path(good).read_bytes()
    for content in (b"", whole[:-9], b"PAR1" + bytes(100) + b"PAR1", whole[:20] + bytes(20) + whole[40:]):
        (tmp_path / "bad.parquet").write_bytes(content)
        with pytest.raises(DataError):
            load_dataset(str(tmp_path / "bad.parquet"))


def test_libraries_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    for source, extra in ((str(tmp_path / "t.parquet"), "tables"), ("hf:mnist", "datasets")):
        with pytest.raises(DataError) as caught:
            load_dataset(source)
        assert f"pip install 'smask[{extra}]'" in caught.value.reason


def test_openml_as_scikit_learn_gives_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """What fetch_openml returns is scikit-learn's; here only what is made of it, and of its failure."""
    asked: list[dict[str, object]] = []
    x = np.random.default_rng(0).normal(size=(30, 3))

    def fetch(**options: object) -> SimpleNamespace:
        asked.append(options)
        return SimpleNamespace(
            data=x, target=np.array(["n", "y"], object)[np.arange(30) % 2], feature_names=["a", "b", "c"]
        )

    monkeypatch.setattr(sklearn.datasets, "fetch_openml", fetch)
    data = load_dataset("openml:credit-g", Reading(label="class"))
    assert (data.classes, data.x_train.shape, data.columns) == (("n", "y"), (26, 3), True)
    load_dataset("openml:61")
    assert [(a.get("name"), a.get("data_id"), a["target_column"]) for a in asked] == [
        ("credit-g", None, "class"),
        (None, 61, "default-target"),
    ]
    x[4, 1] = np.nan
    with pytest.raises(DataError) as caught:
        load_dataset("openml:61")
    assert "row 5, column 'b'" in caught.value.reason
    x = np.array([["1", "blue"]] * 30, object)
    monkeypatch.setattr(
        sklearn.datasets,
        "fetch_openml",
        lambda **_: SimpleNamespace(data=x, target=np.arange(30) % 2, feature_names=["a", "b"]),
    )
    with pytest.raises(DataError) as caught:
        load_dataset("openml:61")
    assert "row 1, column 'b' holds 'blue'" in caught.value.reason

    def fail(**options: object) -> None:
        raise OSError("no network\nat all")

    monkeypatch.setattr(sklearn.datasets, "fetch_openml", fail)
    with pytest.raises(DataError) as caught:
        load_dataset("openml:61")
    assert caught.value.reason == "cannot be fetched: no network"
    with pytest.raises(DataError):
        load_dataset(f"openml:{'1' * 5000}")


def test_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The iris of scikit-learn as a CSV of names and numbers; the file knows the names."""
    monkeypatch.chdir(tmp_path)
    iris = sklearn.datasets.load_iris()
    rows = [f"{','.join(map(str, x))},{iris.target_names[y]}" for x, y in zip(iris.data, iris.target, strict=True)]
    table(tmp_path / "iris.csv", "\n".join(["a,b,c,d,species", *rows]))
    search = ["encode", "--data", "iris.csv", "--test-part", "0.3", "--arch", "mlp:4-24-3", "--density", "0.5", "--epochs", "100", "--lr", "0.01"]  # fmt: skip
    assert main([*search, "--label", "species", "--batch-size", "35", "-q", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["file"] == "iris.smask"
    assert report["accuracy"] > 0.85
    assert main(["eval", "iris.smask", "--data", "iris.csv", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == report["accuracy"]
    assert main(["encode", "--data", "iris.csv", "--label", "colour", "-q", "-o", "b.smask"]) == 3
    assert "its columns are a, b, c, d, species" in capsys.readouterr().err
    assert main(["encode", "--data", "iris.csv", "--flip", "-q", "-o", "b.smask"]) == 2
    assert main(["encode", "--data", "iris.csv", "--erase", "3", "-q", "-o", "b.smask"]) == 2
    assert "images to erase parts of" in capsys.readouterr().err
    assert main(["encode", "--data", "iris.csv", "--cutmix", "0.5", "-q", "-o", "b.smask"]) == 2
    assert "images to cut rectangles from" in capsys.readouterr().err
