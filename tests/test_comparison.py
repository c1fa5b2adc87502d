"""Comparisons: paired, of one kind, and the choice of candidates on validation rows only."""

import math

import numpy as np
import pytest
import torch

from pyrovae import VAE, Mixture, compare, fit, log_likelihood
from pyrovae.evaluate import select


def rows(count=200):
    return torch.randn(count, 3) * torch.tensor([1.0, 2.0, 0.5])


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
