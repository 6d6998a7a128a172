"""How data is to be read where it does not say so itself."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import ArgumentError, DataError

TOKENS = ("bytes", "characters")
# Members of a file's meta: what has to be the same for data that a net is used on.
PREFIX = "data."
CLASSES, TOKENS_KEY, ALPHABET = "data.classes", "data.tokens", "data.alphabet"
RATE, SECONDS, PIXELS = "data.sample_rate", "data.seconds", "data.pixels"
TEST_PART, SPLIT_SEED = "data.test_part", "data.split_seed"


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Choices of a reader; what a kind of data has no use for is not looked at.

    Attributes:
        label: Column of a table that holds the labels; None for ``label``, else the last one.
        test_part: Of the data, held out for testing, above 0 and at most 1, where it has no such part of its own;
            1 takes all of it for both.
        split_seed: Of that choice.
        image_size: Height and width to which images are cut and scaled, in pixels; None where all have one size.
        channels: 1 for grey images, 3 for colours; None for what they are.
        seconds: Length to which sounds are cut or padded with silence.
        sample_rate: That sounds must have, in Hz; None for that of the first.
        classes: Names of the classes in order of label, None for those that are there.
        tokens: ``bytes`` or ``characters`` of a text.
        alphabet: Characters in order of token, None for those that are there.
        pixels: Whether the columns of a table are pixels, bytes; None for what they look like.
    """

    label: str | None = None
    test_part: float = 0.1
    split_seed: int = 0
    image_size: tuple[int, int] | None = None
    channels: int | None = None
    seconds: float = 1.0
    sample_rate: int | None = None
    classes: tuple[str, ...] | None = None
    tokens: str = "bytes"
    alphabet: str | None = None
    pixels: bool | None = None

    def __post_init__(self) -> None:
        if not 0 < self.test_part <= 1:
            raise ArgumentError("test_part", self.test_part, "a part above 0 and at most 1")
        if self.split_seed < 0:
            raise ArgumentError("split_seed", self.split_seed, "0 or more")
        if not (0 < self.seconds <= 600 and math.isfinite(self.seconds)):
            raise ArgumentError("seconds", self.seconds, "a length above 0 and at most 600")
        if self.image_size is not None and not all(0 < side <= 4096 for side in self.image_size):
            raise ArgumentError("image_size", self.image_size, "1 to 4096 pixels")
        if self.tokens not in TOKENS:
            raise ArgumentError("tokens", self.tokens, " or ".join(TOKENS))


def split_facts(reading: Reading) -> dict[str, str]:
    """What a file has to say for the same part of the data to be held out again, where that is not the usual one."""
    usual = Reading()
    said = ((TEST_PART, reading.test_part, usual.test_part), (SPLIT_SEED, reading.split_seed, usual.split_seed))
    return {key: json.dumps(value) for key, value, default in said if value != default}


def remembered(meta: Mapping[str, str], input_shape: tuple[int, ...] | None) -> dict[str, Any]:
    """Fields of a :class:`Reading` that a file's meta and the shape of its net's input decide.

    Raises:
        DataError: A member of the meta that is not what this release writes there.
    """
    fields: dict[str, Any] = {}
    if input_shape is not None and len(input_shape) == 3:
        fields |= {"channels": input_shape[0], "image_size": input_shape[1:]}
    if CLASSES in meta:
        names = _value(meta, CLASSES)
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise _wrong(meta, CLASSES, "a JSON array of names")
        fields |= {"classes": tuple(names), "pixels": meta.get(PIXELS) == "true"}
    if TOKENS_KEY in meta:
        if meta[TOKENS_KEY] not in TOKENS:
            raise _wrong(meta, TOKENS_KEY, " or ".join(TOKENS))
        fields |= {"tokens": meta[TOKENS_KEY], "alphabet": meta.get(ALPHABET)}
    for key, kind, least in ((RATE, int, 1), (SECONDS, float, 0), (TEST_PART, float, 0), (SPLIT_SEED, int, 0)):
        if key in meta:
            value = _value(meta, key)
            if not isinstance(value, int | float) or not least <= value < 2**63:
                raise _wrong(meta, key, f"a number from {least}")
            fields[key.removeprefix(PREFIX)] = kind(value)
    return fields


def _wrong(meta: Mapping[str, str], key: str, want: str) -> DataError:
    return DataError(f"of the file: meta {key}", f"got {meta[key][:40]!r}, want {want}")


def _value(meta: Mapping[str, str], key: str) -> Any:
    try:
        return json.loads(meta[key])
    except (ValueError, RecursionError):
        return None
