"""Progress on stderr: bars with rate and time left, or a line now and then where stderr is no terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from ..errors import printable
from .screen import console, n, say

if TYPE_CHECKING:
    from ..runs.board import Board
    from ..runs.log import Log
    from ..search.progress import Progress

# Seconds between two lines where stderr is no terminal.
N_QUIET_SECONDS = 15.0


@contextmanager
def search_bar(*, quiet: bool, label: str = "search") -> Iterator[Callable[[Progress], None] | None]:
    """Progress of a search or training: a bar with rate and time left, or a line now and then without a terminal.

    One that begins anew, in a next round, is shown anew.
    """
    terminal = console(stderr=True)
    if quiet:
        yield None
    elif terminal.is_terminal:
        columns = (
            TextColumn(label), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]} steps/s"),
            TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[state]}"),
        )  # fmt: skip
        with Bar(*columns, console=terminal, transient=True) as bar:
            task = bar.add_task(label, total=None, rate="-", state="")

            def move(at: Progress) -> None:
                if at.step < bar.tasks[0].completed:
                    bar.reset(task)
                rate = f"{bar.tasks[0].speed or 0:.0f}"
                bar.update(task, completed=at.step, total=at.n_steps, state=_state(at), rate=rate)

            yield move
    else:
        started = last = time.monotonic()
        step = 0

        def line(at: Progress) -> None:
            nonlocal last, started, step
            now = time.monotonic()
            if at.step < step:
                started = last
            step = at.step
            if now - last >= N_QUIET_SECONDS or at.step == at.n_steps:
                last = now
                rate = max(1, at.step - at.first_step) / (now - started)
                left = (at.n_steps - at.step) / rate
                say(f"{label} {at.step}/{at.n_steps} steps, {rate:.0f} steps/s, {left:.0f} s left, {_state(at)}")

        yield line


@contextmanager
def stages(total: int) -> Iterator[Callable[[str, int], None]]:
    """Progress of work in stages, told what is being done and how many stages are finished."""
    terminal = console(stderr=True)
    if terminal.is_terminal:
        columns = (
            BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
            TextColumn("{task.description}", markup=False),
        )  # fmt: skip
        with Bar(*columns, console=terminal, transient=True) as bar:
            task = bar.add_task("", total=total)
            yield lambda text, done: bar.update(task, description=printable(text), completed=done)
    else:
        started = last = time.monotonic()

        def line(text: str, done: int) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last >= N_QUIET_SECONDS:
                last = now
                left = f", {(now - started) * (total - done) / done:.0f} s left" if done else ""
                say(f"{done}/{total}{left}, {text}")

        yield line


@contextmanager
def compiling() -> Iterator[None]:
    """Says when a function is compiled, which takes seconds at its first call, and what it took in all."""
    from .. import compiler

    spent: list[float] = []

    def listen(name: str, seconds: float | None) -> None:
        if seconds is not None:
            spent.append(seconds)
        elif not spent:
            say("compiling kernels for the first call (kept on disk for the next process) ...")

    with compiler.listening(listen):
        yield
    if spent:
        say(f"compiled {len(spent)} functions in {sum(spent):.1f} s")


@contextmanager
def conversion_bar(
    *, quiet: bool
) -> Iterator[tuple[Callable[[int, int], None] | None, Callable[[int, int, float], None] | None]]:
    """Progress of a conversion, over bytes of each pass, and of a training in it, over steps.

    Where stderr is no terminal only the training, which may take minutes, says something now and then.
    """
    terminal = console(stderr=True)
    if quiet:
        yield None, None
    elif terminal.is_terminal:
        columns = (
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[amount]}"), TimeElapsedColumn(),
            TextColumn("left"), TimeRemainingColumn(),
        )  # fmt: skip
        with Bar(*columns, console=terminal, transient=True) as bar:
            task = bar.add_task("convert", total=None, amount="")

            def show_bytes(done: int, total: int) -> None:
                rate = (bar.tasks[0].speed or 0) / 1e6
                bar.update(task, completed=done, total=total, description="convert", amount=f"{rate:.0f} MB/s")

            def show_steps(step: int, n_steps: int, loss: float) -> None:
                if step == 1:
                    bar.reset(task)
                rate = bar.tasks[0].speed or 0
                amount = f"{step}/{n_steps} steps, {rate:.1f} steps/s, loss {loss:.4f}"
                bar.update(task, completed=step, total=n_steps, description="refine", amount=amount)

            yield show_bytes, show_steps
    else:
        started = last = time.monotonic()

        def line(step: int, n_steps: int, loss: float) -> None:
            nonlocal started, last
            now = time.monotonic()
            if step == 1:
                started = now
            elif now - last >= N_QUIET_SECONDS or step == n_steps:
                last, rate = now, (step - 1) / max(1e-9, now - started)
                left = (n_steps - step) / rate
                say(f"refine {step}/{n_steps} steps, {rate:.1f} steps/s, {left:.0f} s left, loss {loss:.4f}")

        yield None, line


def listener(
    bar: Callable[[Progress], None] | None, log: Log | None, board: Board | None
) -> Callable[[Progress], None] | None:
    """One listener that tells all that are there."""
    there = [] if bar is None else [bar]
    there += [] if log is None else [log.progress]
    there += [] if board is None else [board.progress]

    def tell(at: Progress) -> None:
        for one in there:
            one(at)

    return tell if there else None


def judged(value: float) -> str:
    """A value of :meth:`smask.search.tasks.Task.judged`: an accuracy, or bits per byte below zero."""
    return f"{value:.2%}" if value >= 0 else f"{-value:.4f} bits per byte"


def _state(at: Progress) -> str:
    right = "" if at.accuracy is None else f" accuracy {at.accuracy:.2%}"
    part = "" if at.validation is None else f" (validation {judged(at.validation)})"
    size = f"density {at.density:.4f} about {n(at.n_bytes)} bytes"
    if at.clamped:
        size += f", one weight left in {n(len(at.clamped))} layers"
    return f"epoch {at.epoch}/{at.n_epochs} loss {at.loss:.4f}{right}{part} {size}"
