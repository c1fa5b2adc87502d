"""Specs: how tables are changed, inherited, checked and turned into models."""

import json
import sys
import tomllib
from pathlib import Path

import pytest
import tomli_w

from pyrovae import VAE, Mixture
from pyrovae.catalogue import roles
from pyrovae.errors import Error
from pyrovae.families import Bernoulli, Normal
from pyrovae.models import Transformed
from pyrovae.priors import Prior
from pyrovae.schema import schema
from pyrovae.specs import build, parse, read_spec
from pyrovae.variants import candidates, merged

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.toml"))
MODEL = {"kind": "vae", "z": [2], "likelihood": "normal"}
X = {"x": (4,)}


@pytest.fixture
def forgetful(tmp_path):
    """Afterwards the modules of specs and their parts are forgotten, and the path is as it was."""
    members = {role: dict(role.members) for role in roles().values()}
    path, modules = list(sys.path), set(sys.modules)
    yield
    assert sys.path == path
    for name in set(sys.modules) - modules:
        file = getattr(sys.modules[name], "__file__", None)
        if file and Path(file).parent in (tmp_path, EXAMPLES[0].parent):
            del sys.modules[name]
    for role, known in members.items():
        role.members.clear()
        role.members.update(known)


def vae(**changes):
    return {"model": MODEL | changes}


def labels(table):
    return [label for label, _ in candidates(table)]


# --set


@pytest.mark.parametrize(
    ("changes", "prior"),
    [
        (["model.prior=vamp"], "vamp"),
        (["model.prior.kind=vamp"], {"kind": "vamp"}),
        (["model.prior.kind=vamp", "model.prior.components=5"], {"kind": "vamp", "components": 5}),
        (["model.prior=vamp", "model.prior.components=5"], {"kind": "vamp", "components": 5}),
        (["model.prior={kind='vamp', components=5}"], {"kind": "vamp", "components": 5}),
        ([" model.prior = 'vamp' "], "vamp"),
    ],
)
def test_set_replaces_a_bare_kind(changes, prior):
    spec = parse(vae(prior="standard-normal"), "s", changes)
    assert spec.models["model"]["prior"] == prior
    built = build(spec.models["model"], X)
    assert built.prior.spec() == Prior.from_spec(prior).spec()


def test_set_another_kind_begins_a_new_table():
    tree = vae(prior={"kind": "vamp", "components": 7})
    spec = parse(tree, "s", ["model.prior.kind=gaussian-mixture"])
    assert spec.models["model"]["prior"] == {"kind": "gaussian-mixture"}


def test_set_the_same_kind_keeps_the_table():
    tree = vae(prior={"kind": "vamp", "components": 7})
    spec = parse(tree, "s", ["model.prior.kind=vamp"])
    assert spec.models["model"]["prior"] == {"kind": "vamp", "components": 7}


@pytest.mark.parametrize(
    ("change", "key", "value"),
    [
        ("train.epochs=20", "epochs", 20),
        ("train.learning_rate=1e-2", "learning_rate", 0.01),
        ("train.learning_rate=1", "learning_rate", 1),
        ("train.start=false", "start", False),
        ("train.method=svi", "method", "svi"),
        ('train.method="em"', "method", "em"),
        ("train.objective.kind=mean-field-elbo", "objective", {"kind": "mean-field-elbo"}),
    ],
)
def test_set_reads_values_as_toml_or_as_words(change, key, value):
    assert parse(vae(), "s", [change]).train["model"] == {key: value}


def test_set_makes_tables_that_are_not_there():
    spec = parse({}, "s", ["model.kind=vae", "model.z=[2]", "data.name=iris"])
    assert spec.models == {"model": {"kind": "vae", "z": [2]}}
    assert spec.data == {"name": "iris"}


def test_set_leaves_the_tree_alone():
    tree = vae(prior={"kind": "vamp"})
    parse(tree, "s", ["model.prior.components=5", "train.epochs=1"])
    assert tree == vae(prior={"kind": "vamp"})


def test_the_last_set_stands():
    spec = parse(vae(), "s", ["train.epochs=1", "train.epochs=2"])
    assert spec.train["model"] == {"epochs": 2}


@pytest.mark.parametrize("change", ["train.epochs", "=3", ".epochs=3", "train.=3", "", "a..b=1"])
def test_set_without_a_path_and_a_value(change):
    with pytest.raises(Error, match=r"--set takes a dotted path and a value.*train\.epochs=20"):
        parse(vae(), "s", [change])


@pytest.mark.parametrize(
    ("tree", "changes", "result"),
    [
        ({"a": 1}, {"b": 2}, {"a": 1, "b": 2}),
        ({"a": {"x": 1}}, {"a": {"y": 2}}, {"a": {"x": 1, "y": 2}}),
        ({"a": {"x": 1}}, {"a": 5}, {"a": 5}),
        ({"a": 5}, {"a": {"x": 1}}, {"a": {"x": 1}}),
        ({"a": "k"}, {"a": {"x": 1}}, {"a": {"kind": "k", "x": 1}}),
        ({"a": {"kind": "k", "x": 1}}, {"a": {"kind": "l"}}, {"a": {"kind": "l"}}),
        ({"a": {"kind": "k", "x": 1}}, {"a": "l"}, {"a": "l"}),
    ],
)
def test_merging_trees(tree, changes, result):
    assert merged(tree, changes) == result


# extends


def test_extends_inherits_and_overrides():
    child = {"extends": "base", "z": [3], "prior": "vamp"}
    spec = parse({"models": {"child": child, "base": MODEL | {"prior": "standard-normal"}}}, "s")
    assert spec.models["child"] == MODEL | {"z": [3], "prior": "vamp"}
    assert spec.models["base"] == MODEL | {"prior": "standard-normal"}


def test_extends_over_two_steps_merges_the_tables_of_parts():
    tree = {
        "a": MODEL | {"encoder": {"kind": "mlp", "hidden": [8]}},
        "b": {"extends": "a", "encoder": {"activation": "relu"}},
        "c": {"extends": "b", "z": [5]},
    }
    model = build(parse({"models": tree}, "s").models["c"], X)
    assert (model.z, model.encoder.hidden, model.encoder.activation) == ((5,), (8,), "relu")


def test_extends_inherits_the_train_table():
    tree = {
        "a": MODEL | {"train": {"epochs": 5, "batch_size": 7}},
        "b": {"extends": "a", "train": {"epochs": 6}},
    }
    assert parse({"models": tree}, "s").train["b"] == {"epochs": 6, "batch_size": 7}


@pytest.mark.parametrize(
    ("models", "message"),
    [
        (
            {"base": MODEL, "a": {"extends": "bsae"}},
            r"models\.a\.extends: unknown model 'bsae'\. Did you mean 'base'\?",
        ),
        ({"a": {"extends": "a"}}, r"models\.a\.extends: 'a' extends itself"),
        ({"a": {"extends": "b"}, "b": {"extends": "a"}}, "extends itself"),
        ({"a": {"extends": ["b"]}, "b": MODEL}, r"models\.a\.extends"),
        ({"a": {"extends": 5}, "b": MODEL}, r"models\.a\.extends"),
        ({"a": {"extends": "b"}, "b": 5}, r"models\.b: should be a table, got 5"),
    ],
    ids=["unknown", "itself", "a cycle", "a list", "a number", "no table"],
)
def test_extends_is_refused(models, message):
    with pytest.raises(Error, match=message):
        parse({"models": models}, "s")


def test_extends_in_a_single_model():
    with pytest.raises(Error, match=r"^model\.extends: "):
        parse(vae(extends="vae"), "s")


# Choices


def test_lists_are_choices_and_their_product_is_tried():
    prior = {"kind": "vamp", "components": [5, 10]}
    table = MODEL | {"prior": prior, "likelihood": ["normal", "shared-normal"]}
    found = dict(candidates(table))
    assert list(found) == [
        "prior.components=5, likelihood=normal",
        "prior.components=5, likelihood=shared-normal",
        "prior.components=10, likelihood=normal",
        "prior.components=10, likelihood=shared-normal",
    ]
    last = build(found["prior.components=10, likelihood=shared-normal"], X)
    assert last.prior.components == 10
    assert last.likelihood.kind == "shared-normal"


@pytest.mark.parametrize(
    "table",
    [
        MODEL,
        MODEL | {"encoder": {"kind": "mlp", "hidden": [64, 32]}},
        MODEL | {"z": [2, 3]},
        {"kind": "mixture", "x": [4, 4]},
    ],
)
def test_a_list_where_a_list_is_expected_is_no_choice(table):
    assert labels(table) == [""]
    assert dict(candidates(table))[""] == table


@pytest.mark.parametrize(
    ("table", "found"),
    [
        ({"kind": "mixture", "components": [2, 3]}, ["components=2", "components=3"]),
        (
            MODEL | {"decoder": {"kind": "mlp", "activation": ["elu", "relu"]}},
            ["decoder.activation=elu", "decoder.activation=relu"],
        ),
        (
            {"kind": "transformed", "base": {"kind": "mixture", "components": [1, 2]}},
            ["base.components=1", "base.components=2"],
        ),
        (MODEL | {"prior": ["vamp", {"kind": "standard-normal"}]}, None),
        ({"kind": "mixture", "components": [2]}, ["components=2"]),
    ],
)
def test_choices_at_any_depth(table, found):
    assert labels(table) == (found or ["prior=vamp", "prior=standard-normal"])


def test_two_tables_of_one_kind_are_two_candidates():
    priors = [{"kind": "vamp", "components": 5}, {"kind": "vamp", "components": 10}]
    found = list(candidates(MODEL | {"prior": priors}))
    assert [table["prior"]["components"] for _, table in found] == [5, 10]
    assert len({label for label, _ in found}) == 2


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"kind": "mixture", "components": []}, r"model\.components: is a choice among nothing"),
        (MODEL | {"prior": [{"components": 5}]}, r"model\.prior: the table has no 'kind'"),
        ({"kind": "mixture", "components": [2, 0]}, r"model\.components: should be greater than"),
        (MODEL | {"prior": ["vamp", "vampp"]}, r"model\.prior: unknown prior 'vampp'"),
        (MODEL | {"prior": ["vamp", 5]}, r"model\.prior: should be a prior"),
    ],
    ids=["of nothing", "without a kind", "out of range", "of an unknown kind", "of no kind"],
)
def test_wrong_choices(table, message):
    with pytest.raises(Error, match=message):
        [build(candidate, X) for _, candidate in candidates(table)]


# Tables for training


def test_a_model_has_train_settings_of_its_own():
    tree = {
        "train": {"epochs": 3, "batch_size": 8},
        "models": {"a": MODEL | {"train": {"epochs": 5}}, "b": MODEL},
    }
    spec = parse(tree, "s")
    assert spec.train == {"a": {"epochs": 5, "batch_size": 8}, "b": {"epochs": 3, "batch_size": 8}}
    assert "train" not in spec.models["a"]


def test_the_only_model_has_train_settings_too():
    assert parse(vae(train={"epochs": 5}) | {"train": {"epochs": 3}}, "s").train == {
        "model": {"epochs": 5}
    }


def test_a_table_of_a_spec_is_all_that_a_fit_depends_on():
    spec = parse(vae() | {"data": {"name": "iris"}, "evaluate": {"particles": 5}}, "s")
    assert spec.table("model") == {
        "data": {"name": "iris"},
        "evaluate": {"particles": 5},
        "train": {},
        "model": MODEL,
    }


# What is refused, with its path


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"trian": {}}, r"unknown table 'trian'\. Did you mean 'train'\?"),
        ({"train": 5}, "train: should be a table, got 5"),
        ({"data": []}, r"data: should be a table, got \[\]"),
        ({"data": {"nam": "iris"}}, r"data: unknown field 'nam'\. Did you mean 'name'\?"),
        ({"data": {"name": 5}}, r"data\.name: should be a valid string, got 5"),
        ({"data": {"validation": "much"}}, r"data\.validation: should be a valid number"),
        ({"data": {"validation": -0.1}}, r"data\.validation: should be greater than or equal to"),
        ({"data": {"columns": "a"}}, r"data\.columns: should be a valid list"),
        ({"data": {"categories": "a"}}, r"data\.categories: should be a valid list"),
        ({"data": {"context": "a"}}, r"data\.context: should be a list of column names"),
        ({"data": {"context": []}}, r"data\.context: should be a list of column names"),
        (
            {"data": {"transforms": ["binarise"]}},
            r"data\.transforms\.0: .*Did you mean 'binarize'",
        ),
        (
            {"data": {"transforms": [{"kind": "binarize", "threshold": 2.0}]}},
            r"data\.transforms\.0\.threshold: should be less than 1, got 2\.0",
        ),
        ({"train": {"epoch": 5}}, r"train: unknown field 'epoch'\. Did you mean 'epochs'\?"),
        ({"train": {"epochs": 0}}, r"train\.epochs: should be greater than 0, got 0"),
        ({"train": {"epochs": -3}}, r"train\.epochs: should be greater than 0, got -3"),
        ({"train": {"epochs": 2.5}}, r"train\.epochs: should be a valid integer, got 2\.5"),
        ({"train": {"epochs": True}}, r"train\.epochs: should be a valid integer, got True"),
        ({"train": {"epochs": [1, 2]}}, r"train\.epochs: should be a valid integer"),
        ({"train": {"learning_rate": float("nan")}}, r"train\.learning_rate: should be "),
        ({"train": {"learning_rate": float("inf")}}, r"train\.learning_rate: should be "),
        (
            {"train": {"method": "adam"}},
            r"train\.method: should be 'svi', 'em' or 'online-em', got",
        ),
        ({"train": {"dtype": "float16"}}, r"train\.dtype: should be 'float32' or 'float64'"),
        ({"train": {"objective": "elbow"}}, r"train\.objective: .*Did you mean 'elbo'\?"),
        (
            {"train": {"objective": {"kind": "elbo", "particles": 0}}},
            r"train\.objective\.particles: should be greater than 0",
        ),
        ({"evaluate": {"particle": 5}}, r"evaluate: .*Did you mean 'particles'\?"),
        ({"evaluate": {"rows": -1}}, r"evaluate\.rows: should be greater than 0"),
        ({"import": "mine"}, "import: should be a list of module names, got 'mine'"),
        ({"import": [5]}, "import: should be a list of module names"),
    ],
)
def test_wrong_tables(tree, message):
    with pytest.raises(Error, match=f"^{message}"):
        parse(vae() | tree, "s")


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({}, r"either one table \[model\] or several"),
        ({"model": MODEL, "models": {"a": MODEL}}, r"either one table \[model\] or several"),
        ({"models": {}}, "^models: has no model"),
        ({"model": 5}, "^model: should be a table, got 5"),
        ({"models": {"a": 5}}, r"^models\.a: should be a table, got 5"),
        ({"models": {"a": MODEL | {"train": 5}}}, r"^models\.a\.train: should be a table, got 5"),
        ({"model": MODEL | {"train": [5]}}, r"^model\.train: should be a table, got \[5\]"),
        (
            {"models": {"a": MODEL | {"train": {"epochs": 0}}}},
            r"^models\.a\.train\.epochs: should be greater than 0",
        ),
        ({"model": MODEL | {"train": {"epoch": 1}}}, r"^model\.train: unknown field 'epoch'"),
    ],
)
def test_wrong_tables_of_models(tree, message):
    with pytest.raises(Error, match=message):
        parse(tree, "s")


@pytest.mark.parametrize("name", ["../up", "a/b", "/etc", "", ".", ".."])
def test_a_model_is_named_as_a_folder_can_be(name):
    with pytest.raises(Error, match="name"):
        parse({"models": {name: MODEL, "other": MODEL}}, "s")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            {"z": [2]},
            r"^model: the table has no 'kind'\. Known: .*mixture, pair, .*transformed, vae",
        ),
        ({"kind": "vaee", "z": [2]}, r"^model: unknown model 'vaee'\. Did you mean 'vae'\?"),
        ({"kind": ["vae", "mixture"]}, "^model"),
        ({"kind": {"a": 1}}, "^model"),
        ({"kind": 5}, "^model: unknown model '5'"),
        ({"kind": "vae"}, r"^model\.z: is required"),
        (MODEL | {"zz": 1}, "^model: unknown field 'zz'. Did you mean 'z'"),
        (MODEL | {"z": 2}, r"^model\.z: should be a valid list, such as \[2\], got 2"),
        (MODEL | {"z": []}, r"^model\.z: "),
        (MODEL | {"z": [0]}, r"^model\.z\.0: should be greater than 0, got 0"),
        (MODEL | {"z": [-2]}, r"^model\.z\.0: should be greater than 0, got -2"),
        (MODEL | {"z": ["2"]}, r"^model\.z\.0: should be a valid integer, got '2'"),
        (MODEL | {"prior": "vampp"}, r"^model\.prior: unknown prior 'vampp'.*mean 'vamp'"),
        (MODEL | {"prior": 5}, r"^model\.prior: should be a prior: a part, a kind or a table"),
        (MODEL | {"prior": "normal"}, r"^model\.prior: unknown prior 'normal'"),
        (
            MODEL | {"prior": {"kind": "vamp", "component": 5}},
            r"^model\.prior: unknown field 'component'\. Did you mean 'components'\?",
        ),
        (
            MODEL | {"prior": {"kind": "vamp", "components": -5}},
            r"^model\.prior\.components: should be greater than 0, got -5",
        ),
        (
            MODEL | {"encoder": {"kind": "mlp", "hidden": [8, -8]}},
            r"^model\.encoder\.hidden\.1: should be greater than 0, got -8",
        ),
        (
            MODEL | {"encoder": {"kind": "mlp", "activation": "rely"}},
            r"^model\.encoder\.activation: should be 'elu'.*got 'rely'",
        ),
        (
            {"kind": "transformed", "transform": "standardize", "base": {"kind": "vae"}},
            r"^model\.base\.z: is required",
        ),
        (MODEL | {"posterior": "poisson"}, r"^model\.posterior: poisson has no reparameterised"),
        (
            {"kind": "pair", "model": "nowhere:p", "guide": "nowhere:q"},
            r"^model\.model: .*has not been imported: name it in 'import'",
        ),
    ],
)
def test_wrong_models(table, message):
    with pytest.raises(Error, match=message):
        [build(decided, X) for _, decided in candidates(table)]


# Building


def test_the_shape_of_x_comes_from_the_data():
    assert build(MODEL, {"x": (3, 4)}).x == (3, 4)
    assert build({"kind": "mixture", "family": "normal"}, {"x": (3, 4)}).x == (3, 4)


def test_the_context_and_the_classes_come_from_the_data():
    declared = {"x": (4,), "context": (3,), "classes": 5}
    assert build(MODEL | {"kind": "conditional-vae"}, declared).context == (3,)
    assert build(MODEL | {"kind": "semi-supervised-vae"}, declared).classes == 5
    wrapped = {"kind": "transformed", "transform": "standardize"}
    inner = MODEL | {"kind": "conditional-vae", "context": [2]}
    assert build(wrapped | {"base": inner}, declared).base.context == (2,)
    assert "context" not in build(MODEL, declared).spec()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            "conditional-vae",
            r"^model\.base\.context: is taken from the data.*: add data\.context$",
        ),
        ("semi-supervised-vae", r"^model\.base\.classes: is taken from.*: add data\.labels$"),
    ],
)
def test_what_the_data_do_not_declare_is_named(kind, message):
    base = MODEL | {"kind": kind}
    with pytest.raises(Error, match=message):
        build({"kind": "transformed", "transform": "standardize", "base": base}, X)


def test_the_shape_of_x_goes_through_a_transform():
    table = {"kind": "transformed", "transform": "standardize", "base": "mixture"}
    model = build(table, X)
    assert isinstance(model, Transformed)
    assert model.event == (4,)


@pytest.mark.parametrize(
    "model",
    [
        VAE(x=(4,), z=(2,), likelihood=Normal(), prior="vamp"),
        Mixture(x=(4,), family=Bernoulli()),
        Transformed(base=Mixture(x=(4,), components=2), transform="standardize"),
    ],
    ids=lambda model: model.kind,
)
def test_a_model_s_own_table_builds_it_again(model):
    table = tomllib.loads(tomli_w.dumps(model.spec()))
    assert build(table, X).spec() == model.spec()
    assert labels(table) == [""]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_are_specs_whose_models_can_be_built(path, forgetful):
    spec = read_spec(path)
    event = (1, 28, 28) if spec.data["name"] == "mnist" else spec.load().event
    for name in spec.models:
        for _, table in candidates(spec.models[name]):
            assert build(table, {"x": event}).event == event


# Files


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no spec file '.*s.toml'"),
        (b"a = = 1", "'.*s.toml' is no TOML file: .*line 1"),
        (b"\xff\xfe\x00", "'.*s.toml' is no TOML file"),
        (b"", r"either one table \[model\] or several"),
    ],
    ids=["missing", "no TOML", "no text", "empty"],
)
def test_a_file_that_is_no_spec(content, message, tmp_path):
    if content is not None:
        (tmp_path / "s.toml").write_bytes(content)
    with pytest.raises(Error, match=message):
        read_spec(tmp_path / "s.toml")


def test_a_spec_is_called_as_its_file(tmp_path):
    (tmp_path / "mine.toml").write_text(tomli_w.dumps(vae()))
    assert read_spec(tmp_path / "mine.toml").name == "mine"


# import


@pytest.fixture
def beside(tmp_path, forgetful):
    """Write a module beside a spec that imports it."""

    def write(source, tree=None):
        name = f"parts_{sum(source.encode())}"
        (tmp_path / f"{name}.py").write_text(source)
        (tmp_path / "s.toml").write_text(tomli_w.dumps((tree or vae()) | {"import": [name]}))
        return tmp_path / "s.toml"

    return write


WIDE = """
import pyro.distributions as dist
import torch
from torch import nn
from pyrovae.priors import Prior

class Wide(Prior):
    "A wide normal."
    width: float = 3.0

    def setup(self, z, seen):
        self.loc = nn.Buffer(torch.zeros(z))

    def forward(self, q, context=None):
        return dist.Normal(self.loc, self.width).to_event(self.loc.dim())
"""


def test_a_prior_of_one_s_own(beside):
    spec = read_spec(beside(WIDE, vae(prior={"kind": "wide", "width": 2.0})))
    model = build(spec.models["model"], X)
    assert model.prior(model.q).stddev.tolist() == [2.0, 2.0]
    assert spec.table("model")["import"] == list(spec.imports)


def test_a_prior_of_one_s_own_is_in_the_schema_and_in_suggestions(beside):
    read_spec(beside(WIDE))
    assert "Prior.wide" in schema()["$defs"]
    with pytest.raises(Error, match="Did you mean 'wide'"):
        build(MODEL | {"prior": "wied"}, X)


@pytest.mark.parametrize("module", ["no_such_module", "no_such_package.part"])
def test_a_missing_module(module, tmp_path):
    with pytest.raises(Error, match=r"^import: there is no module 'no_such_.*' in"):
        parse(vae() | {"import": [module]}, "s", folder=tmp_path)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import no_such_dependency", "there is no module 'no_such_dependency'"),
        ("1 / 0", "cannot be imported: ZeroDivisionError: division by zero"),
        ("def f(:", "cannot be imported: SyntaxError"),
        ("raise SystemExit(3)", "cannot be imported: SystemExit"),
        ("from pyrovae.priors import Vamp\nclass V(Vamp): ...", "Vamp is final"),
        ("from pyrovae.priors import Prior\nclass Vamp(Prior): ...", "the kind 'vamp' is taken"),
    ],
    ids=["dependency", "raises", "syntax", "exits", "subclasses", "taken"],
)
def test_a_broken_module(source, message, beside):
    with pytest.raises(Error, match=f"^import: .*{message}"):
        read_spec(beside(source))


def test_an_empty_module_name():
    with pytest.raises(Error, match=r"^import: "):
        parse(vae() | {"import": [""]}, "s")


# The JSON schema


JSON = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
}


def obeys(value, rule, defs):
    """Whether a value obeys a JSON schema; the keywords that pydantic and `schema` write."""
    if "$ref" in rule:
        return obeys(value, defs[rule["$ref"].removeprefix("#/$defs/")], defs)
    items, named = (value if isinstance(value, kind) else kind() for kind in (list, dict))
    properties, others = rule.get("properties", {}), rule.get("additionalProperties", {})
    tests = [
        "type" not in rule or isinstance(value, JSON[rule["type"]]),
        "const" not in rule or value == rule["const"],
        "enum" not in rule or value in rule["enum"],
        "anyOf" not in rule or any(obeys(value, option, defs) for option in rule["anyOf"]),
        all(obeys(item, rule.get("items", {}), defs) for item in items),
        all(key in value for key in rule.get("required", ()) if isinstance(value, dict)),
        others is not False or named.keys() <= properties.keys(),
        all(obeys(entry, properties.get(key, others or {}), defs) for key, entry in named.items()),
    ]
    return all(tests)


def nodes(tree):
    yield tree
    if isinstance(tree, (dict, list)):
        for child in tree.values() if isinstance(tree, dict) else tree:
            yield from nodes(child)


def test_the_schema_is_json():
    assert json.loads(json.dumps(schema(), allow_nan=False)) == schema()


def test_every_reference_of_the_schema_leads_somewhere():
    tree = schema()
    found = {node["$ref"] for node in nodes(tree) if isinstance(node, dict) and "$ref" in node}
    assert found <= {f"#/$defs/{name}" for name in tree["$defs"]}


def test_the_types_of_the_schema_are_those_of_json():
    tree = schema()["$defs"]
    rules = [node for node in nodes(tree) if isinstance(node, dict)]
    found = {rule["type"] for rule in rules if isinstance(rule.get("type"), str)}
    assert found <= JSON.keys()


@pytest.mark.parametrize("role", roles())
def test_the_schema_names_every_member_with_its_fields(role):
    defs, role = schema()["$defs"], roles()[role]
    bare = next(option for option in defs[role.__name__]["anyOf"] if "enum" in option)
    assert bare["enum"] == sorted(role.members)
    for kind, member in role.members.items():
        own = defs[f"{role.__name__}.{kind}"]
        assert own["properties"].keys() >= {"kind", *member.fields.model_fields}
        assert own["description"]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_obey_the_schema(path, forgetful):
    read_spec(path)
    tree = schema()
    assert obeys(tomllib.loads(path.read_text()), tree, tree["$defs"])


@pytest.mark.parametrize(
    ("tree", "good"),
    [
        (vae(), True),
        (vae(prior="vamp"), True),
        (vae(prior={"kind": "vamp", "components": 5}), True),
        (vae(prior={"kind": "vamp", "components": [5, 10]}), True),
        (vae(prior=["vamp", "standard-normal"]), True),
        (vae(train={"epochs": 5}) | {"train": {"objective": "elbo"}}, True),
        ({"models": {"a": MODEL, "b": {"extends": "a"}}}, True),
        (vae() | {"data": {"context": ["a"], "labels": "b", "offset": "c"}}, True),
        (vae(kind="conditional-vae"), True),
        (vae(kind="semi-supervised-vae", alpha=1.0), True),
        (vae() | {"data": {"context": "a"}}, False),
        (vae() | {"data": {"labels": ["a"]}}, False),
        (vae(prior="vampp"), False),
        (vae(prior={"kind": "vamp", "component": 5}), False),
        (vae(z="two"), False),
        (vae() | {"trian": {}}, False),
        (vae() | {"train": {"epoch": 1}}, False),
    ],
)
def test_the_schema_takes_what_a_spec_takes(tree, good):
    rules = schema()
    assert obeys(tree, rules, rules["$defs"]) == good
