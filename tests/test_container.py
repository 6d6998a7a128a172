import errno
import os
from pathlib import Path

import pytest

from conftest import ROOT
from smask import container
from smask.container import Limits
from smask.errors import ArgumentError, FormatError, IntegrityError, LimitError, OutputError, UnsupportedError

FILE = container.pack(b'{"x":1}', [b"abc", b"", b"de"])


@pytest.mark.clause("C-05")
def test_round_trip() -> None:
    envelope = container.unpack(FILE, limits=Limits())
    assert envelope.manifest_text == b'{"x":1}'
    assert [bytes(blob) for blob in container.split(envelope, [3, 0, 2])] == [b"abc", b"", b"de"]


@pytest.mark.clause("C-01")
@pytest.mark.clause("C-02")
@pytest.mark.clause("C-03")
@pytest.mark.parametrize(
    ("data", "clause"),
    [(b"", "C-01"), (b"\x89SMAS", "C-01"), (b"GIF89a" + FILE[6:], "C-01"), (FILE[:10], "C-02"), (FILE[:11], "C-03"), (FILE[:20], "C-03")],
)  # fmt: skip
def test_heads(data: bytes, clause: str) -> None:
    with pytest.raises(FormatError) as caught:
        container.unpack(data, limits=Limits())
    assert caught.value.clause == clause


@pytest.mark.clause("C-06")
def test_other_version() -> None:
    with pytest.raises(UnsupportedError) as caught:
        container.unpack(FILE[:6] + b"\x07" + FILE[7:], limits=Limits())
    assert (caught.value.got, caught.value.known) == (7, (1,))


@pytest.mark.clause("C-04")
@pytest.mark.parametrize(("sizes", "problem"), [([3, 3], "truncated"), ([3, 1], "extended"), ([2**62], "truncated")])
def test_exact_end(sizes: list[int], problem: str) -> None:
    with pytest.raises(FormatError) as caught:
        container.split(container.unpack(FILE, limits=Limits()), sizes)
    assert caught.value.clause == "C-04"
    assert problem in caught.value.where


@pytest.mark.clause("C-05")
def test_damage() -> None:
    data = FILE[:-33] + b"x" + FILE[-32:]
    with pytest.raises(IntegrityError) as caught:
        container.split(container.unpack(data, limits=Limits()), [3, 0, 2])
    assert caught.value.want == FILE[-32:].hex()


@pytest.mark.clause("Z-02")
def test_dictionary_is_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    content = container.manifest_dictionary()
    assert len(content) == 2624
    assert (ROOT / "spec/manifest.dict").read_bytes() == content
    monkeypatch.setattr(container, "DICTIONARY_SHA256", "f" * 64)
    container.manifest_dictionary.cache_clear()
    with pytest.raises(IntegrityError) as caught:
        container.manifest_dictionary()
    assert caught.value.want == "f" * 64
    container.manifest_dictionary.cache_clear()


@pytest.mark.clause("L-01")
def test_manifest_over_the_limit() -> None:
    data = container.pack(b" " * 1000, [])
    with pytest.raises(LimitError) as caught:
        container.unpack(data, limits=Limits(max_manifest_bytes=999))
    assert (caught.value.limit, caught.value.asked, caught.value.allowed) == ("max_manifest_bytes", 1000, 999)
    assert container.unpack(data, limits=Limits(max_manifest_bytes=1000)).manifest_text == b" " * 1000


def test_write_refuses_what_exists(tmp_path: Path) -> None:
    path = tmp_path / "a.smask"
    container.write_atomic(path, b"one")
    for bad in (path, tmp_path, tmp_path / "missing/a.smask"):
        with pytest.raises(ArgumentError) as caught:
            container.write_atomic(bad, b"two")
        assert (caught.value.name, caught.value.got) == ("output", str(bad))
    assert path.read_bytes() == b"one"
    container.write_atomic(path, b"two", overwrite=True)
    assert path.read_bytes() == b"two"
    assert os.listdir(tmp_path) == ["a.smask"]


@pytest.mark.clause("C-07")
@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_failed_write_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    path = tmp_path / "a.smask"
    container.write_atomic(path, b"one")

    def fail(descriptor: int) -> None:
        raise failure

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OutputError if isinstance(failure, OSError) else KeyboardInterrupt) as caught:
        container.write_atomic(path, b"two" * 1000, overwrite=True)
    if isinstance(failure, OSError):
        assert "ENOSPC" in caught.value.reason
    assert path.read_bytes() == b"one"
    assert os.listdir(tmp_path) == ["a.smask"]


@pytest.mark.clause("C-07")
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_full_disk_is_an_error_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "with_name", lambda self, name: Path("/dev/full"))
    monkeypatch.setattr(Path, "unlink", lambda self, missing_ok=False: None)
    with pytest.raises(OutputError) as caught:
        container.write_atomic(tmp_path / "a.smask", b"x")
    assert "ENOSPC" in caught.value.reason
