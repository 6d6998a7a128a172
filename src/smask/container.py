"""The envelope of a ``.smask`` file: bytes to manifest text and body, and back. No torch, no numpy.

====== ============ ==========================================================
offset size         field
====== ============ ==========================================================
0      6            magic ``89 53 4D 41 53 4B``
6      1            version, 1
7      4            n, size of the manifest frame, little-endian
11     n            manifest: one zstd frame holding canonical JSON, with the
                    raw-content dictionary of the specification
11+n   ...          body: blobs back to back, sizes listed in the manifest
end-32 32           sha256 of every byte before it
====== ============ ==========================================================
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import io
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import BinaryIO

from . import frames
from .errors import ArgumentError, FormatError, IntegrityError, LimitError, OutputError, UnsupportedError

MAGIC = b"\x89SMASK"
VERSION = 1
N_HEAD = 11
N_DIGEST = 32
MANIFEST_LEVEL = 19
DICTIONARY_SHA256 = "039ca2d1f49478f9853977c9fe3cd06f09573ba9c0c529234f43b68f4311fbb9"


@dataclass(frozen=True)
class Limits:
    """What a file may ask for. Checked with Python integers before anything is allocated for what they count.

    Attributes:
        max_weights: Elements of all tensors together; of each, a dimension of 0 counts as 1, and scales and offsets
            count instead where they are more.
        max_tensors: Tensors and tasks in a file.
        max_manifest_bytes: Size of the manifest text.
    """

    max_weights: int = 2**30
    max_tensors: int = 2**16
    max_manifest_bytes: int = 2**24

    def check(self, limit: str, asked: int) -> None:
        """Raises LimitError when ``asked`` is over the named limit."""
        allowed = getattr(self, limit)
        if asked > allowed:
            raise LimitError(limit, asked, allowed)


@dataclass(frozen=True)
class Envelope:
    """A file taken apart but for its blobs: the body and the trailing digest are not looked at yet."""

    manifest_text: bytes
    head: memoryview
    rest: memoryview


@functools.lru_cache(maxsize=1)
def manifest_dictionary() -> bytes:
    """Typical manifest text that both sides know; for a 784-300-100-10 perceptron 147 bytes of overhead, not 399.

    Raises:
        IntegrityError: The installed dictionary is not the one of the specification.
    """
    content = files("smask").joinpath("data/manifest.dict").read_bytes()
    actual = hashlib.sha256(content).hexdigest()
    if actual != DICTIONARY_SHA256:
        raise IntegrityError("installed manifest dictionary", actual, DICTIONARY_SHA256)
    return content


def pack(manifest_text: bytes, blobs: Iterable[bytes]) -> bytes:
    """Assembles a whole file; the same arguments give the same bytes."""
    out = io.BytesIO()
    write(out, manifest_text, blobs)
    return out.getvalue()


def write(out: BinaryIO, manifest_text: bytes, blobs: Iterable[bytes]) -> None:
    """Writes a whole file, one blob at a time."""
    frame = frames.compress(manifest_text, level=MANIFEST_LEVEL, dictionary=manifest_dictionary())
    sha256 = hashlib.sha256()
    for part in itertools.chain((MAGIC, bytes([VERSION]), len(frame).to_bytes(4, "little"), frame), blobs):
        sha256.update(part)
        out.write(part)
    out.write(sha256.digest())


def unpack(data: bytes | memoryview, *, limits: Limits) -> Envelope:
    """Takes the head and the manifest frame off a file.

    Raises:
        FormatError: Not a smask file, or cut within the head or the manifest.
        UnsupportedError: Another version.
        LimitError: A manifest over ``limits.max_manifest_bytes``.
    """
    view = memoryview(data)
    if bytes(view[: len(MAGIC)]) != MAGIC:
        raise FormatError("C-01", "magic", bytes(view[: len(MAGIC)]).hex() or "an empty file", MAGIC.hex())
    if len(view) < N_HEAD:
        raise FormatError("C-02", "head", f"{len(view)} bytes", f"at least {N_HEAD} bytes")
    if view[6] != VERSION:
        raise UnsupportedError("file version", view[6], (VERSION,))
    n_manifest = int.from_bytes(view[7:N_HEAD], "little")
    end = N_HEAD + n_manifest
    if end > len(view):
        raise FormatError("C-03", "manifest", f"{len(view) - N_HEAD} bytes", f"{n_manifest} bytes")
    text = frames.expand(
        view[N_HEAD:end],
        where="manifest",
        check=lambda n_bytes: limits.check("max_manifest_bytes", n_bytes),
        dictionary=manifest_dictionary(),
    )
    return Envelope(text, view[:end], view[end:])


def split(envelope: Envelope, n_bytes: Sequence[int]) -> list[memoryview]:
    """Cuts the body into blobs of the listed sizes, then checks the exact end and the sha256 of the file.

    Raises:
        FormatError: The file is shorter or longer than the manifest says.
        IntegrityError: The sha256 does not match.
    """
    n_head, n_rest = len(envelope.head), len(envelope.rest)
    n_body = sum(n_bytes)
    if n_rest != n_body + N_DIGEST:
        problem = "truncated" if n_rest < n_body + N_DIGEST else "extended"
        raise FormatError(
            "C-04", f"length of the file ({problem})", f"{n_head + n_rest} bytes", f"{n_head + n_body + N_DIGEST} bytes"
        )
    actual = hashlib.sha256(envelope.head)
    actual.update(envelope.rest[:n_body])
    want = bytes(envelope.rest[n_body:])
    if actual.digest() != want:
        raise IntegrityError("file", actual.hexdigest(), want.hex())
    return split_prefix(envelope, n_bytes)


def split_prefix(envelope: Envelope, n_bytes: Sequence[int]) -> list[memoryview]:
    """The blobs of the listed sizes that lie within the file as far as it goes; checks nothing."""
    blobs, start = [], 0
    for size in n_bytes:
        if start + size > len(envelope.rest):
            break
        blobs.append(envelope.rest[start : start + size])
        start += size
    return blobs


def check_output(path: str | Path, *, overwrite: bool) -> None:
    """Refuses an output path early, before hours of work.

    Raises:
        ArgumentError: The path exists and ``overwrite`` is false, is a folder, or its folder does not exist.
    """
    path = Path(path)
    if path.is_dir():
        raise ArgumentError("output", str(path), "a file, not a folder")
    if path.exists() and not overwrite:
        raise ArgumentError("output", str(path), "a path that does not exist yet (--force overwrites)")
    if not path.absolute().parent.is_dir():
        raise ArgumentError("output", str(path), "a path in an existing folder")


@contextlib.contextmanager
def atomic_output(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Gives a path to write beside the target and renames it at the end: the target is never half-written.

    Raises:
        ArgumentError: As :func:`check_output`.
        OutputError: The system refused, for example because the disk is full.
    """
    path = Path(path)
    check_output(path, overwrite=overwrite)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield beside
        with beside.open("r+b") as file:  # Windows syncs only what it may write
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        raise OutputError(str(path), errno_text(error)) from error
    finally:
        # Also on KeyboardInterrupt; after the rename there is nothing left to remove.
        beside.unlink(missing_ok=True)


def write_atomic(path: str | Path, data: bytes, *, overwrite: bool = False) -> None:
    """Writes a file whole or not at all.

    Raises:
        ArgumentError, OutputError: As :func:`atomic_output`.
    """
    with atomic_output(path, overwrite=overwrite) as beside:
        beside.write_bytes(data)


def errno_text(error: OSError) -> str:
    """What the system said, with the name of the code: ``no space left on device (ENOSPC)``."""
    return f"{(error.strerror or str(error)).lower()} ({errno.errorcode.get(error.errno or 0, 'unknown')})"
