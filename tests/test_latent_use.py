"""Latent use: exact answers of linear-Gaussian models, and models that are wrong on purpose."""

import importlib
import json
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import linear_vae, true_posterior
from torch import nn

from pyrovae import (
    VAE,
    Batch,
    ConditionalVAE,
    HierarchicalVAE,
    Mixture,
    Pair,
    SemiSupervisedVAE,
    Stochastic,
    Transformed,
    latent_use,
    plots,
)
from pyrovae.refinements import SemiAmortized

module = importlib.import_module("pyrovae.evaluate.latent_use")


def mean(values):
    return values.mean(0)


def close(values, truth, sigmas=4):
    """Whether a mean over rows is the truth within its error; wrong for 1 in 10,000 seeds."""
    return np.all(
        np.abs(values.mean(0) - truth) < sigmas * values.std(0, ddof=1) / len(values) ** 0.5
    )


@pytest.fixture(scope="module")
def linear():
    torch.manual_seed(1)
    vae, exact = linear_vae(lengths=(1.5, 0.6, 0.0))
    x = exact.sample((1500,))
    return vae, x, latent_use(vae, x, particles=50)


def test_kl_is_that_of_the_normals_in_total_and_of_each_entry(linear):
    vae, x, use = linear
    loc, sd = true_posterior(vae, x)
    exact = 0.5 * (loc**2 + sd**2 - 1 - 2 * sd.log())
    site = use["z"]
    assert np.corrcoef(site.kl, exact.sum(-1))[0, 1] > 0.98
    assert close(site.kl_of[:, :2] - exact[:, :2].numpy(), 0)
    assert np.abs(site.kl_of[:, 2]).max() < 1e-12
    assert np.allclose(site.kl_of.sum(-1), site.kl)
    assert (site.kl == use.kl).all()


def test_information_is_that_of_the_normals_and_the_aggregated_posterior_the_prior(linear):
    vae, x, use = linear
    truth = -true_posterior(vae, x)[1].log().sum().item()  # 1/2 log (prior / posterior variance)
    assert use.information.mean() == pytest.approx(truth, abs=0.08)
    assert 0 <= use.marginal.mean() < 0.03
    assert use["z"].matches
    assert not use.saturated
    assert use.kl.mean() == pytest.approx(use.information.mean() + use.marginal.mean(), abs=0.15)


def test_activity_is_the_share_of_the_prior_variance_that_the_means_have(linear):
    vae, x, use = linear
    site = use["z"]
    truth = true_posterior(vae, x)[0].var(0).numpy()
    assert np.allclose(mean(site.activity)[:2], truth[:2], rtol=0.06)
    assert abs(mean(site.activity)[2]) < 4 * site.noise[2] < 0.004
    assert site.active.tolist() == [True, True, False]


def test_sensitivity_is_what_a_new_draw_of_the_latent_costs(linear):
    vae, x, use = linear
    w, scale = vae.decoder.output.weight.detach(), vae.likelihood.scale
    loc, sd = true_posterior(vae, x)
    gain = w.square().sum(0) / (2 * scale**2)
    pull = (x - vae.decoder.output.bias.detach()) @ w / scale**2
    # E[log p(x|z) - log p(x|z')] = pull E[z] - gain (E[z^2] - 1), the entries being orthogonal
    exact = (pull * loc - gain * (loc**2 + sd**2 - 1)).mean(0).detach().numpy()
    site = use["z"]
    assert close(site.sensitivity_of[:, :2], exact[:2])
    assert (site.sensitivity_of[:, 2] == 0).all()
    assert close(site.sensitivity, exact.sum())


def test_a_dead_entry_is_named(linear):
    *_, use = linear
    assert use["z"].dead.tolist() == [False, False, True]
    assert use.verdict == (
        "2 of the 3 entries of z are used; z[2] is dead; "
        "the aggregated posterior passes for the prior in 1000 draws."
    )


def test_a_latent_that_is_used_as_it_should_be_is_fine():
    vae, exact = linear_vae()
    use = latent_use(vae, exact.sample((400,)))
    assert use.verdict == (
        "All of the 2 entries of z are used; "
        "the aggregated posterior passes for the prior in 400 draws."
    )


def test_posterior_collapse_is_named_with_no_active_entry():
    vae, exact = linear_vae(d=9, lengths=(0.0,) * 8)
    use = latent_use(vae, exact.sample((300,)), particles=2)  # the means of 2 draws vary by 1/2
    assert not use["z"].active.any()
    assert not use["z"].used.any()
    assert np.allclose(use.kl, 0, atol=1e-9)
    assert np.allclose(use.information, 0, atol=1e-9)
    assert use.verdict == (
        "The latent is not used at all (posterior collapse); none of the 8 entries of z are used."
    )


@pytest.mark.parametrize("rows", [2, 5, 40])
def test_noise_makes_no_entry_active(rows):
    """Fails for 1 in 80 seeds with 5 rows, by the tail of chi-square; for fewer otherwise."""
    vae, exact = linear_vae(d=41, lengths=(0.0,) * 40)
    use = latent_use(vae, exact.sample((rows,)), particles=4)
    assert use["z"].active.sum() <= (4 if rows == 2 else 1)


def shifted(vae, by):
    with torch.no_grad():
        vae.encoder.output.bias[: len(by)] += torch.tensor(by)
    return vae


def test_an_aggregated_posterior_off_the_prior_is_rejected_with_its_size():
    vae, exact = linear_vae()
    use = latent_use(shifted(vae, (1.0, 0.0)), exact.sample((1000,)))
    assert close(use.marginal, 0.5, sigmas=5)
    assert not use["z"].matches
    assert use["z"].used.all()
    assert "All of the 2 entries of z are used; the aggregated posterior of z does not match" in (
        use.verdict
    )
    assert "p = 0.005, KL(q(z) || p(z)) = 0." in use.verdict


def test_a_constant_guide_off_the_prior_tells_nothing_at_a_price():
    vae, exact = linear_vae(lengths=(0.0, 0.0))
    use = latent_use(shifted(vae, (3.0, 0.0)), exact.sample((300,)))
    assert close(use.kl, 4.5)
    assert close(use.marginal, 4.5)
    assert np.allclose(use.information, 0)
    assert use.verdict.startswith("The latent is not used at all; none of the 2 entries")
    assert "does not match the prior" in use.verdict


def test_a_constant_guide_that_is_not_the_prior_is_not_used_although_missed():
    vae, exact = linear_vae()
    with torch.no_grad():
        vae.encoder.output.weight.zero_()
        vae.encoder.output.bias[:2].zero_()
    use = latent_use(vae, exact.sample((600,)))
    assert use["z"].missed.any()
    assert not use["z"].used.any()
    assert not use["z"].informs
    assert "still" in str(use.entries())
    assert use.verdict.startswith("The latent is not used at all; none of the 2 entries")


def test_a_decoder_that_listens_to_a_guide_that_is_the_prior_misses_nothing():
    """Noise passes for a sensitivity in 1 of 4,000 seeds, at 4 standard errors of 8 entries."""
    vae, exact = linear_vae(d=9, lengths=(1.0,) * 8)
    with torch.no_grad():
        vae.encoder.output.weight.zero_()
        vae.encoder.output.bias[:8].zero_()
        vae.encoder.output.bias[8:] = math.log(math.e - 1)
    use = latent_use(vae, exact.sample((400,)))
    assert np.abs(use["z"].sensitivity_of).max() > 1
    assert use["z"].dead.all()
    assert use.verdict.startswith("The latent is not used at all (posterior collapse)")


def test_entries_that_tell_little_each_are_said_to_tell_it_together():
    vae, exact = linear_vae(d=30, lengths=(0.06,) * 25)
    use = latent_use(vae, exact.sample((1000,)), particles=50)
    assert use["z"].informs
    assert not use["z"].used.any()
    assert use.verdict.startswith("None of the 25 entries of z are used; together they tell 0.")


def test_an_entry_that_moves_while_the_decoder_ignores_it_is_idle():
    vae, exact = linear_vae(lengths=(1.5, 0.0))
    with torch.no_grad():
        vae.encoder.output.weight[1, 0] = 0.8
    use = latent_use(vae, exact.sample((400,)))
    assert use["z"].active.tolist() == [True, True]
    assert use["z"].idle.tolist() == [False, True]
    assert not use["z"].dead.any()
    assert "z[1] is idle, moving with x while the decoder ignores it" in use.verdict


def by_spread(x):
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.abs(), 0.1).to_event(1), obs=x)


def by_spread_guide(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(torch.zeros_like(x), 0.1 + 0.8 * x.abs()).to_event(1))


def test_a_latent_that_tells_rows_apart_by_its_spread_alone_is_no_collapse():
    use = latent_use(Pair(model=by_spread, guide=by_spread_guide), torch.randn(500, 1).abs())
    assert not use["z"].active.any()
    assert use.information.mean() > 0.1
    assert use.verdict.startswith("Z is used; ")


def scaled(loc, scale, prior):
    """A linear model of u in which the latent is z = loc + scale u, with the prior moved along."""

    def model(x):
        at, unit = x.new_tensor(loc), x.new_tensor(scale)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", prior(at, unit).to_event(1))
            u = (z - at) / unit * x.new_tensor([1.0, 0.0])
            pyro.sample("x", dist.Normal(u, 0.5).to_event(1), obs=x)

    def guide(x):
        at, unit = x.new_tensor(loc), x.new_tensor(scale)
        m, sd = x * x.new_tensor([0.8, 0.0]), x.new_tensor([0.45, 1.0])
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(at + unit * m, unit * sd).to_event(1))

    return Pair(model=model, guide=guide)


@pytest.mark.parametrize("prior", [dist.Normal, dist.Cauchy, dist.Laplace])
def test_nothing_depends_on_the_place_and_the_unit_of_the_latent(prior):
    x = torch.randn(200, 2, dtype=torch.float64) * torch.tensor([1.1, 0.5])
    places = ((0.0, 0.0), (1.0, 1.0)), ((5.0, 5.0), (3.0, 3.0)), ((-2.0, 9.0), (1e-3, 40.0))
    uses = [latent_use(scaled(*at, prior), x, dtype="float64") for at in places]
    for use in uses[1:]:
        for name in ("activity", "noise", "kl", "kl_of", "sensitivity_of", "information"):
            ours, plain = (getattr(site, name) for site in (use["z"], uses[0]["z"]))
            assert np.allclose(ours, plain, rtol=1e-6, atol=1e-6), name
        assert use["z"].p_value == uses[0]["z"].p_value
        assert use["z"].active.tolist() == [True, False]
    if prior is dist.Normal:
        assert uses[1].verdict.startswith("1 of the 2 entries of z is used; z[1] is dead")


def two_layers(x):
    with pyro.plate("data", len(x), dim=-1):
        top = pyro.sample("top", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
        low = pyro.sample("low", dist.Normal(top, 1.0).to_event(1))
        pyro.sample("x", dist.Normal(low, 1.0).to_event(1), obs=x)


def downwards(x):
    with pyro.plate("data", len(x), dim=-1):
        top = pyro.sample("top", dist.Normal(x, 1.0).to_event(1))
        pyro.sample("low", dist.Normal(top + 1, 1.0).to_event(1))


def upwards(x):
    with pyro.plate("data", len(x), dim=-1):
        low = pyro.sample("low", dist.Normal(x, 1.0).to_event(1))
        pyro.sample("top", dist.Normal(low / 2, 0.5**0.5).to_event(1))


def test_each_layer_has_its_part_given_the_one_above():
    x = torch.randn(1000, 1, dtype=torch.float64)
    use = latent_use(Pair(model=two_layers, guide=downwards), x)
    top, low = use.sites
    assert close(top.kl, 0.5)
    assert close(low.kl, 0.5)
    assert np.allclose(use.kl, top.kl + low.kl)
    assert top.information.mean() == pytest.approx(0.5 * math.log(2), abs=0.06)
    assert np.allclose(low.information, 0, atol=1e-9)  # the layer below sees no more of x
    assert top.marginal.mean() == pytest.approx(0.5 - 0.5 * math.log(2), abs=0.08)
    assert close(low.marginal, 0.5)
    # E log N(low; top, 1) - log N(low; z', 1), low = top + 1 + e, top of variance 2, z' of 1
    assert close(top.sensitivity, 0.5 * (2 + 1 + 1 + 1 - 2))
    assert use.verdict.startswith("Top is used; the aggregated posterior of top does not match")
    assert "; low is used; the aggregated posterior of low does not match" in use.verdict


def test_layers_in_another_order_have_their_kl_together():
    x = torch.randn(300, 1, dtype=torch.float64)
    use = latent_use(Pair(model=two_layers, guide=upwards), x)
    assert all(np.isnan(site.kl).all() and np.isnan(site.marginal).all() for site in use.sites)
    assert "the guide draws the latents in another order than the model" in use.sites[0].notes[0]
    # q(low|x) = N(x, 1) against p(low) = N(0, 2), and q(top|low) is the model's own
    exact = 0.5 * ((1 + x[:, 0] ** 2) / 2 - 1 + math.log(2))
    assert close(use.kl - exact.numpy(), 0)
    assert use.information.mean() == pytest.approx(0.5 * math.log(2), abs=0.1)
    assert all(site.informs for site in use.sites)
    assert "-" in str(use)


def apart(x):
    with pyro.plate("data", len(x), dim=-1):
        low = pyro.sample("low", dist.Normal(0 * x, 2**0.5).to_event(1))
        pyro.sample("top", dist.Normal(low / 2, 0.5**0.5).to_event(1))


def test_a_collapse_is_seen_in_any_order():
    x = torch.randn(300, 1, dtype=torch.float64)
    verdict = latent_use(Pair(model=two_layers, guide=apart), x).verdict
    assert verdict.startswith("The latent is not used at all (posterior collapse); low is not")


def test_a_hierarchical_vae_has_a_line_for_each_layer_and_one_for_all():
    vae = HierarchicalVAE(x=(4,), z=(2,), layers=[Stochastic(z=(3,))])
    use = latent_use(vae, torch.bernoulli(torch.full((60, 4), 0.5)), particles=20)
    assert [site.name for site in use.sites] == ["z2", "z1"]
    assert use["z1"].kl_of.shape == (60, 3)
    assert np.allclose(use["z1"].kl_of.sum(-1), use["z1"].kl, atol=1e-4)
    assert [row[0] for row in use.table().rows] == ["z2", "z1", "all"]
    assert len(use.entries().rows) == 5


def test_a_class_is_judged_as_one():
    mixture = Mixture(x=(2,), components=3, family="normal").double()
    means = torch.tensor([[-9.0, 0.0], [9.0, 0.0], [0.0, 9.0]], dtype=torch.float64)
    with torch.no_grad():
        mixture.h[:, 0] = means
    x = means.repeat(100, 1) + 0.1 * torch.randn(300, 2, dtype=torch.float64)
    use = latent_use(mixture, x)
    site = use["k"]
    assert np.allclose(site.kl, math.log(3), atol=1e-4)
    assert site.information.mean() == pytest.approx(math.log(3), abs=1e-3)
    assert site.marginal.mean() == pytest.approx(0, abs=1e-3)
    assert np.isnan(site.activity).all()
    assert site.sensitivity.mean() > 10
    assert site.notes == (
        "k: no activity, no KL of an entry, no sensitivity of an entry: "
        "a class is one unit, without a spread.",
    )
    assert use.verdict.startswith("K is used; the aggregated posterior passes")
    assert not plots.latent_use(use).patches
    with torch.no_grad():
        mixture.h[:] = 0
    collapsed = latent_use(mixture, x)
    assert (
        collapsed.verdict == "The latent is not used at all (posterior collapse); k is not used."
    )


def test_a_semi_supervised_vae_has_a_class_and_a_style():
    vae = SemiSupervisedVAE(x=(4,), z=(2,), classes=3)
    use = latent_use(vae, torch.bernoulli(torch.full((50, 4), 0.5)), particles=20)
    assert use["y"].whole
    assert not use["z"].whole
    assert np.isfinite(use["z"].activity).all()
    assert (use.information <= math.log(50) + 1e-5).all()
    assert [row[1] for row in use.table().rows] == [
        "yes" if use["y"].informs else "no",
        f"{use['z'].used.sum()} of 2",
        "-",
    ]


def test_a_prior_that_depends_on_the_context_has_no_activity():
    affine = {"kind": "mlp", "hidden": ()}
    vae = ConditionalVAE(x=(3,), z=(2,), context=(2,), prior="conditional", decoder=affine)
    batch = Batch(torch.bernoulli(torch.full((80, 3), 0.5)), context=torch.randn(80, 2))
    use = latent_use(vae, batch, particles=20)
    assert np.isnan(use["z"].activity).all()
    assert np.isnan(use.marginal).all()
    assert np.isfinite(use["z"].kl_of).all()
    assert "no activity, no marginal KL: the prior depends on what the row is given" in str(use)
    with torch.no_grad():
        vae.decoder.output.weight[:, :2] = torch.tensor([9.0, 0.0])
        vae.encoder.output.bias[2:] = -5.0
    use = latent_use(vae, batch, particles=20)
    assert use["z"].used.tolist() == [True, False]
    assert use["z"].dead.tolist() == [False, True]
    with torch.no_grad():
        vae.encoder.output.weight.zero_()
    use = latent_use(vae, batch, particles=20)
    assert use["z"].missed.tolist() == [True, False]
    assert not use["z"].used.any()
    assert use.verdict.startswith("The latent is not used at all")
    plain = latent_use(ConditionalVAE(x=(3,), z=(2,), context=(2,)), batch, particles=20)
    assert np.isfinite(plain["z"].activity).all()
    assert np.isfinite(plain.marginal).all()


@pytest.mark.parametrize(
    "options",
    [
        {"prior": "gaussian-mixture"},
        {"prior": "vamp"},
        {"prior": "flow"},
        {"posterior": "multivariate-normal"},
        {"posterior": "flow"},
    ],
    ids=str,
)
def test_entries_that_depend_on_each_other_have_no_kl_of_their_own(options):
    vae = VAE(x=(4,), z=(2,), **options)
    use = latent_use(vae, torch.bernoulli(torch.full((40, 4), 0.5)), particles=10)
    assert np.isnan(use["z"].kl_of).all()
    assert np.isfinite(use["z"].kl).all()
    assert np.isfinite(use["z"].activity).all()
    assert use["z"].notes == (
        "z: no KL of an entry: q(z|x) or p(z) does not factorise over the entries.",
    )


@pytest.mark.parametrize("prior", ["horseshoe-like", "student-t", "laplace"])
def test_priors_with_heavy_tails_have_a_spread(prior):
    use = latent_use(VAE(x=(4,), z=(2,), prior=prior), torch.zeros(40, 4), particles=10)
    assert np.isfinite(use["z"].activity).all()
    assert np.isfinite(use["z"].kl_of).all()


def test_a_direction_is_drawn_anew_as_a_whole():
    vae = VAE(x=(4,), z=(3,), prior="uniform-sphere", posterior="power-spherical")
    use = latent_use(vae, torch.bernoulli(torch.full((40, 4), 0.5)), particles=10)
    assert np.isfinite(use["z"].activity).all()
    assert np.isnan(use["z"].sensitivity_of).all()
    assert np.isfinite(use["z"].sensitivity).all()
    assert "no sensitivity of an entry: the support ties the entries together" in str(use)


def test_one_row_has_a_kl_and_no_verdict():
    vae, exact = linear_vae()
    use = latent_use(vae, exact.sample((1,)))
    assert use.kl.shape == (1,)
    assert np.isfinite(use.kl).all()
    assert np.isnan(use["z"].activity).all()
    assert math.isnan(use["z"].p_value)
    assert use.verdict == "One row cannot tell whether the latents are used: pass more."
    assert "one row has no spread" in str(use)
    json.dumps(use.summary())


def test_rows_that_all_lie_apart_give_a_bound_and_say_so():
    vae, exact = linear_vae(d=12, lengths=(9.0,) * 8)
    use = latent_use(vae, exact.sample((100,)), particles=10)
    assert use.saturated
    assert use.information.mean() == pytest.approx(math.log(100), abs=1e-3)
    assert use.information.max() <= math.log(100) + 1e-9
    assert "I(x; z) is near log 100 = 4.61" in str(use)
    assert "lower bound, and the marginal KL an upper one" in " ".join(str(use).split())


def test_missing_entries_transforms_refinement_and_precision():
    x = torch.randn(30, 4)
    gaps = torch.where(torch.rand(30, 4) < 0.3, torch.nan, x)
    normal = {"x": (4,), "z": (2,), "likelihood": "normal"}
    for model, rows in (
        (VAE(**normal, missing=True), gaps),
        (Transformed(base=VAE(**normal), transform="standardize"), x),
        (VAE(**normal, refine=SemiAmortized(steps=2)), x),
        (VAE(x=(4,), z=(2, 3), posterior="one-hot", prior="categorical"), (x > 0).float()),
    ):
        use = latent_use(model, rows, particles=5, dtype="float64")
        assert np.isfinite(use.kl).all()
        assert (use.information <= math.log(30) + 1e-9).all()
        assert next(model.parameters()).dtype == torch.float32


def test_no_row_tells_more_than_log_n_with_a_guide_that_is_new_in_every_run():
    refine = SemiAmortized(steps=1, learning_rate=0.5, particles=1)
    vae = VAE(x=(4,), z=(6,), likelihood="normal", refine=refine)
    with torch.no_grad():
        vae.encoder.output.bias[6:] = -4.0
    use = latent_use(vae, 3 * torch.randn(20, 4), particles=5)
    assert use.information.max() <= math.log(20) + 1e-5


def test_the_evaluation_changes_nothing_and_follows_its_seed():
    vae, exact = linear_vae()
    vae.train()
    x = exact.sample((50,))
    kept = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    state = torch.get_rng_state()
    one, two, other = (latent_use(vae, x, particles=5, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(kept[name], tensor) for name, tensor in vae.state_dict().items())
    assert vae.training
    assert one.summary() == two.summary()
    assert (one.kl != other.kl).all()


def test_blocks_do_not_change_what_is_found(monkeypatch):
    vae, exact = linear_vae()
    x = exact.sample((120,))
    whole = latent_use(vae, x, particles=20)
    monkeypatch.setattr(module, "BLOCK", 64)
    pieces = latent_use(vae, x, particles=20)
    for name in ("kl", "information", "sensitivity"):
        a, b = (getattr(use["z"], name) for use in (whole, pieces))
        assert abs(a.mean() - b.mean()) < 5 * np.hypot(a.std(), b.std()) / 120**0.5
    monkeypatch.setattr(module, "ROWS", 50)
    few = latent_use(vae, x, particles=20)
    assert few.information.shape == (50,)
    assert few.kl.shape == (120,)


def test_the_mixture_holds_every_row():
    """Against the sum over all pairs written out, on the same draws."""
    vae, exact = linear_vae()
    batch = Batch(exact.sample((300,)))
    with torch.no_grad():
        z, log_q, _ = module._one_draw(vae, batch, ["z"])
        found = module._log_mixture(vae, batch, z, log_q)
        q = vae.q(batch.x)
        pairs = q.log_prob(z["z"][:, None])
    assert np.allclose(found[0], (pairs.logsumexp(-1) - math.log(300)).numpy())
    assert np.allclose(log_q[0], pairs.diagonal().numpy())


def test_the_summary_is_plain_and_the_plot_shows_the_entries(linear):
    *_, use = linear
    summary = json.loads(json.dumps(use.summary()))
    assert summary["sites"]["z"]["active"] == 2
    assert len(summary["sites"]["z"]["activity"]) == 3
    assert summary["verdict"] == use.verdict
    ax = plots.latent_use(use)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["z[0]", "z[1]", "z[2]"]
    assert len(ax.patches) == 3
    assert [row[1] for row in use.entries().rows] == ["used", "used", "dead"]
    with pytest.raises(ValueError, match=r"unknown latent 'y'\. Known: z"):
        use["y"]


def test_the_verdict_names_a_few_of_many_entries():
    vae, exact = linear_vae(d=14, lengths=(1.0,) + (0.0,) * 11)
    verdict = latent_use(vae, exact.sample((200,))).verdict
    assert "1 of the 12 entries of z is used; z[1], z[2]," in verdict
    assert "z[8], 3 more are dead" in verdict


def global_guide(x):
    pyro.sample("z", dist.Normal(0.0, 1.0))


def global_model(x):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Normal(z, 1.0).expand([1]).to_event(1), obs=x)


def point(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("top", dist.Delta(x, event_dim=1))
        pyro.sample("low", dist.Normal(x, 1.0).to_event(1))


def auxiliary(x):
    with pyro.plate("data", len(x), dim=-1):
        a = pyro.sample("a", dist.Normal(x, 1.0).to_event(1), infer={"is_auxiliary": True})
        pyro.sample("top", dist.Normal(a, 1.0).to_event(1))
        pyro.sample("low", dist.Normal(a, 1.0).to_event(1))


def broken(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("top", dist.Normal(x / (x < 2), 1.0).to_event(1))
        pyro.sample("low", dist.Normal(x, 1.0).to_event(1))


@pytest.mark.parametrize(
    ("model", "guide", "match"),
    [
        (global_model, global_guide, "the site 'z' is not in a plate of the rows"),
        (two_layers, point, "the guide sets 'top' to a point, which has no KL to a density"),
        (two_layers, auxiliary, "'a' is in the guide only"),
        (two_layers, broken, "the log-weight of row 7 is not finite"),
    ],
)
def test_what_has_no_answer_is_refused(model, guide, match):
    x = torch.zeros(20, 1)
    x[7] = 3.0
    with pytest.raises(ValueError, match=match):
        latent_use(Pair(model=model, guide=guide), x, particles=1000)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="particles: should be greater than or equal to 2"):
        latent_use(VAE(x=(2,), z=(1,)), torch.zeros(3, 2), particles=1)
    with pytest.raises(ValueError, match="should be a model"):
        latent_use(nn.Linear(1, 1), torch.zeros(3, 2))


def test_a_marginal_kl_that_is_but_an_upper_bound_is_no_part_of_the_verdict():
    """Precise guides of many entries: I(x; z) reaches log N, and the rest is counted as KL."""
    vae, exact = linear_vae(1.0, 60.0, d=20, lengths=(40.0,) * 6)
    found = latent_use(vae, exact.sample((100,)))
    assert found.saturated
    assert not found["z"].matches
    assert "does not match the prior (p = " in found.verdict
    assert "KL(q(z) || p(z))" not in found.verdict
