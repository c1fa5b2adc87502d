r"""Proposals: a family for each column of a table, from its values, with the reason.

What values a column *can* take is read off all rows, since a class that training rows happen to
lack is still a class: zeros and ones, whole numbers, positive numbers. Which of the families over
such values is near is read off the training rows only, from moments that say how they are spread:

    counts            Var x / E x is 1 for a Poisson, more for a negative binomial
    positive numbers  E log p(x) of the log-normal and of the gamma that fit best

A proposal is where to begin. A code and a small count look alike, and only who knows the data can
tell them apart.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyrovae.batch import as_rows, beginning
from pyrovae.data import Data
from pyrovae.errors import Error
from pyrovae.families import Columns
from pyrovae.families.columns import AUTO

FEW = 10
"""Up to how many whole numbers have a probability each."""
SKEWED = 1.0
"""The skewness above which positive numbers are not taken for normal ones."""


@dataclass(frozen=True)
class Choice:
    """The family of one column.

    Args:
        family: its table.
        reason: for it, in words.
    """

    family: dict[str, Any]
    reason: str

    def __str__(self) -> str:
        fields = (f"{name} = {value}" for name, value in self.family.items() if name != "kind")
        return ", ".join((self.family["kind"], *fields))


@dataclass(frozen=True)
class Proposal:
    """A family for each column of a table.

    Args:
        choices: by the name of the column, in the order of the data.
    """

    choices: Mapping[str, Choice]

    @property
    def columns(self) -> dict[str, dict[str, Any]]:
        """The field `columns` of `Columns`, to be changed where it is wrong."""
        return {name: dict(choice.family) for name, choice in self.choices.items()}

    def family(self) -> Columns:
        """A new family of these columns, for one model."""
        return Columns(columns=self.columns)  # type: ignore[arg-type]

    def __str__(self) -> str:
        cells = [(name, str(choice), choice.reason) for name, choice in self.choices.items()]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in cells)
        return "\n".join(lines)


def propose(data: Any) -> Proposal:
    """A family for each column of a table, as a likelihood for `Columns`.

    Args:
        data: the `Data` that `load` gives, which can have words; or all rows, a data frame, an
            array or a tensor, shape `(rows, columns)`, NaN where an entry is missing. Of rows
            that stay in a file a sample is looked at.

    Raises:
        Error: rows that are no table.

    Example:
        >>> proposal = propose(torch.tensor([[0.0, 1.7], [1.0, 1.6], [1.0, 1.8]]))
        >>> print(proposal)
        x0  bernoulli  zeros and ones
        x1  normal     real numbers from 1.6 to 1.8
        >>> proposal.family().takes
        '0 or 1 (x0), finite real numbers (x1)'
    """
    levels = data.levels if isinstance(data, Data) else {}
    parts = (data.train, data.validation, data.test) if isinstance(data, Data) else (data,)
    train, *others = (beginning(as_rows(part)).x.double() for part in parts if part is not None)
    if train.ndim != 2:
        raise Error(f"a table has rows of numbers, these have the shape {tuple(train.shape[1:])}")
    names = tuple(map(str, getattr(data, "columns", ()))) or _numbered(train.shape[1])
    values = (_there(column) for column in torch.cat([train, *others]).mT)
    columns = zip(names, values, train.mT, strict=True)
    return Proposal(
        {
            name: _named(levels[name]) if name in levels else _choose(every, _there(column))
            for name, every, column in columns
        }
    )


def settled(
    table: Any, names: tuple[str, ...], proposed: Callable[[], Mapping[str, Any]], path: str
) -> Any:
    """The table of a model with all columns decided, and in the order of the data.

    Args:
        table: of the model, choices still lists.
        names: of the columns of the data, empty where they have none.
        proposed: what "auto" stands for.
        path: where the table stands.

    Raises:
        Error: columns that the data do not have, or columns of the data that are not declared.
    """
    if isinstance(table, list):
        return [settled(item, names, proposed, path) for item in table]
    if not isinstance(table, Mapping):
        return table
    table = {key: settled(item, names, proposed, f"{path}.{key}") for key, item in table.items()}
    columns = table.get("columns")
    if table.get("kind") != Columns.kind or columns is None:
        return table

    def decided(columns: Any) -> Any:
        if isinstance(columns, list):
            return [decided(choice) for choice in columns]
        if columns == AUTO:
            return proposed()
        if isinstance(columns, Mapping):
            _refuse_others(columns, names or tuple(columns), f"{path}.columns")
            return {name: _table(columns[name]) for name in names or columns}
        return columns

    return table | {"columns": decided(columns)}


def _table(family: Any) -> Any:
    """A bare kind as a table: TOML writes the tables of a table last, in another order."""
    return {"kind": family} if isinstance(family, str) else family


def _refuse_others(columns: Mapping[str, Any], names: tuple[str, ...], path: str) -> None:
    for name in names:
        if name not in columns:
            raise Error(f"the column '{name}' of the data has no family here", path)
    for name in columns:
        if name not in names:
            raise Error(f"the data have no column '{name}': they have {', '.join(names)}", path)


def _numbered(columns: int) -> tuple[str, ...]:
    return tuple(f"x{index}" for index in range(columns))


def _there(column: Tensor) -> Tensor:
    return column[~column.isnan()]


def _named(levels: tuple[str, ...]) -> Choice:
    """For a category, whose codes have names."""
    words = f"a category: {', '.join(levels[:4])}{', ...' if len(levels) > 4 else ''}"
    if len(levels) <= 2:
        return Choice({"kind": "bernoulli"}, words)
    return Choice({"kind": "categorical", "classes": len(levels)}, words)


def _choose(values: Tensor, training: Tensor) -> Choice:
    """For all values of a column, and those in training rows, both without the missing ones."""
    if not len(training):
        return Choice({"kind": "normal"}, "no value to judge by")
    low, high = values.min().item(), values.max().item()
    if (values == values.round()).all() and values.abs().max() < 2**20:
        return _whole(int(low), int(high), training)
    return _real(low, high, training)


def _whole(low: int, high: int, x: Tensor) -> Choice:
    span = f"whole numbers from {low} to {high}"
    logistic = {"kind": "discretized-logistic", "levels": max(high - low, 1) + 1, "lowest": low}
    if low < 0:
        return Choice(logistic, f"{span}, some below zero")
    if high <= 1:
        return Choice({"kind": "bernoulli"}, "zeros and ones")
    if high < FEW:
        words = f"{span}, few enough for a probability each"
        return Choice({"kind": "categorical", "classes": high + 1}, words)
    dispersion = (x.var(correction=0) / x.mean().clamp(min=1e-9)).item()
    chance = 4 * math.sqrt(2 / len(x))
    if dispersion < min(0.5, 1 - chance):
        return Choice(logistic, f"{span}, too close together for counts")
    if dispersion > 1 + chance:
        words = f"counts with a variance of {dispersion:.3g} times the mean"
        return Choice({"kind": "negative-binomial"}, words)
    return Choice({"kind": "poisson"}, "counts with a variance of about the mean")


def _real(low: float, high: float, x: Tensor) -> Choice:
    span = f"from {low:.3g} to {high:.3g}"
    if low > 0 and high < 1 and high - low > 0.5:
        return Choice({"kind": "beta"}, f"fractions {span}")
    centred = x - x.mean()
    skewness = (centred**3).mean() / centred.square().mean().clamp(min=1e-300) ** 1.5
    if low > 0 and skewness > SKEWED:
        kind, other = sorted(_positive(x), reverse=True)
        words = (
            f"positive, skewness {skewness:.2g}, {kind[0] - other[0]:.2g} nats above {other[1]}"
        )
        return Choice({"kind": kind[1]}, words)
    return Choice({"kind": "normal"}, f"real numbers {span}")


def _positive(x: Tensor) -> Iterator[tuple[float, str]]:
    """E log p(x) of the families over positive numbers, each at its best, and their kinds.

    The concentration of the gamma is the approximation in Estimating a Gamma distribution (Minka,
    2002).
    """
    log_x, log_mean = x.log(), x.mean().log()
    mean, scale = log_x.mean(), log_x.std(correction=0)
    yield (-mean - scale.log() - 0.5 * math.log(2 * math.pi * math.e)).item(), "log-normal"
    s = log_mean - mean
    k = (3 - s + ((s - 3).square() + 24 * s).sqrt()) / (12 * s)
    yield (k * (k.log() - log_mean - 1) + (k - 1) * mean - k.lgamma()).item(), "gamma"
