"""Seeds, grids and choices of a spec, and fits in processes: what is fitted, and what remains."""

import json
import os
import shutil
import threading
import time
import tomllib
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import tomli_w
import torch
from test_specs import forgetful, obeys  # noqa: F401
from torch import nn

from pyrovae import Error, open_run, parallel
from pyrovae.experiment import compare_spec, evaluate_run, fit_spec, sample_run
from pyrovae.parallel import Worker
from pyrovae.plans import planned
from pyrovae.runs import is_run
from pyrovae.schema import schema
from pyrovae.specs import parse, read_spec
from pyrovae.variants import candidates, folder_name

SMALL = {"kind": "mlp", "hidden": [4]}
VAE = {"kind": "vae", "z": [1], "likelihood": "normal", "encoder": SMALL, "decoder": SMALL}
MIXTURE = {"kind": "mixture", "components": 1, "family": "normal"}
TWO = {"models": {"vae": VAE, "mixture": MIXTURE}}
ONE = {"model": VAE}


def spec(tree, **grid):
    return parse(tree | {"grid": grid}, "s")


# What a grid declares


def test_each_point_is_a_model_named_after_what_differs():
    found = spec(
        TWO,
        **{
            "models.vae.z": [[2], [8]],
            "models.vae.prior": ["standard-normal", {"kind": "vamp", "components": 50}],
        },
    ).models
    assert list(found) == [
        "vae, z=2, prior=standard-normal",
        "vae, z=2, prior=vamp(components=50)",
        "vae, z=8, prior=standard-normal",
        "vae, z=8, prior=vamp(components=50)",
        "mixture",
    ]
    last = found["vae, z=8, prior=vamp(components=50)"]
    assert last == VAE | {"z": [8], "prior": {"kind": "vamp", "components": 50}}
    assert found["mixture"] == MIXTURE


def test_the_points_of_the_only_model_are_named_after_what_differs_alone():
    found = spec(ONE, **{"model.z": [[1], [2]], "train.learning_rate": [1e-3, 1e-4]})
    assert list(found.models) == [
        f"z={z}, learning_rate={rate}" for z in (1, 2) for rate in (0.001, 0.0001)
    ]
    assert {name: found.train[name] for name in list(found.models)[:2]} == {
        "z=1, learning_rate=0.001": {"learning_rate": 0.001},
        "z=1, learning_rate=0.0001": {"learning_rate": 0.0001},
    }
    assert set(found.paths.values()) == {"model"}


def test_training_is_changed_for_all_models_or_for_one():
    own = {"models": {"vae": VAE | {"train": {"epochs": 9, "batch_size": 7}}, "mixture": MIXTURE}}
    every = spec(own, **{"train.epochs": [1, 2]}).train
    assert every["vae, epochs=2"] == {"epochs": 2, "batch_size": 7}
    assert every["mixture, epochs=2"] == {"epochs": 2}
    one = spec(own, **{"models.vae.train.epochs": [1, 2]}).train
    assert list(one) == ["vae, epochs=1", "vae, epochs=2", "mixture"]
    for order in (1, -1):
        both = {"train.epochs": [1, 2], "models.vae.train.epochs": [3]}
        found = list(spec(own, **dict(list(both.items())[::order])).train)
        assert found == ["vae, epochs=3", "mixture, epochs=1", "mixture, epochs=2"]


def test_a_model_that_extends_another_is_not_changed_with_it():
    tree = {"models": {"vae": VAE, "wide": {"extends": "vae", "likelihood": "shared-normal"}}}
    found = spec(tree, **{"models.vae.z": [[2], [3]]}).models
    assert list(found) == ["vae, z=2", "vae, z=3", "wide"]
    assert found["wide"]["z"] == [1]
    found = spec(tree, **{"models.wide.z": [[2], [3]]}).models
    assert found["wide, z=3"] == VAE | {"likelihood": "shared-normal", "z": [3]}


def test_paths_that_end_alike_are_written_out():
    grid = {"model.encoder.hidden": [[4], [8, 8]], "model.decoder.hidden": [[4]]}
    found = spec(ONE, **grid).models
    assert list(found) == [
        "encoder.hidden=4, decoder.hidden=4",
        "encoder.hidden=[8, 8], decoder.hidden=4",
    ]
    assert found["encoder.hidden=[8, 8], decoder.hidden=4"]["encoder"]["hidden"] == [8, 8]


@pytest.mark.parametrize(
    "text", ['"model.z" = [[1], [2]]', "model.z = [[1], [2]]", "[grid.model]\nz = [[1], [2]]"]
)
@pytest.mark.parametrize(
    "changes",
    [
        (),
        ("grid.model.z=[[3]]",),
        ('grid."model.z"=[[3]]',),
        ("grid.model.z=[[9]]", "grid.model.z=[[3]]"),
    ],
)
def test_a_path_is_written_with_quotes_or_without(text, changes):
    tree = ONE | tomllib.loads(f"[grid]\n{text}\n")
    assert list(parse(tree, "s", changes).models) == (["z=3"] if changes else ["z=1", "z=2"])


def test_set_declares_a_grid_and_seeds():
    found = parse(ONE, "s", ["grid.model.missing=[true, false]", "seeds=2"])
    assert list(found.models) == ["missing=true", "missing=false"]
    assert found.seeds == 2


def test_a_list_at_a_point_is_a_choice():
    found = spec(
        {"model": MIXTURE}, **{"model.components": [[1, 2], [5]], "model.family": ["normal"]}
    )
    assert list(found.models) == [
        "components=[1, 2], family=normal",
        "components=5, family=normal",
    ]
    labels = [label for label, _ in candidates(found.models["components=[1, 2], family=normal"])]
    assert labels == ["components=1", "components=2"]


@pytest.mark.parametrize(
    ("tree", "grid", "message"),
    [
        (ONE, {"model.z": []}, r"^grid\.model\.z: should be a list of values, got \[\]$"),
        (ONE, {"model.z": 5}, r"^grid\.model\.z: should be a list of values, got 5$"),
        (
            ONE,
            {"train": {"epochs": 5}},
            r"^grid\.train\.epochs: should be a list of values, got 5",
        ),
        (ONE, {"data.seed": [1, 2]}, r"^grid\.data\.seed: .* cannot stand in one table"),
        (ONE, {"evaluate.particles": [1, 2]}, r"^grid\.evaluate\.particles: .* one table"),
        (
            ONE,
            {"trian.epochs": [1]},
            r"^grid\.trian\.epochs: unknown table 'trian'\. Did you mean",
        ),
        (ONE, {"train.seed": [0, 1]}, r"^grid\.train\.seed: .* use seeds = 3$"),
        (
            TWO,
            {"models.vae.train.seed": [0, 1]},
            r"^grid\.models\.vae\.train\.seed: .* seeds = 3$",
        ),
        (ONE, {"model": [1]}, r"^grid\.model: leads to no field of a model: model\.FIELD, train"),
        (ONE, {"train": [1]}, r"^grid\.train: leads to no field"),
        (ONE, {"models.vae.z": [[1]]}, r"^grid\.models\.vae\.z: leads to no .*: model\.FIELD"),
        (
            TWO,
            {"model.z": [[1]]},
            r"^grid\.model\.z: leads to no field .*: models\.vae\.FIELD, mod",
        ),
        (TWO, {"models.vea.z": [[1]]}, r"^grid\.models\.vea\.z: leads to no field of a model"),
        (TWO, {"models.vae": [1]}, r"^grid\.models\.vae: leads to no field of a model"),
        (ONE, {"train.epoch": [1]}, r"^train: unknown field 'epoch'\. Did you mean 'epochs'\?"),
        (ONE, {"train.epochs": [1, 0]}, r"^train\.epochs: should be greater than 0, got 0"),
        (ONE, {"model.z": [[2], [2]]}, r"^grid: 'z=2' would be fitted twice, also as 'z=2'$"),
        (ONE, {"model.z": [[2], 2]}, r"^grid: 'z=2' would be fitted twice"),
        (
            ONE,
            {"model.prior.kind": ["vamp", "standard-normal"], "model.prior": ["standard-normal"]},
            "^grid: 'kind=standard-normal, prior=standard-normal' would be fitted twice, also as",
        ),
        (
            TWO | {"models": {"vae": VAE, "vae, z=2": VAE}},
            {"models.vae.z": [[2]]},
            "^grid: two models would be called 'vae, z=2'$",
        ),
        (
            TWO | {"models": {"vae": VAE, "vae-z=2": VAE}},
            {"models.vae.z": [[2]]},
            "^models: 'vae, z=2' and 'vae-z=2' would both be saved in 'vae-z=2': rename one$",
        ),
        (ONE, 5, r"^grid: should be a table, got 5"),
    ],
)
def test_grids_that_are_refused(tree, grid, message):
    with pytest.raises(Error, match=message) as failure:
        parse(tree | {"grid": grid}, "s")
    assert "\n" not in str(failure.value)


def test_a_point_that_cannot_be_built_is_refused_before_any_fit(tmp_path):
    tree = TWO | {"data": {"name": "iris"}}
    for grid, message in [
        ({"models.vae.z": [[2], [-2]]}, r"^models\.vae\.z\.0: should be greater than 0, got -2"),
        ({"models.vae.zz": [1]}, r"^models\.vae: unknown field 'zz'"),
        ({"models.mixture.components": [1, 500]}, r"^models\.mixture\.train: 500 components need"),
    ]:
        wrong = spec(tree, **grid)
        with pytest.raises(Error, match=message):
            planned(wrong, wrong.load(), tmp_path)


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("vae-vamp_2", "vae-vamp_2"),
        ("z=2, learning_rate=1e-05", "z=2-learning_rate=1e-05"),
        ("hidden=[8, 8], start=false", "hidden=-8-8-start=false"),
        ("path=nets:Wide", "path=nets-Wide"),
    ],
)
def test_the_folder_of_a_point_needs_no_quotes(name, folder):
    assert folder_name(name) == folder


# Choices


def test_choices_within_the_tables_of_a_choice_are_made_too():
    priors = [{"kind": "vamp", "components": [5, 10]}, "standard-normal"]
    found = dict(candidates(VAE | {"prior": priors, "missing": [True, False]}))
    assert {label: (table["prior"], table["missing"]) for label, table in found.items()} == {
        f"prior={label}, missing={str(missing).lower()}": (prior, missing)
        for label, prior in [
            ("vamp(components=5)", {"kind": "vamp", "components": 5}),
            ("vamp(components=10)", {"kind": "vamp", "components": 10}),
            ("standard-normal", "standard-normal"),
        ]
        for missing in (True, False)
    }
    with pytest.raises(Error, match=r"^model\.prior\.components: is a choice among nothing"):
        list(candidates(VAE | {"prior": [{"kind": "vamp", "components": []}]}))


# Seeds


def test_a_seed_changes_the_training_alone():
    tree = TWO | {"seeds": 3, "data": {"seed": 5}, "evaluate": {"seed": 7}}
    found = parse(tree | {"train": {"seed": 4}}, "s")
    assert list(found.runs())[:3] == [
        ("vae", 0, "vae"),
        ("vae", 1, "vae-seed-5"),
        ("vae", 2, "vae-seed-6"),
    ]
    tables = [found.table("vae", repeat) for repeat in range(3)]
    assert [table.pop("train") for table in tables] == [{"seed": seed} for seed in (4, 5, 6)]
    assert tables[0] == tables[1] == tables[2]


def test_the_first_seed_is_that_of_a_spec_without_seeds():
    assert parse(TWO | {"seeds": 3}, "s").table("vae") == parse(TWO, "s").table("vae")


@pytest.mark.parametrize("seeds", [0, -1, True, 2.0, "3", [1]])
def test_a_number_of_seeds_that_is_none(seeds):
    with pytest.raises(Error, match=r"^seeds: should be a whole number from 1, got "):
        parse(TWO | {"seeds": seeds}, "s")


def test_a_model_that_is_called_as_the_seed_of_another():
    tree = {"models": {"vae": VAE, "vae-seed-1": VAE}}
    assert parse(tree, "s").models
    with pytest.raises(Error, match=r"'vae' and 'vae-seed-1' would both be saved in 'vae-seed-1'"):
        parse(tree | {"seeds": 2}, "s")


network = nn.Linear(1, 2)


def shared_model(x):
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(network(z), 1.0).to_event(1), obs=x)


def shared_guide(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))


def test_seeds_that_would_train_the_same_network_are_refused(tmp_path):
    pair = {
        "kind": "pair",
        "model": f"{__name__}:shared_model",
        "guide": f"{__name__}:shared_guide",
    }
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(50, 2)))
    tree = {"model": pair, "data": {"path": str(tmp_path / "x.npy")}}
    found = parse(tree, "s")
    assert planned(found, found.load(), tmp_path)
    found = parse(tree | {"seeds": 2}, "s")
    with pytest.raises(Error, match="'model' and 'model, seed 1' share parameters"):
        planned(found, found.load(), tmp_path)


def test_one_fit_is_not_several(tmp_path):
    for change in ("seeds=2", "grid.model.z=[[1], [2]]"):
        with pytest.raises(Error, match="use pyrovae compare"):
            fit_spec(parse(ONE, "s", [change]), tmp_path / "run", False, str)


@pytest.mark.parametrize(
    ("tree", "good"),
    [
        (ONE | {"seeds": 3, "grid": {"model.z": [[1], [2]]}}, True),
        (ONE | {"grid": {"model": {"z": [[1], [2]]}}}, True),
        (ONE | {"seeds": "3"}, False),
        (ONE | {"grid": {"model.z": 5}}, False),
        (ONE | {"grid": 5}, False),
    ],
)
def test_the_schema_knows_seeds_and_grids(tree, good):
    rules = schema()
    assert obeys(tree, rules, rules["$defs"]) == good


# Comparisons, in this process and in others

SPEC = {
    "seeds": 2,
    "data": {"path": "rows.npy", "validation": 0.3, "test": 0.3, "transforms": ["standardize"]},
    "train": {"epochs": 2, "batch_size": 10, "progress": False},
    "evaluate": {"particles": 5},
    "grid": {"models.vae.prior": ["standard-normal", {"kind": "vamp", "components": 3}]},
    "models": {"mixture": MIXTURE | {"components": [1, 2]}, "vae": VAE},
}
RUNS = {
    "vae-prior=standard-normal",
    "vae-prior=standard-normal-seed-1",
    "vae-prior=vamp-components=3",
    "vae-prior=vamp-components=3-seed-1",
    "mixture",
    "mixture-seed-1",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with rows, a spec, and its comparison in this process."""
    folder = tmp_path_factory.mktemp("grids")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        np.save("rows.npy", np.random.default_rng(0).normal(size=(60, 2)))
        Path("s.toml").write_text(tomli_w.dumps(SPEC))
        compared("s.toml", "alone")
    return folder


@pytest.fixture
def here(place, tmp_path, monkeypatch):
    shutil.copytree(place, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def compared(path, folder, processes=1, changes=(), say=str):
    return compare_spec(read_spec(Path(path), changes), Path(folder), False, say, processes)


def runs(folder):
    return {path.name for path in Path(folder).glob("[!.]*") if path.is_dir()}


def weights(folder):
    return {path.parent.name: path.read_bytes() for path in Path(folder).rglob("*.safetensors")}


@pytest.fixture
def workers(monkeypatch):
    """The workers that have been begun."""
    begun = []

    class Seen(Worker):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            begun.append(self)

    monkeypatch.setattr(parallel, "Worker", Seen)
    return begun


def test_every_point_and_seed_has_a_run_of_its_own(here):
    assert runs("alone") == RUNS
    assert len({tensors for name, tensors in weights("alone").items() if "vae" in name}) == 4
    seeds = {
        name: json.loads(Path("alone", name, "results.json").read_text())["seed"] for name in RUNS
    }
    assert {name for name, seed in seeds.items() if seed == 1} == {n for n in RUNS if "seed" in n}
    tests = {open_run(f"alone/{name}").results["fingerprint"] for name in RUNS}
    assert len(tests) == 1


def test_a_run_of_a_point_is_a_run(here):
    run = open_run("alone/vae-prior=vamp-components=3-seed-1")
    assert run.model.base.prior.components == 3
    recorded = run.results["log_likelihood"]["mean"]
    assert evaluate_run(run).mean == recorded
    sample_run(run, 3, 0, Path("x.npy"), False, str)
    assert np.load("x.npy").shape == (3, 2)
    again = fit_spec(read_spec(run.folder / "spec.toml"), Path("again"), False, str)
    assert weights("again")["again"] == weights("alone")[run.folder.name]
    assert again.results["seed"] == 1


def test_the_table_has_a_row_for_each_point_and_what_was_tried(here):
    comparison = compared("s.toml", "alone")
    assert {entry.name for entry in comparison.entries} == {
        "vae, prior=standard-normal",
        "vae, prior=vamp(components=3)",
        "mixture",
    }
    assert all(len(entry.results) == 2 for entry in comparison.entries)
    for entry in comparison.entries:
        means = [
            json.loads(Path("alone", name, "results.json").read_text())["log_likelihood"]["mean"]
            for name in (folder_name(entry.name), f"{folder_name(entry.name)}-seed-1")
        ]
        assert [result.mean for result in entry.results] == means
    (tried,) = comparison.chosen.values()
    assert " chosen by log p(x) on the validation rows (components=" in tried
    assert tried.endswith(", means over seeds)")
    mixtures = [
        open_run(f"alone/{name}").results["tried"] for name in ("mixture", "mixture-seed-1")
    ]
    for choice in (0, 1):
        values = [seed[choice]["validation"] for seed in mixtures]
        assert f"components={choice + 1}: {np.mean(values):.2f}" in tried


def test_each_seed_chooses_by_its_own_candidates(here):
    found = [open_run(f"alone/{name}").results for name in ("mixture", "mixture-seed-1")]
    for results in found:
        best = max(results["tried"], key=lambda candidate: candidate["validation"])
        assert results["chosen"] == best["choice"]


def test_the_folder_of_a_comparison_is_no_run(here):
    with pytest.raises(Error, match=r"'alone' is a comparison: name one of its runs, alone/mixt"):
        open_run("alone")


def test_what_is_finished_is_reused(here):
    before, said = weights("alone"), []
    compared("alone/spec.toml", "alone", say=said.append)
    assert [line for line in said if "reused, its spec is unchanged" not in line] == []
    assert len(said) == 6
    said.clear()
    shutil.rmtree("alone/mixture-seed-1")
    compared("s.toml", "alone", changes=["seeds=3"], say=said.append)
    assert sum("fitted in" in line for line in said) == 4
    assert {name: tensors for name, tensors in weights("alone").items() if name in RUNS} == before


@pytest.mark.parametrize("processes", [1, 2])
def test_a_comparison_that_was_stopped_goes_on_and_ends_the_same(processes, here, workers):
    said = []

    def stop(text):
        said.append(text)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compared("s.toml", "new", processes, ["models.vae.train.epochs=1000000"], say=stop)
    assert len(workers) == (0 if processes == 1 else 2)
    assert all(worker.process.poll() is not None for worker in workers)
    finished = {name for name in runs("new") if is_run(Path("new") / name)}
    assert finished
    assert finished <= {"mixture", "mixture-seed-1"}
    for begun in Path("new").glob("vae*/unfinished"):
        shutil.rmtree(begun.parent)
    said.clear()
    compared("s.toml", "new", say=said.append)
    assert sum("reused" in line for line in said) == len(finished)
    assert sum("fitted in" in line for line in said) == 6 - len(finished)
    assert weights("new") == weights("alone")
    assert not list(Path("new").glob(".*"))
    assert Path("new/pointwise.csv").read_text() == Path("alone/pointwise.csv").read_text()


FRAGILE = """
import os
from pathlib import Path
import pyro.distributions as dist
import torch
from pyrovae.priors import Prior

Path(f"{os.getpid()}.threads").write_text(str(torch.get_num_threads()))

class Fragile(Prior):
    "A standard normal that is not to be had in another process."
    way: str = "none"

    def setup(self, z, seen):
        self.z = z

    def forward(self, q, context=None):
        if self.way != "none" and str(os.getpid()) != Path("pid").read_text():
            if self.way == "ends":
                os._exit(7)
            raise KeyError("no")
        return dist.Normal(0.0, 1.0).expand(self.z).to_event(len(self.z))
"""


@pytest.mark.usefixtures("forgetful")
def test_a_fit_that_fails_is_named_and_takes_no_other_with_it(here, monkeypatch):
    (here.parent / "fragile_parts.py").write_text(FRAGILE)
    Path("pid").write_text(str(os.getpid()))
    tree = SPEC | {
        "import": ["fragile_parts"],
        "seeds": 1,
        "models": {"vae": VAE | {"prior": "fragile"}, "mixture": MIXTURE},
        "grid": {"models.vae.prior.way": ["none", "ends", "error"]},
    }
    Path("../s.toml").write_text(tomli_w.dumps(tree))
    environment = dict(os.environ)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    with pytest.raises(Error) as failure:
        compared("../s.toml", "new", 2)
    threads = [path.read_text() for path in Path().glob("*.threads")]
    assert sorted(threads) == ["1", "1", "1", "2"]  # one worker was begun anew
    assert os.environ == environment
    message = str(failure.value)
    assert "'vae, way=ends': its process ended with code 7" in message
    assert "'vae, way=error': KeyError: 'no' (one process, --processes 1, shows" in message
    assert message.endswith("; 2 of 4 runs are finished")
    assert "\n" not in message
    assert runs("new") == {"vae-way=none", "mixture"}
    compared("../s.toml", "new")
    assert len(runs("new")) == 4


def test_a_worker_knows_its_data_and_ends_with_the_process_that_began_it(here):
    def plan():
        found = read_spec(Path("s.toml"), ["train.epochs=1000000"])
        return planned(found, found.load(), Path("new"))["vae, prior=standard-normal"][0]

    before = plan()
    np.save("rows.npy", np.load("rows.npy") + 1.0)
    worker = Worker(1, None)
    try:
        with pytest.raises(Error, match="data: the data have changed since they were looked at"):
            worker.fit(before)
        outcome = []
        thread = threading.Thread(target=lambda: outcome.append(error_of(worker, plan())))
        thread.start()
        time.sleep(1)
        assert worker.process.poll() is None
        worker.process.stdin.close()
        thread.join(20)
        assert [str(error) for error in outcome] == ["its process ended with code 1"]
    finally:
        worker.process.kill()
        worker.close()
    assert not any(map(is_run, Path("new").iterdir()))


def error_of(worker, plan):
    try:
        worker.fit(plan)
    except Error as error:
        return error
