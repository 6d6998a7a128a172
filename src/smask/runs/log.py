"""The log of a search: one JSON object a line, each written through at once."""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .. import container
from ..errors import ArgumentError
from ..search.progress import Progress

# Seconds between two lines of progress.
INTERVAL = 1.0


class Log:
    """Appends events and progress to a file; a resumed search goes on in the same file.

    A line that cannot be written ends the log, not the search: ``problem`` is told once.

    Args:
        path: Made if it does not exist.
        problem: Told what went wrong; a warning by default.

    Raises:
        ArgumentError: The file cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str], *, problem: Callable[[str], None] | None = None) -> None:
        self._problem = problem or (lambda text: warnings.warn(text, stacklevel=2))
        self._started = time.monotonic()
        self._first: tuple[float, int] | None = None
        self._last = 0.0
        try:
            with Path(path).open("a", encoding="utf-8"):
                pass
        except OSError as error:
            raise ArgumentError("log", str(path), f"a file to append to ({container.errno_text(error)})") from None
        self._path, self._broken = Path(path), False

    def event(self, event: str, **fields: Any) -> None:
        """Writes one line: ``event``, ``seconds`` since this process began the log, and the fields."""
        if self._broken:
            return
        seconds = round(time.monotonic() - self._started, 3)
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"event": event, "seconds": seconds, **fields}, default=str) + "\n")
        except OSError as error:
            self._broken = True
            self._problem(f"the log {self._path} ends here: {container.errno_text(error)}; the search goes on")

    def progress(self, at: Progress) -> None:
        """Writes the state of a search, at most one a second, and the last one."""
        now = time.monotonic()
        self._first = self._first or (now, at.step)
        if now - self._last >= INTERVAL or at.step >= at.n_steps:
            self._last = now
            rate = (at.step - self._first[1]) / max(1e-9, now - self._first[0])
            left = round((at.n_steps - at.step) / rate, 1) if rate else None
            values = asdict(at)
            if at.validation is not None and at.validation < 0:  # of text, see smask.search.tasks.Language
                values["validation_bits_per_byte"] = -values.pop("validation")
            self.event("progress", **values, seconds_left=left)
