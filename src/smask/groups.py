"""Tasks of a file: groups of records, one after the other, over one architecture and one seed or base. No torch.

A file of one model is one group without a name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

from .errors import ArgumentError
from .records import Manifest, Record, Task


def groups(described: Manifest) -> list[range]:
    """Places of the records of each task."""
    n_groups = len(described.tasks) or 1
    n_each = len(described.tensors) // n_groups
    return [range(n * n_each, (n + 1) * n_each) for n in range(n_groups)]


def group_of(described: Manifest, task: str | None) -> range:
    """Places of the records of a task, of all records where the file has one model.

    Raises:
        ArgumentError: No task of the file, none named where there are several, or one named where there are none.
    """
    named = _named(described, task)
    return groups(described)[described.tasks.index(named) if named else 0]


def meta_of(described: Manifest, task: str | None) -> dict[str, str]:
    """Free text of the file and of a task; raises ArgumentError as :func:`group_of`."""
    named = _named(described, task)
    return {**described.meta, **(named.meta if named else {})}


def digest_of(described: Manifest, task: str | None) -> str:
    """What the sha256 over the tensors of a task begins with, or is; raises ArgumentError as :func:`group_of`."""
    named = _named(described, task)
    return named.digest if named else described.digest


def digest_of_all(digests: Iterable[str]) -> str:
    """That of a file of several tasks: sha256 over the digits of theirs, 64 each."""
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def check_single(described: Manifest, name: str, source: str) -> None:
    """Raises ArgumentError for a file of several tasks."""
    if described.tasks:
        raise ArgumentError(name, source, "a file of one model; smask unpack takes one task out")


def holders(described: Manifest, group: range) -> dict[int, int]:
    """Place of each record of a task to that of the record that has its bytes, which may be one of the first task."""
    records = described.tensors
    first = {records[place].name: place for place in groups(described)[0]}
    own: dict[str, int] = {}
    found = {}
    for place in group:
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


def _named(described: Manifest, task: str | None) -> Task | None:
    known = ", ".join(repr(one.name) for one in described.tasks)
    if not described.tasks:
        if task is not None:
            raise ArgumentError("task", task, "none: the file holds one model")
        return None
    found = next((one for one in described.tasks if one.name == task), None)
    if found is None:
        raise ArgumentError("task", task, f"one of the tasks of the file: {known}")
    return found
