"""Everything smask refuses, as small classes with fields; the exit code of the command line is part of the class."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar


def printable(text: str) -> str:
    """Text of a file or an error without control characters: a file does not get to steer the terminal."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


class SmaskError(Exception):
    """Root of all errors raised on purpose by smask."""

    exit_code: ClassVar[int] = 1

    def __post_init__(self) -> None:
        # Exception pickles through args; the fields are the args.
        self.args = tuple(getattr(self, field.name) for field in fields(self))  # type: ignore[arg-type]


@dataclass(eq=False)
class ArgumentError(SmaskError, ValueError):
    """A value given by the caller is not usable."""

    exit_code: ClassVar[int] = 2
    name: str
    got: object
    want: str

    def __str__(self) -> str:
        return f"{self.name}: got {self.got!r}, want {self.want}"


@dataclass(eq=False)
class DataError(SmaskError):
    """Training or test data that is missing, unreadable or inconsistent."""

    exit_code: ClassVar[int] = 3
    source: str
    reason: str

    def __str__(self) -> str:
        # Names of files, of members and of keys may have line ends.
        return printable(f"data {self.source}: {self.reason}")


@dataclass(eq=False)
class CheckpointError(DataError):
    """A checkpoint that cannot be read or kept exactly: the file, the tensor where it is one, and what to do."""

    tensor: str | None = None
    advice: str = ""

    def __str__(self) -> str:
        tensor = "" if self.tensor is None else f"tensor {self.tensor!r}: "
        advice = f"; {self.advice}" if self.advice else ""
        return printable(f"checkpoint {self.source}: {tensor}{self.reason}{advice}")


@dataclass(eq=False)
class TargetError(SmaskError):
    """A size below the smallest that a conversion reaches, both in bytes."""

    exit_code: ClassVar[int] = 2
    target: int
    least: int

    def __str__(self) -> str:
        return (
            f"target size {self.target:,} bytes: with all weight matrices at zero, names and small parameters alone "
            f"take {self.least:,} bytes"
        )


@dataclass(eq=False)
class DivergedError(SmaskError):
    """A search or training whose loss is no longer finite: the step, from 1, and where its last good state is."""

    exit_code: ClassVar[int] = 1
    step: int
    loss: float
    checkpoint: str | None
    advice: str = "try a lower learning rate (--lr)"

    def __str__(self) -> str:
        kept = f"the last good checkpoint is {self.checkpoint}" if self.checkpoint else "no checkpoint was kept"
        return f"the loss was {self.loss} at step {self.step:,}; {kept}; {self.advice}"


@dataclass(eq=False)
class UnreachableError(SmaskError):
    """A target that a search cannot meet, and the best that it reached: bytes, an accuracy, bits per byte of text."""

    exit_code: ClassVar[int] = 2
    what: str
    target: float
    best: float
    detail: str = ""

    def __str__(self) -> str:
        form = {"accuracy": "{:.2%}", "bits_per_byte": "{:.4f}"}.get(self.what, "{:,.0f} bytes")
        target, best = form.format(self.target), form.format(self.best)
        detail = f" ({self.detail})" if self.detail else ""
        what = self.what.replace("_", " ")
        return f"{what} {target} is out of reach, the best is {best}{detail}; --keep-best writes that"


@dataclass(eq=False)
class RankError(SmaskError):
    """Processes that share a search and no longer agree, or one of them that has ended: told by each of the others."""

    exit_code: ClassVar[int] = 6
    rank: int
    size: int
    reason: str

    def __str__(self) -> str:
        return (
            f"rank {self.rank} of {self.size}: {self.reason}; nothing was written, a search with --checkpoint goes on "
            "with --resume"
        )


@dataclass(eq=False)
class ResumeError(SmaskError):
    """A folder of checkpoints that cannot be continued by this search: what differs, (name, there, here) each."""

    exit_code: ClassVar[int] = 2
    folder: str
    differences: tuple[tuple[str, object, object], ...]

    def __str__(self) -> str:
        shown = "; ".join(f"{name} is {there!r} there and {here!r} here" for name, there, here in self.differences[:8])
        more = len(self.differences) - 8
        more_text = f"; and {more} more" if more > 0 else ""
        return (
            f"{self.folder} holds checkpoints of another search: {shown}{more_text}; "
            "use the options it was begun with, or another folder"
        )


@dataclass(eq=False)
class FormatError(SmaskError):
    """Bytes that are not a valid file: ``clause`` is the id of the violated clause of the specification."""

    exit_code: ClassVar[int] = 3
    clause: str
    where: str
    got: object
    want: object

    def __str__(self) -> str:
        # What msgspec says of an unknown field has its name as it is.
        return printable(f"not a valid smask file: {self.where}: got {self.got}, want {self.want} [{self.clause}]")


@dataclass(eq=False)
class IntegrityError(SmaskError):
    """A checksum that does not match: the bytes or the regenerated tensors differ from what was written."""

    exit_code: ClassVar[int] = 3
    where: str
    got: str
    want: str

    def __str__(self) -> str:
        return f"{self.where}: sha256 is {self.got}, want {self.want}; the file is damaged, fetch it again"


@dataclass(eq=False)
class PrefixError(SmaskError):
    """The beginning of a file, too short for even the coarsest model that the file holds."""

    exit_code: ClassVar[int] = 3
    n_bytes: int
    least: int

    def __str__(self) -> str:
        return f"the first {self.n_bytes:,} bytes of the file hold no model yet; at least {self.least:,} are needed"


@dataclass(eq=False)
class BaseError(SmaskError):
    """A file over another checkpoint, its base, that was not given, or was given another.

    Attributes:
        source: What was given, or None.
        got: sha256 over its tensors, or None.
        want: sha256 of the base.
        hint: What the author of the file says of the base, or None.
    """

    exit_code: ClassVar[int] = 6
    clause: ClassVar[str] = "I-03"
    source: str | None
    got: str | None
    want: str
    hint: str | None = None

    def __str__(self) -> str:
        hint = f" (the file says: {self.hint!r})" if self.hint else ""
        if self.got is None:
            return f"the file is over another checkpoint, give it as --base: sha256 of its tensors {self.want}{hint}"
        return f"base {self.source}: sha256 of its tensors is {self.got}, the file is over {self.want}{hint}"


@dataclass(eq=False)
class UnsupportedError(SmaskError):
    """A name or version that this release does not know."""

    exit_code: ClassVar[int] = 4
    what: str
    got: object
    known: tuple[object, ...]

    def __str__(self) -> str:
        return f"unknown {self.what} {self.got!r}; known: {', '.join(map(str, self.known)) or 'none'}"


@dataclass(eq=False)
class LimitError(SmaskError):
    """A file that asks for more than the caller allows; refused before anything is allocated."""

    exit_code: ClassVar[int] = 5
    limit: str
    asked: int
    allowed: int

    def __str__(self) -> str:
        option = " or --max-weights" if self.limit == "max_weights" else ""
        return (
            f"the file asks for {self.limit.removeprefix('max_')} = {self.asked:,}, the limit is {self.allowed:,}; "
            f"raise it with Limits({self.limit}=...){option} if you trust the file"
        )


@dataclass(eq=False)
class OutputError(SmaskError):
    """An output file that could not be written; nothing is left behind."""

    exit_code: ClassVar[int] = 5
    path: str
    reason: str

    def __str__(self) -> str:
        return f"cannot write {self.path}: {self.reason}; nothing was written"


@dataclass(eq=False)
class ArchitectureError(SmaskError):
    """A model that does not fit the file or the data; all differences at once."""

    exit_code: ClassVar[int] = 6
    differences: tuple[str, ...]

    def __str__(self) -> str:
        shown = self.differences[:12]
        more = len(self.differences) - len(shown)
        return "the architecture does not fit: " + "; ".join(shown) + (f"; and {more} more" if more else "")


@dataclass(eq=False)
class DeviceError(SmaskError):
    """A device that is absent or cannot be used."""

    exit_code: ClassVar[int] = 6
    device: str
    reason: str

    def __str__(self) -> str:
        return f"device {self.device}: {self.reason}"
