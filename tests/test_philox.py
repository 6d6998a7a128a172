import shutil
from pathlib import Path

import pytest
import torch

from smask import philox
from smask.errors import DeviceError

IMPLEMENTATIONS = (philox.words_reference, philox.words_fast, philox.words)


def words_of(row: list[str]) -> list[int]:
    return [int(word, 16) for word in row]


def rows(vectors: Path, kind: str) -> list[list[str]]:
    lines = [line.split() for line in (vectors / "philox.txt").read_text().splitlines()]
    found = [line[1:] for line in lines if line[0] == kind]
    assert found
    return found


@pytest.mark.clause("G-02")
def test_known_answers_of_the_authors(vectors: Path) -> None:
    kats = rows(vectors, "kat")
    assert len(kats) == 3
    for row in kats:
        values = words_of(row)
        assert list(philox.block_reference(tuple(values[:4]), tuple(values[4:6]))) == values[6:]
        lanes = tuple(torch.tensor([value]) for value in values[:4])
        assert [int(lane) for lane in philox.blocks(lanes, tuple(values[4:6]))] == values[6:]


@pytest.mark.clause("G-01")
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_words_of_streams(implementation, vectors: Path) -> None:
    for seed, stream, start, *expected in rows(vectors, "words"):
        got = implementation(int(seed), int(stream), start=int(start), n_words=len(expected))
        assert got.dtype == torch.int32
        assert [f"{word & philox.MASK:08x}" for word in got.tolist()] == expected


@pytest.mark.clause("G-01")
def test_random_access_crosses_chunks() -> None:
    n_chunk_words = 4 << 16
    whole = philox.words_fast(3, 1, start=0, n_words=n_chunk_words + 99)
    for start, n_words in ((0, 1), (5, 0), (7, 6), (n_chunk_words - 3, 50), (n_chunk_words + 1, 98)):
        assert torch.equal(philox.words(3, 1, start=start, n_words=n_words), whole[start : start + n_words])


def test_threads_do_not_matter() -> None:
    n_threads = torch.get_num_threads()
    many = philox.words(9, 0, start=1, n_words=600_000)
    try:
        torch.set_num_threads(1)
        assert torch.equal(philox.words(9, 0, start=1, n_words=600_000), many)
    finally:
        torch.set_num_threads(n_threads)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")
def test_compiled_is_the_same() -> None:
    def run(index: torch.Tensor) -> torch.Tensor:
        lanes = (index & philox.MASK, index >> 32, torch.full_like(index, 77), torch.zeros_like(index))
        return torch.stack(philox.blocks(lanes, (0xDEADBEEF, 0xFFFFFFFF)))

    index = torch.arange(2**32 - 700, 2**32 + 700)
    assert torch.equal(torch.compile(run)(index), run(index))


def test_absent_device_is_named() -> None:
    absent = "cuda:99"
    with pytest.raises(DeviceError) as caught:
        philox.self_test(absent)
    assert caught.value.device == absent


def test_failing_device_is_served_by_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    fast = philox.words_fast
    monkeypatch.setattr(philox, "self_test", lambda device: False)
    monkeypatch.setattr(philox, "words_fast", lambda *a, **k: asked.append(k.get("device", "cpu")) or fast(*a, **k))
    assert torch.equal(philox.words(1, 2, start=3, n_words=4), fast(1, 2, start=3, n_words=4))
    assert asked == ["cpu"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_is_the_same() -> None:
    got = philox.words(2**64 - 1, 5, start=11, n_words=3_000_000, device="cuda")
    assert got.device.type == "cuda"
    assert torch.equal(got.cpu(), philox.words(2**64 - 1, 5, start=11, n_words=3_000_000))
