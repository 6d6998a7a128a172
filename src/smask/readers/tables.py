"""Tables with a column of labels: CSV and Parquet. All other columns are features and hold numbers."""

from __future__ import annotations

import csv
import math
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from .examples import Examples, Part, check_size, numbered
from .reading import PIXELS, Reading

LABEL = "label"
# As many columns of nothing but whole numbers from 0 to 255, with 255 among them, are the pixels of a picture.
N_PIXELS = 64


def read_csv(path: Path, reading: Reading) -> Examples:
    """Rows of a CSV, float32 [N, features], or uint8 where they are pixels.

    The first row is a header if none of its cells is a number. Cells are separated by commas, in a ``.tsv`` by tabs, or
    by semicolons if the first line has no comma.

    Raises:
        DataError: Unreadable, ragged, a cell that is no finite number (it names row and column), no label column.
    """
    source = str(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return _of_rows(source, _rows(source, file, path.suffix.lower()), reading)
    except OSError as error:
        raise DataError(source, f"unreadable: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise DataError(source, f"byte {error.start} of a block is not UTF-8; save the table as UTF-8") from None


def _rows(source: str, file: Any, suffix: str) -> Iterator[tuple[int, list[str]]]:
    """(line, cells) of all rows that are not blank."""
    first = file.readline()
    file.seek(0)
    separator = "\t" if suffix == ".tsv" else ";" if ";" in first and "," not in first else ","
    reader = csv.reader(file, delimiter=separator, strict=True)
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise DataError(source, f"line {reader.line_num}: {error}") from None
        if row is None:
            return
        if any(cell.strip() for cell in row):
            yield reader.line_num, [cell.strip() for cell in row]


def _of_rows(source: str, rows: Iterator[tuple[int, list[str]]], reading: Reading) -> Examples:
    first = next(rows, None)
    if first is None:
        raise DataError(source, "the table is empty")
    header = first[1] if not any(_is_number(cell) for cell in first[1]) else None
    n_columns = len(first[1])
    if n_columns < 2:
        raise DataError(source, f"line {first[0]} has one cell; want features and a label, separated by commas")
    names = header or [str(index + 1) for index in range(n_columns)]
    label = label_column(source, names, reading.label, named=header is not None)
    values, labels = array("f"), list[str]()
    for line, cells in [] if header else [first]:
        _take(source, line, cells, names, label, values, labels)
    for line, cells in rows:
        _take(source, line, cells, names, label, values, labels)
    if not labels:
        raise DataError(source, "a header and no rows")
    x = np.frombuffer(values, np.float32).reshape(len(labels), n_columns - 1)
    return of_columns(source, x, labels, reading)


def _take(
    source: str, line: int, cells: list[str], names: list[str], label: int, values: array[float], labels: list[str]
) -> None:
    if len(cells) != len(names):
        raise DataError(source, f"line {line} has {len(cells)} cells, the first has {len(names)}")
    if not cells[label]:
        raise DataError(source, f"line {line}, column {names[label]!r}: the label is missing")
    for column, cell in enumerate(cells):
        if column == label:
            labels.append(cell)
            continue
        number = _number(cell)
        if not math.isfinite(number) or abs(number) > 3e38:
            what = "is empty" if not cell else f"holds {cell[:40]!r}, which is not a finite number"
            raise DataError(source, f"line {line}, column {names[column]!r} {what}")
        values.append(number)


def read_parquet(path: Path, reading: Reading) -> Examples:
    """Rows of a Parquet file, as :func:`read_csv` gives those of a CSV.

    Raises:
        DataError: As there, or pyarrow not there.
    """
    source = str(path)
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError:
        raise DataError(source, "reading Parquet needs pyarrow: pip install 'smask[tables]'") from None
    try:
        with parquet.ParquetFile(path) as file:
            n_rows, names = file.metadata.num_rows, list(file.schema_arrow.names)
            # Its own numbers of rows and bytes are claims, but nothing larger is then made of them.
            n_claimed = sum(file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups))
            check_size(source, max(4 * n_rows * len(names), n_claimed))
            table = file.read()
            columns = {name: table.column(i).to_numpy() for i, name in enumerate(names)}
    except (arrow.ArrowException, OSError, ValueError) as error:
        raise DataError(source, f"unreadable: {(str(error).splitlines() or [repr(error)])[0]}") from None
    return of_table(source, columns, reading)


def of_table(source: str, table: Mapping[str, np.ndarray], reading: Reading) -> Examples:
    """Columns by name, [N] each, as examples.

    Raises:
        DataError: As :func:`read_csv`.
    """
    names = list(table)
    if len(names) < 2:
        raise DataError(source, f"columns {', '.join(names) or 'none'}; want features and a label")
    label = label_column(source, names, reading.label, named=True)
    n_rows = len(table[names[label]])
    if not n_rows:
        raise DataError(source, "no rows")
    x = np.empty((n_rows, len(names) - 1), np.float32)
    for index, name in enumerate(name for i, name in enumerate(names) if i != label):
        x[:, index] = _numeric(source, name, table[name])
    labels = list[str]()
    for row, value in enumerate(table[names[label]].tolist()):
        if isinstance(value, list | dict | np.ndarray):
            raise DataError(source, f"row {row + 1}, column {names[label]!r} holds {str(value)[:40]!r}; want one label")
        if value is None or value != value:
            raise DataError(source, f"row {row + 1}, column {names[label]!r}: the label is missing")
        whole = isinstance(value, float) and value.is_integer()
        labels.append(str(int(value) if whole else value))
    return of_columns(source, x, labels, reading)


def of_columns(source: str, x: np.ndarray, labels: Sequence[str], reading: Reading) -> Examples:
    """Features, float32 [N, features], and labels as examples; pixels become uint8.

    Raises:
        DataError: Labels that are measured, not classes; pixels wanted where there are none.
    """
    if reading.classes is None:
        fractions = {label for label in labels if _is_number(label) and not float(label).is_integer()}
        if fractions:
            reason = f"labels like {min(fractions)} are no classes; name the column of classes (--label NAME)"
            raise DataError(source, reason)
    y, classes = numbered(source, labels, reading.classes)
    whole = bool((x == np.round(x)).all()) and x.min() >= 0 and x.max() <= 255
    if reading.pixels and not whole:
        raise DataError(source, "the net takes pixels, and not all columns hold whole numbers from 0 to 255")
    alike = x.shape[1] >= N_PIXELS and whole and x.min() == 0 and x.max() == 255
    if reading.pixels or (alike and reading.pixels is None):
        return Examples(Part(x.astype(np.uint8), y), None, classes, {PIXELS: "true"})
    return Examples(Part(np.array(x), y), None, classes, columns=True)


def label_column(source: str, names: Sequence[str], wanted: str | None, *, named: bool) -> int:
    """Index of the column of labels: the one wanted, by name or number from 1, else ``label``, else the last.

    Raises:
        DataError: It is not there, or twice.
    """
    if wanted is not None and names.count(wanted) > 1:
        raise DataError(source, f"{names.count(wanted)} columns are called {wanted!r}")
    if wanted in names:
        return names.index(wanted)
    if wanted is not None:
        if wanted.isascii() and wanted.isdigit() and len(wanted) < 10 and 1 <= int(wanted) <= len(names):
            return int(wanted) - 1
        shown = ", ".join(names[:8]) + (" ..." if len(names) > 8 else "")
        hint = f"its columns are {shown}" if named else f"it has no header; give a number from 1 to {len(names)}"
        raise DataError(source, f"no column {wanted!r}: {hint}")
    return names.index(LABEL) if LABEL in names else len(names) - 1


def _numeric(source: str, name: str, column: np.ndarray) -> np.ndarray:
    """A column of finite numbers, float32."""
    if column.dtype.kind in "fiub":
        with np.errstate(over="ignore"):
            numbers = column.astype(np.float32)
        bad = np.flatnonzero(~np.isfinite(numbers))
    else:
        found = [_number(cell) for cell in column.tolist()]
        bad = np.flatnonzero([not math.isfinite(number) or abs(number) > 3e38 for number in found])
        numbers = np.array(found if not len(bad) else [0.0] * len(found), np.float32)
    if len(bad):
        cell = column[bad[0]]
        what = f"holds {str(cell)[:40]!r}, which is not a finite number"
        raise DataError(source, f"row {int(bad[0]) + 1}, column {name!r} {what}")
    return numbers


def _number(text: object) -> float:
    """A number, or NaN; digits grouped by underscores are none."""
    try:
        return math.nan if isinstance(text, str) and "_" in text else float(text)  # type: ignore[arg-type]
    except (ValueError, OverflowError, TypeError):
        return math.nan


def _is_number(text: str) -> bool:
    return math.isfinite(_number(text))
