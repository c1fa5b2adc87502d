r"""Which model explains the test rows best: same rows, same units, a paired error.

For models a and b the difference per row is d_i = log p_a(x_i) - log p_b(x_i), its mean the
difference of the means, and its standard error sd(d) / sqrt(n), which is far smaller than that of
either mean where both find the same rows hard.

Numbers are only put side by side when they are of one kind: a probability of zeros and ones and a
density of real numbers are not, and no constant turns one into the other.
"""

import io
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import PositiveInt
from rich import box
from rich.console import Console
from rich.table import Table

from pyrovae.batch import as_batch
from pyrovae.errors import Error
from pyrovae.evaluate.likelihood import LogLikelihood, log_likelihood
from pyrovae.models import Model
from pyrovae.part import validated


@dataclass(frozen=True, eq=False)
class Entry:
    """One model in a comparison.

    Args:
        name: of the model.
        result: its log p(x) on the test rows.
        difference: the mean over rows of its log p(x) minus that of the best model.
        difference_se: the standard error of that mean.
        parameters: how many are trained.
        seconds: to fit it, NaN where nobody said.
    """

    name: str
    result: LogLikelihood
    difference: float
    difference_se: float
    parameters: int
    seconds: float

    def cells(self) -> tuple[str, ...]:
        """The row of the table."""
        result = self.result
        paired = f"{self.difference:.2f} ± {self.difference_se:.2f}"
        return (
            self.name,
            f"{result.mean:.2f} ± {result.se:.2f}",
            result.kind,
            paired if self.difference_se else "best",
            "-" if math.isnan(result.heavy) or result.exact else f"{result.heavy:.1%}",
            f"{self.parameters:,}",
            "-" if math.isnan(self.seconds) else f"{self.seconds:.1f}",
        )

    def summary(self) -> dict[str, Any]:
        """The figures, as they are written to results.json."""
        return {
            "log_likelihood": self.result.summary(),
            "difference": self.difference,
            "difference_se": self.difference_se,
            "parameters": self.parameters,
            "seconds": self.seconds,
        }


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
        return next(entry for entry in self.entries if entry.name == name)

    def __str__(self) -> str:
        columns = (
            "model",
            "log p(x), nats",
            "",
            "from the best",
            "k-hat > 0.7",
            "parameters",
            "seconds",
        )
        table = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)
        for column in table.columns[1:]:
            column.justify = "right"
        for entry in self.entries:
            table.add_row(*entry.cells())
        wide = Console(width=10_000, color_system=None)
        text = io.StringIO()
        width = wide.measure(table).maximum
        Console(file=text, width=width, color_system=None).print(table)
        notes = (textwrap.fill(note, max(width, 80)) for note in self.notes())
        return "\n".join([text.getvalue().strip("\n"), "", *notes])

    def notes(self) -> Iterator[str]:
        """What has to be known to read the table, a sentence each."""
        results = [entry.result for entry in self.entries]
        yield (
            f"Means over {len(results[0].value)} test rows ± standard error over rows, "
            "not over seeds; differences are paired by row."
        )
        if not all(result.exact for result in results):
            yield "An exact figure is log p(x), a lower bound is at most that, in expectation."
        yield from (f"{name}: {text}." for name, text in self.chosen.items())

    def summary(self) -> dict[str, Any]:
        """The figures of all models, as they are written to results.json."""
        return {
            "models": {entry.name: entry.summary() for entry in self.entries},
            "chosen": dict(self.chosen),
        }


def select(
    candidates: Sequence[Model], validation: Any, *, particles: int = 100, seed: int = 0
) -> tuple[int, list[float]]:
    """The candidate with the highest mean log p(x) on validation rows: its index, and all means.

    Raises:
        Error: no candidates, or no validation rows to choose on.
    """
    if not candidates:
        raise Error("there is no candidate to choose from")
    if validation is None:
        raise Error("a choice among candidates is made on validation rows: pass validation")
    means = [
        log_likelihood(model, validation, particles=particles, seed=seed).mean
        for model in candidates
    ]
    return max(range(len(means)), key=means.__getitem__), means


@validated
def compare(
    models: Mapping[str, Model | Sequence[Model]],
    test: Any,
    validation: Any = None,
    *,
    particles: PositiveInt = 1000,
    seed: int = 0,
    seconds: dict[str, float] | None = None,
) -> Comparison:
    """Compare fitted models on the same test rows.

    Args:
        models: name to model; a list of models is a choice, made on the validation rows, such as a
            mixture's K.
        test: rows, shape `(rows, *x)`, raw.
        validation: rows on which choices are made; never the test rows.
        particles: draws of z for each row.
        seed: of the draws.
        seconds: how long each took to fit, for the table.

    Raises:
        Error: no models; models whose numbers cannot be compared; test rows that a model cannot
            have generated.
    """
    if not models:
        raise Error("there is no model to compare")
    chosen: dict[str, str] = {}
    finalists = {
        name: _finalist(name, model, validation, chosen) for name, model in models.items()
    }
    comparable(finalists)
    batch = as_batch(test)
    results = {
        name: log_likelihood(model, batch, particles=particles, seed=seed)
        for name, model in finalists.items()
    }
    return ranked(
        results, {name: model.size for name, model in finalists.items()}, seconds or {}, chosen
    )


def ranked(
    results: Mapping[str, LogLikelihood],
    sizes: Mapping[str, int],
    seconds: Mapping[str, float],
    chosen: Mapping[str, str],
) -> Comparison:
    """The comparison of results on the same rows, the best first."""
    best = max(results.values(), key=lambda result: result.mean)
    entries = []
    for name, result in sorted(results.items(), key=lambda item: -item[1].mean):
        d = result.value - best.value
        se = float(d.std(ddof=1) / math.sqrt(len(d))) if len(d) > 1 else math.nan
        entries.append(
            Entry(name, result, float(d.mean()), se, sizes[name], seconds.get(name, math.nan))
        )
    return Comparison(tuple(entries), chosen)


def comparable(models: Mapping[str, Model]) -> None:
    """Refuse models whose numbers are of different kinds.

    Raises:
        Error: naming two models and what each one's number is.
    """
    first, *others = models
    for other in others:
        a, b = models[first].tag, models[other].tag
        if a != b:
            raise Error(
                f"'{first}' and '{other}' cannot be compared: "
                f"log p(x) of the one is {a}, of the other {b}"
            )


def _finalist(
    name: str, model: Model | Sequence[Model], validation: Any, chosen: dict[str, str]
) -> Model:
    if isinstance(model, Model):
        return model
    index, means = select(model, validation)
    tried = ", ".join(f"{mean:.2f}" for mean in means)
    chosen[name] = (
        f"candidate {index + 1} of {len(means)}, by log p(x) on the validation rows: {tried}"
    )
    return model[index]
