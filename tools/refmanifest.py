"""The manifest (section 6, with the limits of section 15): its JSON, its fields and what they say together."""

import json
import math
import sys
from collections.abc import Callable, Iterable
from decimal import Decimal
from types import SimpleNamespace as Record
from typing import Any

from referrors import OverLimit, Refused, Unsupported, need

MAX_MANIFEST, MAX_TENSORS, MAX_ELEMENTS = 2**24, 2**16, 2**30
MAX_NESTING = 64
WIDTH = {"BOOL": 1, "U8": 1, "I8": 1, "I16": 2, "I32": 4, "I64": 8, "F16": 2, "BF16": 2, "F32": 4, "F64": 8}
WIDER = {"U8": "I16 I32 I64", "I8": "I16 I32 I64", "I16": "I32 I64", "I32": "I64"}
WIDER |= {"F16": "F32 F64", "BF16": "F32 F64", "F32": "F64"}


# The text
def parse_manifest(text: bytes) -> dict[str, Any]:
    try:
        source = text.decode()
        tree = json.loads(source, object_pairs_hook=tuple)  # its NaN and Infinity are refused with the numbers
        need(isinstance(tree, tuple), "M-01", "not an object")
        canonical = spell(tree)
    except (ValueError, RecursionError) as error:  # of UTF-8, JSON, lone surrogates, integers of thousands of digits
        raise Refused("M-01", str(error)) from error
    need(canonical == text, "M-02", "not canonical")
    return json.loads(source)


def spell(value: Any, nesting: int = 1) -> bytes:
    """The canonical text of a JSON value whose objects are tuples of members. All members are spelled, for the sake of
    M-01, before those with a name of their own are put together."""
    need(nesting <= MAX_NESTING or not isinstance(value, tuple | list), "M-01", "nested too deeply")
    if isinstance(value, tuple):
        members = {name: spell(name) + b":" + spell(item, nesting + 1) for name, item in value}
        return b"{" + b",".join([members[name] for name in sorted(members)]) + b"}"
    if isinstance(value, list):
        return b"[" + b",".join([spell(item, nesting + 1) for item in value]) + b"]"
    if isinstance(value, int | float):
        need(abs(value) <= sys.float_info.max, "M-01", "not a number of binary64")
    if isinstance(value, float):
        return spell_binary64(value).encode()
    return json.dumps(value, ensure_ascii=False).encode()


def spell_binary64(value: float) -> str:
    """repr has the right digits, but begins exponents at another magnitude and writes them with zeros and signs."""
    digits, _, exponent = repr(value).partition("e")
    if exponent and 1e-5 <= abs(value) < 1:
        return f"{Decimal(repr(value)):f}"
    return f"{digits}e{int(exponent)}" if exponent else digits


# The fields
def is_integer(value: Any, low: int, high: float = math.inf) -> bool:
    return type(value) is int and low <= value <= high


def is_list(value: Any, item: Callable[[Any], bool], most: float = math.inf) -> bool:
    return isinstance(value, list) and len(value) <= most and all(map(item, value))


def is_string(value: Any) -> bool:
    return isinstance(value, str)


def is_name(value: Any) -> bool:
    return is_string(value) and 1 <= len(value) <= 512 and not any(c < " " or "\x7f" <= c <= "\x9f" for c in value)


def is_digest(value: Any) -> bool:
    return is_string(value) and len(value) == 64 and set(value) <= set("0123456789abcdef")


def is_short_digest(value: Any) -> bool:
    return is_string(value) and len(value) == 16 and set(value) <= set("0123456789abcdef")


def is_meta(value: Any) -> bool:
    return isinstance(value, dict) and all(map(is_string, value.values()))


def is_blob(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and is_string(value[0]) and is_integer(value[1], 0, 2**62)


def is_parameter(value: Any) -> bool:
    return is_list(value, is_string) and len(value) == 2


REQUIRED, ABSENT = object(), None
Rules = dict[str, tuple[Callable[[Any], bool], Any]]  # field: type and range, default
MANIFEST: Rules = {
    "arch": (lambda v: isinstance(v, dict), REQUIRED),
    "base_digest": (is_digest, ABSENT),
    "blobs": (lambda v: is_list(v, is_blob), REQUIRED),
    "digest": (is_digest, REQUIRED),
    "meta": (is_meta, {}),
    "seed": (lambda v: is_integer(v, 0), ABSENT),  # M-08 has the upper end
    "tasks": (lambda v: is_list(v, lambda task: isinstance(task, dict)), []),
    "tensors": (lambda v: is_list(v, lambda record: isinstance(record, dict)), REQUIRED),
}
TASK: Rules = {
    "name": (is_name, REQUIRED),
    "digest": (is_short_digest, REQUIRED),
    "meta": (is_meta, {}),
    "arch": (lambda v: isinstance(v, dict), ABSENT),
    "records": (lambda v: is_integer(v, 0, 2**62), ABSENT),
}
RECORD: Rules = {  # M-11 has the dtypes, bases and axes
    "name": (is_name, REQUIRED),
    "shape": (lambda v: is_list(v, lambda dimension: is_integer(dimension, 0, 2**62), 8), REQUIRED),
    "dtype": (is_string, "F32"),
    "stored": (is_string, ABSENT),
    "planes": (lambda v: is_integer(v, 1, 16), ABSENT),
    "base": (is_string, "signed"),
    "stream": (lambda v: is_integer(v, 0, 2**32 - 1), 0),
    "flip": (lambda v: isinstance(v, bool), False),
    "trellis": (lambda v: isinstance(v, bool), False),
    "scale": (is_parameter, ABSENT),
    "offset": (is_parameter, ABSENT),
    "same": (is_name, ABSENT),
    "of": (lambda v: v == "" or is_name(v), ABSENT),
}
PLAIN = {"name", "shape", "dtype", "stored"}


def check_fields(manifest: dict[str, Any]) -> None:
    """M-10, M-03 and M-04, each for the manifest, all tasks and all records before the next."""
    tasks, records = objects_in(manifest.get("tasks")), objects_in(manifest.get("tensors"))
    extensions = [field for field, value in manifest.items() if is_ignorable(value)]
    unknown = manifest.keys() - MANIFEST.keys() - set(extensions)
    unknown.update(
        *[record.keys() - RECORD.keys() for record in records], *[task.keys() - TASK.keys() for task in tasks]
    )
    need(not unknown, "M-10", f"unknown fields {sorted(unknown)}", Unsupported)
    objects = [(manifest, MANIFEST), *[(task, TASK) for task in tasks], *[(record, RECORD) for record in records]]
    for members, rules in objects:
        for field, (is_valid, default) in rules.items():
            valid = is_valid(members[field]) if field in members else default is not REQUIRED
            need(valid, "M-03", f"{field} is missing or of the wrong type or range")
    for members, rules in objects:
        needless = [field for field, (_, default) in rules.items() if field in members and members[field] == default]
        need(not needless, "M-04", f"defaults spelled out: {needless}")


def objects_in(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def is_ignorable(value: Any) -> bool:
    return isinstance(value, dict) and value.get("must_understand") is False


def known(values: Iterable[Any], choice: Iterable[str], what: str) -> None:
    need(set(values) <= set(choice), "M-11", f"unknown {what}", Unsupported)


# What the fields say together
def read_manifest(text: bytes) -> Record:
    """The fields, checked, and what follows from them: `sizes` and `byte_planes` for section 11; for each record its
    number of elements `size`, its `values` in those planes, a list of (stored dtype, count), and its `width`, the
    number of sections with values of its own."""
    manifest = parse_manifest(text)
    check_fields(manifest)
    m = with_defaults(manifest, MANIFEST)
    m.tensors = [with_defaults(members, RECORD) for members in m.tensors]
    check_limits(m.tensors, len(m.tasks))
    m.tasks = [with_defaults(members, TASK) for members in m.tasks]
    m.groups = check_tasks(m)
    for group in m.groups:
        need(len({r.name for r in group}) == len(group), "M-05", "name twice")
    first: dict[str, Record] = {}
    for number, group in enumerate(m.groups):
        # the earlier records of the task that have bytes of their own
        holding: dict[str, Record] = {} if number else first
        for r in group:
            check_record(r, first | holding)
            if not r.same:
                holding[r.name] = r
            r.values = r.parameters if r.planes or r.same or r.copied else [(r.stored, r.size)]
            r.width = WIDTH[r.stored] if r.planes and r.stored else 0
    coded = [r for r in m.tensors if r.planes]
    seeded = any(not r.width and r.base not in ("file", "one") for r in coded)
    need((m.seed is not None) == seeded, "M-08", "no seed, or nothing to use it")
    need((m.seed or 0) < 2**64, "M-08", "seed of more than 64 bits")
    over = any(r.of is not None for r in m.tensors)
    need((m.base_digest is not None) == over, "M-15", "no digest of a base, or nothing to use it")
    known([coding for coding, _ in m.blobs], ["raw", "zstd", "gap-zstd", "range"], "coding")
    m.sizes = [(WIDTH[dtype], count) for r in m.tensors for dtype, count in r.values]
    m.byte_planes = max((width for width, count in m.sizes if count), default=0)
    sections = m.byte_planes + sum(r.planes * (2 + r.flip) - 1 + r.width for r in coded)
    need(len(m.blobs) == sections, "M-09", f"{len(m.blobs)} blobs for {sections} sections")
    for arch in [m.arch, *[task.arch for task in m.tasks if task.arch is not None]]:
        need(arch.get("kind", "external") == "external", "M-11", "unknown architecture kind", Unsupported)
        need("kind" not in arch or len(arch) == 1, "M-12", "external architecture with other members")
    return m


def with_defaults(members: dict[str, Any], rules: Rules) -> Record:
    return Record(given=members.keys(), **{f: members.get(f, default) for f, (_, default) in rules.items()})


def check_limits(tensors: list[Record], n_tasks: int) -> None:
    need(len(tensors) + n_tasks <= MAX_TENSORS, "L-01", "too many tensors and tasks", OverLimit)
    elements = 0
    for r in tensors:
        r.size, channels = math.prod(r.shape), r.shape[0] if r.shape else 1
        pairs = [pair for pair in (r.scale, r.offset) if pair]
        r.parameters = [(dtype, channels if axis == "channel" else 1) for axis, dtype in pairs]
        extent = math.prod(dimension or 1 for dimension in r.shape)
        elements += max(extent, sum(count for _, count in r.parameters))
    need(elements <= MAX_ELEMENTS, "L-01", "too many elements", OverLimit)


def check_tasks(m: Record) -> list[list[Record]]:
    """The records of each task; of a file without tasks, all."""
    if not m.tasks:
        return [m.tensors]
    need(len(m.tasks) > 1, "T-01", "one task")
    need(len({task.name for task in m.tasks}) == len(m.tasks), "T-01", "task twice")
    need(m.tasks[0].arch is None and m.tasks[0].records is None, "T-01", "a first task that is unlike itself")
    counts = [task.records for task in m.tasks]
    left = len(m.tensors) - sum(count or 0 for count in counts)
    need(left >= 0 and left % counts.count(None) == 0, "T-01", "records that the tasks cannot share")
    groups, start = [], 0
    for count in counts:
        end = start + (left // counts.count(None) if count is None else count)
        groups.append(m.tensors[start:end])
        start = end
    kinds = [[(r.name, r.shape, r.dtype) for r in group] for group in groups]
    for task, own in zip(m.tasks, kinds, strict=True):
        need((own == kinds[0]) == (task.records is None), "T-01", "other tensors than the first task without `records`")
        need(task.arch is None or json.dumps(task.arch) != json.dumps(m.arch), "T-01", "an architecture twice")
    return groups


def check_record(r: Record, holding: dict[str, Record]) -> None:
    dtypes, r.copied = [dtype for dtype, _ in r.parameters], False
    known([r.dtype, r.dtype if r.stored is None else r.stored, *dtypes], WIDTH, "dtype")
    if r.same:
        target = r.holder = holding.get(r.same)
        need(r.given <= PLAIN - {"stored"} | {"same"}, "M-14", f"{sorted(r.given)} with `same`")
        need(target, "M-14", "the same as no earlier record with bytes of its own")
        need((target.shape, target.dtype) == (r.shape, r.dtype), "M-14", "the same in another shape or dtype")
        return
    r.copied = r.of is not None and not r.planes and not r.stored
    levels = bool(r.planes) and r.base != "values"
    need(r.of != r.name, "M-16", "`of` spells out the name")
    need(not r.copied or r.given <= {"name", "shape", "dtype", "of"}, "M-16", f"{sorted(r.given)} with `of` alone")
    need(r.of is None or r.copied or levels or r.stored == r.dtype, "M-16", "a difference in another dtype")
    if r.copied:
        return
    if not r.planes:
        check_stored(r, PLAIN | {"of"}, "M-06")
        return
    if r.base == "values":
        check_stored(r, PLAIN | {"planes", "base", "of"}, "M-13")
        need(r.planes == 1, "M-13", "several planes over stored values")
        return
    need(r.scale and not r.stored, "M-07", "coded record without scale or with `stored`")
    need(r.dtype in ("F16", "BF16", "F32", "F64") and r.shape, "M-07", "coded integers or scalar")
    need(set(dtypes) <= {"F16", "BF16", "F32"}, "M-07", "dtype of scale or offset")
    known([r.base], ["signed", "uniform", "normal", "file", "one"], "base")
    need(r.base != "file" or (r.of is not None and not r.stream), "M-16", "base `file` without `of` or with a stream")
    need(r.base != "one" or not r.stream, "M-17", "base `one` with a stream")
    need(not r.trellis or r.planes <= 15, "M-18", "trellis of 16 planes")
    known([pair[0] for pair in (r.scale, r.offset) if pair], ["tensor", "channel"], "axis")


def check_stored(r: Record, fields: set[str], clause: str) -> None:
    need(r.stored and r.given <= fields, clause, f"no `stored`, or not only {sorted(fields)}")
    need(r.stored == r.dtype or r.dtype in WIDER.get(r.stored, "").split(), clause, "stored dtype does not widen")
