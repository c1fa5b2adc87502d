"""Rounded logistics: exact probabilities, tails, moments, starts, and a VAE of grey levels."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from pyrovae import VAE, Batch, Error, fit, log_likelihood
from pyrovae.distributions import DiscretizedLogistic
from pyrovae.families import DiscretizedLogistic as Family
from pyrovae.families import DiscretizedLogisticMixture
from pyrovae.part import Part

LEVELS = torch.arange(256, dtype=torch.float64)
LOCS, SCALES = (-40.0, 0.0, 7.25, 128.0, 254.75, 300.0), (0.1, 0.8, 12.0, 500.0)


def log_probs(loc, scale, low=0, high=255, dtype=torch.float64):
    p = DiscretizedLogistic(*torch.tensor([loc, scale], dtype=dtype), low, high)
    return p.log_prob(torch.arange(low, high + 1).to(dtype))


def brute_force(loc, scale, low=0, high=255):
    """Differences of the distribution function, from whichever end has more digits."""
    edges = np.arange(low, high) + 0.5
    below = np.concatenate([[0.0], stats.logistic.cdf(edges, loc, scale), [1.0]])
    above = np.concatenate([[1.0], stats.logistic.sf(edges, loc, scale), [0.0]])
    return np.where(below[1:] < 0.5, np.diff(below), -np.diff(above))


@pytest.mark.parametrize("loc", LOCS)
@pytest.mark.parametrize("scale", SCALES)
def test_probabilities_are_differences_of_the_distribution_function(loc, scale):
    ours, brute = log_probs(loc, scale).exp().numpy(), brute_force(loc, scale)
    assert ours.sum() == pytest.approx(1, abs=1e-12)
    assert np.allclose(ours, brute, rtol=1e-6, atol=1e-300)


@pytest.mark.parametrize("loc", LOCS)
@pytest.mark.parametrize("scale", SCALES)
def test_float32_is_as_good_far_out_in_the_tails(loc, scale):
    single, double = log_probs(loc, scale, dtype=torch.float32), log_probs(loc, scale)
    assert single.exp().sum().item() == pytest.approx(1, abs=1e-5)
    assert torch.allclose(single.double(), double, rtol=3e-6, atol=1e-5)


def test_a_tail_is_a_straight_line_and_not_a_constant():
    """200 scales out: log P falls by 1/s per level, where a difference of sigmoids is 0."""
    tail = log_probs(10.0, 0.5, dtype=torch.float32)[100:255]
    assert torch.allclose(tail.diff(), torch.tensor(-2.0))


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3, 4), (1990, 2020)])
def test_the_ends_can_be_anywhere(low, high):
    ours = log_probs(low + 0.7, 0.9, low, high).exp().numpy()
    assert np.allclose(ours, brute_force(low + 0.7, 0.9, low, high), rtol=1e-9)
    assert ours.sum() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(("loc", "scale"), [(128.0, 12.0), (2.0, 4.0), (300.0, 20.0), (7.3, 0.3)])
def test_moments_and_frequencies_of_samples(loc, scale):
    p = DiscretizedLogistic(*torch.tensor([loc, scale], dtype=torch.float64))
    x, probs = p.sample((40_000,)), p.log_prob(LEVELS).exp()
    assert p.support.check(x).all()
    assert p.mean.item() == pytest.approx((probs * LEVELS).sum().item())
    assert p.variance.item() == pytest.approx((probs * (LEVELS - p.mean) ** 2).sum().item())
    assert abs(x.mean() - p.mean) < 5 * (p.variance / 40_000).sqrt()  # by chance once in 10^6
    common = probs > 1e-3
    seen = torch.bincount(x.long(), minlength=256)[common]
    pooled = torch.cat([seen, torch.tensor([40_000 - seen.sum()])]).numpy()
    expected = torch.cat([probs[common], 1 - probs[common].sum()[None]]).clamp(min=1e-12)
    expected = 40_000 * (expected / expected.sum()).numpy()
    keep = expected > 5
    chi = ((pooled - expected)[keep] ** 2 / expected[keep]).sum()
    assert chi < stats.chi2.isf(1e-5, keep.sum())  # by chance once in 10^5


def test_expands_and_broadcasts():
    loc = torch.tensor([10.0, 200.0]).double()
    p = DiscretizedLogistic(loc, torch.tensor(3.0).double()).expand((4, 2))
    assert p.batch_shape == (4, 2)
    x = p.sample((5,))
    assert x.shape == (5, 4, 2)
    assert torch.allclose(p.log_prob(x)[..., 1], log_probs(200.0, 3.0)[x[..., 1].long()])
    with pytest.raises(ValueError, match="within the support"):
        p.log_prob(torch.tensor(256.0))


FAMILIES = [Family, DiscretizedLogisticMixture]


def assembled(cls, event=(1,), **fields):
    family = cls(**fields)
    family.setup(event)
    return family.double()


@pytest.mark.parametrize("cls", FAMILIES)
@pytest.mark.parametrize("fields", [{}, {"levels": 2}, {"levels": 17, "lowest": -5}])
def test_families_sum_to_one_over_their_levels(cls, fields):
    family = assembled(cls, **fields)
    levels = torch.arange(family.levels).double()[:, None] + family.lowest
    for h in (
        torch.zeros(family.params),
        torch.randn(family.params),
        3 * torch.randn(family.params),
    ):
        p = family(h.double())
        assert family.support.check(levels).all()
        assert p.log_prob(levels).exp().sum().item() == pytest.approx(1, abs=1e-10)
    assert family.takes == f"whole numbers from {levels[0, 0]:.0f} to {levels[-1, 0]:.0f}"
    assert (family.encode(levels)[0], family.encode(levels)[-1]) == (-1, 1)


def test_a_mixture_is_the_weighted_sum_of_its_components():
    family = assembled(DiscretizedLogisticMixture, (2, 3), components=4, levels=11)
    h = torch.randn(7, *family.params).double()
    logits, loc, raw = h.reshape(7, 3, 4, 2, 3).unbind(1)
    parts = DiscretizedLogistic(5 + 5 * loc, 0.1 + 5 * torch.nn.functional.softplus(raw), 0, 10)
    x = family(h).sample()
    weighted = logits.softmax(1) * parts.log_prob(x[:, None]).exp()
    assert torch.allclose(family(h).log_prob(x), weighted.sum(1).log().sum((1, 2)))
    assert torch.allclose(family(h).mean, (logits.softmax(1) * parts.mean).sum(1))


@pytest.mark.parametrize("cls", FAMILIES)
def test_extreme_outputs_of_a_network_have_finite_gradients_in_float32(cls):
    family = assembled(cls, (2,)).float()
    x = torch.tensor([[0.0, 255.0], [128.0, 1.0]])
    for value in (-50.0, 0.0, 50.0, 1e4):
        h = torch.full((2, *family.params), value).requires_grad_()
        log_prob = family(h).log_prob(x)
        log_prob.sum().backward()
        assert log_prob.isfinite().all()
        assert h.grad.isfinite().all()


@pytest.mark.parametrize("cls", FAMILIES)
def test_the_scale_has_a_floor_in_levels(cls):
    family = assembled(cls, floor=0.4)
    h = torch.zeros(family.params).double()
    h[-family.params[0] // 3 :] = -60.0
    sd = 0.4 * math.pi / math.sqrt(3)
    assert family(h).variance.sqrt().item() == pytest.approx(sd, rel=0.1)


@pytest.mark.parametrize("cls", FAMILIES)
def test_the_marginal_has_the_moments_of_each_pixel(cls):
    family = assembled(cls, (1, 2, 2))
    x = torch.stack(
        [
            140 + 15 * torch.randn(3000),
            90 + 30 * torch.randn(3000),
            torch.full((3000,), 17.0),
            50 + 100 * (torch.rand(3000) < 0.5) + 5 * torch.randn(3000),
        ],
        -1,
    ).double().round().clamp(0, 255).reshape(3000, 1, 2, 2)  # fmt: skip
    h = family.marginal(Batch(x))
    assert h.shape == family.params
    p = family(h)
    assert torch.allclose(p.mean, x.mean(0), rtol=0.08)
    sd = x.std(0).clamp(min=1)
    assert torch.allclose(p.variance.sqrt(), sd, rtol=0.1)
    assert family(h + 0.01).log_prob(x).mean() < p.log_prob(x).mean() + 1


def test_the_components_of_a_marginal_differ_and_find_two_modes():
    family, single = assembled(DiscretizedLogisticMixture), assembled(Family)
    x = torch.where(torch.rand(5000, 1) < 0.7, 0.0, 255.0).double()
    h = family.marginal(Batch(x))
    loc = h.reshape(3, 5)[1]
    assert (loc.diff() > 0).all()
    bits = [f(f.marginal(Batch(x))).log_prob(x).mean().item() for f in (family, single)]
    assert bits[0] > bits[1] + 0.4
    constant = family.marginal(Batch(torch.zeros(9, 1).double())).reshape(3, 5)
    assert (constant[1].diff() > 0).all()
    assert constant.isfinite().all()


@pytest.mark.parametrize("kind", ["discretized-logistic", "discretized-logistic-mixture"])
def test_missing_pixels_are_left_out(kind):
    vae = VAE(x=(1, 2, 2), z=(2,), likelihood={"kind": kind, "levels": 16}, missing=True).double()
    x = torch.randint(16, (5, 1, 2, 2)).double()
    x[:, 0, 0, 1] = torch.nan
    z = torch.randn(5, 2).double()
    whole = vae.likelihood(vae.decoder(z)).base_dist.log_prob(x.nan_to_num(3.0))
    whole[:, 0, 0, 1] = 0
    assert torch.allclose(vae.p(z, Batch(x)).log_prob(x), whole.sum((1, 2, 3)))
    assert vae.likelihood.encode_missing(x).shape == (5, 2, 2, 2)


@pytest.mark.parametrize("kind", ["discretized-logistic", "discretized-logistic-mixture"])
def test_a_vae_of_levels_fits_and_is_a_probability(kind):
    x = (8 + 5 * torch.randn(200, 1) + torch.randn(200, 6)).round().clamp(0, 15)
    vae = VAE(x=(6,), z=(1,), likelihood={"kind": kind, "levels": 16})
    assert str(vae.tag) == "a probability (counting measure)"
    history = fit(vae, x, epochs=25, learning_rate=0.01)
    assert history.epochs[-1].loss < history.epochs[0].loss - 1
    result = log_likelihood(vae, x, particles=50)
    assert (result.value < 0).all()
    vae.check(Batch(vae.sample(50)))
    assert Part.spec(vae)["likelihood"]["levels"] == 16


@pytest.mark.parametrize(
    ("fields", "x", "message"),
    [
        ({"levels": 16}, 16.0, r"with the value 16\.0: .* takes whole numbers from 0 to 15"),
        ({"levels": 16}, 0.5, r"with the value 0\.5: "),
        ({"lowest": 3}, 2.0, r"takes whole numbers from 3 to 258"),
    ],
)
def test_other_values_are_refused(fields, x, message):
    vae = VAE(x=(2,), z=(1,), likelihood={"kind": "discretized-logistic"} | fields)
    with pytest.raises(Error, match=message):
        fit(vae, torch.full((9, 2), x))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"levels": 1}, "levels: should be greater than or equal to 2, got 1"),
        ({"floor": 0.0}, "floor: should be greater than 0"),
    ],
)
@pytest.mark.parametrize("cls", FAMILIES)
def test_wrong_fields_are_refused(cls, fields, message):
    with pytest.raises(Error, match=message):
        cls(**fields)
