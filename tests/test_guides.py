"""The families that are mostly guides: on the sphere, over choices, mixtures and flows."""

import sys

import numpy as np
import pyro
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
import torch
from pyro import distributions as dist
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from torch.distributions import Distribution

from pyrovae import VAE, Batch, log_likelihood
from pyrovae.distributions import (
    NormalMixture,
    OneHot,
    PowerSpherical,
    UniformSphere,
    all_states,
    build_flow,
    sphere,
)
from pyrovae.families import Family, Flow, MixtureOfNormals, Normal
from pyrovae.families import OneHot as OneHotFamily
from pyrovae.families import PowerSpherical as PowerSphericalFamily

FLOWS = [(f, fast) for f in ("maf", "nsf", "realnvp") for fast in ("samples", "densities")]


def double(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def assembled(family, event):
    family.setup(event)
    return family.double()


def around(points=40_000):
    """Directions in the plane, evenly, and the angle between two of them."""
    angle = 2 * torch.pi * torch.arange(points).double() / points
    return torch.stack([angle.cos(), angle.sin()], -1), 2 * torch.pi / points


def over_the_globe(points=800):
    """Directions in space, and the area around each."""
    polar = torch.pi * (torch.arange(points).double() + 0.5) / points
    angle = 2 * torch.pi * torch.arange(points).double() / points
    polar, angle = (a.flatten() for a in torch.meshgrid(polar, angle, indexing="ij"))
    flat = torch.stack([angle.cos(), angle.sin()], -1) * polar.sin()[:, None]
    area = 2 * torch.pi**2 / points**2 * polar.sin()
    return torch.cat([flat, polar.cos()[:, None]], -1), area


def plane(limit=9.0, points=600):
    axis = torch.linspace(-limit, limit, points, dtype=torch.float64)
    return torch.cartesian_prod(axis, axis), (axis[1] - axis[0]) ** 2


def assert_mean(samples, expected, bound=5.0):
    """The mean over the first dimension, within 5 standard errors: once in 10^6 by chance."""
    error = samples.std(0) / len(samples) ** 0.5
    assert ((samples.mean(0) - expected).abs() < bound * error + 1e-9).all()


def assert_unbiased(estimate, mean, parameters, repeats=400):
    """Gradients of an estimate's average have those of the mean as their own mean.

    Args:
        estimate: of parameters `(repeats, ...)`, shape `(draws, repeats)`.
        mean: of the parameters, exact.
        parameters: which need a gradient.
        repeats: how many estimates.
    """
    exact = gradients(mean(*parameters), parameters)
    many = [p.detach().expand(repeats, *p.shape).clone().requires_grad_() for p in parameters]
    for found, truth in zip(gradients(estimate(*many).mean(0).sum(), many), exact, strict=True):
        assert_mean(found, truth)


def gradients(function, parameters):
    return torch.autograd.grad(function, parameters)


class TestUniformSphere:
    @pytest.mark.parametrize(("dim", "area"), [(2, 2 * np.pi), (3, 4 * np.pi), (4, 2 * np.pi**2)])
    def test_density_is_one_over_the_area(self, dim, area):
        p = UniformSphere(dim, torch.zeros((), dtype=torch.float64))
        x = p.sample((7, 3))
        assert x.shape == (7, 3, dim)
        assert sphere.check(x).all()
        assert p.log_prob(x).shape == (7, 3)
        assert torch.allclose(p.log_prob(x), -torch.tensor(area).double().log())
        assert p.entropy().item() == pytest.approx(np.log(area))

    def test_samples_have_mean_0_and_variance_1_over_d(self):
        p = UniformSphere(5, torch.zeros((), dtype=torch.float64)).expand((2, 3))
        x = p.sample((20_000,))
        assert p.mean.shape == p.variance.shape == x.shape[1:] == (2, 3, 5)
        assert_mean(x, p.mean)
        assert_mean(x.square(), p.variance)
        assert p.log_prob(x[0, 0, 0]).shape == (2, 3)

    def test_follows_a_tensor_in_its_dtype(self):
        assert UniformSphere(3, torch.zeros(2).half()).sample().dtype == torch.float16


class TestPowerSpherical:
    @pytest.mark.parametrize("kappa", [1e-6, 0.4, 7.0, 300.0])
    @pytest.mark.parametrize("dim", [2, 3])
    def test_integrates_to_one_with_its_moments_and_entropy(self, dim, kappa):
        x, area = around() if dim == 2 else over_the_globe()
        mu = torch.nn.functional.normalize(double(dim), dim=0)
        p = PowerSpherical(mu, torch.tensor(kappa).double())
        log_p = p.log_prob(x)
        mass = log_p.exp() * area
        assert mass.sum().item() == pytest.approx(1, abs=1e-5)
        assert torch.allclose((mass[:, None] * x).sum(0), p.mean, atol=1e-5)
        square = (mass[:, None] * x.square()).sum(0)
        assert torch.allclose(square - p.mean.square(), p.variance, atol=1e-5)
        assert p.entropy().item() == pytest.approx(-(mass * log_p).sum().item(), abs=1e-4)

    @pytest.mark.parametrize("dim", [4, 50])
    def test_integrates_to_one_in_many_dimensions(self, dim):
        mu = torch.eye(dim).double()[0]
        p = PowerSpherical(mu, torch.tensor(20.0).double())

        def slice_of(t):
            x = torch.zeros(dim).double()
            x[0], x[1] = t, (1 - t * t) ** 0.5
            half = (dim - 1) / 2
            log_rim = np.log(2) + half * np.log(np.pi) - scipy.special.gammaln(half)
            return np.exp(p.log_prob(x).item() + log_rim + (dim - 3) / 2 * np.log1p(-t * t))

        total = scipy.integrate.quad(slice_of, -1, 1)[0]
        assert total == pytest.approx(1, abs=1e-6)

    @pytest.mark.parametrize("kappa", [0.3, 5.0, 2000.0])
    @pytest.mark.parametrize("dim", [2, 3, 6])
    def test_samples_have_the_law(self, dim, kappa):
        for first in (-1.0, 1.0, 0.0):  # both ends of the first axis, and elsewhere
            mu = torch.zeros(dim).double()
            mu[0], mu[1] = first, 1 - abs(first)
            p = PowerSpherical(mu, torch.tensor(kappa).double())
            x = p.rsample((4000,))
            assert sphere.check(x).all()
            half = (dim - 1) / 2
            cosine = scipy.stats.beta(half + kappa, half, loc=-1, scale=2)
            result = scipy.stats.kstest((x @ mu).clamp(-1, 1).numpy(), cosine.cdf)
            assert result.pvalue > 1e-5  # the seed is fixed; once in 10^5 for another
            assert_mean(x, p.mean)
            square = cosine.moment(2)
            across = (1 - square) / (dim - 1) * torch.eye(dim).double()
            along = (square - (1 - square) / (dim - 1)) * mu[:, None] * mu
            assert_mean(x[:, :, None] * x[:, None, :], across + along)

    @pytest.mark.parametrize("dim", [2, 3])
    @pytest.mark.parametrize("sign", [-1, 1])
    def test_pathwise_gradients_are_those_of_quadrature(self, dim, sign):
        h = (sign * double(dim).abs()).requires_grad_()
        kappa = torch.tensor(2.5).double().requires_grad_()
        weight = double(dim)

        def q(h, kappa):
            return PowerSpherical(torch.nn.functional.normalize(h, dim=-1), kappa)

        def f(x):
            return torch.sin(2 * x @ weight) + x[..., 0] * x[..., -1]

        x, area = around(4000) if dim == 2 else over_the_globe(300)

        def mean(*parameters):
            return (q(*parameters).log_prob(x).exp() * area * f(x)).sum()

        assert_unbiased(lambda *many: f(q(*many).rsample((250,))), mean, (h, kappa))

    @pytest.mark.parametrize("kappa", [1e-8, 1e-2, 1.0, 1e2, 1e4])
    @pytest.mark.parametrize("dim", [2, 3, 64])
    def test_is_stable_in_float32(self, dim, kappa):
        for mu in (torch.eye(dim)[0], -torch.eye(dim)[0], torch.ones(dim) / dim**0.5):
            mu, scale = mu.clone().requires_grad_(), torch.tensor(kappa).requires_grad_()
            p = PowerSpherical(mu, scale)
            x = p.rsample((50,))
            assert sphere.check(x).all()
            everywhere = torch.cat([x, mu.detach()[None], -mu.detach()[None]])
            log_p = p.log_prob(everywhere)
            exact = PowerSpherical(mu.detach().double(), scale.detach().double())
            assert torch.allclose(
                log_p[:51].double(), exact.log_prob(everywhere[:51].double()), rtol=1e-4, atol=2e-3
            )
            assert p.entropy().item() == pytest.approx(exact.entropy().item(), abs=1e-4 * dim)
            (log_p.sum() + x.sum()).backward()
            for gradient in (mu.grad, scale.grad):
                assert gradient.isfinite().all()

    def test_a_vector_off_the_sphere_is_refused(self):
        p = PowerSpherical(torch.eye(3)[0], torch.tensor(2.0))
        with pytest.raises(ValueError, match="within the support"):
            p.log_prob(torch.tensor([1.0, 0.1, 0.0]))
        unit = torch.nn.functional.normalize(torch.randn(50, 3), dim=-1)
        assert sphere.check(unit.double()).all()


class TestPowerSphericalFamily:
    def test_no_direction_at_all_gives_finite_gradients(self):
        family = PowerSphericalFamily()
        family.setup((3,))
        h = torch.zeros(4, 4, requires_grad=True)
        q = family(h)
        x = q.rsample((5,))
        (q.log_prob(x).sum() + x.sum()).backward()
        assert sphere.check(x).all()
        assert h.grad.isfinite().all()
        assert (h.grad[:, 0] != 0).all()

    @pytest.mark.parametrize("event", [(1,), (2, 3)])
    def test_refuses_what_is_no_vector_of_two_or_more(self, event):
        with pytest.raises(ValueError, match="takes vectors of 2 or more entries, not"):
            PowerSphericalFamily().setup(event)

    def test_marginal_has_the_mean_of_the_rows(self):
        family = assembled(PowerSphericalFamily(), (4,))
        x = PowerSpherical(
            torch.nn.functional.normalize(double(4), dim=0), torch.tensor(6.0).double()
        ).sample((500,))
        assert torch.allclose(family(family.marginal(Batch(x))).mean, x.mean(0), atol=1e-9)

    @pytest.mark.parametrize("rows", [torch.eye(3)[:1], torch.stack([torch.eye(3)[0]] * 2)])
    def test_marginal_is_finite_for_any_rows(self, rows):
        family = assembled(PowerSphericalFamily(), (3,))
        for x in (rows, torch.cat([rows, -rows])):
            assert family.marginal(Batch(x.double())).isfinite().all()

    def test_concentration_stays_below_the_floor_of_the_spread(self):
        family = assembled(PowerSphericalFamily(floor=0.1), (3,))
        h = torch.tensor([-1000.0, 1, 0, 0]).double()
        assert family(h).concentration.item() == pytest.approx(200)


class TestOneHot:
    def test_probabilities_sum_to_one_and_are_those_of_categoricals(self):
        logits = double(5, 3, 4)
        p, states = OneHot(logits, 2), all_states((3, 4)).double()
        assert states.shape == (64, 3, 4)
        log_p = p.log_prob(states[:, None])
        assert torch.allclose(log_p.exp().sum(0), torch.ones(5).double())
        categorical = dist.Categorical(logits=logits).to_event(1)
        assert torch.allclose(log_p, categorical.log_prob(states.argmax(-1)[:, None]))

    def test_samples_have_the_mean_and_the_variance(self):
        p = OneHot(double(2, 4), straight_through=True)
        for x in (p.sample((20_000,)), p.rsample((20_000,)), p.expand((20_000, 2)).sample()):
            assert p.support.check(x).all()
            assert_mean(x, p.mean)
            assert_mean((x - p.mean).square(), p.variance)

    def test_straight_through_gradient_is_that_of_the_mean(self):
        logits, weight = double(6, 3, 4).requires_grad_(), double(6, 3, 4)
        x = OneHot(logits, 2, straight_through=True).rsample()
        through, of_mean = (
            gradients((weight * value).sum(), logits)[0] for value in (x, logits.softmax(-1))
        )
        assert torch.allclose(through, of_mean)

    @pytest.mark.parametrize("event", [(4,), (2, 3)])
    def test_lists_its_states_for_any_batch(self, event):
        p = OneHot(double(5, 2, *event), len(event))
        states = all_states(event)
        assert p.enumerate_support(expand=False).shape == (len(states), 1, 1, *event)
        full = p.enumerate_support()
        assert full.shape == (len(states), 5, 2, *event)
        assert (full[:, 3, 1] == states).all()

    @pytest.mark.parametrize("particles", [None, 4])
    @pytest.mark.parametrize("event", [(4,), (2, 3)])
    def test_is_summed_over_in_plates(self, event, particles):
        rows = 5
        prior, logits = double(*event), double(rows, *event)
        weight, x = double(*event), double(rows)
        dims = len(event)

        def score(z):
            return (z * weight).flatten(-dims).sum(-1)

        def data():
            return pyro.plate("data", rows, dim=-1)

        def model():
            with data():
                z = pyro.sample("z", OneHot(prior, dims))
                pyro.sample("x", dist.Normal(score(z), 1.0), obs=x)

        def guide():
            with data():
                pyro.sample("z", OneHot(logits, dims), infer={"enumerate": "parallel"})

        elbo = TraceEnum_ELBO(
            num_particles=particles or 1,
            vectorize_particles=particles is not None,
            max_plate_nesting=1,
        )
        states = all_states(event).double()[:, None]
        q, p = OneHot(logits, dims), OneHot(prior, dims)
        log_w = (
            p.log_prob(states) + dist.Normal(score(states), 1.0).log_prob(x) - q.log_prob(states)
        )
        exact = (q.log_prob(states).exp() * log_w).sum()
        assert elbo.loss(model, guide) == pytest.approx(-exact.item(), abs=1e-10)


class TestOneHotFamily:
    @pytest.mark.parametrize(
        ("event", "states"), [((10,), 10), ((3, 10), 1000), ((999, 7), 7**999), ((1,), 1)]
    )
    def test_counts_its_states_without_listing_them(self, event, states):
        family = assembled(OneHotFamily(), event)
        assert family.states == states
        assert family(torch.zeros(event)).has_rsample == (states > 256)

    def test_the_m_step_is_the_largest_likelihood_above_the_floor(self):
        family = assembled(OneHotFamily(floor=0.5), (2, 5))
        frequency = torch.tensor([[0.0, 0.05, 0.1, 0.25, 0.6], [0, 0, 1, 0, 0]]).double()
        p = family.maximize(frequency.flatten()[None])[0].exp()
        assert torch.allclose(p.sum(-1), torch.ones(2).double())
        assert (p >= 0.1 - 1e-12).all()
        # Karush, Kuhn and Tucker: above the floor one slope, at the floor none steeper
        slope = frequency / p
        steepest = slope.amax(-1, keepdim=True).expand_as(slope)
        assert torch.allclose(slope[p > 0.1 + 1e-9], steepest[p > 0.1 + 1e-9])
        assert torch.allclose(
            p[0], torch.tensor([0.1, 0.1, 0.1, 0.7 * 5 / 17, 0.7 * 12 / 17]).double()
        )

    def test_the_m_step_without_a_floor_in_the_way_is_the_frequency(self):
        family = assembled(OneHotFamily(), (3, 4))
        frequency = double(2, 3, 4).softmax(-1)
        assert torch.allclose(family.maximize(frequency.flatten(1)), frequency.log())


def mixture(components, *event, batch=()):
    """Logits, means and scales of normals that overlap, and stand along the diagonal."""
    diagonal = torch.linspace(-1.5, 1.5, components).double().reshape(-1, *(1 for _ in event))
    loc = diagonal + 0.5 * double(*batch, components, *event)
    scale = 0.4 + torch.rand(*batch, components, *event, dtype=torch.float64)
    return tuple(p.requires_grad_() for p in (double(*batch, components), loc, scale))


class TestNormalMixture:
    def test_density_is_the_sum_over_the_components(self):
        logits, loc, scale = mixture(3, 2, 2, batch=(5,))
        x = double(7, 5, 2, 2)
        terms = dist.Normal(loc, scale).to_event(2).log_prob(x.unsqueeze(-3))
        expected = (logits.log_softmax(-1) + terms).logsumexp(-1)
        p = NormalMixture(logits, loc, scale, event_dim=2)
        assert (p.batch_shape, p.event_shape) == ((5,), (2, 2))
        assert torch.allclose(p.log_prob(x), expected)
        assert p.expand((7, 5)).batch_shape == (7, 5)
        assert torch.allclose(p.expand((7, 5)).log_prob(x), expected)

    def test_integrates_to_one_with_its_mean_and_variance(self):
        p, (x, area) = NormalMixture(*mixture(4, 2)), plane(12.0)
        mass = p.log_prob(x).exp() * area
        assert mass.sum().item() == pytest.approx(1, abs=1e-9)
        assert torch.allclose((mass[:, None] * x).sum(0), p.mean, atol=1e-8)
        spread = (mass[:, None] * (x - p.mean).square()).sum(0)
        assert torch.allclose(spread, p.variance, atol=1e-8)

    @pytest.mark.parametrize("stratified", [True, False])
    @pytest.mark.parametrize("dims", [1, 2])
    def test_pathwise_gradients_are_those_of_quadrature(self, dims, stratified):
        x, area = plane()
        if dims == 1:
            x, area = torch.linspace(-9, 9, 4001).double()[:, None], 18 / 4000

        def f(z):
            first, last = z[..., 0], z[..., -1]
            return (
                torch.sin(1.3 * first + 0.7 * last) + first * last**2 / 5 - (-(z**2)).exp().sum(-1)
            )

        def mean(*parameters):
            return (NormalMixture(*parameters).log_prob(x).exp() * area * f(x)).sum()

        def estimate(*many):
            return f(NormalMixture(*many, stratified=stratified).rsample((100,)))

        assert_unbiased(estimate, mean, mixture(3, dims))

    def test_pathwise_gradients_hold_in_ten_dimensions(self):
        """E |z|^2 is known in any dimension; components that overlap have no heavy tails."""

        def square(logits, loc, scale):
            return (logits.softmax(-1)[:, None] * (loc**2 + scale**2)).sum()

        def estimate(*many):
            return NormalMixture(*many).rsample((50,)).square().sum(-1)

        logits, loc, scale = mixture(3, 10)
        assert_unbiased(estimate, square, (logits, (0.3 * loc).detach().requires_grad_(), scale))

    @pytest.mark.parametrize("expanded", [True, False])
    def test_each_particle_has_the_law_and_rows_share_theirs_out(self, expanded):
        probs, n, rows = torch.tensor([0.15, 0.6, 0.25]).double(), 5, 20_000
        loc = torch.tensor([[-100.0], [0.0], [100.0]]).double().expand(rows, 3, 1)
        q = NormalMixture(probs.log().expand(rows, 3), loc, torch.ones_like(loc))
        z = q.expand((n, rows)).rsample() if expanded else q.rsample((n,))
        assert z.shape == (n, rows, 1)
        chosen = torch.nn.functional.one_hot((z[..., 0] / 100).round().long() + 1, 3).double()
        for each in chosen:
            assert_mean(each, probs)
        counts = chosen.sum(0)
        assert ((counts - n * probs).abs() < 2).all()
        edges = n * probs.cumsum(0)[:-1]  # a stratum with an edge in it is a coin's throw
        part = edges - edges.floor()
        assert_mean((counts[:, 0] - n * probs[0]).square(), part[0] * (1 - part[0]))
        assert_mean((counts[:, 2] - n * probs[2]).square(), part[1] * (1 - part[1]))
        together = chosen[0][:, :, None] * chosen[1][:, None, :]
        assert (together[:, 0, 0] == 0).all()  # its 0.75 draws of 5 are in one stratum
        assert_mean(together[:, 1, 2], (counts[:, 1] * counts[:, 2]).mean() / (n * (n - 1)))
        independent = [q.sample((n,)), NormalMixture(*mixture(3, 1, batch=(n, rows))).rsample()]
        assert independent[0].shape == independent[1].shape == z.shape
        several = (independent[0].abs() > 50).double().sum(0)[:, 0]
        assert several.var().item() == pytest.approx(n * 0.4 * 0.6, rel=0.05)

    def test_shared_out_draws_leave_the_variance_within_components(self):
        logits, loc, scale = mixture(3, 1)
        q, n = NormalMixture(logits, loc, scale).expand((5000,)), 30
        within = (logits.softmax(-1)[:, None] * scale**2).sum().item() / n
        shared = q.expand((n, 5000)).rsample().mean(0).var().item()
        independent = q.sample((n,)).mean(0).var().item()
        assert independent == pytest.approx(q.variance[0].item() / n, rel=0.1)
        assert shared == pytest.approx(within, rel=0.25)
        assert shared < 0.85 * independent

    def test_plates_of_particles_share_out_and_plates_of_rows_do_not(self):
        logits, loc = torch.zeros(2), torch.tensor([[-9.0], [9.0]])
        alone = NormalMixture(logits, loc, torch.ones(2, 1))
        with pyro.plate("data", 1000, dim=-1):
            rows = pyro.sample("z", alone)
        assert (rows > 0).sum() != 500  # by chance in 2.5 % of seeds
        with pyro.plate("particles", 6, dim=-2), pyro.plate("rows", 1000, dim=-1):
            z = pyro.sample("w", alone.expand((1000,)))
        assert ((z > 0).sum(0) == 3).all()

    @pytest.mark.parametrize("dims", [1, 20])
    @pytest.mark.parametrize("apart", [0.0, 1.0, 50.0, 1e4])
    @pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
    def test_is_finite_in_float32(self, dims, apart, scale):
        logits = torch.tensor([50.0, -50.0, 50.0, 49.0])
        loc = apart * torch.linspace(-1, 1, 4)[:, None].expand(4, dims)
        parameters = [logits, loc, torch.full((4, dims), scale)]
        parameters = [p.clone().requires_grad_() for p in parameters]
        q = NormalMixture(*parameters)
        z = q.rsample((500,))
        log_q = q.log_prob(z)
        (log_q.mean() + z.sum()).backward()
        assert log_q.isfinite().all()
        for p in parameters:
            assert p.grad.isfinite().all()

    @pytest.mark.parametrize("where", ["within", "in a tail", "beside a far component"])
    def test_gradients_keep_their_digits_in_float32(self, where):
        dims = 1 if where == "in a tail" else 6
        logits, loc, scale = (p.detach().float().double() for p in mixture(4, dims, batch=(100,)))
        if where == "beside a far component":
            loc[:, 0, 2] += 1e4
        z = NormalMixture(logits[:, 1:], loc[:, 1:], scale[:, 1:]).sample((20,))
        if where == "in a tail":
            z = torch.stack([(loc + 5 * scale).amax(1), (loc - 5 * scale).amin(1)])
        z, slope, found = z.float().double(), torch.linspace(1, 2, dims), []
        for dtype in (torch.float32, torch.float64):
            p = [entry.to(dtype).requires_grad_() for entry in (logits, loc, scale)]
            moved = NormalMixture(*p)._with_gradient(z.to(dtype))
            found.append(gradients((moved * slope.to(dtype)).sum(), p))
        for single, exact in zip(*found, strict=True):
            assert torch.allclose(single.double(), exact, rtol=1e-3, atol=1e-3)


def divergence(family, log_p):
    """KL(q || p) after 200 steps of its descent, by 10 000 draws."""
    family.setup((2,))
    h = torch.nn.Parameter(torch.zeros(family.params))
    optimizer = torch.optim.Adam([h, *family.parameters()], lr=0.02)
    for _ in range(200):
        q = family(h.expand(8, *family.params)).expand((16, 8))
        z = q.rsample()
        optimizer.zero_grad()
        (q.log_prob(z) - log_p(z)).mean().backward()
        optimizer.step()
    q = family(h)
    z = q.sample((10_000,))
    return (q.log_prob(z) - log_p(z)).mean().item()


def test_a_mixture_covers_two_modes_and_a_normal_does_not():
    logits, scale = torch.tensor([0.7, -0.3]), torch.tensor([[0.5, 0.8], [0.6, 0.3]])
    p = NormalMixture(logits, torch.tensor([[-1.5, 0.0], [1.5, 1.0]]), scale)
    assert divergence(MixtureOfNormals(components=6), p.log_prob) < 0.15
    assert divergence(Normal(), p.log_prob) > 0.25


@pytest.mark.parametrize("flow", ["maf", "nsf", "realnvp"])
def test_a_flow_bends_and_a_normal_does_not(flow):
    def banana(z):
        first, last = z.unbind(-1)
        return dist.Normal(0.0, 1.0).log_prob(first) + dist.Normal(first**2, 0.4).log_prob(last)

    assert divergence(Flow(flow=flow, hidden=(32,)), banana) < 0.35
    assert divergence(Normal(), banana) > 0.5


@pytest.mark.parametrize("family", [MixtureOfNormals(components=400), Flow()], ids=repr)
def test_likelihoods_begin_at_the_place_and_the_spread_of_the_rows(family):
    family = assembled(family, (3,))
    x = torch.tensor([1e4, 0.0, -5.0]) + torch.tensor([100.0, 1e-3, 1.0]) * double(50, 3)
    family.start(x)
    draws = family(family.marginal(Batch(x))).sample((2000,))
    assert ((draws.mean(0) - x.mean(0)).abs() < x.std(0)).all()
    assert torch.allclose(draws.std(0), x.std(0), rtol=0.4)


class TestFlow:
    @pytest.mark.parametrize(("flow", "fast"), FLOWS)
    def test_integrates_to_one_and_samples_fit_the_density(self, flow, fast):
        family = assembled(Flow(flow=flow, fast=fast, hidden=(16,)), (2,))
        family.start(double(100, 2) * torch.tensor([2.0, 0.5]) + torch.tensor([3.0, 0.0]))
        p = family(0.3 * double(20))
        with torch.no_grad():
            unit, area = plane(8.0, 240)
            x = family.center + family.unit * unit
            mass = p.log_prob(x).exp() * area * family.unit.prod()
            draws = p.sample((20_000,))
        assert mass.sum().item() == pytest.approx(1, abs=3e-3)
        for moment in (torch.tanh, lambda x: x.tanh() ** 2, lambda x: x.tanh().prod(-1)):
            expected = torch.einsum("i,i...->...", mass, moment(x))
            error = 5 * moment(draws).std(0) / 20_000**0.5
            assert ((moment(draws).mean(0) - expected).abs() < error + 3e-3).all()

    @pytest.mark.parametrize(("flow", "fast"), FLOWS)
    @pytest.mark.parametrize("dim", [1, 5])
    def test_a_fresh_draw_has_the_density_and_the_gradient_of_any_value(self, flow, fast, dim):
        family = assembled(Flow(flow=flow, fast=fast, hidden=(16,)), (dim,))
        h = double(4, *family.params).requires_grad_()
        q = family(h).expand((3, 4))
        z = q.rsample()
        remembered, again = q.log_prob(z), q.log_prob(z.clone())
        assert torch.allclose(family(h).log_prob(z[1, 2].detach())[2], again[1, 2])
        assert z.shape == (3, 4, dim)
        assert torch.allclose(remembered, again)
        weight = double(3, 4)
        whole = [h, *family.parameters()]
        for a, b in zip(
            *(
                torch.autograd.grad((weight * log_q).sum(), whole, retain_graph=True)
                for log_q in (remembered, again)
            ),
            strict=True,
        ):
            assert torch.allclose(a, b, atol=1e-8)

    @pytest.mark.parametrize("fast", ["samples", "densities"])
    def test_one_direction_takes_one_pass(self, fast):
        family = assembled(Flow(transforms=1, hidden=(4,), fast=fast), (5,))
        passes = []
        family.maps.transforms[0].hyper.register_forward_hook(lambda *_: passes.append(1))
        taken = {}
        for name in ("samples", "densities"):
            q = family(double(2, *family.params))
            passes.clear()
            q.rsample() if name == "samples" else q.log_prob(double(2, 5))
            taken[name] = len(passes)
        slow = taken.pop("samples" if fast == "densities" else "densities")
        assert taken == {fast: 1}
        assert slow == 6  # an entry at a time, and once more for the Jacobian

    def test_a_fresh_draw_is_not_inverted_and_a_constant_one_keeps_its_gradient(self):
        family = assembled(Flow(), (3,))
        h = double(4, *family.params).requires_grad_()
        q = family(h)
        constant = q.sample()
        assert q.log_prob(constant).requires_grad
        assert gradients(q.log_prob(constant).sum(), h)[0].abs().sum() > 0
        z = q.rsample()
        passes = []
        for module in family.maps.modules():
            module.register_forward_hook(lambda *_: passes.append(1))
        q.log_prob(z)
        assert not passes
        q.log_prob(constant)
        assert passes

    @pytest.mark.parametrize(("flow", "fast"), FLOWS)
    @pytest.mark.parametrize("value", [-50.0, 50.0])
    def test_is_finite_far_out_in_float32(self, flow, fast, value):
        family = Flow(flow=flow, fast=fast)
        family.setup((4,))
        h = torch.full((6, *family.params), value, requires_grad=True)
        q = family(h)
        z = q.rsample()
        log_q = q.log_prob(z)
        elsewhere = q.log_prob(3 * torch.randn(6, 4))
        (log_q.sum() + elsewhere.sum() + z.sum()).backward()
        assert log_q.isfinite().all()
        assert elsewhere.isfinite().all()
        assert h.grad.isfinite().all()

    def test_refuses_what_is_no_vector(self):
        with pytest.raises(ValueError, match=r"flow takes vectors, not \(2, 3\): flatten them"):
            Flow().setup((2, 3))

    def test_leaves_the_checks_of_arguments_on(self, monkeypatch):
        for name in [name for name in sys.modules if name.partition(".")[0] == "zuko"]:
            monkeypatch.delitem(sys.modules, name)
        build_flow("nsf", 2, 0, 1, (4,))
        assert Distribution._validate_args
        Distribution.set_default_validate_args(False)
        build_flow("nsf", 2, 0, 1, (4,))
        off = not Distribution._validate_args
        Distribution.set_default_validate_args(True)
        assert off


GUIDES = [
    MixtureOfNormals(components=3),
    Flow(hidden=(8,)),
    Flow(flow="realnvp", fast="densities"),
]


@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize("guide", GUIDES, ids=repr)
def test_guides_serve_a_vae(guide, particles):
    guide = Family.from_spec(guide.spec())
    vae = VAE(x=(3,), z=(2,), likelihood="fixed-normal", posterior=guide).double()
    x = Batch(double(20, 3))
    elbo = Trace_ELBO(
        num_particles=particles, vectorize_particles=particles > 1, max_plate_nesting=1
    )
    with vae.scope():
        loss = elbo.differentiable_loss(vae.model, vae.guide, x)
        loss.backward()
        losses = torch.tensor([elbo.loss(vae.model, vae.guide, x) for _ in range(30)])
    assert all(p.grad.abs().sum() > 0 for p in vae.posterior.parameters())
    result = log_likelihood(vae, x.x, particles=500, seed=0)
    error = 5 * losses.std().item() / 30**0.5 + 1e-2
    assert losses.mean().item() / 20 == pytest.approx(-result.elbo.mean(), abs=error)
    assert result.elbo.mean() <= result.value.mean()
