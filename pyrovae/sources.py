"""Where rows come from: the named sets and the readers of files, each of which gives a `Table`.

A reader is a function of a path, found by the file's suffix; a named set is a function without
arguments. Rows and columns are not interpreted here: what a value means is the likelihood's
business.
"""

import csv
import gzip
import io
import struct
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from pyrovae.columns import Cells, Levels, array, coded, numbers, values
from pyrovae.errors import Error
from pyrovae.part import unknown
from pyrovae.stored import is_file

MAPPED = 2**30
"""Bytes from which on the rows of an npy file stay in the file."""
R = TypeVar("R")
_IDX = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


@dataclass(frozen=True, eq=False)
class Table:
    """Rows with what is known about them.

    Args:
        name: of the set.
        x: the rows, shape `(rows, *event)`; cells of any kind until columns are chosen; the map
            of a file whose rows stay there.
        columns: their names, empty where there are none.
        official: how many of the last rows are the official test set, 0 where there is none.
        others: columns beside x, such as the class of each row, which are read when asked for.
        levels: of the columns that are categories.
    """

    name: str
    x: Cells
    columns: tuple[str, ...] = ()
    official: int = 0
    others: Mapping[str, Callable[[], Cells]] = field(default_factory=dict)
    levels: Mapping[str, Levels] = field(default_factory=dict)

    def column(self, name: str, path: str) -> Cells:
        """The cells of a column of x, or of one beside it.

        Raises:
            Error: the table has no such column.
        """
        self._refuse_unknown([name], (*self.columns, *self.others), path)
        if name in self.columns:
            return self.x[:, self.columns.index(name)]
        return self.others[name]()

    def choose(
        self,
        columns: tuple[str, ...] | None,
        categories: Collection[str] = (),
        without: Collection[str] = (),
    ) -> "Table":
        """These columns, as numbers.

        Args:
            columns: to choose; all unless given.
            categories: those whose levels become codes.
            without: those that are no part of x.

        Raises:
            Error: a column that the table does not have, or that holds something other than
                numbers and is no category.
        """
        self._refuse_unknown(columns or (), self.columns, "data.columns")
        self._refuse_unknown(categories, (*self.columns, *self.others), "data.categories")
        if both := [column for column in columns or () if column in without]:
            raise Error(f"column '{both[0]}' is what rows are given, and no part of x", "data")
        special = {*without, *categories}.intersection(self.columns)
        if columns is None and not special and self.x.dtype != object:
            return self
        names = self.columns or tuple(str(index + 1) for index in range(self.x.shape[1]))
        taken = (
            [index for index, name in enumerate(names) if name not in without]
            if columns is None
            else [names.index(name) for name in columns]
        )
        chosen = tuple(names[index] for index in taken)
        read = [self._read(index, names[index], categories) for index in taken]
        return replace(
            self,
            x=np.stack([cells for cells, _ in read], 1) if read else np.empty((len(self.x), 0)),
            columns=chosen if self.columns else (),
            levels={n: levels for n, (_, levels) in zip(chosen, read, strict=True) if levels},
        )

    def _read(self, index: int, name: str, categories: Collection[str]) -> tuple[Cells, Levels]:
        """A column as numbers, and its levels where it is a category."""
        cells = self.x[:, index]
        if name in categories:
            return coded(values(cells))
        if cells.dtype == object:
            what = f"column '{name}' of '{self.name}'"
            remedy = "choose columns, or name it in categories"
            cells = numbers(cells, what, "data.columns", remedy)
        return cells, ()

    def _refuse_unknown(self, names: Iterable[str], known: tuple[str, ...], path: str) -> None:
        for name in names:
            if name not in known:
                sentence = unknown("column", name, known)
                raise Error(sentence if known else "the columns have no names", path)


def table(data: Any, name: str = "array") -> Table:
    """The table of an array, a tensor or a data frame.

    Raises:
        Error: values that are not numbers.
    """
    if is_file(data):
        return Table(name, data)
    columns = tuple(map(str, data.columns)) if hasattr(data, "columns") else ()
    try:
        x = array(data)
    except ValueError as failure:
        raise Error(f"the rows of '{name}' make no array: {failure}", "data") from None
    if x.dtype.kind not in ("biufO" if columns else "biuf"):
        raise Error(f"the values of '{name}' are not numbers (their type is {x.dtype})", "data")
    if x.ndim < 2:
        raise Error(f"'{name}' should have the shape (rows, *x), got {x.shape}", "data")
    if x.dtype.kind == "f" and x.dtype.itemsize > 8:
        x = x.astype(np.float64)
    x = x.astype(x.dtype.newbyteorder("="))
    return Table(name, x, columns)


def named(name: str, path: str | None = None) -> Table:
    """A named set; `path` is the folder of mnist's files.

    Raises:
        Error: an unknown name, or a set that is not to be had.
    """
    if name not in NAMED:
        raise Error(unknown("data set", name, NAMED), "data.name")
    if name == "mnist":
        return _mnist(path)
    if path:
        raise Error(
            f"'{name}' ships with scikit-learn and needs no path; for a file leave the name out",
            "data.path",
        )
    return NAMED[name]()


def read(path: Path) -> Table:
    """The table in a file, by its suffix.

    Raises:
        Error: no such file, an unknown suffix, or contents that are not what the name says.
    """
    return _guarded(_by_suffix, path)


def _by_suffix(path: Path) -> Table:
    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    reader = READERS.get(suffix, _idx if "idx" in path.name else None)
    if reader is None:
        raise Error(
            f"'{path}' is of no known kind. Known: {', '.join(READERS)}, idx.", "data.path"
        )
    return reader(path)


def _guarded(reader: Callable[[Path], R], path: Path) -> R:
    """What the reader makes of the file; whatever is wrong with it ends in one sentence."""
    try:
        if not path.is_file():
            raise Error(f"there is no file '{path}'", "data.path")
        return reader(path)
    except Error:
        raise
    except Exception as failure:
        reason = (str(failure).splitlines() or [type(failure).__name__])[0]
        raise Error(f"'{path}' is not what its name says: {reason}", "data.path") from None


def _sklearn(name: str) -> Callable[[], Table]:
    def make() -> Table:
        from sklearn import datasets

        bunch = getattr(datasets, f"load_{name.replace('-', '_')}")()
        images = name == "digits"
        x = bunch.images[:, None] if images else bunch.data
        columns = () if images else tuple(map(str, bunch.feature_names))
        classes = bunch.target_names.astype(str)[bunch.target]
        return Table(name, x, columns, others={"target": lambda: classes})

    return make


def _mnist(path: str | None) -> Table:
    if path is None:
        return _openml()
    folder = Path(path)
    if not folder.is_dir():
        raise Error(f"there is no folder '{path}' with mnist's idx files", "data.path")
    files = [_find(folder, f"{part}-images", "idx3") for part in ("train", "t10k")]
    train, test = (_guarded(_idx, file).x for file in files)
    if train.shape[1:] != test.shape[1:]:
        raise Error(
            f"'{files[0]}' holds images of {train.shape[1:]}, '{files[1]}' of {test.shape[1:]}",
            "data.path",
        )
    x, others = np.concatenate([train, test])[:, None], {"target": lambda: _digits(folder)}
    return Table("mnist", x, official=len(test), others=others)


def _digits(folder: Path) -> Cells:
    """The class of each of mnist's images, as a word."""
    files = [_find(folder, f"{part}-labels", "idx1") for part in ("train", "t10k")]
    return np.concatenate([_guarded(_idx_values, file) for file in files]).astype(str)


def _find(folder: Path, stem: str, kind: str) -> Path:
    files = sorted(folder.glob(f"{stem}*"))
    if not files:
        raise Error(
            f"the folder '{folder}' has no file '{stem}-{kind}-ubyte', gzipped or not",
            "data.path",
        )
    return files[0]


def _openml() -> Table:
    from sklearn.datasets import fetch_openml

    try:
        with warnings.catch_warnings(action="ignore"):
            mnist = fetch_openml("mnist_784", version=1, as_frame=False, parser="liac-arff")
    except Exception as failure:
        raise Error(
            f"mnist could not be fetched from OpenML ({failure}): "
            "give the folder of its idx files as data.path",
            "data",
        ) from None
    x, others = mnist.data.reshape(-1, 1, 28, 28), {"target": lambda: mnist.target}
    return Table("mnist", x, official=10_000, others=others)


def _npy(path: Path) -> Table:
    with path.open("rb") as file:
        plain = file.read(6) == b"\x93NUMPY"
    if plain and path.stat().st_size >= MAPPED:
        return table(np.load(path, mmap_mode="r", allow_pickle=False), path.name)
    return table(np.load(io.BytesIO(_bytes(path)), allow_pickle=False), path.name)


def _npz(path: Path) -> Table:
    archive = np.load(io.BytesIO(_bytes(path)), allow_pickle=False)
    if not isinstance(archive, np.lib.npyio.NpzFile) or not archive.files:
        raise ValueError("it holds no arrays")
    return table(archive["x" if "x" in archive else archive.files[0]], path.name)


def _csv(path: Path) -> Table:
    reader = csv.reader(io.StringIO(_bytes(path).decode("utf-8-sig"), newline=None))
    lines = [(reader.line_num, row) for row in reader if row]
    if not lines:
        raise Error(f"'{path}' is empty", "data.path")
    first = lines[0][1]
    counted = first == [str(index) for index in range(len(first))]
    header = counted or not all(_is_number(cell) for cell in first)
    columns = tuple(cell.strip() for cell in first) if header else ()
    body = lines[header:]
    for number, row in body:
        if len(row) != len(first):
            raise Error(
                f"line {number} of '{path}' has {len(row)} cells, the first has {len(first)}",
                "data.path",
            )
    x = np.array([[_number(cell) for cell in row] for _, row in body], dtype=object)
    return Table(path.name, x.reshape(len(body), len(first)), columns)


def _is_number(cell: str) -> bool:
    return isinstance(_number(cell), float)


def _number(cell: str) -> float | str:
    if cell.strip().lower() in ("", "na", "null", "none"):
        return float("nan")
    try:
        return float(cell)
    except ValueError:
        return cell


def _parquet(path: Path) -> Table:
    try:
        import pandas
    except ImportError:
        raise Error(
            "reading parquet needs pandas and pyarrow: pip install 'pyrovae[pandas]'", "data.path"
        ) from None
    return table(pandas.read_parquet(io.BytesIO(_bytes(path))), path.name)


def _idx(path: Path) -> Table:
    return table(_idx_values(path), path.name)


def _idx_values(path: Path) -> Cells:
    """The idx format of MNIST: two zero bytes, a type, the number of sizes, sizes, values."""
    raw = _bytes(path)
    zero, kind, dimensions = struct.unpack(">HBB", raw[:4])
    if zero or kind not in _IDX or dimensions < 1:
        raise Error(f"'{path}' does not begin as an idx file does", "data.path")
    shape = struct.unpack(f">{dimensions}I", raw[4 : 4 + 4 * dimensions])
    cells = np.frombuffer(raw, _IDX[kind], offset=4 + 4 * dimensions)
    if cells.size != np.prod(shape):
        raise Error(f"'{path}' says {shape} and holds {cells.size} values", "data.path")
    return cells.reshape(shape)


def _bytes(path: Path) -> bytes:
    raw = path.read_bytes()
    return gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw


READERS: dict[str, Callable[[Path], Table]] = {
    ".csv": _csv,
    ".npy": _npy,
    ".npz": _npz,
    ".parquet": _parquet,
}
NAMED: dict[str, Callable[[], Table]] = {
    **{name: _sklearn(name) for name in ("breast-cancer", "digits", "iris", "wine")},
    "mnist": lambda: _mnist(None),
}
