"""Which tensors are weights to be rounded: masks beside them are kept, and numbers of other sizes cost them nothing."""

from pathlib import Path

import pytest
import torch

import smask
from smask.cli.main import main
from smask.conversion.converter import convert_checkpoint
from smask.conversion.scanned import is_coded, is_mask
from smask.errors import CheckpointError

LOWEST = torch.finfo(torch.float32).min
NAMES = ("a", "b", "c")


def weights(*, scale: float = 0.02) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    return {name: torch.randn(128, 128, generator=random) * scale for name in NAMES}


def causal(number: float) -> torch.Tensor:
    return torch.full((64, 64), number).triu(1)


@pytest.mark.parametrize("number", [1.0, -1e4, -1e9, LOWEST, -float("inf")])
@pytest.mark.parametrize("goal", [{"bits": 3.0}, {"max_error": 0.05}])
def test_masks_are_kept_to_the_bit_and_say_nothing_of_the_error(
    tmp_path: Path, number: float, goal: dict[str, float]
) -> None:
    state = {**weights(), "bias": causal(number)[None, None]}
    report = convert_checkpoint(state, tmp_path / "m.smask", **goal)  # type: ignore[arg-type]
    again = smask.decode(tmp_path / "m.smask")
    assert torch.equal(again["bias"], state["bias"])
    of = {tensor.name: tensor for tensor in report.tensors}
    assert (of["bias"].error, of["bias"].stored_as) == (0.0, "values")
    assert 0 < report.error < 0.2
    assert all(of[name].error == pytest.approx(report.error, rel=0.1) for name in NAMES)
    assert report.n_bytes > 0.98 * 3.0 * report.n_weights / 8 or "bits" not in goal


@pytest.mark.parametrize(
    ("tensor", "mask", "coded"),
    [
        (torch.zeros(40, 40), True, False), (torch.ones(40, 40), True, False), (causal(-1.0).bool(), False, False),
        (torch.eye(40) * 2, True, False), (torch.eye(40) - torch.eye(40).flip(0), False, True),
        (causal(float("nan")), False, True), (torch.ones(4000), False, False), (torch.zeros(0, 5, 5), False, False),
    ],
)  # fmt: skip
def test_what_is_a_mask(tensor: torch.Tensor, mask: bool, coded: bool) -> None:
    assert (is_mask(tensor), is_coded(tensor)) == (mask, coded)


def test_one_other_number_anywhere_makes_weights_of_it() -> None:
    for place in (0, 1, 4999, 9999):
        tensor = torch.ones(100, 100)
        tensor.view(-1)[place] = 0.5
        assert not is_mask(tensor)


@pytest.mark.parametrize("large", [100.0, 1e6, 1e18])
def test_weights_beside_much_larger_ones_have_their_bits(tmp_path: Path, large: float) -> None:
    grid = torch.arange(128.0)[:, None].repeat(1, 2) * large
    report = convert_checkpoint({**weights(), "grid": grid}, tmp_path / "m.smask", bits=4)
    assert 0.99 * 4 <= report.bits_per_weight <= 4
    errors = {tensor.name: tensor.error for tensor in report.tensors}
    assert all(errors[name] < 0.1 for name in NAMES)
    assert errors["grid"] < 1e-3


def test_weights_beyond_all_steps_are_refused(tmp_path: Path) -> None:
    report = convert_checkpoint({"w": weights(scale=1e20)["a"]}, tmp_path / "m.smask", max_error=0.05)
    assert report.error < 0.05
    assert smask.verify(tmp_path / "m.smask").same
    with pytest.raises(CheckpointError) as caught:
        convert_checkpoint({"w": weights(scale=1e25)["a"]}, tmp_path / "n.smask", max_error=0.05)
    assert caught.value.tensor == "w"
    assert "lossless" in caught.value.advice
    assert not (tmp_path / "n.smask").exists()


@pytest.mark.parametrize("bits", [1.5, 2.0, 3.0, 6.0])
@pytest.mark.parametrize("scale", [2e4, 3e4])
def test_rounded_halves_stay_finite(tmp_path: Path, bits: float, scale: float) -> None:
    largest = torch.finfo(torch.float16).max
    state = {"w": weights(scale=scale)["a"].clamp(-largest, largest).half()}
    report = convert_checkpoint(state, tmp_path / "m.smask", bits=bits)
    assert smask.decode(tmp_path / "m.smask")["w"].isfinite().all()
    assert report.error < 0.6


def test_tensors_that_are_lost_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    large = torch.randn(64, 64, generator=torch.Generator().manual_seed(1))
    torch.save({**weights(scale=1e-3), "table": large}, tmp_path / "m.pt")
    for goal, lost in (("0.05", True), ("0.0001", False)):
        arguments = [str(tmp_path / "m.pt"), "-o", str(tmp_path / f"{goal}.smask"), "--max-error", goal]
        assert main(["convert", *arguments]) == 0
        assert ("mostly lost beside larger weights, whose step they have: a, b, c;" in capsys.readouterr().err) == lost
