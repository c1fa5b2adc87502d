"""Spec files: what to fit, to which data, how, in TOML.

    import = ["my_parts"]          modules whose parts can be named
    [data]                         the arguments of `load`
    [train]                        the keyword arguments of `fit`
    [evaluate]                     particles, rows, seed
    [model]                        one model, or several:
    [models.NAME]                  a model, with `extends = "OTHER"` and settings of its own in
    [models.NAME.train]

Where a model's field takes one value, a list is a choice, made on the validation rows. `--set
a.b=c` changes an entry before anything is checked. All tables are checked before anything is
loaded or fitted.
"""

import importlib
import itertools
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import NonNegativeInt, PositiveInt

from pyrovae.data import Data, load
from pyrovae.errors import Error
from pyrovae.fitting import fit
from pyrovae.models import Model
from pyrovae.part import Part, check, json_schema, keywords, roles, unknown
from pyrovae.runs import Run

Tree = dict[str, Any]
TABLES = ("data", "evaluate", "import", "model", "models", "train")


def evaluation(
    *, particles: PositiveInt = 1000, rows: PositiveInt | None = None, seed: NonNegativeInt = 0
) -> Tree:
    """The settings of an evaluation.

    Args:
        particles: draws of z for each row.
        rows: the first rows of the test set only; all unless given.
        seed: of the draws.
    """
    return {"particles": particles, "rows": rows, "seed": seed}


@dataclass(frozen=True)
class Spec:
    """A spec file, read and checked.

    Args:
        name: of the file.
        data: the arguments of `load`.
        evaluate: the settings of the evaluation.
        models: name to the model's table, inheritance resolved, choices still lists.
        train: name to the model's arguments of `fit`.
        imports: the modules that were imported.
    """

    name: str
    data: Tree
    evaluate: Tree
    models: dict[str, Tree]
    train: dict[str, Tree]
    imports: tuple[str, ...]

    def load(self) -> Data:
        """The data."""
        return load(**check(keywords(load), self.data, "data"))

    def table(self, name: str) -> Tree:
        """All that a fit of one model depends on."""
        tree = {
            "data": self.data,
            "evaluate": self.evaluate,
            "train": self.train[name],
            "model": self.models[name],
        }
        return tree | ({"import": list(self.imports)} if self.imports else {})


def read_spec(path: Path, changes: Sequence[str] = ()) -> Spec:
    """Read and check a spec file.

    Args:
        path: of the TOML file.
        changes: entries to set, `"train.epochs=20"`.

    Raises:
        Error: no such file, no TOML, unknown or wrong entries, with the dotted path.
    """
    if not path.is_file():
        raise Error(f"there is no spec file '{path}'")
    try:
        tree = tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as failure:
        raise Error(f"'{path}' is no TOML file: {failure}") from None
    return parse(tree, path.stem, changes, path.parent)


def parse(tree: Tree, name: str, changes: Sequence[str] = (), folder: Path | None = None) -> Spec:
    """Check the tables of a spec, which may import modules from its folder."""
    for change in changes:
        tree = _set(tree, change)
    for key in tree:
        if key not in TABLES:
            raise Error(unknown("table", key, TABLES))
    for key in ("data", "evaluate", "model", "models", "train"):
        if not isinstance(tree.get(key, {}), Mapping):
            raise Error(f"should be a table, got {tree[key]!r}", key)
    imports = tree.get("import", [])
    if not isinstance(imports, list) or not all(isinstance(module, str) for module in imports):
        raise Error(f"should be a list of module names, got {imports!r}", "import")
    for module in imports:
        _import(module, folder)
    if ("model" in tree) == ("models" in tree):
        raise Error("a spec has either one table [model] or several [models.NAME]")
    tables = {"model": tree["model"]} if "model" in tree else tree["models"]
    prefix = "" if "model" in tree else "models."
    if not tables:
        raise Error("has no model: add [models.NAME]", "models")
    check(keywords(load), tree.get("data", {}), "data")
    check(keywords(evaluation), tree.get("evaluate", {}), "evaluate")
    models, train = {}, {}
    for key in tables:
        if not isinstance(tables[key], Mapping):
            raise Error(f"should be a table, got {tables[key]!r}", f"{prefix}{key}")
        table = _inherited(tables, key, ())
        own = table.pop("train", {})
        train[key] = merged(tree.get("train", {}), own)
        check(keywords(fit), train[key], f"{prefix}{key}.train" if own else "train")
        models[key] = table
    return Spec(
        name, tree.get("data", {}), tree.get("evaluate", {}), models, train, tuple(imports)
    )


def build(table: Tree, event: tuple[int, ...], path: str = "model") -> Model:
    """The model that a table without choices declares, for rows of the shape `event`."""
    return Model.from_spec(_shaped(table, event), path)


def candidates(table: Tree, path: str = "model") -> Iterator[tuple[str, Tree]]:
    """Every way to decide a table's choices: what was decided, `components=20`, and the table."""
    choices = list(_choices(Model, table, path))
    for decision in itertools.product(*(values for _, values in choices)):
        decided, words = table, []
        for (steps, _), value in zip(choices, decision, strict=True):
            decided = merged(decided, _nested(steps, value))
            words.append(
                f"{'.'.join(steps)}={value['kind'] if isinstance(value, Mapping) else value}"
            )
        yield ", ".join(words), decided


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


def schema() -> Tree:
    """The JSON schema of spec files, for editors."""
    parts: Tree = {}
    for role in roles().values():
        kinds = [{"$ref": f"#/$defs/{role.__name__}.{kind}"} for kind in sorted(role.members)]
        parts[role.__name__] = {"anyOf": [{"enum": sorted(role.members)}, *kinds]}
        for kind, member in role.members.items():
            parts[f"{role.__name__}.{kind}"] = _member_schema(kind, member)
    train, data, evaluate = (json_schema(keywords(f)) for f in (fit, load, evaluation))
    model = {"$ref": "#/$defs/Model"}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "pyrovae spec",
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "import": {"type": "array", "items": {"type": "string"}},
            "data": data,
            "train": train,
            "evaluate": evaluate,
            "model": model,
            "models": {
                "type": "object",
                "additionalProperties": {"anyOf": [model, {"required": ["extends"]}]},
            },
        },
        "$defs": parts,
    }


def _member_schema(kind: str, member: type[Part]) -> Tree:
    own = json_schema(member.fields)
    own["properties"] = {"kind": {"const": kind}} | own.get("properties", {})
    if issubclass(member, Model):
        own["properties"] |= {"train": {"type": "object"}, "extends": {"type": "string"}}
        own["required"] = [name for name in own.get("required", []) if name != "x"]
    own["required"] = ["kind", *own.get("required", [])]
    return own | {"description": (member.__doc__ or "").strip().splitlines()[0]}


def _choices(
    role: type[Part], table: Mapping[str, Any], path: str
) -> Iterator[tuple[tuple[str, ...], list[Any]]]:
    member = role.members.get(table.get("kind", ""))
    for name, field in member.fields.model_fields.items() if member else ():
        value, types = table.get(name), list(_types(field.annotation))
        inner = next((t for t in types if isinstance(t, type) and issubclass(t, Part)), None)
        if isinstance(value, list) and tuple not in types:
            if not value:
                raise Error("is a choice among nothing", f"{path}.{name}")
            yield (name,), value
        elif isinstance(value, Mapping) and inner:
            yield from (
                ((name, *steps), values)
                for steps, values in _choices(inner, value, f"{path}.{name}")
            )


def _types(annotation: Any) -> Iterator[Any]:
    """The types in an annotation, at any depth."""
    yield get_origin(annotation) or annotation
    for inner in get_args(annotation):
        yield from _types(inner)


def _shaped(table: Tree, event: tuple[int, ...]) -> Tree:
    """The table with the shape of x, which a spec takes from the data."""
    member = Model.members.get(table.get("kind", ""))
    if member and "x" in member.fields.model_fields:
        return {"x": list(event)} | table
    base = table.get("base")
    base = {"kind": base} if isinstance(base, str) else base
    return table | {"base": _shaped(base, event)} if isinstance(base, dict) else table


def _inherited(tables: Mapping[str, Any], key: str, seen: tuple[str, ...]) -> Tree:
    table = dict(tables[key])
    parent = table.pop("extends", None)
    if parent is None:
        return table
    if parent not in tables:
        raise Error(unknown("model", parent, tables), f"models.{key}.extends")
    if parent in (*seen, key):
        raise Error(f"'{key}' extends itself", f"models.{key}.extends")
    return merged(_inherited(tables, parent, (*seen, key)), table)


def _set(tree: Tree, change: str) -> Tree:
    path, sign, text = change.partition("=")
    steps = tuple(path.strip().split("."))
    if not sign or not all(steps):
        raise Error(
            f"--set takes a dotted path and a value, such as train.epochs=20, got '{change}'"
        )
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    return merged(tree, _nested(steps, value))


def _nested(steps: tuple[str, ...], value: Any) -> Tree:
    for step in reversed(steps):
        value = {step: value}
    return value


def changed(run: Run, changes: Sequence[str]) -> Run:
    """A run with other settings of [data] and [evaluate]; its model and its training stand."""
    tree = run.spec
    for change in changes:
        if change.split(".")[0] not in ("data", "evaluate"):
            raise Error(f"a finished run takes changes of data and evaluate only, got '{change}'")
        tree = _set(tree, change)
    return replace(run, spec=tree)


def import_modules(modules: Sequence[str], folder: Path) -> None:
    """Import a user's modules, which may lie in the folder."""
    for module in modules:
        _import(module, folder)


def _import(module: str, folder: Path | None) -> None:
    places = [str(folder.resolve())] if folder else []
    sys.path[:0] = places
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as failure:
        raise Error(
            f"there is no module '{failure.name}' beside the spec or installed", "import"
        ) from None
    except Exception as failure:
        raise Error(
            f"the module '{module}' cannot be imported: {type(failure).__name__}: {failure}",
            "import",
        ) from None
    finally:
        for place in places:
            sys.path.remove(place)
