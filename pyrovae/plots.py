"""Plots, with matplotlib: each draws on given axes or axes of its own, and returns them."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from arviz_plots import PlotCollection
    from matplotlib.axes import Axes

    from pyrovae.evaluate import (
        Calibration,
        Comparison,
        GuideGrade,
        LatentUse,
        Memorisation,
        PredictiveCheck,
    )
    from pyrovae.history import History


def _axes(ax: "Axes | None") -> "Axes":
    if ax is not None:
        return ax
    from matplotlib.figure import Figure

    return Figure(layout="constrained").subplots()


def history(history: "History", ax: "Axes | None" = None) -> "Axes":
    """The bound in nats per row against the epoch, on training and on validation rows."""
    ax = _axes(ax)
    index = [epoch.index for epoch in history.epochs]
    ax.plot(index, [-epoch.loss for epoch in history.epochs], label="training")
    validation = np.array([epoch.validation for epoch in history.epochs])
    if not np.isnan(validation).all():
        ax.plot(index, validation, label="validation")
        ax.axvline(history.best, color="grey", linewidth=0.8, linestyle="--", label="weights kept")
    ax.set(xlabel="epoch", ylabel="bound on log p(x), nats per row")
    ax.legend()
    return ax


def comparison(comparison: "Comparison", ax: "Axes | None" = None) -> "Axes":
    """Each model's paired difference from the best with two standard errors; bounds are open.

    Where a model was fitted from several seeds, each fit is a small cross.
    """
    ax = _axes(ax)
    best = comparison.entries[0].result.mean
    for height, entry in enumerate(reversed(comparison.entries)):
        if len(entry.results) > 1:
            means = [result.mean - best for result in entry.results]
            ax.plot(means, [height] * len(means), "x", color="grey", markersize=4)
        face = "C0" if entry.result.exact else "white"
        ax.errorbar(
            entry.difference,
            height,
            xerr=2 * entry.difference_se,
            fmt="o",
            color="C0",
            markerfacecolor=face,
            capsize=3,
        )
    ax.set_yticks(
        range(len(comparison.entries)), [entry.name for entry in reversed(comparison.entries)]
    )
    ax.set(xlabel="difference in log p(x) from the best, nats per row")
    return ax


def paired(
    comparison: "Comparison",
    a: str | None = None,
    b: str | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """Two models row by row: the difference in log p(x) against the mean of both.

    The five rows with the largest difference are marked by their index.

    Args:
        comparison: what `compare` gives.
        a: the name of a model; the best unless given.
        b: of another; the best but one unless given.
        ax: where to draw.
    """
    ax = _axes(ax)
    one, other = comparison.pair(a, b)
    centre = (one.result.value + other.result.value) / 2
    d = one.result.value - other.result.value
    for entry, better, color in ((one, d > 0, "C0"), (other, d < 0, "C1")):
        label = f"better under {entry.name}: {better.mean():.0%} of rows"
        ax.plot(centre[better], d[better], ".", color=color, label=label)
    ax.axhline(0, color="grey", linewidth=0.8)
    ax.axhline(d.mean(), color="grey", linewidth=0.8, linestyle="--", label="mean difference")
    for found in comparison.disagreements(5, one.name, other.name).rows:
        point = (centre[found.row], found.difference)
        ax.annotate(str(found.row), point, (3, 3), textcoords="offset points", fontsize="small")
    ax.set(
        xlabel="mean log p(x) of both, nats",
        ylabel=f"log p(x), {one.name} minus {other.name}, nats",
    )
    ax.legend()
    return ax


def latent_use(use: "LatentUse", ax: "Axes | None" = None) -> "Axes":
    """The activity of each entry of z with two standard errors, on a logarithmic scale.

    Entries below the dashed line are not active, those that are not used are grey. What has no
    activity, such as a class, is left out.
    """
    ax = _axes(ax)
    names: list[str] = []
    for site in use.sites:
        activity = site.activity.mean(0)
        se = site.activity.std(0) / math.sqrt(len(site.activity))
        for j in np.flatnonzero(~np.isnan(activity)):
            color = "C0" if site.used[j] else "grey"
            ax.bar(len(names), activity[j], yerr=2 * se[j], color=color, capsize=3)
            names.append(site.entries[j])
    ax.axhline(0.01, color="grey", linewidth=0.8, linestyle="--")
    ax.set_yscale("log")
    ax.set_ylim(bottom=1e-3)
    if len(names) <= 32:
        ax.set_xticks(range(len(names)), names, rotation="vertical")
    ax.set(xlabel="entry of z", ylabel="activity, in variances of the prior")
    return ax


def guide_grade(grade: "GuideGrade", ax: "Axes | None" = None) -> "Axes":
    """The inference gap of each row, the largest last, as the sum of its two parts.

    Rows in which the guide misses a mode are marked. Where the gap is not split it is one area.
    """
    ax = _axes(ax)
    order = np.flatnonzero(grade.known)
    order = order[np.argsort(grade.inference[order])]
    parts = {name: getattr(grade, name)[order] for name in ("approximation", "amortisation")}
    if np.isnan(parts["approximation"]).any():
        parts = {"inference": grade.inference[order]}
    edges = np.arange(len(order) + 1)
    below = np.zeros(len(order))
    for name, values in parts.items():
        ax.stairs(below + values, edges, baseline=below, fill=True, label=f"{name} gap")
        below = below + values
    if len(missed := np.flatnonzero(grade.misses[order])):
        ax.plot(missed + 0.5, below[missed], "x", color="black", label="misses a mode")
    ax.set(xlabel="rows, by their inference gap", ylabel="below log p(x), nats")
    ax.legend()
    return ax


def pit(
    check: "Calibration | PredictiveCheck", most: int = 12, **options: Any
) -> "PlotCollection":
    """The plot of `arviz_plots.plot_ecdf_pit`: how far PIT values are from uniform, with a band.

    Where a line is above 0, there are too many low ranks: the draws are too high. The band is for
    one quantity by itself. Where rows miss entries, as many are shown of each quantity as the one
    with fewest has.

    Args:
        check: what `calibrate` or `predictive_check` gives.
        most: how many quantities, those that deviate most.
        options: those of `arviz_plots.plot_ecdf_pit`.
    """
    import arviz_plots
    from xarray import Dataset, DataTree

    test = check.test
    values = {test.names[i]: test.pit[~np.isnan(test.pit[:, i]), i] for i in test.order[:most]}
    rows = min(map(len, values.values()))
    data = Dataset({name: ("row", u[:rows]) for name, u in values.items()})
    tree = DataTree.from_dict({"pit": data})
    return arviz_plots.plot_ecdf_pit(tree, group="pit", sample_dims=["row"], **options)


def memorisation(memorisation: "Memorisation", ax: "Axes | None" = None) -> "Axes":
    """The share of samples, and of test rows, within a distance of the nearest training row.

    A line of samples above that of test rows is a sign of copies.
    """
    ax = _axes(ax)
    ax.ecdf(memorisation.distances, label="samples")
    ax.ecdf(memorisation.test_distances, label="test rows")
    ax.set(xlabel="distance to the nearest training row", ylabel="share within the distance")
    ax.legend()
    return ax


def images(x: Tensor, ax: "Axes | None" = None) -> "Axes":
    """Rows `(rows, channels, height, width)` as one picture, in a square grid."""
    ax = _axes(ax)
    rows, channels, height, width = x.shape
    side = math.ceil(math.sqrt(rows))
    grid = np.zeros((side * height, side * width, channels))
    for index, image in enumerate(x.permute(0, 2, 3, 1).cpu().numpy()):
        top, left = height * (index // side), width * (index % side)
        grid[top : top + height, left : left + width] = image
    low, high = float(grid.min()), float(grid.max())
    grid = (grid - low) / ((high - low) or 1.0)
    ax.imshow(grid if channels == 3 else grid.mean(-1), cmap="gray", vmin=0, vmax=1)
    ax.set_axis_off()
    return ax
