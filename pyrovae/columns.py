"""Columns: what the cells of a table become.

A cell is a number, a word, or nothing: NaN, `None`, an empty text. A column of numbers stays as it
is, NaN where there is nothing. A *category* has levels, in sorted order; its cells become their
codes 0, ..., C - 1, or C columns of zeros and ones, a one in the level's column, which is how a
network can read them: a code is a name, and 2 is not twice 1.
"""

from collections.abc import Sequence
from contextlib import suppress
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pyrovae.errors import Error

Cells = NDArray[Any]
Levels = tuple[str, ...]


def array(data: Any) -> Cells:
    """An array, a tensor, a data frame or lists as an array, NaN where a frame or a mask says so.

    Raises:
        ValueError: lists of different lengths.
    """
    if isinstance(data, Tensor):
        data = data.detach().cpu()
        data = (data.float() if data.is_floating_point() and data.itemsize < 4 else data).numpy()
    if isinstance(data, np.ma.MaskedArray):
        data = np.ma.filled(data.astype(float), np.nan)
    cells = np.array(data)
    if cells.dtype == object and hasattr(data, "isna"):
        cells[np.asarray(data.isna())] = np.nan
    return cells


def numbers(cells: Cells, what: str, path: str, remedy: str) -> NDArray[np.float64]:
    """The cells of a column as numbers.

    Raises:
        Error: one of them is a word.
    """
    if cells.dtype.kind in "biufOSU":
        with suppress(TypeError, ValueError):
            return cells.astype(float)
    others = (cell for cell in cells.tolist() if cell is not None and not _is_number(cell))
    word = next(others, cells[0])
    raise Error(f"{what} holds '{word}', no number: {remedy}", path)


def _is_number(cell: Any) -> bool:
    try:
        float(cell)
    except (TypeError, ValueError):
        return False
    return True


def has_words(cells: Cells) -> bool:
    """Whether a column holds text."""
    return cells.dtype.kind in "US" or any(isinstance(cell, str) for cell in cells.flat)


def values(cells: Cells) -> list[Any]:
    """The cells as numbers and words, `None` where there is nothing."""
    return [_value(cell) for cell in cells.tolist()]


def _value(cell: Any) -> Any:
    if isinstance(cell, Real):
        return cell if cell == cell else None
    word = "" if cell is None else str(cell).strip()
    return None if word in ("", "nan") else word


def coded(cells: Sequence[Any]) -> tuple[NDArray[np.float64], Levels]:
    """The codes of values, NaN where there is nothing, and the names of the levels."""
    found = {value for value in cells if value is not None}
    levels = sorted(found, key=lambda value: (isinstance(value, str), value))
    codes = {level: float(code) for code, level in enumerate(levels)}
    return np.array([codes.get(value, np.nan) for value in cells]), tuple(map(_name, levels))


def _name(level: Any) -> str:
    whole = isinstance(level, float) and level.is_integer()
    return str(int(level) if whole else level)


def indicators(codes: NDArray[np.float64], levels: int) -> NDArray[np.float64]:
    """Columns of zeros and ones, shape `(rows, levels)`; NaN where a code is."""
    columns = (codes[:, None] == np.arange(levels)).astype(float)
    columns[np.isnan(codes)] = np.nan
    return columns
