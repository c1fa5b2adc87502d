"""Spec files: what to fit, to which data, how, in TOML.

    import = ["my_parts"]     modules whose parts can be named
    [data]                    the arguments of `load`
    [train]                   the keyword arguments of `fit`
    [evaluate]                the keyword arguments of `log_likelihood`
    [model]                   one model, or several:
    [models.NAME]             a model; `extends = "OTHER"` inherits
    [models.NAME.train]       settings of its own
    [grid]                    dotted paths to lists: each point is a model of the comparison
    [search]                  dotted paths to ranges or lists, searched by validation rows
    seeds = 3                 how often each model is fitted

Where a model's field takes one value, a list is a choice, made on the validation rows. An option
`--set a.b=c` changes an entry. All tables are checked before anything is loaded or fitted.
"""

import functools
import importlib
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pyrovae.data import Data, load
from pyrovae.errors import Error
from pyrovae.evaluate import log_likelihood
from pyrovae.fitting import fit
from pyrovae.models import Model
from pyrovae.part import check, keywords, unknown
from pyrovae.report import FILES
from pyrovae.runs import Run
from pyrovae.spaces import Point, Search, Space, probes, spaces
from pyrovae.variants import Tree, axes, axes_of, folder_name, merged, nested, points

SEARCH = "search.csv"
RESERVED = ("", "..", "spec.toml", SEARCH, *FILES)
TABLES = ("data", "evaluate", "grid", "import", "model", "models", "search", "seeds", "train")
ESTIMATOR = {"evaluate.method", "evaluate.method.kind"}
"""The paths that choose another estimator."""
TAKEN = {"x": "data", "context": "data.context", "classes": "data.labels"}
"""Fields of a model that a spec takes from the data, and what of these decides them."""


@dataclass(frozen=True)
class Spec:
    """A spec file, read and checked.

    Args:
        name: of the file.
        data: the arguments of `load`.
        evaluate: the settings of the evaluation.
        models: name to the model's table, inheritance resolved, at a point of the grid, choices
            still lists.
        train: name to the model's arguments of `fit`.
        paths: name to where in the spec the model's table stands.
        imports: the modules that were imported.
        folder: where they may lie.
        seeds: how often each model is fitted.
        search: of models whose tables lack what is searched.
    """

    name: str
    data: Tree
    evaluate: Tree
    models: dict[str, Tree]
    train: dict[str, Tree]
    paths: dict[str, str]
    imports: tuple[str, ...]
    folder: Path | None
    seeds: int
    search: Search | None = None

    def load(self) -> Data:
        """The data."""
        return load(**check(keywords(load), self.data, "data"))

    def runs(self) -> Iterator[tuple[str, int, str]]:
        """Every fit: the name of the model, which repeat it is, and the name of its folder."""
        for name, train in self.train.items():
            for repeat in range(self.seeds):
                suffix = f"-seed-{train.get('seed', 0) + repeat}" if repeat else ""
                yield name, repeat, folder_name(name) + suffix

    def at(self, chosen: Mapping[str, Sequence[Point]]) -> "Spec":
        """The spec with points of the search in the place of the models that they are of.

        Raises:
            Error: settings that `fit` refuses, two points with one name.
        """
        models: dict[str, Tree] = {}
        train: dict[str, Tree] = {}
        paths: dict[str, str] = {}
        for name in self.models:
            for point in chosen.get(name, [{}]):
                key, table = self.point(name, point)
                settings = table.pop("train")
                check(keywords(fit), settings, "train")
                if models.setdefault(key, table) != table or train.get(key, settings) != settings:
                    raise Error(f"two points would be called '{key}'", "search")
                train[key], paths[key] = settings, self.paths[name]
        found = replace(self, models=models, train=train, paths=paths, search=None)
        _refuse_shared_folders(found)
        return found

    @property
    def whole(self) -> Tree:
        """The tables of the spec, settings for all models written to each."""
        alone = self.paths == {"model": "model"}
        models = {name: table | {"train": self.train[name]} for name, table in self.models.items()}
        tree: Tree = {"import": list(self.imports), "seeds": self.seeds, "data": self.data}
        tree |= {"evaluate": self.evaluate} | (models if alone else {"models": models})
        if self.search:
            place = {name: ("model",) if alone else ("models", name) for name in models}
            tree["search"] = self.search.table(place)
        return tree

    @property
    def width(self) -> int:
        """How many fits there can be at a time."""
        search = self.search
        trials = search.batch * len(search.spaces) if search else 0
        return max(trials, self.seeds * len(self.models))

    def only(self, names: Iterable[str]) -> "Spec":
        """The spec of some of its models."""
        return replace(self, models={name: self.models[name] for name in names})

    def probes(self) -> dict[str, list[Point]]:
        """Of each model that is searched a few points, which stand for all."""
        found: dict[str, Space] = self.search.spaces if self.search else {}
        return {name: probes(space, self.models[name]) for name, space in found.items()}

    def point(self, name: str, point: Point) -> tuple[str, Tree]:
        """A point of a model's space: its name, and the table there with that of its training."""
        whole = self.models[name] | {"train": self.train[name]}
        ((label, table),) = points(whole, {steps: [value] for steps, value in point.items()})
        own = label if name == self.paths[name] else f"{name}, {label}"
        return (own if label else name), table

    def table(self, name: str, repeat: int = 0) -> Tree:
        """All that a fit of one model depends on; a repeat has a seed that is higher by it."""
        train = self.train[name]
        tree = {
            "data": self.data,
            "evaluate": self.evaluate,
            "train": train | ({"seed": train.get("seed", 0) + repeat} if repeat else {}),
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
    try:
        tree = tomllib.loads(path.read_text("utf-8"))
    except OSError as failure:
        raise Error(f"there is no spec file '{path}' ({failure.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as failure:
        raise Error(f"'{path}' is no TOML file: {failure}") from None
    return parse(tree, path.stem, changes, path.parent)


def parse(tree: Tree, name: str, changes: Sequence[str] = (), folder: Path | None = None) -> Spec:
    """Check the tables of a spec, which may import modules from its folder."""
    tree = _edited(tree, changes)
    for key in tree:
        if key not in TABLES:
            raise Error(unknown("table", key, TABLES))
    data, evaluate, train = (
        _table(tree.get(key, {}), key) for key in ("data", "evaluate", "train")
    )
    imports = tree.get("import", [])
    if not isinstance(imports, list) or not all(isinstance(module, str) for module in imports):
        raise Error(f"should be a list of module names, got {imports!r}", "import")
    import_modules(imports, folder)
    check(keywords(load), data, "data")
    check(keywords(log_likelihood), evaluate, "evaluate")
    seeds = tree.get("seeds", 1)
    if type(seeds) is not int or seeds < 1:
        raise Error(f"should be a whole number from 1, got {seeds!r}", "seeds")
    models, settings, paths = {}, {}, {}
    for key, path, table in _models(tree, train):
        if key in models:
            raise Error(f"two models would be called '{key}'", "grid")
        models[key], settings[key], paths[key] = table, table.pop("train"), path
    spec = Spec(name, data, evaluate, models, settings, paths, tuple(imports), folder, seeds)
    _refuse_shared_folders(spec)
    return _with_search(spec, tree) if "search" in tree else spec


def _with_search(spec: Spec, tree: Tree) -> Spec:
    """The spec with its search, which is looked at where something could be refused."""
    names = list(tree.get("models", {}))
    own, found = spaces(_table(tree["search"], "search"), names)
    grid = axes_of(axes(tree.get("grid", {})), names)
    for key, space in found.items():
        if both := space.keys() & grid[key].keys():
            raise Error("is varied by the grid as well", ".".join(("search", *min(both))))
    searched = {
        name: space
        for name, path in spec.paths.items()
        if (space := found[path.removeprefix("models.")])
    }
    spec = replace(spec, search=Search(**own, spaces=searched))
    spec.at(spec.probes())
    return spec


def _models(tree: Tree, train: Tree) -> Iterator[tuple[str, str, Tree]]:
    """Every model, a point of the grid each: its name, where its table stands, and the table."""
    tables, prefix = _tables(tree)
    varied = axes_of(axes(_table(tree.get("grid", {}), "grid")), list(tables) if prefix else [])
    for key in tables:
        path, table = f"{prefix}{key}", _inherited(tables, key, prefix, ())
        own = _table(table.pop("train", {}), f"{path}.train")
        for label, point in points(table | {"train": merged(train, own)}, varied[key]):
            check(keywords(fit), point["train"], f"{path}.train" if own else "train")
            yield (f"{key}, {label}" if prefix and label else label or key), path, point


def _refuse_shared_folders(spec: Spec) -> None:
    owner: dict[str, str] = {}
    for name, _, folder in spec.runs():
        if folder in RESERVED:
            raise Error(f"'{name}' cannot name a model: it names its folder", "models")
        if owner.setdefault(folder, name) != name:
            raise Error(
                f"'{owner[folder]}' and '{name}' would both be saved in '{folder}': rename one",
                "models",
            )


def _tables(tree: Tree) -> tuple[Tree, str]:
    """The tables of the models by name, and what stands before the name in a path."""
    if ("model" in tree) == ("models" in tree):
        raise Error("a spec has either one table [model] or several [models.NAME]")
    if "model" in tree:
        return {"model": _table(tree["model"], "model")}, ""
    tables = _table(tree["models"], "models")
    if not tables:
        raise Error("has no model: add [models.NAME]", "models")
    for name in tables:
        if Path(name).name != name:
            raise Error(f"'{name}' cannot name a model: it names its folder", "models")
        _table(tables[name], f"models.{name}")
    return tables, "models."


def _table(value: Any, path: str) -> Tree:
    if not isinstance(value, dict):
        raise Error(f"should be a table, got {value!r}", path)
    return value


def build(table: Tree, declared: Mapping[str, Any], path: str = "model") -> Model:
    """The model that a table without choices declares.

    Args:
        table: of the model.
        declared: the fields that the data decide, `Data.declares`.
        path: where the table stands.

    Raises:
        Error: with the dotted path of what is wrong.
    """
    return Model.from_spec(_shaped(table, declared, path), path)


def _shaped(table: Tree, declared: Mapping[str, Any], path: str) -> Tree:
    """The table with the fields that a spec takes from the data, unless it has them itself."""
    member = Model.members.get(str(table.get("kind")))
    fields = member.fields.model_fields if member else {}
    for name, source in TAKEN.items():
        if name in fields and fields[name].is_required() and name not in {*table, *declared}:
            raise Error(f"is taken from the data, which have none: add {source}", f"{path}.{name}")
    table = {name: declared[name] for name in TAKEN if name in fields and name in declared} | table
    base = table.get("base")
    base = {"kind": base} if isinstance(base, str) else base
    if "x" in fields or not isinstance(base, dict):
        return table
    return table | {"base": _shaped(base, declared, f"{path}.base")}


def _inherited(tables: Tree, key: str, prefix: str, seen: tuple[str, ...]) -> Tree:
    table, path = dict(tables[key]), f"{prefix}{key}.extends"
    parent = table.pop("extends", None)
    if parent is None:
        return table
    if not isinstance(parent, str) or parent not in tables:
        raise Error(unknown("model", parent, tables), path)
    if parent in (*seen, key):
        raise Error(f"'{key}' extends itself", path)
    return merged(_inherited(tables, parent, prefix, (*seen, key)), table)


def _edited(tree: Tree, changes: Sequence[str]) -> Tree:
    """The tree with changes; another estimator begins with its own number of particles."""
    if {change.partition("=")[0].strip() for change in changes} & ESTIMATOR:
        table = _table(tree.get("evaluate", {}), "evaluate")
        tree = tree | {"evaluate": {k: v for k, v in table.items() if k != "particles"}}
    return functools.reduce(_set, changes, tree)


def _set(tree: Tree, change: str) -> Tree:
    path, sign, text = change.partition("=")
    steps = _steps(path)
    if not sign or not all(steps):
        raise Error(
            f"--set takes a dotted path and a value, such as train.epochs=20, got '{change}'"
        )
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    return merged(tree, nested(steps, value))


def _steps(path: str) -> tuple[str, ...]:
    """The steps of a dotted path; one with dots of its own is in quotes."""
    try:
        tree = tomllib.loads(f"{path} = 0")
    except tomllib.TOMLDecodeError:
        return tuple(path.strip().split("."))
    steps: tuple[str, ...] = ()
    while isinstance(tree, dict):
        ((step, tree),) = tree.items()
        steps += (step,)
    return steps


def changed(run: Run, changes: Sequence[str]) -> Run:
    """A run with another evaluation, or with its data at another place."""
    for change in changes:
        if change.split(".")[0] != "evaluate" and not change.startswith("data.path="):
            raise Error(f"a finished run takes changes of evaluate and data.path, got '{change}'")
    return replace(run, spec=_edited(run.spec, changes))


def import_modules(modules: Sequence[str], folder: Path | None) -> None:
    """Import a user's modules, which may lie in the folder."""
    places = [str(folder.resolve())] if folder else []
    sys.path[:0] = places
    try:
        for module in modules:
            _import(module, folder)
    finally:
        for place in places:
            sys.path.remove(place)


def _import(module: str, folder: Path | None) -> None:
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as failure:
        raise Error(
            f"there is no module '{failure.name}' in '{folder or '.'}' or installed",
            "import",
        ) from None
    except (Exception, SystemExit) as failure:
        raise Error(
            f"the module '{module}' cannot be imported: {type(failure).__name__}: {failure}",
            "import",
        ) from None
