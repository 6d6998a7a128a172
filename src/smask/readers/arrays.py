"""Arrays with four names: idx files of a folder, or an ``.npz``."""

from __future__ import annotations

import gzip
import math
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from ..errors import DataError, SmaskError
from .examples import MAX_CLASSES, Examples, Part, check_size

IDX_FILES = {
    "x_train": "train-images", "y_train": "train-labels", "x_test": "t10k-images", "y_test": "t10k-labels",
}  # fmt: skip
IDX_DTYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
# Bytes that deflate makes of one at most.
DEFLATE_RATIO = 1032
# Arrays of an ``.npz`` that an error names.
N_SHOWN = 8


def is_idx(root: Path) -> bool:
    """Whether a folder holds idx files of the known names."""
    return any(path.name.startswith(tuple(IDX_FILES.values())) for path in root.iterdir())


def read_idx(root: Path) -> Examples:
    """Four idx files, compressed or not.

    Raises:
        DataError: One is missing, damaged, or does not go with the others.
    """
    return _examples(str(root), {name: _idx_file(root, stem) for name, stem in IDX_FILES.items()})


def read_npz(path: Path) -> Examples:
    """Arrays ``x_train, y_train, x_test, y_test``: images NHWC, NCHW or NHW, or anything else; uint8 or floats.

    Raises:
        DataError: One is missing, damaged, or does not go with the others.
    """
    return _examples(str(path), _npz(path))


def _idx_file(folder: Path, stem: str) -> np.ndarray:
    found = sorted(path for path in folder.iterdir() if path.name.startswith(stem))
    if not found:
        raise DataError(str(folder), f"no file that begins with {stem}")
    path = found[0]
    zipped = path.suffix == ".gz"
    try:
        with gzip.open(path) if zipped else path.open("rb") as file:
            head = file.read(4)
            if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in IDX_DTYPES:
                raise DataError(str(path), "not an idx file")
            sizes = file.read(4 * head[3])
            if len(sizes) < 4 * head[3]:
                raise DataError(str(path), "not an idx file")
            shape, dtype = struct.unpack(f">{head[3]}I", sizes), np.dtype(IDX_DTYPES[head[2]])
            want = math.prod(shape) * dtype.itemsize
            most = path.stat().st_size * (DEFLATE_RATIO if zipped else 1)
            if want > most:
                raise DataError(str(path), f"at most {most:,} bytes, its header asks for {want:,}")
            check_size(str(path), want)
            raw = file.read(want + 1)
            if len(raw) != want:
                amount = "more" if len(raw) > want else f"{len(raw):,}"
                raise DataError(str(path), f"{amount} bytes of data, its header asks for {want:,}")
            return np.frombuffer(raw, dtype).reshape(shape)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(str(path), f"unreadable: {error}") from None


def _npz(path: Path) -> dict[str, np.ndarray]:
    source = str(path)
    try:
        with zipfile.ZipFile(path) as archive:
            there = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
            missing = [name for name in IDX_FILES if name not in there]
            if missing:
                shown = ", ".join(there[:N_SHOWN]) or "none"
                raise DataError(source, f"no array {missing[0]}; it has {shown}{' ...' * (len(there) > N_SHOWN)}")
            check_size(source, sum(_n_bytes(source, archive, name) for name in IDX_FILES))
            found = {}
            for name in IDX_FILES:
                with archive.open(f"{name}.npy") as file:
                    found[name] = npy.read_array(file, allow_pickle=False)
            return found
    except (SmaskError, MemoryError):
        raise
    except Exception as error:  # bytes of others: zip, deflate and numpy fail in any way there is
        reason = (str(error).splitlines() or [repr(error)])[0]
        raise DataError(source, f"unreadable: {reason}") from None


def _n_bytes(source: str, archive: zipfile.ZipFile, name: str) -> int:
    """What an array of an ``.npz`` takes in memory, by its header and no more than is there."""
    with archive.open(f"{name}.npy") as file:
        read_header = npy.read_array_header_1_0 if npy.read_magic(file) == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read_header(file)
        want, there = math.prod(shape) * dtype.itemsize, archive.getinfo(f"{name}.npy").file_size - file.tell()
    if want > there:
        raise DataError(source, f"{name}: {there:,} bytes, its header asks for {want:,}")
    return want


def _examples(source: str, arrays: dict[str, np.ndarray]) -> Examples:
    for part in ("train", "test"):
        x, y = arrays[f"x_{part}"], arrays[f"y_{part}"]
        if y.ndim == 2 and y.shape[1] == 1:
            y = arrays[f"y_{part}"] = y[:, 0]
        if x.ndim < 2 or y.ndim != 1:
            raise DataError(source, f"x_{part} has shape {x.shape} and y_{part} {y.shape}, want [N, ...] and [N]")
        if len(x) != len(y) or not len(x):
            raise DataError(source, f"x_{part} has {len(x)} inputs and y_{part} {len(y)} labels")
        if not np.issubdtype(y.dtype, np.integer):
            raise DataError(source, f"y_{part} holds {y.dtype}, want integers")
        if not (np.issubdtype(x.dtype, np.floating) or x.dtype == np.uint8):
            raise DataError(source, f"x_{part} holds {x.dtype}, want uint8 or floats")
        if np.issubdtype(x.dtype, np.floating) and not np.isfinite(x).all():
            raise DataError(source, f"x_{part} holds values that are not finite")
    if arrays["x_train"].shape[1:] != arrays["x_test"].shape[1:] or arrays["x_train"].dtype != arrays["x_test"].dtype:
        raise DataError(source, "x_train and x_test differ in shape or dtype")
    n_classes = int(arrays["y_train"].max()) + 1
    for part in ("train", "test"):
        low, high = int(arrays[f"y_{part}"].min()), int(arrays[f"y_{part}"].max())
        if low < 0 or high >= min(n_classes, MAX_CLASSES):
            allowed = min(n_classes, MAX_CLASSES) - 1
            raise DataError(source, f"y_{part} has labels {low} to {high}, want 0 to {allowed}")
    parts = [Part(_inputs(arrays[f"x_{part}"]), arrays[f"y_{part}"].astype(np.int64)) for part in ("train", "test")]
    return Examples(parts[0], parts[1], None)


def _inputs(array: np.ndarray) -> np.ndarray:
    """Images as NCHW, everything else as it is; uint8 stays, floats become float32."""
    array = array if array.dtype == np.uint8 else array.astype(np.float32)
    if array.ndim == 3:
        return array[:, None]
    if array.ndim == 4 and array.shape[3] in (1, 3) and array.shape[1] not in (1, 3):
        return array.transpose(0, 3, 1, 2)
    return array
