"""Several processes: they do what one does, speak with one voice, and end together."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import digits_world
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits

from pyrovae import Batch, Error
from pyrovae.launch import launch
from pyrovae.ranks import ALONE, World, joined, refuse

TESTS = Path(__file__).parent


@pytest.fixture
def digits(tmp_path):
    x = (torch.tensor(load_digits().data) > 7).double()
    save_file({"x": x}, tmp_path / "digits.safetensors")
    return x


def compared(folder, x, processes, case):
    """The largest difference between what one process and several end with, and the backend."""
    wanted, figures, backend = digits_world.fitted(x, case)
    found = []
    for rank in range(processes):
        path = folder / f"{case}-{rank}.safetensors"
        with safe_open(path, "pt") as file:
            about = file.metadata()
        assert json.loads(about["figures"]) == pytest.approx(figures, rel=1e-6)
        assert about["backend"] == backend
        found.append(load_file(path))
    for other in found[1:]:
        assert all(torch.equal(found[0][name], other[name]) for name in wanted)
    return max((found[0][name] - tensor).abs().max().item() for name, tensor in wanted.items())


def life(name):
    return f"import world_calls; world_calls.{name}()"


def test_two_processes_do_what_one_does_and_one_that_fails_ends_both(digits, tmp_path, capfd):
    assert launch([str(tmp_path), "plain"], 2, life("called_fitted_and_failed")) == 2
    said = capfd.readouterr()
    assert said.out == "heard from 0\n"
    assert said.err.splitlines()[-1] == "pyrovae: this cannot be"
    assert "Traceback" not in said.err
    assert compared(tmp_path, digits, 2, "plain") < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_so_do_recorded_steps_and_more_processes(digits, tmp_path, processes):
    cases = ("recorded", "parts", "exact")
    assert launch([str(tmp_path), *cases], processes, life("fitted")) == 0
    assert compared(tmp_path, digits, processes, "recorded") < 1e-5
    assert compared(tmp_path, digits, processes, "parts") < 1e-5
    with safe_open(tmp_path / "recorded-1.safetensors", "pt") as file:
        assert file.metadata()["backend"] == "inductor"
    assert compared(tmp_path, digits, processes, "exact") < 1e-13


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "code", "sentence"),
    [
        ("both_mistaken", 2, "pyrovae: this cannot be"),
        ("one_mistaken_early", 2, "pyrovae: this cannot be"),
        ("one_broken", 1, "ZeroDivisionError: of its own"),
        ("one_killed", 137, "pyrovae: process 1 ended by SIGKILL"),
        ("one_busy", 2, "pyrovae: this cannot be"),
    ],
)
def test_what_one_process_fails_at_is_said_and_ends_all(capfd, name, code, sentence):
    began = time.monotonic()
    assert launch([], 2, life(name)) == code
    assert time.monotonic() - began < 40
    said = capfd.readouterr().err
    assert said.splitlines()[-1].endswith(sentence)
    assert said.count(sentence) == 1
    assert name != "both_mistaken" or said == f"{sentence}\n"


def launcher(tmp_path, name):
    """A launcher in a process of its own, once its processes run."""
    begin = "import sys; from pyrovae.launch import launch; "
    code = f"{begin} sys.exit(launch(sys.argv[1:], 2, {life(name)!r}))"
    words = [sys.executable, "-c", code, str(tmp_path)]
    path = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    process = subprocess.Popen(words, env=os.environ | {"PYTHONPATH": path})
    ranks = [tmp_path / f"process-{rank}" for rank in range(2)]
    wait(lambda: all(rank.exists() and rank.read_text() for rank in ranks))
    return process, [int(rank.read_text()) for rank in ranks]


def wait(condition):
    until = time.monotonic() + 40
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def gone(number):
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{number}/stat").read_text().split()[2] == "Z"


@pytest.mark.slow
def test_ctrl_c_is_passed_on_once(tmp_path):
    process, _ = launcher(tmp_path, "patient")
    process.send_signal(signal.SIGINT)
    assert process.wait(40) == 7
    assert [(tmp_path / f"asked-{rank}").read_text() for rank in range(2)] == ["1", "1"]


@pytest.mark.slow
def test_asked_twice_they_are_killed(tmp_path):
    process, ranks = launcher(tmp_path, "stubborn")
    process.send_signal(signal.SIGINT)
    wait((tmp_path / "asked").exists)
    process.send_signal(signal.SIGINT)
    assert process.wait(40) == 137
    assert all(map(gone, ranks))


@pytest.mark.slow
def test_they_end_with_the_process_that_began_them(tmp_path):
    process, ranks = launcher(tmp_path, "stubborn")
    process.kill()
    process.wait()
    wait(lambda: all(map(gone, ranks)))


@pytest.mark.slow
def test_torchrun_begins_and_ends_them_as_well():
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    path = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, *words, str(TESTS / "world_calls.py"), "quiet"],
            env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("done") == 2
        assert not done.stderr


@pytest.mark.parametrize(("rows", "size"), [(10, 3), (2, 3), (1, 4), (0, 2), (7, 1)])
def test_parts_are_contiguous_and_even(rows, size):
    index = torch.randperm(rows)
    batch = Batch(torch.randn(rows, 2), index=index)
    parts = [World(rank, size).part(index) for rank in range(size)]
    assert torch.equal(torch.cat(parts), index)
    lengths = [len(part) for part in parts]
    assert max(lengths) - min(lengths) <= 1
    assert lengths == sorted(lengths, reverse=True)
    for rank, part in enumerate(parts):
        mine = World(rank, size).part(batch)
        assert torch.equal(mine.index, part)
        assert len(mine.x) == len(part)


def test_seeds_of_noise_are_apart():
    seeds = [World(rank, 8).seed(seed) for seed in (0, 1, 2**40) for rank in range(8)]
    assert seeds[::8] == [0, 1, 2**40]
    assert len(set(seeds)) == 24
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seeds[1] == World(1, 2).seed(0)


def test_a_world_of_one_changes_nothing():
    with joined() as world:
        assert world is ALONE
    x, grad = torch.randn(3, 2), torch.randn(2)
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.grad = grad
    world.combine({"a": parameter}, 3, 3)
    assert parameter.grad is grad
    assert world.part(x) is world.sum(x) is world.shared(x) is x
    assert world.gathered(x)[0] is x
    assert (world.seed(3), world.any(True), world.any(False)) == (3, 1, 0)


def test_processes_without_rows_are_refused():
    refuse(4, 10, 4)
    with pytest.raises(
        Error, match=r"^processes: 11 processes are more than the 10 training rows"
    ):
        refuse(11, 10, 20)
    with pytest.raises(Error, match=r"more than the 4 rows of a batch.*raise batch_size$"):
        refuse(5, 10, 4)


def test_processes_do_not_begin_processes(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(Error, match="already: leave processes to torchrun"):
        launch([], 2)


def test_one_gpu_for_several_processes_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(Error, match="'cuda:0' is one GPU"), joined("cuda:0"):
        pass
    with pytest.raises(Error, match="a GPU of its own, and this machine has 1"), joined("cuda"):
        pass
