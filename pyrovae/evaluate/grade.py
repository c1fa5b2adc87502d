r"""What `grade_guide` finds: the gaps of the bound, what the guide misses, and the verdict.

Thresholds, in order; the first that applies gives the grade:

    modes     in 5 % of the rows and more, draws of q find less than 90 % of p(x), and 10 % and
              more lie behind a valley of p(x, z), where chains from the prior have been;
    fine      the mean inference gap is at most the tolerance, and k-hat is above its threshold in
              at most 10 % of the rows;
    encoder   the amortisation gap is the larger part;
    family    the approximation gap is the larger part;
    loose     the gap cannot be split.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pyrovae.evaluate.mcmc import MIXED
from pyrovae.evaluate.weights import Array
from pyrovae.report import Table

MISSED = 0.1
"""The share of p(x) from which on it counts as missed."""
SOME = 0.05
"""The share of rows with something missed from which on the grade is `modes`."""
HEAVY = 0.1
"""The share of rows with a k-hat above the threshold up to which a guide can be fine."""
GAPS = ("inference", "approximation", "amortisation")


@dataclass(frozen=True, eq=False)
class GuideGrade:
    """How good the guide is. Every array has a first dimension of rows; NaN is what is not known.

    Args:
        log_p: the best estimate of log p(x), `(rows,)`, in nats.
        elbo: the ELBO of the guide, `(rows,)`.
        best: the ELBO of the best guide of its family that was found, `(rows,)`.
        mcse: the Monte-Carlo standard error of each gap, `(rows,)` by name.
        left: how much the last round of the search for the best guide gained, `(rows,)`.
        khat: the Pareto k-hat of draws of the guide, `(rows,)`.
        missed: the share of p(x) that draws of the best guide do not find, `(rows,)`.
        misses: whether that is 10 % and more, by three standard errors, and as much of p(x) lies
            behind a valley of p(x, z): in another mode.
        mean_error: (E_q z_j - E z_j) / sd z_j against chains, `(rows, entries)`, NaN for rows
            whose chains did not mix.
        sd_error: log(sd_q z_j / sd z_j), likewise.
        error_noise: the standard error of a `mean_error`, `(rows,)`.
        rhat: the R-hat of the chains, `(rows,)`.
        entries: the names of the entries of the latents.
        method: how log p(x) was found.
        particles: draws of the guide for each row.
        tolerance: the mean inference gap up to which the guide can be fine, in nats.
        notes: what was left out and why, a sentence each.
    """

    log_p: Array
    elbo: Array
    best: Array
    mcse: dict[str, Array]
    left: Array
    khat: Array
    missed: Array
    misses: NDArray[np.bool_]
    mean_error: Array
    sd_error: Array
    error_noise: Array
    rhat: Array
    entries: tuple[str, ...]
    method: str
    particles: int
    tolerance: float
    notes: tuple[str, ...]

    @property
    def inference(self) -> Array:
        """The inference gap, log p(x) - ELBO, `(rows,)`."""
        return _minus(self.log_p, self.elbo)

    @property
    def approximation(self) -> Array:
        """The approximation gap, log p(x) - the ELBO of the best guide of the family."""
        return _minus(self.log_p, self.best)

    @property
    def amortisation(self) -> Array:
        """The amortisation gap, the ELBO of the best guide of the family - that of the guide."""
        return _minus(self.best, self.elbo)

    @property
    def known(self) -> NDArray[np.bool_]:
        """The rows whose gaps are finite: no draw has the weight 0."""
        return np.isfinite(self.inference)

    def gap(self, name: str) -> tuple[float, float, float]:
        """The mean of a gap over rows, its standard error over rows, and its Monte-Carlo error.

        Args:
            name: `inference`, `approximation` or `amortisation`.
        """
        values, mcse = getattr(self, name)[self.known], self.mcse[name][self.known]
        if not len(values):
            return math.nan, math.nan, math.nan
        rows = len(values)
        se = float(values.std(ddof=1) / math.sqrt(rows)) if rows > 1 else math.nan
        return float(values.mean()), se, float(np.sqrt(np.square(mcse).sum()) / rows)

    @property
    def threshold(self) -> float:
        """The k-hat above which a row's weights are unreliable with its number of draws."""
        return min(1 - 1 / math.log10(self.particles), 0.7)

    @property
    def heavy(self) -> float:
        """The share of rows with k-hat above the threshold, or with draws of weight 0."""
        return float(((self.khat > self.threshold) | ~self.known).mean())

    @property
    def unmixed(self) -> NDArray[np.intp]:
        """The rows whose chains disagree: for want of draws, or because of several modes."""
        return np.flatnonzero(self.rhat > MIXED)

    @property
    def explored(self) -> bool:
        """Whether what the guide may miss was looked for."""
        return not np.isnan(self.missed).all()

    def error(self, name: str) -> tuple[float, float]:
        """The median and the 90 % quantile of |`mean_error`| or |`sd_error`|."""
        values = np.abs(getattr(self, name))
        values = values[~np.isnan(values)]
        if not len(values):
            return math.nan, math.nan
        return float(np.median(values)), float(np.quantile(values, 0.9))

    @property
    def grade(self) -> Literal["fine", "encoder", "family", "modes", "loose"]:
        """The verdict in a word; see the top of `pyrovae.evaluate.grade`."""
        if self.misses.mean() >= SOME:
            return "modes"
        if self.gap("inference")[0] <= self.tolerance and self.heavy <= HEAVY:
            return "fine"
        family, encoder = self.gap("approximation")[0], self.gap("amortisation")[0]
        if math.isnan(family):
            return "loose"
        return "encoder" if encoder > family else "family"

    @property
    def verdict(self) -> str:
        """What limits the guide and what to do, in one sentence."""
        if not self.known.any():
            return "No row has a bound: draws of the guide have the weight 0 in each."
        inference, family, encoder = (_nats(*self.gap(name)) for name in GAPS)
        khat = f"k-hat is above {self.threshold:.2f} in {self.heavy:.0%} of the rows"
        if self.grade == "modes":
            share = float(np.median(self.missed[self.misses]))
            return (
                f"The guide misses a mode: in {self.misses.mean():.0%} of the rows its draws do "
                f"not find a part of the posterior that chains from the prior do, {share:.0%} of "
                "p(x) in the median, and k-hat need not show it; use a guide with several modes, "
                "such as mixture-of-normals."
            )
        if self.grade == "fine":
            modes = (
                "chains from the prior find nothing that it misses"
                if self.explored
                else "modes that it may miss were not looked for"
            )
            return f"The guide is fine: its bound is {inference} below log p(x), {khat}, {modes}."
        if self.grade == "encoder":
            return (
                f"The encoder limits the guide: it loses {encoder} a row against the best guide "
                f"of its family, which loses {family}; train it longer, make it larger, or refine "
                "what it gives (refine = 'semi-amortized')."
            )
        if self.grade == "family":
            return (
                f"The family limits the guide: its best member for each row loses {family}, the "
                f"encoder {encoder} more; use a richer posterior, such as multivariate-normal, "
                "mixture-of-normals or flow."
            )
        return f"The guide's bound is {inference} below log p(x), and {khat}; why is not known."

    def table(self) -> Table:
        """One line a figure: over rows, the mean with its error, the median and a quantile."""
        rows = []
        for name in GAPS:
            values, (mean, se, mcse) = getattr(self, name)[self.known], self.gap(name)
            if not math.isnan(mean):
                rows.append((f"{name} gap", _nats(mean, se, mcse, ""), *_quantiles(values)))
        khat = self.khat[~np.isnan(self.khat)]
        rows.append((f"k-hat above {self.threshold:.2f}", f"{self.heavy:.0%}", *_quantiles(khat)))
        if self.explored:
            rows.append(("share of p(x) missed", "", *_quantiles(np.maximum(self.missed, 0))))
        for name, head in (("mean_error", "|mean error|, sd"), ("sd_error", "|log sd ratio|")):
            median, tail = self.error(name)
            if not math.isnan(median):
                rows.append((head, "", f"{median:.2f}", f"{tail:.2f}"))
        return Table(("", "mean", "median", "90 %"), rows, tuple(self._notes()))

    def errors(self) -> Table:
        """One line an entry of the latents: the median and 90 % quantile of q's errors."""
        rows = []
        for j, name in enumerate(self.entries):
            columns = (np.abs(values[:, j]) for values in (self.mean_error, self.sd_error))
            rows.append((name, *(q for v in columns for q in _quantiles(v[~np.isnan(v)]))))
        heads = ("|mean error|, sd", "90 %", "|log sd ratio|", "90 %")
        return Table(("entry", *heads), rows)

    def _notes(self) -> Iterator[str]:
        yield (
            f"{len(self.log_p)} row{'s' * (len(self.log_p) > 1)} with {self.particles} draws "
            "each, nats ± standard errors over rows (Monte-Carlo error in brackets); log p(x) by "
            f"{self.method}."
        )
        if not np.isnan(self.rhat).all():
            noise = float(np.nanmedian(self.error_noise))
            yield f"Sampling alone makes errors of q of {noise:.2f}."
        if len(self.unmixed):
            yield (
                f"The chains of {len(self.unmixed)} rows did not mix (R-hat above {MIXED}): "
                "errors of q are over the others."
            )
        if (left := float(self.left.mean())) > 0.1 * max(self.gap("approximation")[0], 0.1):
            yield (
                f"The search for the best guides still gained {left:.2f} nats in its last round: "
                "the approximation gap may be smaller and the amortisation gap larger."
            )
        yield from self.notes

    def summary(self) -> dict[str, Any]:
        """The figures, as they are written to results.json."""
        gaps: dict[str, Any] = {}
        for name in GAPS:
            mean, se, mcse = self.gap(name)
            gaps |= {f"{name}_gap": mean, f"{name}_gap_se": se, f"{name}_gap_mcse": mcse}
        errors: dict[str, Any] = {}
        for name in ("mean_error", "sd_error"):
            median, tail = self.error(name)
            errors |= {name: median, f"{name}_90": tail}
        known = self.known
        return {
            "grade": self.grade,
            "verdict": self.verdict,
            **gaps,
            "log_p": float(self.log_p[known].mean()) if known.any() else math.nan,
            "elbo": float(self.elbo[known].mean()) if known.any() else math.nan,
            "left": float(self.left.mean()),
            "khat_above_threshold": self.heavy,
            "misses": float(self.misses.mean()) if self.explored else math.nan,
            **errors,
            "unmixed": len(self.unmixed),
            "method": self.method,
            "particles": self.particles,
            "rows": len(self.log_p),
        }

    def __str__(self) -> str:
        return f"{self.table()}\n\n{self.verdict}"


def _minus(a: Array, b: Array) -> Array:
    with np.errstate(invalid="ignore"):
        return a - b


def _nats(mean: float, se: float, mcse: float, unit: str = " nats") -> str:
    over = "" if math.isnan(se) else f" ± {se:.2f}"
    return f"{_shown(mean)}{over} ({mcse:.3f}){unit}"


def _shown(value: Any) -> str:
    """Two digits, and no sign of a zero."""
    return f"{value:z.2f}"


def _quantiles(values: Array) -> tuple[str, str]:
    if not len(values):
        return "-", "-"
    return _shown(np.median(values)), _shown(np.quantile(values, 0.9, method="higher"))
