"""What a search tells as curves by step, in a folder for TensorBoard."""

from __future__ import annotations

import os
import socket
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import container
from ..errors import ArgumentError
from ..search.progress import Progress


class Board:
    """Curves of loss, accuracy, density, bytes and validation, written through at every report.

    A resumed search goes on in the same folder: what was written there of steps that it does again is hidden, and so is
    all of an earlier search where one begins anew. Nothing is deleted. A point that cannot be written ends the curves,
    not the search: ``problem`` is told once.

    Each event is written at once, by the package's own record writer. ``torch.utils.tensorboard.SummaryWriter`` has a
    thread for that: a killed search would lose what the thread holds, and a full disk end in its traceback.

    Args:
        folder: Made if it does not exist.
        problem: Told what went wrong; a warning by default.

    Raises:
        ArgumentError: The folder cannot be made, or the package ``tensorboard`` is not installed.
    """

    def __init__(self, folder: str | os.PathLike[str], *, problem: Callable[[str], None] | None = None) -> None:
        self._problem = problem or (lambda text: warnings.warn(text, stacklevel=2))
        self._events, self._record_writer = _library(folder)
        self._folder, self._broken = Path(folder), False
        self._part, self._path, self._begun = self._folder, Path(), False
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            want = f"a folder to write to ({container.errno_text(error)})"
            raise ArgumentError("tensorboard", str(folder), want) from None

    def begin(self, name: str) -> None:
        """What follows is a search of its own, with a folder of that name in the folder."""
        self._part, self._begun = self._folder / name, False

    def progress(self, at: Progress) -> None:
        """Writes one point of every curve."""
        if self._broken:
            return
        values = {"loss": at.loss, "accuracy": at.accuracy, "density": at.density, "bytes": at.n_bytes}
        if at.validation is not None:  # of text: bits per byte below zero, see smask.search.tasks.Language
            name = "validation/accuracy" if at.validation >= 0 else "validation/bits_per_byte"
            values[name] = abs(at.validation)
        points = [{"tag": tag, "simple_value": value} for tag, value in values.items() if value is not None]
        events: list[dict[str, Any]] = [{"step": at.step, "summary": {"value": points}}]
        try:
            if not self._begun:
                self._begun = True
                self._part.mkdir(parents=True, exist_ok=True)
                # TensorBoard reads the files of a folder in the order of their names.
                name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
                self._path = self._part / name
                start = {"step": at.first_step + 1, "session_log": {"status": "START"}}  # hides from this step on
                events = [{"file_version": "brain.Event:2"}, start, *events]
            with self._path.open("ab") as file:
                writer = self._record_writer(file)
                for fields in events:
                    writer.write(self._events.Event(wall_time=time.time(), **fields).SerializeToString())
        except OSError as error:
            self._broken = True
            self._problem(f"the curves in {self._folder} end here: {container.errno_text(error)}; the search goes on")


def check_installed(folder: str | os.PathLike[str]) -> None:
    """Raises ArgumentError if the package that curves need is not installed."""
    _library(folder)


def _library(folder: str | os.PathLike[str]) -> tuple[Any, Any]:
    """The events of TensorBoard, and what writes them."""
    try:
        from tensorboard.compat.proto import event_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter
    except ImportError:
        want = "the package tensorboard beside it: pip install 'smask[tensorboard]'"
        raise ArgumentError("tensorboard", str(folder), want) from None
    return event_pb2, RecordWriter
