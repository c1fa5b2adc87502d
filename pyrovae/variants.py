"""What a spec leaves open: choices, made on validation rows, and the grid, shown whole.

    components = [5, 10]                  in a model's table: a choice, one row of the comparison
    "model.components" = [5, 10]          in [grid]: two models, two rows

A choice among K candidates is made by log p(x) on validation rows, so that the figure on test rows
is of one model and stays honest. The points of a grid all have their figures on test rows, and the
highest of many is too high: E max_k (L_k + e_k) >= max_k L_k for errors e_k of mean zero. A grid
therefore shows what a setting does; a choice takes the best one.

Several lists make a product. Each point is named after what was decided for it, `components=5`.
"""

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, get_args, get_origin

from pyrovae.errors import Error
from pyrovae.models import Model
from pyrovae.part import Part, unknown

Tree = dict[str, Any]
Steps = tuple[str, ...]
Axes = dict[Steps, list[Any]]
"""What is varied: the steps of a path, and the values."""
V = TypeVar("V")


def candidates(table: Tree, path: str = "model") -> Iterator[tuple[str, Tree]]:
    """Every way to decide a table's choices: what was decided, `components=20`, and the table."""
    choices = dict(_choices(Model, table, path))
    for decision, decided in _product(table, choices):
        words = (f"{'.'.join(steps)}={short(value)}" for steps, value in decision.items())
        yield ", ".join(words), decided


def axes(grid: Tree) -> Axes:
    """The lists of a grid; its keys are dotted paths, or tables as TOML makes of them.

    Raises:
        Error: a path that cannot be varied, or that leads to no list of values.
    """
    return varied(grid, "grid", _values)


def _values(value: Any, path: str) -> list[Any] | None:
    if isinstance(value, Mapping):
        return None
    if isinstance(value, list) and value:
        return value
    raise Error(f"should be a list of values, got {value!r}", path)


def varied(tree: Tree, table: str, read: Callable[[Any, str], V | None]) -> dict[Steps, V]:
    """What a table says of the paths in it.

    Args:
        tree: the table.
        table: its name.
        read: what is said of a path, given the value and the path; `None` for a table of longer
            paths.

    Raises:
        Error: a path that cannot be varied.
    """
    found: dict[Steps, V] = {}
    for key, value in tree.items():
        found |= dict(_leaves(value, (table, *key.split(".")), read))
    for steps in found:
        path = ".".join((table, *steps))
        if steps[0] in ("data", "evaluate"):
            raise Error(
                f"figures of different {steps[0]} settings cannot stand in one table: "
                "make a spec for each",
                path,
            )
        if steps[0] not in ("model", "models", "train"):
            raise Error(unknown("table", steps[0], ("model", "models", "train")), path)
        if steps[-2:] == ("train", "seed"):
            raise Error("seeds are repetitions, no models: use seeds = 3", path)
    return found


def _leaves(
    value: Any, steps: Steps, read: Callable[[Any, str], V | None]
) -> Iterator[tuple[Steps, V]]:
    found = read(value, ".".join(steps))
    if found is not None:
        yield steps[1:], found
    else:
        for key, inner in value.items():
            yield from _leaves(inner, (*steps, key), read)


def axes_of(
    varied: Mapping[Steps, V], names: Sequence[str], table: str = "grid"
) -> dict[str, dict[Steps, V]]:
    """For each model what changes its table, by the steps in that table.

    What is varied for all models, `train`, yields to what is varied for one.

    Args:
        varied: the axes of the grid, or the space of a search.
        names: of the models; none for the one [model].
        table: where they are declared.

    Raises:
        Error: a path to no field of a model that there is.
    """
    known: dict[Steps, str] = {("models", name): name for name in names} or {("model",): "model"}
    found: dict[str, dict[Steps, V]] = {name: {} for name in known.values()}
    for steps, values in varied.items():
        depth = next((n for n in (1, 2) if steps[:n] in known), 0)
        if not (depth or steps[0] == "train") or len(steps) <= max(depth, 1):
            there = ", ".join(f"{'.'.join(place)}.FIELD" for place in (*known, ("train",)))
            raise Error(f"leads to no field of a model: {there}", ".".join((table, *steps)))
        for name in [known[steps[:depth]]] if depth else found:
            if depth or steps not in found[name]:
                found[name][steps[depth:]] = values
    return found


def points(table: Tree, varied: Axes) -> Iterator[tuple[str, Tree]]:
    """Every point of a grid over a table: its name, `z=2, prior=vamp`, and the table there.

    Raises:
        Error: two points that have one name, or are one model.
    """
    last = [steps[-1] for steps in varied]
    seen: dict[str, Tree] = {}
    for decision, decided in _product(table, varied):
        words = (
            f"{steps[-1] if last.count(steps[-1]) == 1 else '.'.join(steps)}={short(value)}"
            for steps, value in decision.items()
        )
        name = ", ".join(words)
        for other, model in seen.items():
            if other == name or model == decided:
                raise Error(f"'{name}' would be fitted twice, also as '{other}'", "grid")
        seen[name] = decided
        yield name, dict(decided)


def _product(table: Mapping[str, Any], varied: Axes) -> Iterator[tuple[dict[Steps, Any], Tree]]:
    for values in itertools.product(*varied.values()):
        decision, decided = dict(zip(varied, values, strict=True)), dict(table)
        for steps, value in decision.items():
            decided = merged(decided, nested(steps, value))
        yield decision, decided


def short(value: Any) -> str:
    """A value in a name: `vamp(components=50)` for a table, `2` for the list of it."""
    if isinstance(value, Mapping):
        fields = ", ".join(f"{name}={short(v)}" for name, v in value.items() if name != "kind")
        return f"{value.get('kind', '')}({fields})" if fields else str(value.get("kind"))
    if isinstance(value, list):
        return short(value[0]) if len(value) == 1 else f"[{', '.join(map(short, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def folder_name(name: str) -> str:
    """The name of a model as that of a folder: words, numbers and signs, all else a hyphen.

    Example:
        >>> folder_name("vae, z=2, prior=vamp(components=50)")
        'vae-z=2-prior=vamp-components=50'
    """
    return re.sub(r"[^\w.=+-]+", "-", name).strip("-")


def merged(tree: Tree, changes: Mapping[str, Any]) -> Tree:
    """The tree with changes; tables are merged, except that another `kind` begins a new table."""
    result = dict(tree)
    for key, new in changes.items():
        old = {"kind": result[key]} if isinstance(result.get(key), str) else result.get(key)
        same = (
            isinstance(old, Mapping)
            and isinstance(new, Mapping)
            and new.get("kind", old.get("kind")) == old.get("kind")
        )
        result[key] = merged(dict(old), new) if same else new  # type: ignore[arg-type]
    return result


def nested(steps: Steps, value: Any) -> Tree:
    """The tree with one value, at the end of these steps."""
    for step in reversed(steps):
        value = {step: value}
    return value


def _choices(
    role: type[Part], table: Mapping[str, Any], path: str
) -> Iterator[tuple[Steps, list[Any]]]:
    member = role.members.get(str(table.get("kind")))
    for name, field in member.fields.model_fields.items() if member else ():
        value, allowed = table.get(name), list(types(field.annotation))
        inner = next((t for t in allowed if isinstance(t, type) and issubclass(t, Part)), None)
        if isinstance(value, list) and tuple not in allowed:
            if not value:
                raise Error("is a choice among nothing", f"{path}.{name}")
            yield (name,), list(_decided(inner, value, f"{path}.{name}"))
        elif isinstance(value, Mapping) and inner:
            named = _choices_of_each if dict in allowed else _choices
            yield from (
                ((name, *steps), values) for steps, values in named(inner, value, f"{path}.{name}")
            )


def _choices_of_each(
    role: type[Part], parts: Mapping[str, Any], path: str
) -> Iterator[tuple[Steps, list[Any]]]:
    """The choices in a table of parts by name, such as the families of columns."""
    for name, part in parts.items():
        if isinstance(part, list):
            if not part:
                raise Error("is a choice among nothing", f"{path}.{name}")
            yield (name,), list(_decided(role, part, f"{path}.{name}"))
        elif isinstance(part, Mapping):
            for steps, values in _choices(role, part, f"{path}.{name}"):
                yield (name, *steps), values


def _decided(role: type[Part] | None, values: list[Any], path: str) -> Iterator[Any]:
    """The values of a choice, with the choices within its tables decided in every way."""
    for value in values:
        if role and isinstance(value, Mapping):
            yield from (table for _, table in _product(value, dict(_choices(role, value, path))))
        else:
            yield value


def types(annotation: Any) -> Iterator[Any]:
    """The types in an annotation, at any depth."""
    yield get_origin(annotation) or annotation
    for inner in get_args(annotation):
        yield from types(inner)
