import math

import pytest
import torch

from smask.coded import parameter_problem
from smask.search.finish import Floats, coded_tensors
from smask.search.initialisation import masked_weights
from smask.search.methods import INITIAL_WIDTH, METHODS, N_BETWEEN_SCALES, PACE_OF_SCALES, REACH, keep_in_reach
from smask.search.objective import Objective
from smask.search.optimizer import optimizer_of
from smask.search.sample import N_SAMPLE
from smask.search.schedule import Schedule
from smask.search.scores import MaskedWeight
from smask.search.steps import Search
from smask.search.weights import Maskable


def layer(shape=(6, 40), kind: str = "signed", per_channel: bool = True, density: float = 0.5, method="single") -> MaskedWeight:  # fmt: skip
    weight = torch.nn.Parameter(torch.empty(shape))
    made = MaskedWeight(
        weight,
        METHODS[method],
        kind=kind,
        seed=3,
        stream=1,
        per_channel=per_channel,
        density=density,
        fan_in=0.5 * weight[0].numel(),
    )
    torch.manual_seed(0)
    with torch.no_grad():
        made.latent.mul_(torch.rand(shape))
    return made


@torch.no_grad()
def write(masked: MaskedWeight) -> None:
    masked.write()


@torch.no_grad()
def grade(masked: MaskedWeight) -> None:
    masked.grade()


@torch.no_grad()
def take_gradient(masked: MaskedWeight) -> None:
    masked.take_gradient()


@pytest.mark.parametrize("kind", ["signed", "uniform", "normal"])
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("shape", [(6, 40), (5, 3, 3, 3)])
def test_weights_and_gradients_by_hand(kind: str, per_channel: bool, shape: tuple[int, ...]) -> None:
    masked = layer(shape, kind, per_channel)
    masked.refresh(0.3)
    write(masked)
    kept = (masked.scores() > masked.threshold[0]).float()
    assert torch.equal(masked.weight, kept * masked.base * masked.scale)
    upstream = torch.randn(shape)
    masked.weight.backward(upstream)
    take_gradient(masked)
    # The straight-through gradient of the score is upstream * base; the latent is the score times the sign.
    assert torch.allclose(masked.latent.grad, upstream * masked.base * masked.sign)
    axes = tuple(range(1, len(shape))) if per_channel else tuple(range(len(shape)))
    by_hand = (upstream * kept * masked.base).sum(axes, keepdim=True)
    assert torch.allclose(masked.scale.grad, by_hand, rtol=1e-4, atol=1e-5)
    assert masked.weight.grad is None


@pytest.mark.parametrize("threshold", [(0.1, 0.4, 0.7), (0.2, 0.5, 0.5), (-math.inf, -math.inf, 0.5)])
@pytest.mark.parametrize("method", ["coats", "multicoat"])
@pytest.mark.parametrize("kind", ["signed", "normal"])
def test_weights_of_three_coats_by_hand(kind: str, method: str, threshold: tuple[float, ...]) -> None:
    masked = layer(kind=kind, method=method)
    masked.threshold = threshold
    grade(masked)
    write(masked)
    levels = sum((masked.scores() > at).float() for at in threshold)
    assert torch.equal(masked.weight, levels * masked.base * masked.scale)


@pytest.mark.parametrize("method", ["coats", "multicoat", "edge-popup"])
def test_first_weights_have_the_spread_of_he_whatever_their_levels(method: str) -> None:
    weight = torch.nn.Parameter(torch.empty(50, 400))
    (masked,) = masked_weights({"w": Maskable(weight, 400)}, {"w": 0.1}, METHODS[method]).values()
    masked.refresh(0.1)
    grade(masked)
    write(masked)
    assert float(weight.detach().square().sum(1).mean()) == pytest.approx(2, rel=0.1)


def test_levels_stay_for_some_steps_and_masks_do_not() -> None:
    masked = layer(method="coats")
    masked.refresh(0.5)
    grade(masked)
    before, ranks = (masked.graded / masked.base).clone(), masked.scores()
    assert before.unique().tolist() == [1.0, 2.0, 3.0]
    with torch.no_grad():
        masked.latent.copy_(ranks.flip(0) * masked.sign)
    write(masked)
    kept = masked.scores() > masked.threshold[0]
    assert torch.equal(masked.weight, kept * before * masked.base * masked.scale)
    other = layer(method="coats")
    other.restore(masked.tensors(), levels=None)
    write(other)
    assert torch.equal(other.weight, masked.weight)
    grade(masked)
    assert torch.equal(masked.graded / masked.base, before.flip(0))


def test_a_channel_without_weights_says_nothing_once_masks_are_fixed() -> None:
    masked = layer()
    masked.bias = torch.nn.Parameter(torch.arange(1.0, 7.0))
    masked.refresh(0.5)
    write(masked)
    assert masked.bias.tolist() == [1, 2, 3, 4, 5, 6]
    levels = torch.zeros(6, 40, dtype=torch.uint8)
    levels[1, 3], levels[4, :5] = 1, 1
    masked.keep(levels.flatten())
    for _ in range(2):  # whatever the optimiser makes of them
        write(masked)
        assert masked.bias.tolist() == [0, 2, 0, 0, 5, 0]
        masked.bias.data += 1
        masked.bias.data[[1, 4]] -= 1
    coded = coded_tensors({"w": masked}, {"w": levels.flatten()}, Floats(torch.bfloat16, 4))["w"]
    assert (coded.scale != 0).tolist() == [False, True, False, False, True, False]


def test_scale_of_zero_stays_finite() -> None:
    masked = layer()
    with torch.no_grad():
        masked.scale[2] = 0
    masked.refresh(0.5)
    write(masked)
    masked.weight.sum().backward()
    take_gradient(masked)
    by_hand = ((masked.scores() > masked.threshold[0]) * masked.base).sum(1)
    by_hand[2] = 0  # where it stays, as a silent channel has to
    assert torch.allclose(masked.scale.grad.flatten(), by_hand, rtol=1e-5)


def test_a_scale_too_small_for_the_format_is_zero() -> None:
    """A key that nothing asks for: its scale wanders through zero, and a search of hours must not end in an error."""
    masked = layer()
    with torch.no_grad():
        masked.scale[:, 0] = torch.tensor([1e-22, -1e-22, 0.5, 2.0**-64, -(2.0**-64), 0.0])
    coded = coded_tensors({"w": masked}, {"w": torch.ones(240, dtype=torch.uint8)}, Floats(torch.bfloat16, 4))["w"]
    assert coded.scale.tolist() == [0.0, 0.0, 0.5, 2.0**-64, -(2.0**-64), 0.0]
    assert parameter_problem(coded) is None


def test_a_module_may_be_used_twice_or_not_at_all() -> None:
    linear = torch.nn.Linear(8, 8, bias=False)
    masked = MaskedWeight(
        linear.weight, METHODS["single"], kind="signed", seed=0, stream=0, per_channel=True, density=0.5, fan_in=4
    )
    masked.refresh(0.5)
    write(masked)
    linear(linear(torch.rand(2, 8))).sum().backward()
    take_gradient(masked)
    assert torch.isfinite(masked.latent.grad).all()
    take_gradient(masked)
    assert masked.latent.grad is None


@pytest.mark.parametrize("density", [0.02, 0.5, 1.0])
def test_threshold_of_a_large_layer_whose_columns_differ(density: float) -> None:
    masked = layer((500, 784))
    # Scores that depend on the column: an even stride that divides 784 would judge them wrongly.
    scores = torch.rand(500, 784) * torch.linspace(0, 1, 784)
    with torch.no_grad():
        masked.latent.copy_(scores * masked.sign)
    masked.refresh(density)
    kept = float((scores > masked.threshold[0]).float().mean())
    assert abs(kept - density) < 5 * math.sqrt(density * (1 - density) / N_SAMPLE) + 1e-9


@pytest.mark.parametrize("kind", ["signed", "normal"])
def test_no_score_sinks_out_of_reach(kind: str) -> None:
    masked = layer((2, 2), kind)
    with torch.no_grad():
        masked.latent.copy_(torch.tensor([[0.5, 0.2], [-0.3, 0.09]]) * masked.sign)
    keep_in_reach({"w": masked}, {"w": 0.5})
    assert list(masked.threshold) == pytest.approx([0.09])
    assert masked.scores().flatten().tolist() == pytest.approx([0.5, 0.2, 0.07, 0.09])
    write(masked)
    assert (masked.weight != 0).tolist() == [[True, True], [False, False]]
    keep_in_reach({"w": masked}, {"w": 1.0})  # all are in the mask: nothing to lift
    assert masked.scores().flatten().tolist() == pytest.approx([0.5, 0.2, 0.07, 0.09])


def test_scales_step_faster_than_scores_where_the_method_says_so() -> None:
    """The first step of Adam is as long as its rate, whatever the gradient is."""
    for method, pace in (("coats", PACE_OF_SCALES), ("edge-popup", 1.0)):
        linear = torch.nn.Linear(4, 3, bias=False)
        masked = MaskedWeight(
            linear.weight, METHODS[method], kind="signed", seed=0, stream=0, per_channel=True, density=1.0, fan_in=4
        )
        search = Search(linear, {"weight": masked}, Schedule.of(10, lr=1e-3, hold=0, settle=0.1))
        scores, scales = masked.latent.detach().clone(), masked.scale.detach().clone()
        search.step([(torch.rand(8, 4), torch.rand(8, 3))], Objective(torch.nn.functional.mse_loss))
        assert (masked.scale - scales).abs().flatten().tolist() == pytest.approx([1e-3 * pace] * 3, rel=1e-2)
        assert (masked.latent - scores).abs().flatten().tolist() == pytest.approx([1e-3] * 12, rel=1e-2)


@pytest.mark.parametrize("method", ["single", "edge-popup"])
def test_scales_step_when_it_is_their_turn(method: str) -> None:
    """Of a fixed mask only floats are left to be trained: there they step every time."""
    linear = torch.nn.Linear(4, 3, bias=False)
    masked = MaskedWeight(
        linear.weight, METHODS[method], kind="signed", seed=0, stream=0, per_channel=True, density=0.5, fan_in=4
    )
    with torch.no_grad():
        masked.latent.mul_(torch.rand(3, 4))
    search = Search(linear, {"weight": masked}, Schedule.of(12, lr=1e-3, hold=0.2, settle=0.5))
    moved = []
    for _ in range(12):
        before = masked.scale.detach().clone()
        search.step([(torch.rand(8, 4), torch.rand(8, 3))], Objective(torch.nn.functional.mse_loss))
        moved.append(not torch.equal(before, masked.scale))
    every = METHODS[method].n_between_scales
    assert every == (N_BETWEEN_SCALES if method == "single" else 1)
    assert moved == [step % every == 0 or step >= search.schedule.n_search for step in range(12)]


def fixed(masked: MaskedWeight) -> torch.Tensor:
    module = torch.nn.Module()
    module.weight = masked.weight
    search = Search(module, {"weight": masked}, Schedule.of(10, lr=1e-3, hold=0, settle=0.1))
    return search.fix()["weight"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("density", [0.0001, 0.1, 0.5, 1.0])
def test_export_counts_exactly(density: float, method: str) -> None:
    masked = layer(density=density, method=method)
    ranks = masked.scores().flatten()
    levels = fixed(masked)
    n_kept = max(1, round(density * 240))
    assert int((levels > 0).sum()) == n_kept
    n_coats = METHODS[method].n_coats
    assert [int((levels >= coat).sum()) for coat in range(1, n_coats + 1)] == [
        -(-int((levels > 0).sum()) * (n_coats + 1 - coat) // n_coats) for coat in range(1, n_coats + 1)
    ]
    if 0 < int((levels > 0).sum()) < 240:
        assert ranks[levels > 0].min() >= ranks[levels == 0].max()  # these scores are positive: so are their magnitudes
    write(masked)
    assert torch.equal(masked.weight, levels.view(6, 40) * masked.base * masked.scale)


def test_equal_scores_are_kept_in_order_of_index() -> None:
    masked = layer(density=0.25)
    with torch.no_grad():
        masked.latent.copy_(masked.sign)
    assert fixed(masked).nonzero().flatten().tolist() == list(range(60))


def test_no_threshold_hides_all_weights() -> None:
    for method in METHODS:
        masked = layer(density=1e-6, method=method)
        METHODS[method].balance({"weight": masked}, {"weight": 1e-6})
        write(masked)
        if not method.startswith("bernoulli"):
            assert int((masked.weight != 0).sum()) >= 1, method


def gradient_of(masked: MaskedWeight, upstream: torch.Tensor) -> torch.Tensor:
    write(masked)
    masked.weight.backward(upstream.clone())
    take_gradient(masked)
    return masked.latent.grad * masked.sign  # of the scores


@pytest.mark.parametrize("kind", ["signed", "normal"])
def test_gradients_of_the_papers(kind: str) -> None:
    """Each by autograd over its formula in scores, with the scale left out."""
    upstream = torch.randn(6, 40)
    for method in ("edge-popup", "bernoulli-expected", "signed", "multicoat", "bernoulli-tutorial"):
        masked = layer(kind=kind, method=method, density=0.3)
        with torch.no_grad():
            masked.latent.mul_(torch.where(torch.rand(6, 40) < 0.5, -1, 1))
        METHODS[method].balance({"weight": masked}, {"weight": 0.3})
        scores = masked.scores().requires_grad_()
        if method == "bernoulli-expected":
            weights = masked.base * ((scores - masked.threshold[0]) / 0.05).sigmoid() * 0.05
        elif method == "bernoulli-tutorial":
            p = ((scores - masked.threshold[0]) / 0.05).sigmoid().detach()
            weights = masked.base * scores * p
        elif method == "signed":
            weights = masked.base * scores
        else:
            weights = masked.base * scores.abs()
        (by_hand,) = torch.autograd.grad(weights, scores, upstream)
        assert torch.allclose(gradient_of(masked, upstream), by_hand, rtol=1e-4, atol=1e-6), method


def test_bernoulli_draws_masks_of_the_wanted_mean() -> None:
    masked = layer((200, 300), method="bernoulli")
    METHODS["bernoulli"].balance({"weight": masked}, {"weight": 0.1})
    write(masked)
    first = masked.weight.detach().clone()
    write(masked)
    assert float((first != 0).float().mean()) == pytest.approx(0.1, abs=0.01)
    assert not torch.equal(first != 0, masked.weight != 0)


@pytest.mark.parametrize(
    ("lr", "n_steps", "stride"), [(1e-3, 10, 1.0), (3e-4, 10, 0.3), (1e-2, 1000, 10.0), (1e-2, 100, 2.3), (1e-2, 10, 1.0)]
)  # fmt: skip
def test_distances_between_scores_follow_the_rate(lr: float, n_steps: int, stride: float) -> None:
    """As so many steps of Adam, unless a search has few of them; steps of scales do not grow."""
    schedule = Schedule.of(n_steps, lr=lr, hold=0.5, settle=0.08)
    assert schedule.stride == pytest.approx(stride)
    for name, origin in (("single", None), ("edge-popup", None), ("single", torch.ones(20, 30))):
        method, weight = METHODS[name], torch.nn.Parameter(torch.empty(20, 30))
        origins = {} if origin is None else {"w": origin}
        (layer,) = masked_weights(
            {"w": Maskable(weight, 30)}, {"w": 0.5}, method, origins=origins, stride=schedule.stride
        ).values()  # fmt: skip
        own = stride if name == "single" and origin is None else 1.0
        width = INITIAL_WIDTH if name == "single" else 1 / math.sqrt(30)
        assert 0.9 * width * own < float(layer.latent.detach().abs().max()) <= width * own
        method.balance({"w": layer}, {"w": 0.5})
        if name == "single":
            assert float(layer.scores().min()) >= layer.threshold[0] - REACH * own - 1e-6
        pace = optimizer_of([], [layer], lr=lr, n_steps=n_steps).param_groups[-1]["pace"]
        assert pace == pytest.approx(max(1.0, method.pace_of_scales / max(1.0, own)))
