"""A comparison on paper: the same rows of cells as text, Markdown, LaTeX and CSV, and a folder.

What people read is rounded to what the standard errors leave; what programs read has all digits.
The folder that `write_report` makes holds

    comparison.md, .tex     the table with its notes; LaTeX needs the package booktabs
    comparison.csv          its figures, one line a model
    results.json            the same as a tree, what was chosen, where the two best disagree
    pointwise.csv           log p(x) of each test row under each model
    disagreements.csv       the rows that the two best models disagree about most
    comparison.png          the differences from the best
    paired.png              the two best models, row by row
"""

import csv
import io
import math
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich import box, table
from rich.console import Console

from pyrovae.errors import Error
from pyrovae.files import write

if TYPE_CHECKING:
    from pyrovae.evaluate import Comparison

FILES = (
    "comparison.md",
    "comparison.tex",
    "comparison.csv",
    "results.json",
    "pointwise.csv",
    "disagreements.csv",
    "comparison.png",
    "paired.png",
)
"""What `write_report` can write."""

LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    **{character: f"${character}$" for character in "<>|"},
    "[": "{[}",  # after a line break it would begin an argument
}


@dataclass(frozen=True)
class Table:
    """Cells under column heads; the first column is text, the others are figures.

    Args:
        columns: the heads.
        rows: the cells of each row, as many as there are columns.
        notes: what has to be known to read it, a sentence each.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    notes: Sequence[str] = ()

    def __str__(self) -> str:
        grid = table.Table(*self.columns, box=box.SIMPLE_HEAD, pad_edge=False)
        for column in grid.columns[1:]:
            column.justify = "right"
        for row in self.rows:
            grid.add_row(*map(str, row))
        plain = partial(Console, color_system=None, markup=False, emoji=False)
        text, width = io.StringIO(), plain(width=10_000).measure(grid).maximum
        plain(file=text, width=width).print(grid)
        lines = filter(None, (line.rstrip() for line in text.getvalue().splitlines()))
        wrapped = partial(textwrap.fill, width=max(width, 80), break_on_hyphens=False)
        notes = map(wrapped, self.notes)
        return "\n".join([*lines, *([""] if self.notes else []), *notes])

    def markdown(self) -> str:
        """A table of GitHub's Markdown, the notes as paragraphs below."""
        rule = ["---"] + ["---:"] * (len(self.columns) - 1)
        body = ([_markdown(cell) for cell in row] for row in (self.columns, *self.rows))
        head, *rows = (f"| {' | '.join(row)} |\n" for row in body)
        notes = (f"\n{_markdown(note)}\n" for note in self.notes)
        return "".join([head, f"| {' | '.join(rule)} |\n", *rows, *notes])

    def latex(self) -> str:
        """A tabular with the rules of the package booktabs, the notes as comments above."""
        head, *rows = (
            f"{' & '.join(_latex(cell) for cell in row)} \\\\\n"
            for row in (self.columns, *self.rows)
        )
        spec = "l" + "r" * (len(self.columns) - 1)
        notes = "".join(f"% {note}\n" for note in self.notes)
        return (
            f"{notes}\\begin{{tabular}}{{{spec}}}\n\\toprule\n{head}\\midrule\n"
            f"{''.join(rows)}\\bottomrule\n\\end{{tabular}}\n"
        )

    def csv(self) -> str:
        """Comma-separated values, numbers with all their digits."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([self.columns, *self.rows])
        return text.getvalue()


def entries(name: str, event: Sequence[int]) -> list[str]:
    """The names of the entries of an event, such as `z[0]`."""
    return [f"{name}[{','.join(map(str, i))}]" for i in np.ndindex(*event)] if event else [name]


def uncertain(value: float, se: float, digits: int = 2) -> str:
    """A figure with its standard error, if it has one."""
    return f"{value:.{digits}f}" + ("" if math.isnan(se) else f" ± {se:.{digits}f}")


def _markdown(cell: Any) -> str:
    return re.sub(r"([\\`*_\[\]<|~$])", r"\\\1", str(cell))


def _latex(cell: Any) -> str:
    escaped = "".join(LATEX.get(character, character) for character in str(cell))
    return re.sub(r"^-(?=\d|inf)", "$-$", escaped)


def write_report(comparison: "Comparison", folder: Path | str) -> None:
    """Write a comparison to a folder, in all forms; see the top of `pyrovae.report`.

    What needs two models is left out where there is one.

    Args:
        comparison: what `compare` gives.
        folder: made if it is not there; files of these names are replaced.

    Raises:
        Error: the folder cannot be written.
    """
    from pyrovae import plots

    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as failure:
        raise Error(f"'{folder}' cannot be made: {failure.strerror}") from None
    write(folder / "comparison.md", comparison.to_markdown())
    write(folder / "comparison.tex", comparison.to_latex())
    write(folder / "comparison.csv", comparison.to_csv())
    write(folder / "results.json", comparison.to_json())
    write(folder / "pointwise.csv", comparison.pointwise().csv())
    if len(comparison.entries) > 1:
        write(folder / "disagreements.csv", comparison.disagreements().table().csv())
        write(folder / "comparison.png", png(plots.comparison(comparison).figure))
        write(folder / "paired.png", png(plots.paired(comparison).figure))


def png(figure: Any) -> bytes:
    """A figure of matplotlib as it stands in a png file."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=150)
    return content.getvalue()
