"""Drop-and-grow: which ones go and come, how many and until when; on frozen weights, in a whole search."""

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import smask
from conftest import convolutional
from smask.recipe import recipe_of
from smask.search import exchange as module
from smask.search.data import Batches, Dataset
from smask.search.exchange import ASLEEP, count_exactly, exchange, exchanged, exchanged_fraction, wanted
from smask.search.methods import METHODS
from smask.search.scores import MaskedWeight
from smask.search.snapshots import Snapshot


def test_half_a_cosine_and_then_nothing() -> None:
    assert exchanged_fraction(0, n_steps=100) == 0.3
    assert exchanged_fraction(50, n_steps=100, first=0.2) == pytest.approx(0.1)
    assert exchanged_fraction(25, n_steps=100, first=0.2) == pytest.approx(0.1 * (1 + math.sqrt(0.5)))
    assert [exchanged_fraction(step, n_steps=100) for step in (100, 101, 1000)] == [0, 0, 0]
    assert exchanged_fraction(0, n_steps=0) == 0


def test_the_least_go_and_the_most_wanted_come() -> None:
    kept = torch.tensor([True, True, False, True, False, False])
    worth = torch.tensor([5.0, 1.0, 0.0, 2.0, 9.0, 9.0])
    wish = torch.tensor([9.0, 0.0, 3.0, 9.0, 7.0, 5.0])
    dropped, grown = exchanged(kept, worth, wish, 1)
    assert (dropped.tolist(), grown.tolist()) == ([1], [4])
    # Index 3 goes, and is wanted most of all that are out then: it comes again.
    dropped, grown = exchanged(kept, worth, wish, 2)
    assert (sorted(dropped.tolist()), sorted(grown.tolist())) == ([1, 3], [3, 4])
    assert [t.numel() for t in exchanged(kept, worth, wish, 0)] == [0, 0]
    assert [t.numel() for t in exchanged(kept, worth, wish, 99)] == [3, 3]


def layer(scores: list[list[float]], method: str = "rigl-mask", density: float = 0.5) -> MaskedWeight:
    values = torch.tensor(scores)
    made = MaskedWeight(
        nn.Parameter(torch.empty(values.shape)), METHODS[method], kind="signed", seed=3, stream=1, per_channel=True,
        density=density, fan_in=2,
    )  # fmt: skip
    made.latent.data = values * made.sign
    return made


def mask_of(masked: MaskedWeight) -> list[bool]:
    masked.threshold = (ASLEEP,)
    with torch.no_grad():
        masked.write()
    return (masked.weight != 0).flatten().tolist()


def test_frozen_weights_are_exchanged_by_score_and_sign() -> None:
    masked = layer([[0.5, -0.2, 0.1, -2e9], [-2e9, -2e9, -2e9, 0.3]])
    assert mask_of(masked) == [True, True, True, False, False, False, False, True]
    # Half of four go: the scores -0.2 and 0.1; those wanted with 7 and 5 come and begin at zero.
    exchange(masked, torch.tensor([[9.0, 3.0, -9.0, 5.0], [7.0, 1.0, -8.0, 9.0]]), 0.5)
    assert mask_of(masked) == [True, False, False, True, True, False, False, True]
    assert masked.scores()[masked.scores() > ASLEEP].tolist() == pytest.approx([0.5, 0.0, 0.0, 0.3])
    # What is out is ranked by how much it was wanted: 3, 1, -8, -9.
    assert masked.order().tolist()[4:] == [1, 5, 6, 2]


def test_no_step_of_an_optimiser_moves_what_is_out() -> None:
    masked = layer([[0.0, -2e9], [ASLEEP * 2, 0.0]])
    before = masked.scores()
    masked.latent.data += 10.0
    assert (masked.scores() == before).tolist() == [[False, True], [True, False]]


def test_counts_follow_densities() -> None:
    masked = layer([[0.5, 0.4, 0.3, 0.2], [0.1, 0.05, 0.02, 0.01]])
    for density, n in ((0.5, 4), (0.25, 2), (0.75, 6), (1e-9, 1), (1.0, 8)):
        count_exactly({"w": masked}, {"w": density})
        assert sum(mask_of(masked)) == n
        assert masked.now == density
    count_exactly({"w": masked}, {"w": 0.25})
    exchange(masked, torch.tensor([[0.0, 0.0, 1.0, 5.0], [3.0, 4.0, 2.0, 0.0]]), 0.0)
    assert mask_of(masked) == [True, True] + [False] * 6
    count_exactly({"w": masked}, {"w": 0.5})
    assert mask_of(masked) == [True, True, False, True, False, True, False, False]  # the most wanted of the last time


def test_what_is_wanted_by_hand() -> None:
    """Against the gradient, with the sign of the base, over the spread of the channel."""
    masked = layer([[0.0, 0.0], [0.0, 0.0]])
    masked.mean_gradient = torch.tensor([[3.0, -4.0], [0.0, 0.0]])
    by_hand = -torch.tensor([[3.0, -4.0], [0.0, 0.0]]) / math.sqrt(12.5) * masked.sign
    assert torch.allclose(wanted(masked), by_hand)


def test_the_mean_of_gradients_leaves_out_what_overflowed(monkeypatch: pytest.MonkeyPatch) -> None:
    masked = layer([[0.0, 0.0]])
    for value in (100.0, math.inf, 200.0):
        METHODS["rigl-mask"].gradient(masked, torch.tensor([[value, 1.0]]))
    assert masked.mean_gradient is not None
    assert masked.mean_gradient.tolist()[0] == pytest.approx([0.99 + 2, 0.0099 + 0.01])


class Held:
    """Keeps the snapshot of one step, and gives it to the next search."""

    place = None

    def __init__(self, step: int, held: Snapshot | None = None) -> None:
        self.step, self.held = step, held

    def last(self, settings: Mapping[str, Any]) -> Snapshot | None:
        return self.held

    def due(self) -> bool:
        return True

    def keep(self, snapshot: Snapshot) -> None:
        if snapshot.step == self.step:
            tensors = {name: tensor.clone() for name, tensor in snapshot.tensors.items()}
            self.held = Snapshot(snapshot.step, snapshot.numbers, tensors)


@pytest.mark.parametrize("method", ["rigl-mask", "set-mask"])
def test_every_mask_of_a_search_is_exact_and_a_resumed_one_ends_in_the_same_bytes(
    digits_data: Dataset, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = []

    def watched(masked: MaskedWeight, wish: Tensor, fraction: float) -> None:
        before = masked.scores() > ASLEEP
        exchange(masked, wish, fraction)
        after = masked.scores() > ASLEEP
        counts.append(
            (masked.density * masked.n_weights, int(before.sum()), int(after.sum()), int((before & after).sum()))
        )

    monkeypatch.setattr(module, "exchange", watched)
    held = Held(25)

    def search(keeper: Held | None) -> bytes:
        model = smask.find_masks(
            convolutional(digits_data, features=4, dropout=0.2), Batches(digits_data, batch_size=120, seed=3, shift=1),
            method=method, density=0.25, epochs=4, seed=1, checkpoints=keeper,
        )  # fmt: skip
        return smask.encode(model.state_dict(), recipe_of(model))

    whole = search(held)
    # After 10 and 20 of 44 steps: in 40 of these masks may change, and exchanges end with three quarters of them, 30.
    assert len(counts) == 2 * 2
    for wanted_count, before, after, both in counts:
        assert before == after == round(wanted_count)
        assert after - both <= round(0.1 * before)
    assert min(both - after for *_, after, both in counts) < 0
    torch.manual_seed(99)
    assert search(Held(0, held.held)) == whole
