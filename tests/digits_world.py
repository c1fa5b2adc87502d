"""A fit in a world of processes whose noise does not depend on who takes which rows.

The noise of a row is a function of its place in the data, which it is given as its context:
however many processes share a batch, its rows meet the same noise.
"""

import json
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pyrovae import Batch, Pair, fit

TRAIN, JUDGE = slice(0, 1281), slice(1281, None)
"""The last batch has one row: with more than one process, somebody has none."""
BATCH, EPOCHS, Z = 128, 3, 2


class Noise(nn.Module):
    """Standard normal numbers of each row."""

    def __init__(self):
        super().__init__()
        table = torch.randn(2000, Z, generator=torch.Generator().manual_seed(1))
        self.table = nn.Buffer(table)

    def forward(self, place):
        return self.table[place[:, 0].long()]


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

    return Pair(model=model, guide=guide)


def fitted(x, case):
    """A fit, in this process or in all of its world; its weights and its figures."""
    dtype = torch.float64 if case == "exact" else torch.float32
    torch.manual_seed(0)
    place = torch.arange(len(x), dtype=dtype)[:, None]
    rows, held_out = (Batch(x.to(dtype)[some], place[some]) for some in (TRAIN, JUDGE))
    model = digits_pair().to(dtype)
    how = {"compile": case == "recorded", "accumulate": 3 if case == "parts" else 1}
    history = fit(model, rows, held_out, epochs=EPOCHS, batch_size=BATCH, progress=False, **how)
    figures = [number for epoch in history.epochs for number in (epoch.loss, epoch.validation)]
    return {k: p.detach() for k, p in model.named_parameters()}, figures, history.compiled


def fits(world, folder, *cases):
    """Fit in this world, and write down what each process found."""
    x = load_file(Path(folder) / "digits.safetensors")["x"]
    for case in cases:
        weights, figures, backend = fitted(x, case)
        about = {"figures": json.dumps(figures), "backend": backend}
        save_file(weights, Path(folder) / f"{case}-{world.rank}.safetensors", about)
