"""Checkpoints of training in rounds: a folder for each."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from ..errors import ArgumentError
from .folder import INTERVAL, NAME, Checkpoints


class Rounds:
    """Gives each round of a training its folder of checkpoints; a finished round is then not trained again.

    Args:
        folder: Made if it does not exist.
        resume, every, problem: As for :class:`smask.runs.folder.Checkpoints`.

    Raises:
        ArgumentError: A folder that holds checkpoints of one search, or, without ``resume``, of rounds.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        resume: bool = False,
        every: float = INTERVAL,
        problem: Callable[[str], None] | None = None,
    ) -> None:
        self._folder, self._resume, self._every, self._problem = Path(folder), resume, every, problem
        held = [path.name for path in self._folder.iterdir() if NAME.match(path.name)] if self._folder.is_dir() else []
        if held:
            raise ArgumentError("checkpoint", str(folder), f"a folder of rounds, it has {held[0]} of another command")
        self._before: str | None = None
        self._now = self(1)

    @property
    def place(self) -> str | None:
        """Path of the last checkpoint that was kept or gone on from."""
        return self._now.place or self._before

    def __call__(self, n_round: int) -> Checkpoints:
        """What keeps the snapshots of a round, from 1."""
        self._before = self.place if n_round > 1 else None
        self._now = Checkpoints(
            self._folder / f"round-{n_round:03d}", resume=self._resume, every=self._every, problem=self._problem
        )
        return self._now
