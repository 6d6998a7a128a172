"""Proof that this device regenerates what was written: ``verify``."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from . import integrity, philox
from .container import Limits
from .contents import contents_of, dense_tensors
from .prefixes import Cut
from .sources import DEFAULT_LIMITS, BaseSource, Source, base_of, check_device, open_source


@dataclass(frozen=True)
class Verification:
    """Outcome of :func:`verify`.

    Attributes:
        same: Whether the regenerated tensors are the ones that were written.
        digest: sha256 of what this device regenerated.
        expected: sha256 in the file.
        device: Where the tensors were regenerated.
        generator: Where the generator ran: the device, or ``cpu`` when the device fails the known answers.
    """

    same: bool
    digest: str
    expected: str
    device: str
    generator: str


def verify(
    source: Source,
    *,
    device: torch.device | str = "cpu",
    base: BaseSource | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> Verification:
    """Regenerates all tensors on a device and compares their sha256 with the one in the file.

    Raises:
        FormatError, UnsupportedError, LimitError, IntegrityError, BaseError, DeviceError, OSError: As :func:`decode`.
    """
    target = check_device(device)
    opened = open_source(source, Cut(), limits)
    tensors = dense_tensors(contents_of(opened, base_of(opened, base, limits)), target)
    actual, expected = integrity.digest(tensors), opened.manifest.digest
    return Verification(
        actual == expected, actual, expected, str(target), str(target) if philox.self_test(target) else "cpu"
    )
