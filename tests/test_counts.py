"""Discrete families: against scipy, summed over all outcomes, far out, and with sizes of rows."""

import itertools
import math

import numpy as np
import pyro
import pytest
import torch
from scipy import stats

from pyrovae import VAE, Batch, Mixture, compare, fit
from pyrovae.distributions import (
    BetaBinomial,
    DirichletMultinomial,
    Levels,
    Multinomial,
    NegativeBinomial,
)
from pyrovae.distributions.levels import ordered_logits
from pyrovae.distributions.overdispersed import log_rising
from pyrovae.families import Family
from pyrovae.families.categorical import floored
from pyrovae.networks import MLP

DRAWS = 20_000
SIZED = [
    {"kind": "poisson"},
    {"kind": "zero-inflated-poisson"},
    {"kind": "negative-binomial"},
    {"kind": "negative-binomial", "dispersion": "network"},
    {"kind": "zero-inflated-negative-binomial"},
    {"kind": "zero-inflated-negative-binomial", "dispersion": "network"},
]
LIMITED = [
    {"kind": "bernoulli"},
    {"kind": "binomial", "total": 16},
    {"kind": "beta-binomial", "total": 16},
    {"kind": "categorical", "classes": 5},
    {"kind": "ordered-logistic", "classes": 5},
]
JOINT = [{"kind": "multinomial"}, {"kind": "dirichlet-multinomial"}]


def name(spec):
    return "-".join(map(str, spec.values()))


def families(*specs):
    return pytest.mark.parametrize("spec", specs, ids=name)


def made(spec, event=(3,), **fields):
    """A family in float64 whose typical total is 7."""
    family = Family.from_spec(spec | fields)
    family.setup(event)
    if hasattr(family, "typical"):
        family.typical.fill_(7.0)
    return family.double()


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def close(a, b, atol=1e-9):
    a, b = (torch.as_tensor(value, dtype=torch.float64).detach() for value in (a, b))
    return np.allclose(a, b, rtol=1e-9, atol=atol)


def spread_out(*axes):
    return torch.meshgrid(*axes, indexing="ij")


class TestDistributions:
    def test_a_rising_factorial_is_its_product(self):
        log_a = torch.linspace(-70, 70, 57).double().requires_grad_()
        for n in (0, 1, 2, 7, 40):
            ratio = torch.arange(n).double() * (-log_a.detach()[:, None]).exp()
            value = log_rising(log_a, tensor(n))
            assert close(value, ratio.log1p().sum(-1))
            (gradient,) = torch.autograd.grad(value.sum(), log_a)
            assert close(gradient, -(ratio / (1 + ratio)).sum(-1))

    def test_a_rising_factorial_of_a_million_meets_its_two_forms(self):
        a, n = tensor(15.999999, 16.000001), tensor(1e6)
        low, high = log_rising(a.log(), n)
        assert high < low
        assert low - high < 2e-6 * 1e6 / 15  # the derivative is below n / a

    def test_the_negative_binomial_is_scipys(self):
        mu, theta, x = spread_out(
            tensor(1e-3, 0.1, 1, 30, 1e4), tensor(0.01, 0.5, 3, 17, 400), tensor(0, 1, 2, 9, 1000)
        )
        p = NegativeBinomial(mu.log(), theta.log())
        assert close(p.log_prob(x), stats.nbinom.logpmf(x, theta, theta / (theta + mu)), 1e-8)
        assert close(p.mean, mu)
        assert close(p.variance, stats.nbinom.var(theta, theta / (theta + mu)))

    @pytest.mark.parametrize("theta", [1e13, 1e20, 1e40])
    def test_a_negative_binomial_without_overdispersion_is_a_poisson(self, theta):
        mu, x = spread_out(tensor(0.01, 1, 1e3, 1e6), tensor(0, 1, 30, 1e6))
        p = NegativeBinomial(mu.log(), tensor(theta).log())
        assert np.allclose(p.log_prob(x), stats.poisson.logpmf(x, mu), rtol=1e-6)

    def test_the_beta_binomial_is_scipys(self):
        logits, c, x = spread_out(tensor(-4, 0, 1.5), tensor(0.1, 2, 35, 1e3), tensor(0, 1, 9, 20))
        p = BetaBinomial(20, logits, c.log())
        a, b = c * logits.sigmoid(), c * (-logits).sigmoid()
        assert close(p.log_prob(x), stats.betabinom.logpmf(x, 20, a, b))
        assert close(p.mean, stats.betabinom.mean(20, a, b))
        assert close(p.variance, stats.betabinom.var(20, a, b))

    def test_a_beta_binomial_without_overdispersion_is_a_binomial(self):
        logits, x = spread_out(tensor(-9, 0, 3), tensor(0, 1, 500, 1000))
        p = BetaBinomial(1000, logits, tensor(1e15).log())
        assert close(p.log_prob(x), stats.binom.logpmf(x, 1000, logits.sigmoid()), 1e-7)

    def test_the_multinomial_with_a_total_for_each_row_is_scipys(self):
        logits = torch.randn(4, 6).double()
        x = tensor(0, 3, 1, 0, 12, 1) * torch.arange(4)[:, None]
        p = Multinomial(x.sum(-1), logits)
        shares = logits.softmax(-1).numpy()
        exact = stats.multinomial.logpmf(x.numpy(), x.sum(-1).numpy(), shares)
        assert close(p.log_prob(x), exact)
        for row, total in enumerate(x.sum(-1)):
            exact = stats.multinomial.cov(int(total), shares[row])
            assert close(p.variance[row], np.diag(exact).copy())
        assert (p.log_prob(x + 1) == -torch.inf).all()

    def test_the_dirichlet_multinomial_with_a_total_for_each_row_is_scipys(self):
        log_a = torch.randn(4, 6).double()
        x = tensor(0, 3, 1, 0, 12, 1) * torch.arange(4)[:, None]
        p = DirichletMultinomial(x.sum(-1), log_a)
        for row, total in enumerate(x.sum(-1)):
            exact = stats.dirichlet_multinomial(log_a[row].exp().numpy(), int(total))
            assert close(p.log_prob(x)[row], exact.logpmf(x[row].int().numpy()))
            assert close(p.mean[row], exact.mean())
            assert close(p.variance[row], exact.var())

    def test_a_dirichlet_multinomial_without_overdispersion_is_a_multinomial(self):
        log_a, x = torch.randn(6).double(), tensor(0, 3, 1, 0, 1200, 1)
        p, plain = DirichletMultinomial(x.sum(), log_a + 35), Multinomial(x.sum(), log_a)
        assert close(p.log_prob(x), plain.log_prob(x), 1e-7)

    def test_levels_are_between_their_cuts(self):
        h, cuts = torch.randn(7).double(), tensor(-1, 0.2, 0.3, 2)
        p = Levels(ordered_logits(h, cuts, cuts.diff()))
        below = torch.cat([(cuts - h[:, None]).sigmoid(), torch.ones(7, 1)], -1)
        exact = below.diff(dim=-1, prepend=torch.zeros(7, 1))
        assert close(p.log_prob(torch.arange(5.0)[:, None]).mT, exact.log())

    @pytest.mark.parametrize("far", [45.0, 700.0])
    def test_levels_far_from_their_cuts_keep_their_digits(self, far):
        cuts = tensor(-1, 0.2, 0.3)
        a = ordered_logits(tensor(far), cuts, cuts.diff())
        b = ordered_logits(tensor(-far), cuts, cuts.diff())
        steps = torch.cat([tensor(0), cuts.exp()]).diff().log()
        assert close(a[0, :3], steps - far)
        back = torch.cat([(-cuts).exp(), tensor(0)]).diff().neg().log()
        assert close(b[0, 1:], back - far)

    @pytest.mark.parametrize(
        "p",
        [
            NegativeBinomial(tensor(0.5, 3, 3), tensor(-1, 1, 50)),
            NegativeBinomial(tensor(3), tensor(-6)),
            BetaBinomial(9, tensor(0.5, -3, 0), tensor(-3, 0, 50)),
            Multinomial(tensor(0, 5, 80), tensor(-1, 0, 0.3, 2)),
            DirichletMultinomial(tensor(0, 5, 80), tensor(-1, 0, 0.3, 2)),
            DirichletMultinomial(tensor(1e6), tensor(-30, -30.5, 60, 60.5)),
            Levels(tensor([0, 1, -1, 2, 0], [-40, 0, 0, 1, 3])),
        ],
        ids=lambda p: type(p).__name__,
    )
    def test_samples_have_mean_and_variance(self, p):
        draws = p.sample((DRAWS,))
        assert draws.shape == (DRAWS, *p.batch_shape, *p.event_shape)
        assert draws.dtype == torch.float64
        assert p.log_prob(draws).isfinite().all()
        square = (draws - p.mean).square()
        for value, exact in ((draws, p.mean), (square, p.variance)):
            error = value.std(0) / DRAWS**0.5  # six of them: by chance once in 10^7 entries
            assert ((value.mean(0) - exact).abs() <= 6 * error + 1e-9 * exact + 1e-9).all()

    @pytest.mark.parametrize(
        "p",
        [
            NegativeBinomial(tensor(1, 2), tensor(0)),
            BetaBinomial(9, tensor(1, 2), tensor(0)),
            Multinomial(tensor(3, 4), tensor(1, 2, 3)),
            DirichletMultinomial(tensor(3, 4), tensor(1, 2, 3)),
            Levels(tensor([0, 1, -1, 2], [-40, 0, 0, 3])),
        ],
        ids=lambda p: type(p).__name__,
    )
    def test_expanding_repeats_the_batch(self, p):
        more = p.expand((5, 2))
        assert (more.batch_shape, more.event_shape) == ((5, 2), p.event_shape)
        x = more.sample()
        assert close(more.log_prob(x)[3], p.log_prob(x[3]))
        assert more.mean.shape == more.variance.shape == x.shape
        assert more.support.check(x).all()


def outcomes(family):
    """All outcomes of a family over (2,) up to where nothing is left, (outcomes, 2)."""
    if family.kind.endswith("multinomial"):
        return torch.tensor([[k, 7.0 - k] for k in range(8)]).double()
    top = getattr(family.support, "upper_bound", 1 if family.kind == "bernoulli" else 600)
    axis = torch.arange(top + 1).double()
    return torch.cartesian_prod(axis, axis)


class TestFamilies:
    @families(*SIZED, *LIMITED, *JOINT)
    def test_sums_to_one_with_the_moments_that_samples_have(self, spec):
        family = made(spec, (2,))
        p, x = family(0.5 * torch.randn(family.params).double()), outcomes(family)
        mass = p.log_prob(x).exp().detach()
        assert close(mass.sum(), 1.0, 1e-6)
        mean = mass @ x
        assert close(p.mean, mean, 1e-4)
        assert close(p.variance, mass @ (x - mean).square(), 1e-2)
        draws = p.sample((DRAWS,))
        error = draws.std(0) / DRAWS**0.5  # six of them: by chance once in 10^7 entries
        assert ((draws.mean(0) - mean).abs() < 6 * error).all()
        assert family.support.check(draws).all()

    def test_zero_inflation_is_the_formula(self):
        h = torch.randn(2, 3).double()
        x = torch.arange(4.0).double()[:, None].expand(-1, 3)
        gate, zero = h[1].sigmoid(), (x == 0).double()
        plain = torch.as_tensor(stats.poisson.pmf(x, h[0].exp()))
        by_hand = (gate * zero + (1 - gate) * plain).log().sum(-1)
        family = made({"kind": "zero-inflated-poisson"}, floor=1e-12)
        assert close(family(h).log_prob(x), by_hand)
        family = made({"kind": "zero-inflated-negative-binomial"})
        family.log_dispersion.data.fill_(math.log(0.7))
        plain = torch.as_tensor(stats.nbinom.pmf(x, 0.7, 0.7 / (0.7 + h[0].exp())))
        by_hand = (gate * zero + (1 - gate) * plain).log().sum(-1)
        assert close(family(h).log_prob(x), by_hand)

    def test_binomials_are_scipys(self):
        h, x = torch.randn(3).double(), tensor(0, 5, 16)
        family = made({"kind": "binomial", "total": 16})
        assert close(family(h).log_prob(x), stats.binom.logpmf(x, 16, h.sigmoid()).sum())
        assert family.takes == "whole numbers from 0 to 16"

    @families(*SIZED, *LIMITED, *JOINT)
    @pytest.mark.parametrize("values", [*itertools.product((-50.0, 50.0), repeat=2)])
    def test_is_finite_far_out_in_float32(self, spec, values):
        family = made(spec).float()
        h = torch.empty(family.params)
        h[0], h[1:] = values
        top = getattr(family.support, "upper_bound", 1.0 if spec["kind"] == "bernoulli" else 1e6)
        for row in ([0.0, 0, 0], [0.0, 1, top], [top, top, top]):
            inputs = h.clone().requires_grad_()
            log_prob = family.given(inputs[None], Batch(torch.tensor([row]))).log_prob(
                torch.tensor([row])
            )
            log_prob.sum().backward()
            assert log_prob.isfinite().all()
            assert inputs.grad.isfinite().all()
            assert all(p.grad.isfinite().all() for p in family.parameters())

    @families(*SIZED, *LIMITED, *JOINT)
    @pytest.mark.parametrize("event", [(4,), (2, 3)])
    def test_particles_and_rows_broadcast(self, spec, event):
        family = made(spec, event)
        h = torch.randn(3, 5, *family.params).double()
        x = family(torch.randn(5, *family.params).double()).sample()
        log_prob = family.of(h, Batch(x)).log_prob(x)
        assert log_prob.shape == (3, 5)
        for k, i in itertools.product(range(3), range(5)):
            assert close(family(h[k, i]).log_prob(x[i]), log_prob[k, i].item())

    @families({"kind": "categorical", "classes": 5}, {"kind": "ordered-logistic", "classes": 5})
    def test_missing_entries_are_zeros_to_an_encoder_and_skipped(self, spec):
        family = made(spec)
        x = tensor(4, torch.nan, 0)[None]
        seen = family.encode_missing(x)
        assert seen.shape == (1, *family.seen_missing)
        if spec["kind"] == "categorical":
            assert seen[0].tolist() == [[0, 0, 0, 0, 1], [0] * 5, [1, 0, 0, 0, 0]]
        else:
            assert seen[0].tolist() == [1, 0, 0, 1, 0, 1]
        h = torch.randn(1, *family.params).double()
        log_prob = [family(h).log_prob(torch.where(x.isnan(), k, x)) for k in range(5)]
        total = torch.stack(log_prob).logsumexp(0)
        assert close(family.of(h, Batch(x)).log_prob(x), total.detach())

    def test_the_odds_of_levels_are_proportional(self):
        family = made({"kind": "ordered-logistic", "classes": 4}, (1,))
        family.raw_cuts.data.normal_()
        p = family(torch.randn(5, 1).double())
        mass = torch.stack([p.log_prob(tensor(k)) for k in range(4)]).exp()
        odds = mass.cumsum(0)[:3].logit()
        assert close(odds - odds[:, :1], (odds - odds[:, :1])[:1].expand(3, -1).detach())


class TestStarts:
    @families(*SIZED, *LIMITED, *JOINT)
    @pytest.mark.parametrize("data", ["zeros", "one row", "constant", "few", "large"])
    def test_the_marginal_is_finite_for_any_data(self, spec, data):
        family = made(spec)
        top = getattr(family.support, "upper_bound", 1.0 if spec["kind"] == "bernoulli" else 1e6)
        x = {
            "zeros": torch.zeros(9, 3),
            "one row": torch.tensor([[0.0, 1.0, top]]),
            "constant": torch.tensor([[0.0, 1.0, top]]).repeat(9, 1),
            "few": torch.eye(3),
            "large": torch.full((9, 3), top),
        }[data].double()
        family.start(x)
        h = family.marginal(Batch(x))
        assert h.shape == family.params
        assert h.isfinite().all()
        h = h.expand(len(x), *h.shape)
        assert family.given(h, Batch(x)).log_prob(x).isfinite().all()

    @families(*SIZED, *LIMITED, *JOINT)
    def test_the_marginal_is_close_to_where_the_rows_came_from(self, spec):
        family = made(spec)
        truth = 0.3 * torch.randn(family.params).double()
        truth[0] += 1.0
        if "dispersion" in spec or spec["kind"] == "beta-binomial":
            truth[-1] += 0.5
        x = family(truth).sample((20_000,))
        at_truth = family(truth).log_prob(x).mean()
        family.start(x)
        at_start = family(family.marginal(Batch(x))).log_prob(x).mean()
        assert at_start > at_truth - 0.06  # a zero-inflated one does not tell two kinds of zeros
        away = family(family.marginal(Batch(x)) + 0.5 * torch.randn(family.params)).log_prob(x)
        assert at_start > away.mean()

    def test_moments_find_dispersion_concentration_and_inflation(self):
        draws = (200_000,)
        family = made({"kind": "negative-binomial"})
        family.log_dispersion.data = tensor(-1, 0, 1)
        family.start(x := family(tensor(1, 2, 3)).sample(draws))
        assert np.allclose(family.log_dispersion.detach(), [-1, 0, 1], atol=0.1)
        assert np.allclose(family.marginal(Batch(x)), [1, 2, 3], atol=0.1)
        for spec, h in (
            ({"kind": "beta-binomial", "total": 16}, torch.tensor([[0.0, 1, -1], [-1, 0, 2]])),
            ({"kind": "zero-inflated-poisson"}, torch.tensor([[0.5, 1, 2], [-1, 0, 1]])),
            ({"kind": "dirichlet-multinomial"}, torch.tensor([-1.0, 0, 1])),
        ):
            family = made(spec)
            x = family(h.double()).sample(draws)
            assert np.allclose(family.marginal(Batch(x)), h, atol=0.1)

    def test_cut_points_start_at_the_shares_of_the_levels(self):
        family = made({"kind": "ordered-logistic", "classes": 4}, (1,))
        x = tensor(*[0] * 10, *[1] * 30, *[3] * 60)[:, None]
        family.start(x)
        mass = family(tensor(0)).log_prob(torch.arange(4.0)[:, None]).exp()
        assert np.allclose(mass.detach(), tensor(10.5, 30.5, 0.5, 60.5) / 102)


class TestExposure:
    @families(*SIZED)
    def test_a_size_factor_multiplies_the_mean(self, spec):
        floor = {"floor": 1e-13} if "poisson" in spec["kind"] else {}
        family = made(spec, exposure="offset", **floor)
        h = torch.randn(4, 5, *family.params).double()
        e = torch.rand(5).double() + 0.2
        x = family(torch.randn(5, *family.params).double()).sample()
        p = family.of(h, Batch(x, offset=e))
        assert close(p.mean, (e[:, None] * family(h).mean).detach())
        moved = h.clone()
        first = moved if family.params == family.event else moved[:, :, 0]
        first += e.log()[:, None]
        assert close(p.log_prob(x), family(moved).log_prob(x).detach())
        assert family.conditions == "the size factors"

    @families(*SIZED)
    @pytest.mark.parametrize("event", [(4,), (2, 3)])
    def test_a_total_is_a_size_factor_relative_to_the_training_rows(self, spec, event):
        by_total, by_offset = (made(spec, event, exposure=e) for e in ("total", "offset"))
        x = 1 + torch.poisson(torch.full((6, *event), 3.0)).double()
        for family in (by_total, by_offset):
            family.start(2 * x)
        by_offset.load_state_dict(by_total.state_dict())
        h = torch.randn(3, 6, *by_total.params).double()
        totals = x.flatten(1).sum(-1)
        e = totals / (2 * totals.mean())
        a = by_total.of(h, Batch(x)).log_prob(x)
        assert close(a, by_offset.of(h, Batch(x, offset=e)).log_prob(x).detach())
        assert by_total.conditions == "the row totals"
        blank = by_total.blank(torch.zeros_like(x))
        typical = by_total.of(h, Batch(blank)).mean
        assert close(typical, by_total(h).mean.detach())

    @families(*SIZED)
    def test_none_is_conditioned_on_nothing(self, spec):
        family = made(spec)
        assert family.conditions == ""
        assert (family.blank(torch.zeros(2, 3)) == 0).all()

    @families(*SIZED)
    def test_the_marginal_takes_sizes_into_account(self, spec):
        family = made(spec, exposure="offset")
        e = torch.tensor([1.0, 100.0]).double().repeat(10_000)
        h = torch.ones(family.params).double()
        x = family.given(h.expand(20_000, *h.shape), Batch(torch.zeros(1), offset=e)).sample()
        estimate = family.marginal(Batch(x, offset=e))
        mean = estimate if family.params == family.event else estimate[0]
        assert np.allclose(mean, 1, atol=0.3)

    @families(*SIZED)
    def test_rows_without_what_is_needed_are_refused(self, spec):
        kind, x = spec["kind"], torch.ones(3, 3)
        by_offset = made(spec, exposure="offset")
        by_offset.check(Batch(x, offset=torch.ones(3)))
        with pytest.raises(ValueError, match=f"{kind} with .* needs size factors"):
            by_offset.check(Batch(x))
        for wrong, words in (
            (
                torch.tensor([1.0, 0.0, 1.0]),
                "size factors.* positive, got 0",
            ),
            (torch.tensor([1.0, 1.0, torch.inf]), "size factors.* positive, got inf"),
            (torch.ones(2), "the offset .* the shape"),
            (torch.ones(3, 1), "the offset .* the shape"),
        ):
            with pytest.raises(ValueError, match=words):
                by_offset.check(Batch(x, offset=wrong))
        for exposure in ("none", "total"):
            with pytest.raises(ValueError, match=f"exposure = '{exposure}' ignores size factors"):
                made(spec, exposure=exposure).check(Batch(x, offset=torch.ones(3)))
        by_total = made(spec, exposure="total")
        by_total.check(Batch(x))
        with pytest.raises(ValueError, match=r"1 of 3 rows have the total 0, such as row 1"):
            by_total.check(Batch(x * torch.tensor([[1.0], [0.0], [1.0]])))
        with pytest.raises(ValueError, match=f"{kind} with .* cannot skip single entries"):
            by_total.check(Batch(torch.full((3, 3), torch.nan)))

    def test_numbers_given_sizes_are_not_compared_with_others(self):
        models = {
            exposure: VAE(x=(3,), z=(1,), likelihood={"kind": "poisson", "exposure": exposure})
            for exposure in ("none", "total")
        }
        with pytest.raises(ValueError, match=r"cannot be compared: .* given the row totals"):
            compare(models, torch.ones(4, 3))


class TestTotals:
    @families(*JOINT)
    def test_each_row_has_its_own_total(self, spec):
        family = made(spec)
        x = torch.tensor([[1.0, 0, 0], [0, 0, 0], [5, 6, 90]]).double()
        h = torch.randn(4, 3, *family.params).double()
        p = family.of(h, Batch(x))
        assert p.log_prob(x).isfinite().all()
        assert (p.log_prob(x)[:, 1] == 0).all()
        assert (p.sample().sum(-1) == x.sum(-1)).all()
        assert family(h).sample().sum(-1).unique().tolist() == [7]
        assert family.conditions == "the row totals"

    @families(*JOINT)
    def test_rows_are_sampled_with_the_mean_total(self, spec):
        vae = VAE(x=(2, 3), z=(1,), likelihood=spec)
        x = torch.poisson(torch.full((50, 2, 3), 4.0))
        vae.start(Batch(x))
        assert vae.sample(20).sum((1, 2)).unique().item() == x.sum((1, 2)).mean().round()
        assert (vae.sample(Batch(x)).sum((1, 2)) == x.sum((1, 2))).all()

    @families(*JOINT)
    def test_rows_with_gaps_or_size_factors_are_refused(self, spec):
        family = made(spec)
        with pytest.raises(ValueError, match=f"{spec['kind']} cannot skip single entries"):
            family.check(Batch(torch.tensor([[1.0, torch.nan, 2.0]])))
        with pytest.raises(ValueError, match="takes no size factors: leave the offset out"):
            family.check(Batch(torch.ones(1, 3), offset=torch.ones(1)))
        with pytest.raises(ValueError, match="cannot skip single entries"):
            VAE(x=(3,), z=(1,), likelihood=spec, missing=True)


class TestMixtures:
    def test_floored_shares_are_the_best_above_the_floor(self):
        weights = torch.rand(50, 6).double() ** 8
        q, least = floored(weights, 0.05), 0.05
        assert close(q.sum(-1), 1.0)
        bound = q <= least
        assert (q >= least).all()
        assert bound.any()
        multiplier = (weights / q).masked_fill(bound, 0).amax(-1, keepdim=True)
        assert close((weights / q)[~bound], multiplier.expand_as(q)[~bound])
        assert ((weights / q)[bound] <= multiplier.expand_as(q)[bound] + 1e-9).all()

    @families(
        {"kind": "poisson", "exposure": "total"},
        {"kind": "binomial", "total": 16},
        {"kind": "categorical", "classes": 5},
        {"kind": "multinomial"},
    )
    def test_em_rises_to_where_the_gradient_is_zero(self, spec):
        family = made(spec, (4,))
        h = torch.randn(2, *family.params).double()
        x = torch.cat([family(row).sample((150,)) for row in h])
        x = torch.cat([x, x.clamp(max=2)]) + (1 if "exposure" in spec else 0)
        model = Mixture(x=(4,), components=3, family=spec)
        losses = [e.loss for e in fit(model, x, epochs=400, tolerance=0, restarts=1).epochs]
        assert all(b <= a + 1e-10 for a, b in itertools.pairwise(losses))
        model.log_prob(Batch(x)).mean().backward()
        assert model.h.grad.abs().max() < 1e-3
        assert losses[-1] < losses[0]

    def test_a_mixture_needs_the_size_factors_that_its_family_takes(self):
        model = Mixture(x=(3,), components=1, family={"kind": "poisson", "exposure": "offset"})
        with pytest.raises(ValueError, match="needs size factors"):
            fit(model, Batch(torch.ones(5, 3)))
        fit(model, Batch(torch.ones(5, 3), offset=torch.ones(5)))

    @families(*JOINT)
    def test_svi_scores_rows_by_their_own_totals(self, spec):
        x = torch.poisson(torch.tensor([4.0, 1.0, 0.5]).expand(60, 3)) + 1
        model = Mixture(x=(3,), components=2, family=spec)
        history = fit(model, x, method="svi", epochs=20, learning_rate=0.05)
        assert history.epochs[-1].loss < history.epochs[0].loss


def rows_of(spec, event=(3,)):
    family = made(spec, event)
    x = family(0.5 * torch.randn(40, *family.params).double()).sample().float()
    offset = torch.rand(40) + 0.5 if spec.get("exposure") == "offset" else None
    return Batch(x + (spec.get("exposure") == "total"), offset=offset)


class TestModels:
    @families(
        *SIZED,
        *LIMITED,
        *JOINT,
        *(spec | {"exposure": exposure} for spec in SIZED for exposure in ("offset", "total")),
    )
    def test_a_vae_trains(self, spec):
        batch = rows_of(spec)
        vae = VAE(x=(3,), z=(2,), likelihood=spec, encoder=MLP(hidden=(8,)))
        vae.check(batch)
        vae.start(batch)
        with vae.scope():
            svi = pyro.infer.SVI(
                vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), pyro.infer.Trace_ELBO()
            )
            losses = [svi.step(batch) for _ in range(10)]
        assert np.isfinite(losses).all()
        assert all(p.isfinite().all() for p in vae.parameters())
        assert vae.support.check(vae.sample(batch)).all()

    @pytest.mark.slow
    def test_overdispersed_counts_are_better_explained_by_a_negative_binomial(self):
        rate = (1 + 0.5 * torch.randn(1500, 2) @ torch.randn(2, 20)).exp()
        x = torch.poisson(rate * torch.distributions.Gamma(2.0, 2.0).sample(rate.shape))
        kinds = ("poisson", "negative-binomial")
        models = {kind: VAE(x=(20,), z=(2,), likelihood=kind) for kind in kinds}
        for model in models.values():
            fit(model, x[:1000], x[1000:1200], epochs=60, learning_rate=3e-3)
        poisson = compare(models, x[1200:], particles=200)["poisson"]
        assert poisson.difference < -3 * poisson.difference_se


@pytest.mark.parametrize("kind", ["multinomial", "dirichlet-multinomial"])
def test_a_million_counts_keep_the_digits_that_float32_parameters_have(kind):
    family = Family.from_spec(kind)
    family.setup((20,))
    h = (4 + torch.randn(20)).expand(50, 20)
    drawn = np.random.default_rng(0).multinomial(1_000_000, h[0].double().softmax(-1), size=50)
    x = torch.from_numpy(drawn).float()
    exact = family.given(h.double(), Batch(x.double())).log_prob(x.double())
    error = family.given(h, Batch(x)).log_prob(x) - exact
    assert error.abs().max() < 0.25
