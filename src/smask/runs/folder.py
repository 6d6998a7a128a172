"""Checkpoints of a search in a folder: each one safetensors file that appears whole or not at all.

A file ``step-00001200.safetensors`` has the tensors of the snapshot; its metadata have, as JSON, the plain numbers, the
settings that decide the result, facts of the machine, and a sha256 over both. Nothing is ever unpickled. The two
latest files stay, so that one damaged file costs an interval and not the search.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .. import container, integrity
from ..errors import ArgumentError, CheckpointError, OutputError, ResumeError
from ..search.snapshots import Snapshot

FORM = "1"
N_KEPT = 2
# Seconds between two checkpoints.
INTERVAL = 60.0
NAME = re.compile(r"step-(\d{8,})\.safetensors\Z")


class Checkpoints:
    """Keeps the snapshots of one search in a folder; a :class:`smask.search.snapshots.Keeper`.

    A checkpoint that cannot be written, because the disk is full or gone, does not end the search: ``problem`` is
    told, the earlier checkpoints stay, and the next interval tries again.

    Args:
        folder: Made if it does not exist; other files in it are left alone.
        resume: Whether to go on from what the folder holds; without it the folder must hold no checkpoint.
        every: Seconds between checkpoints, 0 for one after every step.
        problem: Told what went wrong and what differs without changing the settings; a warning by default.

    Raises:
        ArgumentError: A negative interval, or a folder with checkpoints and no ``resume``.
        OutputError: The folder cannot be made.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        resume: bool = False,
        every: float = INTERVAL,
        problem: Callable[[str], None] | None = None,
    ) -> None:
        if not every >= 0:
            raise ArgumentError("checkpoint_every", every, "seconds, 0 or more")
        self.folder, self.every = Path(folder), every
        self._problem = problem or (lambda text: warnings.warn(text, stacklevel=2))
        self._resume, self._place = resume, None if not resume else self._latest()
        self._settings: Mapping[str, Any] = {}
        self._kept_at = time.monotonic()
        if not resume:
            self._refuse_held()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(str(self.folder), container.errno_text(error)) from None

    @property
    def place(self) -> str | None:
        """Path of the last checkpoint that was kept or gone on from."""
        return self._place

    def last(self, settings: Mapping[str, Any]) -> Snapshot | None:
        """The latest readable snapshot.

        Raises:
            ArgumentError: The folder holds checkpoints by now, of another search with the same keeper, say.
            ResumeError: It is of other settings.
            CheckpointError: The folder holds checkpoints and none can be read.
        """
        # What JSON gives back is compared with what JSON gives back.
        self._settings = json.loads(json.dumps(settings))
        self._kept_at = time.monotonic()
        if not self._resume:
            self._refuse_held()
        failed: CheckpointError | None = None
        for path in reversed(self._files() if self._resume else []):
            try:
                snapshot = self._read(path)
            except CheckpointError as error:
                self._problem(f"{error}; the one before it is tried")
                failed = failed or error
                continue
            self._place = str(path)
            return snapshot
        if failed:
            raise failed
        return None

    def due(self) -> bool:
        """Whether the interval has passed."""
        return time.monotonic() - self._kept_at >= self.every

    def keep(self, snapshot: Snapshot) -> None:
        """Writes a snapshot beside the earlier ones, then removes all but the latest; never raises for the system."""
        path = self.folder / f"step-{snapshot.step:08d}.safetensors"
        tensors, held = dict[str, torch.Tensor](), set[int]()
        for name, tensor in snapshot.tensors.items():
            tensor = tensor.detach().cpu().contiguous()
            # Of tensors that share memory the file has each whole.
            tensors[name] = tensor.clone() if tensor.untyped_storage().data_ptr() in held else tensor
            held.add(tensor.untyped_storage().data_ptr())
        metadata = {
            "form": FORM,
            "step": str(snapshot.step),
            "numbers": json.dumps(snapshot.numbers),
            "settings": json.dumps(self._settings),
            "facts": json.dumps(_facts()),
        }
        metadata["digest"] = _digest(tensors, metadata)
        try:
            with container.atomic_output(path, overwrite=True) as beside:
                try:
                    save_file(tensors, beside, metadata)
                except SafetensorError as error:  # its way to say that the disk is full
                    raise OutputError(str(path), str(error)) from None
        except (OutputError, ArgumentError) as error:
            again = f"the search goes on, next attempt in {self.every:.0f} s"
            self._problem(f"no checkpoint: {error}; {again}; the last one is {self._place or 'none'}")
        else:
            self._place = str(path)
            for old in self._files()[:-N_KEPT]:
                with contextlib.suppress(OSError):
                    old.unlink()
        self._kept_at = time.monotonic()

    def _refuse_held(self) -> None:
        if held := self._files():
            want = f"a folder without checkpoints, it has {held[-1].name}: --resume goes on from there"
            raise ArgumentError("checkpoint", str(self.folder), want)

    def _files(self) -> list[Path]:
        """Checkpoints in order of their steps."""
        try:
            found = [(NAME.match(path.name), path) for path in self.folder.iterdir()]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise ArgumentError("checkpoint", str(self.folder), f"a folder ({container.errno_text(error)})") from None
        return [path for _, path in sorted((int(match[1]), path) for match, path in found if match)]

    def _latest(self) -> str | None:
        files = self._files()
        return str(files[-1]) if files else None

    def _read(self, path: Path) -> Snapshot:
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("form") != FORM:
                    raise CheckpointError(str(path), f"its form is {metadata.get('form')!r}, want {FORM!r}")
                settings, facts = json.loads(metadata["settings"]), json.loads(metadata["facts"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            numbers, step = json.loads(metadata["numbers"]), int(metadata["step"])
        except (SafetensorError, OSError, KeyError, ValueError, RecursionError) as error:
            raise CheckpointError(str(path), f"unreadable: {error!r}") from None
        if _digest(tensors, metadata) != metadata["digest"]:
            raise CheckpointError(str(path), "its sha256 does not match: the file is damaged")
        self._compare(settings, facts)
        return Snapshot(step, numbers, tensors)

    def _compare(self, there: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        names = [*self._settings, *(name for name in there if name not in self._settings)]
        differences = tuple(
            (name, there.get(name), self._settings.get(name))
            for name in names
            if there.get(name) != self._settings.get(name)
        )
        if differences:
            raise ResumeError(str(self.folder), differences)
        here = _facts()
        other = [
            f"{name} {facts.get(name)} then and {here[name]} now" for name in here if facts.get(name) != here[name]
        ]
        if other:
            self._problem(f"resumed with {', '.join(other)}: the result may differ in its last bits")


def _digest(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> str:
    """sha256 over the tensors and all metadata but itself."""
    running = hashlib.sha256(integrity.digest({name: tensors[name] for name in sorted(tensors)}).encode())
    for name in sorted(metadata):
        if name != "digest":
            running.update(f"\0{name}\0{metadata[name]}".encode())
    return running.hexdigest()


def _facts() -> dict[str, Any]:
    """What may change the last bits of a result without being asked for."""
    return {"torch": str(torch.__version__), "threads": torch.get_num_threads(), "machine": platform.machine()}
