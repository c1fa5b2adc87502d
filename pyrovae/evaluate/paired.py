r"""Models on the same test rows: what `compare` gives.

For models a and b the difference per row is d_i = log p_a(x_i) - log p_b(x_i), its mean the
difference of the means, and its standard error sd(d) / sqrt(n), which is far smaller than that of
either mean where both find the same rows hard.

Two things vary: which rows are test rows, and where a fit ends. With S seeds the value of a row is
its mean over seeds, and of the means m_1, ..., m_S of single fits

    standard error   sd_i(mean_s log p_s(x_i)) / sqrt(n)    other rows, the same fits
    SD over seeds    sd_s(m_s)                              the same rows, another fit

Neither contains the other.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyrovae.errors import Error
from pyrovae.evaluate.likelihood import LogLikelihood
from pyrovae.evaluate.weights import Array
from pyrovae.files import json_text
from pyrovae.models import Model
from pyrovae.models.model import require_positive
from pyrovae.part import unknown
from pyrovae.report import Table


@dataclass(frozen=True, eq=False)
class Entry:
    """One model in a comparison.

    Args:
        name: of the model.
        models: the model from each seed, mostly from one; where there were candidates, the chosen.
        results: the log p(x) of each on the test rows.
        difference: the mean over rows of its log p(x) minus that of the best model.
        difference_se: the standard error of that mean, NaN for a single row.
        seconds: to fit it from one seed, NaN where nobody said.
    """

    name: str
    models: tuple[Model, ...]
    results: tuple[LogLikelihood, ...]
    difference: float
    difference_se: float
    seconds: float

    @property
    def model(self) -> Model:
        """The model from the first seed."""
        return self.models[0]

    @cached_property
    def result(self) -> LogLikelihood:
        """Of each row, log p(x) averaged over seeds."""
        return averaged(self.results)

    @property
    def seed_sd(self) -> float:
        """The standard deviation over seeds of the means over rows, NaN for one seed."""
        means = [result.mean for result in self.results]
        return float(np.std(means, ddof=1)) if len(means) > 1 else math.nan

    @property
    def parameters(self) -> int:
        """How many are trained, the average over seeds where choices differ."""
        return round(np.mean([model.parameter_count for model in self.models]))

    def summary(self) -> dict[str, Any]:
        """The figures, as they are written to results.json."""
        return {
            "log_likelihood": self.result.summary(),
            "seed_means": [result.mean for result in self.results],
            "seed_sd": self.seed_sd,
            "difference": self.difference,
            "difference_se": self.difference_se,
            "parameters": self.parameters,
            "seconds": self.seconds,
        }


def standard_error(values: Array) -> float:
    """The standard error of the mean of values, NaN for a single one."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def averaged(results: Sequence[LogLikelihood]) -> LogLikelihood:
    """Of each row, the mean over seeds of log p(x) and of the ELBO, the worst ESS and k-hat."""
    mean, mcse, ess, khat, elbo, jackknife, curve, particles = (
        np.stack([getattr(result, name) for result in results])
        for name in ("value", "mcse", "ess", "khat", "elbo", "jackknife", "curve", "particles")
    )
    return replace(
        results[0],
        value=mean.mean(0),
        mcse=np.sqrt(np.square(mcse).sum(0)) / len(results),
        ess=ess.min(0),
        khat=np.fmax.reduce(khat),
        elbo=elbo.mean(0),
        jackknife=jackknife.mean(0),
        curve=curve.mean(0),
        particles=particles.min(0),
    )


@dataclass(frozen=True)
class Disagreement:
    """A test row under two models.

    Args:
        row: its index among the test rows.
        a: its log p(x) under the one model.
        b: under the other.
        difference: the one minus the other.
    """

    row: int
    a: float
    b: float
    difference: float


@dataclass(frozen=True, eq=False)
class Disagreements:
    """The test rows that two models disagree about most, the largest difference first.

    Args:
        a: the name of the one model.
        b: of the other.
        rows: the test rows.
    """

    a: str
    b: str
    rows: tuple[Disagreement, ...]

    def table(self) -> Table:
        """One line a row, all digits."""
        return Table(
            ("row", f"log p(x), {self.a}", f"log p(x), {self.b}", "difference"),
            [astuple(row) for row in self.rows],
        )

    def __str__(self) -> str:
        table = self.table()
        rows = [(row, *(f"{value:.2f}" for value in values)) for row, *values in table.rows]
        return str(Table(table.columns, rows))


@dataclass(frozen=True, eq=False)
class Comparison:
    """Models on the same test rows, the best first.

    Args:
        entries: one for each model.
        chosen: for each model that was selected among candidates, what was tried and taken.
    """

    entries: tuple[Entry, ...]
    chosen: Mapping[str, str]

    def __getitem__(self, name: str) -> Entry:
        found = {entry.name: entry for entry in self.entries}
        if name not in found:
            raise Error(unknown("model", name, found))
        return found[name]

    @cached_property
    def weights(self) -> Mapping[str, float]:
        """The stacking weight of each model, by name: see `pyrovae.arviz`."""
        from pyrovae.arviz import weights

        return weights(self)

    def pair(self, a: str | None = None, b: str | None = None) -> tuple[Entry, Entry]:
        """Two models: those that are named, and for a name left out the best of the others.

        Raises:
            Error: no model of that name, or no two models.
        """
        others = (entry for entry in self.entries if entry.name not in (a, b))
        one, other = (next(others, None) if name is None else self[name] for name in (a, b))
        if one is None or other is None or one is other:
            names = ", ".join(entry.name for entry in self.entries)
            raise Error(f"two different models are needed, and there are: {names}")
        return one, other

    def disagreements(
        self, rows: int = 10, a: str | None = None, b: str | None = None
    ) -> Disagreements:
        """The rows that two models disagree about most.

        Args:
            rows: how many, at most.
            a: the name of a model; the best unless given.
            b: of another; the best but one unless given.

        Raises:
            Error: no model of that name, or no two models.
        """
        require_positive(rows, "rows")
        one, other = self.pair(a, b)
        columns = one.result.value, other.result.value, one.result.value - other.result.value
        largest = np.argsort(-np.abs(columns[-1]), kind="stable")[:rows]
        found = (Disagreement(int(i), *(float(c[i]) for c in columns)) for i in largest)
        return Disagreements(one.name, other.name, tuple(found))

    def __str__(self) -> str:
        return str(self.table())

    def table(self) -> Table:
        """The table for people: rounded, and with its notes."""
        rows = [self._cells(entry) for entry in self.entries]
        return Table(tuple(rows[0]), [tuple(row.values()) for row in rows], tuple(self.notes()))

    def _cells(self, entry: Entry) -> dict[str, str]:
        result, best = entry.result, self.entries[0]
        cells = {
            "model": entry.name,
            "log p(x), nats": f"{result.mean:.2f} ± {result.se:.2f}",
            "": result.kind,
        }
        if self._several:
            count = len(entry.results)
            cells["SD over seeds"] = f"{entry.seed_sd:.2f} ({count})" if count > 1 else "-"
        paired = f"{entry.difference:.2f} ± {entry.difference_se:.2f}"
        cells["from the best"] = "best" if entry is best else paired
        if len(self.entries) > 1:
            cells["weight"] = f"{self.weights[entry.name]:.2f}"
        untold = math.isnan(result.heavy) or result.exact
        return cells | {
            "k-hat > 0.7": "-" if untold else f"{result.heavy:.1%}",
            "parameters": f"{entry.parameters:,}",
            "seconds": "-" if math.isnan(entry.seconds) else f"{entry.seconds:.1f}",
        }

    @property
    def _several(self) -> bool:
        return any(len(entry.results) > 1 for entry in self.entries)

    def notes(self) -> Iterator[str]:
        """What has to be known to read the table, a sentence each."""
        results = [entry.result for entry in self.entries]
        best, *others = self.entries
        yield (
            f"Means over {len(results[0].value)} test rows ± standard error over rows, "
            "not over seeds; differences are paired by row."
        )
        if self._several:
            yield (
                "Rows are averaged over seeds; the SD over seeds (of how many) says how far the "
                "means of single fits lie apart."
            )
        if given := best.model.tag.given:
            yield f"All figures are of log p(x) given {given}."
        if not all(result.exact for result in results):
            yield "An exact figure is log p(x), a lower bound is at most that, in expectation."
        if others:
            yield (
                "Weights are those of the mixture of these models that explains the test rows "
                "best (stacking)."
            )
        for entry in others:
            d = entry.result.value - best.result.value
            if len(few := decisive(d)):
                rest = np.delete(d, few)
                yield (
                    f"{entry.name}: more than half of the variance of its differences is due to "
                    f"{len(few)} of {len(d)} rows, without which the difference is "
                    f"{rest.mean():.2f} ± {standard_error(rest):.2f}."
                )
        yield from (f"{name}: {text}." for name, text in self.chosen.items())
        for entry in self.entries:
            yield from (f"{entry.name}: {remark}." for remark in entry.model.remarks())

    def pointwise(self) -> Table:
        """Log p(x) of each test row under each model, all digits."""
        columns = (entry.result.value.tolist() for entry in self.entries)
        rows = [(row, *values) for row, values in enumerate(zip(*columns, strict=True))]
        return Table(("row", *(entry.name for entry in self.entries)), rows)

    def figures(self) -> Table:
        """One line a model, all digits."""
        rows = [
            {
                "model": entry.name,
                **entry.result.summary(),
                "seeds": len(entry.results),
                "seed_sd": entry.seed_sd,
                "difference": entry.difference,
                "difference_se": entry.difference_se,
                "weight": self.weights[entry.name],
                "parameters": entry.parameters,
                "seconds": entry.seconds,
            }
            for entry in self.entries
        ]
        return Table(tuple(rows[0]), [tuple(row.values()) for row in rows])

    def to_markdown(self) -> str:
        """The table in GitHub's Markdown."""
        return self.table().markdown()

    def to_latex(self) -> str:
        """The table for LaTeX with the package booktabs."""
        return self.table().latex()

    def to_csv(self) -> str:
        """The figures as comma-separated values, one line a model, all digits."""
        return self.figures().csv()

    def to_json(self) -> str:
        """The figures as JSON, with `null` for what is not a number."""
        return json_text(self.summary())

    def summary(self) -> dict[str, Any]:
        """The figures of all models, as they are written to results.json."""
        several = len(self.entries) > 1
        return {
            "models": {entry.name: entry.summary() for entry in self.entries},
            "chosen": dict(self.chosen),
            "weights": dict(self.weights),
            "disagreements": asdict(self.disagreements()) if several else None,
        }


def decisive(d: Array) -> NDArray[np.intp]:
    """The rows that most of the variance of differences is due to, if they are very few.

    That is: more than half of the sum of squares around the median, due to one row, or to 1 % of
    all. With normal differences this never happens, with those whose variance is infinite often:
    their mean hangs on these rows, and its standard error on how many of them there happen to be.
    Of fewer than 30 rows none is called decisive.
    """
    squares = np.square(np.minimum(np.abs(d - np.median(d)), 1e150))
    order = np.argsort(-squares, kind="stable")
    reached = np.cumsum(squares[order])
    few = int(np.searchsorted(reached, reached[-1] / 2, side="right")) + 1
    return order[: few if len(d) >= 30 and few <= max(1, len(d) // 100) else 0]
