"""What the processes of `test_ranks.py` do that fit nothing: each function is a process's life."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from pyrovae.errors import Error
from pyrovae.ranks import World, joined


def calls(world):
    """Every call of a world, in two processes."""
    rank, first = world.rank, float(world.rank == 0)
    assert world == World(rank, 2)
    with joined() as again:
        assert again == world

    rows, names = 3 - rank, "gfedcba"
    parameters = {name: nn.Parameter(torch.zeros(2, 3)) for name in names}
    parameters["b"] = nn.Parameter(torch.zeros(4, dtype=torch.float64))
    parameters["c"].requires_grad_(False)
    parameters = dict(sorted(parameters.items(), reverse=bool(rank)))
    for name in "abefg":
        p = parameters[name]
        p.grad = torch.full_like(p, ord(name) + 10.0 * rank)
    parameters["e"].grad = torch.ones(3, 2).T * (1 + 5 * rank)  # not contiguous
    parameters["f"].grad = None if rank else torch.full((2, 3), 5.0)
    parameters["g"].grad = torch.full((2, 3), torch.nan) if rank else None
    world.combine(parameters, rows, 5)
    for name, value in {"a": 97 + 4, "b": 98 + 4, "e": 3, "f": 3, "g": torch.nan}.items():
        grad = parameters[name].grad
        torch.testing.assert_close(grad, torch.full_like(grad, value), equal_nan=True)
    assert parameters["c"].grad is None
    assert parameters["d"].grad is None
    parameters["a"].grad = torch.ones(2, 3) if world.first else None
    world.combine({"a": parameters["a"]}, 1 - rank, 1)
    assert (parameters["a"].grad == 1).all()

    assert world.sum(torch.tensor([1.0, rank])).tolist() == [2.0, 1.0]
    assert not world.sum(torch.tensor(torch.nan if rank else 1.0)).isfinite()
    assert [world.any(rank == one) for one in range(3)] == [True, True, False]
    assert world.shared({"order": torch.arange(3) + rank})["order"].tolist() == [0, 1, 2]
    assert world.gathered(torch.get_rng_state()[:3] * 0 + rank)[1].tolist() == [1, 1, 1]

    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    module.far = nn.Buffer(torch.tensor([0.1, -torch.inf, torch.inf]))
    with torch.no_grad():
        module[0].weight.fill_(first)
    parameter = module[0].weight
    world.spread(module)
    assert parameter is module[0].weight
    assert (parameter == 1).all()
    with torch.no_grad():
        module[1].running_mean.fill_(rank)
    world.average(module)
    assert module[1].running_mean.tolist() == [0.5] * 3
    assert torch.equal(module.far, torch.tensor([0.1, -torch.inf, torch.inf]))
    with pytest.raises(Error, match="different models"):
        world.spread(nn.Linear(2, 2 + rank))


def called_fitted_and_failed():
    """All calls, a fit; then one process makes a user's mistake while the other waits for it."""
    from digits_world import fits

    try:
        with mistakes(), joined() as world:
            calls(world)
            fits(world, *sys.argv[1:])
            print(f"heard from {world.rank}", flush=True)
            if not world.first:
                raise Error("this cannot be")
            world.any(False)
            raise AssertionError
    finally:
        without_group()


def fitted():
    """A fit."""
    from digits_world import fits

    with joined() as world:
        fits(world, *sys.argv[1:])
    without_group()


def without_group():
    """Threads that outlive the world make gloo abort at exit, now and then."""
    for thread in Path("/proc/self/task").glob("*/comm"):
        assert "gloo" not in thread.read_text()


class mistakes:  # noqa: N801
    """As the command line ends."""

    def __enter__(self):
        return self

    def __exit__(self, kind, error, _):
        if isinstance(error, Error):
            print(f"pyrovae: {error}", file=sys.stderr)
            sys.exit(2)


def both_mistaken():
    """The same mistake in all processes."""
    with mistakes(), joined():
        raise Error("this cannot be")


def one_mistaken_early():
    """A mistake before the processes meet."""
    with mistakes():
        if os.environ["RANK"] == "1":
            raise Error("this cannot be")
        with joined() as world:
            world.any(False)


def one_broken():
    """A mistake of the program."""
    with joined() as world:
        if not world.first:
            raise ZeroDivisionError("of its own")
        world.any(False)


def one_killed():
    """What the system does when memory runs out."""
    with joined() as world:
        if not world.first:
            os.kill(os.getpid(), signal.SIGKILL)
        world.any(False)


def one_busy():
    """The other process has much to do before it could notice."""
    with mistakes(), joined() as world:
        if not world.first:
            raise Error("this cannot be")
        time.sleep(60)


def patient():
    """A fit that ends, with a checkpoint, when it is asked to."""
    folder, asked = Path(sys.argv[1]), []
    signal.signal(signal.SIGINT, lambda *_: asked.append(1))
    with joined() as world:
        (folder / f"process-{world.rank}").write_text(str(os.getpid()))
        while not world.any(bool(asked)):
            time.sleep(0.01)
        (folder / f"asked-{world.rank}").write_text(str(len(asked)))
    sys.exit(7)


def stubborn():
    """A fit that does not."""
    folder = Path(sys.argv[1])
    signal.signal(signal.SIGINT, lambda *_: (folder / "asked").touch())
    with joined() as world:
        (folder / f"process-{world.rank}").write_text(str(os.getpid()))
        time.sleep(60)


def quiet():
    """Nothing much, under a launcher that is not ours."""
    with joined() as world:
        parameter = nn.Parameter(torch.zeros(100))
        for _ in range(10):
            parameter.grad = torch.full((100,), float(world.rank))
            world.combine({"a": parameter}, 1, 2)
        assert (parameter.grad == 0.5).all()
    print(f"done {world.rank}")


if __name__ == "__main__":
    globals()[sys.argv[1]]()
