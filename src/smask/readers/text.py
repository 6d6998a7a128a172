"""A text as tokens: its bytes, or its characters numbered in order of code point."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import DataError
from .reading import Reading

MAX_ALPHABET = 65_536


@dataclass(frozen=True, eq=False)
class Tokens:
    """A text in tokens.

    Attributes:
        ids: uint8 [N] for bytes, int32 [N] for characters.
        alphabet: Characters in order of token, None for bytes.
    """

    ids: np.ndarray
    alphabet: str | None


def read_text(path: Path, reading: Reading) -> Tokens:
    """Tokens of a file.

    Raises:
        DataError: Unreadable, empty, not UTF-8, or a character that the given alphabet does not have.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(str(path), f"unreadable: {error.strerror or error}") from None
    if not raw:
        raise DataError(str(path), "the file is empty")
    if reading.tokens == "bytes":
        return Tokens(np.frombuffer(raw, np.uint8), None)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        reason = f"byte {error.start} is not UTF-8; characters need that, --tokens bytes takes any file"
        raise DataError(str(path), reason) from None
    points = np.frombuffer(text.encode("utf-32-le"), "<u4")
    there, ids = np.unique(points, return_inverse=True)
    if len(there) > MAX_ALPHABET:
        raise DataError(str(path), f"{len(there):,} different characters, at most {MAX_ALPHABET:,} are numbered")
    if reading.alphabet is None:
        return Tokens(ids.astype(np.int32), "".join(map(chr, there)))
    number = {ord(character): index for index, character in enumerate(reading.alphabet)}
    for point in there:
        if int(point) not in number:
            where = int(np.argmax(points == point))
            reason = f"character {chr(point)!r} at {where}, which the {len(number)} characters of the net do not have"
            raise DataError(str(path), reason)
    numbers = np.array([number[int(point)] for point in there], np.int32)
    return Tokens(numbers[ids], reading.alphabet)
