"""Plots, with matplotlib: each draws on given axes or axes of its own, and returns them."""

import math
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pyrovae.evaluate import Comparison
    from pyrovae.fitting import History


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
    """Each model's paired difference from the best with two standard errors; bounds are open."""
    ax = _axes(ax)
    for height, entry in enumerate(reversed(comparison.entries)):
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
