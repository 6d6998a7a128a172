"""Files over another checkpoint: what is the same base, which form a tensor takes, and that no other base will do."""

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import smask
from smask import architectures, errors, named_nets
from smask.cli.main import main
from smask.coded import CodedTensor
from smask.conversion.converter import convert_checkpoint
from smask.conversion.mantissas import rounded
from smask.conversion.overlay import Overlay
from smask.recipe import Recipe
from smask.reconstruction import reconstruct, reconstruct_reference
from smask.stored_tensors import difference_record
from test_stored_tensors import exactly

ARCH = named_nets.architecture("mlp:64-48-32-10")


def parameters(seed: int) -> dict[str, torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return architectures.build(ARCH).state_dict()


@pytest.fixture
def base() -> dict[str, torch.Tensor]:
    return parameters(0)


@pytest.fixture
def tuned(base) -> dict[str, torch.Tensor]:
    """The first layer hardly changed, the second masked, the last one new."""
    random, names = torch.Generator().manual_seed(1), [name for name in base if name.endswith("weight")]
    state = {name: tensor.clone() for name, tensor in base.items()}
    state[names[0]] += 1e-4 * torch.randn(state[names[0]].shape, generator=random)
    state[names[1]] = torch.where(torch.rand(state[names[1]].shape, generator=random) < 0.5, 0.0, state[names[1]])
    state[names[2]] = 0.1 * torch.randn(state[names[2]].shape, generator=random)
    state[names[0].replace("weight", "bias")] += 1e-5
    return state


def same(state, again) -> bool:
    return list(state) == list(again) and all(exactly(again[name], tensor) for name, tensor in state.items())


def test_lossless_over_a_base(base, tuned, tmp_path: Path) -> None:
    alone = convert_checkpoint(tuned, tmp_path / "alone.smask")
    report = convert_checkpoint(tuned, tmp_path / "over.smask", base=base)
    forms = [tensor.stored_as for tensor in report.tensors]
    assert forms == ["base + values", "base + shared", "mask of base", "base", "shared", "base"]
    assert report.n_bytes < 0.65 * alone.n_bytes
    assert (report.base, report.base_digest) == ("state dict", smask.open_base(base).digest)
    assert same(tuned, smask.decode(tmp_path / "over.smask", base=base))
    assert smask.verify(tmp_path / "over.smask", base=base).same
    # Nothing of the base is handed out to be changed.
    smask.decode(tmp_path / "over.smask", base=base)["2.bias"].zero_()
    assert base["2.bias"].any()


def test_what_is_the_base_costs_records_only(base, tmp_path: Path) -> None:
    again = convert_checkpoint({f"module.{name}": tensor for name, tensor in base.items()}, tmp_path / "m", base=base)
    assert {tensor.stored_as for tensor in again.tensors} == {"base"}
    assert again.n_bytes < 260
    assert list(smask.decode(tmp_path / "m", base=base)) == [f"module.{name}" for name in base]


@pytest.mark.clause("I-03")
def test_one_base_in_many_forms(base, tuned, tmp_path: Path) -> None:
    convert_checkpoint(tuned, tmp_path / "over.smask", base=base)
    save_file(dict(reversed(base.items())), tmp_path / "base.safetensors")
    torch.save(
        {"epoch": 3, "state_dict": {f"module.{name}": tensor for name, tensor in base.items()}}, tmp_path / "base.pt"
    )
    convert_checkpoint(base, tmp_path / "base.smask")
    net = architectures.build(ARCH)
    net.load_state_dict(base)
    forms = [tmp_path / f"base.{form}" for form in ("safetensors", "pt", "smask")]
    for form in (*forms, str(forms[0]), (tmp_path / "base.smask").read_bytes(), net, smask.open_base(base)):
        assert same(tuned, smask.decode(tmp_path / "over.smask", base=form))
    # A base that the file does not need is not even looked at.
    assert same(base, smask.decode(tmp_path / "base.smask", base=tmp_path / "nowhere"))


@pytest.mark.clause("I-03")
def test_another_base_is_refused(base, tuned, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = tmp_path / "over.smask", tmp_path / "out.safetensors"
    convert_checkpoint(tuned, file, base=base, meta={"base": "mlp of today"})
    want = smask.open_base(base).digest
    other = {name: tensor.clone() for name, tensor in base.items()}
    other["2.bias"][0].add_(2.0**-20)
    other_digest = smask.open_base(other).digest
    for wrong, got in ((None, None), (other, other_digest), ({**base, "more": torch.ones(1)}, None)):
        for read in (smask.decode, smask.verify, smask.load):
            model = {"model": architectures.build(ARCH)} if read is smask.load else {}
            with pytest.raises(errors.BaseError) as caught:
                read(file, base=wrong, **model)
            assert (caught.value.want, caught.value.hint) == (want, "mlp of today")
            assert caught.value.got == (got or (None if wrong is None else smask.open_base(wrong).digest))
    save_file(other, tmp_path / "other.safetensors")
    assert main(["decode", str(file), "-o", str(out)]) == 6
    assert want in capsys.readouterr().err
    assert main(["decode", str(file), "-o", str(out), "--base", str(tmp_path / "other.safetensors")]) == 6
    assert other_digest in capsys.readouterr().err
    assert not out.exists()
    with pytest.raises(errors.ArgumentError) as chained:
        smask.decode(file, base=file)
    assert chained.value.name == "base"
    assert main(["verify", str(file), "--base", str(tmp_path / "nowhere.pt")]) == 3


def test_error_is_that_over_the_weights(base, tuned, tmp_path: Path) -> None:
    names = [name for name in base if name.endswith("weight")]
    report = convert_checkpoint(tuned, tmp_path / "m.smask", base=base, max_error=0.01)
    forms = {tensor.name: tensor.stored_as for tensor in report.tensors}
    assert forms[names[0]] == "base"  # changed by less than the error asked for
    assert forms[names[1]] == "mask of base"
    assert "planes" in forms[names[2]]
    assert "base" not in forms[names[2]]
    again = smask.decode(tmp_path / "m.smask", base=base)
    error = sum(float((again[name] - tuned[name]).square().sum()) for name in names)
    energy = sum(float(tuned[name].square().sum()) for name in names)
    assert report.error == pytest.approx((error / energy) ** 0.5, rel=1e-4)
    assert report.error <= 0.01
    finer = convert_checkpoint(tuned, tmp_path / "fine.smask", base=base, max_error=2e-4)
    assert next(tensor.stored_as for tensor in finer.tensors).startswith("base + ")
    alone = convert_checkpoint(tuned, tmp_path / "alone.smask", max_error=2e-4)
    assert finer.n_bytes < 0.75 * alone.n_bytes
    assert smask.verify(tmp_path / "fine.smask", base=base).same


def test_a_layer_that_is_only_masked_keeps_its_statistics(tmp_path: Path) -> None:
    base = architectures.build(named_nets.architecture("resnet20")).state_dict()
    random = torch.Generator().manual_seed(3)
    state = {name: tensor.clone() for name, tensor in base.items()}
    matrices = [name for name in base if base[name].dim() > 1]
    for name in matrices:  # zeros of both signs, as products with masks leave them
        state[name] *= (torch.rand(state[name].shape, generator=random) < 0.7).float()
    state[matrices[-1]] += 0.01 * torch.randn(state[matrices[-1]].shape, generator=random)
    report = convert_checkpoint(state, tmp_path / "m.smask", base=base, max_error=0.02)
    assert [t.stored_as for t in report.tensors if t.name in matrices[:-1]] == ["mask of base"] * (len(matrices) - 1)
    assert report.moved == ()
    again = smask.decode(tmp_path / "m.smask", base=base)
    assert all(torch.equal(state[name], again[name]) for name in matrices[:-1])
    assert report.n_bytes < 0.04 * report.raw_bytes


@pytest.mark.parametrize("goal", [{}, {"max_error": 1e-4}])
def test_a_loaded_model_is_saved_over_the_base_again(base, tuned, tmp_path: Path, goal) -> None:
    convert_checkpoint(tuned, tmp_path / "m.smask", base=base, arch=ARCH, **goal)
    model = smask.load(tmp_path / "m.smask", base=base)
    for again in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        smask.save(again, tmp_path / "again.smask")
        assert same(model.state_dict(), smask.decode(tmp_path / "again.smask", base=base))
        assert (tmp_path / "again.smask").stat().st_size <= (tmp_path / "m.smask").stat().st_size
    assert smask.load(tmp_path / "m.smask", base=base, packed="auto") is not None


def test_a_mask_of_a_base_by_hand(base, tmp_path: Path) -> None:
    """What a search over a frozen checkpoint would write: one plane, with a scale a channel and flips."""
    weight = base["0.weight"]
    kept = torch.arange(weight.numel()).reshape(weight.shape) % 3 == 0
    bits = torch.from_numpy(np.packbits(kept.numpy(), bitorder="little"))
    scale = torch.linspace(0.5, 2, 48)
    coded = CodedTensor((48, 64), 0, (bits,), scale, base="file", flip=bits, of="", origin=weight)
    tensor = reconstruct(coded, 0)
    assert torch.equal(tensor, torch.where(kept, -scale[:, None] * weight, 0.0))
    recipe = Recipe(0, {"0.weight": coded}, base_digest=smask.open_base(base).digest)
    data = smask.encode({"0.weight": tensor}, recipe)
    assert exactly(smask.decode(data, base=base)["0.weight"], tensor)
    assert smask.inspect(data).tensors[0].of == "0.weight"
    assert smask.inspect(data).seed is None
    with pytest.raises(errors.ArgumentError) as caught:
        smask.encode({"0.weight": tensor}, Recipe(0, {"0.weight": coded}))
    assert caught.value.name == "recipe"


@pytest.mark.clause("R-06")
@pytest.mark.clause("R-07")
@pytest.mark.parametrize("method", [reconstruct, reconstruct_reference])
@pytest.mark.parametrize("flushing", [False, True])
def test_arithmetic_over_an_origin_by_hand(method, flushing: bool) -> None:
    tiny = 2.0**-126
    origin = torch.tensor([[1.0, tiny / 2, -tiny, 3.0, tiny * 1.5, 2.0**-130, -5.0, 0.25]])
    mask = (torch.tensor([0b11111111], dtype=torch.uint8),)
    half = torch.tensor([0.5])
    torch.set_flush_denormal(flushing)
    try:
        masked = method(CodedTensor((1, 8), 0, mask, half, base="file", of="", origin=origin), 0)
        nothing = (torch.tensor([0], dtype=torch.uint8),)
        added = method(CodedTensor((1, 8), 0, nothing, half, of="", origin=origin), 0)
        step = torch.tensor([2.0**-24])
        ulp = method(CodedTensor((1, 8), 0, mask, step, base="uniform", of="", origin=origin), 3)
        drawn = method(CodedTensor((1, 8), 0, mask, step, base="uniform"), 3)
    finally:
        torch.set_flush_denormal(False)
    assert masked.tolist() == [[0.5, 0.0, 0.0, 1.5, 0.0, 0.0, -2.5, 0.125]]
    assert added.tolist() == [[1.0, 0.0, -tiny, 3.0, tiny * 1.5, 0.0, -5.0, 0.25]]
    assert not torch.signbit(masked[0, [1, 2, 4]]).any()
    assert ulp[0, 0] == (1.0 + drawn[0, 0].double()).float()
    assert ulp[0, 6] == (-5.0 + drawn[0, 6].double()).float()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_small_floats_are_rounded_towards_short_differences(dtype: torch.dtype) -> None:
    random, limits = torch.Generator().manual_seed(0), torch.finfo(dtype)
    old = torch.randn(500, generator=random, dtype=torch.float64)
    new = old * (1 + 1e-3 * torch.randn(500, generator=random, dtype=torch.float64))
    # Another sign, zeros, and what lies at the ends of the range.
    new[:6] = torch.tensor([-old[0], 0.0, -0.0, limits.max, limits.tiny, limits.tiny / 4], dtype=torch.float64)
    old[6] = 0
    old, new = old.to(dtype), new.to(dtype)
    overlay = Overlay(smask.open_base({"w": old}), "")
    for n_mantissa in (3, 6, 10, 15, 23, 52):
        nearest = rounded(new, n_mantissa)
        found = overlay.rounded(new, old, n_mantissa, nearest)
        error = (found.double() - new.double()).abs()
        assert bool((error <= new.double().abs() * 2.0**-n_mantissa).all())
        short, plain = (difference_record("w", value, old, "")[1] for value in (found, nearest))
        assert np.count_nonzero(short) <= np.count_nonzero(plain)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(dtype: torch.dtype, base, tuned, tmp_path: Path) -> None:
    old = {name: tensor.to(dtype) for name, tensor in base.items()}
    new = {name: tensor.to(dtype) for name, tensor in tuned.items()}
    assert convert_checkpoint(new, tmp_path / "m.smask", base=old).n_bytes < 20_000
    assert same(new, smask.decode(tmp_path / "m.smask", base=old))
    # A base of another dtype serves levels and masks, and nothing that is to keep bits it does not have.
    for goal in ({}, {"max_error": 1e-3}):
        report = convert_checkpoint(new, tmp_path / "m.smask", base=base, overwrite=True, **goal)
        assert smask.verify(tmp_path / "m.smask", base=base).digest == report.digest


def test_odd_tensors_over_a_base(tmp_path: Path) -> None:
    nan, ones = torch.tensor([1.0, float("nan"), -0.0]), torch.ones(40, 40)
    old = {"nan": nan, "empty": torch.zeros(0, 3), "count": torch.tensor(5), "flag": torch.tensor([True, False]),
           "large": ones * float("inf"), "words": torch.arange(2000), "shape": torch.ones(2, 3), "kind": torch.ones(1500)}  # fmt: skip
    new = {**old, "nan": nan.flip(0), "count": torch.tensor(-(2**60)), "flag": torch.tensor([False, True]),
           "large": ones, "words": torch.arange(2000) + 1, "shape": torch.ones(3, 2), "kind": torch.ones(1500).half(),
           "tied": torch.arange(2000) + 1}  # fmt: skip
    report = convert_checkpoint(new, tmp_path / "m.smask", base=old)
    assert same(new, smask.decode(tmp_path / "m.smask", base=old))
    forms = {tensor.name: tensor.stored_as for tensor in report.tensors}
    assert forms["empty"] == "base"
    assert forms["tied"] == "same as words"
    assert (forms["shape"], forms["kind"]) == ("shared", "mask of base")
    finite = {name: tensor for name, tensor in new.items() if name != "nan"}
    report = convert_checkpoint(finite, tmp_path / "lossy.smask", base=old, max_error=0.1)
    assert smask.verify(tmp_path / "lossy.smask", base=old).digest == report.digest


class Theirs(nn.Module):
    """A module of other software: buffers, a counter, tied weights, a dtype of its own, no layer of ours."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 32)
        self.mixer = nn.GRU(32, 32, batch_first=True)
        self.norm = nn.BatchNorm1d(32)
        self.head = nn.Linear(32, 50, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("mask", torch.ones(40, 40, dtype=torch.bool).tril())
        self.register_buffer("positions", torch.arange(40))
        self.small = nn.Parameter(torch.randn(40, 40).half())
        self.gain = nn.Parameter(torch.tensor(0.5))


@pytest.mark.parametrize("goal", [["--lossless"], ["--bits", "5"]])
@pytest.mark.parametrize("over", [False, True])
@pytest.mark.parametrize("wrapped", ["", "module."])
def test_the_original_software_loads_what_decode_writes(
    tmp_path: Path, goal: list[str], over: bool, wrapped: str, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    source, again = Theirs(), Theirs()
    old = {wrapped + name: tensor.clone() for name, tensor in source.state_dict().items()}
    torch.save({"state_dict": old, "epoch": 7}, tmp_path / "base.pt")
    with torch.no_grad():
        source.embedding.weight[3] += 0.01
        source.gain += 1
        source.norm.running_mean += 0.5
        source.norm.num_batches_tracked += 12
    state = {wrapped + name: tensor for name, tensor in source.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "tuned.pt")
    more = ["--base", str(tmp_path / "base.pt")] if over else []
    assert (
        main(
            ["convert", str(tmp_path / "tuned.pt"), "-o", str(tmp_path / "m.smask"), *goal, *more, "--meta", "by=them"]
        )
        == 0
    )
    assert main(["decode", str(tmp_path / "m.smask"), "-o", str(tmp_path / "m.safetensors"), *more, "--json"]) == 0
    assert '"verified": true' in capsys.readouterr().out
    tensors = load_file(tmp_path / "m.safetensors")
    assert {name: (t.shape, t.dtype) for name, t in tensors.items()} == {
        name: (t.shape, t.dtype) for name, t in state.items()
    }
    again.load_state_dict({name.removeprefix(wrapped): tensor for name, tensor in tensors.items()}, strict=True)
    assert again.norm.num_batches_tracked == 12
    assert torch.equal(again.mask, source.mask)
    assert torch.equal(again.positions, source.positions)
    assert torch.equal(again.head.weight, again.embedding.weight)
    if goal == ["--lossless"]:
        assert all(exactly(tensors[name], tensor) for name, tensor in state.items())
    from safetensors import safe_open

    with safe_open(tmp_path / "m.safetensors", "pt") as file:
        assert {"format", "by", "smask_digest"} <= set(file.metadata())


def test_bad_use(base, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file(base, tmp_path / "base.safetensors")
    save_file(base, tmp_path / "tuned.safetensors")
    command = ["convert", str(tmp_path / "tuned.safetensors"), "--lossless"]
    fails = [
        (2, "another file than the base", [*command, "-o", str(tmp_path / "base.safetensors"), "--base", str(tmp_path / "base.safetensors"), "--force"]),
        (3, "cannot read", [*command, "-o", str(tmp_path / "m.smask"), "--base", str(tmp_path / "nowhere.pt")]),
    ]  # fmt: skip
    (tmp_path / "text.pt").write_text("hello")
    fails.append(
        (3, "not a whole file", [*command, "-o", str(tmp_path / "m.smask"), "--base", str(tmp_path / "text.pt")])
    )
    for code, words, arguments in fails:
        assert main(arguments) == code
        assert words in capsys.readouterr().err
    assert not (tmp_path / "m.smask").exists()
    assert same(base, load_file(tmp_path / "base.safetensors")) or set(base) == set(
        load_file(tmp_path / "base.safetensors")
    )
