"""Comparisons in ArviZ: its weights against an optimiser of their own, its quirks hidden."""

import warnings

import arviz_stats
import numpy as np
import pytest
import torch
from matplotlib import pyplot
from results import given

from pyrovae import Mixture, compare, log_likelihood
from pyrovae.arviz import compare as arviz_compare
from pyrovae.arviz import held_out_elpd, plot_compare, weights
from pyrovae.evaluate.comparison import ranked

NAMES = "abcdefghijklmnop"


def comparison_of(log_p):
    """A comparison of log p(x), shape `(models, rows)`."""
    results = {name: given(row) for name, row in zip(NAMES, log_p, strict=False)}
    return ranked({name: Mixture(x=(2,)) for name in results}, results, {}, {})


def optimal(log_p):
    """The stacking weights of log p, shape `(models, rows)`, by mirror ascent in their logits.

    The logits are those of softmax, so that the maximum is without constraints; L-BFGS finds it,
    the objective being taken with logsumexp at every scale.
    """
    log_p = torch.tensor(log_p, dtype=torch.float64)
    logits = torch.zeros(len(log_p), dtype=torch.float64, requires_grad=True)
    options = {"max_iter": 2000, "tolerance_grad": 1e-10, "tolerance_change": 1e-15}
    solver = torch.optim.LBFGS([logits], line_search_fn="strong_wolfe", **options)

    def loss():
        solver.zero_grad()
        value = -(logits.log_softmax(0)[:, None] + log_p).logsumexp(0).mean()
        value.backward()
        return value

    solver.step(loss)
    return logits.softmax(0).detach().numpy()


def simulated(models, rows, level=0.0, spread=1.0, seed=0):
    random = np.random.default_rng(seed)
    hard = random.normal(level, 100 if level else 1, rows)
    return hard + random.normal(random.normal(0, 0.3, (models, 1)), spread, (models, rows))


@pytest.mark.parametrize("models", [2, 5, 12])
@pytest.mark.parametrize("level", [0.0, -2000.0])
@pytest.mark.parametrize("spread", [0.3, 2.0, 40.0])
def test_stacking_weights_are_the_optimum(models, level, spread):
    log_p = simulated(models, 300, level, spread)
    found = weights(comparison_of(log_p))
    assert [found[name] for name in NAMES[:models]] == pytest.approx(optimal(log_p), abs=1e-3)
    assert sum(found.values()) == pytest.approx(1)
    assert min(found.values()) >= 0


def test_weights_of_rows_that_all_underflow_are_no_equal_shares():
    """Wrong on purpose: ArviZ itself, given rows of -2000 nats, stays at equal shares."""
    log_p = simulated(2, 200, -2000, 3)
    log_p[0] += 2
    results = {name: held_out_elpd(given(row)) for name, row in zip("ab", log_p, strict=True)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        raw = arviz_stats.compare(results)["weight"]
    assert raw["a"] == pytest.approx(0.5)
    assert optimal(log_p)[0] > 0.6
    assert weights(comparison_of(log_p))["a"] == pytest.approx(optimal(log_p)[0], abs=1e-3)


@pytest.mark.parametrize("gap", [30.0, 300.0, 5000.0])
@pytest.mark.parametrize("worse", [0.05, 5.0, 800.0])
def test_one_row_that_only_one_model_explains_keeps_its_weight(gap, worse):
    """Wrong on purpose: ArviZ's optimiser alone can stop at 0.0005 instead of 0.01."""
    random = np.random.default_rng(0)
    log_p = -worse * np.abs(random.standard_normal((4, 100)))
    log_p[0] = 0
    log_p[:, 50] = [-gap, 0, -gap, -gap]
    found = weights(comparison_of(log_p))
    assert [found[name] for name in "abcd"] == pytest.approx(optimal(log_p), abs=1e-3)


def test_impossible_rows_have_weights_too():
    log_p = simulated(3, 50)
    log_p[1, 7] = log_p[2, 7] = log_p[:, 9] = -np.inf
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of means that are minus infinity
        found = weights(comparison_of(log_p))
    usual = optimal(np.delete(np.maximum(log_p, -600), 9, axis=1))
    assert [found[name] for name in "abc"] == pytest.approx(usual, abs=1e-3)


def test_pseudo_bma_is_the_share_of_the_likelihoods():
    log_p = simulated(3, 20, -2000, 0.1)
    sums = log_p.sum(1)
    share = np.exp(sums - sums.max()) / np.exp(sums - sums.max()).sum()
    found = weights(comparison_of(log_p), method="pseudo-bma")
    assert [found[name] for name in "abc"] == pytest.approx(share)
    bootstrap = weights(comparison_of(log_p), method="bb-pseudo-bma")
    assert sum(bootstrap.values()) == pytest.approx(1)
    assert max(bootstrap.values()) < max(share)
    with pytest.raises(ValueError, match="method: should be 'stacking', 'bb-pseudo-bma'"):
        weights(comparison_of(log_p), method="loo")


@pytest.mark.parametrize("level", [0.0, -2000.0])
def test_the_table_of_arviz_has_our_figures(level):
    comparison = comparison_of(simulated(3, 150, level))
    table = arviz_compare(comparison)
    assert list(table.index) == [entry.name for entry in comparison.entries]
    for entry in comparison.entries:
        row = table.loc[entry.name]
        assert row["elpd"] == pytest.approx(entry.result.value.sum(), rel=1e-12)
        assert row["se"] == pytest.approx(150 * entry.result.se, rel=1e-12)
        assert row["elpd_diff"] == pytest.approx(150 * entry.difference, rel=1e-12)
        assert row["elpd_diff"] <= 0
        assert row["dse"] == pytest.approx(150 * entry.difference_se, rel=1e-12)
        assert row["weight"] == pytest.approx(comparison.weights[entry.name], rel=1e-12)


def test_held_out_rows_are_no_leave_one_out():
    x = torch.randn(30, 2)
    result = log_likelihood(Mixture(x=(2,), family="fixed-normal"), x)
    elpd = held_out_elpd(result)
    assert elpd.kind == "held-out"
    assert elpd.elpd == pytest.approx(result.value.sum())
    assert elpd.se == pytest.approx(np.sqrt(30) * result.value.std(ddof=1))
    assert np.isnan(elpd.p)
    assert elpd.elpd_i.values.tolist() == result.value.tolist()
    assert "held-out" in str(elpd)
    assert not elpd.warning
    heavy = held_out_elpd(given(result.value, khat=0.8, exact=False, particles=1000))
    assert heavy.warning
    assert (heavy.good_k, heavy.n_samples) == (pytest.approx(2 / 3), 1000)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_arviz_compares_what_is_held_out():
    log_p = simulated(2, 100)
    table = arviz_stats.compare(
        {n: held_out_elpd(given(v)) for n, v in zip("ab", log_p, strict=True)}
    )
    assert table["weight"]["a"] == pytest.approx(optimal(log_p)[0], abs=0.01)


def test_a_choice_among_many_models_is_silent_in_weights():
    log_p = simulated(16, 60, spread=0.1)
    assert len(weights(comparison_of(log_p))) == 16


def test_the_plot_of_arviz_has_the_elpd_of_each_model():
    comparison = comparison_of(simulated(3, 100, -2000))
    plot = plot_compare(comparison, relative_scale=False)
    axes = plot.viz["plot"].item()
    labels = [tick.get_text() for tick in axes.get_yticklabels()]
    assert sorted(labels) == ["a", "b", "c"]
    drawn = np.concatenate([np.asarray(dots.get_offsets())[:, 0] for dots in axes.collections])
    sums = [entry.result.value.sum() for entry in comparison.entries]
    assert drawn.tolist() == pytest.approx(sums)
    pyplot.close("all")


def test_a_model_in_a_comparison_has_an_elpd():
    x = torch.randn(25, 2)
    models = {"one": Mixture(x=(2,), components=1), "two": Mixture(x=(2,), components=2)}
    comparison = compare(models, x)
    assert held_out_elpd(comparison["two"]).elpd == pytest.approx(
        25 * comparison["two"].result.mean
    )
    assert set(comparison.weights) == {"one", "two"}
    assert compare({"one": models["one"]}, x).weights == {"one": 1}
