"""Comparisons on paper: Markdown and LaTeX that others can read, CSV and JSON with all digits."""

import csv
import json
import math
import re

import numpy as np
import pytest
import torch
from markdown_it import MarkdownIt

from pyrovae import Mixture, Seeds, compare, write_report
from pyrovae.report import FILES, Table

WILD = r"[a]_b & 50% #1 ${x}^2~\y <|> `*z*`"
TABLE = Table(("model", "log p(x)", "weight"), [(WILD, "-1.20 ± 0.30", "-"), ("b-2", "-inf", "1")])


@pytest.fixture(scope="module")
def comparison():
    torch.manual_seed(0)
    models = {
        "the_first": Mixture(x=(2,), components=3),
        WILD: Seeds([Mixture(x=(2,), family="normal"), Mixture(x=(2,), family="normal")]),
    }
    return compare(models, torch.randn(40, 2), seconds={"the_first": 1.5})


def parsed(text):
    """The cells of the one table of a Markdown text, as a reader sees them."""
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render(text)
    rows = re.findall(r"<tr>(.*?)</tr>", html, re.DOTALL)
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows]
    names = {"&amp;": "&", "&lt;": "<", "&gt;": ">"}
    return [[re.sub(r"&\w+;", lambda m: names[m[0]], cell) for cell in row] for row in cells]


def test_markdown_is_read_as_it_was_meant():
    assert parsed(TABLE.markdown()) == [list(row) for row in (TABLE.columns, *TABLE.rows)]
    assert TABLE.markdown().splitlines()[1] == "| --- | ---: | ---: |"
    assert not parsed(TABLE.markdown().replace("| ---: |", ""))  # what is no table is not taken


def test_notes_follow_in_every_form():
    table = Table(("a", "b"), [("1", "2")], ("One _of_ 50%.", "Two."))
    assert str(table).endswith("\n\nOne _of_ 50%.\nTwo.")
    assert table.markdown().endswith("| 1 | 2 |\n\nOne \\_of\\_ 50%.\n\nTwo.\n")
    assert table.latex().startswith("% One _of_ 50%.\n% Two.\n\\begin{tabular}{lr}\n")


def test_latex_is_a_tabular_without_a_special_character():
    text = TABLE.latex()
    lines = text.splitlines()
    assert lines[:2] == [r"\begin{tabular}{lrr}", r"\toprule"]
    assert lines[3::3] == [r"\midrule", r"\bottomrule"]
    assert lines[-1] == r"\end{tabular}"
    name = (
        r"{[}a]\_b \& 50\% \#1 \$\{x\}\textasciicircum{}2\textasciitilde{}\textbackslash{}y "
        r"$<$$|$$>$ `*z*`"
    )
    assert lines[4] == rf"{name} & $-$1.20 $\pm$ 0.30 & - \\"
    assert lines[5] == r"b-2 & $-$inf & 1 \\"
    for line in (lines[2], *lines[4:6]):
        assert len(re.findall(r"(?<!\\)&", line)) == 2
        assert not re.search(r"(?<!\\)[%#_]", line)
    opened, closed = (len(re.findall(rf"(?<!\\){brace}", text)) for brace in "{}")
    assert opened == closed


def test_text_keeps_names_as_they_are():
    text = str(Table(("model", "[b]x[/b]"), [("[bold]a[/bold] :smile:", "1")]))
    assert "[bold]a[/bold] :smile:" in text
    assert "[b]x[/b]" in text


def test_the_csv_has_all_digits(comparison):
    rows = {row["model"]: row for row in csv.DictReader(comparison.to_csv().splitlines())}
    assert list(rows) == [entry.name for entry in comparison.entries]
    for name, row in rows.items():
        entry = comparison[name]
        assert float(row["mean"]) == entry.result.mean
        assert float(row["difference_se"]) == entry.difference_se
        assert float(row["weight"]) == comparison.weights[name]
        assert int(row["parameters"]) == entry.model.parameter_count
        assert int(row["seeds"]) == len(entry.results)
    assert float(rows[WILD]["seed_sd"]) == comparison[WILD].seed_sd > 0
    assert math.isnan(float(rows["the_first"]["seed_sd"]))


def test_the_json_is_the_summary(comparison):
    tree = json.loads(comparison.to_json())
    assert list(tree) == ["models", "chosen", "weights", "disagreements"]
    assert (
        tree["models"]["the_first"]["log_likelihood"]["mean"]
        == comparison["the_first"].result.mean
    )
    assert tree["models"]["the_first"]["seed_sd"] is None
    assert tree["models"][WILD]["seed_means"] == [r.mean for r in comparison[WILD].results]
    assert sum(tree["weights"].values()) == pytest.approx(1)
    first = comparison.disagreements().rows[0]
    assert tree["disagreements"]["rows"][0] == {
        "row": first.row,
        "a": first.a,
        "b": first.b,
        "difference": first.difference,
    }


def test_the_table_is_the_same_in_every_form(comparison):
    text, markdown = str(comparison), parsed(comparison.to_markdown())
    assert markdown[0] == list(comparison.table().columns)
    for row in markdown[1:]:
        assert all(cell in text for cell in row)
    assert len(comparison.to_latex().splitlines()) == 8 + len(comparison.table().notes)


def test_a_report_is_a_folder(comparison, tmp_path):
    folder = tmp_path / "new" / "report"
    write_report(comparison, str(folder))
    assert {path.name for path in folder.iterdir()} == set(FILES)
    assert (folder / "comparison.md").read_text("utf-8") == comparison.to_markdown()
    assert (folder / "comparison.tex").read_text("utf-8") == comparison.to_latex()
    assert (folder / "comparison.csv").read_text("utf-8") == comparison.to_csv()
    assert (folder / "results.json").read_text("utf-8") == comparison.to_json()
    for name in ("comparison.png", "paired.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    head, *rows = csv.reader((folder / "pointwise.csv").read_text("utf-8").splitlines())
    assert head == ["row", *(entry.name for entry in comparison.entries)]
    columns = np.array(rows, dtype=float).T
    assert columns[0].tolist() == list(range(40))
    for entry, column in zip(comparison.entries, columns[1:], strict=True):
        assert (column == entry.result.value).all()
    lines = (folder / "disagreements.csv").read_text("utf-8").splitlines()
    assert len(lines) == 11
    assert float(next(csv.reader(lines[1:]))[-1]) == comparison.disagreements().rows[0].difference


def test_a_report_on_one_model_leaves_out_what_needs_two(tmp_path):
    alone = compare({"alone": Mixture(x=(2,))}, torch.randn(20, 2))
    write_report(alone, tmp_path)
    pairs = {"disagreements.csv", "comparison.png", "paired.png"}
    assert {path.name for path in tmp_path.iterdir()} == set(FILES) - pairs
    assert "weight" not in str(alone)
    assert json.loads(alone.to_json())["disagreements"] is None


def test_a_folder_that_cannot_be_made_is_an_error(comparison, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"file/below' cannot be made: Not a directory"):
        write_report(comparison, tmp_path / "file" / "below")
