"""The manifest: canonical JSON to frozen structs and back. No torch, no numpy.

Field rules are the types of :mod:`smask.records`, checked by msgspec; rules between fields are in :func:`parse`, in
the order of the specification. The text must equal its own canonical form (sorted keys, no spaces, defaults left out),
so that one model has one manifest.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import msgspec
from msgspec import Struct

from . import container
from .container import Limits
from .errors import FormatError, UnsupportedError
from .groups import named_holder
from .records import ARCHITECTURES, CODINGS, Manifest, Record, Task, defaults_of, n_byte_planes
from .rules import check_record

MAX_NESTING = 64
# Fields of the manifest that are arrays of objects with defaults of their own.
NESTED: Mapping[str, type[Struct]] = {"tasks": Task, "tensors": Record}


@dataclass(frozen=True)
class Opened:
    """A file whose envelope, manifest, length and sha256 are checked; blobs are still coded.

    Of a file of which only the beginning is used (:mod:`smask.prefixes`), the last blobs are missing, and with them
    the length and the sha256 that could be checked.
    """

    manifest: Manifest
    blobs: tuple[memoryview, ...]
    n_bytes: int
    n_head_bytes: int


def emit(manifest: Manifest) -> bytes:
    """The canonical text of a manifest."""
    fields = _without_defaults(manifest)
    extensions = fields.pop("extensions", {})
    nested = {name: [_without_defaults(item) for item in fields[name]] for name in NESTED if name in fields}
    return canonical(fields | nested | extensions)


def _without_defaults(struct: Struct) -> dict[str, Any]:
    # msgspec's own omit_defaults compares strings by identity.
    values = {name: (getattr(struct, name), default) for name, default in defaults_of(type(struct)).items()}
    return {name: value for name, (value, default) in values.items() if value != default}


def canonical(value: object) -> bytes:
    """JSON with sorted keys and no spaces, UTF-8."""
    return msgspec.json.encode(value, order="sorted")


def parse(text: bytes, *, limits: Limits) -> Manifest:
    """Reads a manifest and checks every rule that needs no blob.

    Raises:
        FormatError: Text, types, values or relations between fields are wrong.
        UnsupportedError: A field, base, coding or architecture of a later version.
        LimitError: More tensors or weights than ``limits`` allow.
    """
    try:
        fields = msgspec.json.decode(text)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise FormatError("M-01", "manifest", str(error), "JSON") from None
    if not isinstance(fields, dict):
        raise FormatError("M-01", "manifest", type(fields).__name__, "a JSON object")
    _check_values(fields)
    if canonical(fields) != text:
        raise FormatError("M-02", "manifest", "another spelling", "canonical JSON: sorted keys, once each, no spaces")
    extensions = _take_extensions(fields, Manifest, "manifest")
    for field, struct in NESTED.items():
        for index, item in enumerate(_objects(fields.get(field))):
            # Records take no ignorable fields: whatever is said of a tensor must be understood.
            unknown = sorted(set(item) - set(struct.__struct_fields__))
            if unknown:
                raise UnsupportedError(f"manifest field {field}[{index}]", unknown[0], struct.__struct_fields__)
    for members in (fields, *(item for field in NESTED for item in _objects(fields.get(field)))):
        # msgspec would take a null for a field that is absent.
        if None in members.values():
            name = next(name for name, value in members.items() if value is None)
            raise FormatError("M-03", f"manifest {name}", "null", "the type of the field table")
    try:
        manifest = msgspec.convert(fields | {"extensions": extensions}, Manifest, strict=True)
    except msgspec.ValidationError as error:
        message, _, where = str(error).partition(" - at ")
        raise FormatError(
            "M-03", f"manifest {where.strip('`') or '$'}", message, "the type of the field table"
        ) from None
    if emit(manifest) != text:
        raise FormatError("M-04", "manifest", "a field that spells out its default", "defaults left out")
    _check(manifest, limits)
    return manifest


def open_file(data: bytes | memoryview, *, limits: Limits) -> Opened:
    """Checks everything about a file but the content of its blobs.

    Raises:
        FormatError, UnsupportedError, LimitError, IntegrityError: As the envelope and :func:`parse` say.
    """
    envelope = container.unpack(data, limits=limits)
    manifest = parse(envelope.manifest_text, limits=limits)
    blobs = container.split(envelope, [blob.n_bytes for blob in manifest.blobs])
    return Opened(manifest, tuple(blobs), len(data), len(envelope.head))


def _check_values(value: object) -> None:
    """Nesting, and integers that a reader whose numbers are binary64 does not have."""
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > MAX_NESTING:
            raise FormatError("M-01", "manifest", f"more than {MAX_NESTING} levels", f"at most {MAX_NESTING} levels")
        for item in level:
            if isinstance(item, int) and abs(item) > sys.float_info.max:
                raise FormatError("M-01", "manifest", f"an integer of {item.bit_length()} bits", "numbers of binary64")
        inside = [item.values() if isinstance(item, dict) else item for item in level if isinstance(item, dict | list)]
        level = [part for parts in inside for part in parts]


def _take_extensions(fields: dict[str, Any], struct: type[Struct], where: str) -> dict[str, Any]:
    known = set(struct.__struct_fields__) - {"extensions"}
    extensions = {}
    for name in sorted(set(fields) - known):
        value = fields[name]
        if not (isinstance(value, dict) and value.get("must_understand") is False):
            raise UnsupportedError(f"{where} field", name, tuple(sorted(known)))
        extensions[name] = fields.pop(name)
    return extensions


def _objects(value: object) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _check(manifest: Manifest, limits: Limits) -> None:
    limits.check("max_tensors", len(manifest.tensors) + len(manifest.tasks))
    limits.check("max_weights", sum(record.extent for record in manifest.tensors))
    if manifest.tasks:
        _check_tasks(manifest)
    first: dict[str, Record] = {}
    for group in manifest.groups:
        _check_distinct([manifest.tensors[index].name for index in group], "M-05", "manifest tensors")
    for number, group in enumerate(manifest.groups):
        # By number: the first task may have no records, and is the first all the same.
        earlier = {} if number else first
        for index in group:
            record = manifest.tensors[index]
            check_record(record, named_holder(record, earlier, first), f"manifest tensors[{index}] {record.name!r}")
            earlier[record.name] = record
    coded = any(record.seeded for record in manifest.tensors)
    if coded != (manifest.seed is not None):
        got, want = ("none", "a seed for the bases") if coded else (manifest.seed, "none where no base needs it")
        raise FormatError("M-08", "manifest seed", got, want)
    if coded and (manifest.seed or 0) >= 2**64:
        raise FormatError("M-08", "manifest seed", manifest.seed, "below 2**64")
    over = any(record.of is not None for record in manifest.tensors)
    if over != (manifest.base_digest is not None):
        got, want = ("none", "one, since tensors are over a base") if over else (manifest.base_digest, "none")
        raise FormatError("M-15", "manifest base_digest", got, want)
    for blob in manifest.blobs:
        if blob.coding not in CODINGS:
            raise UnsupportedError("coding", blob.coding, CODINGS)
    # Counted before they are listed: a small manifest can name millions of sections.
    coded_records = [record for record in manifest.tensors if record.planes]
    n_bit_sections = sum(
        (record.planes or 0) * (2 + record.flip) - 1 + record.n_value_sections for record in coded_records
    )
    want_blobs = n_byte_planes(manifest.tensors) + n_bit_sections
    if len(manifest.blobs) != want_blobs:
        raise FormatError("M-09", "manifest blobs", f"{len(manifest.blobs)} blobs", f"{want_blobs} blobs")
    for arch in (manifest.arch, *(task.arch for task in manifest.tasks if task.arch is not None)):
        if "kind" in arch:
            if arch["kind"] != "external":
                raise UnsupportedError("architecture kind", arch["kind"], ARCHITECTURES)
            if len(arch) > 1:
                raise FormatError("M-12", "manifest arch", "external with other members", "external alone")


def _check_tasks(manifest: Manifest) -> None:
    """Tasks that say what they have of their own, and only that."""
    if len(manifest.tasks) == 1:
        raise FormatError("T-01", "manifest tasks", "one task", "none or several")
    _check_distinct([task.name for task in manifest.tasks], "T-01", "manifest tasks")
    first = manifest.tasks[0]
    if first.arch is not None or first.records is not None:
        raise FormatError("T-01", "manifest tasks[0]", "arch or records of its own", "neither in the first task")
    own = [task.records for task in manifest.tasks if task.records is not None]
    n_alike = len(manifest.tasks) - len(own)
    if sum(own) > len(manifest.tensors) or (len(manifest.tensors) - sum(own)) % n_alike:
        got = f"{len(manifest.tensors)} records for {n_alike} tasks" + f" and {sum(own)} of others" * bool(own)
        raise FormatError("T-01", "manifest tensors", got, "as many for each task that does not say how many")
    want = _kinds(manifest, 0)
    for number, task in enumerate(manifest.tasks[1:], 1):
        where = f"manifest tasks[{number}] {task.name!r}"
        # As texts: to Python, 1 and 1.0 and true are equal.
        if task.arch is not None and canonical(task.arch) == canonical(manifest.arch):
            raise FormatError("T-01", where, "the architecture of the file", "none where it is that")
        kinds = _kinds(manifest, number)
        if task.records is not None and kinds == want:
            raise FormatError("T-01", where, "the number of its records", "none where they are like those of the first")
        if task.records is None and kinds != want:
            pairs = zip(manifest.groups[number], kinds, want, strict=True)
            index, kind, wanted = next(pair for pair in pairs if pair[1] != pair[2])
            where = f"manifest tensors[{index}]"
            raise FormatError("T-01", where, _shown(kind), f"{_shown(wanted)} as in the first task")


def _kinds(manifest: Manifest, number: int) -> list[tuple[str, tuple[int, ...], str]]:
    """What tensors a task has: name, shape and dtype of each."""
    records = (manifest.tensors[place] for place in manifest.groups[number])
    return [(record.name, record.shape, record.dtype) for record in records]


def _shown(kind: tuple[str, tuple[int, ...], str]) -> str:
    name, shape, dtype = kind
    return f"{name!r}, {dtype} {list(shape)}"


def _check_distinct(names: Sequence[str], clause: str, where: str) -> None:
    name, count = max(Counter(names).items(), key=itemgetter(1), default=("", 0))
    if count > 1:
        raise FormatError(clause, where, f"{name!r} {count} times", "distinct names")
