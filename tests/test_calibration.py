"""Calibration of guides and predictive checks: right models pass, wrong ones are told how."""

from itertools import product

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from arviz_stats import ecdf_utils
from linear_gaussian import SCALE, linear_vae
from matplotlib import pyplot
from pyro import poutine
from scipy import stats
from torch import nn

from pyrovae import (
    VAE,
    Batch,
    ConditionalVAE,
    FactorAnalysis,
    HierarchicalVAE,
    Mixture,
    Pair,
    SemiSupervisedVAE,
    Transformed,
    calibrate,
    fit,
    plots,
    predictive_check,
)
from pyrovae.evaluate import calibration, predictive
from pyrovae.evaluate.uniformity import Uniformity, pit

LENGTHS = (1.5, 0.6, 1.2, 0.9, 0.4)
Z = tuple(f"z[{j}]" for j in range(5))


def of_ranks(ranks, draws):
    """The test of ranks, `(rows, quantities)`."""
    u = (np.asarray(ranks) + 0.5) / (draws + 1)
    return Uniformity(tuple(map(str, range(u.shape[1]))), u, draws)


def skewed(e):
    """An exponential variable of mean 0 and variance 1, from a normal one."""
    return -torch.special.log_ndtr(-e) - 1


def findings(result):
    return dict(zip(result.test.names, result.test.findings, strict=True))


class TestUniformity:
    @pytest.mark.parametrize(("rows", "draws"), [(5, 3), (8, 1), (3, 6)])
    def test_the_p_value_is_exact(self, rows, draws):
        values = draws + 1
        every = np.array(list(product(range(values), repeat=rows)))
        share = np.arange(1, values) / values
        below = (every[:, :, None] < np.arange(1, values)).sum(1)
        tails = np.minimum(
            stats.binom.cdf(below, rows, share), stats.binom.sf(below - 1, rows, share)
        ).min(1)
        sorted_ranks, first = np.unique(np.sort(every, 1), axis=0, return_index=True)
        expected = [(tails <= tails[i] * (1 + 1e-9)).mean() for i in first]
        first_rows = np.sort(every, 1)[first]
        assert (sorted_ranks == first_rows).all()
        assert of_ranks(sorted_ranks.T, draws).p_value == pytest.approx(expected, abs=1e-10)

    def test_it_agrees_with_the_simulated_band_of_arviz(self):
        rng = np.random.default_rng(0)
        u = rng.uniform(size=(100, 40)) ** rng.uniform(0.7, 1.4, size=40)
        p = Uniformity(tuple(map(str, range(40))), u, 99).p_value
        points = np.arange(1, 100) / 100
        prob = ecdf_utils.simulate_confidence_bands(100, 1, points, 0.9, 2000, rng)
        low, high = ecdf_utils.get_pointwise_confidence_band(prob, 100, points)
        ecdf = (u[:, :, None] < points).mean(0)
        inside = ((low <= ecdf + 1e-9) & (ecdf <= high + 1e-9)).all(1)
        far = np.abs(p - 0.1) > 0.03
        assert ((p > 0.1) == inside)[far].all()
        assert 5 < inside.sum() < 35

    def test_far_from_uniform_and_many_rows_are_no_trouble(self):
        u = np.stack([np.full(20_000, 0.001), np.linspace(0, 1, 20_000, endpoint=False)], 1)
        assert Uniformity(("a", "b"), u, 99).p_value.tolist() == [1e-12, 1.0]

    def test_holms_method_adjusts_for_the_number_of_quantities(self):
        test = of_ranks(np.zeros((20, 4), int), 9)
        test.__dict__["p_value"] = np.array([0.01, 0.04, 0.03, 0.005])
        assert test.adjusted == pytest.approx([0.03, 0.06, 0.06, 0.02])

    @pytest.mark.parametrize(
        ("draw", "expected"),
        [
            (lambda e: e + 0.5, "too low"),
            (lambda e: e - 3.0, "too high"),
            (lambda e: 2 * e, "too narrow"),
            (lambda e: 30 * e, "too narrow"),
            (lambda e: 0.5 * e, "too wide"),
            (lambda e: 0.01 * e, "too wide"),
            (skewed, "too left-skewed"),
            (lambda e: -skewed(e), "too right-skewed"),
        ],
    )
    def test_the_shape_of_ranks_tells_what_the_draws_are(self, draw, expected):
        truth = draw(torch.randn(500, 1))
        u = pit(truth, torch.randn(99, 500, 1))
        assert Uniformity(("a",), u, 99).findings == (expected,)

    def test_what_is_neither_shifted_nor_scaled_nor_skewed_has_another_shape(self):
        ranks = np.tile(np.r_[0:5, 20:30, 45:55, 70:80, 95:100], 10)
        assert of_ranks(ranks[:, None], 99).findings == ("of another shape",)

    def test_ties_are_broken_at_random(self):
        truth = torch.bernoulli(torch.full((2000, 1), 0.3))
        u = pit(truth, torch.bernoulli(torch.full((99, 2000, 1), 0.3)))
        assert stats.kstest(u[:, 0], "uniform").pvalue > 1e-3
        close = torch.ones(2000, 1) * (1 + 1e-9)
        u = pit(close.double(), torch.ones(99, 2000, 1).double(), tolerance=1e-6)
        assert stats.kstest(u[:, 0], "uniform").pvalue > 1e-3

    def test_what_is_not_a_number_has_no_rank(self):
        truth = torch.tensor([[torch.nan, 1.0, 1.0]])
        u = pit(truth, torch.tensor([[[0.0, torch.nan, 0.0]], [[0.0, 0.0, torch.inf]]]))
        assert np.isnan(u).tolist() == [[True, True, False]]
        assert 1 / 3 <= u[0, 2] < 2 / 3


class TestCalibration:
    """By the level of the test, a right guide is called wrong in at most 1 % of seeds."""

    def test_the_exact_guide_of_a_linear_gaussian_model_is_calibrated(self):
        vae, _ = linear_vae(d=20, lengths=LENGTHS)
        result = calibrate(vae)
        assert result.calibrated
        assert result.trivial == ()
        assert result.test.names == (*Z, "log p(x, z)", "|z|")
        assert result.test.pit.shape == (500, 7)
        assert result.verdict.startswith("q is calibrated under the model (smallest p = ")
        w = vae.decoder.output.weight.detach().square().sum(0)
        assert result.activity[:5] == pytest.approx((w / (w + SCALE**2)).numpy(), abs=0.15)
        assert np.isnan(result.activity[5:]).all()

    @pytest.mark.parametrize(
        ("scale", "shift", "finding"),
        [
            (0.5, 0.0, "too narrow"),
            (2.0, 0.0, "too wide"),
            (1.0, 0.3, "too high"),
            (1.0, -0.3, "too low"),
        ],
    )
    def test_a_wrong_guide_is_rejected_and_told_how_it_is_wrong(self, scale, shift, finding):
        vae, _ = linear_vae(scale, shift, d=20, lengths=LENGTHS)
        result = calibrate(vae)
        assert not result.calibrated
        assert all(findings(result)[name] == finding for name in Z)
        assert f"{finding} in " in result.verdict
        assert (result.test.adjusted[:5] < 0.005).all()

    def test_an_unused_entry_passes_and_is_named(self):
        vae, _ = linear_vae(d=20, lengths=(1.5, 0.0, 0.9))
        result = calibrate(vae)
        assert result.calibrated
        assert result.trivial == ("z[1]",)
        assert result.verdict.endswith("z[1] is calibrated only because q does not use x there.")
        assert result.activity[1] < 0.01 < result.activity[2]

    def test_a_guide_that_ignores_x_is_seen_by_log_p_alone(self):
        vae, _ = linear_vae(d=20, lengths=LENGTHS)
        with torch.no_grad():
            vae.encoder.output.weight.zero_()
            vae.encoder.output.bias[:5] = 0.0
            vae.encoder.output.bias[5:] = np.log(np.e - 1)
        result = calibrate(vae)
        assert findings(result)["log p(x, z)"] == "too low"
        assert result.trivial == Z
        assert "z[0], z[1], z[2], z[3], z[4] are calibrated only because" in result.verdict

    def test_an_entry_that_is_wrong_is_not_excused_for_being_unused(self):
        vae, _ = linear_vae(0.5, d=20, lengths=(1.5, 0.0))
        assert calibrate(vae).trivial == ()

    def test_correlations_that_a_guide_misses_show_in_log_p(self):
        vae, _ = linear_vae(d=5, lengths=(1.5, 1.5))
        turn = torch.tensor([[1.0, 0.9], [0.0, 0.4]], dtype=torch.float64)
        with torch.no_grad():
            w, b = vae.decoder.output.weight, vae.decoder.output.bias
            w.copy_(w @ turn)
            exact = torch.linalg.inv(torch.eye(2) + w.T @ w / SCALE**2)
            slope = exact @ w.T / SCALE**2
            sd = exact.diagonal().sqrt()
            vae.encoder.output.weight[:2] = slope
            vae.encoder.output.bias[:2] = -slope @ b
            vae.encoder.output.bias[2:] = torch.log(torch.expm1(sd))
        found = findings(calibrate(vae))
        assert found["z[0]"] == found["z[1]"] == ""
        assert found["log p(x, z)"] == "too low"

    def test_a_right_guide_is_called_wrong_no_more_often_than_the_level(self):
        vae, _ = linear_vae(d=20, lengths=LENGTHS)
        tests = [calibrate(vae, 100, draws=19, seed=seed).test for seed in range(60)]
        assert sum(any(test.findings) for test in tests) <= 3  # more: once in 300 sets of seeds
        p = np.array([test.p_value for test in tests])
        assert all(stats.kstest(column, "uniform").pvalue > 1e-3 for column in p.T)

    def test_a_model_behind_a_transform_is_calibrated_as_it_is(self):
        vae, exact = linear_vae()
        model = Transformed(base=vae, transform="standardize").double()
        model.transform.start(5 + 3 * exact.sample((50,)))
        assert calibrate(model).calibrated

    def test_rows_with_missing_entries_keep_them_missing(self):
        x = linear_vae()[1].sample((300,))
        model = FactorAnalysis(x=(5,), factors=2).double()
        fit(model, x)
        x = x.where(torch.rand(300, 5) < 0.6, torch.nan)
        assert calibrate(model, x).calibrated
        nothing = calibrate(model, torch.full((60, 5), torch.nan))
        assert nothing.calibrated
        assert nothing.trivial == Z[:2]

    def test_rounding_that_goes_by_the_shape_is_no_difference(self):
        pair = Pair(model=rounded, guide=even, x=(1,))
        assert calibrate(pair).calibrated

    def test_blocks_of_rows_add_up(self, monkeypatch):
        vae, _ = linear_vae(1.0, 1.0)
        monkeypatch.setattr(calibration, "BLOCK", 10)
        result = calibrate(vae, 120, draws=19)
        assert result.test.pit.shape == (120, 4)
        assert len(np.unique(result.test.pit)) == 480
        assert {findings(result)[name] for name in ("z[0]", "z[1]")} == {"too high"}

    def test_the_seed_decides_and_nothing_else_changes(self):
        vae, exact = linear_vae()
        vae.train()
        before = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
        x, random = exact.sample((50,)), torch.random.get_rng_state()
        results = [calibrate(vae, 50, seed=seed) for seed in (3, 3, 4)]
        checks = [predictive_check(vae, x, seed=seed) for seed in (3, 3, 4)]
        with poutine.scale(scale=0.1):
            results.append(calibrate(vae, 50, seed=3))
        for one, two, other, *rest in (results, checks):
            assert (one.test.pit == two.test.pit).all()
            assert (one.test.pit != other.test.pit).all()
            assert all((one.test.pit == again.test.pit).all() for again in rest)
        assert torch.equal(torch.random.get_rng_state(), random)
        assert vae.training
        assert all(torch.equal(tensor, before[name]) for name, tensor in vae.state_dict().items())

    def test_every_latent_of_a_hierarchy_is_ranked_by_name(self):
        model = HierarchicalVAE(x=(3,), z=(1,), layers=[{"kind": "stochastic", "z": (2,)}])
        names = calibrate(model, 20, draws=9).test.names
        assert names == ("z2[0]", "z1[0]", "z1[1]", "log p(x, z)", "|z|")

    def test_a_context_is_that_of_the_rows(self):
        model = ConditionalVAE(x=(3,), z=(2,), context=(2,))
        rows = Batch(torch.zeros(30, 3), torch.randn(30, 2))
        assert calibrate(model, rows).test.pit.shape == (30, 4)
        with pytest.raises(ValueError, match="needs a context for each row"):
            calibrate(model, 30)

    def test_a_discrete_latent_is_left_out_with_the_reason(self):
        model = Mixture(x=(2,), components=3, family="fixed-normal")
        result = calibrate(model)
        assert result.test.names == ("log p(x, z)",)
        assert result.calibrated
        assert "k is discrete: only log p(x, z) sees it." in str(result)
        result = calibrate(SemiSupervisedVAE(x=(3,), z=(2,), classes=3), 50)
        assert result.test.names == ("z[0]", "z[1]", "log p(x, z)", "|z|")
        assert result.left_out == ("y is discrete: only log p(x, z) sees it.",)

    @pytest.mark.parametrize(("scale", "right"), [(1.0, True), (0.0, False)])
    def test_a_guide_with_a_class_is_drawn_from_class_and_all(self, scale, right):
        pair = Pair(model=two_classes, guide=TwoClasses(scale).guide, x=(1,))
        assert calibrate(pair, 1000).calibrated == right

    def test_on_a_sphere_the_norm_is_no_quantity(self):
        model = VAE(x=(3,), z=(3,), prior="uniform-sphere", posterior="power-spherical")
        result = calibrate(model, 50)
        assert result.test.names == ("z[0]", "z[1]", "z[2]", "log p(x, z)")
        assert result.left_out == ("|z| is the same for all z.",)

    @pytest.mark.parametrize(
        ("make", "rows", "message"),
        [
            (lambda: linear_vae()[0], 1, "a test of uniformity needs at least 20 rows, got 1"),
            (lambda: linear_vae()[0], torch.zeros(3, 5), "needs at least 20 rows, got 3"),
            (lambda: linear_vae()[0], torch.zeros(30, 4), r"have the shape \(4,\)"),
            (lambda: Pair(model=plain, guide=lambda x: None, x=(2,)), 30, "has no latents"),
            (lambda: Pair(model=shared, guide=shared_guide, x=(2,)), 30, "the site 'm' is not in"),
            (lambda: Pair(model=double, guide=zero, x=(2,)), 30, "observes 'x' and 'y'"),
            (
                lambda: Pair(model=noise, guide=broken, x=(2,)),
                30,
                r"z is not a number in row 0 of those simulated",
            ),
            (
                lambda: VAE(x=(3,), z=(2,), likelihood={"kind": "poisson", "exposure": "total"}),
                30,
                "is given the row totals, which new rows do not keep",
            ),
        ],
    )
    def test_what_cannot_be_ranked_is_refused(self, make, rows, message):
        with pytest.raises(ValueError, match=message):
            calibrate(make(), rows)

    def test_the_figures_are_those_of_the_quantities(self):
        vae, _ = linear_vae(0.5)
        result = calibrate(vae, 200)
        summary = result.summary()
        assert summary["deviating"] == summary["quantities"] == 4
        assert summary["rows"] == 200
        assert summary["largest_gap"] == result.test.gap.max() > 0.1
        table = result.table()
        assert {row[0] for row in table.rows} == {*Z[:2], "log p(x, z)", "|z|"}
        assert table.rows[0][2:] == ("< 1e-06", "too high", "")
        assert {row[3:] for row in table.rows if row[0] == "z[0]"} == {
            ("too narrow", f"{result.activity[0]:.2f}")
        }
        assert str(result).endswith(result.verdict)


def two_classes(x):
    """y in two classes, z and x ~ N(z + 3 y, 0.25): given x and y all is normal."""
    with pyro.plate("data", len(x), dim=-1):
        y = pyro.sample("y", dist.Bernoulli(x.new_tensor(0.3)))
        z = pyro.sample("z", dist.Normal(x.new_tensor(0.0), 1.0))
        pyro.sample("x", dist.Normal((z + 3 * y)[..., None], 0.5).to_event(1), obs=x)


class TwoClasses(nn.Module):
    """The posterior, or that of z with y by chance."""

    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def guide(self, x):
        p = dist.Normal(x.new_tensor([0.0, 3.0]), 1.25**0.5)
        odds = p.log_prob(x).diff()[:, 0] * self.scale + np.log(3 / 7)
        with pyro.plate("data", len(x), dim=-1):
            y = pyro.sample("y", dist.Bernoulli(logits=odds))
            pyro.sample("z", dist.Normal((x[:, 0] - 3 * y) / 1.25, 0.2**0.5))


def plain(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Normal(x.new_zeros(2), 1.0).to_event(1), obs=x)


def noise(x):
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(x.new_tensor(0.0), 1.0))
        pyro.sample("x", dist.Normal(z[..., None].expand(*z.shape, 2), 1.0).to_event(1), obs=x)


def broken(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(x.new_tensor(torch.nan), 1.0))


def rounded(x):
    with pyro.plate("data", len(x), dim=-1):
        k = pyro.sample("k", dist.Bernoulli(x.new_tensor(0.5)))
        loc = 1e-6 * k.dim() * torch.ones_like(k)[..., None]
        pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)


def even(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("k", dist.Bernoulli(x.new_tensor(0.5)))


def double(x):
    noise(x)
    with pyro.plate("again", len(x), dim=-1):
        pyro.sample("y", dist.Normal(x.new_zeros(2), 1.0).to_event(1), obs=x)


def zero(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(x.new_tensor(0.0), 1.0))


def shared(x):
    pyro.sample("m", dist.Normal(x.new_tensor(0.0), 1.0))
    noise(x)


def shared_guide(x):
    pyro.sample("m", dist.Normal(x.new_tensor(0.0), 1.0))
    zero(x)


def on_a_line(x, context):
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(x.new_zeros(1), 0.1).to_event(1))
        pyro.sample("x", dist.Normal(context + z, 0.1).to_event(1), obs=x)


def on_a_line_guide(x, context):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(x.new_zeros(1), 0.1).to_event(1))


def rows_of(vae, rows, noise=SCALE, shift=0.0):
    """Rows of a linear-Gaussian model with other noise, and moved."""
    z = torch.randn(rows, *vae.z, dtype=torch.float64)
    with torch.no_grad():
        return vae.decoder(z) + noise * torch.randn(rows, *vae.x) + shift


def fitted(family, x):
    """One component of a family, fitted to rows."""
    model = Mixture(x=tuple(x.shape[1:]), components=1, family=family)
    fit(model, x)
    return model


class TestPredictiveCheck:
    """By the level of the test, a right model is called wrong in at most 1 % of seeds."""

    def test_rows_of_the_model_pass(self):
        vae, exact = linear_vae()
        check = predictive_check(vae, exact.sample((500,)))
        assert check.fits
        assert check.test.names[4:] == ("x[4]", "mean of x", "sd of x", "min of x", "max of x")
        assert check.verdict.startswith("Rows pass for draws of p(x), entry by entry (smallest p")
        assert check.left_out == ()

    @pytest.mark.parametrize(
        ("noise", "shift", "finding"),
        [
            (2 * SCALE, 0.0, "too narrow"),
            (SCALE / 2, 0.0, "too wide"),
            (SCALE, 0.4, "too low"),
            (SCALE, -0.4, "too high"),
        ],
    )
    def test_a_model_with_other_noise_or_mean_is_told_how_it_is_wrong(self, noise, shift, finding):
        vae, _ = linear_vae(lengths=(0.5, 0.3))
        check = predictive_check(vae, rows_of(vae, 500, noise, shift))
        assert all(findings(check)[f"x[{i}]"] == finding for i in range(5))
        assert f"{finding} in " in check.verdict
        assert not check.fits

    def test_one_wrong_column_is_named(self):
        vae, exact = linear_vae()
        x = exact.sample((500,))
        x[:, 3] += 1.0
        check = predictive_check(vae, x)
        assert check.test.names[check.test.order[0]] == "x[3]"
        assert "too low in x[3]" in check.verdict

    def test_a_normal_for_skewed_rows_is_not_skewed_enough(self):
        x = torch.distributions.Exponential(1.0).sample((1000, 2))
        check = predictive_check(fitted("normal", x[:500]), x[500:])
        assert findings(check)["x[0]"] == findings(check)["x[1]"] == "too left-skewed"

    def test_a_poisson_is_too_narrow_for_overdispersed_counts(self):
        rate = torch.distributions.Gamma(2.0, 0.5).sample((1000, 3))
        counts = torch.poisson(rate)
        check = predictive_check(fitted("poisson", counts[:500]), counts[500:])
        assert all(findings(check)[f"x[{i}]"] == "too narrow" for i in range(3))
        assert predictive_check(fitted("negative-binomial", counts[:500]), counts[500:]).fits

    def test_discrete_rows_of_the_model_pass(self):
        rates = torch.tensor([0.02, 0.5, 3.0, 40.0])
        x = torch.poisson(rates.expand(1500, 4))
        assert predictive_check(fitted("poisson", x[:1000]), x[1000:]).fits

    def test_constant_columns_are_left_out_and_counted(self):
        x = torch.bernoulli(torch.full((600, 12), 0.3))
        x[:, :8] = 0.0
        check = predictive_check(fitted("bernoulli", x[:300]), x[300:])
        assert check.left_out == (
            "Left out for being constant (9): x[0], x[1], x[2], x[3], x[4] and 4 more.",
        )
        assert check.test.names[:4] == ("x[8]", "x[9]", "x[10]", "x[11]")
        assert check.fits

    def test_missing_entries_are_skipped(self):
        x = linear_vae()[1].sample((1000,))
        model = FactorAnalysis(x=(5,), factors=2).double()
        fit(model, x[:500])
        x = x[500:].where(torch.rand(500, 5) < 0.6, torch.nan)
        x[0], x[10:, 4] = torch.nan, torch.nan
        check = predictive_check(model, x)
        assert check.fits
        assert (np.isnan(check.test.pit[:, :4]) == x[:, :4].isnan().numpy()).all()
        assert np.isnan(check.test.pit[0]).all()
        assert check.left_out == ("Left out for fewer than 20 entries (1): x[4].",)
        x[:, 1] += 3.0
        assert findings(predictive_check(model, x))["x[1]"] == "too low"

    def test_a_row_is_compared_with_rows_of_its_own_context(self):
        pair = Pair(model=on_a_line, guide=on_a_line_guide)
        context = 5 * torch.randn(300, 1)
        x = context + 0.1 * 2**0.5 * torch.randn(300, 1)
        check = predictive_check(pair, Batch(x, context))
        assert check.fits
        assert check.test.names == ("x[0]",)
        assert "p(x | the context)" in check.verdict
        assert not predictive_check(pair, Batch(x, context.flip(0))).fits

    def test_a_row_is_compared_with_rows_of_its_own_size(self):
        offset = torch.rand(1000) * 10 + 0.1
        x = torch.poisson(offset[:, None] * torch.tensor([1.0, 3.0]))
        model = Mixture(x=(2,), components=1, family={"kind": "poisson", "exposure": "offset"})
        fit(model, Batch(x[:500], offset=offset[:500]))
        assert predictive_check(model, Batch(x[500:], offset=offset[500:])).fits
        assert not predictive_check(fitted("poisson", x[:500]), x[500:]).fits

    def test_a_statistic_sees_what_columns_do_not(self):
        x = torch.randn(500, 2)
        x[:, 1] = 0.8 * x[:, 0] + 0.6 * x[:, 1]
        model = Mixture(x=(2,), components=1, family="fixed-normal")
        model.h.data.zero_()
        check = predictive_check(model, x, statistic=lambda x: x.prod(-1))
        assert findings(check)["x[0]"] == findings(check)["x[1]"] == ""
        assert findings(check)["T(x)"] != ""

    def test_columns_go_by_their_names(self):
        columns = {"age": "normal", "smoker": "bernoulli", "visits": "poisson"}
        model = VAE(x=(3,), z=(1,), likelihood={"kind": "columns", "columns": columns})
        x = torch.stack(
            [torch.randn(50), torch.bernoulli(torch.ones(50) / 2), torch.arange(50) % 4], 1
        )
        assert predictive_check(model, x).test.names[:3] == ("age", "smoker", "visits")

    def test_blocks_of_rows_add_up(self, monkeypatch):
        vae, exact = linear_vae()
        monkeypatch.setattr(predictive, "BLOCK", 100)
        check = predictive_check(vae, exact.sample((60,)), draws=19)
        assert check.test.pit.shape == (60, 9)
        assert check.fits

    def test_a_long_table_is_cut(self):
        check = predictive_check(VAE(x=(40,), z=(2,)), torch.bernoulli(torch.ones(50, 40) / 2))
        table = check.table()
        assert len(table.rows) == 20
        assert table.notes[0] == f"{len(check.test.names) - 20} more quantities deviate less."
        assert check.summary()["quantities"] == len(check.test.names)

    @pytest.mark.parametrize(
        ("x", "options", "message"),
        [
            (torch.zeros(1, 5), {}, "a test of uniformity needs at least 20 rows, got 1"),
            (torch.zeros(30, 5), {}, "nothing to check: no column has 20 entries"),
            (torch.randn(30, 4), {}, r"have the shape \(4,\)"),
            (torch.randn(30, 5), {"statistic": lambda x: x}, "statistic: should give one number"),
            (torch.randn(30, 5), {"statistic": lambda x: 1}, "statistic: should give one number"),
            (torch.randn(30, 5), {"draws": 0}, "draws: should be"),
        ],
    )
    def test_what_cannot_be_checked_is_refused(self, x, options, message):
        with pytest.raises(ValueError, match=message):
            predictive_check(linear_vae()[0], x, **options)

    def test_draws_that_are_no_numbers_are_named(self):
        vae, exact = linear_vae()
        vae.decoder.output.bias.data[2] = torch.nan
        with pytest.raises(ValueError, match=r"draws of x\[2\] are not numbers, first for row 0"):
            predictive_check(vae, exact.sample((30,)))


def test_arviz_draws_the_quantities_that_deviate_most():
    vae, exact = linear_vae(1.0, 0.5)
    plot = plots.pit(calibrate(vae, 100), most=2)
    assert set(plot.viz["plot"].data_vars) == {"z[0]", "z[1]"}
    model = FactorAnalysis(x=(5,), factors=2).double()
    fit(model, x := exact.sample((100,)))
    plot = plots.pit(predictive_check(model, x.where(torch.rand(100, 5) < 0.8, torch.nan)))
    assert len(plot.viz["plot"].data_vars) == 9
    pyplot.close("all")
