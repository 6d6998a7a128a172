"""Tasks of a file: groups of records, one after the other, over one seed or base. No torch.

A file of one model is one group without a name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from .errors import ArgumentError
from .records import Manifest, Record

# Tasks that an error names.
N_SHOWN = 12


def number_of(described: Manifest, task: str | None) -> int:
    """Number of a task, 0 where the file has one model.

    Raises:
        ArgumentError: No task of the file, none named where there are several, or one named where there are none.
    """
    if not described.tasks:
        if task is not None:
            raise ArgumentError("task", task, "none: the file holds one model")
        return 0
    found = next((number for number, one in enumerate(described.tasks) if one.name == task), None)
    if found is None:
        raise ArgumentError("task", task, f"one of the tasks of the file: {_shown(described)}")
    return found


def records_of(described: Manifest, task: str | None) -> list[Record]:
    """The records of a task; raises ArgumentError as :func:`number_of`."""
    return [described.tensors[place] for place in described.groups[number_of(described, task)]]


def arch_of(described: Manifest, task: str | None) -> dict[str, Any]:
    """The architecture of a task; raises ArgumentError as :func:`number_of`."""
    number = number_of(described, task)
    own = described.tasks[number].arch if described.tasks else None
    return described.arch if own is None else own


def meta_of(described: Manifest, task: str | None) -> dict[str, str]:
    """Free text of the file and of a task; raises ArgumentError as :func:`number_of`."""
    number = number_of(described, task)
    return {**described.meta, **(described.tasks[number].meta if described.tasks else {})}


def digest_of(described: Manifest, task: str | None) -> str:
    """What the sha256 over the tensors of a task begins with, or is; raises ArgumentError as :func:`number_of`."""
    number = number_of(described, task)
    return described.tasks[number].digest if described.tasks else described.digest


def digest_of_all(digests: Iterable[str]) -> str:
    """That of a file of several tasks: sha256 over the digits of theirs, 64 each."""
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def check_single(described: Manifest, name: str, source: str) -> None:
    """Raises ArgumentError for a file of several tasks."""
    if described.tasks:
        raise ArgumentError(name, source, "a file of one model; smask unpack takes one task out")


def holders(described: Manifest, number: int) -> dict[int, int]:
    """Place of each record of a task to that of the record that has its bytes, which may be one of the first task."""
    records, first = described.tensors, described.places_of_first
    own: dict[str, int] = {}
    found = {}
    for place in described.groups[number]:
        record = records[place]
        if record.same is None:
            found[place] = own[record.name] = place
        else:
            found[place] = own[record.same] if record.same in own else first[record.same]
    return found


def named_holder(record: Record, own: Mapping[str, Record], first: Mapping[str, Record]) -> Record | None:
    """The record that ``same`` names: an earlier one of the task that has bytes of its own, or one of the first."""
    found = own.get(record.same or "")
    return first.get(record.same or "", found) if found is None or found.same is not None else found


def _shown(described: Manifest) -> str:
    names = [repr(task.name) for task in described.tasks[:N_SHOWN]]
    more = len(described.tasks) - N_SHOWN
    return ", ".join(names) + (f" and {more} more" if more > 0 else "")
