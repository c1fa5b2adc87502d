"""The tree for ArviZ: its groups against the models that they are of, and ArviZ's use of it."""

import json
from functools import partial
from importlib.metadata import version

import arviz_base
import arviz_plots
import arviz_stats
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray
from linear_gaussian import SCALE, linear_vae, true_posterior
from matplotlib import pyplot
from scipy import stats

import pyrovae
from pyrovae import (
    VAE,
    Batch,
    ConditionalVAE,
    Error,
    FactorAnalysis,
    HierarchicalVAE,
    Mixture,
    Model,
    Pair,
    SemiSupervisedVAE,
    Transformed,
    log_likelihood,
    posterior,
    to_arviz,
)
from pyrovae.arviz import held_out_elpd
from pyrovae.evaluate.weights import BLOCK

ALWAYS = {
    "variational",
    "sample_stats",
    "posterior",
    "log_likelihood_given_z",
    "posterior_predictive",
    "prior",
    "prior_predictive",
    "pointwise",
    "observed_data",
}
AFFINE = {"kind": "mlp", "hidden": ()}
LIGHT = {"kind": "resampled", "particles": 500}
quick = partial(to_arviz, draws=50, chains=2, particles=50, method=LIGHT)


@pytest.fixture(scope="module")
def linear():
    """A linear VAE with a guide that is too narrow, rows, and their tree."""
    pyro.set_rng_seed(1)
    vae, exact = linear_vae(guide_scale=0.6, guide_shift=0.3)
    x = exact.sample((8,))
    return vae, x, exact, to_arviz(vae, x, columns=tuple("abcde"), dtype="float64")


def reconstructed(vae, z):
    """The mean of x at latents of the linear model, `(..., j)`."""
    w, b = (t.detach().numpy() for t in (vae.decoder.output.weight, vae.decoder.output.bias))
    return z @ w.T + b


def close_to_standard_normal(values, entries):
    """Mean and standard deviation within 5 standard errors: wrong in one of 10^6 runs."""
    assert abs(values.mean()) < 5 / np.sqrt(entries)
    assert abs(values.std() - 1) < 5 / np.sqrt(2 * entries)


class TestGroups:
    def test_all_are_there_with_named_dimensions(self, linear):
        tree = linear[-1]
        assert set(tree.children) == ALWAYS
        draws = {"chain": 4, "draw": 250, "row": 8}
        for group in ("variational", "posterior", "prior"):
            assert tree[group]["z"].sizes == draws | {"z_dim_0": 2}
        for group in ("posterior_predictive", "prior_predictive"):
            assert tree[group]["x"].sizes == draws | {"draw": 25, "column": 5}
            assert tree[group]["column"].values.tolist() == list("abcde")
        assert tree["log_likelihood_given_z"]["x"].sizes == draws
        assert tree["observed_data"]["x"].dims == ("row", "column")
        assert tree["sample_stats"]["log_weight"].sizes == draws
        assert tree["sample_stats"]["khat"].dims == ("row",)
        assert tree["pointwise"]["row"].values.tolist() == list(range(8))

    def test_log_weights_are_those_of_the_variational_draws(self, linear):
        vae, x, _, tree = linear
        z = tree["variational"]["z"].values
        mean, sd = true_posterior(vae, x)
        log_q = stats.norm.logpdf(z, (mean + 0.3 * sd).numpy(), (0.6 * sd).numpy()).sum(-1)
        log_p = stats.norm.logpdf(z).sum(-1)
        log_p += stats.norm.logpdf(x, reconstructed(vae, z), SCALE).sum(-1)
        assert np.allclose(tree["sample_stats"]["log_weight"], log_p - log_q, rtol=0, atol=1e-9)

    def test_log_p_given_z_is_that_of_the_posterior_draws(self, linear):
        vae, x, _, tree = linear
        z = tree["posterior"]["z"].values
        log_p = stats.norm.logpdf(x, reconstructed(vae, z), SCALE).sum(-1)
        assert np.allclose(tree["log_likelihood_given_z"]["x"], log_p, rtol=0, atol=1e-9)

    @pytest.mark.parametrize("group", ["posterior", "prior"])
    def test_predictions_belong_to_the_draws_of_their_places(self, linear, group):
        vae, _, _, tree = linear
        x = tree[f"{group}_predictive"]["x"]
        z = tree[group]["z"].sel(draw=x["draw"])
        close_to_standard_normal((x.values - reconstructed(vae, z.values)) / SCALE, x.size)
        assert (x["draw"][0], x["draw"][-1]) == (0, 249)

    def test_prior_draws_are_of_the_prior(self, linear):
        z = linear[-1]["prior"]["z"].values
        close_to_standard_normal(z, z.size)

    def test_variational_draws_are_of_a_narrow_guide_and_the_posterior_is_not(self, linear):
        vae, x, _, tree = linear
        mean, sd = (t.numpy() for t in true_posterior(vae, x))
        q = (tree["variational"]["z"].values - mean) / sd
        close_to_standard_normal((q - 0.3) / 0.6, q.size)
        p = (tree["posterior"]["z"].values - mean) / sd
        assert abs(p.mean()) < 0.1  # at 1000 draws with a smallest ess of 200 and 16 entries
        assert p.std() == pytest.approx(1, abs=0.1)
        assert tree["sample_stats"]["khat"].values.max() > 0.5

    def test_posterior_and_pointwise_are_those_of_the_public_functions(self, linear):
        vae, x, _, tree = linear
        found = posterior(vae, x, 250, method="resampled")
        assert np.array_equal(tree["posterior"]["z"], found.z["z"])
        assert np.array_equal(tree["sample_stats"]["posterior_ess"], found.ess)
        result = log_likelihood(vae, x)
        for name in ("mcse", "ess", "khat", "particles"):
            assert np.array_equal(tree["pointwise"][name], getattr(result, name))
        assert np.array_equal(tree["pointwise"]["log_p"], result.value)
        assert tree["pointwise"].attrs["kind"] == "lower bound"
        assert tree["pointwise"].attrs["method"] == "iwae"

    def test_attributes_say_what_was_done(self, linear):
        vae, _, _, tree = linear
        again = Model.from_spec(json.loads(tree.attrs["model"]))
        assert again.spec() == vae.spec()
        assert json.loads(tree.attrs["versions"])["torch"] == version("torch")
        assert tree.attrs["seed"] == 0
        assert tree.attrs["rows"] == "the first 8 of 8"
        assert tree["posterior"].attrs["method"] == "resampled"
        assert json.loads(tree["posterior"].attrs["sampler"])["particles"] == 5000
        assert tree["sample_stats"].attrs["units"] == tree["pointwise"].attrs["units"] == "nats"
        for group in tree.subtree:
            assert all(isinstance(value, str | int) for value in group.attrs.values())


class TestSamplers:
    def test_chains_of_hmc_have_starts_and_an_r_hat(self):
        vae, exact = linear_vae()
        method = {"kind": "hmc", "warmup": 100}
        tree = to_arviz(vae, exact.sample((3,)), method=method, draws=100, particles=10)
        assert tree["posterior"].attrs["method"] == "hmc"
        assert "at the guide" in tree["posterior"].attrs["chains"]
        rows = tree["sample_stats"]
        assert (rows["posterior_rhat"] < 1.1).all()
        assert ((rows["posterior_accepted"] > 0.5) & (rows["posterior_accepted"] <= 1)).all()

    def test_draws_that_do_not_move_have_no_r_hat(self, linear):
        rows = linear[-1]["sample_stats"]
        assert "posterior_rhat" not in rows
        assert "posterior_accepted" not in rows

    def test_a_posterior_that_the_guide_cannot_stand_for_is_refused(self):
        def model(x):
            with pyro.plate("data", len(x), dim=-1):
                z = pyro.sample("z", dist.Uniform(x.new_zeros(()), 1.0))
                pyro.sample("x", dist.Normal(z[..., None], 1.0).to_event(1), obs=x)

        def guide(x):
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", dist.Normal(x.new_full((), 9.0), 0.1))

        with pytest.raises(Error, match=r"all weights of 4 rows are 0: .* use hmc"):
            quick(Pair(model=model, guide=guide), torch.zeros(4, 1))

    def test_a_discrete_latent_is_refused_by_hmc(self):
        with pytest.raises(Error, match="'k' is discrete"):
            quick(Mixture(x=(2,), components=2), torch.randn(4, 2), method="hmc")


class TestModels:
    def test_a_mixture_has_its_exact_posterior(self):
        mixture = Mixture(x=(2,), components=3).double()
        mixture.start(Batch(2 * torch.randn(200, 2).double()))
        x = torch.randn(5, 2).double()
        tree = to_arviz(mixture, x)
        k, log_p = tree["posterior"]["k"].values, mixture.log_prob(Batch(x)).detach()
        assert k.dtype == np.int64
        share = np.stack([(k == state).mean((0, 1)) for state in range(3)], -1)
        assert np.allclose(share, mixture.predict_proba(x), atol=0.08)  # 5 sd
        assert np.isneginf(tree["sample_stats"]["khat"]).all()
        assert np.allclose(tree["sample_stats"]["log_weight"], log_p)
        assert np.allclose(tree["pointwise"]["log_p"], log_p)
        assert tree["pointwise"].attrs["kind"] == "exact"
        assert (tree["pointwise"]["mcse"] == 0).all()

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_a_linear_model_has_its_exact_posterior(self, dtype):
        model = FactorAnalysis(x=(4,), factors=2)
        rows = torch.randn(200, 2) @ torch.randn(2, 4) + torch.randn(200, 4)
        model.start(Batch(rows))
        x = rows[:6].clone()
        x[0, 1] = torch.nan
        tree = to_arviz(model, x, dtype=dtype)
        with torch.no_grad():
            exact = model.posterior(Batch(x))
        z = (tree["posterior"]["z"].values - exact.mean.numpy()) / exact.variance.sqrt().numpy()
        close_to_standard_normal(z, z.size / 2)  # entries are correlated, draws taken twice
        assert np.isneginf(tree["sample_stats"]["khat"]).all()
        assert np.isnan(tree["observed_data"]["x"].values[0, 1])
        assert np.isfinite(tree["posterior_predictive"]["x"]).all()

    def test_a_class_is_a_whole_number(self):
        model = SemiSupervisedVAE(x=(3,), z=(2,), classes=3)
        with torch.no_grad():
            model.classifier.output.bias.copy_(torch.tensor([0.0, 1.0, 2.0]))
        x, labels = torch.randint(0, 2, (5, 3)).float(), torch.tensor([0, 1, 2, -1, -1])
        tree = quick(model, Batch(x, labels=labels), draws=500)
        y = tree["variational"]["y"]
        assert y.dims == tree["posterior"]["y"].dims == tree["prior"]["y"].dims
        assert y.dims == ("chain", "draw", "row")
        share = np.stack([(y.values == state).mean((0, 1)) for state in range(3)], -1)
        assert np.allclose(share, model.predict_proba(x), atol=0.08)  # 5 sd
        assert tree["constant_data"]["labels"].values.tolist() == labels.tolist()

    def test_rows_are_drawn_given_their_own_context(self):
        model = ConditionalVAE(
            x=(2,), z=(1,), context=(2,), decoder=AFFINE, likelihood={"kind": "fixed-normal"}
        )
        with torch.no_grad():
            model.decoder.output.weight.copy_(torch.tensor([[0.0, 1, 0], [0, 0, 1]]))
            model.decoder.output.bias.zero_()
        context = 100 * torch.randn(4, 2)
        tree = quick(model, Batch(torch.randn(4, 2), context))
        for group in ("prior_predictive", "posterior_predictive"):
            x = tree[group]["x"].values.mean((0, 1))
            assert np.allclose(x, context, atol=5 / np.sqrt(50))
        assert np.array_equal(tree["constant_data"]["context"], context)
        assert "given the context" in tree["pointwise"].attrs["measure"]

    def test_every_layer_is_a_variable(self):
        model = next(iter(HierarchicalVAE.examples()))
        tree = quick(model, torch.randint(0, 2, (4, 3)).float())
        sizes = {name: z.sizes[f"{name}_dim_0"] for name, z in tree["posterior"].items()}
        assert sizes == {"z3": 2, "z2": 3, "z1": 2}

    def test_behind_a_transform_all_is_raw(self):
        base = VAE(x=(3,), z=(2,), likelihood="shared-normal")
        model, x = Transformed(base=base, transform="standardize"), 1000 + torch.randn(30, 3)
        model.start(Batch(x))
        tree = quick(model, x)
        assert np.array_equal(tree["observed_data"]["x"], x)
        for group in ("prior_predictive", "posterior_predictive"):
            assert np.allclose(tree[group]["x"].mean(), 1000, atol=1)

    def test_missing_entries_stay_missing_and_are_predicted(self):
        x = torch.randint(0, 2, (4, 3)).float()
        x[1] = torch.nan
        tree = quick(VAE(x=(3,), z=(2,), missing=True), x)
        assert np.array_equal(np.isnan(tree["observed_data"]["x"]), x.isnan())
        assert (tree["log_likelihood_given_z"]["x"].sel(row=1) == 0).all()
        assert set(np.unique(tree["posterior_predictive"]["x"])) == {0, 1}

    def test_images_have_channels(self):
        tree = quick(VAE(x=(1, 2, 3), z=(2,)), torch.randint(0, 2, (4, 1, 2, 3)).float())
        assert tree["observed_data"]["x"].dims == ("row", "channel", "height", "width")

    def test_columns_have_the_names_of_the_model(self):
        parts = {"a": {"kind": "normal"}, "b": {"kind": "bernoulli"}}
        likelihood = {"kind": "columns", "columns": parts}
        x = torch.stack([torch.randn(9), torch.randint(0, 2, (9,)).float()], -1)
        tree = quick(VAE(x=(2,), z=(1,), likelihood=likelihood), x)
        assert tree["posterior_predictive"]["column"].values.tolist() == ["a", "b"]

    @pytest.mark.parametrize(("shape", "names"), [((3,), ("a", "b")), ((1, 2, 2), ("a",) * 4)])
    def test_names_that_do_not_fit_are_refused(self, shape, names):
        with pytest.raises(Error, match=r"columns: \d names for rows of the shape"):
            quick(VAE(x=shape, z=(2,)), torch.zeros(2, *shape), columns=names)


def two_sites(a="a", latent="net/z"):
    def model(x):
        with pyro.plate("column", len(x), dim=-1):
            z = pyro.sample(latent, dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample(a, dist.Normal(z, 1.0), obs=x[:, 0])
            return pyro.sample("b", dist.Normal(z[..., None], 2.0).to_event(1), obs=x[:, 1:])

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample(latent, dist.Normal(x.mean(-1), 1.0))

    return Pair(model=model, guide=guide)


class TestPairs:
    def test_every_site_has_its_own_name(self):
        x = torch.randn(6, 3)
        tree = quick(two_sites(), x)
        assert list(tree["posterior"]) == ["net.z"]
        z = tree["posterior"]["net.z"]
        assert z.dims == ("chain", "draw", "row")
        for group in ("observed_data", "posterior_predictive", "log_likelihood_given_z"):
            assert sorted(tree[group]) == ["a", "b"]
        assert tree["posterior_predictive"]["b"].dims[-1] == "b_dim_0"
        for name, observed, sd in (("a", x[:, :1], 1), ("b", x[:, 1:], 2)):
            log_p = stats.norm.logpdf(observed, z.values[..., None], sd).sum(-1)
            assert np.allclose(tree["log_likelihood_given_z"][name], log_p, atol=1e-5)
            assert np.array_equal(tree["observed_data"][name], observed.squeeze(-1))
        assert "Pair" in tree.attrs["model"]

    @pytest.mark.parametrize("names", [{"a": "row"}, {"latent": "chain"}])
    def test_the_name_of_a_dimension_is_refused(self, names):
        (name,) = names.values()
        with pytest.raises(Error, match=f"the site '{name}' has the name of a dimension"):
            quick(two_sites(**names), torch.randn(6, 3))


class TestSizes:
    def test_only_the_first_hundred_rows_are_taken_unless_asked_for(self):
        model, x = Mixture(x=(2,), components=2), torch.randn(120, 2)
        tree = quick(model, x, draws=2)
        assert tree["pointwise"].sizes == {"row": 100}
        assert tree.attrs["rows"] == "the first 100 of 120"
        assert quick(model, x, draws=2, rows=None)["pointwise"].sizes == {"row": 120}

    def test_one_row_and_one_draw_are_enough(self):
        x = torch.randint(0, 2, (1, 3)).float()
        tree = to_arviz(VAE(x=(3,), z=(2,)), x, draws=1, chains=1, particles=1)
        assert tree["posterior_predictive"].sizes == {"chain": 1, "draw": 1, "row": 1, "column": 3}

    def test_a_model_meets_few_rows_times_draws_at_a_time(self):
        vae, met = VAE(x=(3,), z=(2,)), []
        vae.decoder.register_forward_hook(lambda _, z, x: met.append(x.numel() // 3))
        to_arviz(vae, torch.randint(0, 2, (60, 3)).float())
        assert max(met) <= max(BLOCK, 5000)


def test_everything_is_seeded_and_nothing_is_changed(linear):
    vae, x, _, _ = linear
    vae.train()
    before = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    state = torch.get_rng_state()
    trees = [quick(vae, x, seed=seed) for seed in (3, 3, 4)]
    assert torch.equal(torch.get_rng_state(), state)
    assert vae.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in vae.state_dict().items())
    for group in trees[0].children:
        xarray.testing.assert_identical(trees[0][group].to_dataset(), trees[1][group].to_dataset())
    for group in ALWAYS - {"observed_data"}:
        assert not trees[0][group].to_dataset().equals(trees[2][group].to_dataset())


class TestFiles:
    def written(self):
        model = SemiSupervisedVAE(x=(3,), z=(2,), classes=3, missing=True)
        x = torch.randint(0, 2, (5, 3)).float()
        x[0, 0] = torch.nan
        batch = Batch(x, labels=torch.tensor([0, 1, 2, -1, -1]))
        return quick(model, batch, columns=("größe", "b", "c"))

    def test_netcdf_gives_the_tree_back(self, tmp_path):
        tree = self.written()
        tree.to_netcdf(tmp_path / "tree.nc")
        with arviz_base.convert_to_datatree(str(tmp_path / "tree.nc")) as back:
            xarray.testing.assert_identical(back.load(), tree)

    def test_zarr_gives_the_tree_back(self, tmp_path):
        pytest.importorskip("zarr")
        tree = self.written()
        tree.to_zarr(tmp_path / "tree.zarr", zarr_format=2)
        with xarray.open_datatree(tmp_path / "tree.zarr", engine="zarr") as back:
            xarray.testing.assert_identical(back.load(), tree)


class TestArviz:
    def test_loo_finds_nothing(self, linear):
        with pytest.raises(TypeError, match="log likelihood not found"):
            arviz_stats.loo(linear[-1])
        note = linear[-1]["log_likelihood_given_z"].attrs["note"]
        assert "leave-one-out" in note
        assert "held_out_elpd" in note

    @pytest.mark.filterwarnings("ignore:Estimated shape parameter")
    def test_loo_would_prefer_latents_that_explain_nothing(self):
        """Wrong on purpose: the group under the name that it has not, for rows of one factor."""
        loading = torch.randn(1, 6)
        train, test = (torch.randn(n, 1) @ loading + torch.randn(n, 6) for n in (200, 100))
        held_out, loo = [], []
        for factors in (1, 5):
            model = FactorAnalysis(x=(6,), factors=factors)
            pyrovae.fit(model, train)
            tree = to_arviz(model, test)
            held_out.append(tree["pointwise"]["log_p"].sum())
            tree["log_likelihood"] = tree["log_likelihood_given_z"]
            loo.append(arviz_stats.loo(tree).elpd)
        assert held_out[0] > held_out[1]
        assert loo[1] > loo[0] + 20

    @pytest.mark.parametrize(
        ("plot", "options"),
        [
            ("plot_ppc_dist", {}),
            ("plot_ppc_dist", {"group": "prior_predictive"}),
            ("plot_ppc_pit", {"coords": {"column": "b"}}),
            ("plot_forest", {"coords": {"row": [0, 1]}}),
            ("plot_rank", {"coords": {"row": 0}}),
            ("plot_prior_posterior", {"coords": {"row": 0}}),
        ],
    )
    def test_its_plots_take_the_tree(self, linear, plot, options):
        getattr(arviz_plots, plot)(linear[-1], **options)
        pyplot.close("all")

    def test_its_summary_takes_the_tree(self, linear):
        tree = linear[-1]
        table = arviz_stats.summary(tree, var_names=["z"], round_to="none")
        assert len(table) == 8 * 2
        means = tree["posterior"]["z"].mean(("chain", "draw")).values.flatten()
        assert np.allclose(table["mean"].astype(float), means)


def khat_plot(result):
    """The heights of the dots in ArviZ's plot of a result's k-hat."""
    axes = arviz_plots.plot_khat(held_out_elpd(result)).viz["plot"].item()
    dots = [np.asarray(dots.get_offsets())[:, 1] for dots in axes.collections]
    pyplot.close("all")
    return np.concatenate(dots)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of pandas, in ArviZ
def test_the_elpd_of_test_rows_is_what_arviz_compares_plots_and_prints(linear):
    vae, x, _, _ = linear
    result = log_likelihood(vae, x)
    assert sorted(khat_plot(result)) == pytest.approx(sorted(result.khat))
    other = log_likelihood(Mixture(x=(5,), components=1).double(), x)
    khat_plot(other)
    elpds = {"vae": held_out_elpd(result), "mixture": held_out_elpd(other)}
    table = arviz_stats.compare(elpds)
    assert table.loc["vae", "rank"] == 0
    arviz_plots.plot_compare(table)
    pyplot.close("all")
    assert f"{result.value.sum():.2f}" in str(elpds["vae"])
    assert pyrovae.arviz.to_arviz is to_arviz
