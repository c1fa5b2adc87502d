"""Predictions, scores, criteria and labels of mixtures, against scikit-learn and by hand."""

import adapter
import numpy as np
import pandas as pd
import pytest
import torch
from members import FAMILIES, events, ids, make
from scipy import stats
from sklearn.datasets import load_iris
from sklearn.mixture import GaussianMixture

from pyrovae import VAE, Batch, Error, Mixture, Transformed, fit

X = load_iris().data


def fitted(kind, transformed=False, rows=X):
    mixture = Mixture(x=rows.shape[1:], components=3, family=kind)
    model = Transformed(base=mixture, transform="standardize") if transformed else mixture
    fit(model, rows, epochs=20)
    return model


@torch.no_grad()
def raw_parameters(model):
    """Weights, means and covariance matrices on the raw scale."""
    if isinstance(model, Mixture):
        return adapter.parameters(model)
    weights, mean, covariance = adapter.parameters(model.base)
    loc, scale = model.transform.loc, model.transform.scale
    return weights, loc + scale * mean, covariance * torch.outer(scale, scale)


def scikit_learns(weights, means, covariances):
    reference = GaussianMixture(len(weights))
    reference.weights_, reference.means_ = weights.numpy(), means.numpy()
    reference.covariances_ = covariances.numpy()
    reference.precisions_cholesky_ = torch.linalg.cholesky(covariances).inverse().mT.numpy()
    return reference


@pytest.mark.parametrize("transformed", [False, True])
@pytest.mark.parametrize("covariance_type", adapter.FAMILIES)
def test_all_numbers_are_scikit_learns_from_the_same_parameters(covariance_type, transformed):
    model = fitted(adapter.FAMILIES[covariance_type], transformed)
    reference = scikit_learns(*raw_parameters(model))
    assert np.allclose(model.predict_proba(X), reference.predict_proba(X), rtol=0, atol=1e-8)
    assert (model.predict(X) == reference.predict(X)).all()
    log_prob = reference.score_samples(X)
    assert np.allclose(model.score_samples(X), log_prob, rtol=0, atol=1e-8)
    joint = model.joint(Batch(torch.as_tensor(X))).detach()
    assert np.allclose(joint.logsumexp(-1), log_prob, rtol=0, atol=1e-8)
    reference.covariance_type = covariance_type
    free = reference._n_parameters()
    assert model.freedom == free
    assert model.bic(X) == pytest.approx(free * np.log(len(X)) - 2 * log_prob.sum(), abs=1e-6)
    assert model.aic(X) == pytest.approx(2 * free - 2 * log_prob.sum(), abs=1e-6)


def test_a_mixture_of_bernoullis_by_hand():
    rows = (torch.rand(200, 5) < torch.linspace(0.1, 0.9, 5)).double().numpy()
    model = fitted("bernoulli", rows=rows)
    p, weights = model.h.sigmoid().detach().numpy(), model.logits.softmax(-1).detach().numpy()
    joint = weights * np.where(rows[:, None] == 1, p, 1 - p).prod(-1)
    assert np.allclose(model.predict_proba(rows), joint / joint.sum(-1, keepdims=True))
    assert (model.predict(rows) == joint.argmax(-1)).all()
    log_prob = np.log(joint.sum(-1))
    assert np.allclose(model.score_samples(rows), log_prob)
    assert model.bic(rows) == pytest.approx((15 + 2) * np.log(200) - 2 * log_prob.sum())
    assert model.aic(rows) == pytest.approx(2 * (15 + 2) - 2 * log_prob.sum())


UNLIKE = ("beta-binomial-0", "discretized-logistic-mixture-0", "mixture-of-normals-0")
"""One trial has no dispersion, normals have offsets of their own, and logistics are too alike."""
FREE = [parameter for parameter in FAMILIES if parameter[0] not in UNLIKE]


@pytest.mark.parametrize("parameter", FREE, ids=ids(FREE))
def test_freedom_is_the_rank_of_the_scores(parameter):
    family = make(parameter)
    event = events(family)[0]
    family.setup(event)
    family.double()
    many = 500
    h = (0.5 * torch.randn(family.params, dtype=torch.float64)).expand(many, *family.params)
    blank = family.blank(torch.full((many, *event), 3.0, dtype=torch.float64))
    with torch.no_grad():
        batch = Batch(family.given(h, Batch(blank)).sample())
    h = h.clone().requires_grad_()
    family.of(h, batch).log_prob(batch.x).sum().backward()
    assert torch.linalg.matrix_rank(h.grad.flatten(1), rtol=1e-9).item() == family.freedom


@pytest.mark.parametrize(
    "rows",
    [X[:7].tolist(), torch.as_tensor(X[:7]), pd.DataFrame(X[:7]), Batch(torch.as_tensor(X[:7]))],
    ids=["lists", "tensor", "frame", "batch"],
)
@pytest.mark.parametrize("transformed", [False, True])
def test_rows_come_in_any_form(rows, transformed):
    model = fitted("normal", transformed)
    for method in (model.predict_proba, model.predict, model.score_samples):
        assert isinstance(method(rows), np.ndarray)
        assert np.array_equal(method(rows), method(X[:7]))
    assert model.bic(rows) == model.bic(X[:7])
    assert model.aic(rows) == model.aic(X[:7])


def test_a_model_in_single_precision_takes_rows_in_double():
    model = Mixture(x=(4,), components=3, family="normal")
    fit(model, X, dtype="float32")
    same = model.score_samples(X.astype(np.float32))
    assert model.score_samples(X).dtype == same.dtype == np.float64
    assert np.array_equal(model.score_samples(X), same)


def test_many_rows_are_those_of_their_parts():
    model, rows = fitted("normal"), np.tile(X, (40, 1))
    for method in (model.predict_proba, model.score_samples):
        assert np.allclose(method(rows), np.concatenate([method(X)] * 40), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (X[:, :3], r"rows of the data have the shape \(3,\), the model's x has \(4,\)"),
        (X[0], r"the data should have the shape \(rows, \*event\), got \(4,\)"),
        (X[:0], "the data have no row"),
        (np.where(X > 7.8, np.nan, X), "1 of 150 rows hold NaN, missing entries, first 131"),
        (np.where(X > 7.8, np.inf, X), "1 of 150 rows hold infinite values, first 131"),
        (X.astype(str), "the data should be numbers, got an array of type <U32"),
    ],
    ids=["columns", "one dimension", "no row", "NaN", "infinite", "words"],
)
@pytest.mark.parametrize("method", ["predict", "predict_proba", "score_samples", "bic", "aic"])
@pytest.mark.parametrize("transformed", [False, True])
def test_wrong_rows_are_told_in_a_sentence(rows, words, method, transformed):
    mixture = Mixture(x=(4,), components=3)
    model = Transformed(base=mixture, transform="standardize") if transformed else mixture
    with pytest.raises(Error, match=words) as caught:
        getattr(model, method)(rows)
    assert "\n" not in str(caught.value)


def test_a_model_says_what_it_has_not():
    vae = VAE(x=(4,), z=(2,), likelihood="normal")
    assert not hasattr(vae, "predict")
    model = Transformed(base=vae, transform="standardize")
    for method in (model.predict, model.predict_proba):
        with pytest.raises(Error, match="the model 'vae' has no components"):
            method(X)
    for method in (model.score_samples, model.bic, model.aic):
        with pytest.raises(Error, match=r"log p\(x\) of the model 'vae' is an integral"):
            method(X)
    with pytest.raises(Error, match="the model has no components to label rows with: use sample"):
        model.sample_with_labels(5)


@pytest.mark.parametrize("transformed", [False, True])
def test_labels_of_samples_have_the_weights_and_the_responsibilities(transformed):
    """Both fail in one of 10^4 fits that are right."""
    x = np.random.default_rng(0).normal(size=(300, 2))
    x[:100] += [1.5, 0.5]
    x[100:150] -= [2, 1]
    x = 1000 + 50 * x
    model = fitted("multivariate-normal", transformed, x)
    rows, k = model.sample_with_labels(20_000, seed=1)
    assert rows.shape == (20_000, 2)
    counts = np.bincount(k, minlength=3)
    weights = raw_parameters(model)[0].numpy()
    assert stats.chisquare(counts, weights * 20_000).pvalue > 1e-4
    error = np.eye(3)[k] - model.predict_proba(rows)
    scaled = (rows.numpy() - 1000) / 50
    z = np.stack([error * f[:, None] for f in (np.ones(20_000), *scaled.T, *scaled.T**2)])
    z = z.mean(1) / z.std(1) * 20_000**0.5
    assert np.abs(z).max() < stats.norm.isf(1e-4 / z.size / 2)


@pytest.mark.parametrize("transformed", [False, True])
def test_a_seed_repeats_samples_and_leaves_other_draws_alone(transformed):
    model = fitted("normal", transformed)
    torch.manual_seed(3)
    (x, k), untouched = model.sample_with_labels(50, seed=1), torch.rand(1)
    again, labels = model.sample_with_labels(50, seed=1)
    assert torch.equal(x, again)
    assert torch.equal(k, labels)
    assert not torch.equal(x, model.sample_with_labels(50, seed=2)[0])
    assert torch.equal(x, model.sample(50, seed=1))
    torch.manual_seed(3)
    assert torch.equal(untouched, torch.rand(1))
    with pytest.raises(Error, match="rows: should be a whole number from 1, got 0"):
        model.sample_with_labels(0)
