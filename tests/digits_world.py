"""A fit in a world of processes whose noise does not depend on who takes which rows.

The noise of a row is a function of its place in the data, which it is given as its context, and of
the step: however many processes share a batch, its rows meet the same noise.
"""

import json
from functools import partial
from pathlib import Path

import pyro
import pyro.distributions as dist
import pyro.infer
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pyrovae import Batch, Pair, log_weights
from pyrovae.compile import Recorded, backward
from pyrovae.optim import Optim
from pyrovae.place import in_mode, unchecked

TRAIN, JUDGE = slice(0, 1281), slice(1281, None)
"""The last batch has one row: with more than one process, somebody has none."""
BATCH, EPOCHS, Z = 128, 3, 2


class Noise(nn.Module):
    """Standard normal numbers of each row, another row's in the next step."""

    def __init__(self):
        super().__init__()
        self.step = nn.Buffer(torch.zeros((), dtype=torch.int64))
        table = torch.randn(5003, Z, generator=torch.Generator().manual_seed(1))
        self.table = nn.Buffer(table)

    def forward(self, place):
        return self.table[(place[:, 0].long() + 1009 * self.step) % len(self.table)]


class Given(dist.Normal):
    """A normal whose draw has been made."""

    def __init__(self, loc, scale, noise):
        super().__init__(loc, scale)
        self.noise = noise

    def expand(self, batch_shape, _instance=None):
        return Given(self.loc.expand(batch_shape), self.scale.expand(batch_shape), self.noise)

    def rsample(self, sample_shape=()):
        return self.loc + self.scale * self.noise


def digits_pair():
    noise = Noise()
    encoder = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 2 * Z))
    decoder = nn.Sequential(nn.Linear(Z, 32), nn.Tanh(), nn.Linear(32, 64))

    def model(x, place):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(Z), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x, place):
        pyro.module("encoder", encoder)
        loc, log_scale = encoder(x).chunk(2, -1)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", Given(loc, log_scale.exp(), noise(place)).to_event(1))

    return Pair(model=model, guide=guide), noise


def fit(world, x, case):
    """What one process does, with the calls that several need; its weights and its figures."""
    compiled, dtype = case != "plain", torch.float64 if case == "exact" else torch.float32
    torch.manual_seed(world.seed(0))
    place = torch.arange(len(x), dtype=dtype)[:, None]
    rows, held_out = (Batch(x.to(dtype)[some], place[some]) for some in (TRAIN, JUDGE))
    model, noise = digits_pair()
    model.to(dtype).start(rows)
    world.spread(model)
    elbo = pyro.infer.Trace_ELBO()
    elbo = Recorded(elbo, every=7) if compiled else elbo
    take = elbo.backward if compiled else partial(backward, elbo)
    parameters = dict(model.named_parameters())
    optim = Optim(torch.optim.Adam, {"lr": 1e-3, "fused": compiled})
    figures = []
    for epoch in range(EPOCHS):
        generator = torch.Generator().manual_seed(world.shared(epoch + 10 * world.rank))
        total = torch.zeros((), dtype=torch.float64)
        with model.scope(), in_mode(model, True), unchecked():
            for index in torch.randperm(len(rows), generator=generator).split(BATCH):
                mine = world.part(index)
                if len(mine):
                    batch = rows[mine].replace(index=mine)
                    loss, _ = take(model.model, model.guide, batch, rows=len(batch))
                    total += loss * len(mine)
                world.combine(parameters, len(mine), len(index))
                optim(parameters.values())
                for parameter in parameters.values():
                    parameter.grad = None
                noise.step += 1
        world.average(model)
        values = log_weights(model, world.part(held_out))[0]
        figures += [world.sum(total).item() / len(rows), world.whole(values).mean().item()]
    backend = elbo.backend if compiled else "no"
    return {name: p.detach() for name, p in parameters.items()}, figures, backend


def fits(world, folder, *cases):
    """Fit in this world, and write down what each process found."""
    x = load_file(Path(folder) / "digits.safetensors")["x"]
    for case in cases:
        weights, figures, backend = fit(world, x, case)
        about = {"figures": json.dumps(figures), "backend": backend}
        save_file(weights, Path(folder) / f"{case}-{world.rank}.safetensors", about)
