"""The members of every role, read off their classes: fields, first lines, references.

A docstring cites a paper as `Title of the Paper (Ba, Kiros & Hinton, 2016, https://...).`, or
`Kim et al.`; the address can be left out. The tables of the README are made of these lines, so a
member is in them as soon as it exists.
"""

import copy
import inspect
import re
import unicodedata
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Group
from rich.table import Table

import pyrovae.evaluate
import pyrovae.models
import pyrovae.objectives
import pyrovae.optimizers
import pyrovae.schedules  # noqa: F401
from pyrovae.errors import Error
from pyrovae.families import Family
from pyrovae.part import Part, encode, json_schema, roles, unknown

__all__ = ["catalogue", "fields", "filled", "malformed", "markdown", "references", "roles"]

_NAME = r"[^\W\d_][\w'.-]*(?: [\w'.-]+){0,2}"
_CITED = re.compile(
    rf"(?P<title>[^()]+) \((?P<authors>{_NAME}(?: et al\.|(?:, {_NAME})* & {_NAME})?),"
    r" (?P<year>(?:19|20)\d\d)(?:, (?P<url>https?://\S+))?\)\."
)
MARKS = ("<!-- members: made by `make docs` -->", "<!-- end of members -->")
"""Between these the README has the tables."""
_SIGNS = {"sum": "\N{N-ARY SUMMATION}", "prod": "\N{N-ARY PRODUCT}", "int": "\N{INTEGRAL}"}
_FIRST = (
    "prior",
    "family",
    "network",
    "model",
    "layer",
    "refinement",
    "objective",
    "optimizer",
    "schedule",
    "estimator",
    "sampler",
    "transform",
)


@dataclass(frozen=True)
class Reference:
    """A paper that a docstring cites.

    Args:
        title: of the paper.
        authors: the family names, as cited.
        year: of publication.
        url: where it is, if said.
    """

    title: str
    authors: str
    year: str
    url: str | None


def references(docstring: str) -> list[Reference]:
    """The papers that a docstring cites in its description, above `Args:`."""
    return _cited(re.split(r"\n\s*(?:Args|Example):", docstring)[0])[0]


def malformed(docstring: str) -> list[str]:
    """What looks like a reference in a docstring, and is not in the form that can be read."""
    return _cited(docstring)[1]


def _cited(text: str) -> tuple[list[Reference], list[str]]:
    found, strange = [], []
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        for sentence in re.split(r"(?<=\.) ", " ".join(paragraph.split())):
            match = _CITED.fullmatch(sentence)
            if match and not re.match("[a-z]+[ :]", match["title"]):
                found.append(Reference(**match.groupdict()))
            elif re.search(r"\([^()]*, (?:19|20)\d\d\b", sentence):
                strange.append(sentence)
    return found, strange


def catalogue(role: str | None = None) -> Group:
    """A table for each role, or for one: kind, summary, fields with their types and defaults.

    Raises:
        Error: an unknown role.
    """
    known = roles()
    if role is not None and role not in known:
        raise Error(unknown("role", role, known))
    return Group(*(_table(name, known[name]) for name in sorted(known) if role in (None, name)))


def _table(name: str, role: type[Part]) -> Table:
    table = Table(title=f"{name}: {role.summary()}", title_justify="left", show_lines=True)
    table.add_column(name, no_wrap=True)
    table.add_column("summary")
    table.add_column("fields")
    for kind in sorted(role.members):
        member = role.members[kind]
        table.add_row(kind, member.summary(), "\n".join(fields(member)))
    return table


def markdown() -> str:
    """A table for each role: the package's own members, what they are, and the paper."""
    known = {name: role for name, role in roles().items() if _own(role)}
    names = [name for name in _FIRST if name in known]
    names += sorted(known.keys() - set(names))
    return "\n\n".join(_section(name, known[name]) for name in names)


def filled(text: str) -> str:
    """A text with what stands between `MARKS` made anew; `make docs` does it to the README."""
    before, rest = text.split(MARKS[0])
    return f"{before}{MARKS[0]}\n\n{markdown()}\n\n{MARKS[1]}{rest.split(MARKS[1])[1]}"


def _section(name: str, role: type[Part]) -> str:
    what = role.summary().split(". ")[0].rstrip(".").removeprefix("The role of ")
    head = (name, "what it is", *(("entries", "guide") if role is Family else ()), "paper", "year")
    rows = [_row(member) for _, member in sorted(role.members.items()) if _own(member)]
    lines = (" | ".join(row) for row in (head, ["---"] * len(head), *rows))
    return "\n".join([f"### {name}: {what}", "", *(f"| {line} |" for line in lines)])


def _own(part: type[Part]) -> bool:
    return part.__module__.startswith("pyrovae.")


def _row(member: type[Part]) -> tuple[str, ...]:
    cited = references(member.__doc__ or "")
    titles = [f"[{paper.title}]({paper.url})" if paper.url else paper.title for paper in cited]
    return (
        f"`{member.kind}`",
        re.sub(r"\\([A-Za-z]+)", _symbol, member.summary()).rstrip(".").replace("|", r"\|"),
        *(_use(member) if issubclass(member, Family) else ()),
        "<br>".join(titles) or "-",
        "<br>".join(paper.year for paper in cited),
    )


def _symbol(command: re.Match[str]) -> str:
    """The sign that a command of TeX stands for, else its name."""
    name = command[1]
    if name in _SIGNS:
        return _SIGNS[name]
    case = "SMALL" if name.islower() else "CAPITAL"
    try:
        return unicodedata.lookup(f"GREEK {case} LETTER {name.upper()}")
    except KeyError:
        return name


def _use(member: type[Family]) -> tuple[str, str]:
    """What an entry of a family's event can be, and whether the family can be a guide."""
    known = map(_assembled, member.examples())
    family = max(known, key=lambda family: (len(family.takes), family.takes))
    varies = isinstance(vars(member).get("support"), property)
    draws = family(torch.zeros(1, *family.params)).has_rsample
    guide = "by sums" if family.states else "yes" if draws else "-"
    return f"{'such as ' * varies}{family.takes}", guide


def _assembled(family: Family) -> Family:
    """A family over an event of a shape that it takes."""
    for event in ((3,), (1,), (2,), (1, 4, 4)):
        try:
            copy.deepcopy(family).setup(event)
        except Error:
            continue
        family.setup(event)
        return family
    raise Error(f"{family.kind} takes none of the usual shapes")


def fields(member: type[Part]) -> list[str]:
    """A line for each field: name, type in TOML's words, default."""
    properties = json_schema(member.fields).get("properties", {})
    return [
        f"{name}: {_type(properties[name])}{_default(field)}"
        for name, field in member.fields.model_fields.items()
    ]


def _type(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        return str(schema["$ref"].rsplit("/", 1)[-1]).lower()
    if "anyOf" in schema:
        return " or ".join(
            _type(option) for option in schema["anyOf"] if option.get("type") != "null"
        )
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    return str(schema.get("type", "any"))


def _default(field: Any) -> str:
    if field.is_required():
        return ", required"
    value = encode(field.get_default(call_default_factory=True))
    if value is None:
        return ""
    return f" = {value.get('kind', value) if isinstance(value, dict) else value}"
