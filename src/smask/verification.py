"""Proof that this device regenerates what was written: ``verify``."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from . import groups, integrity, philox
from .container import Limits
from .contents import contents_of, dense_tensors
from .parts import parts_of
from .prefixes import Cut
from .sources import DEFAULT_LIMITS, BaseSource, Source, base_of, check_device, open_source


@dataclass(frozen=True)
class Verification:
    """Outcome of :func:`verify`.

    Attributes:
        same: Whether the regenerated tensors are the ones that were written.
        digest: sha256 of what this device regenerated.
        expected: sha256 in the file; of one task of several its first 16 digits.
        device: Where the tensors were regenerated.
        generator: Where the generator ran: the device, or ``cpu`` when the device fails the known answers.
        differing: Tasks whose tensors are not those that were written.
    """

    same: bool
    digest: str
    expected: str
    device: str
    generator: str
    differing: tuple[str, ...] = ()


def verify(
    source: Source,
    *,
    device: torch.device | str = "cpu",
    base: BaseSource | None = None,
    task: str | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> Verification:
    """Regenerates all tensors on a device and compares their sha256 with the one in the file.

    Args:
        source: Path or bytes of a file.
        device: Where to regenerate.
        base: As for :func:`smask.decode`.
        task: Which of several, all of them by default; for one the file has 64 bits of its sha256.
        limits: What the file may ask for.

    Raises:
        ArgumentError: No task of the file.
        FormatError, UnsupportedError, LimitError, IntegrityError, BaseError, DeviceError, OSError: As :func:`decode`.
    """
    target = check_device(device)
    opened = open_source(source, Cut(), limits)
    found = base_of(opened, base, limits)
    described, parts = opened.manifest, parts_of(opened)
    every = task is None and bool(described.tasks)
    numbers = range(len(described.tasks)) if every else [groups.number_of(described, task)]
    digests = [
        integrity.digest(dense_tensors(contents_of(opened, found, number, parts=parts), target)) for number in numbers
    ]
    named = [described.tasks[number] for number in numbers] if described.tasks else []
    differing = [one.name for one, full in zip(named, digests, strict=False) if not full.startswith(one.digest)]
    actual = groups.digest_of_all(digests) if every else digests[0]
    expected = described.digest if every else groups.digest_of(described, task)
    same = actual.startswith(expected) and not differing
    generator = str(target) if philox.self_test(target) else "cpu"
    return Verification(same, actual, expected, str(target), generator, tuple(differing))
