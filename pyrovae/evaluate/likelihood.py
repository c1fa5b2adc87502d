r"""How large log p(x) is, for each row, and how sure that is.

Where the integral log p(x) = log \int p(x, z) dz is not known, an *estimator* finds it: `iwae`
from draws of the guide, `ais` by annealing, `grid` by summing where z has few entries. The first
two are, in expectation, lower bounds. How far below log p(x) they stay shows where the bound still
rises with K, in the k-hat of the weights, and where estimators differ; no draw of the guide shows
a mode of the posterior that the guide leaves out. `pyrovae.evaluate.weights` defines what is said
of a set of weights.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import NonNegativeInt, PositiveInt

from pyrovae.errors import Error
from pyrovae.evaluate.estimators import IWAE, Estimator, Exact, Grid
from pyrovae.evaluate.weights import CURVE, Array, checked, evaluating
from pyrovae.graphs import How
from pyrovae.models import Model
from pyrovae.part import validated
from pyrovae.report import uncertain


@dataclass(frozen=True, eq=False)
class LogLikelihood:
    """log p(x) of each row, in nats, on the raw scale. Every array has a first dimension of rows.

    Args:
        value: the estimate of log p(x), `(rows,)`; -infinity where all weights are 0.
        mcse: its Monte-Carlo standard error: 0 where it is exact, NaN for one particle, infinite
            where all weights are 0; of `grid` how much the value changes with half the points.
        ess: the effective sample size.
        khat: the Pareto k-hat; -infinity where all weights are equal, NaN where they are too few.
        elbo: the mean log-weight of draws of the guide, the ELBO; NaN where there are none.
        jackknife: the value with a smaller bias, and no bound; NaN for one particle.
        curve: the bound for K = 1, 10, 100, 1000 and 5000 particles, `(rows, 5)`, all from the
            same draws, NaN beyond those that there are.
        particles: the draws for each row, K, or the points of `grid`.
        method: the kind of the estimator.
        dimensions: the entries of one row, D.
        given: what the rows are conditioned on, empty for log p(x) itself.
        tolerance: the Monte-Carlo standard error that was asked for, if one was.
    """

    value: Array
    mcse: Array
    ess: Array
    khat: Array
    elbo: Array
    jackknife: Array
    curve: Array
    particles: Array
    method: str
    dimensions: int
    given: str = ""
    tolerance: float | None = None

    @property
    def exact(self) -> bool:
        """Whether this is log p(x) itself."""
        return self.kind == Exact.figure

    @property
    def kind(self) -> str:
        """`exact`, `lower bound` (in expectation) or `quadrature`."""
        known: Any = Estimator.members[self.method]
        return str(known.figure)

    @property
    def mean(self) -> float:
        """The mean over rows."""
        return float(self.value.mean())

    @property
    def se(self) -> float:
        """The standard error of the mean over rows, seen as a sample; NaN for a single row."""
        if len(self.value) == 1:
            return math.nan
        with np.errstate(invalid="ignore"):
            return float(self.value.std(ddof=1) / math.sqrt(len(self.value)))

    @property
    def mean_mcse(self) -> float:
        """The Monte-Carlo standard error of the mean, for these rows."""
        return float(np.sqrt(np.square(self.mcse).sum()) / len(self.mcse))

    def interval(self, level: float = 0.95) -> tuple[Array, Array]:
        """The ends of each row's interval for log p(x), `(rows,)`.

        By Student's t with K - 1 degrees of freedom, which needs weights with a variance: see
        `khat`. Where all weights are 0 or there is one, the interval has no ends.

        Args:
            level: the probability that the interval holds log p(x).
        """
        from scipy.stats import t

        known = np.isfinite(self.mcse)
        value, mcse = np.where(known, [self.value, self.mcse], [[0.0], [np.inf]])
        wide = t.ppf((1 + level) / 2, np.maximum(self.particles - 1, 1)) * mcse
        return value - wide, value + wide

    @property
    def bits_per_dim(self) -> float:
        """The negative mean in bits for each entry of a row."""
        return -self.mean / (self.dimensions * math.log(2))

    @property
    def threshold(self) -> Array:
        """The k-hat above which a row's estimate is unreliable with its number of particles."""
        enough = np.maximum(self.particles, 11)
        return np.where(self.particles > 10, np.minimum(1 - 1 / np.log10(enough), 0.7), 0.0)

    @property
    def heavy(self) -> float:
        """The share of rows with k-hat above 0.7; NaN with too few draws to fit a tail."""
        known = self.khat[~np.isnan(self.khat)]
        return float((known > 0.7).mean()) if len(known) else math.nan

    @property
    def unreached(self) -> NDArray[np.intp]:
        """The rows whose Monte-Carlo error is above the tolerance that was asked for."""
        if self.tolerance is None:
            return np.zeros(0, dtype=np.intp)
        return np.flatnonzero(~(self.mcse <= self.tolerance))

    @property
    def bounds(self) -> dict[int, float]:
        """The mean bound for each number of particles, where all rows have it."""
        means = zip(CURVE, self.curve.mean(0).tolist(), strict=True)
        return {k: mean for k, mean in means if not math.isnan(mean)}

    def summary(self) -> dict[str, Any]:
        """The figures of the whole set, as they are written to results.json."""
        return {
            "mean": self.mean,
            "se": self.se,
            "mcse": self.mean_mcse,
            "kind": self.kind,
            "method": self.method,
            "bits_per_dim": self.bits_per_dim,
            "elbo": float(self.elbo.mean()),
            "jackknife": float(self.jackknife.mean()),
            "bounds": {str(k): bound for k, bound in self.bounds.items()},
            "khat_above_0.7": self.heavy,
            "particles": float(self.particles.mean()),
            "rows": len(self.value),
        } | ({} if self.tolerance is None else {"rows_above_tolerance": len(self.unreached)})

    def __str__(self) -> str:
        given = f" | {self.given}" if self.given else ""
        kind = self.kind if self.exact else f"{self.kind} by {self.method}"
        rows = f"{len(self.value)} row{'s' * (len(self.value) > 1)}"
        how = ", ".join([kind, rows, *([] if self.exact else self._basis())])
        return "; ".join(
            [f"log p(x{given}) = {uncertain(self.mean, self.se)} nats ({how})", *self._trouble()]
        )

    def _basis(self) -> Iterator[str]:
        """What the estimate rests on."""
        least, most = self.particles.min(), self.particles.max()
        used = f"{least:.0f}" if least == most else f"{least:.0f} to {most:.0f}"
        yield f"{used} {'points' if self.method == Grid.kind else 'particles'}"
        if not math.isnan(self.mean_mcse):
            yield f"Monte-Carlo error {self.mean_mcse:.3f}"
        if not math.isnan(self.heavy):
            yield f"k-hat > 0.7 in {self.heavy:.1%} of rows"

    def _trouble(self) -> Iterator[str]:
        """What is not as it should be, and in which rows."""
        if len(self.unreached):
            yield f"the error is above {self.tolerance:g} nats in {named_rows(self.unreached)}"
        if len(lost := np.flatnonzero(np.isneginf(self.value))):
            yield f"all weights are 0 in {named_rows(lost)}"


def named_rows(rows: NDArray[np.intp]) -> str:
    """Rows by their places: "rows 2, 3, 5, 7, 11 and 20 others"."""
    more = f" and {len(rows) - 5} others" if len(rows) > 5 else ""
    return f"row{'s' * (len(rows) > 1)} {', '.join(map(str, rows[:5].tolist()))}{more}"


def refuse_undefined(value: Array) -> None:
    """Refuse values that are no logarithm of a density."""
    if len(bad := np.flatnonzero(np.isnan(value) | (value == np.inf))):
        raise Error(
            f"log p(x) is not a number in {named_rows(bad)}: a density of the model or of its "
            "guide is NaN or infinite there"
        )


@validated
def log_likelihood(
    model: Model,
    data: Any,
    *,
    particles: PositiveInt | None = None,
    method: Estimator | None = None,
    rows: PositiveInt | None = None,
    seed: NonNegativeInt = 0,
    device: str | None = None,
    dtype: Literal["float32", "float64"] | None = None,
    compile: How = "auto",  # noqa: A002
) -> LogLikelihood:
    """Log p(x) of each row, with its uncertainty.

    Args:
        model: a fitted model; it is as it was, to the bit, afterwards.
        data: rows, shape `(rows, *x)`, raw.
        particles: draws of z for each row, K, or with a tolerance the fewest; unless given, 1000
            for `iwae` and 16 for `ais`.
        method: the estimator; `exact` where log p(x) is known and `iwae` otherwise unless given.
        rows: the first rows only; all unless given.
        seed: of the draws.
        device: where to compute, such as `cuda`; the model's own unless given.
        dtype: `float32` or `float64`; the model's own unless given. Sums over particles are in
            float64 in any case.
        compile: whether what is done for each block of rows is recorded and compiled. With `auto`
            it is recorded where there are many blocks, and compiled where that is won back;
            nothing but speed depends on that, apart from rounding once it is compiled. What
            cannot be recorded runs as plain Pyro.

    Raises:
        Error: rows of the wrong shape, not finite or outside the support; a latent that is not
            local; an estimator that cannot take the model; densities that are not finite.

    Example:
        >>> import torch
        >>> from pyrovae import Mixture
        >>> result = log_likelihood(Mixture(x=(2,), family="fixed-normal"), torch.zeros(3, 2))
        >>> result.value.shape, result.kind
        ((3,), 'exact')
    """
    with evaluating(model, seed, device, dtype) as place:
        estimator = method or (Exact() if model.exact else IWAE())
        batch = checked(model, data, place, rows)
        columns = estimator(model, batch, particles, compile)
    refuse_undefined(columns["value"])
    return LogLikelihood(
        **columns,
        method=estimator.kind,
        dimensions=math.prod(model.event),
        given=model.tag.given,
        tolerance=estimator.tolerance,
    )
