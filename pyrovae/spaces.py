"""What is searched: numbers between bounds, and values of lists, instead of the points of a grid.

    [search]
    trials = 20
    "train.learning_rate" = { low = 1e-4, high = 1e-2, log = true }
    "model.z" = { low = 2, high = 32 }
    "model.encoder.hidden" = [[64], [256, 128]]

A space of d numbers has too many points for a product, and most of them are bad. A search looks at
a few, chosen by those before, and takes the one with the highest log p(x) on the validation rows;
as after any choice, the figure on test rows is of one model and stays honest.

A number is whole where low, high and step are. Others are rounded to four digits, so that a point
is what its name says.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import NonNegativeInt, PositiveInt

from pyrovae.errors import Error
from pyrovae.models import Model
from pyrovae.part import Part, check, keywords
from pyrovae.variants import Steps, Tree, axes_of, merged, nested, types, varied

DIGITS = 4


@dataclass(frozen=True, kw_only=True)
class Range:
    """The numbers from low to high, both included.

    Args:
        low: the least.
        high: the greatest.
        step: from one to the next; 1 where all are whole and any number otherwise, unless given.
        log: whether equal ratios count alike, rather than equal differences.

    Raises:
        Error: no numbers in between, or such as there are none of.
    """

    low: int | float
    high: int | float
    step: int | float | None = None
    log: bool = False

    def __post_init__(self) -> None:
        low, high, step = self.low, self.high, self.step
        if not low < high or not math.isfinite(high - low):
            raise Error(f"low = {low} should be below high = {high}")
        if self.log and low <= 0:
            raise Error(f"low = {low} has no logarithm: begin above 0, or leave log out")
        if self.log and step is not None:
            raise Error("a range has a step or log = true, not both")
        if step is not None and not (step > 0 and _whole((high - low) / step)):
            raise Error(f"no number of steps of {step} leads from {low} to {high}")

    @property
    def whole(self) -> bool:
        """Whether the numbers are integers."""
        return all(isinstance(bound, int) for bound in (self.low, self.high, self.step or 1))

    def rounded(self, value: float) -> int | float:
        """A number of the range as it is used, with few digits."""
        if self.whole:
            return int(value)
        return min(max(float(f"{value:.{DIGITS}g}"), self.low), self.high)

    def table(self) -> Tree:
        """The table that declares it."""
        return {name: value for name, value in asdict(self).items() if value not in (None, False)}


Space = dict[Steps, list[Any] | Range]
"""What is varied, by the steps in the table of a model."""
Point = dict[Steps, Any]


@dataclass(frozen=True, kw_only=True)
class Search:
    """A search of the spaces of some models.

    Args:
        trials: how many points of each space are fitted.
        seed: of the points.
        batch: how many are chosen at a time, not knowing each other's figures; this many fits of
            each model can run side by side, and what is found does not depend on how many do.
        spaces: of the models that are searched, by name.
    """

    trials: int
    seed: int
    batch: int
    spaces: dict[str, Space]

    def table(self, place: Mapping[str, Steps]) -> Tree:
        """The table that declares it, given the steps to each model."""
        tree: Tree = {"trials": self.trials, "seed": self.seed, "batch": self.batch}
        for name, space in self.spaces.items():
            for steps, values in space.items():
                declared = values.table() if isinstance(values, Range) else values
                tree = merged(tree, nested((*place[name], *steps), declared))
        return tree


def settings(
    *, trials: PositiveInt = 20, seed: NonNegativeInt = 0, batch: PositiveInt = 4
) -> None:
    """The entries of [search] that are no paths, as the arguments of a function are declared."""


def spaces(search: Tree, names: list[str]) -> tuple[Tree, dict[str, Space]]:
    """The settings of a search, and the space of each model.

    Args:
        search: the table [search].
        names: of the models; none for the one [model].

    Raises:
        Error: wrong settings, a range without numbers, a path to no field of a model.
    """
    fields = keywords(settings)
    own = {name: value for name, value in search.items() if name in fields.model_fields}
    paths = {name: value for name, value in search.items() if name not in own}
    found: Space = varied(paths, "search", _values)
    if not found:
        raise Error("has nothing to vary: add a dotted path to a range or a list", "search")
    return check(fields, own, "search"), axes_of(found, names, "search")


def _values(value: Any, path: str) -> list[Any] | Range | None:
    """The values that are declared, `None` for a table of longer paths."""
    if isinstance(value, list) and value:
        return value
    if not isinstance(value, Mapping):
        raise Error(
            f"should be a list, or a range such as {{ low = 1, high = 8 }}, got {value!r}", path
        )
    if value and all(isinstance(inner, (Mapping, list)) for inner in value.values()):
        return None
    try:
        return Range(**check(keywords(Range), value))
    except Error as error:
        raise error.under(path) from None


def probes(space: Space, table: Tree) -> list[Point]:
    """A few points that have every value of every list, and both ends of every range."""
    values = {
        steps: found if isinstance(found, list) else [found.low, found.high]
        for steps, found in space.items()
    }
    decisions = (
        {steps: found[min(i, len(found) - 1)] for steps, found in values.items()}
        for i in range(max(map(len, values.values())))
    )
    return [point(decision, table, space) for decision in decisions]


def point(decision: Mapping[Steps, Any], table: Tree, space: Space) -> Point:
    """A decision as the table of a model takes it: a number becomes a list where one belongs.

    In a list of several numbers it takes the place of each.
    """

    def entry(steps: Steps, value: Any) -> Any:
        if isinstance(space[steps], list):
            return value
        there = _list_at(Model, table, steps)
        return value if there is None else [value] * max(1, len(there))

    return {steps: entry(steps, value) for steps, value in decision.items()}


def _list_at(role: type[Part], table: Any, steps: Steps) -> list[Any] | None:
    """The list in a field that takes one, `None` for other fields."""
    table = {"kind": table} if isinstance(table, str) else table
    member = role.members.get(str(table.get("kind"))) if isinstance(table, Mapping) else None
    field = member.fields.model_fields.get(steps[0]) if member else None
    if not field:
        return None
    allowed = list(types(field.annotation))
    value = table.get(steps[0], field.get_default(call_default_factory=True))
    if len(steps) == 1:
        there = list(value) if isinstance(value, (list, tuple)) else []
        return there if tuple in allowed else None
    inner = next((t for t in allowed if isinstance(t, type) and issubclass(t, Part)), None)
    return _list_at(inner, value, steps[1:]) if inner else None


def _whole(value: float) -> bool:
    return math.isclose(value, round(value), rel_tol=1e-9)
