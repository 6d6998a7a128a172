"""Rules between the fields of one record of a manifest. No torch, no numpy."""

from __future__ import annotations

from .dtypes import FLOAT_DTYPES, N_BYTES_OF_DTYPE, PARAMETER_DTYPES, widens_exactly
from .errors import FormatError, UnsupportedError
from .records import AXES, BASES, MAX_PLANES, Record, defaults_of


def check_record(record: Record, holder: Record | None, where: str) -> None:
    """Checks one record, in the order of the specification.

    Args:
        record: It.
        holder: The record that ``same`` names, if there is one that may be named.
        where: Name used in errors.

    Raises:
        FormatError, UnsupportedError: The first rule that it breaks.
    """
    dtypes = [record.dtype, record.stored, *(part.stored for part in (record.scale, record.offset) if part)]
    for dtype in dtypes:
        if dtype is not None and dtype not in N_BYTES_OF_DTYPE:
            raise UnsupportedError("dtype", dtype, tuple(N_BYTES_OF_DTYPE))
    if record.same is not None:
        _check_same(record, holder, where)
        return
    if record.of is not None:
        _check_over(record, where)
    if record.copied:
        return
    if record.planes is None:
        _check_plain(record, where)
    elif record.base == "values":
        _check_values(record, where)
    else:
        _check_coded(record, where)


def _check_over(record: Record, where: str) -> None:
    if record.of == record.name:
        raise FormatError("M-16", where, "of spells out the name of the record", "an empty string")
    if record.copied:
        _check_fields(record, ("name", "shape", "dtype", "of"), "M-16", where)
    elif not record.has_levels and record.stored != record.dtype:
        raise FormatError("M-16", where, f"a difference stored as {record.stored}", f"{record.dtype} as the tensor")


def _check_plain(record: Record, where: str) -> None:
    _check_fields(record, ("name", "shape", "dtype", "stored", "of"), "M-06", where)
    _check_stored(record, "M-06", where)


def _check_values(record: Record, where: str) -> None:
    _check_fields(record, ("name", "shape", "dtype", "stored", "planes", "base", "of"), "M-13", where)
    _check_stored(record, "M-13", where)
    if record.planes != 1:
        raise FormatError("M-13", where, f"{record.planes} planes", "one plane over the base values")


def _check_same(record: Record, target: Record | None, where: str) -> None:
    _check_fields(record, ("name", "shape", "dtype", "same"), "M-14", where)
    if target is None or target.same is not None:
        got = "no such tensor before" if target is None else f"one that is the same as {target.same!r}"
        raise FormatError("M-14", where, f"same as {record.same!r}: {got}", "an earlier tensor with bytes of its own")
    if (target.shape, target.dtype) != (record.shape, record.dtype):
        got = f"{record.dtype} {list(record.shape)}"
        raise FormatError("M-14", where, got, f"{target.dtype} {list(target.shape)} as {record.same!r}")


def _check_fields(record: Record, allowed: tuple[str, ...], clause: str, where: str) -> None:
    for name, default in defaults_of(Record).items():
        if name not in allowed and getattr(record, name) != default:
            raise FormatError(clause, where, f"{name} in such a record", f"only {', '.join(allowed)}")


def _check_stored(record: Record, clause: str, where: str) -> None:
    if record.stored is None:
        raise FormatError(clause, where, "no stored dtype", "stored, since values are in the file")
    if not widens_exactly(record.stored, record.dtype):
        want = f"a dtype that widens exactly to {record.dtype}"
        raise FormatError(clause, where, f"stored as {record.stored}", want)


def _check_coded(record: Record, where: str) -> None:
    parameters = [part for part in (record.scale, record.offset) if part is not None]
    if record.stored is not None:
        raise FormatError("M-07", where, "both planes and stored", "one of the two")
    if record.scale is None:
        raise FormatError("M-07", where, "no scale", "a scale, since the tensor is coded")
    if record.dtype not in FLOAT_DTYPES:
        raise FormatError("M-07", where, f"dtype {record.dtype}", f"one of {', '.join(FLOAT_DTYPES)}")
    if not record.shape:
        raise FormatError("M-07", where, "no dimension", "at least one dimension")
    for part in parameters:
        if part.stored not in PARAMETER_DTYPES:
            want = f"one of {', '.join(PARAMETER_DTYPES)}"
            raise FormatError("M-07", where, f"a parameter stored as {part.stored}", want)
    if record.base not in BASES:
        raise UnsupportedError("base", record.base, BASES)
    if record.base == "file" and (record.of is None or record.stream):
        got = "no tensor of the base" if record.of is None else "a stream"
        raise FormatError("M-16", where, f"base file with {got}", "of and no stream")
    if record.base == "one" and record.stream:
        raise FormatError("M-17", where, f"base one with stream {record.stream}", "no stream")
    if record.trellis and record.planes == MAX_PLANES:
        raise FormatError("M-18", where, f"a trellis of {record.planes} planes", f"at most {MAX_PLANES - 1}")
    for part in parameters:
        if part.axis not in AXES:
            raise UnsupportedError("axis", part.axis, AXES)
