import contextlib
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT
from smask import dtypes, manifest
from smask.container import Limits
from smask.errors import FormatError, LimitError
from smask.records import Blob, Manifest, Record, Scale, Task, bit_sections, n_byte_planes

CODED = Record("w", (2, 3), planes=2, flip=True, stream=1, scale=Scale("channel", "F16"), offset=Scale("tensor", "F32"))
PLAIN = Record("b", (2,), stored="BF16")


def example(tensors=(CODED, PLAIN), n_blobs: int = 9, **fields) -> Manifest:
    return Manifest(
        tuple(tensors), (Blob("raw", 1),) * n_blobs, "0" * 64, {"kind": "external"}, **({"seed": 5} | fields)
    )


def test_round_trip() -> None:
    text = manifest.emit(example(meta={"é": "ü\n"}))
    assert manifest.parse(text, limits=Limits()) == example(meta={"é": "ü\n"})


@pytest.mark.clause("M-02")
@pytest.mark.clause("M-04")
def test_canonical_text() -> None:
    assert manifest.emit(example(tensors=[PLAIN], n_blobs=2, seed=None)) == (
        b'{"arch":{"kind":"external"},"blobs":[["raw",1],["raw",1]],"digest":"' + b"0" * 64 + b'",'
        b'"tensors":[{"name":"b","shape":[2],"stored":"BF16"}]}'
    )


@pytest.mark.clause("P-02")
@pytest.mark.clause("M-09")
def test_sections_are_plane_major() -> None:
    other = Record("v", (4,), planes=1, scale=Scale("tensor", "F32"))
    assert bit_sections((other, PLAIN, CODED)) == [
        (2, 1, "significance"), (2, 1, "flip"), (0, 0, "significance"), (2, 0, "significance"), (2, 0, "flip"), (2, 0, "refinement"),
    ]  # fmt: skip
    assert n_byte_planes((other, PLAIN, CODED)) == 4
    assert n_byte_planes(()) == 0


@pytest.mark.clause("M-06")
def test_exact_widening_is_what_torch_says() -> None:
    import torch

    from smask.integrity import DTYPE_OF_NAME

    for stored in dtypes.N_BYTES_OF_DTYPE:
        for dtype in dtypes.N_BYTES_OF_DTYPE:
            a, b = DTYPE_OF_NAME[stored], DTYPE_OF_NAME[dtype]
            same_kind = a.is_floating_point == b.is_floating_point and (a == torch.bool) == (b == torch.bool)
            expected = same_kind and torch.promote_types(a, b) == b
            assert dtypes.widens_exactly(stored, dtype) == expected, (stored, dtype)


@pytest.mark.clause("L-01")
@pytest.mark.parametrize(
    ("limits", "limit", "asked"),
    [(Limits(max_weights=7), "max_weights", 8), (Limits(max_tensors=1), "max_tensors", 2)],
)
def test_limits(limits: Limits, limit: str, asked: int) -> None:
    with pytest.raises(LimitError) as caught:
        manifest.parse(manifest.emit(example()), limits=limits)
    assert (caught.value.limit, caught.value.asked) == (limit, asked)
    manifest.parse(manifest.emit(example()), limits=Limits(max_weights=8, max_tensors=2))


@pytest.mark.clause("L-01")
def test_tasks_count_as_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task of no tensors is work for a reader all the same."""
    tasks = tuple(Task(str(number), "0" * 16) for number in range(3))
    text = manifest.emit(example([], n_blobs=0, seed=None, tasks=tasks))
    manifest.parse(text, limits=Limits(max_tensors=3))
    with pytest.raises(LimitError) as caught:
        manifest.parse(text, limits=Limits(max_tensors=2))
    assert (caught.value.limit, caught.value.asked) == ("max_tensors", 3)
    monkeypatch.syspath_prepend(ROOT / "tools")
    import refmanifest

    for most, refused in ((3, False), (2, True)):
        monkeypatch.setattr(refmanifest, "MAX_TENSORS", most)
        with pytest.raises(refmanifest.OverLimit) if refused else contextlib.nullcontext():
            refmanifest.read_manifest(text)


@pytest.mark.clause("L-01")
@pytest.mark.parametrize(
    ("shape", "extent"), [((0, 6), 6), ((5, 0, 0), 5), ((0,), 2), ((), 2), ((2**62, 2**62, 0), 2**124)]
)
def test_a_dimension_of_zero_counts_as_one(shape: tuple[int, ...], extent: int) -> None:
    scales = {"scale": Scale("tensor", "F32"), "offset": Scale("tensor", "F32")}
    text = manifest.emit(example([Record("w", shape, planes=1, **scales)]))
    with pytest.raises(LimitError) as caught:
        manifest.parse(text, limits=Limits(max_weights=extent - 1))
    assert caught.value.asked == extent


@pytest.mark.clause("M-05")
@pytest.mark.clause("M-09")
def test_many_records_are_judged_without_quadratic_work() -> None:
    records = [Record(f"t{i}", (1,), planes=16, flip=True, scale=Scale("tensor", "F16")) for i in range(40_000)]
    for tensors, clause in ((records, "M-09"), (records + records[-1:], "M-05")):
        with pytest.raises(FormatError) as caught:
            manifest.parse(manifest.emit(example(tensors)), limits=Limits())
        assert caught.value.clause == clause


@pytest.mark.clause("M-03")
@pytest.mark.parametrize("name", ["", "a\n", "\x1b[2J", "a\x00", "\x9b", "x" * 513])
def test_names_without_control_characters(name: str) -> None:
    with pytest.raises(FormatError) as caught:
        manifest.parse(
            manifest.emit(example([Record(name, (1,), stored="F32")], n_blobs=4, seed=None)), limits=Limits()
        )
    assert caught.value.clause == "M-03"


@pytest.mark.clause("M-03")
def test_error_says_where() -> None:
    text = manifest.emit(example()).replace(b'"flip":true', b'"flip":1')
    with pytest.raises(FormatError) as caught:
        manifest.parse(text, limits=Limits())
    assert caught.value.clause == "M-03"
    assert "tensors[0].flip" in caught.value.where


@pytest.mark.parametrize("module", ["manifest", "container", "inspection"])
def test_needs_no_torch(module: str) -> None:
    code = f"import sys, smask.{module}; print(sorted({{'torch', 'sklearn', 'rich'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_one_table_of_dtypes(vectors: Path) -> None:
    from smask.integrity import NAME_OF_DTYPE

    sizes = {name: dtype.itemsize for dtype, name in NAME_OF_DTYPE.items()}
    assert sizes == dtypes.N_BYTES_OF_DTYPE
