import math

import pytest
import torch

from smask.search.scores import N_SAMPLE, MaskedWeight


def layer(shape=(6, 40), kind: str = "signed", per_channel: bool = True, density: float = 0.5) -> MaskedWeight:
    weight = torch.nn.Parameter(torch.empty(shape))
    made = MaskedWeight(weight, kind=kind, seed=3, stream=1, per_channel=per_channel, density=density, start=0.5)
    torch.manual_seed(0)
    with torch.no_grad():
        made.latent.mul_(torch.rand(shape))
    return made


@pytest.mark.parametrize("kind", ["signed", "uniform", "normal"])
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("shape", [(6, 40), (5, 3, 3, 3)])
def test_weights_and_gradients_by_hand(kind: str, per_channel: bool, shape: tuple[int, ...]) -> None:
    masked = layer(shape, kind, per_channel)
    masked.refresh(0.3)
    masked.write()
    kept = (masked.scores() > masked.threshold).float()
    assert torch.equal(masked.weight, kept * masked.base * masked.scale)
    upstream = torch.randn(shape)
    masked.weight.backward(upstream)
    masked.take_gradient()
    # The straight-through gradient of the score is upstream * base; the latent is the score times the sign.
    assert torch.allclose(masked.latent.grad, upstream * masked.base * masked.sign)
    axes = tuple(range(1, len(shape))) if per_channel else tuple(range(len(shape)))
    by_hand = (upstream * kept * masked.base).sum(axes, keepdim=True)
    assert torch.allclose(masked.scale.grad, by_hand, rtol=1e-4, atol=1e-5)
    assert masked.weight.grad is None


def test_scale_of_zero_stays_finite() -> None:
    masked = layer()
    with torch.no_grad():
        masked.scale[2] = 0
    masked.write()
    masked.weight.sum().backward()
    masked.take_gradient()
    assert torch.isfinite(masked.scale.grad).all()


def test_a_module_may_be_used_twice_or_not_at_all() -> None:
    linear = torch.nn.Linear(8, 8, bias=False)
    masked = MaskedWeight(linear.weight, kind="signed", seed=0, stream=0, per_channel=True, density=0.5, start=0.5)
    masked.refresh(0.5)
    masked.write()
    linear(linear(torch.rand(2, 8))).sum().backward()
    masked.take_gradient()
    assert torch.isfinite(masked.latent.grad).all()
    masked.take_gradient()
    assert masked.latent.grad is None


@pytest.mark.parametrize("density", [0.02, 0.5, 1.0])
def test_threshold_of_a_large_layer_whose_columns_differ(density: float) -> None:
    masked = layer((500, 784))
    # Scores that depend on the column: an even stride that divides 784 would judge them wrongly.
    scores = torch.rand(500, 784) * torch.linspace(0, 1, 784)
    with torch.no_grad():
        masked.latent.copy_(scores * masked.sign)
    masked.refresh(density)
    kept = float((scores > masked.threshold).float().mean())
    assert abs(kept - density) < 5 * math.sqrt(density * (1 - density) / N_SAMPLE) + 1e-9


@pytest.mark.parametrize("density", [0.0001, 0.1, 0.5, 1.0])
def test_export_counts_exactly(density: float) -> None:
    masked = layer(density=density)
    scores = masked.scores().flatten()
    mask = masked.fix()
    n_kept = max(1, round(density * 240))
    assert int(mask.sum()) == n_kept
    if n_kept < 240:
        assert scores[mask].min() >= scores[~mask].max()
    masked.write()
    assert torch.equal(masked.weight, mask.view(6, 40) * masked.base * masked.scale)


def test_equal_scores_are_kept_in_order_of_index() -> None:
    masked = layer(density=0.25)
    with torch.no_grad():
        masked.latent.copy_(masked.sign)
    assert masked.fix().nonzero().flatten().tolist() == list(range(60))
