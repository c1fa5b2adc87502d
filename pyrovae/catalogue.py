"""The members of every role, read off their classes."""

from typing import Any

from rich.console import Group
from rich.table import Table

import pyrovae.models
import pyrovae.objectives  # noqa: F401
from pyrovae.errors import Error
from pyrovae.part import Part, encode, json_schema, roles, unknown

__all__ = ["catalogue", "fields", "roles"]


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
    return "" if value is None else f" = {value['kind'] if isinstance(value, dict) else value}"
