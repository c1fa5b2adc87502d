"""log p(x): deterministic, in blocks, honest about its error, for local latents only."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from memory import peak
from pyro import poutine
from torch import nn

from pyrovae import VAE, Batch, Mixture, Pair, Transformed, fit, log_likelihood, log_weights
from pyrovae.evaluate import bound, latents, weights
from pyrovae.evaluate.estimators import importance
from pyrovae.networks import Network

X = torch.bernoulli(torch.full((40, 6), 0.4))


def vae():
    return VAE(x=(6,), z=(2,))


def test_the_same_seed_gives_the_same_numbers():
    model = vae()
    a, b, c = (log_likelihood(model, X, particles=20, seed=s).value for s in (1, 1, 2))
    assert (a == b).all()
    assert (a != c).any()


def test_blocks_do_not_change_what_is_estimated(monkeypatch):
    model = vae()
    whole = log_likelihood(model, X, particles=3000)
    monkeypatch.setattr(importance, "BLOCK", 7)
    pieces = log_likelihood(model, X, particles=3000)
    error = np.hypot(whole.mcse, pieces.mcse)
    assert (np.abs(whole.value - pieces.value) < 5 * error).all()
    assert np.array_equal(whole.particles, pieces.particles)
    assert (whole.particles == 3000).all()


def test_reductions_are_the_textbook_ones():
    log_w = torch.randn(500, 4, dtype=torch.float64).numpy() * 0.5 - 80
    found = weights.reduce(log_w)
    w = np.exp(log_w)
    assert np.allclose(found["value"], np.log(w.mean(0)))
    assert np.allclose(found["mcse"], w.std(0, ddof=1) / w.mean(0) / np.sqrt(500))
    assert np.allclose(found["ess"], w.sum(0) ** 2 / (w**2).sum(0))
    assert np.allclose(found["elbo"], log_w.mean(0))
    assert (np.abs(found["khat"]) < 1).all()


def test_few_particles_have_no_khat_and_one_has_no_error():
    result = log_likelihood(vae(), X, particles=1)
    assert np.isnan(result.khat).all()
    assert np.isnan(result.mcse).all()
    assert np.isnan(result.heavy)
    assert (result.value == result.elbo).all()


def test_an_exact_model_draws_nothing():
    model = Mixture(x=(6,), components=2, family="bernoulli")
    fit(model, X)
    result = log_likelihood(model, X)
    assert result.exact
    assert result.kind == "exact"
    assert (result.mcse == 0).all()
    assert str(result).endswith("(exact, 40 rows)")
    every = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 6)
    assert np.exp(log_likelihood(model, every).value).sum() == pytest.approx(1)


def test_the_bound_of_all_tables_sums_to_at_most_one():
    every = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 6)
    model = vae()
    fit(model, X, epochs=30, batch_size=20)
    result = log_likelihood(model, every, particles=3000)
    total = np.exp(result.value).sum()
    assert total == pytest.approx(1, abs=0.02)
    assert np.exp(result.elbo).sum() < total - 0.01


def test_training_knobs_do_not_reach_the_evaluation():
    model = vae()
    plain = log_weights(model, X, 5)
    with poutine.scale(scale=0.1):
        torch.manual_seed(0)
        scaled = log_weights(model, X, 5)
    torch.manual_seed(0)
    assert torch.equal(scaled, log_weights(model, X, 5))
    assert plain.shape == scaled.shape


def test_figures_agree_with_the_rows():
    result = log_likelihood(vae(), X, particles=30)
    summary = result.summary()
    assert summary["mean"] == pytest.approx(result.value.mean())
    assert summary["se"] == pytest.approx(result.value.std(ddof=1) / 40**0.5)
    assert summary["bits_per_dim"] == pytest.approx(-result.mean / 6 / np.log(2))
    assert np.allclose(result.threshold, 1 - 1 / np.log10(30))
    assert "lower bound by iwae, 40 rows, 30 particles" in str(result)


def global_model(x):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Normal(mean, 1.0).expand([1]).to_event(1), obs=x)


def global_guide(x):
    pyro.sample("mean", dist.Normal(pyro.param("m", torch.zeros(())), 1.0))


def test_a_global_latent_is_refused_by_name():
    pair = Pair(model=global_model, guide=global_guide)
    with pytest.raises(
        ValueError, match="the site 'mean' is not in a plate of the rows at dimension -1"
    ):
        log_likelihood(pair, torch.randn(5, 1))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (torch.full((3, 6), torch.nan), "3 of 3 rows hold NaN"),
        (torch.full((3, 6), 0.5), "bernoulli takes 0 or 1"),
        (torch.zeros(3, 5), r"rows of the data have the shape \(5,\)"),
        (torch.zeros(0, 6), "the data have no row"),
    ],
)
def test_rows_that_cannot_be_are_refused(data, message):
    with pytest.raises(ValueError, match=message):
        log_likelihood(vae(), data)


@pytest.mark.parametrize("particles", [0, -1, 2.5, "many"])
def test_a_number_of_particles_is_a_positive_integer(particles):
    with pytest.raises(ValueError, match="particles: should be"):
        log_likelihood(vae(), X, particles=particles)


MEMORY = """
import torch
from pyrovae import VAE, log_likelihood
torch.manual_seed(0)
small = {"kind": "mlp", "hidden": (128,)}
model = VAE(x=(64,), z=(8,), encoder=small, decoder=small)
result = log_likelihood(model, torch.bernoulli(torch.full((10_000, 64), 0.5)), particles=10_000)
assert len(result.value) == 10_000
"""


@pytest.mark.slow
def test_ten_thousand_particles_on_ten_thousand_rows_stay_under_two_gib():
    assert peak(MEMORY) < 2


@pytest.mark.parametrize("particles", [21, 22, 23, 24, 25, 26])
def test_khat_begins_where_there_are_enough_draws(particles):
    khat = log_likelihood(vae(), X[:3], particles=particles).khat
    assert np.isnan(khat).all() == (particles < 25)


@pytest.mark.parametrize(
    ("log_w", "expected"),
    [
        (np.zeros(100), -np.inf),
        (500 * np.random.default_rng(0).normal(size=1000), np.inf),
        (np.r_[np.full(99, -1e5), 0.0], np.inf),
        (np.r_[np.full(90, 0.0), np.full(10, 1.0)], np.nan),
    ],
)
def test_khat_says_when_weights_are_as_bad_as_can_be(log_w, expected):
    khat = weights.reduce(log_w[:, None])["khat"]
    assert np.array_equal(khat, [expected], equal_nan=True)


def test_one_impossible_draw_does_not_hide_a_row():
    log_w = np.random.default_rng(0).normal(size=(500, 1))
    log_w[3] = -np.inf
    assert np.isfinite(weights.reduce(log_w)["khat"]).all()


def test_an_exact_model_that_is_broken_says_so():
    model = Mixture(x=(6,), components=2, family="bernoulli")
    model.h.data[:] = torch.nan
    with (
        pyro.validation_enabled(False),
        pytest.raises(ValueError, match="is not a number in rows 0, 1, 2"),
    ):
        log_likelihood(model, X)


def test_rows_that_need_more_digits_are_refused_or_taken():
    x = 1.6e9 + torch.randn(200, 1, dtype=torch.float64)
    model = Transformed(
        base=VAE(x=(1,), z=(1,), likelihood="shared-normal"), transform="standardize"
    )
    with pytest.raises(ValueError, match=r"torch.float32 is too coarse for the entries \[0\]"):
        fit(model, x)
    fit(model, x, epochs=2, dtype="float64")
    assert model.transform.scale.item() == pytest.approx(1, abs=0.2)


def test_gradients_and_validation_are_as_they_were():
    model = vae()
    gradients = [torch.ones_like(p) for p in model.parameters()]
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        parameter.grad = gradient
    log_likelihood(model, X, particles=3, dtype="float64")
    after = [parameter.grad for parameter in model.parameters()]
    assert all(a is b and a.dtype == torch.float32 for a, b in zip(after, gradients, strict=True))
    torch.distributions.Distribution.set_default_validate_args(False)
    try:
        log_likelihood(model, X, particles=3)
        assert not torch.distributions.Distribution._validate_args
    finally:
        torch.distributions.Distribution.set_default_validate_args(True)


class Dropping(Network):
    """An affine map behind dropout."""

    def setup(self, source, target):
        self.target = target
        self.drop = nn.Dropout(0.5)
        self.layer = nn.Linear(math.prod(source), math.prod(target))

    def forward(self, a):
        return self.drop(self.layer(a)).unflatten(-1, self.target)


del Network.members["dropping"]


@pytest.mark.parametrize(
    "evaluate",
    [
        lambda model: log_likelihood(model, X, particles=3).value,
        lambda model: bound(model, X),
        lambda model: latents(model, X)["z"].numpy(),
        lambda model: model.sample(5, seed=1).numpy(),
    ],
)
def test_dropout_is_off_in_whatever_mode_the_model_is(evaluate):
    model = VAE(x=(6,), z=(2,), encoder=Dropping(), decoder=Dropping())
    one, two = evaluate(model.train()), evaluate(model.eval())
    assert np.array_equal(one, two)


def test_the_error_of_the_mean_is_that_of_independent_rows():
    result = log_likelihood(vae(), X, particles=30)
    assert result.mean_mcse == pytest.approx((result.mcse**2).sum() ** 0.5 / 40)


def broad_model(x):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Normal(mean[..., None], 1.0).to_event(1), obs=x)


def test_a_global_latent_has_no_log_weight_per_row():
    pair = Pair(model=broad_model, guide=global_guide)
    pair.start(Batch(torch.randn(5, 1)))
    with pytest.raises(ValueError, match="the site 'mean' is not in a plate of the rows"):
        log_weights(pair, torch.randn(5, 1))


def masked_model(x):
    with pyro.plate("data", len(x), dim=-1), poutine.mask(mask=x[:, 0] > 0):
        pyro.sample("x", dist.Normal(x.new_zeros(1), 1.0).to_event(1), obs=x)


def test_masked_rows_count_nothing():
    pair = Pair(model=masked_model, guide=lambda x: None)
    x = torch.tensor([[1.0], [-1.0]])
    expected = [dist.Normal(0.0, 1.0).log_prob(x[0]).item(), 0.0]
    assert log_likelihood(pair, x, particles=2).value == pytest.approx(expected)
