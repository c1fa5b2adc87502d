r"""Tables whose columns are of different kinds: an age, a sex, a number of visits.

Each column has a family of its own, and given h they are independent,

    log p(x | h) = \sum_i log p_i((x_i - m_i) / u_i | h_i) - log u_i .

What ties the columns together is the latent, from which the decoder makes all h_i. Such a number
is a density in the real columns and a probability in the others, so its measure is told column by
column, and only models that agree on every one can be compared.

A network is no good at numbers like 40 000, so columns of real and of positive numbers are counted
in units of their own, of which the sum above has the Jacobian: m and u are the mean and the
standard deviation of a column of real numbers; for positive ones m = 0 and u is the mean.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Annotated, Any

import pyro.distributions as dist
import torch
from pydantic import BeforeValidator, Field, PositiveInt, WithJsonSchema
from torch import Size, Tensor, nn
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from pyrovae.batch import Batch
from pyrovae.distributions import Joint, Present, columnwise
from pyrovae.errors import Error
from pyrovae.families.categorical import Categorical
from pyrovae.families.continuous import Normal
from pyrovae.families.counts import Poisson
from pyrovae.families.discrete import Bernoulli
from pyrovae.families.family import Family
from pyrovae.transforms import spread

AUTO = "auto"


def _declared(value: Any) -> Any:
    if value == AUTO:
        raise Error(
            "'auto' is for spec files, where the data decide; in Python pass the columns of "
            "pyrovae.propose(data)"
        )
    return value


Parts = Annotated[
    dict[str, Family],
    Field(min_length=1),
    BeforeValidator(_declared),
    WithJsonSchema(
        {
            "anyOf": [
                {"enum": [AUTO]},
                {"type": "object", "additionalProperties": {"role": "Family"}, "minProperties": 1},
            ]
        }
    ),
]


class Columns(Family):
    r"""A table whose columns are of different kinds, p(x | h) = \prod_i p_i(x_i | h_i).

    Args:
        columns: the name of each column, in the order of the data, and its family. In a spec file
            the order is that of the data, where these have names, and "auto" takes what
            `pyrovae.propose` proposes.
        embedding: how many learned numbers an encoder sees of a class; its one-hot code unless
            given.

    Example:
        >>> table = Columns(columns={"age": "normal", "smoker": "bernoulli", "visits": "poisson"})
        >>> table.setup((3,))
        >>> table.measure
        'mixed (age: lebesgue, smoker: counting, visits: counting)'
    """

    columns: Parts
    embedding: PositiveInt | None = None

    def __post_init__(self) -> None:
        self.parts = nn.ModuleList(self.columns.values())

    def setup(self, event: tuple[int, ...]) -> None:
        if tuple(event) != (len(self.columns),):
            raise Error(
                f"rows have the shape {tuple(event)}, and the columns declared are "
                f"{len(self.columns)}: declare a family for each column of the data",
                "columns",
            )
        self.event = Size(event)
        self.shift, self.unit = nn.Buffer(torch.zeros(event)), nn.Buffer(torch.ones(event))
        self.embeddings = nn.ParameterDict()
        for name, part in self.columns.items():
            with _naming(name):
                part.setup((1,))
                _refuse_rows(part)
        self.params = Size((sum(self._sizes),))
        for index, part in enumerate(self.columns.values()):
            if self.embedding and part.support.is_discrete and part.seen != part.event:
                table = torch.randn(part.seen.numel(), self.embedding)
                self.embeddings[str(index)] = nn.Parameter(table)

    @property
    def _sizes(self) -> list[int]:
        """How many of a network's outputs each column takes."""
        return [part.params.numel() for part in self.columns.values()]

    def _outputs(self, h: Tensor) -> Iterator[Tensor]:
        """What of a network's output is each column's."""
        columns = zip(self.columns.values(), h.split(self._sizes, -1), strict=True)
        return (own.unflatten(-1, part.params) for part, own in columns)

    def _entries(self, x: Tensor) -> Iterator[tuple[Family, Tensor]]:
        """Each column's family and entries, `(..., 1)`, in the column's units."""
        inside = ((x - self.shift) / self.unit).split(1, -1)
        return zip(self.columns.values(), inside, strict=True)

    def _joint(self, columns: Iterable[dist.Distribution]) -> dist.Distribution:
        return Joint(list(columns), self.shift, self.unit).to_event(1)

    def forward(self, h: Tensor) -> dist.Distribution:
        columns = zip(self.columns.values(), self._outputs(h), strict=True)
        return self._joint(part(own) for part, own in columns)

    def _batches(self, batch: Batch) -> Iterator[tuple[Family, Batch]]:
        """Each column's family and rows; size factors for those that take them."""
        for part, x in self._entries(batch.x):
            own = batch.replace(x=x)
            yield part, own if part.conditions else replace(own, offset=None)

    def given(self, h: Tensor, batch: Batch) -> dist.Distribution:
        columns = zip(self._batches(batch), self._outputs(h), strict=True)
        return self._joint(part.given(own, rows) for (part, rows), own in columns)

    def present(self, p: dist.Distribution) -> dist.Distribution:
        return Present(p, self.inside)

    @property
    def inside(self) -> Tensor:  # type: ignore[override]
        """A number inside the support of each column, shape `event`."""
        inside = self.shift.new_tensor([part.inside for part in self.columns.values()])
        return self.shift + self.unit * inside

    def check(self, batch: Batch) -> None:
        if not self.conditions:
            super().check(batch)
        for name, (part, rows) in zip(self.columns, self._batches(batch), strict=True):
            with _naming(name):
                part.check(rows)

    @torch.no_grad()
    def start(self, x: Tensor) -> None:
        for index, part in enumerate(self.columns.values()):
            if part.support is constraints.real:
                self.shift[index], self.unit[index] = x[:, index].mean(), spread(x[:, index])
            elif part.support is constraints.positive:
                self.unit[index] = x[:, index].mean()
        for part, entries in self._entries(x):
            part.start(entries)

    def marginal(self, batch: Batch) -> Tensor:
        """That of each column; zeros for one that begins anywhere."""
        own = [part.marginal(rows) for part, rows in self._batches(batch)]
        columns = zip(own, self._sizes, strict=True)
        return torch.cat(
            [self.unit.new_zeros(size) if h is None else h.flatten() for h, size in columns]
        )

    @property
    def seen(self) -> Size:
        return self._beside(part.seen for part in self.columns.values())

    @property
    def seen_missing(self) -> Size:
        return self._beside(part.seen_missing for part in self.columns.values())

    def _beside(self, codes: Iterable[Size]) -> Size:
        """The shape of the columns' codes side by side, classes embedded."""
        sizes = (
            (self.embedding if str(index) in self.embeddings else code.numel()) or 0
            for index, code in enumerate(codes)
        )
        return Size((sum(sizes),))

    def encode(self, x: Tensor) -> Tensor:
        """The codes of the columns, side by side."""
        return self._embedded(
            part.encode(entries).flatten(-len(part.seen)) for part, entries in self._entries(x)
        )

    def encode_missing(self, x: Tensor) -> Tensor:
        """Each column's own code with its own mask; a missing class is embedded as zeros."""
        return self._embedded(
            part.encode_missing(entries).flatten(-len(part.seen_missing))
            for part, entries in self._entries(x)
        )

    def _embedded(self, codes: Iterable[Tensor]) -> Tensor:
        tables = self.embeddings
        columns = ((str(index), code) for index, code in enumerate(codes))
        return torch.cat(
            [code @ tables[key] if key in tables else code for key, code in columns], -1
        )

    @property
    def exact_m_step(self) -> bool:
        return all(part.exact_m_step for part in self.columns.values())

    @property
    def fits_by_em(self) -> bool:
        return all(part.fits_by_em for part in self.columns.values())

    def prepare(self, batch: Batch) -> list[Any]:
        return [part.prepare(rows) for part, rows in self._batches(batch)]

    def densities(self, h: Tensor) -> Callable[[list[Any]], Tensor]:
        columns = zip(self.columns.values(), self._outputs(h), strict=True)
        each = [part.densities(own) for part, own in columns]

        def table(rows: list[Any]) -> Tensor:
            tables = [own(own_rows) for own, own_rows in zip(each, rows, strict=True)]
            return torch.stack(tables).sum(0) - self.unit.log().sum()

        return table

    def expect(self, rows: list[Any], r: Tensor, h: Tensor) -> list[Any]:
        columns = zip(self.columns.values(), rows, self._outputs(h), strict=True)
        return [part.expect(own_rows, r, own) for part, own_rows, own in columns]

    def improve(self, n: Tensor, t: list[Any], h: Tensor) -> Tensor:
        columns = zip(self.columns.values(), t, self._outputs(h), strict=True)
        better = (
            part.improve(n, sums, own).flatten(-len(part.params)) for part, sums, own in columns
        )
        return torch.cat(list(better), -1)

    @property
    def freedom(self) -> int:
        return sum(part.freedom for part in self.columns.values())

    def at_floor(self, h: Tensor) -> Tensor:
        columns = zip(self.columns.values(), self._outputs(h), strict=True)
        return torch.stack([part.at_floor(own) for part, own in columns]).any(0)

    def refuse_misfit(self, event: tuple[int, ...]) -> None:
        for name, part in self.columns.items():
            with _naming(name):
                part.refuse_misfit((1,))
        super().refuse_misfit(event)

    @property
    def support(self) -> Constraint:  # type: ignore[override]
        return columnwise([part.support for part in self.columns.values()])

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.columns)

    @property
    def takes(self) -> str:
        words: dict[str, list[str]] = {}
        for name, part in self.columns.items():
            words.setdefault(part.takes, []).append(name)
        return ", ".join(f"{takes} ({', '.join(names)})" for takes, names in words.items())

    @property
    def measure(self) -> str:
        measures = {name: part.measure for name, part in self.columns.items()}
        if len(set(measures.values())) == 1:
            return next(iter(measures.values()))
        return f"mixed ({', '.join(f'{name}: {kind}' for name, kind in measures.items())})"

    @property
    def conditions(self) -> str:
        return ", ".join(
            dict.fromkeys(filter(None, (p.conditions for p in self.columns.values())))
        )

    def extra_repr(self) -> str:
        return f"columns={list(self.columns)}, embedding={self.embedding}"

    @classmethod
    def examples(cls) -> Iterable["Columns"]:
        return (
            cls(columns={"age": Normal(), "smoker": Bernoulli(), "visits": Poisson()}),
            cls(columns={"smoker": Bernoulli(), "rank": Categorical(classes=4)}),
            cls(columns={"visits": Poisson()}),
        )


def _refuse_rows(part: Family) -> None:
    """Refuse a family that a column of single numbers cannot be of."""
    if part.support.event_dim:
        raise Error(f"{part.kind} takes {part.takes}, and a column holds one number")
    if "total" in part.conditions:
        raise Error(f"{part.kind} is given {part.conditions}: one number is its own total")


@contextmanager
def _naming(column: str) -> Iterator[None]:
    """An error of a column's family, with the column's name in its path."""
    try:
        yield
    except Error as error:
        raise error.under(f"columns.{column}") from None
