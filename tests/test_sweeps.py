"""Searches of declared ranges, and fits that are sent to a Ray cluster."""

import csv
import math
import os
import pickle
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tomli_w
import torch
from test_specs import forgetful, obeys  # noqa: F401

from pyrovae import Error, load, open_run, remote
from pyrovae.evaluate import select
from pyrovae.experiment import compare_spec, fit_spec
from pyrovae.networks import MLP
from pyrovae.schema import schema
from pyrovae.search import best, searched, verdict
from pyrovae.spaces import Range, point
from pyrovae.specs import parse, read_spec

SMALL = {"kind": "mlp", "hidden": [4]}
VAE = {"kind": "vae", "z": [1], "likelihood": "normal", "encoder": SMALL, "decoder": SMALL}
MIXTURE = {"kind": "mixture", "components": 1, "family": "normal"}
RATE = {"low": 1e-4, "high": 1e-1, "log": True}
SEARCH = {"trials": 3, "batch": 2, "models.vae.train.learning_rate": RATE}
SPEC = {
    "data": {"path": "rows.npy", "validation": 0.3, "test": 0.3, "transforms": ["standardize"]},
    "train": {"epochs": 1, "batch_size": 20, "progress": False},
    "evaluate": {"particles": 5},
    "models": {"mixture": MIXTURE, "vae": VAE},
    "search": SEARCH,
}


def of_vae(**paths):
    return parse({"model": VAE, "search": paths}, "s")


# What a search declares


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({}, r"^search: has nothing to vary"),
        ({"trials": 0, "model.z": [1]}, r"^search\.trials: should be greater than 0, got 0"),
        ({"model.z": {"low": 3, "high": 3}}, r"^search\.model\.z: low = 3 should be below high"),
        ({"model.z": {"low": 4, "high": 3}}, r"^search\.model\.z: low = 4 should be below high"),
        ({"model.z": {"low": 1}}, r"^search\.model\.z\.high: is required"),
        ({"model.z": {"low": 1, "high": "8"}}, r"^search\.model\.z\.high.*got '8'"),
        ({"model.z": {"low": 1, "hihg": 8}}, r"^search\.model\.z.*unknown field 'hihg'|high: is"),
        ({"model": {"z": {"low": 4, "high": 3}}}, r"^search\.model\.z: low = 4"),
        (
            {"train.learning_rate": RATE | {"low": 0.0}},
            r"^search\.train\.learning_rate: low = 0\.0 has no logarithm",
        ),
        (
            {"train.learning_rate": RATE | {"step": 0.1}},
            r"^search\.train\.learning_rate: a range has a step or log = true, not both",
        ),
        (
            {"model.z": {"low": 2, "high": 9, "step": 3}},
            r"^search\.model\.z: no number of steps of 3 leads from 2 to 9",
        ),
        ({"model.z": {"low": 2, "high": 9, "step": -1}}, r"^search\.model\.z: no number of steps"),
        ({"model.z": 3}, r"^search\.model\.z: should be a list, or a range such as .*, got 3"),
        ({"model.z": []}, r"^search\.model\.z: should be a list, or a range such as .*, got \[\]"),
        ({"modle.z": [[1]]}, r"^search\.modle\.z: unknown table 'modle'"),
        ({"models.vae.z": [[1]]}, r"^search\.models\.vae\.z: leads to no field of a model"),
        ({"train.learnin_rate": RATE}, r"^train: unknown field 'learnin_rate'"),
        ({"train.seed": [1, 2]}, r"^search\.train\.seed: seeds are repetitions"),
        ({"data.seed": [1, 2]}, r"^search\.data\.seed: figures of different data settings"),
    ],
)
def test_a_search_that_cannot_be_is_refused_when_the_spec_is_read(search, message):
    with pytest.raises(Error, match=message):
        of_vae(**search)


def test_what_the_grid_varies_is_not_searched():
    tree = {"model": VAE, "grid": {"model.z": [[1], [2]]}, "search": {"model.z": [[3]]}}
    with pytest.raises(Error, match=r"^search\.z: is varied by the grid as well"):
        parse(tree, "s")


def test_each_point_of_the_grid_has_the_space_of_its_model():
    tree = SPEC | {"grid": {"models.vae.z": [[1], [2]]}}
    found = parse(tree, "s").search
    assert set(found.spaces) == {"vae, z=1", "vae, z=2"}
    assert (found.trials, found.seed, found.batch) == (3, 0, 2)
    everywhere = SPEC | {"search": {"train.epochs": {"low": 1, "high": 2}}}
    assert set(parse(everywhere, "s").search.spaces) == {"mixture", "vae"}


def test_a_number_becomes_a_list_where_one_belongs():
    table = VAE | {"encoder": "mlp", "decoder": {"kind": "mlp", "hidden": [8, 8, 8]}}
    paths = [
        ("z",),
        ("encoder", "hidden"),
        ("decoder", "hidden"),
        ("prior", "components"),
        ("train", "epochs"),
    ]
    numbers = dict.fromkeys(paths, Range(low=1, high=9))
    found = point(dict.fromkeys(paths, 5), table | {"prior": "vamp"}, numbers)
    assert found == {
        ("z",): [5],
        ("encoder", "hidden"): [5] * len(MLP().hidden),
        ("decoder", "hidden"): [5, 5, 5],
        ("prior", "components"): 5,
        ("train", "epochs"): 5,
    }
    space = {("components",): Range(low=1, high=9), ("family",): ["normal"]}
    chosen = {("components",): 5, ("family",): "normal"}
    assert point(chosen, MIXTURE | {"components": [1, 2]}, space) == chosen


def test_numbers_have_few_digits_and_stay_in_their_range():
    wide = Range(low=1e-5, high=2.00001)
    assert wide.rounded(0.00123456789) == 0.001235
    assert wide.rounded(2.000009) == 2.0
    assert Range(low=1.00004, high=2.0).rounded(1.00004) == 1.00004
    assert Range(low=2, high=8, step=2).rounded(6.0) == 6
    assert not Range(low=2, high=8, step=0.5).whole


def test_the_schema_knows_searches():
    rules = schema()
    nested = {"models": {"vae": {"z": {"low": 1, "high": 4}}}}
    for good, search in [
        (True, SEARCH),
        (True, nested),
        (False, SEARCH | {"trials": 0.5}),
        (False, SEARCH | {"train.epochs": 3}),
    ]:
        assert obeys(SPEC | {"search": search}, rules, rules["$defs"]) == good, search


# What is found


def found(figure, trials=12, batch=3, seed=0, said=None, **paths):
    """The trials of a search in which a run is the table that it is of."""
    own = {"trials": trials, "batch": batch, "seed": seed}
    spec = of_vae(**own, **(paths or {"train.learning_rate": RATE}))

    def fits(points):
        tables = {name: points.table(name) for name in reversed(points.models)}
        return {name: figure(table) for name, table in tables.items()}

    def judge(run):
        if isinstance(run, Exception):
            raise run
        return run

    said = [] if said is None else said
    return searched(spec, fits, judge, said.append)["model"]


def near(table):
    return -abs(math.log(table["train"]["learning_rate"] / 3e-3))


def test_a_search_follows_from_its_seed_and_comes_near_the_best_point():
    trials = found(near, 40)
    assert trials == found(near, 40)
    assert trials != found(near, 40, seed=1)
    assert trials[:12] == found(near)
    assert best(trials).validation > -0.05  # of a space 6.9 wide
    first, last = ([trial.validation for trial in part] for part in (trials[:10], trials[30:]))
    assert np.median(last) > np.median(first)


def test_whole_numbers_steps_and_lists_are_proposed():
    paths = {
        "model.z": {"low": 2, "high": 8, "step": 3},
        "model.prior": ["standard-normal", {"kind": "vamp", "components": 3}],
    }
    tried = found(lambda table: float(table["model"]["z"][0]), 15, **paths)
    assert {trial.point[("z",)][0] for trial in tried} == {2, 5, 8}
    assert {str(trial.point[("prior",)]) for trial in tried} == {
        "standard-normal",
        "{'kind': 'vamp', 'components': 3}",
    }
    assert best(tried).point[("z",)] == [8]
    assert best(tried).name.startswith("z=8, prior=")


def test_trials_that_fail_are_the_worst_and_are_counted():
    def fragile(table):
        rate = table["train"]["learning_rate"]
        return Error("it fell") if rate > 0.01 else math.nan if rate < 2e-4 else near(table)

    said = []
    trials = found(fragile, 20, said=said)
    failed = [trial for trial in trials if trial.failure]
    assert {trial.failure for trial in failed} == {"it fell", "log p(x) is not a number"}
    assert all(trial.validation == -math.inf for trial in failed)
    assert verdict(trials) == (
        "the best of 20 trials by log p(x) on the validation rows, "
        f"{best(trials).validation:.2f}, of which {len(failed)} failed"
    )
    assert any(line.endswith(" of 20, it fell") for line in said)
    with pytest.raises(Error, match="all 12 trials of 'model' failed, the first: no luck"):
        found(lambda table: Error("no luck"))


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("rows.npy", np.random.default_rng(0).normal(size=(60, 2)))
    Path("s.toml").write_text(tomli_w.dumps(SPEC))
    return tmp_path


def compared(folder, *changes, processes=1, say=str, on="processes", path="s.toml"):
    spec = read_spec(Path(path), changes)
    return compare_spec(spec, Path(folder), False, say, processes, on)


def weights(folder):
    return {path.parent.name: path.read_bytes() for path in Path(folder).rglob("*.safetensors")}


def test_the_best_trial_stands_in_the_comparison(here, monkeypatch):
    evaluated, said = [], []
    from pyrovae import experiment

    def seen(run, *rest):
        evaluated.append(run.folder.name)
        return evaluate(run, *rest)

    evaluate = experiment.evaluate_run
    monkeypatch.setattr(experiment, "evaluate_run", seen)
    comparison = compared("new", "seeds=2", on="optuna", say=said.append)
    with Path("new/search.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["trial"] for row in rows] == ["1", "2", "3"]
    assert {row["searched"] for row in rows} == {"vae"}
    data = read_spec(Path("s.toml")).load()
    runs = {row["model"]: open_run(f"new/{row['model'].replace(', ', '-')}") for row in rows}
    for row in rows:
        _, (mean,) = select([runs[row["model"]].model], data.validation, particles=5)
        assert float(row["validation"]) == mean
    winner = max(rows, key=lambda row: float(row["validation"]))["model"]
    assert {entry.name for entry in comparison.entries} == {"mixture", winner}
    assert comparison.chosen == {
        winner: "the best of 3 trials by log p(x) on the validation rows, "
        f"{max(float(row['validation']) for row in rows):.2f}"
    }
    folder = winner.replace(", ", "-")
    assert evaluated == ["mixture", "mixture-seed-1", folder, f"{folder}-seed-1"]
    assert sum("fitted in" in line for line in said) == 6

    said.clear()
    again = compared("new", path="new/spec.toml", say=said.append)
    assert not any("fitted in" in line for line in said)
    assert again.chosen == comparison.chosen
    assert tomllib.loads(Path("new/spec.toml").read_text())["seeds"] == 2


def test_a_search_that_was_stopped_goes_on_and_ends_the_same(here):
    tree = SPEC | {"model": VAE, "search": {"trials": 3, "batch": 2, "train.learning_rate": RATE}}
    del tree["models"]
    Path("s.toml").write_text(tomli_w.dumps(tree))
    compared("whole")
    said = []

    def stop(text):
        said.append(text)
        if len(said) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compared("new", say=stop)
    before = weights("new")
    assert len(before) == 2
    said = []
    compared("new", say=said.append)
    assert sum("reused" in line for line in said) == 2
    assert sum("fitted in" in line for line in said) == 1
    assert weights("new") == weights("whole")
    for file in ("pointwise.csv", "search.csv", "spec.toml"):
        assert Path("new", file).read_text() == Path("whole", file).read_text()
    said.clear()
    compared("new", "search.trials=4", path="new/spec.toml", say=said.append)
    assert sum("fitted in" in line for line in said) == 1


def test_a_choice_in_a_trial_is_judged_by_its_best_candidate(here):
    tree = SPEC | {
        "models": {"mixture": MIXTURE | {"components": [1, 2]}},
        "search": {"trials": 2, "models.mixture.family.floor": {"low": 0.01, "high": 0.1}},
    }
    tree["models"]["mixture"]["family"] = {"kind": "normal"}
    Path("s.toml").write_text(tomli_w.dumps(tree))
    (text,) = compared("new").chosen.values()
    with Path("new/search.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        tried = open_run(f"new/{row['model'].replace(', ', '-')}").results["tried"]
        assert float(row["validation"]) == max(candidate["validation"] for candidate in tried)
    assert "the best of 2 trials" in text
    assert "; components=" in text


@pytest.mark.parametrize(
    ("changes", "on", "message"),
    [
        (["data.validation=0"], "processes", r"^search: a search is judged by validation rows"),
        (["search.train.zz=[1]"], "processes", r"^train: unknown field 'zz'"),
        (['search."models.vae.zz"=[1]'], "processes", r"^models\.vae: unknown field 'zz'"),
        (
            ['search."models.vae.prior.components"={low=1,high=4}'],
            "processes",
            r"^models\.vae\.prior: the table has no 'kind'",
        ),
    ],
)
def test_what_cannot_be_searched_is_refused_before_any_fit(changes, on, message, here):
    with pytest.raises(Error, match=message):
        compared("new", *changes, on=on)
    assert not Path("new").exists()


def test_a_search_is_asked_for_where_there_is_one(here, monkeypatch):
    with pytest.raises(Error, match=r"^'s' has a \[search\]: use pyrovae compare"):
        fit_spec(parse({"model": VAE, "search": {"model.z": [[1]]}}, "s"), Path("x"), False, str)
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(Error, match=r"a search needs Optuna: pip install 'pyrovae\[optuna\]'"):
        compared("new")
    Path("s.toml").write_text(tomli_w.dumps({k: v for k, v in SPEC.items() if k != "search"}))
    with pytest.raises(Error, match=r"^'s' has no \[search\] for Optuna"):
        compared("new", on="optuna")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(Error, match=r"on a cluster need Ray: pip install 'pyrovae\[ray\]'"):
        compared("new", on="ray")


# On a cluster


class Ray:
    """What of Ray is used, in this process: everything that travels is pickled."""

    class RayError(Exception):
        pass

    def __init__(self, cpus=4.0, fails=()):
        self.exceptions, self.cpus, self.fails = (
            SimpleNamespace(RayError=self.RayError),
            cpus,
            fails,
        )
        self.said, self.cancelled, self.options, self.store = [], [], [], {}

    def init(self, address, **settings):
        os.environ["RAY_OF_ITS_OWN"] = "1"
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if address != "local":
            raise ConnectionError("nobody there\nat all")
        self.said.append(settings)

    def shutdown(self):
        self.said.append("shutdown")

    def nodes(self):
        return [{"Resources": {"CPU": self.cpus}}, {"Resources": {}}]

    def put(self, value):
        self.store[len(self.store)] = pickle.dumps(value)
        return len(self.store) - 1

    def get(self, reference):
        if isinstance(reference, list):
            return [pickle.loads(self.store[one]) for one in reference]
        function, arguments = self.store[reference]
        if arguments[0] in self.fails:
            raise self.RayError("the worker died\nlong ago")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["default_worker.py"])
            return pickle.loads(pickle.dumps(function(*pickle.loads(arguments[1]))))

    def remote(self, function):
        def options(**settings):
            self.options.append(settings)

            def begin(*arguments):
                self.store[len(self.store)] = function, (arguments[0], pickle.dumps(arguments))
                return len(self.store) - 1

            return SimpleNamespace(remote=begin)

        return SimpleNamespace(options=options)

    def wait(self, references):
        return references[-1:], references[:-1]

    def cancel(self, reference, force):
        self.cancelled.append(reference)


def with_ray(monkeypatch, **how):
    ray = Ray(**how)
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return ray


def test_runs_come_back_from_a_cluster_to_the_bit(here, monkeypatch):
    ray = with_ray(monkeypatch)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    compared("alone")
    environment, handler = dict(os.environ), signal.getsignal(signal.SIGTERM)
    compared("new", on="ray", processes=2)
    assert (dict(os.environ), signal.getsignal(signal.SIGTERM)) == (environment, handler)
    assert weights("new") == weights("alone")
    assert Path("new/pointwise.csv").read_text() == Path("alone/pointwise.csv").read_text()
    assert ray.said[0]["num_cpus"] == 6
    assert ray.said[1:] == ["shutdown"]
    assert len(ray.options) == 4
    assert all(options["num_cpus"] == 3 for options in ray.options)
    assert ray.options[0]["runtime_env"]["env_vars"]["OMP_NUM_THREADS"] == "3"
    assert sum(isinstance(value, bytes) for value in ray.store.values()) == 1  # the data, once
    assert not list(Path("new").glob(".*"))
    names = {path.name for path in Path("new/mixture").iterdir()}
    assert names == {"spec.toml", "weights.safetensors", "history.csv", "results.json"}


BRITTLE = """
import brittle_help
from pyrovae.priors import Prior
import pyro.distributions as dist

class Brittle(Prior):
    "A standard normal that breaks."
    way: str = "none"

    def setup(self, z, seen):
        self.z = z

    def forward(self, q, context=None):
        brittle_help.live(self.way)
        return dist.Normal(0.0, 1.0).expand(self.z).to_event(len(self.z))
"""
HELP = """
import os
import sys

def live(way):
    if way != "none" and "default_worker" in sys.argv[0]:
        if way == "ends":
            os._exit(7)
        raise KeyError("no")
"""


def brittle(here):
    """A spec with a module beside it, which imports another one."""
    folder = here / "own"
    folder.mkdir()
    (folder / "brittle_parts.py").write_text(BRITTLE)
    (folder / "brittle_help.py").write_text(HELP)
    tree = {name: value for name, value in SPEC.items() if name != "search"} | {
        "import": ["brittle_parts"],
        "models": {"vae": VAE | {"prior": "brittle"}, "mixture": MIXTURE},
        "grid": {"models.vae.prior.way": ["none", "ends", "error"]},
    }
    (folder / "s.toml").write_text(tomli_w.dumps(tree))
    return folder / "s.toml"


@pytest.mark.usefixtures("forgetful")
def test_the_modules_of_a_spec_travel_and_failures_are_named(here, monkeypatch):
    path = brittle(here)
    with_ray(monkeypatch, fails=("vae, way=ends",))
    texts = []
    carried = remote._carried_out

    def seen(*arguments):
        texts.append(arguments[-1])
        return carried(*arguments)

    monkeypatch.setattr(remote, "_carried_out", seen)
    with pytest.raises(Error) as failure:
        compared("new", on="ray", path=path)
    message = str(failure.value)
    assert "'vae, way=ends': Ray could not carry it out: RayError: the worker died;" in message
    assert "'vae, way=error': KeyError: 'no' (one process, --processes 1, shows" in message
    assert message.endswith("; 2 of 4 runs are finished")
    assert set(texts[0]) == {"brittle_parts.py", "brittle_help.py"}


def test_a_fit_that_fails_leaves_what_it_has_where_nothing_is(here, monkeypatch):
    with_ray(monkeypatch)
    changes = ["models.vae.train.learning_rate=1e30", "models.vae.train.epochs=50"]
    tree = {name: value for name, value in SPEC.items() if name != "search"}
    Path("s.toml").write_text(tomli_w.dumps(tree))
    messages = []
    for folder, on in [("alone", "processes"), ("new", "ray"), ("new", "ray")]:
        with pytest.raises(Error) as failure:
            compared(folder, *changes, on=on)
        messages.append(str(failure.value).replace(folder, "F"))
    assert messages[1] == messages[0]
    left = Path("new/vae").exists()
    assert left == Path("alone/vae").exists()
    assert ("saved in" in messages[1]) == left
    assert "saved in" not in messages[2]


def test_what_is_still_to_come_is_cancelled(here, monkeypatch):
    ray = with_ray(monkeypatch)

    def stop(text):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compared("new", on="ray", say=stop)
    assert len(ray.cancelled) == 1
    assert ray.said[-1] == "shutdown"
    assert len(weights("new")) == 1


def test_a_cluster_that_is_of_no_use_is_refused(here, monkeypatch):
    with_ray(monkeypatch, cpus=1.0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    with pytest.raises(Error, match=r"asks for 2 CPUs.*more than 1: set OMP_NUM_THREADS=1"):
        compared("new", on="ray")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(Error, match=r"'127\.0\.0\.1:1' is not reached: ConnectionError: nobody"):
        compared("new", on="ray")
    assert os.environ["RAY_ADDRESS"] == "127.0.0.1:1"
    assert "RAY_OF_ITS_OWN" not in os.environ


def test_rows_of_a_file_travel_by_its_path(here):
    np.save("large.npy", np.random.default_rng(0).normal(size=(4000, 5)))
    data = load(np.load("large.npy", mmap_mode="r"))
    pickled = pickle.dumps(data)
    assert len(pickled) < Path("large.npy").stat().st_size
    again = pickle.loads(pickled)
    assert (again.train[:].x == data.train[:].x).all()
    assert (again.test[3:9].x == data.test[3:9].x).all()


COMPARE = [sys.executable, "-m", "pyrovae", "compare"]


@pytest.mark.slow
def test_fits_on_a_real_cluster_are_those_of_this_process(here):
    pytest.importorskip("ray")
    compared("alone")
    done = subprocess.run(
        [*COMPARE, "s.toml", "--on", "ray", "--processes", "2", "--out", "new", "--format", "csv"],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "2"},
        check=True,
    )
    assert done.stdout == Path("new/comparison.csv").read_text()
    assert all(
        "trial" in line or "fitted" in line or "saved" in line for line in done.stderr.splitlines()
    )
    assert weights("new") == weights("alone")
    assert Path("new/pointwise.csv").read_text() == Path("alone/pointwise.csv").read_text()
    assert not [path for path in Path("new").rglob("*") if "pkl" in path.name]


@pytest.mark.slow
def test_a_worker_of_a_real_cluster_that_ends_takes_no_other_with_it(here):
    pytest.importorskip("ray")
    done = subprocess.run(
        [*COMPARE, str(brittle(here)), "--on", "ray", "--out", "new"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    message = done.stderr.strip().splitlines()[-1]
    assert "'vae, way=ends': Ray could not carry it out: " in message
    assert "'vae, way=error': KeyError: 'no' (one process, --processes 1, shows" in message
    assert message.endswith("; 2 of 4 runs are finished")


@pytest.mark.slow
def test_ctrl_c_ends_the_tasks_of_a_real_cluster(here):
    pytest.importorskip("ray")
    words = ["s.toml", "--on", "ray", "--processes", "2", "--out", "new"]
    change = ["--set", "models.vae.train.epochs=10000000", "--set", "search.trials=1"]
    process = subprocess.Popen([*COMPARE, *words, *change], stderr=subprocess.PIPE)
    end = time.monotonic() + 60
    while not (workers := fits_of(process.pid)):
        assert time.monotonic() < end
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode
    time.sleep(2)
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]
    assert not Path("new").exists() or not list(Path("new").rglob("*.safetensors"))


def fits_of(pid):
    """The processes of Ray below a process that are carrying out a fit."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            stat = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            parents[int(entry.name)] = int(stat[1]), (entry / "cmdline").read_text()
        except OSError:
            continue
    below = {pid}
    while more := {child for child, (parent, _) in parents.items() if parent in below} - below:
        below |= more
    return {child for child in below if "_carried_out" in parents[child][1]}
