"""Laws that every family obeys, over every kind of values; a new member is tested by existing."""

import numpy as np
import pytest
import torch
from members import FAMILIES, events, ids, make
from torch.distributions import constraints

from pyrovae import Batch, Error
from pyrovae.distributions import all_states, angle, base, one_hot, open_unit_interval, sphere

TOTALS = {"dirichlet-multinomial", "multinomial"}
"""Families over what a row's total, here 6, is divided into."""
SILENT = {"beta-binomial-0"}
"""One trial says nothing about how trials depend on each other: an entry of h has no effect."""
SINGLE = [parameter for parameter in FAMILIES if parameter[1].kind != "columns"]
"""Families of one kind of entries; a table is tested as a sum of those of its columns."""


def assembled_family(parameter, event=None):
    """A family in float64."""
    family = make(parameter)
    family.setup(event or events(family)[0])
    if family.kind in TOTALS:
        family.start(torch.full((1, *family.event), 6 / family.event.numel()))
    return family.double()


def alone(parameter):
    """A family over as little as it can be over: one number, or one vector."""
    family = make(parameter)
    single = family.kind not in TOTALS and not family.support.event_dim
    return assembled_family(parameter, (1,) if single else None)


def differentiates_twice(function, h):
    """Whether second derivatives exist and are right."""
    try:
        return torch.autograd.gradgradcheck(function, h, raise_exception=False)
    except RuntimeError:
        return False


def numbers(support):
    """Numbers that cover a support, and the weight of each, for sums that are integrals.

    Even steps of t cover the line with x = sinh t, up to 10^5 for heavy tails, positive numbers
    with x = e^t, the unit interval with x = 1 / (1 + e^-t).
    """
    if support.is_discrete:
        last = 1 if support is constraints.boolean else getattr(support, "upper_bound", 2000)
        values = torch.arange(getattr(support, "lower_bound", 0), last + 1.0).double()
        return values, torch.ones_like(values)
    t = torch.linspace(-1, 1, 20_001, dtype=torch.float64)[1:]
    if support is angle:
        return torch.pi * t, torch.full_like(t, torch.pi * 1e-4)
    if support is constraints.positive:
        return (100 * t).exp(), 1e-2 * (100 * t).exp()
    if isinstance(support, type(constraints.unit_interval)):
        return (36 * t).sigmoid(), 36e-4 * (36 * t).sigmoid() * (-36 * t).sigmoid()
    return (12 * t).sinh(), 12e-4 * (12 * t).cosh()


def cover(family):
    """Values `(points, *event)` that cover the support of `alone(...)`, and their weights."""
    if family.support is one_hot:
        states = all_states(family.event).double()
        return states, torch.ones(len(states)).double()
    if family.support is sphere:
        axis, area = np.polynomial.legendre.leggauss(200)
        angles = torch.pi * torch.arange(400).double() / 200
        up, turn = torch.cartesian_prod(torch.tensor(axis), angles).T
        flat = (1 - up.square()).sqrt()
        points = torch.stack([flat * turn.cos(), flat * turn.sin(), up], -1)
        return points, torch.tensor(area).repeat_interleave(400) * torch.pi / 200
    if family.kind in TOTALS:
        values = torch.cartesian_prod(*[torch.arange(7.0).double()] * 3)
        return values, torch.ones(len(values)).double()
    values, weights = numbers(family.support)
    return values[:, None], weights


def far_out(family):
    """Rows `(2, 1, *event)` at the ends of a support, or far out in it, in float32."""
    if family.support is one_hot:
        return all_states(family.event)[:2, None].float()
    if family.support is sphere:
        return torch.tensor([[[0.0, 0.0, 1.0]], [[0.0, 0.0, -1.0]]])
    if family.kind in TOTALS:
        return torch.tensor([[[6.0, 0.0, 0.0]], [[2.0, 2.0, 2.0]]])
    supports = getattr(family.support, "supports", [family.support] * family.event.numel())
    return torch.tensor([ends(support) for support in supports]).T[:, None]


def ends(support):
    """The ends of a support, or numbers far out in it."""
    if support is constraints.boolean or support is constraints.unit_interval:
        return 0.0, 1.0
    if support is angle:
        return -torch.pi, torch.pi
    if support is constraints.positive or support is open_unit_interval:
        return 1e-6, 1e6 if support is constraints.positive else 1 - 1e-6
    if support.is_discrete:
        return support.lower_bound, getattr(support, "upper_bound", 1e6)
    return 0.0, 1e3


def masses(parameter):
    """A distribution over `alone(...)`, the values that cover it, and their probabilities."""
    family = alone(parameter)
    with torch.no_grad():
        p = family(0.5 * torch.randn(family.params).double())
        values, weight = cover(family)
        return family, p, values, p.log_prob(values).exp() * weight


def has_moments(p):
    """Whether a distribution knows its mean, and this is one in the usual sense."""
    if base(p.support) is angle:
        return False
    try:
        return p.mean is not None
    except NotImplementedError:
        return False


def can_skip(family):
    """Whether a family takes rows with missing entries."""
    try:
        family.present(family(torch.zeros(family.params).double()))
    except Error:
        return False
    return True


def rows_of(parameter, scale):
    """Rows of numbers in a family's support that vary at this scale, the first ones equal."""
    family = make(parameter)
    x = scale * torch.randn(50, 3).double()
    if isinstance(family.support, type(constraints.unit_interval)):
        x = x.clamp(-30, 30).sigmoid()
    elif family.support is constraints.positive:
        x = scale * torch.randn(50, 3).double().exp()
    elif family.support is angle:
        x = torch.atan2(x.sin(), x.cos())
    x[:, 0] = x[0, 0]
    return x


@pytest.mark.parametrize("parameter", SINGLE, ids=ids(SINGLE))
class TestFamiliesOfOneEntry:
    """Laws that sum over all values of an entry."""

    def test_integrates_to_one_and_samples_fit_the_density(self, parameter):
        family, p, values, mass = masses(parameter)
        draws = p.sample((20_000,))
        assert mass.sum().item() == pytest.approx(1, abs=1e-6)
        assert family.support.check(draws).all()
        for value, draw in zip(values.flatten(1).T, draws.flatten(1).T, strict=True):
            points, place = value.unique(return_inverse=True)
            below = torch.zeros_like(points).index_add(0, place, mass).cumsum(0)
            found = torch.searchsorted(draw.sort().values, points, right=True) / len(draws)
            # the Dvoretzky-Kiefer-Wolfowitz bound: by chance once in 10^6
            assert (found - below).abs().max() < 0.02

    def test_mean_and_variance_are_those_of_the_density(self, parameter):
        _, p, values, mass = masses(parameter)
        if not has_moments(p):
            return
        mean = torch.einsum("i,i...->...", mass, values)
        variance = torch.einsum("i,i...->...", mass, (values - mean).square())
        assert torch.allclose(p.mean, mean, rtol=1e-5, atol=1e-6)
        assert torch.allclose(p.variance, variance, rtol=1e-3, atol=1e-6)

    def test_reparameterised_samples_have_the_gradient_of_the_mean(self, parameter):
        family = alone(parameter)
        h = (0.5 * torch.randn(family.params).double()).expand(4000, *family.params)
        h = h.clone().requires_grad_()
        p = family(h)
        if not p.has_rsample or not has_moments(p):
            return
        weight = torch.rand(family.event).double()
        (slopes,) = torch.autograd.grad((weight * p.rsample()).sum(), h)
        (exact,) = torch.autograd.grad((weight * family(h).mean).sum(), h)
        error = 5 * slopes.std(0) / len(h) ** 0.5  # by chance once in 10^6
        assert ((slopes.mean(0) - exact[0]).abs() <= error + 1e-9).all()

    def test_the_gradient_of_a_draw_has_a_gradient_where_the_class_says_so(self, parameter):
        family = alone(parameter)
        h = torch.randn(4, *family.params).double().requires_grad_()
        if not family(h).has_rsample:
            return

        def draw(h):
            torch.manual_seed(0)
            return family(h).rsample()

        assert family.smooth == differentiates_twice(draw, h)


SHAPED = [(parameter, event) for parameter in FAMILIES for event in events(make(parameter))]


@pytest.mark.parametrize(
    ("parameter", "event"), SHAPED, ids=[f"{name}-{event}" for (name, *_), event in SHAPED]
)
class TestFamiliesOfAnyShape:
    def test_takes_any_leading_dimensions(self, parameter, event):
        family = assembled_family(parameter, event)
        h = torch.randn(4, 5, *family.params).double()
        p = family(h)
        assert (p.batch_shape, p.event_shape) == ((4, 5), event)
        x = p.sample()
        one_by_one = torch.stack(
            [family(h[i, j]).log_prob(x[i, j]) for i in range(4) for j in range(5)]
        )
        assert torch.allclose(p.log_prob(x).flatten(), one_by_one, rtol=1e-12, atol=1e-12)
        wide = family(h).expand((3, 4, 5))
        assert wide.sample((2,)).shape == (2, 3, 4, 5, *event)
        assert torch.allclose(wide.log_prob(x), p.log_prob(x).expand(3, 4, 5))

    def test_the_table_of_a_mixture_is_the_density_of_each_pair(self, parameter, event):
        family = assembled_family(parameter, event)
        h = torch.randn(4, *family.params).double()
        x = family(h[0]).sample((6,))
        pairs = torch.stack([family.given(h[k], Batch(x)).log_prob(x) for k in range(4)], -1)
        assert torch.allclose(family.table(Batch(x), h), pairs, rtol=1e-12, atol=1e-12)

    def test_encodes_to_the_shapes_that_it_says(self, parameter, event):
        family = assembled_family(parameter, event)
        x = family(torch.randn(2, 6, *family.params).double()).sample()
        assert family.encode(x).shape == (2, 6, *family.seen)
        assert family.encode(x).isfinite().all()
        x[0, 1:] = torch.nan
        assert family.encode_missing(x).shape == (2, 6, *family.seen_missing)
        assert family.encode_missing(x).isfinite().all()

    def test_the_m_step_is_where_the_likelihood_is_largest(self, parameter, event):
        family = assembled_family(parameter, event)
        if not family.has_m_step:
            with pytest.raises(ValueError, match="no closed-form M-step"):
                family.maximize(torch.zeros(1, 2))
            return
        x = family(torch.randn(family.params).double()).sample((400,))
        family.start(x)
        weights = torch.rand(400, 3).double()
        means = weights.mT @ family.statistics(x) / weights.sum(0)[:, None]
        h = family.maximize(means).requires_grad_()
        (weights * family.table(Batch(x), h)).sum().backward()
        assert h.shape == (3, *family.params)
        assert h.grad.abs().max() < 1e-6  # the gradient of a sum over 400 rows


@pytest.mark.parametrize("parameter", FAMILIES, ids=ids(FAMILIES))
class TestFamilies:
    def test_gradient_reaches_the_network_and_every_parameter(self, parameter):
        family = assembled_family(parameter)
        h = torch.randn(6, *family.params).double().requires_grad_()
        x = family(h.detach()).sample()
        family(h).log_prob(x).sum().backward()
        assert h.grad is not None
        assert (h.grad != 0).all() or parameter[0] in SILENT
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in family.parameters())

    def test_skips_missing_entries_by_integrating_over_them(self, parameter):
        family = assembled_family(parameter)
        h = (0.5 * torch.randn(family.params).double()).requires_grad_()
        x = family(h.detach()).sample()
        refuse = "cannot skip single entries: drop or impute incomplete rows"
        if not can_skip(family):
            with pytest.raises(ValueError, match=refuse):
                family.present(family(h))
            return
        for place in range(len(x)):
            supports = getattr(family.support, "supports", [family.support] * len(x))
            values, weight = numbers(supports[place])
            all_x = x.expand(len(values), -1).clone()
            all_x[:, place] = values
            integral = (family(h).log_prob(all_x) + weight.log()).logsumexp(0)
            x_there = x.clone()
            x_there[place] = torch.nan
            p = family.of(h, Batch(x_there[None]))
            found = p.log_prob(x_there)
            assert found.item() == pytest.approx(integral.item(), abs=1e-5)
            slopes = [torch.autograd.grad(value, h)[0] for value in (found, integral)]
            assert torch.allclose(*slopes, atol=1e-2)  # a Laplace density has a kink
            completed = p.complete(x_there.expand(2, 7, -1))
            assert family.support.check(completed).all()
            assert (completed[..., place].unique().numel() > 1) or supports[place].is_discrete
            there = ~x_there.isnan()
            assert (completed[..., there] == x[there]).all()
        x[:] = torch.nan
        p = family.of(h, Batch(x[None]))
        p.log_prob(x).backward()
        assert p.log_prob(x).item() == pytest.approx(0, abs=1e-12)
        assert h.grad.isfinite().all()

    def test_begins_at_the_marginal_of_the_data(self, parameter):
        family = assembled_family(parameter)
        with torch.no_grad():
            x = family(0.5 * torch.randn(200, *family.params).double()).sample()
            if x[0].dim() == 1 and family.support is not sphere and not family.conditions:
                x[:, 0] = x[0, 0]
            batch = Batch(x)
            family.start(x)
            h = family.marginal(batch)
            if h is None:
                return
            assert h.shape == family.params
            assert h.isfinite().all()
            fitted, zero = (
                family.given(value, batch).log_prob(x).mean() for value in (h, torch.zeros_like(h))
            )
            assert fitted.isfinite()
            assert fitted > zero - 0.5  # a flow is only told the mean and the spread

    @pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
    def test_starts_at_data_of_any_scale(self, parameter, scale):
        family = assembled_family(parameter)
        if family.support.is_discrete or family.support is sphere:
            return
        x = rows_of(parameter, scale)
        family.start(x)
        for h in (torch.zeros(family.params).double(), family.marginal(Batch(x))):
            assert h is None or family(h).log_prob(x).isfinite().all()

    def test_is_stable_far_out_in_float32(self, parameter):
        family = assembled_family(parameter).float()
        for scale in (1.0, 50.0):
            h = scale * (2 * torch.randint(0, 2, (8, *family.params)) - 1.0)
            log_prob = family(h.requires_grad_()).log_prob(far_out(family))
            log_prob.clamp(min=-1e30).sum().backward()
            assert log_prob.dtype == torch.float32
            assert not log_prob.isnan().any()
            assert h.grad is not None
            assert h.grad.isfinite().all()
            assert all(p.grad.isfinite().all() for p in family.parameters())
