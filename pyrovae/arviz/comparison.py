r"""Comparisons in the terms of ArviZ.

Its elpd is \sum_i log p(x_i) over rows x_i new to the model. Test rows are, so nothing has to
be left out. (With log p(x | z) of a latent of the row's own, leave-one-out would not make them
new.) The weights of stacking make the mixture of models that explains the test rows best,

    max_w \sum_i log \sum_k w_k p_k(x_i),   w_k >= 0,   \sum_k w_k = 1

(Using Stacking to Average Bayesian Predictive Distributions, Yao, Vehtari, Simpson & Gelman, 2018,
https://arxiv.org/abs/1704.02030). They stay the same when all log p_k(x_i) of a row are moved
alike: each row is moved by its best model before ArviZ takes exponentials, which are 0 below -746.
"""

import functools
import inspect
import warnings
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from pyrovae.evaluate import Comparison, Entry, LogLikelihood
from pyrovae.part import validated

if TYPE_CHECKING:
    from arviz_plots import PlotCollection
    from arviz_stats import ELPDData

Method = Literal["stacking", "bb-pseudo-bma", "pseudo-bma"]


def held_out_elpd(result: LogLikelihood | Entry) -> "ELPDData":
    """The elpd of test rows, as `arviz_stats.compare` takes it.

    Its kind is "held-out"; its effective number of parameters, a matter of leave-one-out, is NaN;
    its Pareto k-hat is that of the draws of z behind each row.

    Args:
        result: what `log_likelihood` gives, or a model in a comparison.
    """
    if isinstance(result, Entry):
        result = result.result
    values = {
        "kind": "held-out",
        "elpd": len(result.value) * result.mean,
        "se": len(result.value) * result.se,
        "p": np.nan,
        "n_samples": int(result.particles.min()),
        "n_data_points": len(result.value),
        "scale": "log",
        "warning": bool((result.khat > result.threshold).any()),
        "good_k": float(result.threshold.min()),
        "elpd_i": _by_row(result.value),
        "pareto_k": _by_row(result.khat),
    }
    known = {field.name for field in fields(_held_out())}
    return _held_out()(**{name: value for name, value in values.items() if name in known})


def _by_row(values: NDArray[np.float64]) -> Any:
    from arviz_base import ndarray_to_dataarray

    return ndarray_to_dataarray(values, "row", dims=["row"], sample_dims=[])


@functools.cache
def _held_out() -> Any:
    """ArviZ's class with a kind of its own: a field until 1.2, of the class from 1.3 on."""
    from arviz_stats import ELPDData

    return type("HeldOut", (ELPDData,), {"_kind": "held-out"})


@validated
def compare(comparison: Comparison, *, method: Method = "stacking") -> Any:
    """The data frame of `arviz_stats.compare`, the same with all its versions and not rounded.

    Args:
        comparison: what `pyrovae.compare` gives.
        method: of the weights.

    Returns:
        One row a model, the best first. `elpd_diff` is a model's elpd minus that of the best.
    """
    import arviz_stats

    log_p = np.stack([entry.result.value for entry in comparison.entries])
    log_p = np.maximum(log_p - np.maximum(log_p.max(0), np.finfo(float).min), -600)
    elpds = {entry.name: held_out_elpd(entry) for entry in comparison.entries}
    for elpd, moved in zip(elpds.values(), log_p, strict=True):
        elpd["elpd_i"] = _by_row(moved)
    rounds = "round_to" in inspect.signature(arviz_stats.compare).parameters
    options = {"round_to": "none"} if rounds else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of pandas, in ArviZ
        table = arviz_stats.compare(elpds, method=method, **options)
    if method == "stacking":
        found = table.loc[list(elpds), "weight"].to_numpy()
        table.loc[list(elpds), "weight"] = _settled(found, np.exp(log_p.T))
    for entry in comparison.entries:
        paired = np.array([entry.difference, entry.difference_se]) * log_p.shape[1]
        table.loc[entry.name, ["elpd_diff", "dse"]] = paired
    return table


def _settled(w: NDArray[np.float64], p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights after some EM, p being `(rows, models)`.

    ArviZ's optimiser can stop early where few rows decide, which is where EM is fast.
    """
    w = np.maximum(w, 1e-6)
    for _ in range(300):
        w = w * (p.T @ (1 / (p @ w))) / len(p)
    return w


@validated
def weights(comparison: Comparison, *, method: Method = "stacking") -> dict[str, float]:
    """The weight of each model, by name.

    Args:
        comparison: what `pyrovae.compare` gives.
        method: `stacking`, or the weights of pseudo-BMA, with or without the Bayesian bootstrap.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a choice among many models
        column = compare(comparison, method=method)["weight"]
    return {entry.name: float(column[entry.name]) for entry in comparison.entries}


def plot_compare(comparison: Comparison, **options: Any) -> "PlotCollection":
    """The plot of `arviz_plots.plot_compare`: elpd with standard errors that are not paired.

    Args:
        comparison: what `pyrovae.compare` gives.
        options: those of `arviz_plots.plot_compare`.
    """
    import arviz_plots

    return arviz_plots.plot_compare(compare(comparison), **options)
