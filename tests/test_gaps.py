"""The guide's report against closed forms, on guides that are right and wrong in one known way."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import SCALE, linear_vae
from torch import distributions as torch_dist

from pyrovae import (
    VAE,
    Batch,
    ConditionalVAE,
    Error,
    FactorAnalysis,
    HierarchicalVAE,
    Mixture,
    Pair,
    SemiSupervisedVAE,
    Stochastic,
    Transformed,
    fit,
    grade_guide,
    load,
    plots,
)
from pyrovae.evaluate.estimators import AIS
from pyrovae.evaluate.freed import Freed
from pyrovae.evaluate.samplers import HMC
from pyrovae.evaluate.weights import log_weights
from pyrovae.families.continuous import inverse_softplus

CHAINS = {"draws": 50, "sampler": HMC(warmup=60)}
NO_CHAINS = {"draws": 0}
SMALL = {"kind": "mlp", "hidden": (8,)}


@pytest.fixture
def quick(monkeypatch):
    """Searches of few steps, where it is not their result that is tested."""
    monkeypatch.setattr("pyrovae.evaluate.freed.STEPS", 15)
    monkeypatch.setattr("pyrovae.evaluate.freed.JUDGES", 64)


def bits(rows=12, columns=4):
    return torch.rand(rows, columns).round()


def correlated():
    """A linear VAE with its best diagonal guide, whose posteriors are correlated, and its KL."""
    vae, _ = linear_vae(lengths=(3.0, 0.6))
    turn = torch.tensor([[0.8, -0.6], [0.6, 0.8]], dtype=torch.float64)
    with torch.no_grad():
        decoder, encoder = vae.decoder.output, vae.encoder.output
        w = decoder.weight @ turn
        decoder.weight.copy_(w)
        precision = torch.eye(2, dtype=torch.float64) + w.T @ w / SCALE**2
        slope = torch.linalg.solve(precision, w.T) / SCALE**2
        encoder.weight.copy_(torch.cat([slope, torch.zeros_like(slope)]))
        raw = inverse_softplus(precision.diagonal().rsqrt() - 1e-9)
        encoder.bias.copy_(torch.cat([-slope @ decoder.bias, raw]))
    gap = 0.5 * (precision.diagonal().log().sum() - precision.logdet()).item()
    covariance = w @ w.T + SCALE**2 * torch.eye(5, dtype=torch.float64)
    exact = torch_dist.MultivariateNormal(decoder.bias.detach(), covariance)
    return vae, exact, gap


def squares(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z**2, 0.3).to_event(1), obs=x)


def one_root(x):
    root = x.sqrt()
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(root, 0.15 / root).to_event(1))


def both_roots(x):
    root = torch.stack([-x, x], -2).abs().sqrt() * x.new_tensor([[-1.0], [1.0]])
    with pyro.plate("data", len(x)):
        pair = dist.Normal(root, 0.15 / root.abs()).to_event(1)
        equal = dist.Categorical(logits=torch.zeros(len(x), 2).to(x))
        pyro.sample("z", dist.MixtureSameFamily(equal, pair))


def within_20(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
        pyro.sample("x", dist.Uniform(z - 20, z + 20).to_event(1), obs=x)


def standard(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0).to_event(1))


def roots(rows):
    return (1.5 + 0.2 * torch.randn(rows, 1, dtype=torch.float64)).square()


def test_both_gaps_of_an_inflated_and_shifted_guide_are_the_closed_forms():
    vae, exact = linear_vae(guide_scale=1.3, guide_shift=0.3)
    x = exact.sample((80,))
    grade = grade_guide(vae, x, **NO_CHAINS)
    kl = 2 * 0.5 * (1.3**2 + 0.3**2 - 1 - math.log(1.3**2))
    for name, truth in {"inference": kl, "amortisation": kl, "approximation": 0.0}.items():
        values, mcse = getattr(grade, name), grade.mcse[name]
        z = (values - truth) / np.hypot(mcse, 0.005)  # what the search leaves
        assert (np.abs(z) < 3).mean() >= 0.96, name
        assert values.mean() == pytest.approx(truth, abs=0.003 + 3 * grade.gap(name)[2]), name
    assert np.allclose(grade.approximation + grade.amortisation, grade.inference, atol=1e-12)
    assert np.allclose(grade.log_p, exact.log_prob(x), atol=0.05)
    assert grade.grade == "encoder"
    assert grade.left.mean() < 0.01


def test_the_errors_of_a_guides_mean_and_sd_are_the_known_ones():
    vae, exact = linear_vae(guide_scale=1.3, guide_shift=0.3)
    grade = grade_guide(vae, exact.sample((40,)), draws=150, sampler=HMC(warmup=100))
    assert grade.mean_error.shape == (40, 2)
    assert grade.entries == ("z[0]", "z[1]")
    assert np.nanmean(grade.mean_error) == pytest.approx(0.3, abs=0.04)
    assert np.nanmean(grade.sd_error) == pytest.approx(math.log(1.3), abs=0.04)
    assert np.nanstd(grade.mean_error) < 2 * np.nanmedian(grade.error_noise)
    assert not grade.misses.any()
    assert np.isnan(grade.mean_error[grade.unmixed]).all()
    assert [row[0] for row in grade.errors().rows] == ["z[0]", "z[1]"]
    assert float(grade.errors().rows[0][1]) == pytest.approx(0.3, abs=0.06)


def test_an_encoder_that_was_never_trained_is_graded_encoder():
    vae, exact = linear_vae()
    with torch.no_grad():
        vae.encoder.output.weight.zero_()
        vae.encoder.output.bias.zero_()
    x = exact.sample((40,))
    grade = grade_guide(vae, x, **NO_CHAINS)
    assert grade.grade == "encoder"
    assert "encoder limits" in grade.verdict
    assert grade.amortisation.mean() > 1
    assert np.abs(grade.approximation).max() < 0.03
    assert np.allclose(grade.log_p, exact.log_prob(x), atol=0.05)


@pytest.mark.parametrize("chains", [CHAINS, NO_CHAINS], ids=["chains", "no chains"])
def test_a_diagonal_guide_of_correlated_posteriors_is_graded_family(chains):
    vae, exact, gap = correlated()
    x = exact.sample((60,))
    grade = grade_guide(vae, x, particles=2000, **chains)
    assert gap > 0.5
    assert grade.grade == "family"
    assert "family limits" in grade.verdict
    assert np.abs(grade.amortisation).max() < 0.02
    common = grade.mcse["amortisation"].max()  # the noise that both guides share is not in it
    assert common < 0.3 * grade.mcse["inference"].min()
    if chains is CHAINS:  # alone, draws of so narrow a guide miss tails of p(x)
        z = (grade.approximation - gap) / np.hypot(grade.mcse["approximation"], 0.005)
        assert (np.abs(z) < 3).mean() >= 0.96
        assert grade.approximation.mean() == pytest.approx(gap, abs=0.02)
        assert not grade.misses.any()


def test_the_exact_guide_is_fine_and_has_no_gap():
    vae, exact = linear_vae()
    x = exact.sample((30,))
    grade = grade_guide(vae, x, **CHAINS)
    assert grade.grade == "fine"
    assert (grade.khat == -np.inf).all()
    assert np.allclose(grade.elbo, exact.log_prob(x), atol=1e-9)
    assert np.abs(grade.inference).max() < 0.05
    assert "nothing that it misses" in grade.verdict


def test_a_search_that_goes_astray_leaves_the_guide_as_it_is(monkeypatch):
    def astray(freed, offsets):
        return {name: offset + 2 for name, offset in offsets.items()}

    monkeypatch.setattr(Freed, "_round", astray)
    vae, exact, _ = correlated()
    grade = grade_guide(vae, exact.sample((20,)), **NO_CHAINS)
    assert np.array_equal(grade.best, grade.elbo)
    assert (grade.left == 0).all()


def test_a_guide_with_one_of_two_modes_is_not_called_good():
    """Four chains start at the prior: one row in 16 shows nothing; 20 of 30 fail once in 10^5."""
    x = roots(30)
    grade = grade_guide(Pair(model=squares, guide=one_root), x, **CHAINS)
    assert grade.grade == "modes"
    assert "misses a mode" in grade.verdict
    assert grade.misses.sum() >= 20
    assert grade.missed[grade.misses] == pytest.approx(0.5, abs=0.1)
    assert grade.heavy < 0.5  # which says that all is well
    found = grade.inference[grade.misses]
    assert found == pytest.approx(math.log(2) + 0.04, abs=0.1)
    assert len(grade.unmixed) >= 20


def test_without_chains_the_report_says_that_modes_were_not_looked_for(quick):
    grade = grade_guide(Pair(model=squares, guide=one_root), roots(10), **NO_CHAINS)
    assert grade.grade == "fine"
    assert "not looked for" in grade.verdict
    assert math.isnan(grade.summary()["misses"])


def test_a_guide_with_both_modes_misses_nothing():
    grade = grade_guide(Pair(model=squares, guide=both_roots), roots(30), **CHAINS)
    assert grade.grade == "fine"
    assert not grade.misses.any()
    assert np.isnan(grade.approximation).all()
    assert "not split: 'z' is drawn from MixtureSameFamily" in str(grade)


def test_a_mode_without_mass_does_not_count(quick):
    """At x = 3, z = -5 explains x as well as z = 3 does, and has e^-8 of its mass."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            mean = torch.where(z > 0, z, -0.6 * z)
            pyro.sample("x", dist.Normal(mean, 0.1).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 1.01, 0.1 / 1.01**0.5).to_event(1))

    x = 3 + 0.1 * torch.randn(20, 1, dtype=torch.float64)
    grade = grade_guide(Pair(model=model, guide=guide), x, **CHAINS)
    assert len(grade.unmixed) > 10
    assert grade.grade == "fine"
    assert grade.missed.max() < 0.05


MIXED = pytest.param("mixture-of-normals", marks=pytest.mark.slow)


@pytest.mark.parametrize("posterior", ["normal", "multivariate-normal", MIXED])
def test_trained_guides_of_digits_lose_a_little(posterior):
    data = load("digits")
    rows, test = ((x.flatten(1) > 7).float() for x in (data.train.x, data.test.x))
    vae = VAE(x=(64,), z=(3,), posterior=posterior, encoder=SMALL, decoder=SMALL)
    fit(vae, rows, epochs=10, learning_rate=1e-2, progress=False)
    grade = grade_guide(vae, test, rows=25, **NO_CHAINS)
    assert 0 < grade.gap("approximation")[0] < grade.gap("inference")[0] < 2
    assert (grade.amortisation > -3 * grade.mcse["amortisation"] - 0.01).all()


def models():
    """Models with rows, and what their report says was left out."""
    parts = {"x": (4,), "z": (2,), "encoder": SMALL, "decoder": SMALL}
    holes = torch.randn(12, 4)
    holes[0, 1] = holes[3, 2] = torch.nan
    base = VAE(**parts, likelihood="normal", posterior="multivariate-normal", missing=True)
    vamp = {"kind": "vamp", "components": 12}
    layers = (Stochastic(z=(2,), network=SMALL, encoder=SMALL),)
    return {
        "conditional": (ConditionalVAE(**parts, context=(2,)), Batch(bits(), torch.randn(12, 2))),
        "hierarchical": (HierarchicalVAE(**parts, layers=layers), bits()),
        "transformed, missing": (Transformed(base=base, transform="standardize"), holes),
        "vamp, refined": (VAE(**parts, prior=vamp, refine="semi-amortized"), bits()),
        "semi-supervised": (
            SemiSupervisedVAE(**parts, classes=3),
            Batch(bits(), labels=torch.arange(12) % 3),
        ),
        "positive": (VAE(**parts, prior="learned-normal", posterior="laplace"), bits()),
    }


@pytest.mark.parametrize("name", models())
def test_every_kind_of_model_is_graded_and_stays_as_it_was(name, quick):
    model, rows = models()[name]
    model.train()
    frozen = next(model.parameters()).requires_grad_(False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modules, state = list(model.modules()), torch.get_rng_state()
    grade = grade_guide(model, rows, particles=200, draws=10, sampler=HMC(warmup=10))
    parts = grade.approximation + grade.amortisation
    assert np.allclose(parts, grade.inference, atol=1e-5)
    assert (grade.inference > -4 * grade.mcse["inference"]).all()
    assert (grade.amortisation > -4 * grade.mcse["amortisation"] - 0.01).all()
    assert len(grade.log_p) == 12
    assert grade.explored == (name != "semi-supervised")
    assert ("no chains: the latent 'y' is discrete" in str(grade)) == (name == "semi-supervised")
    assert ("depends on another latent" in str(grade)) == (name == "hierarchical")
    assert torch.equal(torch.get_rng_state(), state)
    assert list(model.modules()) == modules
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in modules)
    assert all(module.training for module in modules)
    assert all(p.grad is None for p in model.parameters())
    assert not frozen.requires_grad
    assert all(p.requires_grad for p in model.parameters() if p is not frozen)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert "guide" not in vars(model)


def test_a_refined_guide_is_graded_as_it_is_refined():
    vae, exact = linear_vae()
    with torch.no_grad():
        vae.encoder.output.bias.add_(0.5)
    refined = VAE(
        **{name: vae.spec()[name] for name in ("likelihood", "posterior", "encoder", "decoder")},
        x=(5,),
        z=(2,),
        refine={"kind": "semi-amortized", "steps": 200, "learning_rate": 0.05, "particles": 64},
    ).double()
    refined.load_state_dict(vae.state_dict())
    x = exact.sample((30,))
    plain, better = (grade_guide(model, x, **NO_CHAINS) for model in (vae, refined))
    assert better.amortisation.mean() < 0.2 * plain.amortisation.mean()
    assert np.allclose(better.best, plain.best, atol=0.02)
    assert refined.refine is not None


def test_the_offsets_of_a_pair_are_those_of_its_sites():
    def model(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Gamma(x.new_full((), 2.0), 1.0))
            b = pyro.sample("b", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(b + a[..., None], 0.5).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.LogNormal(x.new_zeros(()), 0.5))
            scale = (0.3 * torch.eye(2)).to(x)
            pyro.sample("b", dist.MultivariateNormal(x - a[..., None], scale_tril=scale))

    x = torch.rand(9, 2)
    pair = Pair(model=model, guide=guide)
    pair.check(Batch(x))
    freed = Freed(pair, Batch(x))
    shapes = {name: tuple(offset.shape) for name, offset in freed.start.items()}
    assert shapes == {
        "a.loc": (9,),
        "a.scale": (9,),
        "b.loc": (1, 9, 2),
        "b.scale_tril": (1, 9, 2, 2),
    }
    assert freed.restricted
    draws = []
    for each in (pair, freed.at(freed.start)):
        pyro.set_rng_seed(1)
        draws.append(log_weights(each, x, 4))
    assert torch.allclose(*draws, atol=1e-5)
    grade = grade_guide(pair, x, particles=200, **NO_CHAINS)
    assert grade.amortisation.mean() > 0.1


def test_of_models_that_know_log_p_it_is_exact():
    for model in (
        Mixture(x=(4,), components=2, family="normal"),
        FactorAnalysis(x=(4,), factors=2),
        VAE(x=(4,), z=(3,), prior="categorical", posterior="one-hot"),
    ):
        rows = bits() if isinstance(model, VAE) else torch.randn(12, 4)
        grade = grade_guide(model, rows, particles=50, **NO_CHAINS)
        assert grade.grade == "fine"
        assert grade.method == "exact"
        assert np.allclose(grade.inference, 0, atol=1e-3)
        split = isinstance(model, FactorAnalysis)
        assert ("is not split: 'z' is drawn from JointNormal" in str(grade)) == split


def test_a_gap_that_is_not_split_is_graded_loose(quick):
    def guide(x):
        with pyro.plate("data", len(x)):
            far = dist.Normal(x.sqrt() + 0.5, 0.1).to_event(1)
            flip = dist.transforms.AffineTransform(0.0, 1.0)
            pyro.sample("z", dist.TransformedDistribution(far, [flip]))

    grade = grade_guide(Pair(model=squares, guide=guide), roots(5), **NO_CHAINS)
    assert grade.grade == "loose"
    assert "why is not known" in grade.verdict


def test_one_row_has_a_report_without_errors_over_rows(quick):
    vae, exact = linear_vae(guide_scale=1.3)
    grade = grade_guide(vae, exact.sample((1,)), particles=200, draws=20, sampler=HMC(warmup=20))
    assert "1 row with 200 draws" in str(grade)
    assert math.isnan(grade.gap("inference")[1])
    assert "±  " not in str(grade.table())


def test_rows_without_weight_are_named_and_left_out_of_means(quick):
    x = torch.zeros(6, 1)
    x[[2, 5]] = 1e3
    pair = Pair(model=within_20, guide=standard)
    for chains in (NO_CHAINS, {"draws": 20, "sampler": HMC(warmup=20)}):
        grade = grade_guide(pair, x, particles=100, **chains)
        assert grade.known.tolist() == [True, True, False, True, True, False]
        assert grade.gap("inference")[0] == pytest.approx(0, abs=0.05)
        assert "in rows 2, 5" in str(grade)
        assert grade.heavy == pytest.approx(1 / 3)
        assert grade.summary()["rows"] == 6


def test_a_guide_whose_draws_have_no_weight_at_all_is_not_called_good(quick):
    grade = grade_guide(
        Pair(model=within_20, guide=standard), torch.full((3, 1), 1e3), **NO_CHAINS
    )
    assert grade.grade == "loose"
    assert "No row has a bound" in str(grade)


def test_densities_that_are_no_numbers_are_refused_with_their_rows():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, (1 - x).sqrt()).to_event(1), obs=x)

    x = torch.zeros(4, 1)
    x[3] = 7.0
    with pytest.raises(Error, match="not a number in row 3"):
        grade_guide(Pair(model=model, guide=standard), x, **NO_CHAINS)


def test_log_p_can_be_annealed(quick):
    vae, exact = linear_vae(guide_scale=1.3)
    x = exact.sample((10,))
    annealing = AIS(temperatures=50)
    grade = grade_guide(vae, x, particles=100, method=annealing, **NO_CHAINS)
    assert grade.method == "ais"
    assert np.allclose(grade.log_p, exact.log_prob(x), atol=1)
    assert (grade.mcse["inference"] > 0).all()


def test_the_seed_decides_and_the_precision_can_be_chosen(quick):
    vae, exact = linear_vae(guide_scale=1.3)
    x = exact.sample((8,))
    options = {"particles": 64, "draws": 4, "sampler": HMC(warmup=4), "rows": 5}
    a, b, c = (grade_guide(vae, x, seed=seed, **options) for seed in (1, 1, 2))
    assert len(a.log_p) == 5
    assert np.array_equal(a.best, b.best)
    assert np.array_equal(a.log_p, b.log_p)
    assert not np.array_equal(a.elbo, c.elbo)
    single = grade_guide(vae, x, dtype="float32", **options)
    assert np.allclose(single.elbo, a.elbo, atol=0.5)
    assert next(vae.parameters()).dtype == torch.float64


def test_more_rows_than_go_through_at_a_time_keep_their_order(quick, monkeypatch):
    monkeypatch.setattr("pyrovae.evaluate.gaps.ROWS", 4)
    vae, exact = linear_vae()
    x = exact.sample((11,))
    grade = grade_guide(vae, x, particles=50, **NO_CHAINS)
    assert np.allclose(grade.elbo, exact.log_prob(x), atol=1e-9)


def test_the_plot_shows_the_parts_and_marks_missed_modes(quick):
    vae, exact = linear_vae(guide_scale=1.3)
    split = grade_guide(vae, exact.sample((6,)), particles=50, **NO_CHAINS)
    ax = plots.guide_grade(split)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "approximation gap",
        "amortisation gap",
    ]
    whole = grade_guide(Pair(model=squares, guide=both_roots), roots(6), particles=50, draws=0)
    assert len(plots.guide_grade(whole).patches) == 1


def test_the_summary_is_plain_numbers(quick):
    vae, exact = linear_vae(guide_scale=1.3)
    found = grade_guide(vae, exact.sample((6,)), particles=50, **NO_CHAINS).summary()
    assert all(isinstance(value, (str, int, float)) for value in found.values())
    assert found["grade"] == "fine"


@pytest.mark.parametrize(
    ("options", "message"),
    [({"particles": 3}, "particles"), ({"draws": -1}, "draws"), ({"tolerance": 0}, "tolerance")],
)
def test_bad_options_are_refused(options, message):
    vae, exact = linear_vae()
    with pytest.raises(Error, match=message):
        grade_guide(vae, exact.sample((3,)), **options)
