"""Checkpoints: a fit that is stopped at any moment ends at the same weights, to the bit."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits

from pyrovae import fit
from pyrovae.checkpoints import Checkpoints
from pyrovae.errors import Error, Interrupted
from pyrovae.inference import State
from pyrovae.models import Model

X = torch.tensor(load_digits().data[:300] > 7).float()
SMALL = {"kind": "mlp", "hidden": (16,)}
FAST = {"epochs": 4, "batch_size": 64, "progress": False}
PLAIN = {"kind": "vae", "x": (64,), "z": (2,), "encoder": SMALL, "decoder": SMALL}
NORM = SMALL | {"dropout": 0.2}
CASES = {
    "plain": (PLAIN, {}),
    "validation rows": (PLAIN, {"patience": 3}),
    "recorded": (PLAIN, {"compile": True}),
    "vamp prior, dropout": (PLAIN | {"prior": "vamp", "encoder": NORM}, {"compile": True}),
    "parts of a batch": (PLAIN, {"accumulate": 3}),
    "encoder alone": (
        PLAIN,
        {"encoder_steps": {"kind": "steps", "values": [2, 0], "epochs": [2]}},
    ),
    "schedules": (
        PLAIN,
        {"learning_rate": {"kind": "plateau", "initial": 0.01, "patience": 1}, "compile": True},
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


@pytest.mark.parametrize("case", CASES)
def test_a_fit_that_is_stopped_ends_at_the_same_weights(case, tmp_path, monkeypatch):
    fields, options = CASES[case]
    options = FAST | {"checkpoint_steps": 1} | options
    held_out = X[:50] if case in ("validation rows", "schedules") else None
    whole = begun(fields)
    history = fit(whole, X, held_out, **options)
    for step in (1, 2, 7, 10, 13):
        killed(monkeypatch, step, begun(fields), X, held_out, tmp_path / str(step), **options)
        model = begun(fields)
        resumed = fit(model, X, held_out, tmp_path / str(step), **options)
        for name, tensor in whole.state_dict().items():
            assert torch.equal(tensor, model.state_dict()[name]), (step, name)
        assert [e.loss for e in resumed.epochs] == [e.loss for e in history.epochs]
        assert (resumed.best, resumed.stopped) == (history.best, history.stopped)
        assert resumed.compiled == history.compiled


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
    began = time.perf_counter()
    finished("fit", spec, "--out", tmp_path / "whole")
    seconds = time.perf_counter() - began
    wanted = load_file(tmp_path / "whole" / "weights.safetensors")
    chance, unfinished = random.Random(seed), 0
    for index in range(times):
        run = tmp_path / f"run-{index}"
        for _ in range(2):
            process = pyrovae("fit", spec, "--resume", run)
            time.sleep(chance.uniform(0.3, 1.0) * seconds)
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
@pytest.mark.parametrize("compiled", ["false", "true"])
def test_runs_killed_at_twenty_moments_go_on_to_the_same_weights(tmp_path, compiled):
    assert killings(tmp_path, compiled, 10, seed=1) > 5
