"""The mixture against exact answers: scikit-learn, monotone EM, SVI, and data that degenerate."""

import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from memory import peak
from sklearn.datasets import load_iris
from sklearn.mixture import GaussianMixture

from pyrovae import VAE, Batch, Mixture, SemiSupervisedVAE, Transformed, fit, log_likelihood
from pyrovae.inference import em
from pyrovae.objectives import Objective


def blobs(rows=600, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 2, generator=generator, dtype=torch.float64)
    k = torch.rand(rows, generator=generator) < 0.35
    shift = torch.tensor([[3.0, 1.0], [-2.0, 0.5]], dtype=torch.float64)
    return x * torch.tensor([1.0, 0.5]) + shift[k.long()]


@pytest.mark.parametrize("iterations", [1, 5, 40])
def test_em_is_scikit_learns_from_the_same_start(iterations):
    x = torch.as_tensor(load_iris().data)
    model = Mixture(x=(4,), components=3, family={"kind": "multivariate-normal", "floor": 1e-6})
    model.double().start(Batch(x))
    start = model.family(model.h)
    reference = GaussianMixture(
        3,
        reg_covar=0,
        tol=0,
        max_iter=iterations,
        weights_init=model.logits.softmax(-1).detach().numpy(),
        means_init=start.loc.detach().numpy(),
        precisions_init=start.precision_matrix.detach().numpy(),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it was told to stop early
        reference.fit(x.numpy())
    list(em(model, Batch(x), epochs=iterations, tolerance=0))
    assert np.allclose(
        model.log_prob(Batch(x)).detach(), reference.score_samples(x.numpy()), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize(
    "family", ["multivariate-normal", "normal", "fixed-normal", "bernoulli", "poisson"]
)
def test_em_never_decreases(family):
    x = blobs()
    if family in ("bernoulli", "poisson"):
        x = (x > 0).double() if family == "bernoulli" else x.abs().round()
    history = fit(Mixture(x=(2,), components=4, family=family), x, epochs=60, tolerance=0)
    losses = [epoch.loss for epoch in history.epochs]
    assert all(b <= a + 1e-10 for a, b in pairwise(losses))
    assert losses[-1] < losses[0]


def test_em_never_decreases_where_the_eigenvalue_floor_binds():
    line = torch.linspace(0, 1, 60, dtype=torch.float64)[:, None]
    x = torch.cat([line, 2 * line, torch.ones_like(line)], 1)  # rank one, and a constant column
    family = {"kind": "multivariate-normal", "floor": 0.05}
    model = Mixture(x=(3,), components=3, family=family)
    losses = [epoch.loss for epoch in fit(model, x, epochs=50, tolerance=0).epochs]
    assert all(b <= a + 1e-10 for a, b in pairwise(losses))
    covariance = model.family(model.h).covariance_matrix / torch.outer(
        model.family.unit, model.family.unit
    )
    assert torch.linalg.eigvalsh(covariance).min() >= 0.05**2 * (1 - 1e-6)


def test_the_bernoulli_floor_keeps_unseen_values_possible():
    x = torch.zeros(20, 3)
    x[:10, 0] = 1
    model = Mixture(x=(3,), components=2, family={"kind": "bernoulli", "floor": 0.01})
    fit(model, x)
    result = log_likelihood(model, torch.ones(1, 3))
    assert np.isfinite(result.value).all()
    probabilities = model.h.sigmoid()
    assert probabilities.min() >= 0.01 - 1e-12
    assert probabilities.max() <= 0.99 + 1e-12


@pytest.mark.parametrize("objective", ["elbo", "marginal-likelihood"])
def test_svi_reaches_the_likelihood_of_em(objective):
    x = blobs()
    by_em, by_svi = (Mixture(x=(2,), components=2) for _ in range(2))
    fit(by_em, x, epochs=200)
    options = {"method": "svi", "objective": objective, "dtype": "float64"}
    fit(by_svi, x, epochs=60, batch_size=100, learning_rate=0.03, **options)
    fit(by_svi, x, epochs=60, batch_size=600, learning_rate=0.01, start=False, **options)
    a, b = (log_likelihood(model, x).mean for model in (by_em, by_svi))
    assert abs(a - b) < 0.01


@pytest.mark.parametrize("objective", ["elbo", "marginal-likelihood"])
def test_each_way_to_sum_over_k_has_the_gradient_of_log_p(objective):
    model, x = Mixture(x=(2,), components=3, family="normal").double(), blobs(40)
    model.start(Batch(x))
    with model.scope():
        elbo = Objective.from_spec(objective).build(model.enumerates)
        loss = elbo.differentiable_loss(model.model, model.guide, Batch(x))
    exact = -model.log_prob(Batch(x)).sum()
    assert torch.allclose(loss, exact, rtol=1e-12)
    parameters = list(model.parameters())
    a, b = (torch.autograd.grad(value, parameters) for value in (loss, exact))
    assert all(torch.allclose(one, other, atol=1e-10) for one, other in zip(a, b, strict=True))


def test_a_marginal_likelihood_needs_latents_that_can_be_summed_over():
    with pytest.raises(ValueError, match="sums over discrete latents, and the model has none"):
        fit(VAE(x=(2,), z=(1,), likelihood="normal"), blobs(), objective="marginal-likelihood")
    partly = SemiSupervisedVAE(x=(2,), z=(1,), classes=2, likelihood="normal")
    rows = Batch(blobs(), labels=torch.zeros(600).long())
    with pytest.raises(ValueError, match="cannot sum over 'z', which is continuous: use elbo"):
        fit(partly, rows, objective="marginal-likelihood")


def test_the_guide_is_the_exact_posterior_without_gradient():
    model, x = Mixture(x=(2,), components=3), blobs(50)
    model.double().start(Batch(x))
    from pyro import poutine

    with model.scope():
        site = poutine.trace(model.guide).get_trace(Batch(x)).nodes["k"]
    assert not site["fn"].logits.requires_grad
    assert torch.allclose(site["fn"].probs, model.joint(Batch(x)).softmax(-1))


def test_statistics_add_up_over_rows():
    model, x = Mixture(x=(2,), components=3), blobs(100)
    model.double().start(Batch(x))
    whole = model.expect(Batch(x))
    halves = model.expect(Batch(x[:37])) + model.expect(Batch(x[37:]))
    for name in ("n", "t", "log_prob"):
        assert torch.allclose(getattr(whole, name), getattr(halves, name))
    assert whole.n.sum().item() == pytest.approx(100)


def test_restarts_keep_the_highest_likelihood():
    x, options = blobs(), {"epochs": 3, "tolerance": 0, "seed": 1}
    reached = []
    for restarts in (1, 2, 4, 8):
        model = Mixture(x=(2,), components=8)
        fit(model, x, restarts=restarts, **options)
        reached.append(log_likelihood(model, x).mean)
    assert reached == sorted(reached)
    assert reached[0] < reached[-1]


def test_a_standardised_mixture_has_the_density_of_the_raw_rows():
    x = blobs() * torch.tensor([100.0, 0.01])
    raw = Mixture(x=(2,), components=2)
    inside = Transformed(base=Mixture(x=(2,), components=2), transform="standardize")
    a, b = fit(raw, x, seed=1), fit(inside, x, seed=1)
    assert a.epochs[-1].loss == pytest.approx(b.epochs[-1].loss, abs=1e-6)
    assert log_likelihood(raw, x).mean == pytest.approx(log_likelihood(inside, x).mean, abs=1e-6)
    assert log_likelihood(inside, x).exact


@pytest.mark.parametrize("family", ["multivariate-normal", "normal"])
@pytest.mark.parametrize("data", ["duplicates", "constant column", "scales", "one value"])
def test_degenerate_data_give_finite_densities(family, data):
    x = torch.randn(40, 3, dtype=torch.float64)
    if data == "duplicates":
        x = x[:4].repeat(10, 1)
    elif data == "constant column":
        x[:, 1] = 5
    elif data == "scales":
        x *= torch.tensor([1e8, 1.0, 1e-8])
    else:
        x = torch.ones(40, 3, dtype=torch.float64)
    model = Mixture(x=(3,), components=5, family=family)
    fit(model, x)
    assert np.isfinite(log_likelihood(model, x).value).all()


def test_fewer_rows_than_components_are_refused():
    with pytest.raises(ValueError, match="10 components need at least as many rows, got 4"):
        fit(Mixture(x=(2,)), blobs(4))


def test_shared_parameters_without_m_step_are_fitted_by_svi_only():
    family = {"kind": "ordered-logistic", "classes": 5}
    model = Mixture(x=(2,), components=2, family=family)
    x = 3.0 * (torch.rand(600, 1) < 0.5) + torch.randint(2, (600, 2))
    assert model.method == "svi"
    with pytest.raises(ValueError, match="components share, and no M-step for them: fit the mix"):
        fit(model, x, method="em")
    first, *_, last = fit(model, x, epochs=30, learning_rate=0.05).epochs
    assert last.loss < first.loss - 0.1


def test_a_tolerance_of_zero_takes_all_iterations():
    model = Mixture(x=(2,), components=1)
    assert len(fit(model, blobs(), epochs=30, tolerance=0).epochs) == 30


MEMORY = """
import torch
from pyrovae import Batch, Mixture
from pyrovae.inference import em
torch.manual_seed(0)
rows = Batch(torch.randn(1_000_000, 20, dtype=torch.float64))
mixture = Mixture(x=(20,), components=50).double()
mixture.start(rows)
assert len(list(em(mixture, rows, epochs=3, tolerance=0))) == 3
"""


@pytest.mark.slow
def test_em_on_a_million_rows_stays_under_four_gib():
    assert peak(MEMORY) < 4
