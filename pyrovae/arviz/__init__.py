"""ArviZ, at the edge of the package: comparisons, and a model with rows, in its terms."""

from pyrovae.arviz.comparison import compare, held_out_elpd, plot_compare, weights
from pyrovae.arviz.export import to_arviz

__all__ = ["compare", "held_out_elpd", "plot_compare", "to_arviz", "weights"]
