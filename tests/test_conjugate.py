"""Priors on a mixture's components and weights: EM finds the posterior's mode."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats
from torch.distributions import MultivariateNormal

from pyrovae import Batch, Error, Mixture, Transformed, fit
from pyrovae.inference import em
from pyrovae.models.conjugate import NormalInverseWishart
from pyrovae.models.model import Statistics

PRIOR = NormalInverseWishart(mean_rows=3, covariance_rows=4, width=0.5)
FAMILIES = ("multivariate-normal", "normal", "spherical-normal")


def rows(many=80):
    mix = torch.tensor([[2.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, -0.5, 0.1]]).double()
    x = torch.randn(many, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    x[: many // 3] += 3
    return x @ mix + torch.tensor([100.0, 0.0, -1.0])


def started(family, components, prior=PRIOR, x=None, **options):
    model = Mixture(x=(3,), components=components, family=family, prior=prior, **options).double()
    model.start(Batch(rows() if x is None else x))
    return model


@torch.no_grad()
def objective(model, x):
    return (model.log_prob(Batch(x)).sum() + model.log_prior(torch.tensor(len(x)))).item()


def iterate(model, x, times):
    values = [objective(model, x)]
    for _ in range(times):
        model.maximize(model.expect(Batch(x)))
        values.append(objective(model, x))
    return values


def test_the_density_is_scipys():
    model = started("multivariate-normal", 2)
    d, unit, center = 3, model.family.unit.numpy(), model.family.center.numpy()

    def log_prior():
        p = model.family(model.h.detach())
        total = 0
        for mean, covariance in zip(p.loc.numpy(), p.covariance_matrix.numpy(), strict=True):
            s = covariance / np.outer(unit, unit)
            total += stats.invwishart.logpdf(s, 4 + d, 4 * 0.5**2 * np.eye(d))
            total += stats.multivariate_normal.logpdf((mean - center) / unit, np.zeros(d), s / 3)
        return total

    differences = []
    for _ in range(5):
        model.h.data += 0.2 * torch.randn_like(model.h)
        ours = model.log_prior(torch.tensor(80)).item()
        differences.append(ours - log_prior())
    assert np.allclose(differences, differences[0], rtol=0, atol=1e-8)


def covariance_of(raw, family):
    if family == "spherical-normal":
        return raw[0].exp() * torch.eye(3).double()
    if family == "normal":
        return raw[:3].exp().diag()
    tril = torch.zeros(3, 3).double()
    tril[*torch.tril_indices(3, 3, -1)] = raw[3:]
    tril = tril + raw[:3].exp().diag()
    return tril @ tril.mT


@pytest.mark.parametrize("family", FAMILIES)
def test_one_component_is_where_direct_optimisation_ends(family):
    x = rows()
    model = started(family, 1)
    iterate(model, x, 2)
    unit, center = model.family.unit, model.family.center
    y = (x - center) / unit
    mean, raw = torch.zeros(3).double().requires_grad_(), torch.zeros(6).double().requires_grad_()

    def penalised():
        s = covariance_of(raw, family)
        inverse = s.inverse()
        prior = (4 + 3 + 3 + 2) * s.logdet() + 4 * 0.5**2 * inverse.trace()
        prior = prior + 3 * mean @ inverse @ mean
        return 0.5 * prior - MultivariateNormal(mean, s).log_prob(y).sum()

    optimizer = torch.optim.LBFGS([mean, raw], max_iter=500, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = penalised()
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)
    p = model.family(model.h.detach())
    found = p.covariance_matrix if family == "multivariate-normal" else p.variance.diag_embed()
    units = unit.expand(3)
    assert torch.allclose(p.mean[0], center + unit * mean, atol=1e-5)
    assert torch.allclose(
        found[0] / torch.outer(units, units), covariance_of(raw, family), atol=1e-5
    )


@pytest.mark.parametrize("concentration", [1.0, 2.5])
@pytest.mark.parametrize("family", FAMILIES)
def test_em_climbs_to_a_maximum_of_the_penalised_likelihood(family, concentration):
    x = rows()
    model = started(family, 3, concentration=concentration)
    values = iterate(model, x, 250)
    assert all(b >= a - 1e-8 for a, b in pairwise(values))
    assert values[-1] > values[0] + 1
    h, logits = model.h.data.clone(), model.logits.data.clone()
    for _ in range(30):
        model.h.data = h + 1e-3 * torch.randn_like(h)
        model.logits.data = logits + 1e-3 * torch.randn_like(logits)
        assert objective(model, x) < values[-1]


def test_of_several_runs_the_one_with_the_highest_penalised_likelihood_stays():
    x, model = rows(), started("normal", 6, concentration=2.0)
    runs = model.beside(12)
    runs.start(Batch(x))
    list(em(model, Batch(x), epochs=5, tolerance=0, runs=runs))
    found = runs.expect(Batch(x))
    values = found.log_prob + runs.log_prior(found.n.sum(-1))
    assert values.argmax() != found.log_prob.argmax()
    assert objective(model, x) == pytest.approx(values.max().item())


@pytest.mark.parametrize("transformed", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_no_component_shrinks_onto_a_row(family, transformed):
    x = rows()
    x[0] += 1000
    smallest = {}
    for prior in (None, NormalInverseWishart()):
        mixture = Mixture(x=(3,), components=6, family=family, prior=prior)
        fit(Transformed(base=mixture, transform="standardize") if transformed else mixture, x)
        covariance = mixture.family(mixture.h).variance.detach() / mixture.family.unit**2
        smallest[prior] = covariance.min().item()
        assert (prior is None) == bool(mixture.remarks())
    without, within = smallest.values()
    assert without < 1.01e-6
    assert within > 2 * 0.3**2 / (80 + 2 + 6 + 2)


def test_a_component_without_rows_is_at_the_priors_mode():
    model = started("normal", 3)
    found = model.expect(Batch(rows()))
    n, t = found.n.clone(), found.t.clone()
    n[1], t[1] = 0, 0
    model.maximize(Statistics(n, t, found.log_prob))
    p = model.family(model.h.detach()).base_dist
    assert torch.allclose(p.loc[1], model.family.center)
    mode = 4 * 0.5**2 / (4 + 3 + 3 + 2)
    assert torch.allclose(p.variance[1], mode * model.family.unit**2)


@pytest.mark.parametrize(
    ("concentration", "weights"),
    [(1, [20, 0.4, 9.6]), (2, [21, 1.4, 10.6]), (0.5, [19.5, 0, 9.1]), (-9, [10, 0, 0])],
)
def test_weights_are_the_mode_of_their_posterior(concentration, weights):
    model = started("normal", 3, prior=None, concentration=concentration)
    n = torch.tensor([20, 0.4, 9.6]).double()
    t = n[:, None] * model.family.statistics(rows()).mean(0)
    model.maximize(Statistics(n, t, torch.zeros(())))
    weights = torch.tensor(weights).double()
    assert torch.allclose(model.logits.softmax(-1), weights / weights.sum())
    assert model.on.tolist() == (weights > 0).tolist()


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_concentration_switches_components_off(dtype):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 2, generator=generator, dtype=torch.float64)
    x[:150, 0] += 7
    model = Mixture(x=(2,), components=10, family="normal", concentration=1 - 4)
    fit(model, x, epochs=1000, dtype=dtype, restarts=2)
    assert model.remarks() == ("8 of 10 components are switched off",)
    on = torch.nonzero(model.on)[:, 0].tolist()
    assert torch.allclose(model.logits.softmax(-1)[on], torch.tensor(0.5).to(model.h), atol=0.01)
    assert set(model.predict(x)) == set(model.sample_with_labels(200)[1].tolist()) == set(on)
    full = Mixture(x=(2,), components=10, family="normal")
    fit(full, x, restarts=2)
    assert not any("off" in remark for remark in full.remarks())


def test_too_few_rows_for_any_component_leave_all_on():
    model = Mixture(x=(3,), components=10, family="normal", concentration=-50)
    fit(model, rows())
    assert model.on.sum() > 0
    assert np.isfinite(model.score_samples(rows())).all()


def test_what_the_prior_is_not_of_is_refused():
    words = "prior: normal-inverse-wishart is a prior of multivariate-normal, normal and spherical"
    with pytest.raises(Error, match=words):
        Mixture(x=(3,), family="bernoulli", prior="normal-inverse-wishart")
