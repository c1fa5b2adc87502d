"""Comparisons: paired, of one kind, and the choice of candidates on validation rows only."""

import math

import numpy as np
import pytest
import torch
from results import given

from pyrovae import VAE, Mixture, Seeds, compare, fit, log_likelihood
from pyrovae.evaluate import select
from pyrovae.evaluate.comparison import ranked
from pyrovae.evaluate.paired import decisive


def rows(count=200):
    return torch.randn(count, 3) * torch.tensor([1.0, 2.0, 0.5])


def compared(**values):
    """A comparison of results that are given, one for each seed where they are a list of lists."""
    results = {
        name: [given(seed) for seed in value] if np.ndim(value) > 1 else given(value)
        for name, value in values.items()
    }
    models = {
        name: [Mixture(x=(2,)) for _ in result] if isinstance(result, list) else Mixture(x=(2,))
        for name, result in results.items()
    }
    return ranked(models, results, {}, {})


@pytest.fixture
def models():
    x = rows()
    fitted = {
        "narrow": VAE(x=(3,), z=(1,), likelihood="fixed-normal"),
        "gaussian": Mixture(x=(3,), components=1),
    }
    for model in fitted.values():
        fit(model, x, epochs=5, batch_size=50)
    return fitted


def test_differences_are_paired_by_row(models):
    test = rows(80)
    comparison = compare(models, test, particles=50, seed=2, seconds={"narrow": 1.5})
    values = {n: log_likelihood(m, test, particles=50, seed=2).value for n, m in models.items()}
    d = values["narrow"] - values["gaussian"]
    assert [entry.name for entry in comparison.entries] == ["gaussian", "narrow"]
    assert comparison["narrow"].difference == pytest.approx(d.mean())
    assert comparison["narrow"].difference_se == pytest.approx(d.std(ddof=1) / math.sqrt(80))
    assert comparison["gaussian"].difference == 0
    assert comparison["narrow"].seconds == 1.5
    assert comparison["narrow"].model.parameter_count == sum(
        p.numel() for p in models["narrow"].parameters()
    )


def test_the_table_shows_everything_and_says_what_is_exact(models):
    text = str(compare(models, rows(80), particles=50))
    for piece in (
        "log p(x), nats",
        "exact",
        "lower bound",
        "best",
        "k-hat > 0.7",
        "parameters",
        "seconds",
        "80 test rows",
    ):
        assert piece in text
    assert "a lower bound is at most that, in expectation" in " ".join(text.split())


def test_candidates_are_chosen_on_validation_rows(models):
    candidates = [Mixture(x=(3,), components=k) for k in (1, 30)]
    x = rows(60)
    for model in candidates:
        fit(model, x)
    validation, test = rows(300), rows(100)
    index, means = select(candidates, validation)
    assert index == 0  # one component is the truth, thirty on sixty rows are not
    assert means[0] > means[1]
    comparison = compare(
        {"mixture": candidates, "vae": models["narrow"]}, test, validation, particles=20
    )
    assert comparison["mixture"].result.mean == log_likelihood(candidates[0], test).mean
    assert "candidate 1 of 2" in str(comparison)


def test_a_choice_without_validation_rows_is_refused(models):
    with pytest.raises(ValueError, match="made on validation rows: pass validation"):
        compare({"a": [models["narrow"]]}, rows())


def test_numbers_of_different_kinds_are_refused(models):
    counts = VAE(x=(3,), z=(1,), likelihood="poisson")
    with pytest.raises(
        ValueError,
        match=r"'narrow' and 'counts' cannot be compared: .* a density .* a probability",
    ):
        compare({"narrow": models["narrow"], "counts": counts}, rows().round().abs())


def test_no_model_is_refused():
    with pytest.raises(ValueError, match="no model to compare"):
        compare({}, rows())


def test_a_row_apart_can_be_compared(models):
    comparison = compare(models, rows(1), particles=30)
    assert np.isnan(comparison.entries[1].difference_se)
    assert "nan" in str(comparison)


def test_the_comparison_plots(models):
    from pyrovae.plots import comparison

    axes = comparison(compare(models, rows(30), particles=30))
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["narrow", "gaussian"]


def test_what_is_asked_for_by_a_wrong_name_is_an_error(models):
    comparison = compare(models, rows(20), particles=5)
    with pytest.raises(ValueError, match=r"unknown model 'narow'\. Did you mean 'narrow'"):
        comparison["narow"]
    with pytest.raises(ValueError, match="pass a dictionary, name to model"):
        compare(list(models.values()), rows(20))


def test_candidates_of_different_kinds_are_refused():
    x = (rows(50) > 0).float()
    pair = [VAE(x=(3,), z=(1,), likelihood=kind) for kind in ("bernoulli", "shared-normal")]
    with pytest.raises(ValueError, match="'candidate 1' and 'candidate 2' cannot be compared"):
        select(pair, x)


def test_rows_are_averaged_over_seeds_and_their_two_errors_are_kept_apart():
    x = np.random.default_rng(0).normal(-5, 2, (3, 40)) + np.array([[0.0], [1.0], [5.0]])
    y = np.random.default_rng(1).normal(-6, 2, 40)
    comparison = compared(one=y, three=x)
    three, one = comparison["three"], comparison["one"]
    assert [entry.name for entry in comparison.entries] == ["three", "one"]
    assert three.result.mean == pytest.approx(x.mean())
    assert three.result.se == pytest.approx(x.mean(0).std(ddof=1) / math.sqrt(40))
    assert three.seed_sd == pytest.approx(x.mean(1).std(ddof=1))
    assert math.isnan(one.seed_sd)
    d = y - x.mean(0)
    assert one.difference == pytest.approx(d.mean())
    assert one.difference_se == pytest.approx(d.std(ddof=1) / math.sqrt(40))
    assert (len(three.models), len(three.results), len(one.models)) == (3, 3, 1)
    behind = compared(one=y, three=x - 20)["three"]
    assert behind.difference == pytest.approx(-d.mean() - 20)
    assert behind.difference_se == pytest.approx(one.difference_se)


def test_more_rows_lower_the_standard_error_and_more_seeds_do_not():
    """Wrong on purpose: fits that differ by a constant have an SD over seeds and one SE."""
    noise = np.random.default_rng(2).normal(0, 1, 400)
    few, many = compared(a=[noise, noise + 1])["a"], compared(a=[noise, noise + 1] * 20)["a"]
    assert many.result.se == pytest.approx(few.result.se) == pytest.approx(0.05, rel=0.1)
    assert few.seed_sd == pytest.approx(math.sqrt(0.5))
    assert many.seed_sd == pytest.approx(math.sqrt(10 / 39))
    assert compared(a=[noise, noise])["a"].seed_sd == 0


def test_of_several_seeds_the_worst_diagnostics_count():
    results = [given([-1, -2], khat=k, exact=False, mcse=0.1) for k in (-math.inf, 0.9)]
    entry = ranked({"a": [Mixture(x=(2,))] * 2}, {"a": results}, {}, {})["a"]
    assert entry.result.heavy == 1
    assert entry.result.mcse == pytest.approx(np.full(2, 0.1 / math.sqrt(2)))
    assert entry.result.kind == "lower bound"


def test_the_table_has_a_column_for_seeds_where_there_are_several():
    x = np.random.default_rng(0).normal(-5, 1, (3, 40))
    text = str(compared(one=x[0] - 1, three=x))
    for piece in ("SD over seeds", f"{x.mean(1).std(ddof=1):.2f} (3)", "averaged over seeds"):
        assert piece in text
    assert "seeds (" not in str(compared(one=x[0] - 1, other=x[1]))


def test_seeds_are_averaged_and_a_list_is_a_choice():
    x = rows(60)
    fits = [Mixture(x=(3,), components=k, family="normal") for k in (1, 4)]
    for model in fits:
        fit(model, x)
    validation, test = rows(100), rows(50)
    both = compare({"a": Seeds(fits)}, test)["a"]
    alone = [log_likelihood(model, test).value for model in fits]
    assert both.result.value == pytest.approx((alone[0] + alone[1]) / 2)
    assert both.models == tuple(fits)
    assert both.parameters == round(sum(m.parameter_count for m in fits) / 2)
    chosen = compare({"a": fits}, test, validation)["a"]
    assert len(chosen.results) == 1


def test_seeds_that_are_none_or_one_model_twice_are_refused(models):
    with pytest.raises(ValueError, match="the seeds of 'a' are none"):
        compare({"a": Seeds()}, rows())
    twice = Seeds([models["gaussian"], models["gaussian"]])
    with pytest.raises(ValueError, match="'a, seed 1' and 'a, seed 2' share parameters"):
        compare({"a": twice}, rows())
    with pytest.raises(ValueError, match=r"should be a model, such as VAE\(...\), got 3"):
        compare({"a": Seeds([3])}, rows())


@pytest.mark.parametrize("count", [44, 359, 5000])
def test_differences_that_hang_on_few_rows_are_found(count):
    """Of 200 sets of normal differences none is (chance below 1 %), with a wild row each is."""
    random = np.random.default_rng(count)
    assert not any(len(decisive(random.normal(0.1, 1, count))) for _ in range(200))
    for _ in range(20):
        d = random.normal(0.1, 1, count)
        row = random.integers(count)
        d[row] = -3 * math.sqrt(count)
        assert decisive(d).tolist() == [row]


def test_the_rows_that_make_up_half_are_counted_from_the_largest():
    even = np.tile([-1.0, 0.0, 1.0], 132)
    assert set(decisive(np.r_[np.full(4, 15.0), even])) == {0, 1, 2}  # 675 of 1,164
    assert not len(decisive(np.r_[np.full(9, 15.0), even]))  # six of 405 would be needed
    assert not len(decisive(np.r_[np.full(4, 8.0), even]))  # 256 of 520
    for calm in (np.zeros(50), np.ones(50), np.array([3.0]), np.array([9.0, *np.zeros(28)])):
        assert not len(decisive(calm))
    assert decisive(np.r_[-np.inf, np.ones(50)]).tolist() == [0]


def test_the_table_says_which_difference_hangs_on_few_rows():
    even = np.random.default_rng(0).normal(-5, 1, 200)
    wild = even + np.tile([-0.03, 0.01], 100)
    wild[[6, 150]] -= 500
    text = " ".join(str(compared(even=even, wild=wild)).split())
    assert (
        "wild: more than half of the variance of its differences is due to 2 of 200 rows, "
        "without which the difference is -0.01 ± 0.00." in text
    )
    calm = np.random.default_rng(1).normal(-6, 1, 200)
    assert "more than half" not in str(compared(even=even, calm=calm))


def test_the_rows_of_largest_disagreement_come_first():
    a, b = np.array([-1.0, -2, -3, -4]), np.array([-1.5, -9, -3, -1])
    comparison = compared(b=b, a=a)
    found = comparison.disagreements(2)
    assert (found.a, found.b) == ("a", "b")
    assert [(r.row, r.a, r.b, r.difference) for r in found.rows] == [
        (1, -2, -9, 7),
        (3, -4, -1, -3),
    ]
    assert [r.row for r in comparison.disagreements().rows] == [1, 3, 0, 2]
    other = comparison.disagreements(1, a="b")
    assert (other.a, other.b, other.rows[0].difference) == ("b", "a", -7)
    for piece in ("row", "log p(x), a", "log p(x), b", "-9.00", "7.00"):
        assert piece in str(found)


def test_a_pair_is_made_of_two_models():
    comparison = compared(a=[-1.0, -2], b=[-2.0, -2], c=[-3.0, -3])
    assert [entry.name for entry in comparison.pair()] == ["a", "b"]
    assert [entry.name for entry in comparison.pair(b="a")] == ["b", "a"]
    assert [entry.name for entry in comparison.pair("c")] == ["c", "a"]
    with pytest.raises(ValueError, match="unknown model 'd'"):
        comparison.disagreements(a="d")
    for wrong in (lambda: comparison.pair("a", "a"), lambda: compared(a=[-1.0, -2]).pair()):
        with pytest.raises(ValueError, match="two different models are needed"):
            wrong()
    with pytest.raises(ValueError, match="rows: should be a whole number from 1, got 0"):
        comparison.disagreements(0)


def test_the_paired_plot_shows_who_wins_where():
    from pyrovae.plots import paired

    a, b = np.array([-1.0, -2, -3, -4, -7, 0, 0]), np.array([-1.5, -9, -3, -1, -6, 0, -0.25])
    axes = paired(compared(a=a, b=b))
    ahead, behind, _, mean = axes.lines
    assert ahead.get_xydata().tolist() == [[-1.25, 0.5], [-5.5, 7], [-0.125, 0.25]]
    assert behind.get_xydata().tolist() == [[-2.5, -3], [-6.5, -1]]
    assert mean.get_ydata()[0] == pytest.approx((a - b).mean())
    shares = [text.get_text() for text in axes.get_legend().get_texts()]
    assert shares[:2] == ["better under a: 43% of rows", "better under b: 29% of rows"]
    assert [text.get_text() for text in axes.texts] == ["1", "3", "4", "0", "6"]
    assert [text.xy for text in axes.texts[:2]] == [(-5.5, 7), (-2.5, -3)]
    assert axes.get_ylabel() == "log p(x), a minus b, nats"
    assert paired(compared(a=a, b=b), a="b", ax=axes) is axes
    assert axes.get_ylabel() == "log p(x), b minus a, nats"


def test_the_comparison_plots_each_seed():
    from pyrovae.plots import comparison

    axes = comparison(compared(a=[[-1.0, -3.0], [-2.0, -6.0]], b=[-6.0, -6.0]))
    crosses = [line for line in axes.lines if line.get_marker() == "x"]
    assert [line.get_xydata().tolist() for line in crosses] == [[[1, 1], [-1, 1]]]
