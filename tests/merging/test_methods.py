"""Each method on the ΔW of one layer: against peft on dense ΔW, closed forms and what the papers promise."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.utils import merge_utils as peft

from likeness.lora.delta import LowRankDelta
from likeness.merging.breadcrumbs import breadcrumb, breadcrumbs
from likeness.merging.dare import dare, dare_ties, drop_and_rescale
from likeness.merging.della import della, keep_probability, magprune
from likeness.merging.karcher import karcher
from likeness.merging.knots import knots
from likeness.merging.methods import METHODS
from likeness.merging.model_stock import model_stock, ratio
from likeness.merging.options import MergeOptions
from likeness.merging.slerp import slerp
from likeness.merging.stack import LayerStack
from likeness.merging.ties import Votes, disjoint_mean, elect_sign, ties
from likeness.merging.trim import magnitude_at, magnitude_prune, total, trim

ONES = torch.ones


def stack_of(n: int, seed: int, shape: tuple[int, ...] = (7, 9)) -> torch.Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed))


def chances(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def gram_of(deltas: torch.Tensor) -> torch.Tensor:
    flat = deltas.flatten(1).double()
    return flat @ flat.T


many = {
    "n": st.integers(1, 5),
    "seed": st.integers(0, 10**6),
    "density": st.floats(0.05, 1.0),
    "majority": st.sampled_from(["total", "frequency"]),
}


@settings(max_examples=30, deadline=None)
@given(**many)
def test_ties_is_pefts(n: int, seed: int, density: float, majority: str) -> None:
    """Fails if trimming keeps another number, the election counts otherwise, or the mean is over all and not those that
    agree: peft agrees where weights are 1."""
    deltas = stack_of(n, seed)
    theirs = peft.ties(list(deltas), ONES(n), min(density, 1 - 1e-9), majority)
    assert torch.allclose(ties(deltas, min(density, 1 - 1e-9), majority), theirs, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 4), seed=st.integers(0, 10**6), density=st.floats(0.05, 0.99))
def test_dare_and_magnitude_are_pefts(n: int, seed: int, density: float) -> None:
    """Fails if what stays is not divided by the density, or another number stays: the same draws as peft's."""
    deltas = stack_of(n, seed)
    torch.manual_seed(seed)
    theirs = peft.dare_linear(list(deltas), ONES(n), density)
    assert torch.allclose(dare(deltas, density, chances(seed) * n), theirs, atol=1e-5)
    torch.manual_seed(seed)
    theirs = peft.dare_ties(list(deltas), ONES(n), density, "frequency")
    assert torch.allclose(dare_ties(deltas, density, "frequency", chances(seed) * n), theirs, atol=1e-5)
    theirs = peft.magnitude_prune(list(deltas), ONES(n), density)
    assert torch.allclose(magnitude_prune(deltas, density), theirs, atol=1e-5)


def test_ties_by_hand() -> None:
    """Fails if the larger movement does not win in `total`, the more LoRAs in `frequency`, or a tie is not +."""
    deltas = torch.tensor([[5.0, -1.0, 1.0], [-1.0, -1.0, -1.0], [-2.0, 4.0, 0.0]])
    assert ties(deltas, 1.0, "total").tolist() == [5.0, 4.0, 1.0]
    assert ties(deltas, 1.0, "frequency").tolist() == [-1.5, -1.0, 1.0]
    with pytest.raises(ValueError, match="majority"):
        elect_sign(Votes(deltas), "most")


def test_ties_differs_from_peft_and_mergekit_as_said() -> None:
    """Fails if a weight does not turn and scale its vote: peft elects without weights (here +, so that the answer is
    5), mergekit divides by the sum of the agreeing weights (here 1)."""
    one, other, weights = torch.tensor([5.0]), torch.tensor([-4.0]), torch.tensor([0.5, 1.0])
    ours = ties(torch.stack([one * 0.5, other]), 1.0)
    assert ours.tolist() == [-4.0]
    assert peft.ties([torch.cat([one, one * 0]), torch.cat([other, other * 0])], weights, 0.5)[0] == 2.5
    pair = torch.stack([one * 0.5, -other])  # both +: Σwτ / count, where mergekit has Σwτ / Σw = 4.33
    assert ties(pair, 1.0).tolist() == [3.25]
    negated = ties(torch.stack([-one, other]), 1.0)
    assert negated.tolist() == [-4.5]


@settings(max_examples=25, deadline=None)
@given(**many)
def test_order_and_scale_do_not_matter(n: int, seed: int, density: float, majority: str) -> None:
    """Fails if a method depends on which LoRA comes first, or is not linear in a common scale."""
    deltas = stack_of(n, seed)
    turned = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    for merge in (
        lambda d: ties(d, density, majority),
        lambda d: magnitude_prune(d, density),
        lambda d: breadcrumbs(d, 0.1, 0.1 + 0.9 * density),
    ):
        assert torch.allclose(merge(deltas), merge(deltas[turned]), atol=1e-5)
        factor = -4.0 if majority == "total" else 4.0  # a tie of the frequency is +, either way round
        assert torch.allclose(merge(deltas * factor), factor * merge(deltas), atol=1e-4)
    weights = torch.rand(n, generator=torch.Generator().manual_seed(seed)).double() + 0.1
    for weigh in (karcher, model_stock):
        gram = gram_of(deltas)
        turned_to = weigh(gram[turned][:, turned], weights[turned])
        assert torch.allclose(weigh(gram, weights)[turned], turned_to, atol=1e-8)
        assert torch.allclose(weigh(gram, weights), weigh(gram * 9, weights), atol=1e-8)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), copies=st.integers(1, 4))
def test_one_lora_stays_itself(seed: int, copies: int) -> None:
    """Fails if a method that takes a mean does not give back what all LoRAs are, or a sum not their sum."""
    delta = stack_of(1, seed)
    same = delta.expand(copies, -1, -1).contiguous()
    assert torch.allclose(ties(same, 1.0), delta[0], atol=1e-6)
    assert torch.allclose(dare_ties(same, 1.0, "total", chances(*range(copies))), delta[0], atol=1e-6)
    assert torch.allclose(della(same, 1.0, 0.0, "total", chances(*range(copies))), delta[0], atol=1e-6)
    for summed in (
        dare(same, 1.0, chances(*range(copies))),
        magnitude_prune(same, 1.0),
        breadcrumbs(same, 0.0, 1.0),
    ):
        assert torch.allclose(summed, copies * delta[0], atol=1e-5)
    ones = torch.ones(copies, dtype=torch.float64)
    for weigh in (karcher, model_stock):
        assert float(weigh(gram_of(same), ones).sum()) == pytest.approx(1, abs=1e-6)


def test_dares_mean_and_variance() -> None:
    """Fails if the expectation is not ΔW, or the variance not ΔW²(1 − d)/d: means over 4000 draws, five σ wide."""
    delta, density, draws = torch.tensor([1.0, -2.0, 0.5]), 0.3, 4000
    generator = torch.Generator().manual_seed(5)
    drawn = torch.stack([drop_and_rescale(delta, density, generator) for _ in range(draws)])
    variance = delta**2 * (1 - density) / density
    assert ((drawn.mean(0) - delta).abs() < 5 * (variance / draws).sqrt()).all()
    assert torch.allclose(drawn.var(0), variance, rtol=0.15)


def test_dellas_probabilities_and_mean() -> None:
    """Fails if small entries are not dropped more often, ranks are not within a row, or what stays is not divided by
    its own probability."""
    delta = torch.tensor([[0.1, -3.0, 0.2, 1.0, -0.5], [9.0, 8.0, -7.0, 6.0, 5.0]])
    probability = keep_probability(delta, 0.5, 0.4)
    assert torch.allclose(probability[0], torch.tensor([0.3, 0.7, 0.4, 0.6, 0.5]))
    assert torch.allclose(probability[1], torch.tensor([0.7, 0.6, 0.5, 0.4, 0.3]))
    draws = 4000
    generator = torch.Generator().manual_seed(6)
    drawn = torch.stack([magprune(delta, 0.5, 0.4, generator) for _ in range(draws)])
    error = (delta**2 * (1 - probability) / probability / draws).sqrt()
    assert ((drawn.mean(0) - delta).abs() < 5 * error).all()
    assert torch.allclose((drawn != 0).float().mean(0), probability, atol=0.05)
    with pytest.raises(ValueError, match="epsilon"):
        keep_probability(delta, 0.9, 0.4)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), density=st.floats(0.1, 0.9))
def test_della_without_range_is_dare_ties(seed: int, density: float) -> None:
    """Fails if the middle probability is not the density, or the fusing differs from TIES'."""
    deltas = stack_of(3, seed)
    ours = della(deltas, density, 0.0, "total", chances(1, 2, 3))
    assert torch.allclose(ours, dare_ties(deltas, density, "total", chances(1, 2, 3)), atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), beta=st.floats(0, 0.9), width=st.floats(0.05, 1))
def test_breadcrumbs_keeps_the_middle(seed: int, beta: float, width: float) -> None:
    """Fails if the largest stay, or the smallest: against ranks by numpy."""
    delta = stack_of(1, seed)[0]
    gamma = min(1.0, beta + width)
    ranks = np.abs(delta.numpy()).ravel().argsort().argsort()
    n = delta.numel()
    wanted = (ranks >= int(beta * n)) & (ranks < n - int(n - gamma * n))
    assert ((breadcrumb(delta, beta, gamma).numpy().ravel() != 0) == wanted).all()
    with pytest.raises(ValueError, match="beta"):
        breadcrumb(delta, gamma, beta)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), density=st.floats(0.001, 1))
def test_the_limit_of_a_whole_model(seed: int, density: float) -> None:
    """Fails if layers are trimmed apart, or the bits are not sorted as numbers: against numpy's sort of everything."""
    layers = [stack_of(1, seed + i, (3 + i, 5))[0] * 10.0 ** (i - 2) for i in range(5)]
    everything = np.sort(np.abs(np.concatenate([layer.numpy().ravel() for layer in layers])))[::-1]
    wanted = int(density * len(everything))
    expected = 0.0 if density == 1 else everything[wanted - 1] if wanted else math.inf
    assert magnitude_at(lambda: layers, density) == expected


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), t=st.floats(0.01, 0.99))
def test_slerp_and_karcher_of_two(seed: int, t: float) -> None:
    """Fails if the direction is not SLERP's of the unit ΔW (numpy), the norm not between, or Karcher's mean of two is
    another point of the same arc."""
    deltas = stack_of(2, seed) * torch.tensor([1.0, 3.0])[:, None, None]
    a, b = (d.double().numpy() for d in deltas)
    na, nb = np.linalg.norm(a), np.linalg.norm(b)
    angle = np.arccos((a * b).sum() / na / nb)
    direction = (np.sin((1 - t) * angle) * a / na + np.sin(t * angle) * b / nb) / np.sin(angle)
    expected = direction * ((1 - t) * na + t * nb)
    weights = torch.tensor([1 - t, t], dtype=torch.float64)
    for weigh in (slerp, karcher):
        for strength in (1.0, 7.0):
            c = weigh(gram_of(deltas), weights * strength).numpy()
            assert np.allclose(c[0] * a + c[1] * b, expected, atol=1e-6)
        c = weigh(gram_of(deltas), weights * torch.tensor([1.0, -1.0])).numpy()  # −b takes part
        d = weigh(gram_of(deltas * torch.tensor([1.0, -1.0])[:, None, None]), weights).numpy()
        assert np.allclose(c, d * [1, -1], atol=1e-8)


def test_slerps_ends() -> None:
    """Fails if the ends are not the LoRAs themselves, or parallel, opposite and missing ones divide by 0."""
    deltas = stack_of(2, 3)
    gram = gram_of(deltas)
    assert slerp(gram, torch.tensor([2.0, 0.0]).double()).tolist() == pytest.approx([1, 0])
    assert slerp(gram, torch.tensor([0.0, 2.0]).double()).tolist() == pytest.approx([0, 1])
    for weigh in (slerp, karcher):
        same = weigh(gram_of(torch.stack([deltas[0], 3 * deltas[0]])), torch.ones(2).double())
        assert float(same @ torch.tensor([1.0, 3.0]).double()) == pytest.approx(2)
        opposite = weigh(gram_of(torch.stack([deltas[0], -deltas[0]])), torch.ones(2).double())
        assert torch.isfinite(opposite).all()
        missing = weigh(gram_of(torch.stack([deltas[0], 0 * deltas[0]])), torch.ones(2).double())
        assert missing.tolist() == pytest.approx([0.5, 0])
        with pytest.raises(ValueError, match="all weights are 0"):
            weigh(gram, torch.zeros(2).double())
    with pytest.raises(ValueError, match="karcher"):
        slerp(gram_of(stack_of(3, 1)), torch.ones(3).double())


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(2, 6))
def test_karcher_is_the_nearest_point(seed: int, n: int) -> None:
    """Fails if another point near it has a smaller weighted sum of squared angles: its definition."""
    generator = torch.Generator().manual_seed(seed)
    deltas = torch.randn(n, 12, generator=generator).double() + 1.5
    weights = torch.rand(n, generator=generator).double() + 0.1
    units = deltas / deltas.norm(dim=1, keepdim=True)
    mean = karcher(gram_of(deltas), weights) @ deltas

    def cost(point: torch.Tensor) -> float:
        return float((weights * torch.arccos((units @ (point / point.norm())).clamp(-1, 1)) ** 2).sum())

    for _ in range(20):
        nudge = torch.randn(12, generator=generator).double() * 0.01 * mean.norm()
        assert cost(mean) <= cost(mean + nudge) + 1e-12
    share = weights / weights.sum()
    assert float(mean.norm()) == pytest.approx(float((share * deltas.norm(dim=1)).sum()))


def test_model_stock_is_the_foot_of_the_perpendicular() -> None:
    """Fails if t is not where the line from the base to the mean of samples of equal norm and angle is nearest to their
    centre: points m + eᵢ with orthogonal eᵢ of equal length, whose centre is m."""
    n = 4
    for size in (0.3, 2.0):
        centre = torch.zeros(9).double()
        centre[0] = 1.0
        samples = centre + size * torch.eye(9).double()[1 : n + 1]
        merged = model_stock(gram_of(samples), torch.ones(n).double()) @ samples
        mean = samples.mean(0)
        nearest = mean * float(mean @ centre) / float(mean @ mean)
        assert torch.allclose(merged, nearest, atol=1e-9)
    assert ratio(1.0, 3) == 1 and ratio(0.0, 3) == ratio(-0.2, 3) == 0


def test_model_stock_leaves_out_what_is_not_there() -> None:
    """Fails if a LoRA without the layer counts as a sample at the base, or a weight is not applied."""
    deltas = stack_of(3, 2) + 1
    deltas[1] = 0
    two = model_stock(gram_of(deltas[[0, 2]] * torch.tensor([1.0, -2.0])[:, None, None]), torch.ones(2).double())
    three = model_stock(gram_of(deltas), torch.tensor([1.0, 5.0, -2.0]).double())
    assert three.tolist() == pytest.approx([float(two[0]), 0, -2 * float(two[1])])
    assert model_stock(gram_of(deltas[:1]), torch.tensor([0.7]).double()).tolist() == pytest.approx([0.7])


@pytest.mark.parametrize("shape", [(20, 30), (8, 30)])  # factors, and where Σr is no less than a side
def test_knots_against_numpys_svd(shape: tuple[int, int]) -> None:
    """Fails if the basis is another one than the SVD's of [ΔW₁ | ΔW₂], or weights or scales are left out of it."""
    parts = []
    for seed, rank in ((1, 3), (2, 5)):
        up, down = stack_of(1, seed, (shape[0], rank))[0], stack_of(1, seed + 9, (rank, shape[1]))[0]
        parts.append(LowRankDelta(up, down, 0.5, "linear"))
    stack = LayerStack("x", (parts[0], None, parts[1]), (1.0, 3.0, -0.7))
    assert stack.is_small == (shape[0] == 20)
    up, down = knots(stack, lambda rights: ties(rights, 0.4))
    deltas = [parts[0].dense().double().numpy(), -0.7 * parts[1].dense().double().numpy()]
    u, s, v = np.linalg.svd(np.concatenate(deltas, 1), full_matrices=False)
    k = int((s > 1e-5).sum())
    rights = torch.tensor((s[:k, None] * v[:k]).reshape(k, 2, -1).transpose(1, 0, 2).astype(np.float32))
    expected = u[:, :k] @ ties(rights, 0.4).double().numpy()
    assert up.shape[1] == k and np.allclose((up @ down).numpy(), expected, atol=1e-4)
    up, down = knots(stack, total)
    assert np.allclose((up @ down).numpy(), sum(deltas), atol=1e-4)


def test_more_loras_than_a_byte_counts() -> None:
    """Fails if the numbers of LoRAs on either side of 0 wrap round above 127: 200 of +1 against 100 of −4."""
    deltas = [torch.tensor([1.0 if i % 3 else -4.0]) for i in range(300)]
    votes = Votes(deltas)
    assert (votes.above.tolist(), votes.below.tolist()) == ([200], [100])
    assert ties(deltas, 1.0, "frequency").tolist() == [1.0] and ties(deltas, 1.0).tolist() == [-4.0]


def test_trim_by_hand_and_refusals() -> None:
    """Fails if the smallest stay, or a density of 0 or 20 (per cent) is taken."""
    assert trim(torch.tensor([[3.0, -1.0], [-4.0, 2.0]]), 0.5).tolist() == [[3, 0], [-4, 0]]
    for density in (0.0, 20.0, math.nan):
        with pytest.raises(ValueError, match="density"):
            trim(torch.ones(3), density)
    assert disjoint_mean(Votes(torch.tensor([[0.0], [2.0]])), torch.tensor([1.0])).tolist() == [2.0]


@pytest.mark.parametrize("density", [1 / 8, 37 / 64, 3 / 4])
@pytest.mark.parametrize("outliers", [0.0, 1 / 128, 3 / 16])
def test_breadcrumbs_options_are_mergekits(density: float, outliers: float) -> None:
    """Fails if density and outliers do not keep as many as mergekit does, which cuts ⌊outliers · n⌋ of the largest and
    leaves ⌊density · n⌋, one more or less by the rounding of β."""
    delta = stack_of(1, 8, (20, 50))
    options = MergeOptions("breadcrumbs", density=density, outliers=outliers)
    stacked = METHODS["breadcrumbs"].stacked
    assert stacked is not None
    kept = stacked(delta, options, [])
    assert abs(int((kept != 0).sum()) - int(density * 1000)) <= 1
    assert float(kept.abs().max()) == float(delta.abs().flatten().sort(descending=True).values[int(outliers * 1000)])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), t=st.floats(0.01, 0.99))
def test_slerp_is_mergekits_where_norms_are_equal(seed: int, t: float) -> None:
    """Fails if the sines differ from those that mergekit puts on the ΔW themselves; with norms 1 and 3 both differ."""
    units = torch.nn.functional.normalize(stack_of(2, seed).flatten(1).double(), dim=1)
    angle = torch.arccos((units[0] * units[1]).sum())
    theirs = torch.stack([((1 - t) * angle).sin(), (t * angle).sin()]) / angle.sin()
    weights = torch.tensor([1 - t, t], dtype=torch.float64)
    assert torch.allclose(slerp(gram_of(5 * units), weights), theirs, atol=1e-7)
    unequal = units * torch.tensor([[1.0], [3.0]])
    assert not torch.allclose(slerp(gram_of(unequal), weights), theirs, atol=1e-3)
    assert float((slerp(gram_of(unequal), weights) @ unequal).norm()) == pytest.approx(1 - t + 3 * t)


def test_rescaling_differs_from_mergekit_as_said() -> None:
    """Fails if DARE or DELLA match a norm, as mergekit does, in place of dividing by the probability: then what stays
    would not be a fixed multiple of what was."""
    delta = stack_of(1, 4, (6, 30))[0]
    dropped = drop_and_rescale(delta, 0.25, torch.Generator().manual_seed(1))
    assert torch.allclose(dropped[dropped != 0], 4 * delta[dropped != 0])
    assert float(dropped.abs().sum()) != pytest.approx(float(delta.abs().sum()), rel=1e-3)
    pruned, probability = magprune(delta, 0.5, 0.4, torch.Generator().manual_seed(1)), keep_probability(delta, 0.5, 0.4)
    assert torch.allclose(pruned[pruned != 0], (delta / probability)[pruned != 0])
    assert (float(probability.min()), float(probability.max())) == pytest.approx((0.3, 0.7))  # mergekit: 0.1 and 0.9


def test_inner_products_and_norms_from_factors() -> None:
    """Fails if a scale or weight is left out where no ΔW is made: two pairs of different ranks and scales, a whole ΔW
    and a missing one, against numpy on the dense ΔW; a SLERP or Karcher mean would be another one."""
    pairs = [
        LowRankDelta(stack_of(1, i, (9, r))[0], stack_of(1, i + 5, (r, 11))[0], scale, "linear")
        for i, (r, scale) in enumerate([(2, 0.5), (3, -4.0)])
    ]
    stack = LayerStack("x", (pairs[0], stack_of(1, 20, (9, 11))[0], None, pairs[1]), (1.0, -2.0, 1.0, 0.25))
    deltas = np.stack([stack.delta(i).double().numpy().ravel() for i in range(4)])
    scaled = pairs[1].up.double() @ pairs[1].down.double() * -4.0
    assert np.allclose(deltas[3], scaled.numpy().ravel(), atol=1e-4)
    assert np.allclose(stack.gram().numpy(), deltas @ deltas.T, rtol=1e-5, atol=1e-3)
    assert stack.norms() == pytest.approx(np.abs(stack.weights) * np.linalg.norm(deltas, axis=1), rel=1e-5)
    assert (stack.ranks, stack.rank_sum, stack.used) == ((2, None, 0, 3), None, (0, 1, 3))
