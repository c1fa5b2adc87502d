"""Families over real and positive numbers, the unit interval, angles, and joint normals."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import digamma, expit, gammaln

from pyrovae import VAE, Batch
from pyrovae.distributions import (
    Beta,
    Full,
    Gamma,
    JointNormal,
    LowRank,
    PresentNormal,
    TiltedUniform,
    VonMises,
)
from pyrovae.distributions.concentrated import stirling
from pyrovae.distributions.tilted import tilt
from pyrovae.families import Family
from pyrovae.families.continuous import inverse_scale


def assembled(kind, event=(1,), **fields):
    family = Family.from_spec({"kind": kind, **fields})
    family.setup(event)
    return family.double()


def numpy(*values):
    return (value.detach().numpy() for value in values)


def half_normal(loc, scale):
    """The logit-normal distribution, which scipy has not."""
    return lambda x: stats.norm(loc, scale).logpdf(np.log(x) - np.log1p(-x)) - np.log(x - x * x)


def tilted(eta):
    """The uniform distribution tilted, as a truncated exponential one."""
    p = stats.truncexpon(b=abs(eta), scale=1 / abs(eta))
    return lambda x: p.logpdf(x if eta < 0 else 1 - x)


LINE = [-1e3, -2.0, -0.3, 0.0, 0.4, 5.0, 1e4]
POSITIVE = [1e-12, 1e-3, 0.5, 1.0, 2.0, 40.0]
UNIT = [1e-12, 1e-3, 0.3, 0.5, 0.9, 1 - 1e-6]
ANGLES = [-math.pi, -2.0, 0.0, 0.1, 3.0, math.pi]
REFERENCES = [
    ("laplace", (0.3, 2.0), stats.laplace(0.3, 2.0).logpdf, LINE),
    ("laplace", (0.3, 2e-3), stats.laplace(0.3, 2e-3).logpdf, LINE),
    ("student-t", (0.3, 2.0), stats.t(2 + math.log1p(math.exp(3)), 0.3, 2.0).logpdf, LINE),
    ("log-normal", (0.3, 0.7), stats.lognorm(0.7, scale=math.exp(0.3)).logpdf, POSITIVE),
    ("logit-normal", (0.3, 0.7), half_normal(0.3, 0.7), UNIT),
    *(
        ("gamma", (m, 1 / k), stats.gamma(k, scale=math.exp(m) / k).logpdf, POSITIVE)
        for m, k in itertools.product((-2.0, 0.0, 1.0), (0.03, 1.0, 31.0, 33.0, 1e3, 1e5))
    ),
    *(
        ("beta", (m, 1 / c), stats.beta(c * expit(m), c * expit(-m)).logpdf, UNIT)
        for m, c in itertools.product((-6.0, 0.0, 1.0), (0.03, 1.0, 31.0, 70.0, 1e3, 1e5))
    ),
    *(
        ("von-mises", (math.cos(m), math.sin(m), 1 / k), stats.vonmises(k, m).logpdf, ANGLES)
        for m, k in itertools.product((-2.0, 0.0, 3.1), (0.03, 1.0, 60.0, 1e5))
    ),
    *(
        ("continuous-bernoulli", (eta,), tilted(eta), [0.0, *UNIT, 1.0])
        for eta in (-400.0, -50.0, -0.201, -0.199, -1e-3, 0.1, 3.0, 50.0)
    ),
]


def network_output(family, parameters):
    """The h at which a family over one entry has these parameters, the last one a scale."""
    if family.kind == "continuous-bernoulli":
        (eta,) = parameters
        return torch.tensor([eta / (1 - family.floor * abs(eta))], dtype=torch.float64)
    *others, scale = (torch.tensor([value], dtype=torch.float64) for value in parameters)
    return torch.stack([*others, inverse_scale(scale, family.smallest)])


@pytest.mark.parametrize(
    ("kind", "parameters", "expected", "x"),
    REFERENCES,
    ids=[f"{kind}{parameters}" for kind, parameters, *_ in REFERENCES],
)
def test_densities_are_those_of_scipy(kind, parameters, expected, x):
    family = assembled(kind)
    x = torch.tensor(x, dtype=torch.float64)
    found = family(network_output(family, parameters)).log_prob(x[:, None]).detach().numpy()
    with np.errstate(divide="ignore"):
        exact = expected(x.numpy())
    there = np.isfinite(exact)  # scipy's Laplace density underflows
    assert there.sum() >= 3
    assert np.allclose(found[there], exact[there], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_a_low_rank_density_is_that_of_its_covariance(rank):
    family = assembled("low-rank-normal", (4,), rank=rank)
    family.start(torch.randn(50, 4).double() * torch.tensor([1e-2, 1.0, 5.0, 1e3]))
    h = torch.randn(2 + rank, 4).double()
    p, x = family(h), torch.randn(6, 4).double()
    factor = (family.unit * h[2:]).mT
    scale = 1e-3 * family.unit + torch.nn.functional.softplus(h[1])
    covariance = factor @ factor.mT + scale.square().diag()
    expected = stats.multivariate_normal(*numpy(h[0], covariance)).logpdf(x.numpy())
    assert np.allclose(p.log_prob(x), expected, rtol=1e-9)
    assert torch.allclose(p.variance, covariance.diagonal())
    v = torch.randn(4).double()
    assert torch.allclose(p.covariance.times(v), covariance @ v)
    assert torch.allclose(p.covariance.solve(v), torch.linalg.solve(covariance, v))
    draws = p.sample((20_000,))
    error = (draws.T.cov() - covariance) / torch.outer(p.stddev, p.stddev)
    assert error.abs().max() < 5 * (2 / 20_000) ** 0.5  # by chance once in 10^6


ETA = (-900, -50, -2, -0.2001, -0.1999, -1e-3, -1e-9, 0, 0.1, 0.1999, 0.2001, 1, 50, 900)


def test_moments_of_the_tilted_uniform_are_the_derivatives_of_its_normaliser():
    eta = torch.tensor(ETA, dtype=torch.float64, requires_grad=True)
    p = TiltedUniform(eta)
    (slope,) = torch.autograd.grad(-p.log_prob(torch.zeros(())).sum(), eta)
    (curvature,) = torch.autograd.grad(p.mean.sum(), eta)
    assert torch.allclose(p.mean, slope, rtol=1e-10, atol=1e-13)
    assert torch.allclose(p.variance, curvature, rtol=1e-8, atol=1e-13)
    assert torch.allclose(tilt(p.mean), eta, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("eta", [-900.0, -50.0, -0.2, 0.0, 1e-4, 16.0, 50.0, 900.0])
def test_the_tilted_uniform_integrates_to_one_in_float32(eta):
    near = torch.linspace(0, 1, 200_001).double() ** 2
    x = (near if eta < 0 else 1 - near.flip(0)).float()
    density = TiltedUniform(torch.tensor(eta)).log_prob(x).exp().double()
    assert torch.trapezoid(density, x.double()).item() == pytest.approx(1, abs=1e-4)


def test_the_remainder_of_stirlings_formula():
    k = np.array([1e-12, 0.1, 1.0, 31.9, 32.1, 40.0, 100.0, 1e3])
    at = torch.tensor(k, requires_grad=True)
    remainder = stirling(at, at.log())
    remainder.sum().backward()
    exact, slope = gammaln(k) - (k * np.log(k) - k), digamma(k) - np.log(k)
    assert np.allclose(remainder.detach(), exact, rtol=0, atol=2e-12)
    assert np.allclose(at.grad, slope, rtol=1e-9)


CONCENTRATED = [
    (Gamma, lambda c: math.log(40) + 0 * c, lambda sd: 40 * (1 + sd)),
    (Beta, lambda c: -1 + 0 * c, lambda sd: expit(-1) + sd * (expit(-1) * expit(1)) ** 0.5),
    (VonMises, lambda c: 3 + 0 * c, lambda sd: 3 + sd),
]


@pytest.mark.parametrize(("kind", "parameter", "at"), CONCENTRATED)
@pytest.mark.parametrize("concentration", [1e4, 1e6])
def test_concentrated_densities_keep_their_digits_in_float32(kind, parameter, at, concentration):
    sd = torch.linspace(-4, 4, 41).double() / concentration**0.5
    x = at(sd).float()
    found = {}
    for dtype in (torch.float32, torch.float64):
        c = torch.tensor(concentration, dtype=dtype, requires_grad=True)
        found[dtype] = kind(parameter(c).detach(), c).log_prob(x.to(dtype))
        found[dtype].sum().backward()
        found[dtype, "slope"] = c.grad.double()
    normal = -0.5 * concentration * sd.square() + 0.5 * math.log(concentration)
    assert (found[torch.float64] - normal).std() < 0.5  # it is close to a normal
    assert (found[torch.float32] - found[torch.float64]).abs().max() < 0.02
    slopes = found[torch.float32, "slope"], found[torch.float64, "slope"]
    assert torch.allclose(*slopes, rtol=0.02)


@pytest.mark.parametrize("kind", ["laplace", "student-t", "low-rank-normal"])
def test_scales_have_a_floor_relative_to_the_data(kind):
    x = torch.tensor([1.0, 1e4]) * torch.randn(500, 2).double()
    family = assembled(kind, (2,), floor=0.01)
    family.start(x)
    h = torch.full(family.params, -800.0).double()
    p = family(h)
    scale = p.covariance.scale if kind == "low-rank-normal" else p.base_dist.scale
    assert torch.allclose(scale, 0.01 * x.std(0, correction=0))


def test_concentrations_have_a_ceiling_relative_to_the_data():
    """At the floor the standard deviation is a hundredth of the data's."""
    y = 0.1 * torch.randn(5000, 2).double() + torch.tensor([0.0, 3.0])
    for kind, x in (("gamma", y.exp()), ("beta", y.sigmoid()), ("von-mises", y)):
        family = assembled(kind, (2,), floor=0.01)
        family.start(x)
        h = family.marginal(Batch(x))
        free = family(h).variance
        h[-1] = -800
        assert torch.allclose(family(h).variance.sqrt(), 0.01 * free.sqrt(), rtol=0.05), kind


def test_marginals_are_the_fits_of_scipy():
    x = stats.gamma(0.7, scale=3.0).rvs((300, 1), random_state=1)
    batch = Batch(torch.tensor(x))
    for kind, mean in (("gamma", None), ("laplace", 1), ("log-normal", None)):
        family = assembled(kind)
        family.start(batch.x)
        found = family(family.marginal(batch)).log_prob(batch.x).mean().item()
        reference = getattr(stats, {"log-normal": "lognorm"}.get(kind, kind))
        fitted = reference.fit(x) if mean else reference.fit(x, floc=0)
        assert found == pytest.approx(reference.logpdf(x, *fitted).mean(), abs=1e-5)
    angles = stats.vonmises(2.0, 3.0).rvs((300, 1), random_state=1)
    family = assembled("von-mises")
    p = family(family.marginal(Batch(torch.tensor(angles)))).base_dist
    kappa, loc, _ = stats.vonmises.fit(angles, fscale=1)
    assert p.concentration.item() == pytest.approx(kappa, rel=1e-4)
    assert p.loc.item() == pytest.approx(loc, rel=1e-4)


def test_the_marginal_of_a_student_t_is_a_maximum_that_outliers_do_not_move():
    x = torch.randn(400, 2).double()
    x[:20] = 1e3
    family = assembled("student-t", (2,), floor=1e-6)
    family.start(x)
    h = family.marginal(Batch(x)).requires_grad_()
    p = family(h)
    p.log_prob(x).mean().backward()
    assert h.grad.abs().max() < 1e-3
    assert (p.mean.abs() < 0.3).all()
    assert (p.base_dist.scale < 2).all()


def test_the_marginal_of_a_low_rank_normal_is_the_fit_of_principal_components():
    """Where all entries are as noisy, which is where that fit is the best one."""
    factor = torch.nn.functional.normalize(torch.randn(2, 6).double(), dim=0)
    x = torch.randn(4000, 2).double() @ factor + 0.5 * torch.randn(4000, 6).double()
    x = x * torch.tensor([1.0, 0.1, 10.0, 1.0, 1.0, 1.0])
    family = assembled("low-rank-normal", (6,))
    family.start(x)
    p = family(family.marginal(Batch(x)))
    assert torch.allclose(p.variance, x.var(0, correction=0), rtol=1e-5)
    full = stats.multivariate_normal(*numpy(x.mean(0), x.T.cov(correction=0)))
    assert p.log_prob(x).mean().item() == pytest.approx(full.logpdf(x.numpy()).mean(), abs=0.02)


def test_the_marginal_of_a_continuous_bernoulli_has_the_mean_of_the_data():
    x = torch.tensor([[0.0, 1.0, 0.01, 0.5], [0.0, 1.0, 0.0, 0.8]]).double()
    family = assembled("continuous-bernoulli", (4,))
    p = family(family.marginal(Batch(x)))
    expected = torch.tensor([0.0, 1.0, 0.005, 0.65]).double()
    assert torch.allclose(p.mean, expected, atol=0.002, rtol=1e-6)


def test_neither_side_of_a_network_sees_angles_jump():
    family = assembled("von-mises", (2,))
    ends = torch.tensor([[math.pi, 1.0], [-math.pi, 1.0]], dtype=torch.float64)
    seen = family.encode(ends)
    assert seen.shape == (2, *family.seen)
    assert torch.allclose(seen[0], seen[1])
    assert family.encode_missing(torch.full((1, 2), torch.nan)).tolist() == [[0, 0, 0, 0]]
    turn = torch.linspace(-0.01, 0.01, 5).double()
    h = torch.stack([-turn.cos(), turn.sin(), torch.ones(5)], -1)[..., None].expand(5, 3, 2)
    log_prob = family(h).log_prob(ends[:, None])
    assert torch.allclose(log_prob[0], log_prob[1])
    assert (log_prob[0].diff().abs() < 0.02).all()
    zero = torch.zeros(family.params).double().requires_grad_()
    family(zero).log_prob(ends).sum().backward()
    assert zero.grad.isfinite().all()


REFUSED = [
    ("beta", [0.0, 0.5], "beta takes numbers above 0 and below 1 .continuous-bernoulli takes 0"),
    ("logit-normal", [1.0, 0.5], "logit-normal takes numbers above 0 and below 1"),
    ("continuous-bernoulli", [0.0, 1.5], "takes numbers between 0 and 1"),
    ("gamma", [0.0, 0.5], "gamma takes positive numbers"),
    ("log-normal", [-1.0, 0.5], "log-normal takes positive numbers"),
    ("von-mises", [0.0, 6.0], "von-mises takes angles in radians, from -pi to pi"),
]


@pytest.mark.parametrize(("kind", "row", "sentence"), REFUSED)
def test_rows_outside_the_support_are_refused(kind, row, sentence):
    vae = VAE(x=(2,), z=(1,), likelihood=kind)
    with pytest.raises(ValueError, match=sentence):
        vae.check(Batch(torch.tensor([[0.5, 0.5], row])))


def test_ends_are_taken_where_a_density_has_a_value_there():
    VAE(x=(2,), z=(1,), likelihood="continuous-bernoulli").check(Batch(torch.eye(2)))
    ends = torch.tensor([[-math.pi, math.pi]])
    VAE(x=(2,), z=(1,), likelihood="von-mises").check(Batch(ends))
    VAE(x=(2,), z=(1,), likelihood="von-mises").check(Batch(ends.double()))


@pytest.mark.parametrize("kind", ["multivariate-normal", "low-rank-normal"])
def test_joint_normals_take_vectors(kind):
    with pytest.raises(ValueError, match=rf"{kind} takes vectors as rows, got \(2, 2\): flatten"):
        Family.from_spec(kind).setup((2, 2))


D = 4
MASKS = torch.tensor(list(itertools.product([True, False], repeat=D)))
JOINT = ["multivariate-normal", "low-rank-normal"]


def joint(kind, *leading):
    """A joint normal over four entries, its covariance, and the h that it is from."""
    family = assembled(kind, (D,))
    h = torch.randn(*leading, *family.params).double().requires_grad_()
    p = family(h)
    if kind == "multivariate-normal":
        return family, h, p, p.covariance_matrix
    w, scale = p.covariance.factor, p.covariance.scale
    return family, h, p, w @ w.mT + scale.square().diag_embed()


@pytest.mark.parametrize("kind", JOINT)
def test_missing_entries_of_joint_normals_leave_the_sub_covariance(kind):
    """All patterns, each row of a batch with another one, for two particles."""
    family, h, p, covariance = joint(kind, 2, len(MASKS))
    x = torch.randn(len(MASKS), D).double()
    found = family.present(p).log_prob(torch.where(MASKS, x, torch.nan))
    exact = torch.zeros(2, len(MASKS)).double()
    for particle, (row, there) in itertools.product(range(2), enumerate(MASKS)):
        if there.any():
            sub = covariance[particle, row][there][:, there]
            loc = p.mean[particle, row][there]
            part = torch.distributions.MultivariateNormal(loc, sub)
            exact[particle, row] = part.log_prob(x[row][there])
    assert torch.allclose(found, exact, rtol=1e-9, atol=1e-9)
    slopes = [torch.autograd.grad(q.sum(), h, retain_graph=True)[0] for q in (found, exact)]
    assert torch.allclose(*slopes, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("kind", JOINT)
@pytest.mark.parametrize("there", MASKS[[2, 6, 11, 15]])
def test_completions_of_joint_normals_have_the_conditional_moments(kind, there):
    family, _, p, covariance = joint(kind)
    covariance = covariance.detach()
    x = torch.where(there, torch.randn(D).double(), torch.nan)
    with torch.no_grad():
        draws = family.present(p).complete(x.expand(2, 10_000, D)).reshape(-1, D)
    assert (draws[:, there] == x[there]).all()
    gain = covariance[~there][:, there] @ torch.linalg.inv(covariance[there][:, there])
    loc = p.mean.detach()
    mean = loc[~there] + gain @ (x - loc)[there]
    rest = covariance[~there][:, ~there] - gain @ covariance[there][:, ~there]
    sd = rest.diagonal().sqrt()
    drawn = draws[:, ~there]
    assert ((drawn.mean(0) - mean).abs() / sd).max() < 5 / 20_000**0.5  # by chance: 10^-6
    error = (drawn.T.cov().reshape(rest.shape) - rest) / torch.outer(sd, sd)
    assert error.abs().max() < 5 * (2 / 20_000) ** 0.5


def test_completions_of_independent_entries_differ_between_leading_dimensions():
    family = assembled("normal", (2,))
    p = family.present(family(torch.zeros(3, *family.params).double()))
    x = torch.tensor([0.0, torch.nan]).double()
    done = p.complete(x.expand(5, 3, 2))
    assert done.shape == (5, 3, 2)
    assert len(done[..., 1].unique()) == 15
    assert p.complete(x).shape == (3, 2)


@pytest.mark.parametrize("missing", [False, True])
def test_joint_normals_keep_their_digits_in_float32(missing):
    """Scales of 1e-3 beside factors of 1 that are nearly collinear."""
    factor = torch.randn(30, 3).double()
    factor[:, 2] = factor[:, 1] + 1e-3 * torch.randn(30)
    scale, loc = torch.full((30,), 1e-3).double(), torch.zeros(30).double()
    exact = JointNormal(loc, LowRank(factor, scale))
    x = exact.sample((20,)).float()
    if missing:
        x[:, ::3] = torch.nan
    tril = torch.linalg.cholesky(factor @ factor.T + scale.square().diag())
    kind = PresentNormal if missing else JointNormal
    wanted = kind(loc, Full(tril)).log_prob(x.double())
    for covariance in (LowRank(factor.float(), scale.float()), Full(tril.float())):
        found = kind(loc.float(), covariance).log_prob(x)
        assert found.dtype == torch.float32
        assert ((found - wanted).abs() < 0.02 * wanted.abs()).all()


@pytest.mark.parametrize("logit", [-300.0, -90.0, 90.0, 300.0])
def test_a_beta_whose_mean_rounds_to_an_end_keeps_its_tail(logit):
    """Where a = c m is tiny, log p(x) = log a - log x + (b - 1) log(1 - x) up to terms in a."""
    logits = torch.full((3,), logit, requires_grad=True)
    c = torch.tensor([1e-3, 1.0, 40.0], requires_grad=True)
    log_p = Beta(logits, c).log_prob(torch.tensor(0.25))
    near, far = (0.25, 0.75) if logit < 0 else (0.75, 0.25)
    exact = c.detach().log() - abs(logit) - math.log(near) + (c.detach() - 1) * math.log(far)
    assert torch.allclose(log_p, exact, rtol=1e-5)
    log_p.sum().backward()
    assert torch.allclose(logits.grad, torch.full((3,), 1.0 if logit < 0 else -1.0), rtol=1e-3)
    assert c.grad.isfinite().all()
