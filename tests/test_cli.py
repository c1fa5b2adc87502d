"""The command line: what it writes and prints; a mistake costs one line and no file."""

import csv
import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import tomli_w
import torch

from pyrovae import load, log_likelihood, log_weights, open_run
from pyrovae.assessment import PLOTS
from pyrovae.catalogue import roles
from pyrovae.cli import main
from pyrovae.experiment import compare_spec, fit_spec
from pyrovae.inference import SVI
from pyrovae.place import seeded
from pyrovae.specs import read_spec

EVALUATE = ("evaluate", "--depth=likelihood")
NETWORKS = {name: {"kind": "mlp", "hidden": [8]} for name in ("encoder", "decoder")}
SETTINGS = {"train": {"epochs": 2, "batch_size": 32}, "evaluate": {"particles": 20}}
VAE = {"kind": "vae", "z": [2], "likelihood": "normal"} | NETWORKS
IRIS = SETTINGS | {"data": {"name": "iris", "transforms": ["standardize"]}, "model": VAE}
DIGITS = SETTINGS | {
    "data": {"name": "digits", "transforms": ["binarize"]},
    "train": {"epochs": 2, "batch_size": 512},
    "model": VAE | {"likelihood": "bernoulli"},
}
SPECS = {
    "iris": IRIS,
    "digits": DIGITS,
    "file": IRIS | {"data": {"path": "rows.npy"}},
    "plain": SETTINGS | {"model": VAE, "data": {"path": "rows.npy", "validation": 0.0}},
    "mixture": SETTINGS | {"model": {"kind": "mixture"}, "data": {"path": "rows.npy"}},
    "two": SETTINGS
    | {
        "data": {"name": "iris", "transforms": ["standardize"]},
        "models": {
            "vae": VAE,
            "vamp": {"extends": "vae", "prior": {"kind": "vamp", "components": 5}},
            "mixture": {"kind": "mixture", "components": [1, 2], "family": "normal"},
        },
    },
    "given": SETTINGS
    | {
        "data": {
            "path": "people.csv",
            "context": ["sex", "age"],
            "labels": "ill",
            "transforms": ["standardize"],
        },
        "models": {
            "a": VAE | {"kind": "conditional-vae", "missing": True},
            "b": {"extends": "a", "z": [3]},
        },
    },
    "unlike": SETTINGS
    | {
        "data": {"path": "people.csv", "context": ["sex"], "labels": "ill"},
        "models": {
            "a": VAE | {"kind": "conditional-vae", "missing": True},
            "b": VAE | {"kind": "semi-supervised-vae", "missing": True},
        },
    },
    "measures": SETTINGS
    | {
        "data": {"path": "bits.npy"},
        "models": {"a": VAE, "b": {"extends": "a", "likelihood": "bernoulli"}},
    },
}


def with_bad_row(x, part, value):
    """The rows with one value replaced that lands in this part of the split."""
    rows = load(np.arange(len(x), dtype=float)[:, None])
    x = x.copy()
    x[int(getattr(rows, part).x[0]), 0] = value
    return x


def write_data(folder):
    random = np.random.default_rng(0)
    x = random.normal(size=(200, 4))
    arrays = {
        "rows": x,
        "bits": (x > 0).astype(float),
        "grey": random.uniform(size=(200, 4)),
        "counts": random.poisson(3, size=(200, 4)).astype(float),
        "levels": random.integers(0, 255, size=(200, 4), dtype=np.uint8),
        "images": random.normal(size=(200, 1, 4, 4)),
        "nan": x * np.nan,
        "inf": np.where(x > 0, np.inf, x),
        "empty": np.empty((0, 4)),
        "few": x[:3],
        "vector": x[:, 0],
        "words": np.full((200, 4), "word"),
        "large": np.full((200, 4), 1e30),
    }
    for part in ("train", "validation", "test"):
        arrays[f"nan-in-{part}"] = with_bad_row(x, part, np.nan)
        arrays[f"grey-in-{part}"] = with_bad_row(arrays["bits"], part, 0.5)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    (folder / "people.csv").write_text("\n".join(people(random)))
    (folder / "text.npy").write_text("1,2\n3,4\n")
    (folder / "words.csv").write_text("a,word\n" + "1,red\n" * 50)
    (folder / "ragged.csv").write_text("a,b\n1,2\n3\n")


def people(random):
    """Lines of a table with words, a few cells of which are empty."""
    yield "weight,height,sex,age,ill"
    for index in range(100):
        weight, height = random.normal([70, 170], 10)
        ill = ("no", "yes", "")[index % 3]
        yield f"{weight if index % 9 else ''},{height},{'fm'[index % 2]},{index % 50},{ill}"


def damage(runs):
    """Runs that are broken, each in its own way."""
    names = ("torn", "swapped", "unweighted", "garbled", "listed", "unspecified", "modelless")
    broken = {name: shutil.copytree(runs / "iris", runs / name) for name in names}
    weights = (runs / "iris" / "weights.safetensors").read_bytes()
    (broken["torn"] / "weights.safetensors").write_bytes(weights[:-50])
    shutil.copy(runs / "digits" / "weights.safetensors", broken["swapped"])
    (broken["unweighted"] / "weights.safetensors").unlink()
    (broken["garbled"] / "results.json").write_text('{"seed": ')
    (broken["listed"] / "results.json").write_text("[]")
    (broken["unspecified"] / "spec.toml").write_text("[model")
    (broken["modelless"] / "spec.toml").write_text("[data]\nname = 'iris'\n")
    shutil.copytree(runs / "two", runs / "two-torn")
    (runs / "two-torn" / "vae" / "weights.safetensors").write_bytes(b"torn")
    shutil.copytree(runs / "two", runs / "two-garbled")
    (runs / "two-garbled" / "vamp" / "results.json").write_text("{")
    (runs / "thesis").mkdir()
    (runs / "thesis" / "chapter.tex").write_text("years of work")


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    folder = tmp_path_factory.mktemp("template")
    write_data(folder)
    for name, tree in SPECS.items():
        (folder / f"{name}.toml").write_text(tomli_w.dumps(tree))
    (folder / "no.toml").write_text("[data\nname = 1")
    (folder / "binary.toml").write_bytes(b"\xff\xfe\x00\x01")
    (folder / "empty.toml").write_text("")
    (folder / "a-file").write_text("not a folder")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("iris", "digits", "file"):
            fit_spec(read_spec(Path(f"{name}.toml")), Path("runs", name), False, str)
        for name in ("two", "given"):
            compare_spec(read_spec(Path(f"{name}.toml")), Path("runs", name), False, str)
        damage(Path("runs"))
    return folder


@pytest.fixture
def here(template, tmp_path, monkeypatch):
    """A folder with specs, data and runs, which is the current one."""
    folder = tmp_path / "here"
    shutil.copytree(template, folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def ask(monkeypatch, capsys):
    """Call the command line in this process: its exit code, its output, its errors."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["pyrovae", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capsys.readouterr()
        return end.value.code or 0, out, err

    return call


@pytest.fixture
def no_steps(monkeypatch):
    """Taking a gradient step is an error."""

    def step(self, batch):
        raise AssertionError("a gradient step was taken")

    monkeypatch.setattr(SVI, "step", step)


def listing(folder):
    """Every path below a folder, with the contents of the files."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def results(folder):
    return json.loads((Path(folder) / "results.json").read_text())


def weights(folder):
    return (Path(folder) / "weights.safetensors").read_bytes()


# fit


@pytest.mark.parametrize("name", ["iris", "digits", "file"])
def test_fit_saves_a_run(name, here, ask):
    code, out, err = ask("fit", f"{name}.toml", "--out", "a/b")
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == "saved in a/b"
    files = {path.name for path in Path("a/b").iterdir()}
    assert files == {"spec.toml", "weights.safetensors", "history.csv", "results.json"}
    assert [path.name for path in Path("a").iterdir()] == ["b"]


def test_fit_without_out_goes_to_runs(here, ask):
    shutil.rmtree("runs")
    assert ask("fit", "iris.toml")[0] == 0
    assert (here / "runs" / "iris" / "spec.toml").is_file()


def test_the_files_of_a_run(here):
    run = here / "runs" / "iris"
    spec = tomllib.loads((run / "spec.toml").read_text())
    history = list(csv.DictReader((run / "history.csv").read_text().splitlines()))
    found = results(run)
    assert spec["train"] == IRIS["train"]
    assert spec["data"] == IRIS["data"]
    assert [float(row["loss"]) > 0 for row in history] == [True, True]
    assert found["seed"] == 0
    assert found["epochs"] == 2
    assert found["versions"]["torch"] == torch.__version__
    assert found["versions"].keys() >= {"pyrovae", "torch", "pyro-ppl", "numpy"}
    assert found["parameters"] == open_run(run).model.parameter_count
    assert found["fingerprint"] == load(name="iris").fingerprint


def test_a_fit_is_a_function_of_its_spec(here, ask):
    ask("fit", "iris.toml", "--out", "again")
    ask("fit", "iris.toml", "--out", "other", "--set", "train.seed=1")
    assert weights("again") == weights("runs/iris")
    assert weights("other") != weights("runs/iris")
    assert results("other")["seed"] == 1


@pytest.mark.parametrize("name", ["iris", "digits"])
def test_the_spec_of_a_run_fits_it_again(name, here, ask):
    assert ask("fit", f"runs/{name}/spec.toml", "--out", "again")[0] == 0
    assert weights("again") == weights(f"runs/{name}")


def test_set_changes_the_spec_of_the_run(here, ask):
    ask("fit", "iris.toml", "--out", "a", "--set", "model.prior.kind=vamp", "--set",
        "model.prior.components=5", "--set", "train.epochs=1")  # fmt: skip
    spec = tomllib.loads((here / "a" / "spec.toml").read_text())
    assert spec["train"]["epochs"] == 1
    assert open_run(here / "a").model.base.prior.components == 5


def test_force_replaces_a_run(here, ask):
    code, _, _ = ask("fit", "iris.toml", "--force", "--set", "train.epochs=1")
    assert code == 0
    assert results("runs/iris")["epochs"] == 1
    assert not [path for path in Path("runs").iterdir() if path.name.startswith(".")]


def test_a_choice_is_made_and_saved(here, ask):
    code, _, _ = ask("fit", "mixture.toml", "--set", "model.components=[1, 2]", "--out", "a")
    assert code == 0
    found = results("a")
    means = {tried["choice"]: tried["validation"] for tried in found["tried"]}
    assert means.keys() == {"components=1", "components=2"}
    assert found["chosen"] == max(means, key=means.get)
    assert open_run(here / "a").model.components == int(found["chosen"][-1])


def test_open_run_gives_the_model_that_was_fitted(here):
    fitted = fit_spec(read_spec(Path("iris.toml")), Path("a"), False, str).model
    rows = load(name="iris").test.x.float()
    found = []
    for model in (fitted, open_run(here / "a").model, open_run(here / "a").model):
        with seeded(3):
            found.append(log_weights(model, rows, 7).detach())
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[1], found[2])


def test_the_rows_of_load_go_into_log_weights(here):
    assert (
        log_weights(open_run(here / "runs" / "iris").model, load(name="iris").test)
        .isfinite()
        .all()
    )


def test_opening_a_run_draws_nothing_from_the_global_generator(here):
    before = torch.random.get_rng_state()
    open_run(here / "runs" / "iris")
    assert torch.equal(torch.random.get_rng_state(), before)


# evaluate


@pytest.mark.parametrize("name", ["iris", "digits", "file"])
def test_evaluate_prints_the_figure_and_records_it(name, here, ask):
    code, out, err = ask(*EVALUATE, f"runs/{name}")
    assert (code, err) == (0, "")
    found = results(f"runs/{name}")["log_likelihood"]
    assert out.splitlines()[-1].startswith(f"log p(x) = {found['mean']:.2f} ± {found['se']:.2f}")
    assert found["particles"] == 20
    assert found["kind"] == "lower bound"


def test_evaluate_asks_all_there_is_unless_told_otherwise(here, ask, little):
    before = listing(here)
    code, out, err = ask("evaluate", "runs/iris")
    assert code == 0
    assert err.startswith("quick evaluation: about ")
    assert out.startswith("runs/iris: quick evaluation\n")
    assert out.splitlines()[-1].startswith("log p(x) = ")
    run = here / "runs" / "iris"
    assert (run / "evaluation.txt").read_text() == out
    assert results("runs/iris")["evaluation"]["guide"]["verdict"]
    new = {path.removeprefix("runs/iris/") for path in listing(here).keys() - before.keys()}
    plots = {f"plots/{name}.png" for name in PLOTS}
    assert new == {"evaluation.txt", "results.nc", "plots"} | plots
    assert ask(*EVALUATE, "runs/iris")[1] in out
    assert open_run(run).results["evaluation"]["depth"] == "quick"


def test_a_depth_that_there_is_not_is_refused(here, ask):
    code, _, err = ask("evaluate", "runs/iris", "--depth=deep")
    assert code == 2
    assert "'deep' is not one of" in err


def test_evaluate_prints_no_nan(here, ask):
    assert "nan" not in ask(*EVALUATE, "runs/iris")[1]


def test_evaluate_changes_results_json_only(here, ask):
    before = listing(here)
    ask(*EVALUATE, "runs/iris")
    after = listing(here)
    assert {path for path in after if before.get(path) != after[path]} == {
        "runs/iris/results.json"
    }
    old, new = (json.loads(tree["runs/iris/results.json"]) for tree in (before, after))
    assert new.pop("log_likelihood")
    assert new.pop("evaluated")["evaluate"] == {"particles": 20}
    assert new == old


def test_evaluate_twice_is_the_same(here, ask):
    assert ask(*EVALUATE, "runs/iris") == ask(*EVALUATE, "runs/iris")


def test_evaluate_takes_other_settings(here, ask):
    ask(*EVALUATE, "runs/iris", "--set", "evaluate.particles=30", "--set", "evaluate.rows=7")
    found = results("runs/iris")["log_likelihood"]
    assert (found["particles"], found["rows"]) == (30, 7)
    spec = tomllib.loads((here / "runs" / "iris" / "spec.toml").read_text())
    assert spec["evaluate"] == {"particles": 20}


def test_evaluate_refuses_data_that_are_others_than_at_the_fit(here, ask):
    np.save("rows.npy", np.random.default_rng(5).normal(size=(300, 4)))
    code, _, err = ask(*EVALUATE, "runs/file")
    assert code == 2
    assert "data" in err


# compare


def test_compare_fits_and_saves_every_model(here, ask):
    shutil.rmtree("runs")
    code, out, err = ask("compare", "two.toml")
    assert (code, err) == (0, "")
    found = results("runs/two")
    assert found["models"].keys() == {"vae", "vamp", "mixture"}
    for name, entry in found["models"].items():
        assert f"{name}: fitted in" in out
        assert f"{entry['log_likelihood']['mean']:.2f} ±" in out
        own = results(f"runs/two/{name}")["log_likelihood"]
        assert own == entry["log_likelihood"]
    assert "chosen by log p(x) on the validation rows" in out
    assert out.splitlines()[-1] == "saved in runs/two"


def test_compare_reuses_finished_runs(here, ask, no_steps):
    before = listing(here / "runs" / "two")
    code, out, _ = ask("compare", "two.toml")
    assert code == 0
    assert out.count("reused, its spec is unchanged") == 3
    assert listing(here / "runs" / "two") == before


def test_compare_refits_nothing_for_another_evaluation(here, ask, no_steps):
    before = {name: weights(f"runs/two/{name}") for name in ("vae", "vamp", "mixture")}
    code, out, _ = ask("compare", "two.toml", "--set", "evaluate.particles=40")
    assert code == 0
    assert out.count("reused") == 3
    assert {name: weights(f"runs/two/{name}") for name in before} == before
    assert results("runs/two")["models"]["vae"]["log_likelihood"]["particles"] == 40


def test_compare_fits_only_the_model_that_is_new(here, ask):
    shutil.rmtree("runs/two/vamp")
    out = ask("compare", "two.toml")[1]
    assert out.count("reused") == 2
    assert "vamp: fitted in" in out


def test_compare_takes_the_spec_that_it_saved(here, ask, no_steps):
    code, out, _ = ask("compare", "runs/two/spec.toml", "--out", "runs/two")
    assert code == 0
    assert out.count("reused") == 3


def test_compare_refuses_runs_that_saw_other_data(here, ask, no_steps):
    shutil.copytree("runs/file", "a/model")
    np.save("rows.npy", np.full((200, 4), 0.5))
    code, _, err = ask("compare", "file.toml", "--out", "a")
    assert code == 2
    assert "'a/model' was fitted with another spec (the data themselves)" in err


def test_compare_with_force_fits_again(here, ask):
    code, out, _ = ask("compare", "two.toml", "--force", "--set", "train.epochs=1")
    assert code == 0
    assert out.count("fitted in") == 3
    assert results("runs/two/vae")["epochs"] == 1


def test_compare_takes_a_spec_of_one_model(here, ask):
    code, out, _ = ask("compare", "iris.toml", "--out", "a")
    assert code == 0
    assert "model: fitted in" in out


def test_compare_overwrites_no_file_that_is_not_its_own(here, ask):
    shutil.copy("two.toml", "spec.toml")
    before = Path("spec.toml").read_bytes()
    ask("compare", "spec.toml", "--out", ".")
    assert Path("spec.toml").read_bytes() == before


def test_compare_with_seeds_and_a_grid(here, ask):
    grid = "grid.models.vae.z=[[1], [2]]"
    code, out, err = ask("compare", "two.toml", "--out", "a", "--seeds", 2, "--set", grid)
    assert (code, err) == (0, "")
    assert out.count("fitted in") == 8
    assert "SD over seeds" in out
    assert "vae, z=2, seed 1: fitted in" in out
    assert open_run("a/vae-z=1-seed-1").model.base.z == (1,)
    assert ask(*EVALUATE, "a/vae-z=1-seed-1")[0] == 0


def test_compare_goes_on_from_one_seed_to_several(here, ask):
    code, out, _ = ask("compare", "two.toml", "--seeds", 2)
    assert code == 0
    assert (out.count("reused"), out.count("fitted in")) == (3, 3)


@pytest.mark.parametrize(
    ("form", "first"),
    [
        ("markdown", "| model |"),
        ("latex", "% "),
        ("csv", "model,"),
        ("json", "{"),
    ],
)
def test_compare_prints_the_table_alone_for_other_programs(form, first, here, ask):
    code, out, err = ask("compare", "two.toml", "--format", form)
    assert code == 0
    assert out.startswith(first)
    assert err.count("reused") == 3
    assert err.endswith("saved in runs/two\n")
    suffix = {"markdown": "md", "latex": "tex", "json": "json"}.get(form, form)
    written = "results" if form == "json" else "comparison"
    assert out == Path(f"runs/two/{written}.{suffix}").read_text()


def test_compare_minds_no_draft_that_was_left(here, ask):
    Path("runs/two/.vamp-x1y2").mkdir()
    Path("runs/two/.results.json.draft").write_text("{")
    assert ask("compare", "two.toml")[0] == 0


def test_a_comparison_that_was_stopped_while_it_was_written_goes_on(here, ask):
    Path("runs/two/results.json").unlink()
    Path("runs/two/spec.toml").unlink()
    assert ask("compare", "two.toml")[1].count("reused") == 3


@pytest.mark.parametrize("name", ["vae-with-a-vamp-prior-of-5-components", "a" * 60])
def test_compare_cuts_no_figure_for_a_long_name(name, here, ask):
    out = ask("compare", "two.toml", "--out", "a", f"--set=models.{name}.extends=vae")[1]
    assert name in out
    assert "\u2026" not in out


# sample


def test_sample_writes_npy(here, ask):
    code, out, err = ask("sample", "runs/iris", "--rows", 5)
    assert (code, err) == (0, "")
    assert out == "5 rows in runs/iris/samples.npy\n"
    assert np.load("runs/iris/samples.npy").shape == (5, 4)


def test_sample_writes_csv(here, ask):
    ask("sample", "runs/iris", "--rows", 5, "--out", "x.csv")
    ask("sample", "runs/iris", "--rows", 5, "--out", "x.npy")
    np.testing.assert_allclose(np.loadtxt("x.csv", delimiter=","), np.load("x.npy"), rtol=1e-6)


def test_sample_writes_png(here, ask):
    assert ask("sample", "runs/digits", "--out", "x.png")[0] == 0
    assert Path("x.png").read_bytes().startswith(b"\x89PNG")


def test_samples_are_a_function_of_the_seed(here, ask):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        ask("sample", "runs/iris", "--seed", seed, "--out", f"{name}.npy")
    a, b, c = (Path(f"{name}.npy").read_bytes() for name in "abc")
    assert a == b != c


def test_samples_are_zeros_and_ones_where_the_likelihood_is(here, ask):
    ask("sample", "runs/digits", "--out", "x.npy")
    assert set(np.load("x.npy").flatten()) == {0.0, 1.0}


def test_sample_with_force_replaces_a_file(here, ask):
    Path("x.npy").write_text("old")
    assert ask("sample", "runs/iris", "--out", "x.npy", "--force")[0] == 0
    assert len(np.load("x.npy")) == 64


# What rows are given


def test_the_context_of_a_model_is_that_of_the_data(here, ask):
    code, out, err = ask("compare", "given.toml", "--force")
    assert (code, err) == (0, "")
    assert "All figures are of log p(x) given the context." in " ".join(out.split())
    assert open_run(here / "runs/given/a").model.base.context == (3,)


def test_a_semi_supervised_model_from_a_table(here, ask):
    model = SETTINGS | {
        "data": {"path": "people.csv", "labels": "ill", "categories": ["sex"]},
        "model": VAE | {"kind": "semi-supervised-vae", "missing": True},
    }
    Path("s.toml").write_text(tomli_w.dumps(model))
    assert ask("fit", "s.toml", "--out", "new")[0] == 0
    model = open_run(here / "new").model
    assert (model.event, model.classes) == ((4,), 2)
    assert ask(*EVALUATE, "new")[0] == 0


def test_samples_are_drawn_given_the_context_of_the_test_rows(here, ask):
    code, out, err = ask("sample", "runs/given/a", "--rows", 25, "--out", "x.npy")
    assert (code, err) == (0, "")
    assert out == "25 rows in x.npy, given the context of the test rows\n"
    test = read_spec(Path("given.toml")).load().test
    rows = test[torch.arange(25) % 20]
    wanted = open_run(here / "runs/given/a").model.sample(rows, seed=0)
    assert np.array_equal(np.load("x.npy"), wanted.numpy())
    assert len(test) == 20


def test_samples_given_a_context_need_the_data_of_the_run(here, ask):
    Path("people.csv").unlink()
    code, _, err = ask("sample", "runs/given/a")
    assert code == 2
    assert "data.path: there is no file 'people.csv'" in err


# list, schema


def test_list_names_every_member(ask):
    code, out, _ = ask("list")
    assert code == 0
    for role in roles().values():
        assert all(kind in out for kind in role.members)


def test_list_of_one_role(ask):
    out = ask("list", "prior")[1]
    assert "vamp" in out
    assert "components" in out
    assert "negative-binomial" not in out


def test_schema_is_json(ask):
    code, out, _ = ask("schema")
    assert code == 0
    assert json.loads(out)["title"] == "pyrovae spec"


# Parts of one's own

WIDE = """
import pyro.distributions as dist
import torch
from torch import nn
from pyrovae.priors import Prior

class WideNormal(Prior):
    "A wide normal."

    def setup(self, z, seen):
        self.loc = nn.Buffer(torch.zeros(z))

    def forward(self, q, context=None):
        return dist.Normal(self.loc, 3.0).to_event(self.loc.dim())
"""


@pytest.fixture
def forget():
    """Forget the module `cli_parts` and its prior, as a new process would."""

    def clear():
        sys.modules.pop("cli_parts", None)
        roles()["prior"].members.pop("wide-normal", None)

    yield clear
    clear()


def test_a_run_with_parts_of_one_s_own(here, ask, forget):
    Path("cli_parts.py").write_text(WIDE)
    tree = IRIS | {"import": ["cli_parts"], "model": VAE | {"prior": "wide-normal"}}
    Path("own.toml").write_text(tomli_w.dumps(tree))
    assert ask("fit", "own.toml", "--out", "own")[0] == 0
    forget()
    code, _, err = ask(*EVALUATE, "own")
    assert code == 2
    assert "unknown prior 'wide-normal'" in err
    assert "parts from cli_parts: pass --import" in err
    assert ask(*EVALUATE, "own", "--import", "cli_parts")[0] == 0
    forget()
    assert ask("sample", "own", "--import", "cli_parts")[0] == 0


# Mistakes


def fit(spec, *changes):
    return ["fit", f"{spec}.toml", "--out", "new", *(f"--set={change}" for change in changes)]


def compare(spec, *changes):
    return ["compare", f"{spec}.toml", "--out", "new", *(f"--set={change}" for change in changes)]


LIKELIHOOD = "model.likelihood"
MISTAKES = [
    # names
    (fit("iris", "model.kind=vaee"), "model: unknown model 'vaee'. Did you mean 'vae'?"),
    (fit("iris", "model.prior=vampp"), "model.prior: unknown prior 'vampp'. Did you mean 'vamp'?"),
    (fit("iris", "model.hiden=3"), "model: unknown field 'hiden'"),
    (fit("iris", "model.encoder.hiden=[3]"), "model.encoder: unknown field 'hiden'. Did you mean"),
    (fit("iris", "train.epoch=3"), "train: unknown field 'epoch'. Did you mean 'epochs'?"),
    (fit("iris", "trian.epochs=3"), "unknown table 'trian'. Did you mean 'train'?"),
    (fit("iris", "data.name=irris"), "data.name: unknown data set 'irris'. Did you mean 'iris'?"),
    (fit("iris", "import=['nowhere_at_all']"), "import: there is no module 'nowhere_at_all'"),
    (fit("iris", "train.device=gpu9"), "device 'gpu9' cannot be used here"),
    (["list", "priors"], "unknown role 'priors'. Did you mean 'prior'?"),
    # types and sizes
    (fit("iris", "train.epochs=many"), "train.epochs: should be a valid integer, got 'many'"),
    (fit("iris", "train.epochs=1.5"), "train.epochs: should be a valid integer, got 1.5"),
    (fit("iris", "model.z=two"), "model.z: should be a valid list, such as [2], got 'two'"),
    (fit("iris", "model.prior=5"), "model.prior: should be a prior"),
    (fit("iris", "data=5"), "data: should be a table, got 5"),
    (fit("iris", "model.kind=['vae', 'mixture']"), "model"),
    (fit("iris", "train.epochs=-1"), "train.epochs: should be greater than 0, got -1"),
    (fit("iris", "model.z=[-2]"), "model.z.0: should be greater than 0, got -2"),
    (fit("iris", "model.z=[0]"), "model.z.0: should be greater than 0, got 0"),
    (fit("iris", "model.encoder.hidden=[-8]"), "model.encoder.hidden.0: should be greater than"),
    (fit("iris", "data.validation=-0.5"), "data.validation: should be greater than or equal to"),
    (fit("iris", "data.test=1.5"), "data.test: should be less than 1, got 1.5"),
    (fit("iris", "evaluate.particles=0"), "evaluate.particles: should be greater than 0, got 0"),
    (fit("iris", "train.learning_rate=nan"), "train.learning_rate: should be "),
    (fit("iris", "train.learning_rate=inf"), "train.learning_rate: should be "),
    (fit("iris", "train.epochs"), "--set takes a dotted path and a value"),
    # data
    (fit("file", "data.path=nowhere.npy"), "data.path: there is no file 'nowhere.npy'"),
    (fit("file", "data.path=text.npy"), "'text.npy' is not what its name says"),
    (fit("file", "data.path=a-file"), "'a-file' is of no known kind"),
    (fit("file", "data.path=words.csv"), "data.columns: column 'word' of 'words.csv' holds 'red'"),
    (fit("file", "data.path=ragged.csv"), "line 3 of 'ragged.csv' has 1 cells, the first has 2"),
    (fit("file", "data.path=words.npy"), "the values of 'words.npy' are not "),
    (fit("file", "data.path=nan.npy"), "data: column '1' of 'nan.npy' is missing in every"),
    (fit("file", "data.path=inf.npy"), "rows of 'inf.npy' hold infinite values"),
    *(
        (fit("file", f"data.path=nan-in-{part}.npy"), f"model.{part}: 1 of {rows} rows hold NaN")
        for part, rows in (("train", 136), ("validation", 24), ("test", 40))
    ),
    (fit("mixture", "data.path=nan-in-test.npy"), "set missing = true on a model that can skip"),
    # what rows are given
    (fit("iris", "data.context=['spepal']"), "data.context: unknown column 'spepal'"),
    (fit("iris", "data.context=target"), "data.context: should be a list of column names"),
    (fit("iris", "data.labels=['target']"), "one row for each of the 150 rows of 'iris', not 1"),
    (fit("iris", "data.labels='petal width (cm)'"), "data.labels: should be whole numbers or"),
    (fit("iris", "data.offset=target"), "data.offset: column 'target' holds 'setosa', no number"),
    (fit("iris", "data.categories=['kind']"), "data.categories: unknown column 'kind'"),
    (fit("iris", "data.context=['target']"), "model.train: the rows have a context, which the"),
    (fit("iris", "data.offset='petal width (cm)'"), "normal takes no size factors"),
    (fit("mixture", "data.context=['a']"), "data.context: the columns have no names"),
    (fit("iris", "model.kind=conditional-vae"), "model.context: is taken from the data, which"),
    (
        fit("iris", "model.kind=semi-supervised-vae"),
        "model.classes: is taken from the data, which",
    ),
    (
        compare("unlike"),
        "a density (Lebesgue measure) given the context, of the other a density (Leb",
    ),
    (fit("file", "data.path=empty.npy"), "data: 'empty.npy' has no row"),
    (fit("file", "data.path=few.npy"), "data: 3 rows are too few"),
    (fit("file", "data.path=vector.npy"), "should have the shape (rows, *x), got (200,)"),
    (fit("file", "data.columns=['a']"), "data.columns: the columns have no names"),
    # data and model
    (fit("file", "data.path=grey.npy", f"{LIKELIHOOD}=bernoulli"), "bernoulli takes 0 or 1"),
    (fit("file", "data.path=grey-in-train.npy", f"{LIKELIHOOD}=bernoulli"), "0 or 1"),
    (fit("file", "data.path=grey-in-validation.npy", f"{LIKELIHOOD}=bernoulli"), "0 or 1"),
    (fit("file", "data.path=grey-in-test.npy", f"{LIKELIHOOD}=bernoulli"), "0 or 1"),
    (fit("file", "data.path=grey.npy", f"{LIKELIHOOD}=poisson"), "whole numbers from 0"),
    (fit("file", f"{LIKELIHOOD}=poisson"), "whole numbers from 0"),
    (fit("file", "data.path=levels.npy"), "are whole levels"),
    (fit("digits", "data.transforms=[]"), "outside the "),
    (fit("digits", f"{LIKELIHOOD}=normal"), "model: the values of 'digits' are whole levels"),
    (
        fit("iris", f"{LIKELIHOOD}=bernoulli"),
        "standardize needs a density: bernoulli takes 0 or 1",
    ),
    (fit("file", "data.transforms=['dequantize']"), "dequantize takes whole numbers, got"),
    (fit("file", "data.transforms=['binarize']"), "binarize takes intensities from 0, got -"),
    (fit("iris", "data.transforms=['standardize', 'binarize']"), "noise comes before invertible"),
    (fit("mixture", "data.path=images.npy"), "(1, 4, 4)"),
    (fit("file", "model.x=[5]"), "have the shape (4,), the model's x has (5,)"),
    # settings that do not fit together
    (fit("iris", "train.batch_size=1000"), "rows are fewer than a batch of 1000"),
    (fit("plain", "train.patience=2"), "early stopping judges by validation rows"),
    (fit("plain", "model.prior=['vamp', 'standard-normal']"), "made on validation rows"),
    (fit("iris", "model.prior=[]"), "model.prior: is a choice among nothing"),
    (fit("iris", "train.method=em"), "EM cannot fit the model"),
    (fit("mixture", "model.components=500"), "500 components need at least as many rows"),
    (fit("two"), "'two' has several models"),
    (fit("iris", "seeds=2"), "'iris' has several seeds: use pyrovae compare"),
    (fit("iris", "grid.model.z=[[1], [2]]"), "'iris' has several models: use pyrovae compare"),
    (compare("two", "seeds=0"), "seeds: should be a whole number from 1, got 0"),
    (compare("two", "grid.data.seed=[1, 2]"), "grid.data.seed: figures of different data"),
    (compare("two", "grid.models.vae.z=[]"), "grid.models.vae.z: should be a list of values"),
    (compare("two", "grid.models.vae.z=[[2], [-2]]"), "models.vae.z.0: should be greater than 0"),
    (compare("two", "grid.train.learning_rat=[1.0]"), "train: unknown field 'learning_rat'"),
    (compare("two", "models.vamp.extends=vaee"), "models.vamp.extends: unknown model 'vaee'"),
    (compare("two", "models.mixture.extends=mixture"), "'mixture' extends itself"),
    (compare("two", "models.vamp.train.batch_size=1000"), "fewer than a batch of 1000"),
    (compare("two", "models.vamp.train.method=em"), "EM cannot fit the model"),
    (compare("two", "models.vamp.train.device=gpu9"), "device 'gpu9' cannot be used here"),
    (compare("two", "models.mixture.components=500"), "500 components need at least as many"),
    (compare("measures"), "'a' and 'b' cannot be compared: log p(x) of the one is a density"),
    (
        fit("file", "data.path=bits.npy", f"{LIKELIHOOD}=['bernoulli', 'normal']"),
        "cannot be compared",
    ),
    # files
    (fit("nowhere"), "there is no spec file 'nowhere.toml'"),
    (fit("no"), "'no.toml' is no TOML file"),
    (fit("binary"), "'binary.toml' is no TOML file"),
    (fit("empty"), "either one table [model] or several"),
    (["fit", "runs"], "there is no spec file 'runs'"),
    (["fit", "a" * 300], "aaa"),
    (["fit", "iris.toml", "--out", "a" * 300], "aaa"),
    (fit("file", f"data.path={'a' * 300}"), "aaa"),
    (fit("file", "data.path="), "data.path: "),
    (["fit", "iris.toml", "--out", "."], "'.' exists"),
    (["fit", "iris.toml", "--out", ".", "--force"], "'.' is no run"),
    (["fit", "iris.toml"], "'runs/iris' exists: name another folder with --out, or replace it"),
    (["fit", "iris.toml", "--out", "a-file"], "'a-file' exists"),
    (["fit", "iris.toml", "--out", "a-file/run"], "'a-file/run' cannot be written"),
    (["fit", "iris.toml", "--out", "runs/thesis"], "'runs/thesis' exists"),
    (["fit", "iris.toml", "--out", "runs/thesis", "--force"], "'runs/thesis' is no run"),
    (["fit", "iris.toml", "--out", "a-file", "--force"], "'a-file' is no run"),
    (["compare", "two.toml", "--out", "runs/iris"], "'runs/iris' is the run of one model"),
    (["compare", "two.toml", "--out", "a-file"], "'a-file"),
    (["compare", "two.toml", "--out", "runs/thesis"], "'runs/thesis' holds 'chapter.tex', no run"),
    (["compare", "two.toml", "--set=train.epochs=3"], "train.epochs: 2 is now 3"),
    (["compare", "two.toml", "--set=models.vae.z=[3]"], "model.z: "),
    (["compare", "two.toml", "--set=data.seed=3"], "data.seed: unset is now 3"),
    (["compare", "two.toml", "--out", "runs/two-torn"], "weights.safetensors' cannot be read"),
    (["compare", "two.toml", "--out", "runs/two-garbled"], "results.json' is damaged"),
    # runs
    *(
        ([command, f"runs/{run}"], message)
        for command in ("evaluate", "sample")
        for run, message in [
            ("nowhere", "'runs/nowhere' is no run: spec.toml cannot be read"),
            ("torn", "'runs/torn/weights.safetensors' cannot be read"),
            ("swapped", "the weights in 'runs/swapped' do not belong to the model"),
            ("unweighted", "'runs/unweighted/weights.safetensors' cannot be read"),
            ("garbled", "'runs/garbled/results.json' is damaged"),
            ("listed", "'runs/listed/results.json' is damaged"),
            ("unspecified", "'runs/unspecified/spec.toml' is damaged"),
            ("modelless", "runs/modelless"),
            ("thesis", "'runs/thesis' is no run"),
            ("two", "runs/two"),
        ]
    ),
    (["evaluate", "a-file"], "'a-file' is no run"),
    (["evaluate", "runs/iris", "--set=train.epochs=3"], "takes changes of evaluate and data.path"),
    (["evaluate", "runs/iris", "--set=evaluate"], "got 'evaluate'"),
    (["evaluate", "runs/iris", "--set=evaluate.particles=0"], "evaluate.particles: should be"),
    (["evaluate", "runs/iris", "--set=data.name=wine"], "takes changes of evaluate and data.path"),
    (["evaluate", "runs/file", "--set=data.path=nowhere.npy"], "there is no file 'nowhere.npy'"),
    (["evaluate", "runs/iris", "--import=nowhere_at_all"], "there is no module 'nowhere_at_all'"),
    (["sample", "runs/iris", "--out=x.txt"], "samples are written as .csv, .npy, .png"),
    (["sample", "runs/iris", "--out=x.png"], "a png needs rows that are images"),
    (["sample", "runs/iris", "--out=rows.npy"], "'rows.npy' exists"),
    (["sample", "runs/iris", "--out=nowhere/x.npy"], "'nowhere/x.npy' cannot be written"),
]


@pytest.mark.parametrize(
    ("words", "message"), MISTAKES, ids=[" ".join(words)[:90] for words, _ in MISTAKES]
)
def test_a_mistake_costs_one_line_and_no_file(words, message, here, ask, no_steps):
    before = listing(here)
    code, out, err = ask(*words)
    assert code == 2
    assert err.startswith("pyrovae: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    assert message in err
    assert "Traceback" not in out + err
    assert listing(here) == before


@pytest.mark.parametrize(
    "words",
    [
        ["fit"],
        ["fitt", "iris.toml"],
        ["fit", "iris.toml", "--sett", "train.epochs=1"],
        ["fit", "iris.toml", "digits.toml"],
        ["fit", "iris.toml", "--set"],
        ["sample", "runs/iris", "--rows", "0"],
        ["sample", "runs/iris", "--rows", "many"],
        ["sample", "runs/iris", "--seed", "-1"],
        ["schema", "prior"],
        ["compare", "two.toml", "--seeds", "0"],
        ["compare", "two.toml", "--processes", "0"],
        ["compare", "two.toml", "--format", "docx"],
    ],
    ids=" ".join,
)
def test_a_wrong_option_is_a_usage_error(words, here, ask):
    before = listing(here)
    code, out, err = ask(*words)
    assert code == 2
    assert "Usage: " in err or "Error" in err or "name a spec file, or a folder to go on" in err
    assert "Traceback" not in out + err
    assert listing(here) == before


def test_a_mistake_in_a_process_of_its_own(here):
    done = subprocess.run(
        [sys.executable, "-m", "pyrovae", *fit("iris", "model.prior=vampp")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("pyrovae: model.prior: unknown prior 'vampp'")
    assert done.stderr.count("\n") == 1


# Fits that fail


def test_a_fit_that_fails_in_its_first_epoch_saves_nothing(here, ask):
    before = listing(here)
    code, _, err = ask("fit", "iris.toml", "--out", "a", "--set", "train.learning_rate=1e12")
    assert code == 2
    assert "failed in epoch 0, step 1: 'base." in err
    assert err.count("\n") == 1
    assert listing(here) == before


FAIL = ("--set", "train.learning_rate=1e12", "--set", "train.batch_size=102")


def test_a_fit_that_fails_later_saves_the_last_good_weights(here, ask):
    code, _, err = ask("fit", "iris.toml", "--out", "a", *FAIL)
    assert code == 2
    assert err.startswith("pyrovae: the fit failed in epoch 1, step 0: ")
    assert "saved in 'a'" in err
    assert err.count("\n") == 1
    found = results("a")
    assert "epoch 1, step 0" in found["failed"]
    assert (found["epochs"], found["stopped"]) == (1, "failed")
    assert len(Path("a/history.csv").read_text().splitlines()) == 2
    assert all(tensor.isfinite().all() for tensor in open_run(here / "a").model.parameters())


def test_a_failed_fit_is_not_evaluated(here, ask):
    ask("fit", "iris.toml", "--out", "a", *FAIL)
    before = listing(here)
    code, _, err = ask(*EVALUATE, "a")
    assert code == 2
    assert "the fit in 'a' failed: " in err
    assert listing(here) == before


def test_compare_fits_a_failed_run_again(here, ask):
    fail = [word.replace("train.", "models.vae.train.") for word in FAIL]
    code, out, err = ask("compare", "two.toml", "--out", "a", *fail)
    assert code == 2
    assert err.startswith("pyrovae: 'vae': the fit failed in epoch 1, step 0: ")
    assert err.endswith("; 1 of 3 runs are finished\n")
    assert err.count("\n") == 1
    assert "mixture: fitted in" in out
    code, out, _ = ask("compare", "two.toml", "--out", "a")
    assert code == 0
    assert out.count("fitted in") == 2
    assert "mixture: reused" in out


def test_a_fit_over_data_that_overflow_says_so(here, ask):
    code, _, err = ask("fit", "file.toml", "--out", "a", "--set", "data.path=large.npy")
    assert code == 2
    assert "failed in epoch 0, step 0: " in err
    assert not Path("a").exists()


# Imports

HEAVY = {"torch", "pyro", "sklearn", "matplotlib", "arviz_stats", "pandas", "zuko", "numpy"}


@pytest.mark.parametrize("words", [["-c", "import pyrovae"], ["-m", "pyrovae", "--help"]])
def test_nothing_heavy_is_imported(words):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *words], capture_output=True, text=True, check=True
    )
    found = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "pyrovae" in found
    assert not found & HEAVY


def test_a_choice_is_made_on_validation_rows(here):
    spec = read_spec(Path("mixture.toml"), ["model.components=[1, 2, 3]", "evaluate.particles=20"])
    run, data = fit_spec(spec, Path("a"), False, str), spec.load()
    best = max(run.results["tried"], key=lambda tried: tried["validation"])
    assert run.results["chosen"] == best["choice"]
    assert best["validation"] == pytest.approx(log_likelihood(run.model, data.validation).mean)
    assert len(Path("a/history.csv").read_text().splitlines()) == 1 + run.results["epochs"]
