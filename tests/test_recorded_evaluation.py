"""Recorded evaluation: the numbers of plain Pyro, from the same random numbers."""

import logging

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from test_compile import SMALL, X, _factors, pair, prepared, same, vae, weights
from two_modes import pair as two_modes

from pyrovae import Batch, log_likelihood
from pyrovae.evaluate import posterior, recorded
from pyrovae.evaluate.estimators import AIS, IWAE, importance
from pyrovae.evaluate.recorded import Recorded
from pyrovae.evaluate.samplers import HMC
from pyrovae.graphs import Graph

SAMPLE = (
    "vamp prior",
    "flow prior",
    "categorical prior",
    "counts",
    "full guide",
    "conv",
    "refined",
    "hierarchy",
    "context",
    "semi-supervised",
    "size factors",
    "transformed, missing",
    "pair",
)


@pytest.fixture
def backends(monkeypatch):
    """What ran each call, with few calls that suffice for recording."""
    ran, plain = [], Recorded.__call__

    def call(self, *arguments):
        found = plain(self, *arguments)
        recordings = [kind for kind in self.kinds.values() if kind.graph]
        ran.append("replay" if recordings else "no")
        return found

    monkeypatch.setattr(Recorded, "__call__", call)
    monkeypatch.setattr(recorded, "PATIENCE", 1)
    monkeypatch.setattr(importance, "BLOCK", 60)
    monkeypatch.setattr(importance, "AT_ONCE", 4)
    return ran


def both(model, rows, **options):
    """The arrays of a plain and of a recorded evaluation."""
    found = (log_likelihood(model, rows, compile=how, **options) for how in (False, "auto"))
    return [np.stack([r.value, r.elbo, r.mcse]) for r in found]


def equal(a, b):
    return np.array_equal(a, b, equal_nan=True)


@pytest.mark.parametrize("case", SAMPLE)
def test_replayed_weights_are_those_of_pyro_to_the_bit(case, backends):
    model, rows, _ = prepared(case)
    before = weights(model), torch.get_rng_state()
    assert equal(*both(model, rows[:34], particles=8, method=IWAE()))
    assert backends[-1] == "replay"
    assert same(before[0], weights(model))
    assert torch.equal(before[1], torch.get_rng_state())


def test_float32_and_rows_with_particles_of_their_own(backends):
    model, rows, _ = prepared("full guide")
    method = IWAE(tolerance=0.3, budget=2000)
    assert equal(*both(model, rows[:9].x, method=method, dtype="float32"))
    assert backends[-1] == "replay"


@pytest.mark.parametrize(
    ("case", "start"), [("context", "guide"), ("missing", "prior"), ("pair", "guide")]
)
def test_replayed_annealing_is_that_of_pyro_to_the_bit(case, start, backends):
    model, rows, _ = prepared(case)
    method = AIS(temperatures=10, start=start)
    assert equal(*both(model, rows[:5], particles=3, method=method))
    assert backends[-1] == "replay"


def test_replayed_chains_are_those_of_pyro_to_the_bit(backends, monkeypatch):
    x, method = torch.ones(2, 1).double(), HMC(warmup=20)
    found = [posterior(two_modes(), x, 10, method=method, chains=2).pooled["z"]]
    assert backends[-1] == "replay"
    monkeypatch.setattr(recorded, "PATIENCE", 10**9)
    assert torch.equal(
        found[0], posterior(two_modes(), x, 10, method=method, chains=2).pooled["z"]
    )


def test_a_kind_is_recorded_after_some_blocks_and_compiled_after_many_numbers(monkeypatch):
    calls, compiled = [], []
    monkeypatch.setattr(recorded, "LONG", 1000)
    monkeypatch.setattr(Graph, "compiled", lambda self, *_: compiled.append(met[-1]) or self)

    def function(a, k):
        calls.append(k)
        return (a.exp() + k,)

    block, met = Recorded(function, vae()), []
    for met[1:] in ([index] for index in range(1, 100)):
        assert block(torch.zeros(10), 2)[0].equal(torch.full((10,), 3.0))
    assert len(calls) == recorded.PATIENCE + 3
    (kind,) = block.kinds.values()
    assert kind.graph.written == 20
    assert compiled == [recorded.PATIENCE + 1 + 50]


def scaled(factor):
    """A model whose guide's width a Python function decides."""

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x.new_zeros(2), factor(x)).to_event(1))

    programs = pair(_factors, guide)
    programs.start(Batch(X))
    return programs


@pytest.mark.parametrize(
    ("factor", "reason"),
    [
        (lambda x: 2.0 if x.sum() > 3 else 1.0, "Python decides by the value of a tensor"),
        (lambda x: 1 + float(x.numpy().mean()), "numpy or a list takes"),
        (lambda x: 1 + float(np.asarray(x).mean()), "numpy or a list takes"),
        (lambda x: 1 + sum(x[:, 0].tolist()), "numpy or a list takes"),
    ],
)
def test_what_cannot_be_recorded_is_plain_pyro(factor, reason, backends, caplog):
    with caplog.at_level(logging.INFO, "pyrovae"):
        assert equal(*both(scaled(factor), X, particles=8))
    assert set(backends) == {"no"}
    (sentence,) = caplog.messages
    assert sentence.startswith("Evaluation runs as plain Pyro")
    assert reason in sentence


def test_modules_with_hooks_are_plain_pyro(backends, caplog):
    model = vae()
    model.decoder.register_forward_hook(lambda *_: None)
    with caplog.at_level(logging.INFO, "pyrovae"):
        assert equal(*both(model, X, particles=8))
    assert "hooks" in caplog.text
    assert set(backends) == {"no"}


def test_numbers_that_change_from_call_to_call_are_found_out(backends, caplog):
    calls = []
    log_likelihood(scaled(lambda _: 1.0 + len(calls) + len(calls.append(0) or ())), X, particles=8)
    assert "recorded, it gives other numbers" in caplog.text
    assert set(backends) == {"no"}


def test_a_compiler_that_fails_leaves_the_replay(backends, caplog, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr("pyrovae.graphs.routed", broken)
    monkeypatch.setattr(recorded, "LONG", 1)
    with caplog.at_level(logging.INFO, "pyrovae"):
        assert equal(*both(vae(), X, particles=8))
    assert "Evaluation is replayed, not compiled: " in caplog.text
    assert backends[-1] == "replay"


@pytest.mark.slow
@pytest.mark.parametrize("method", [IWAE(), AIS(temperatures=5)])
def test_compiled_weights_are_those_of_pyro_but_for_rounding(method, monkeypatch):
    model, rows = vae(decoder=SMALL), Batch(X[:5])
    made, own = [], Graph.compiled
    monkeypatch.setattr(Graph, "compiled", lambda *a: made.append(own(*a)) or made[-1])
    before = weights(model)
    plain, compiled = (
        log_likelihood(model, rows, particles=8, method=method, compile=how)
        for how in (False, True)
    )
    assert len(made) == 1
    assert np.allclose(plain.value, compiled.value, rtol=1e-10)
    assert same(before, weights(model))
