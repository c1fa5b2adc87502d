"""Logs: each read back with its own package, taken up again, and unable to stop a fit."""

import logging
import math
import signal
import subprocess
import sys
import time
from typing import ClassVar

import pytest

from pyrovae.errors import Error
from pyrovae.logs import Log, Logs, Mlflow, Tensorboard, Wandb

SETTINGS = {"model": {"kind": "vae", "z": [2]}, "train": {"epochs": 4}}


class Memory(Log):
    """A log in memory.

    Args:
        fails: the method that raises.
    """

    fails: str = ""

    heard: ClassVar[list] = []

    def begin(self, folder, settings):
        self._hear("begin", folder, settings)

    def record(self, epoch, figures):
        self._hear("record", epoch, figures)

    def end(self, figures):
        self._hear("end", figures)

    def _hear(self, *what):
        if what[0] == self.fails:
            raise OSError("the disk is full")
        self.heard.append((self.fails, *what))


Log.members.pop("memory")  # of this file only


@pytest.fixture(autouse=True)
def heard():
    Memory.heard.clear()
    return Memory.heard


def figures(epoch):
    return {"loss": 3.0 - epoch, "kl.z": math.nan if epoch == 1 else 0.5 * epoch}


def interrupted_and_resumed(log, folder, again=0):
    """Epochs 0 to 2, no end, and once more from a checkpoint at 2, told from `again` on."""
    first = Logs([type(log)(**fields(log))])
    first.begin(folder, SETTINGS)
    for epoch in range(3):
        first.record(epoch, figures(epoch))
    second = Logs([log])
    second.begin(folder, SETTINGS)
    for epoch in range(again, 4):
        second.record(epoch, figures(epoch))
    second.end({"stopped": "finished", "best": 3})
    assert len(second.open) == 1
    return first


def fields(log):
    return {name: value for name, value in log.spec().items() if name != "kind"}


def check_steps(steps, values):
    assert list(steps) == [0, 1, 2, 3]
    assert list(values) == pytest.approx([0.0, math.nan, 1.0, 1.5], nan_ok=True)


@pytest.mark.parametrize("again", [0, 2])
def test_tensorboard_has_each_epoch_once(tmp_path, again):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    first = interrupted_and_resumed(Tensorboard(), tmp_path, again)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert events.Tags()["scalars"] == ["loss", "kl.z"]
    scalars = events.Scalars("kl.z")
    check_steps([s.step for s in scalars], [s.value for s in scalars])
    (settings,) = events.Tensors("settings/text_summary")[-1].tensor_proto.string_val
    assert b'"epochs": 4' in settings
    first.end({})


def test_tensorboard_without_a_folder_and_without_an_epoch(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    monkeypatch.chdir(tmp_path)
    for epochs in (0, 1):
        log = Logs([Tensorboard()])
        log.begin(None, SETTINGS)
        for epoch in range(epochs):
            log.record(epoch, figures(epoch))
        log.end({"stopped": "finished"})
        assert log.open
        assert len(list(tmp_path.glob("runs/*/events*"))) == epochs


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow's use of SQLAlchemy
def test_mlflow_has_each_epoch_once(tmp_path):
    mlflow = pytest.importorskip("mlflow")
    interrupted_and_resumed(Mlflow(), tmp_path)
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("pyrovae")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_id == (tmp_path / "mlflow-id").read_text()
    assert (run.info.status, run.data.tags["stopped"]) == ("FINISHED", "finished")
    assert run.data.params == {"model.kind": "vae", "model.z": "[2]", "train.epochs": "4"}
    history = sorted(client.get_metric_history(run.info.run_id, "kl.z"), key=lambda m: m.step)
    check_steps([m.step for m in history], [m.value for m in history])
    shared = Logs([Mlflow(uri=f"sqlite:///{tmp_path}/mlflow.db")])
    shared.begin(None, {f"rate[{index}]": index for index in range(120)})
    shared.end({})
    runs = client.search_runs([experiment.experiment_id])
    assert {len(run.data.params) for run in runs} == {3, 120}


KILLED = """
import os, pathlib, signal
from pyrovae.logs import Logs, Wandb
logs = Logs([Wandb(project="digits")])
logs.begin(pathlib.Path({folder!r}), {{}})
for epoch in range(3):
    logs.record(epoch, {{"loss": 0.0, "kl.z": float("nan")}})
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_wandb_goes_on_with_the_same_run(tmp_path):
    pytest.importorskip("wandb")
    killed = subprocess.run([sys.executable, "-c", KILLED.format(folder=str(tmp_path))])
    assert killed.returncode == -signal.SIGKILL
    logs = Logs([Wandb(project="digits")])
    logs.begin(tmp_path, SETTINGS)
    for epoch in range(4):
        logs.record(epoch, figures(epoch))
    logs.end({"stopped": "finished"})
    assert logs.open
    name = (tmp_path / "wandb-id").read_text()
    files = sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    until = time.monotonic() + 20
    while files[-1].stat().st_size < 100 and time.monotonic() < until:
        time.sleep(0.1)  # its service writes on its own
    records = [record for file in files for record in wandb_records(file)]
    assert {file.name for file in files} == {f"run-{name}.wandb"}
    runs = [(r.run.project, r.run.run_id) for r in records if r.HasField("run")]
    assert set(runs) == {("digits", name)}
    steps = [r.history.step.num for r in records if r.HasField("history")]
    assert steps == [0, 1, 2, 3]  # what was killed had written none
    summary = [r.summary for r in records if r.HasField("summary")]
    assert any("stopped" in str(entry) for entry in summary)


def wandb_records(file):
    """The records of a file of Weights & Biases: a header of 7 bytes, then each with one."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at = file.read_bytes(), 7
    assert len(data) < 2**15  # one block
    while at < len(data):
        length = int.from_bytes(data[at + 4 : at + 6], "little")
        yield Record.FromString(data[at + 7 : at + 7 + length])
        at += 7 + length


@pytest.mark.slow
def test_wandb_can_be_disabled(tmp_path):
    pytest.importorskip("wandb")
    interrupted_and_resumed(Wandb(mode="disabled"), tmp_path)
    assert not list(tmp_path.glob("wandb/*run*"))


@pytest.mark.parametrize("log", [Tensorboard(), Wandb(), Mlflow()], ids=lambda log: log.kind)
def test_a_missing_package_is_refused_before_anything_begins(log, monkeypatch, heard):
    for name in (log.package, log.kind):
        monkeypatch.setitem(sys.modules, name, None)
    message = rf"logs: the log '{log.kind}' .* pip install 'pyrovae\[{log.kind}\]'"
    with pytest.raises(Error, match=message):
        log.require()
    with pytest.raises(Error, match=message):
        Logs([Memory(), log]).begin(None, SETTINGS)
    assert not heard


def test_a_log_that_fails_is_left_out_and_told_once(tmp_path, caplog, heard):
    logs = Logs([Memory(fails="record"), Memory()])
    logs.begin(tmp_path / "logs", SETTINGS)
    for epoch in range(3):
        logs.record(epoch, figures(epoch))
    logs.end({"stopped": "finished"})
    assert [what for fails, what, *_ in heard if fails] == ["begin"]
    others = [what for fails, what, *_ in heard if not fails]
    assert others == ["begin", "record", "record", "record", "end"]
    (sentence,) = caplog.messages
    assert sentence == (
        "the log 'memory' failed after epoch 0 and is left out, the fit goes on: "
        "OSError: the disk is full"
    )


def test_a_log_that_fails_at_the_end_does_not_stop_the_others(caplog, heard):
    logs = Logs([Memory(fails="end"), Memory()])
    logs.begin(None, SETTINGS)
    logs.end({})
    assert heard[-1] == ("", "end", {})
    assert "at the end" in caplog.text


def test_a_log_that_cannot_begin_is_refused_and_the_others_are_closed(heard):
    with pytest.raises(Error, match="logs: the log 'memory' cannot begin: OSError: the disk is f"):
        Logs([Memory(), Memory(fails="begin")]).begin(None, SETTINGS)
    assert [what for _, what, *_ in heard] == ["begin", "end"]


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "logs").write_text("a file")
    with pytest.raises(Error, match="the log 'memory' cannot begin: FileExistsError"):
        Logs([Memory()]).begin(tmp_path / "logs", SETTINGS)


def test_no_logs_are_nothing(tmp_path):
    logs = Logs()
    logs.begin(tmp_path / "logs", SETTINGS)
    logs.record(0, {})
    logs.end({})
    assert not list(tmp_path.iterdir())


def test_a_ctrl_c_in_a_log_stops_the_fit(monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    logs = Logs([Memory()])
    logs.begin(None, SETTINGS)
    monkeypatch.setattr(Memory, "record", interrupt)
    with pytest.raises(KeyboardInterrupt):
        logs.record(0, {})


def test_logs_are_declared_as_parts_are():
    assert set(Log.members) == {"tensorboard", "wandb", "mlflow"}
    log = Log.from_spec({"kind": "wandb", "project": "digits", "mode": "online"})
    assert log.spec() == {"kind": "wandb", "project": "digits", "mode": "online"}
    with pytest.raises(Error, match="mode"):
        Wandb(mode="onlin")
    with pytest.raises(Error, match="Did you mean 'tensorboard'"):
        Log.from_spec("tensorbord")
