import hashlib
import json
import statistics
import struct
from pathlib import Path

import pytest
import torch

from smask import bases
from smask.errors import IntegrityError, UnsupportedError

IMPLEMENTATIONS = (bases.base_reference, bases.base_weights)


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


@pytest.mark.clause("S-01")
@pytest.mark.clause("S-02")
@pytest.mark.clause("S-03")
@pytest.mark.clause("S-07")
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_vectors(implementation, vectors: Path) -> None:
    cases = json.loads((vectors / "bases.json").read_text())
    assert {case["base"] for case in cases} == {"signed", "uniform", "normal", "one"}
    for case in cases:
        expected = bytes.fromhex(case["float32_le"])
        got = implementation(
            case["base"], case["seed"], stream=case["stream"], start=case["start"], n_weights=len(expected) // 4
        )
        assert bits(got) == expected


@pytest.mark.parametrize("kind", bases.N_WEIGHTS_PER_WORD)
def test_any_range_is_a_slice_of_the_whole(kind: str) -> None:
    whole = bases.base_weights(kind, 8, stream=4, start=0, n_weights=500)
    for start, n in ((0, 0), (1, 1), (31, 34), (63, 400)):
        assert bits(bases.base_weights(kind, 8, stream=4, start=start, n_weights=n)) == bits(whole[start : start + n])


def test_sign_bytes_are_the_signed_base() -> None:
    weights = bases.base_weights("signed", 8, stream=4, start=40, n_weights=80)
    packed = bases.sign_bytes(8, stream=4, start_byte=5, n_bytes=10)
    unpacked = (packed[:, None] >> torch.arange(8) & 1).flatten()
    assert torch.equal(unpacked == 1, weights == -1)


@pytest.mark.clause("S-02")
def test_uniform_is_symmetric_and_never_zero() -> None:
    extremes = torch.tensor([0, 2**24 - 1]) * 2 + 1 - 2**24
    assert (extremes / 2**24).tolist() == [-(1 - 2**-24), 1 - 2**-24]
    sample = bases.base_weights("uniform", 1, stream=0, start=0, n_weights=100_000)
    assert float(sample.abs().min()) > 0
    assert float(sample.abs().max()) < 1


@pytest.mark.clause("S-04")
def test_normal_table_is_the_one_of_its_definition() -> None:
    normal = statistics.NormalDist()
    table = b"".join(struct.pack("<f", normal.inv_cdf((65536 + 2 * k + 1) / 131072)) for k in range(2**15))
    assert hashlib.sha256(table).hexdigest() == bases.NORMAL_SHA256
    assert bits(bases.normal_table("cpu")) == table


def test_damaged_table_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bases, "NORMAL_SHA256", "0" * 64)
    bases.normal_table.cache_clear()
    with pytest.raises(IntegrityError) as caught:
        bases.normal_table("cpu")
    assert caught.value.want == "0" * 64
    bases.normal_table.cache_clear()


def test_unknown_base_lists_the_known() -> None:
    with pytest.raises(UnsupportedError) as caught:
        bases.base_weights("cauchy", 0, stream=0, start=0, n_weights=1)
    assert (caught.value.got, caught.value.known) == ("cauchy", ("signed", "uniform", "normal", "one"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", bases.N_WEIGHTS_PER_WORD)
def test_cuda_is_the_same(kind: str) -> None:
    on_gpu = bases.base_weights(kind, 3, stream=9, start=17, n_weights=1_000_003, device="cuda")
    assert bits(on_gpu.cpu()) == bits(bases.base_weights(kind, 3, stream=9, start=17, n_weights=1_000_003))
