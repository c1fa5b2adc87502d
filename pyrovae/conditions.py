"""What rows are given, beside x: a context to condition on, labels, size factors.

Each is named by columns of the data, which then are no part of x, or is an array with one row for
each row of the data. Numbers of a context stay as they are, its words become columns of zeros and
ones, one for each level. Only x and labels can be missing.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import PlainValidator, WithJsonSchema
from torch import Tensor

from pyrovae.columns import Cells, Levels, array, coded, has_words, indicators, numbers, values
from pyrovae.errors import Error
from pyrovae.sources import Table


def _context_given(value: Any) -> Any:
    if isinstance(value, str) or (isinstance(value, tuple) and not value):
        raise Error(
            f"should be a list of column names, such as ['age'], or an array, got {value!r}"
        )
    return value


Context = Annotated[
    Any,
    PlainValidator(_context_given),
    WithJsonSchema({"type": "array", "items": {"type": "string"}, "minItems": 1}),
]
Column = Annotated[Any, WithJsonSchema({"type": "string"})]


@dataclass(frozen=True, eq=False)
class Conditions:
    """What rows are given.

    Args:
        entries: `context`, `labels` and `offset` of a batch, those that there are.
        columns: that are named, and no part of x.
        classes: the names of the labels' levels.
        levels: of the columns of the context that are categories.
    """

    entries: dict[str, Tensor]
    columns: frozenset[str]
    classes: Levels
    levels: dict[str, Levels]


def conditions(
    table: Table, context: Any, labels: Any, offset: Any, categories: Collection[str]
) -> Conditions:
    """The context, labels and size factors of all rows of a table.

    Raises:
        Error: an unknown column, another number of rows, a context that is incomplete, labels
            that are not whole numbers or words, an offset that is not positive.
    """
    entries: dict[str, Tensor] = {}
    classes: Levels = ()
    levels: dict[str, Levels] = {}
    named = [name for name in (labels, offset) if isinstance(name, str)]
    if context is not None:
        entries["context"], levels = _context(table, context, categories)
        named += context if _is_names(context) else ()
    if labels is not None:
        entries["labels"], classes = _labels(_column(table, labels, "labels"))
    if offset is not None:
        what = f"column '{offset}'" if isinstance(offset, str) else "the array"
        entries["offset"] = _offset(_column(table, offset, "offset"), what)
    return Conditions(entries, frozenset(named), classes, levels)


def _is_names(given: Any) -> bool:
    return isinstance(given, tuple) and all(isinstance(name, str) for name in given)


def _rows(table: Table, given: Any, name: str) -> Cells:
    """An array with as many rows as the table."""
    try:
        cells = array(np.array(given, dtype=object) if isinstance(given, tuple) else given)
    except ValueError as failure:
        raise Error(f"makes no array: {failure}", f"data.{name}") from None
    if cells.ndim == 0 or len(cells) != len(table.x):
        raise Error(
            f"should be named by a column, or have one row for each of the {len(table.x)} rows of "
            f"'{table.name}', not {len(cells) if cells.ndim else repr(given)}",
            f"data.{name}",
        )
    return cells


def _column(table: Table, given: Any, name: str) -> Cells:
    """One cell for each row of the table."""
    if isinstance(given, str):
        return table.column(given, f"data.{name}")
    cells = _rows(table, given, name)
    cells = cells[:, 0] if cells.ndim == 2 and cells.shape[1] == 1 else cells
    if cells.ndim != 1:
        raise Error(f"should have the shape (rows,), got {cells.shape}", f"data.{name}")
    return cells


def _labels(cells: Cells) -> tuple[Tensor, Levels]:
    known = [None if value == -1 else value for value in values(cells)]
    for value in known:
        if not (value is None or isinstance(value, str) or float(value).is_integer()):
            raise Error(f"should be whole numbers or words, got {value:g}", "data.labels")
    codes, classes = coded(known)
    if len(classes) < 2:
        raise Error(
            f"should name two classes or more, got {len(classes)}: where it is NaN, empty or -1 a "
            "label is missing",
            "data.labels",
        )
    return torch.as_tensor(np.nan_to_num(codes, nan=-1)).long(), classes


def _offset(cells: Cells, what: str) -> Tensor:
    factors = numbers(cells, what, "data.offset", "size factors are positive numbers")
    if len(bad := np.flatnonzero(~((factors > 0) & np.isfinite(factors)))):
        raise Error(
            f"size factors are positive numbers, got {factors[bad[0]]:g} in row {bad[0]}",
            "data.offset",
        )
    return torch.as_tensor(factors)


def _context(
    table: Table, given: Any, categories: Collection[str]
) -> tuple[Tensor, dict[str, Levels]]:
    """The context, shape `(rows, *context)`, and the levels of its categories."""
    if _is_names(given):
        columns = {name: table.column(name, "data.context") for name in given}
    else:
        cells = _rows(table, given, "context")
        if cells.ndim > 2:
            whole = numbers(cells.reshape(-1), "it", "data.context", "beyond columns use numbers")
            return _complete(whole.reshape(cells.shape), ""), {}
        cells = cells[:, None] if cells.ndim == 1 else cells
        names = getattr(given, "columns", range(1, 1 + cells.shape[1]))
        columns = dict(zip(map(str, names), cells.T, strict=True))
    levels: dict[str, Levels] = {}
    parts = []
    for name, cells in columns.items():
        if name in categories or has_words(cells):
            codes, levels[name] = coded(values(cells))
            part = indicators(codes, len(levels[name]))
        else:
            part = numbers(cells, f"column '{name}'", "data.context", "use numbers or words")
        parts.append(_complete(part.reshape(len(part), -1), f"column '{name}' of "))
    return torch.cat(parts, 1), levels


def _complete(part: Any, what: str) -> Tensor:
    if len(bad := np.flatnonzero(~np.isfinite(part).reshape(len(part), -1).all(1))):
        raise Error(
            f"{what}the context has no finite value in {len(bad)} rows, first row {bad[0]}: only "
            "x and labels can be missing",
            "data.context",
        )
    return torch.as_tensor(part)
