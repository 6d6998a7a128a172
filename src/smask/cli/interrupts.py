"""Interrupts that are not lost: Python drops a KeyboardInterrupt that is raised inside a destructor or a callback."""

from __future__ import annotations

import signal
from types import FrameType

_taken = False


def listen() -> None:
    """Takes note of SIGINT from now on; every later :func:`check` then raises, if the exception got lost."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _take)


def check() -> None:
    """Raises KeyboardInterrupt if there was an interrupt."""
    if _taken:
        raise KeyboardInterrupt


def _take(_number: int, _frame: FrameType | None) -> None:
    global _taken
    _taken = True
    raise KeyboardInterrupt
