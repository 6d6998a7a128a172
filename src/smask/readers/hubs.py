"""Data by name from public collections: OpenML through scikit-learn, the Hugging Face hub through ``datasets``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from .examples import Examples, Part, numbered
from .images import stacked
from .reading import Reading
from .tables import label_column, of_columns, of_table

SPLITS = (("train",), ("test", "validation", "valid"))


def read_openml(name: str, reading: Reading) -> Examples:
    """A data set of OpenML by name (``mnist_784``) or number (``61``), kept in scikit-learn's own folder.

    Raises:
        DataError: Not found, no network, features that are no numbers.
    """
    from sklearn.datasets import fetch_openml

    source = f"openml:{name}"
    is_number = name.isascii() and name.isdigit() and len(name) < 10
    which: dict[str, Any] = {"data_id": int(name)} if is_number else {"name": name}
    try:
        # The parser of scikit-learn itself: the other one needs pandas.
        found = fetch_openml(
            **which, as_frame=False, parser="liac-arff", target_column=reading.label or "default-target"
        )
    except Exception as error:  # network, archive, parser: it raises whatever these raise
        reason = (str(error).splitlines() or [repr(error)])[0]
        raise DataError(source, f"cannot be fetched: {reason}") from None
    x, target = found.data, found.target
    if target is None or np.ndim(target) != 1:
        raise DataError(source, "it names no single column of labels; give one (--label NAME)")
    x = np.asarray(x.todense() if hasattr(x, "todense") else x)
    names = [str(column) for column in found.feature_names]
    if x.dtype.kind not in "fiub":
        return of_table(source, dict(zip([*names, ""], [*x.T, target], strict=True)), _with(reading, ""))
    x = x.astype(np.float32)
    bad = np.argwhere(~np.isfinite(x))
    if len(bad):
        row, column = bad[0]
        raise DataError(source, f"row {row + 1}, column {names[column]!r} is missing or not finite")
    return of_columns(source, x, [str(value) for value in target.tolist()], reading)


def read_hub(name: str, reading: Reading) -> Examples:
    """A data set of the Hugging Face hub, or a folder in its form: images or a table, by the columns that it has.

    Names may carry a configuration: ``hf:NAME@CONFIG``. Only data is read, never code of a data set.

    Raises:
        DataError: ``datasets`` not there, not found, no network, columns of another kind.
    """
    source = f"hf:{name}"
    try:
        import datasets
    except ImportError:
        raise DataError(source, "this needs the library datasets: pip install 'smask[datasets]'") from None
    path, _, config = name.partition("@")
    try:
        found = datasets.load_dataset(path, config or None)
    except Exception as error:  # network, hub, parsers: it raises whatever these raise
        reason = (str(error).splitlines() or [repr(error)])[0]
        raise DataError(source, f"cannot be fetched: {reason}") from None
    parts = [next((found[key] for key in keys if key in found), None) for keys in SPLITS]
    if parts[0] is None:
        raise DataError(source, f"no part called train; it has {', '.join(map(str, found))}")
    there = [part for part in parts if part is not None]
    features = there[0].features
    images = [column for column, kind in features.items() if isinstance(kind, datasets.Image)]
    label = _label(source, features, reading, datasets)
    labels = _labels(source, there, label, features[label], datasets)
    y, classes = numbered(source, labels, reading.classes or _declared(features[label], datasets))
    facts: Mapping[str, str]
    if images:
        column = images[0]
        # Undecoded: pixels are made by the reader of images, with its limits.
        bare = [part.cast_column(column, datasets.Image(decode=False)) for part in there]
        rows = [row for part in bare for row in part[column]]
        x = stacked(
            source, [(f"{source} image {i + 1}", _encoded(source, i, row)) for i, row in enumerate(rows)], reading
        )
        columns, facts = False, {}
    else:
        whole = {key: np.concatenate([_column(part, key) for part in there]) for key in features if key != label}
        made = of_table(source, {**whole, label: np.array(labels, object)}, _with(reading, label))
        x, columns, facts = made.train.x, made.columns, made.facts
    n = len(there[0])
    test = Part(x[n:], y[n:]) if len(there) > 1 else None
    return Examples(Part(x[:n], y[:n]), test, classes, facts, columns=columns)


def _label(source: str, features: Any, reading: Reading, datasets: Any) -> str:
    """The column of labels: the one wanted, else the one declared as such, else ``label``, else the last."""
    names = [str(name) for name in features]
    if reading.label is None:
        declared = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
        if len(declared) == 1:
            return str(declared[0])
    return names[label_column(source, names, reading.label, named=True)]


def _labels(source: str, parts: list[Any], label: str, kind: Any, datasets: Any) -> list[str]:
    found = [value for part in parts for value in part[label]]
    for row, value in enumerate(found):
        if value is None or (isinstance(kind, datasets.ClassLabel) and not 0 <= value < len(kind.names)):
            raise DataError(source, f"row {row + 1}, column {label!r}: no label ({value})")
    return [kind.names[value] if isinstance(kind, datasets.ClassLabel) else str(value) for value in found]


def _declared(kind: Any, datasets: Any) -> tuple[str, ...] | None:
    return tuple(kind.names) if isinstance(kind, datasets.ClassLabel) else None


def _encoded(source: str, index: int, row: Any) -> bytes | Path:
    """The bytes of an image that was not decoded, or the file that it is."""
    if row and row.get("bytes"):
        return bytes(row["bytes"])
    if row and row.get("path"):
        return Path(row["path"])
    raise DataError(source, f"image {index + 1} is missing")


def _column(part: Any, name: str) -> np.ndarray:
    return np.asarray(part.with_format("arrow")[:][name].to_numpy())


def _with(reading: Reading, label: str) -> Reading:
    return replace(reading, label=label)
