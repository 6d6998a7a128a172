"""Labelled data for a search: what a reader found, split, and its training batches."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ArgumentError, DataError
from ..readers import sounds
from ..readers.additions import read_additions
from ..readers.arrays import is_idx, read_idx, read_npz
from ..readers.examples import Examples, parted
from ..readers.folders import suffixes_in
from ..readers.hubs import read_hub, read_openml
from ..readers.images import read_images
from ..readers.reading import CLASSES, Reading, split_facts
from ..readers.sounds import read_sounds
from ..readers.tables import read_csv, read_parquet
from .changes import erased, mirrored, mixed, resized, shifted


@dataclass(frozen=True, eq=False)
class Dataset:
    """Inputs and labels, split for training and testing.

    Attributes:
        name: Where it came from.
        x_train, x_test: uint8 or float32 [N, ...] on the CPU; images are [N, channels, height, width].
        y_train, y_test: int64 [N]; where an input has several labels, float32 [N, labels] of zeros and ones.
        top: Value of a full uint8 input; inputs are divided by it, so that the net sees [0, 1].
        classes: Their names in order of label, None where the data has only numbers.
        facts: What a file has to say, beside the classes, for its model to be used on other data.
        augmented: Whether three-dimensional inputs are pictures, which may be moved and mirrored.
        columns: Whether features are of different kinds, so that each is normalised by itself.
    """

    name: str
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    top: float = 255.0
    classes: tuple[str, ...] | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    columns: bool = False
    augmented: bool = True

    @property
    def meta(self) -> Mapping[str, str]:
        """What a file has to say for its model to be used on other data."""
        names = {} if self.classes is None else {CLASSES: json.dumps(self.classes, ensure_ascii=False)}
        return {**names, **self.facts}

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return tuple(self.x_train.shape[1:])

    @property
    def several(self) -> bool:
        """Whether an input may have several labels."""
        return self.y_train.dim() == 2

    @property
    def n_classes(self) -> int:
        """Number of names, or largest training label plus one; or labels that an input may have."""
        if self.several:
            return self.y_train.shape[1]
        return int(self.y_train.max()) + 1 if self.classes is None else len(self.classes)

    def statistics(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of the training inputs: a channel, a column, or all features together."""
        if self.columns:
            return _of_columns(self.x_train.numpy())
        axes = (0, 2, 3) if self.x_train.dim() == 4 else None
        x = self.x_train.numpy()
        mean = np.atleast_1d(x.mean(axis=axes, dtype=np.float64))
        std = np.atleast_1d(x.std(axis=axes, dtype=np.float64))
        scale = self.top if self.x_train.dtype == torch.uint8 else 1.0
        return [round(float(m) / scale, 4) for m in mean], [max(round(float(s) / scale, 4), 0.0001) for s in std]

    def validation(self, part: float, *, seed: int) -> tuple[Dataset, Dataset]:
        """Splits the training inputs: a dataset without some of them, and one that has those as its test part.

        Args:
            part: Of the training inputs that are set aside, in (0, 1).
            seed: Of the choice.

        Raises:
            ArgumentError: A part out of range, or one that leaves nothing on a side.
        """
        n = round(part * len(self.x_train)) if 0 < part < 1 else 0
        if not 0 < n < len(self.x_train):
            raise ArgumentError("validation", part, "a part of the training inputs, above 0 and below 1")
        order = torch.randperm(len(self.x_train), generator=torch.Generator().manual_seed(seed % 2**63))
        aside, rest = order[:n].sort().values, order[n:].sort().values
        x, y = self.x_train, self.y_train
        return (
            replace(self, x_train=x[rest], y_train=y[rest]),
            replace(self, x_train=x[rest], y_train=y[rest], x_test=x[aside], y_test=y[aside]),
        )

    def sample(self, n_inputs: int) -> Tensor:
        """So many training inputs as the net sees them, or all if there are fewer; always the same ones."""
        order = torch.randperm(len(self.x_train), generator=torch.Generator().manual_seed(0))
        return self.inputs(self.x_train[order[:n_inputs]])

    def inputs(self, x: Tensor) -> Tensor:
        """What the net sees: float32, uint8 divided by ``top``."""
        return x.to(torch.float32) / self.top if x.dtype == torch.uint8 else x


def _of_columns(x: np.ndarray) -> tuple[list[float], list[float]]:
    """Four significant digits: columns may be in any units."""
    mean, std = x.mean(0, dtype=np.float64), x.std(0, dtype=np.float64)
    # A column that never changes, but for rounding, is left as it is.
    still = std <= 1e-6 * np.maximum(np.abs(mean), 1e-30)
    return [float(f"{m:.4g}") for m in mean], [1.0 if s else float(f"{d:.4g}") for s, d in zip(still, std, strict=True)]


class Batches:
    """Shuffled training batches on a device; every pass over it is a new epoch of the same seeded sequence.

    Args:
        dataset: What to draw from.
        batch_size: Inputs a batch; the last, incomplete one is left out unless it is the only one.
        seed: Of the order and the shifts.
        shift: Images are moved by up to this many pixels in both directions, each by itself.
        device: Where batches are wanted.
        flip: Whether every other image, by chance, is mirrored left to right.
        erase: Every image loses a square of so many pixels a side: its channels are there what they are on average
            (cutout, DeVries and Taylor 2017). Centres are anywhere, so that a part of a square may lie outside.
        cutmix: Chance of an image to get a rectangle of another, and that part of its label; targets are then
            float32 [N, classes], see :func:`smask.search.changes.mixed`.
        sizes: Pixels of the shorter side of images, and the part of the passes, in (0, 1), at which that ends: one size
            after another, then whole images. Smaller ones take less time, and a net that has learned from them learns
            the rest from whole ones (Tan and Le, "EfficientNetV2", ICML 2021, section 4). Which pass it is says
            :meth:`set_progress`.
        channels_last: Whether images lie in memory pixel by pixel, as convolutions want them. A model that calls
            ``view`` on images, or on what convolutions make of such images, cannot have it; ``flatten`` can.
    """

    def __init__(
        self, dataset: Dataset, *, batch_size: int, seed: int, shift: int = 0, device: torch.device | str = "cpu",
        flip: bool = False, erase: int = 0, cutmix: float = 0.0, sizes: Sequence[tuple[int, float]] = (),
        channels_last: bool = False,
    ) -> None:  # fmt: skip
        self.dataset, self.shift, self.seed, self.device = dataset, shift, seed, torch.device(device)
        self.flip, self.erase, self.cutmix, self.channels_last = flip, erase, cutmix, channels_last
        self.sizes = tuple(sizes)
        self._n_pixels: int | None = None
        self.batch_size = min(batch_size, len(dataset.x_train))
        self.generator = torch.Generator().manual_seed(seed % 2**63)
        self.x = dataset.x_train.to(device)
        self.y = dataset.y_train.to(device)
        if erase:
            top = dataset.top if self.x.dtype == torch.uint8 else 1.0
            mean = torch.tensor(dataset.statistics()[0]) * top
            self._mean = (mean.round() if self.x.dtype == torch.uint8 else mean).to(self.x)[:, None, None]

    def __len__(self) -> int:
        return len(self.x) // self.batch_size

    def fingerprint(self) -> str:
        """sha256 over the training data and all that decides batches: a search goes on only with the same."""
        settings = (self.batch_size, self.seed, self.shift, self.dataset.top, *["flip"] * self.flip)
        settings += ("erase", self.erase) if self.erase else ()
        settings += ("cutmix", self.cutmix) if self.cutmix else ()
        settings += ("sizes", self.sizes) if self.sizes else ()
        running = hashlib.sha256(repr(settings).encode())
        for tensor in (self.dataset.x_train, self.dataset.y_train):
            running.update(repr((tensor.dtype, tensor.shape)).encode())
            running.update(tensor.contiguous().numpy().data)
        return running.hexdigest()

    def set_progress(self, part: float) -> None:
        """Says which part of all passes is done, from 0 to below 1, before the next; else images are whole."""
        self._n_pixels = next((n_pixels for n_pixels, end in self.sizes if part < end), None)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.x), generator=self.generator).to(self.device)
        for batch in range(len(self)):
            chosen = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            x, y = self.x[chosen], self.y[chosen]
            if self.shift and x.dim() == 4:
                x = shifted(x, self.shift, self.generator)
            if self.flip and x.dim() == 4:
                x = mirrored(x, self.generator)
            if self.erase and x.dim() == 4:
                x = erased(x, self.erase, self._mean, self.generator)
            if self.cutmix and x.dim() == 4:
                y = y if self.dataset.several else F.one_hot(y, self.dataset.n_classes).to(torch.float32)
                x, y = mixed(x, y, self.cutmix, self.generator)
            if self.channels_last and x.dim() == 4:
                x = x.contiguous(memory_format=torch.channels_last)
            x = self.dataset.inputs(x)
            yield x if self._n_pixels is None or x.dim() != 4 else resized(x, self._n_pixels), y


def load_dataset(source: str, reading: Reading | None = None) -> Dataset:
    """Data named on the command line.

    Args:
        source: ``digits``; ``addition:BITS``; ``openml:NAME``; ``hf:NAME``; a folder of idx files, of images by class
            or of WAV files by class; an ``.npz``; a table, ``.csv``, ``.tsv`` or ``.parquet``.
        reading: How it is read and split where it does not say so itself.

    Raises:
        DataError: Missing, unreadable or inconsistent data, or a library that is not there.
    """
    if source == "digits":
        return digits()
    reading = reading or Reading()
    found = _read(source, reading)
    train, test = parted(source, found, reading)
    x_train, y_train, x_test, y_test = (
        torch.from_numpy(np.require(array, requirements=("C", "W"))) for array in (train.x, train.y, test.x, test.y)
    )
    facts = {**found.facts, **(split_facts(reading) if found.test is None else {})}
    return Dataset(
        source, x_train, y_train, x_test, y_test, classes=found.classes, facts=facts, columns=found.columns,
        augmented=found.pictures,
    )  # fmt: skip


def _read(source: str, reading: Reading) -> Examples:
    family, colon, name = source.partition(":")
    path = Path(source)
    if colon and family in COLLECTIONS and name:
        return COLLECTIONS[family](name, reading)
    if path.is_dir():
        if is_idx(path):
            return read_idx(path)
        suffixes = suffixes_in(path)
        return read_sounds(path, reading) if suffixes & {*sounds.SUFFIXES} else read_images(path, reading)
    if not path.exists():
        raise DataError(
            source,
            f"not found; give 'digits', addition:12, a folder, a file ({', '.join(FILES)}), openml:NAME or hf:NAME",
        )
    if path.suffix.lower() not in FILES:
        raise DataError(source, f"no file of a known kind: {', '.join(FILES)}, or a folder; text is --task lm")
    return FILES[path.suffix.lower()](path, reading)


FILES: Mapping[str, Callable[[Path, Reading], Examples]] = {
    ".npz": lambda path, reading: read_npz(path), ".csv": read_csv, ".tsv": read_csv, ".parquet": read_parquet,
}  # fmt: skip
COLLECTIONS: Mapping[str, Callable[[str, Reading], Examples]] = {
    "addition": read_additions, "openml": read_openml, "hf": read_hub,
}  # fmt: skip


def digits() -> Dataset:
    """The 1,797 handwritten 8 x 8 digits bundled with scikit-learn; every fifth is a test image."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    images = torch.from_numpy(x.astype(np.uint8)).reshape(-1, 1, 8, 8)
    labels = torch.from_numpy(y.astype(np.int64))
    test = torch.arange(len(labels)) % 5 == 4
    return Dataset("digits", images[~test], labels[~test], images[test], labels[test], top=16.0)
