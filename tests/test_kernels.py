from __future__ import annotations

import functools
import gc
import os
import subprocess
import sys
import weakref

import pytest
import torch
import torch.nn.functional as F

from smask import compiler, kernels, packing
from smask.errors import ArgumentError, UnsupportedError
from smask.reconstruction import reconstruct
from test_packing import random_coded

# Those of float32; what float8 does is in test_quarters.
KERNELS = [name for name in kernels.KERNELS if name != "float8"]
FAST = [name for name in KERNELS if name != "reference"]
# Relative to the largest output: int8 rounds activations to 1/254 of the largest of their row.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1.5e-2, torch.float16: 2e-3}


@pytest.fixture(autouse=True)
def compiled_at_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small matrices compile here, so that small matrices test what is compiled."""
    monkeypatch.setattr(kernels, "N_COMPILE_WEIGHTS", 0)


@functools.cache
def matrix(
    shape: tuple[int, int], planes: int = 1, flips: bool = False, offset: bool = False, regenerate: bool = False,
    channels: bool = True, density: float = 0.5,
) -> tuple[packing.PackedMatrix, torch.Tensor]:  # fmt: skip
    """A packed matrix and its dense weights in float64."""
    coded = random_coded(shape, planes=planes, flips=flips, offset=offset, channels=channels, density=density)
    packed = packing.pack(coded, 11, regenerate_signs=regenerate)
    return packed, reconstruct(coded, 11).double()


def check(
    packed: packing.PackedMatrix, dense: torch.Tensor, x: torch.Tensor, bias: torch.Tensor | None, kernel: str
) -> None:
    """Against the product with dense weights in float64."""
    want = F.linear(x.double(), dense, None if bias is None else bias.double())
    got = kernels.matmul(x, packed, bias, kernel=kernel)
    assert got.dtype == x.dtype
    assert got.shape == want.shape
    tolerance = 0.02 if kernel == "int8" else TOLERANCE[x.dtype]
    largest = (x.double().abs() @ dense.abs().t()).max().item() if x.numel() else 0.0
    assert (got.double() - want).abs().max().item() <= tolerance * largest


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("shape", [(1, 1), (70, 100), (600, 4096)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_kernel_at_odd_shapes(kernel: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
    packed, dense = matrix(shape)
    random = torch.Generator().manual_seed(3)
    x = torch.randn(3, shape[1], generator=random).to(dtype)
    check(packed, dense, x, None, kernel)
    check(packed, dense, x[0], torch.randn(shape[0], generator=random), kernel)


# Compiling a fused kernel takes long, and its loop over rows is always the same.
@pytest.mark.parametrize(
    ("kernel", "n_rows"), [(k, n) for k in KERNELS for n in (1, 2, 4, 9, 64) if k != "fused" or n == 4]
)
def test_every_kernel_at_every_number_of_rows(kernel: str, n_rows: int) -> None:
    packed, dense = matrix((96, 130), planes=2, flips=True)
    x = torch.randn(n_rows, 130, generator=torch.Generator().manual_seed(n_rows))
    check(packed, dense, x, torch.ones(96), kernel)


@pytest.mark.parametrize("kernel", ["reference", "eager", "tiled", "integer", "int8", "auto"])
@pytest.mark.parametrize("planes", [1, 2, 5, 7])
@pytest.mark.parametrize("channels", [True, False])
def test_planes_and_regenerated_signs(kernel: str, planes: int, channels: bool) -> None:
    for regenerate in (False, True):
        packed, dense = matrix((40, 64), planes=planes, regenerate=regenerate, channels=channels)
        check(packed, dense, torch.randn(5, 64, generator=torch.Generator().manual_seed(1)), None, kernel)


@pytest.mark.parametrize("kernel", ["reference", "tiled", "fused"])
def test_numbers_next_to_the_largest_do_not_overflow(kernel: str) -> None:
    packed, _ = matrix((40, 64), density=1.0)
    x = torch.zeros(1, 64)
    x[0, 5] = 3e38
    want = kernels.matmul(x.double(), packed)
    got = kernels.matmul(x, packed, kernel=kernel).double()
    inside = want.abs() < 3.4e38
    assert inside.any()
    assert got[inside].isfinite().all()
    assert torch.allclose(got[inside], want[inside], rtol=1e-6)


def test_fused_levels_of_several_planes() -> None:
    packed, dense = matrix((40, 64), planes=4)
    check(packed, dense, torch.randn(2, 64, generator=torch.Generator().manual_seed(1)), None, "fused")


@pytest.mark.parametrize("kernel", ["reference", "eager", "tiled", "auto"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_offsets(kernel: str, dtype: torch.dtype) -> None:
    packed, dense = matrix((40, 64), planes=3, flips=True, offset=True)
    check(packed, dense, torch.randn(5, 64, generator=torch.Generator().manual_seed(1)).to(dtype), None, kernel)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("density", [0.0, 1.0])
def test_masks_of_zeros_and_of_ones(kernel: str, density: float) -> None:
    packed, dense = matrix((70, 100), density=density)
    check(packed, dense, torch.randn(3, 100, generator=torch.Generator().manual_seed(1)), None, kernel)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("poison", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("n_rows", [1, 3])
def test_infinities_and_nans_spread_as_in_the_reference(kernel: str, poison: float, n_rows: int) -> None:
    packed, _ = matrix((70, 100), density=0.9)
    x = torch.randn(n_rows, 100, generator=torch.Generator().manual_seed(2))
    x[0, 5] = poison
    want = kernels.matmul(x, packed, kernel="reference")
    torch.testing.assert_close(kernels.matmul(x, packed, kernel=kernel), want, equal_nan=True, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("shape", [(0, 5), (5, 0)])
def test_empty_matrices_and_batches(kernel: str, shape: tuple[int, int]) -> None:
    packed, _ = matrix(shape)
    bias = torch.arange(shape[0], dtype=torch.float32)
    got = kernels.matmul(torch.ones(2, shape[1]), packed, bias, kernel=kernel)
    assert torch.equal(got, bias.expand(2, -1))
    packed, _ = matrix((16, 64))
    assert kernels.matmul(torch.ones(0, 3, 64), packed, kernel=kernel).shape == (0, 3, 16)


@pytest.mark.parametrize("kernel", FAST)
def test_strided_activations(kernel: str) -> None:
    packed, dense = matrix((70, 100))
    wide = torch.randn(200, 3, generator=torch.Generator().manual_seed(1))
    check(packed, dense, wide.t()[:, ::2], None, kernel)
    check(packed, dense, wide[:100, :1].t().expand(3, 1, 100), None, kernel)


def test_integer_sums_do_not_depend_on_batch_tiles_or_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    packed, _ = matrix((600, 4096))
    x = torch.randn(130, 4096, generator=torch.Generator().manual_seed(1))
    whole = kernels.matmul(x, packed, kernel="integer")
    for rows in (slice(0, 1), slice(1, 3), slice(5, 69)):
        assert torch.equal(kernels.matmul(x[rows], packed, kernel="integer"), whole[rows])
    monkeypatch.setattr(kernels, "N_TURN_BYTES", 1 << 16)
    monkeypatch.setattr(kernels, "N_SUMS", 1)
    assert torch.equal(kernels.matmul(x, packed, kernel="integer"), whole)
    monkeypatch.setattr(compiler, "available", lambda device="cpu": False)
    assert torch.equal(kernels.matmul(x[:7], packed, kernel="integer"), whole[:7])


def test_sums_that_leave_int32_are_joined_in_float32() -> None:
    packed, dense = matrix((2, 20_000), planes=2, density=1.0)
    check(packed, dense, torch.ones(1, 20_000), None, "integer")
    check(packed, dense, torch.full((2, 20_000), 0.999).bfloat16(), torch.ones(2), "integer")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("regenerate", [False, True])
def test_input_gradient(dtype: torch.dtype, regenerate: bool) -> None:
    packed, dense = matrix((70, 100), planes=2, regenerate=regenerate)
    gradient = torch.randn(4, 70, generator=torch.Generator().manual_seed(1), dtype=dtype)
    want = gradient.double() @ dense
    got = kernels.input_gradient(gradient, packed)
    assert got.dtype == dtype
    assert (got.double() - want).abs().max() <= (2e-7 if dtype == torch.float64 else 1e-5) * want.abs().max()


def test_the_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, offset = matrix((40, 64))[0], matrix((40, 64), planes=3, flips=True, offset=True)[0]
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    fused = "fused" if compiler.available() else "integer"
    assert kernels.choose(torch.ones(7, 64), plain) == "integer"
    assert kernels.choose(torch.ones(6, 64), plain) == fused
    assert kernels.choose(torch.ones(3, 64), matrix((40, 64), planes=2)[0]) == fused
    assert kernels.choose(torch.ones(4, 64), matrix((40, 64), planes=2)[0]) == "integer"
    assert kernels.choose(torch.ones(128, 64), plain) == "integer"
    assert kernels.choose(torch.ones(128, 64, dtype=torch.bfloat16), plain) == "tiled"
    assert kernels.choose(torch.ones(127, 64, dtype=torch.bfloat16), plain) == "integer"
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert kernels.choose(torch.ones(128, 64, dtype=torch.bfloat16), plain) == "integer"
    assert kernels.choose(torch.ones(1, 64), matrix((40, 64), regenerate=True)[0]) == "integer"
    assert kernels.choose(torch.ones(1, 64), offset) == "tiled"
    assert kernels.choose(torch.ones(1, 64, dtype=torch.float64), plain) == "reference"
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    assert kernels.choose(torch.ones(7, 64), plain) == "tiled"
    assert kernels.choose(torch.ones(1, 64), plain) == ("fused" if compiler.available() else "tiled")
    monkeypatch.setattr(compiler, "available", lambda device="cpu": False)
    assert kernels.choose(torch.ones(1, 64), plain) == "tiled"


def test_refusals_name_what_is_wrong() -> None:
    packed, _ = matrix((40, 64))
    cases = {
        "[..., 64]": torch.ones(2, 63),
        "torch.float32 or torch.bfloat16 or torch.float16 or torch.float64": torch.ones(2, 64, dtype=torch.int32),
        "on cpu, as the weights": torch.ones(2, 64, device="meta"),
    }
    for want, x in cases.items():
        with pytest.raises(ArgumentError) as error:
            kernels.matmul(x, packed)
        assert (error.value.name, error.value.want) == ("x", want)
    with pytest.raises(ArgumentError) as error:
        kernels.matmul(torch.ones(2, 64), packed, torch.ones(39))
    assert (error.value.name, error.value.got, error.value.want) == ("bias", "shape [39]", "[40]")
    with pytest.raises(UnsupportedError) as unsupported:
        kernels.matmul(torch.ones(2, 64), packed, kernel="magic")
    assert unsupported.value.got == "magic"
    for x, matrix_of in ((torch.ones(1, 64).double(), packed), (torch.ones(1, 64), matrix((40, 64), offset=True)[0])):
        with pytest.raises(UnsupportedError) as unsupported:
            kernels.matmul(x, matrix_of, kernel="integer")
        assert "offset" in str(unsupported.value.got) or "float64" in str(unsupported.value.got)
    wide = packing.PackedMatrix(torch.zeros(2, 1, 1 << 21, dtype=torch.uint8), 1 << 24, torch.ones(1))
    with pytest.raises(UnsupportedError, match="columns, above"):
        kernels.matmul(torch.ones(1, 1 << 24), wide, kernel="integer")


@pytest.mark.parametrize("kernel", ["tiled", "integer", "int8", "auto"])
def test_small_matrices_compile_nothing(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "N_COMPILE_WEIGHTS", 1 << 18)
    packed, dense = matrix((77, 101))
    made: list[str] = []
    with compiler.listening(lambda name, seconds: made.append(name)):
        for n_rows in (1, 3, 64):
            check(packed, dense, torch.randn(n_rows, 101), torch.ones(77), kernel)
    assert not made


def test_a_matrix_is_not_kept_alive_by_its_plan() -> None:
    packed = packing.pack(random_coded((40, 64), seed=9), 1)
    kernels.matmul(torch.ones(1, 64), packed, kernel="tiled")
    kernels.matmul(torch.ones(1, 64), packed)
    alive = weakref.ref(packed.planes)
    del packed
    gc.collect()
    assert alive() is None


def test_a_plan_follows_its_matrix() -> None:
    """Bits written in place, and the same matrix used in and out of inference mode."""
    packed = packing.pack(random_coded((40, 64), seed=9), 1)
    x = torch.randn(2, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        first = kernels.matmul(x, packed)
    assert torch.equal(kernels.matmul(x, packed), first)
    packed.planes.zero_()
    assert not kernels.matmul(x, packed).any()


@pytest.mark.parametrize("kernel", ["integer", "int8"])
def test_thread_counts_change_nothing_that_is_an_integer(kernel: str) -> None:
    packed, _ = matrix((600, 4096))
    x = torch.randn(9, 4096, generator=torch.Generator().manual_seed(1))
    both = []
    threads = torch.get_num_threads()
    for n in (1, threads + 1):
        torch.set_num_threads(n)
        both.append(kernels.matmul(x, packed, kernel=kernel))
    torch.set_num_threads(threads)
    assert torch.equal(*both)


def test_without_a_compiler_it_says_so_once_and_runs() -> None:
    script = (
        "import warnings, torch\n"
        "from smask import kernels, packing, compiler\n"
        "from smask.coded import CodedTensor\n"
        "kernels.N_COMPILE_WEIGHTS = 0\n"
        "coded = CodedTensor((64, 64), 0, (torch.full((512,), 255, dtype=torch.uint8),), torch.ones(1))\n"
        "packed = packing.pack(coded, 1)\n"
        "with warnings.catch_warnings(record=True) as said:\n"
        "    warnings.simplefilter('always')\n"
        "    ys = [kernels.matmul(torch.ones(n, 64), packed) for n in (1, 2, 64)]\n"
        "said = [str(w.message) for w in said if w.category is RuntimeWarning]\n"
        "assert len(said) == 1 and 'without compiled kernels' in said[0], said\n"
        "assert not compiler.available()\n"
        "want = kernels.matmul(torch.ones(1, 64), packed, kernel='reference')\n"
        "assert all(torch.equal(y, want.expand_as(y)) for y in ys)\n"
    )
    environment = os.environ | {
        "CXX": "no-such-compiler",
        "PATH": "/nonexistent",
        "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1",
    }
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kernel", ["reference", "eager", "tiled", "fused", "auto"])
@pytest.mark.parametrize("n_rows", [1, 5, 64])
def test_cuda_agrees_with_the_cpu(kernel: str, n_rows: int) -> None:
    for regenerate in (False, True):
        if kernel == "fused" and regenerate:
            continue
        packed, dense = matrix((600, 4096), regenerate=regenerate)
        there = packing.PackedMatrix(packed.planes.cuda(), 4096, packed.scale.cuda(), None, packed.signs)
        assert torch.equal(packing.dense_rows(there).cpu().double(), dense)
        x = torch.randn(n_rows, 4096, generator=torch.Generator().manual_seed(1))
        got = kernels.matmul(x.cuda(), there, kernel=kernel).cpu()
        assert (got.double() - x.double() @ dense.t()).abs().max() <= 1e-2
