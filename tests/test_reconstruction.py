import json
from pathlib import Path

import pytest
import torch

from smask import fills, reconstruction
from smask.coded import CodedTensor, parameter_problem
from smask.errors import ArgumentError
from smask.integrity import DTYPE_OF_NAME, raw_bytes

IMPLEMENTATIONS = (reconstruction.reconstruct_reference, reconstruction.reconstruct)


def random_coded(shape: tuple[int, ...], *, n_planes: int = 1, seed: int = 0, **fields) -> CodedTensor:
    random = torch.Generator().manual_seed(seed)
    coded = CodedTensor(shape, 3, (), torch.ones(1))
    n = coded.n_weights
    n_bytes = -(-n // 8)
    planes = [torch.randint(0, 256, (n_bytes,), generator=random, dtype=torch.uint8) for _ in range(n_planes)]
    if n % 8:
        for plane in planes:
            plane[-1] &= (1 << n % 8) - 1
    flip = torch.randint(0, 256, (n_bytes,), generator=random, dtype=torch.uint8)
    kept = torch.zeros_like(flip)
    for plane in planes:
        kept |= plane
    scale = torch.rand(shape[0] if fields.pop("channel", False) else 1, generator=random) + 0.1
    return CodedTensor(
        shape, 3, tuple(planes), scale, flip=flip & kept if fields.pop("flip", False) else None, **fields
    )


@pytest.mark.clause("R-01")
@pytest.mark.clause("R-04")
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_vectors(implementation, vectors: Path) -> None:
    for case in json.loads((vectors / "reconstruction.json").read_text()):

        def tensor(text: str, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
            return torch.tensor(list(bytes.fromhex(text)), dtype=torch.uint8).view(dtype)

        coded = CodedTensor(
            shape=tuple(case["shape"]),
            stream=case["stream"],
            planes=tuple(tensor(plane) for plane in case["planes"]),
            scale=tensor(case["scale"], torch.float32),
            base=case["base"],
            flip=None if case["flip"] is None else tensor(case["flip"]),
            offset=None if case["offset"] is None else tensor(case["offset"], torch.float32),
            dtype=DTYPE_OF_NAME[case["dtype"]],
        )
        weights = implementation(coded, case["seed"])
        assert weights.shape == coded.shape
        assert bytes(raw_bytes(weights).numpy()).hex() == case["weights"]


@pytest.mark.parametrize("n_planes", [1, 4])
@pytest.mark.parametrize("base", ["signed", "uniform", "normal"])
@pytest.mark.parametrize("channel", [False, True])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("shape", [(1,), (7, 13), (5, 3, 3, 3), (64, 33), (3, 0)])
def test_fast_is_the_reference(n_planes: int, base: str, channel: bool, flip: bool, shape: tuple[int, ...]) -> None:
    for offset in (None, torch.tensor([0.375])):
        coded = random_coded(shape, n_planes=n_planes, channel=channel, flip=flip, base=base, offset=offset)
        expected = reconstruction.reconstruct_reference(coded, 11)
        assert torch.equal(raw_bytes(reconstruction.reconstruct(coded, 11)), raw_bytes(expected))


@pytest.mark.parametrize(("n_planes", "base"), [(1, "signed"), (2, "normal")])
def test_chunks_meet_within_rows(monkeypatch: pytest.MonkeyPatch, n_planes: int, base: str) -> None:
    coded = random_coded((41, 173), n_planes=n_planes, channel=True, flip=True, base=base)
    expected = reconstruction.reconstruct_reference(coded, 2)
    monkeypatch.setattr(fills, "N_CHUNK", 64)
    monkeypatch.setattr(fills, "N_CHUNK_SIGNS", 256)
    assert torch.equal(raw_bytes(reconstruction.reconstruct(coded, 2)), raw_bytes(expected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_into_a_given_tensor(dtype: torch.dtype) -> None:
    coded = random_coded((7, 13), channel=True, dtype=dtype)
    given = torch.full((7, 13), 9, dtype=dtype)
    assert reconstruction.reconstruct(coded, 3, out=given) is given
    assert torch.equal(given, reconstruction.reconstruct(coded, 3))
    parameter = torch.nn.Parameter(torch.empty(7, 13, dtype=dtype))
    reconstruction.reconstruct(coded, 3, out=parameter)
    assert torch.equal(parameter.detach(), given)
    for bad in (
        torch.empty(13, 7, dtype=dtype),
        torch.empty(7, 13, dtype=torch.float64),
        torch.empty(13, 7, dtype=dtype).T,
    ):
        with pytest.raises(ArgumentError) as caught:
            reconstruction.reconstruct(coded, 3, out=bad)
        assert caught.value.name == "out"


@pytest.mark.clause("R-03")
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("scale", [-1.5, 0.0, -0.0])
def test_zero_weights_are_positive_zero(implementation, scale: float) -> None:
    coded = random_coded((9, 9))
    weights = implementation(CodedTensor(coded.shape, 0, coded.planes, torch.tensor([scale])), 1)
    zeros = weights[weights == 0]
    assert len(zeros)
    assert not torch.signbit(zeros).any()


@pytest.mark.clause("R-02")
@pytest.mark.parametrize(
    ("scale", "offset", "problem"),
    [
        (2.0**-64, 2.0**-40, None), (-(2.0**64), -65536.0, None), (0.0, 0.0, None),
        (2.0**-65, None, "scale"), (2.0**65, None, "scale"), (float("nan"), None, "scale"),
        (1.0, 2.0**-41, "offset"), (1.0, float("inf"), "offset"), (1.0, float("nan"), "offset"),
    ],
)  # fmt: skip
def test_range_of_parameters(scale: float, offset: float | None, problem: str | None) -> None:
    coded = CodedTensor(
        (1,), 0, (torch.ones(1, dtype=torch.uint8),), torch.tensor([scale]),
        offset=None if offset is None else torch.tensor([offset]),
    )  # fmt: skip
    found = parameter_problem(coded)
    assert (found[0] if found else None) == problem


@pytest.mark.clause("R-01")
def test_flushing_subnormals_changes_nothing() -> None:
    smallest = random_coded((8, 40), n_planes=3, base="normal", flip=True)
    coded = CodedTensor(
        (8, 40), 3, smallest.planes, torch.tensor([2.0**-64]), "normal", smallest.flip, torch.tensor([0.75])
    )
    expected = raw_bytes(reconstruction.reconstruct(coded, 5))
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormals")
    try:
        assert torch.equal(raw_bytes(reconstruction.reconstruct(coded, 5)), expected)
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_the_default_dtype_changes_nothing(dtype: torch.dtype) -> None:
    cases = [random_coded((6, 40), n_planes=n, base=base, channel=True) for n, base in ((1, "signed"), (3, "uniform"))]
    expected = [raw_bytes(reconstruction.reconstruct(coded, 5)) for coded in cases]
    fills._TABLES.clear()
    torch.set_default_dtype(dtype)
    try:
        for implementation in IMPLEMENTATIONS:
            assert all(torch.equal(raw_bytes(implementation(c, 5)), e) for c, e in zip(cases, expected, strict=True))
    finally:
        torch.set_default_dtype(torch.float32)


def test_threads_do_not_matter() -> None:
    coded = random_coded((300, 7001), channel=True)
    n_threads = torch.get_num_threads()
    many = raw_bytes(reconstruction.reconstruct(coded, 1))
    try:
        torch.set_num_threads(1)
        assert torch.equal(raw_bytes(reconstruction.reconstruct(coded, 1)), many)
    finally:
        torch.set_num_threads(n_threads)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("n_planes", [1, 5])
@pytest.mark.parametrize("base", ["signed", "uniform", "normal"])
def test_cuda_is_the_same(n_planes: int, base: str) -> None:
    coded = random_coded(
        (300, 7001), n_planes=n_planes, base=base, channel=True, flip=True, offset=torch.tensor([0.25])
    )
    on_gpu = reconstruction.reconstruct(coded, 1, device="cuda")
    assert torch.equal(raw_bytes(on_gpu), raw_bytes(reconstruction.reconstruct(coded, 1)))
