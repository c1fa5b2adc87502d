"""Checkpoints: a fit that is stopped at any moment ends at the same weights, to the bit."""

import os
import random
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from typer.testing import CliRunner

from pyrovae import fit, open_run
from pyrovae.checkpoints import Checkpoints
from pyrovae.cli import app
from pyrovae.errors import Error, Interrupted
from pyrovae.experiment import fit_spec, resume
from pyrovae.inference import State
from pyrovae.models import Model
from pyrovae.objectives import ELBO
from pyrovae.schedules import Plateau
from pyrovae.specs import read_spec

X = torch.tensor(load_digits().data[:300] > 7).float()
SMALL = {"kind": "mlp", "hidden": (16,)}
FAST = {"epochs": 4, "batch_size": 64, "progress": False}
PLAIN = {"kind": "vae", "x": (64,), "z": (2,), "encoder": SMALL, "decoder": SMALL}
NORM = SMALL | {"dropout": 0.2}
CASES = {
    "plain": (PLAIN, {}),
    "validation rows": (PLAIN, {"patience": 3}),
    "plain Pyro": (PLAIN, {"compile": False}),
    "vamp prior, dropout": (PLAIN | {"prior": "vamp", "encoder": NORM}, {}),
    "parts of a batch": (PLAIN, {"accumulate": 3}),
    "encoder alone": (
        PLAIN,
        {"encoder_steps": {"kind": "steps", "values": [2, 0], "epochs": [2]}},
    ),
    "schedules": (
        PLAIN,
        {"learning_rate": {"kind": "plateau", "initial": 0.01, "patience": 1}},
    ),
}


class KilledError(Exception):
    """What a test ends a fit by, at any moment."""


def begun(fields):
    torch.manual_seed(0)
    return Model.from_spec(fields)


def killed(monkeypatch, step, *args, **options):
    """A fit that is killed after its first checkpoint from a step on."""
    kept = Checkpoints.save

    def save(self, state):
        kept(self, state)
        if self.count >= step:
            raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save)
        with pytest.raises(KilledError):
            fit(*args, **options)


ALWAYS = ("validation rows", "vamp prior, dropout", "encoder alone", "schedules")
SOMETIMES = [pytest.param(case, marks=pytest.mark.slow) for case in CASES if case not in ALWAYS]


@pytest.mark.parametrize("case", [*ALWAYS, *SOMETIMES])
def test_a_fit_that_is_stopped_ends_at_the_same_weights(case, tmp_path, monkeypatch):
    monkeypatch.setattr("pyrovae.compile.WORTH", 1)
    fields, options = CASES[case]
    options = FAST | {"checkpoint_steps": 1} | options
    held_out = X[:50] if case in ("validation rows", "schedules") else None
    whole = begun(fields)
    history = fit(whole, X, held_out, **options)
    for step in (2, 13):
        killed(monkeypatch, step, begun(fields), X, held_out, tmp_path / str(step), **options)
        model = begun(fields)
        resumed = fit(model, X, held_out, tmp_path / str(step), **options)
        for name, tensor in whole.state_dict().items():
            assert torch.equal(tensor, model.state_dict()[name]), (step, name)
        assert [e.loss for e in resumed.epochs] == [e.loss for e in history.epochs]
        assert (resumed.best, resumed.stopped) == (history.best, history.stopped)
        assert resumed.compiled == history.compiled == ("no" if case == "plain Pyro" else "replay")


def test_a_fit_that_is_over_is_not_fitted_again(tmp_path, monkeypatch):
    fields = {"kind": "mixture", "x": (64,), "components": 3, "family": "bernoulli"}
    model, again = begun(fields), begun(fields)
    history = fit(model, X, X, tmp_path, progress=False)
    monkeypatch.setattr("pyrovae.fitting._fit_em", None)
    assert fit(again, X, X, tmp_path, progress=False) == history
    assert all(map(torch.equal, model.state_dict().values(), again.state_dict().values()))


def test_two_checkpoints_are_kept_and_no_draft(tmp_path):
    fit(begun(PLAIN), X, folder=tmp_path, checkpoint_steps=3, **FAST)
    inside = sorted(path.name for path in (tmp_path / "unfinished").iterdir())
    assert inside == ["000000018.safetensors", "000000020.safetensors"]


def stopped(tmp_path, monkeypatch):
    """A fit with checkpoints after 6 and 9 steps, stopped there, and what it would have been."""
    whole = begun(PLAIN)
    fit(whole, X, **FAST)
    killed(monkeypatch, 9, begun(PLAIN), X, folder=tmp_path, checkpoint_steps=3, **FAST)
    return whole, sorted((tmp_path / "unfinished").iterdir())


def truncated(path):
    path.write_bytes(path.read_bytes()[:-100])


def empty(path):
    path.write_bytes(b"")


def foreign(path):
    save_file({"weights": torch.ones(3)}, path)


def no_json(path):
    save_file({"weights": torch.ones(3)}, path, {"pyrovae": "{"})


@pytest.mark.parametrize("damage", [truncated, empty, foreign, no_json])
def test_a_damaged_checkpoint_is_refused_and_the_one_before_it_taken(
    tmp_path, monkeypatch, caplog, damage
):
    whole, (older, newer) = stopped(tmp_path, monkeypatch)
    damage(newer)
    model = begun(PLAIN)
    fit(model, X, folder=tmp_path, **FAST)
    assert all(map(torch.equal, model.state_dict().values(), whole.state_dict().values()))
    (said,) = (r.getMessage() for r in caplog.records if r.levelname == "WARNING")
    assert f"'{newer}' cannot be read" in said
    assert f"the fit goes on from '{older}'" in said


def test_without_any_checkpoint_that_can_be_read_nothing_goes_on(tmp_path, monkeypatch):
    _, (older, newer) = stopped(tmp_path, monkeypatch)
    truncated(older)
    empty(newer)
    with pytest.raises(Error, match=r"cannot be read .*; .*no other checkpoint is left, begin ag"):
        fit(begun(PLAIN), X, folder=tmp_path, **FAST)


@pytest.mark.parametrize(
    ("fields", "rows", "options", "match"),
    [
        ({}, X, {"epochs": 5}, "another spec .train.epochs: 4 is now 5.: undo that, or begin"),
        ({"z": (3,)}, X, {}, r"model.z: \[2\] is now \[3\]"),
        ({}, X, {"learning_rate": 0.1}, "train.learning_rate: 0.001 is now 0.1"),
        ({}, 1 - X, {}, "rows: "),
    ],
)
def test_a_fit_of_something_else_does_not_go_on(
    tmp_path, monkeypatch, fields, rows, options, match
):
    stopped(tmp_path, monkeypatch)
    with pytest.raises(Error, match=match):
        fit(begun(PLAIN | fields), rows, folder=tmp_path, **FAST | options)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_fit_after_its_step(tmp_path, monkeypatch, number):
    whole, model = begun(PLAIN), begun(PLAIN)
    fit(whole, X, **FAST)
    stepped = Checkpoints.stepped

    def asked(self):
        if self.count == 6:
            os.kill(os.getpid(), number)
        return stepped(self)

    handler = signal.getsignal(number)
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "stepped", asked)
        with pytest.raises(Interrupted, match="stopped after") as stop:
            fit(model, X, folder=tmp_path, **FAST)
    assert stop.value.code == 128 + number
    assert signal.getsignal(number) is handler
    fit(model, X, folder=tmp_path, **FAST)
    assert all(map(torch.equal, model.state_dict().values(), whole.state_dict().values()))


def test_a_second_signal_ends_it_at_once():
    checkpoints = Checkpoints(None, {})
    checkpoints._ask(signal.SIGINT, None)
    with pytest.raises(KeyboardInterrupt):
        checkpoints._ask(signal.SIGINT, None)


def test_a_checkpoint_holds_numbers_to_the_bit(tmp_path):
    values = {"seconds": 0.1 + 0.2, "bounds": [float("nan"), -float("inf"), 1e-310]}
    random_state = torch.get_rng_state()
    Checkpoints(tmp_path, {}).save(State({"random/cpu": random_state}, values))
    state = Checkpoints(tmp_path, {}).latest()
    assert torch.equal(state.tensors["random/cpu"], random_state)
    assert repr(state.values["bounds"]) == repr(values["bounds"])
    assert state.values["seconds"] == values["seconds"]


SPEC = """
[data]
name = "digits"
transforms = [{ kind = "binarize", stochastic = true }]
validation = 0.1
[train]
epochs = 12
batch_size = 64
compile = COMPILE
checkpoint_steps = 7
[model]
kind = "vae"
z = [2]
prior = { kind = "vamp", components = 8 }
encoder = { kind = "mlp", hidden = [32] }
decoder = { kind = "mlp", hidden = [32], dropout = 0.1 }
"""


def spec_file(tmp_path, compiled="false"):
    (tmp_path / "spec.toml").write_text(SPEC.replace("COMPILE", compiled))
    return tmp_path / "spec.toml"


def pyrovae(*arguments):
    command = [sys.executable, "-m", "pyrovae", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finished(*arguments):
    process = pyrovae(*arguments)
    out, err = process.communicate()
    assert process.returncode == 0, err
    return out


def killings(tmp_path, compiled, times, seed):
    """Kill runs at random moments, resume each; the weights are to be those of one left alone."""
    spec = spec_file(tmp_path, compiled)
    if times > 1:
        finished("fit", spec, "--out", tmp_path / "whole")
    else:
        fit_spec(read_spec(spec), tmp_path / "whole", False, str)
    seconds = open_run(tmp_path / "whole").results["seconds"]
    wanted = load_file(tmp_path / "whole" / "weights.safetensors")
    chance, unfinished = random.Random(seed), 0
    for index in range(times):
        run = tmp_path / f"run-{index}"
        process = pyrovae("fit", spec, "--resume", run)
        while not (run / "unfinished").exists():
            time.sleep(0.01)
        time.sleep(chance.uniform(0, seconds))
        process.kill()
        process.communicate()
        unfinished += any(run.glob("unfinished/*.safetensors"))
        finished("fit", spec, "--resume", run)
        found = load_file(run / "weights.safetensors")
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted), run
        assert not (run / "unfinished").exists()
    return unfinished


def test_a_run_that_is_killed_goes_on_to_the_same_weights(tmp_path):
    killings(tmp_path, "false", 1, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize(("compiled", "runs"), [("false", 20), ("true", 3)])
def test_runs_killed_at_random_moments_go_on_to_the_same_weights(tmp_path, compiled, runs):
    assert killings(tmp_path, compiled, runs, seed=1) > runs / 4


# Runs


def asked(tmp_path, *changes):
    return read_spec(spec_file(tmp_path), ["train.epochs=3", *changes])


def killed_run(monkeypatch, times, spec, folder):
    """A run that is killed after so many checkpoints, of all its candidates."""
    kept, left = Checkpoints.save, iter(range(times - 1))

    def save(self, state):
        kept(self, state)
        if next(left, None) is None:
            raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save)
        with pytest.raises(KilledError):
            fit_spec(spec, folder, False, str)


def saved(folder):
    return {name: (folder / name).read_bytes() for name in ("spec.toml", "weights.safetensors")}


CHOICE = ["model.prior.components=[4, 8]", "evaluate.particles=20"]


@pytest.mark.parametrize(("changes", "times"), [((), 2), ((), 9), (CHOICE, 14)])
def test_a_run_goes_on_with_its_own_spec(tmp_path, monkeypatch, changes, times):
    spec, folder, said = asked(tmp_path, *changes), tmp_path / "run", []
    fit_spec(spec, tmp_path / "whole", False, str)
    killed_run(monkeypatch, times, spec, folder)
    assert [path.name for path in folder.iterdir()] == ["unfinished"]
    with pytest.raises(Error, match=r"a fit that is not finished: go on with --resume .*run"):
        fit_spec(spec, folder, False, str)
    resume(folder, None, said.append)
    assert saved(folder) == saved(tmp_path / "whole")
    assert not (folder / "unfinished").exists()
    before, said = saved(folder), []
    assert resume(folder, spec, said.append).folder == folder
    assert said == [f"'{folder}' is finished"]
    assert saved(folder) == before


def test_a_run_goes_on_with_no_other_spec(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    killed_run(monkeypatch, 2, asked(tmp_path), folder)
    other = asked(tmp_path, "model.z=[3]", "train.learning_rate=0.01")
    with pytest.raises(Error, match=r"another spec \(model.z: \[2\] is now \[3\]; train.lear"):
        resume(folder, other, str)
    aside = asked(tmp_path, "train.checkpoint_minutes=1.0", "evaluate.particles=7")
    assert resume(folder, aside, str).results["stopped"] == "finished"


def test_a_run_can_begin_again(tmp_path, monkeypatch):
    folder, spec = tmp_path / "run", asked(tmp_path)
    killed_run(monkeypatch, 2, spec, folder)
    other = asked(tmp_path, "model.z=[3]")
    assert fit_spec(other, folder, True, str).model.z == (3,)
    with monkeypatch.context() as patch:
        patch.setattr("pyrovae.fitting.Course.run", raised)
        with pytest.raises(KilledError):
            fit_spec(spec, folder, True, str)
    assert open_run(folder).model.z == (3,)
    assert resume(folder, None, str).model.z == (2,)


def raised(*_):
    raise KilledError


def test_there_is_nothing_to_go_on_with(tmp_path):
    with pytest.raises(Error, match=r"'.*run' holds no fit to go on with"):
        resume(tmp_path / "run", None, str)
    (tmp_path / "bad" / "unfinished").mkdir(parents=True)
    (tmp_path / "bad" / "unfinished" / "spec.json").write_text("{")
    with pytest.raises(Error, match=r"spec.json' is damaged"):
        resume(tmp_path / "bad", None, str)


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ((), "name a spec file, or a folder to go on with"),
        (("--resume", "run", "--out", "there"), "--resume goes on in its own folder"),
        (("--resume", "run", "--force"), "--resume goes on in its own folder"),
        (("--resume", "run", "--set", "train.epochs=3"), "--resume goes on in its own folder"),
        (("--resume", "run"), "'run' holds no fit to go on with"),
    ],
)
def test_what_cannot_be_resumed_is_refused(tmp_path, monkeypatch, words, match):
    monkeypatch.chdir(tmp_path)
    found = CliRunner().invoke(app, ["fit", *words])
    assert isinstance(found.exception, Error)
    assert re.search(match, str(found.exception))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"learning_rate": {"kind": "plateau"}}, "plateau judges by validation rows: pass val"),
        ({"objective": ELBO(beta=Plateau())}, "plateau judges by validation rows"),
        ({"encoder_steps": {"kind": "plateau"}}, "plateau judges by validation rows"),
        (
            {"learning_rate": {"kind": "linear", "begin": 5.0, "end": 2.0}},
            "learning_rate.end: end",
        ),
        ({"rates": {"encodr": 0.5}}, "rates: no parameter's name begins with 'encodr'. Did you"),
        ({"average": 1.0}, "average: should be less than 1"),
        ({"clip": 0.0}, "clip: should be greater than 0"),
        ({"optimizer": "adan"}, "optimizer: unknown optimizer 'adan'. Did you mean 'adam'"),
        ({"logs": ["tensorbord"]}, "logs.0: unknown log 'tensorbord'. Did you mean 'tensorboard'"),
        ({"checkpoint_minutes": 0.0}, "checkpoint_minutes: should be greater than 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(options, match):
    model = begun(PLAIN)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(Error, match=match):
        fit(model, X, **FAST | options)
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


@pytest.mark.slow
def test_two_processes_that_are_asked_to_stop_go_on_together(tmp_path):
    spec, both = spec_file(tmp_path), ("--processes", "2")
    finished("fit", spec, "--out", tmp_path / "whole", *both)
    wanted = load_file(tmp_path / "whole" / "weights.safetensors")
    process = pyrovae("fit", spec, "--out", tmp_path / "run", "--set", "train.epochs=400", *both)
    while not list(tmp_path.glob("run/unfinished/*.safetensors")):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode == 130
    assert "stopped after" in said
    assert f"go on with pyrovae fit --resume {tmp_path / 'run'}" in said
    process = pyrovae("fit", "--resume", tmp_path / "run")
    assert "processes: 2 is now 1" in process.communicate()[1]
    for kill in (True, False):
        process = pyrovae("fit", spec, "--resume", tmp_path / "killed", *both)
        if kill:
            while not list(tmp_path.glob("killed/unfinished/*.safetensors")):
                time.sleep(0.05)
            process.kill()
        process.communicate()
        time.sleep(1)
    found = load_file(tmp_path / "killed" / "weights.safetensors")
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_more_processes_than_rows_are_refused_before_any_begins(tmp_path):
    spec = spec_file(tmp_path)
    for count, match in ((3000, "more than the 1294 training rows"), (65, "rows of a batch")):
        found = CliRunner().invoke(app, ["fit", str(spec), "--processes", str(count)])
        assert match in str(found.exception)
