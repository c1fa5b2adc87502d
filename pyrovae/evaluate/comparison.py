r"""Which model explains the test rows best: same rows, same units, a paired error.

For models a and b the difference per row is d_i = log p_a(x_i) - log p_b(x_i), its mean the
difference of the means, and its standard error sd(d) / sqrt(n), which is far smaller than that of
either mean where both find the same rows hard.

Numbers are only put side by side when they are of one kind: a probability of zeros and ones and a
density of real numbers are not, and no constant turns one into the other.
"""

import io
import itertools
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import PositiveInt
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from pyrovae.data import Data
from pyrovae.errors import Error
from pyrovae.evaluate.likelihood import LogLikelihood, log_likelihood
from pyrovae.models import Model
from pyrovae.part import unknown, validated


@dataclass(frozen=True, eq=False)
class Entry:
    """One model in a comparison.

    Args:
        name: of the model.
        model: the model; of several candidates, the one that was chosen.
        result: its log p(x) on the test rows.
        difference: the mean over rows of its log p(x) minus that of the best model.
        difference_se: the standard error of that mean, NaN for a single row.
        seconds: to fit it, NaN where nobody said.
    """

    name: str
    model: Model
    result: LogLikelihood
    difference: float
    difference_se: float
    seconds: float

    def cells(self) -> tuple[str, ...]:
        """The row of the table."""
        result = self.result
        paired = f"{self.difference:.2f} ± {self.difference_se:.2f}"
        return (
            self.name,
            f"{result.mean:.2f} ± {result.se:.2f}",
            result.kind,
            paired,
            "-" if math.isnan(result.heavy) or result.exact else f"{result.heavy:.1%}",
            f"{self.model.parameter_count:,}",
            "-" if math.isnan(self.seconds) else f"{self.seconds:.1f}",
        )

    def summary(self) -> dict[str, Any]:
        """The figures, as they are written to results.json."""
        return {
            "log_likelihood": self.result.summary(),
            "difference": self.difference,
            "difference_se": self.difference_se,
            "parameters": self.model.parameter_count,
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
        found = {entry.name: entry for entry in self.entries}
        if name not in found:
            raise Error(unknown("model", name, found))
        return found[name]

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
            cells = entry.cells()
            table.add_row(*cells[:3], "best" if entry is self.entries[0] else cells[3], *cells[4:])
        wide = Console(width=10_000, color_system=None)
        text = io.StringIO()
        width = wide.measure(table).maximum
        Console(file=text, width=width, color_system=None).print(table)
        notes = (textwrap.fill(note, max(width, 80)) for note in self.notes())
        lines = (line.rstrip() for line in text.getvalue().splitlines())
        return "\n".join([*filter(None, lines), "", *notes])

    def notes(self) -> Iterator[str]:
        """What has to be known to read the table, a sentence each."""
        results = [entry.result for entry in self.entries]
        yield (
            f"Means over {len(results[0].value)} test rows ± standard error over rows, "
            "not over seeds; differences are paired by row."
        )
        if given := self.entries[0].model.tag.given:
            yield f"All figures are of log p(x) given {given}."
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
    candidates: Sequence[Model], validation: Any, *, particles: int = 1000, seed: int = 0
) -> tuple[int, list[float]]:
    """The candidate with the highest mean log p(x) on validation rows: its index, and all means.

    Raises:
        Error: no candidates, or no validation rows to choose on.
    """
    if not candidates:
        raise Error("there is no candidate to choose from")
    if validation is None:
        raise Error("a choice among candidates is made on validation rows: pass validation")
    refuse_incomparable({f"candidate {i + 1}": model for i, model in enumerate(candidates)})
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
        test: rows, shape `(rows, *x)`, raw; or the `Data` that `load` gives, for its test rows
            and, unless `validation` is given, its validation rows.
        validation: rows on which choices are made; never the test rows.
        particles: draws of z for each row.
        seed: of the draws.
        seconds: how long each took to fit, for the table.

    Raises:
        Error: no models; models whose numbers cannot be compared; test rows that a model cannot
            have generated.
    """
    if not isinstance(models, Mapping) or not models:
        raise Error("there is no model to compare: pass a dictionary, name to model", "models")
    if isinstance(test, Data) and validation is None:
        validation = test.validation
    chosen: dict[str, str] = {}
    options = {"particles": particles, "seed": seed}
    finalists = {
        name: model
        if isinstance(model, Model)
        else _finalist(name, model, validation, chosen, options)
        for name, model in models.items()
    }
    refuse_incomparable(finalists)
    refuse_shared(finalists)
    results = {}
    for name, model in finalists.items():
        rows = test.rows_of(model, "test")[0] if isinstance(test, Data) else test
        results[name] = log_likelihood(model, rows, particles=particles, seed=seed)
    refuse_incomparable(finalists)
    return ranked(finalists, results, seconds or {}, chosen)


def ranked(
    models: Mapping[str, Model],
    results: Mapping[str, LogLikelihood],
    seconds: Mapping[str, float],
    chosen: Mapping[str, str],
) -> Comparison:
    """The comparison of results on the same rows, the best first."""
    best = max(results.values(), key=lambda result: result.mean)
    entries = []
    for name, result in sorted(results.items(), key=lambda item: -item[1].mean):
        d = result.value - best.value
        se = float(d.std(ddof=1) / math.sqrt(len(d))) if len(d) > 1 else math.nan
        took = seconds.get(name, math.nan)
        entries.append(Entry(name, models[name], result, float(d.mean()), se, took))
    return Comparison(tuple(entries), chosen)


def refuse_incomparable(models: Mapping[str, Model]) -> None:
    """Refuse models whose numbers are of different kinds, as far as the kinds are known.

    Raises:
        Error: naming two models and what each one's number is.
    """
    tags = {name: model.tag for name, model in models.items() if model.tag.measure != "unknown"}
    for (a, one), (b, other) in itertools.pairwise(tags.items()):
        if one != other:
            raise Error(
                f"'{a}' and '{b}' cannot be compared: "
                f"log p(x) of the one is {one}, of the other {other}"
            )


def refuse_shared(models: Mapping[str, Model]) -> None:
    """Refuse models that train the same tensors: they would be one model under several names.

    Raises:
        Error: naming two of them.
    """
    owner: dict[Tensor, str] = {}
    for name, model in models.items():
        for parameter in model.parameters():
            if owner.setdefault(parameter, name) != name:
                raise Error(
                    f"'{owner[parameter]}' and '{name}' share parameters: give each model, and "
                    "each pair of functions, a network of its own"
                )


def _finalist(
    name: str,
    candidates: Sequence[Model],
    validation: Any,
    chosen: dict[str, str],
    options: dict[str, int],
) -> Model:
    index, means = select(candidates, validation, **options)
    tried = ", ".join(f"{mean:.2f}" for mean in means)
    chosen[name] = (
        f"candidate {index + 1} of {len(means)} chosen by log p(x) on the validation rows: {tried}"
    )
    return candidates[index]
