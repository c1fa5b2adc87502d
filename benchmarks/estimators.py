"""Estimates of log p(x) against exact answers, and what they cost on MNIST.

The first part is a linear-Gaussian VAE with 5 latents and 20 entries, 200 rows, whose guide is the
posterior with 1.3 times its standard deviations, moved by 0.3 of them: log p(x) and p(z | x) are
known. The second, with the folder of a run, evaluates the first 100 test rows of it by importance
sampling and by annealing, in turn.

    python benchmarks/estimators.py [RUN] [--rounds 3]
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from pyrovae import VAE, LogLikelihood, calibrate, log_likelihood, open_run, posterior, sandwich
from pyrovae.evaluate.estimators import AIS
from pyrovae.experiment import data_of
from pyrovae.families.continuous import inverse_softplus
from pyrovae.place import seeded

J, D, ROWS, NOISE = 5, 20, 200, 0.7
LENGTHS = (1.5, 1.2, 1.0, 0.8, 0.6)


def linear(scale: float, shift: float) -> tuple[VAE, Tensor, Tensor, Tensor, Tensor]:
    """A model with its rows, their log p(x), and the mean and sd of p(z | x)."""
    affine = {"kind": "mlp", "hidden": ()}
    vae = VAE(
        x=(D,),
        z=(J,),
        likelihood={"kind": "fixed-normal", "scale": NOISE},
        posterior={"kind": "normal", "floor": 1e-9},
        encoder=affine,
        decoder=affine,
    ).double()
    with seeded(0):
        w = torch.linalg.qr(torch.randn(D, J).double()).Q * torch.tensor(LENGTHS)
        b = torch.randn(D).double()
        exact = MultivariateNormal(b, w @ w.T + NOISE**2 * torch.eye(D))
        x = exact.sample((ROWS,))
    variance = 1 / (1 + w.square().sum(0) / NOISE**2)
    slope, sd = variance[:, None] * w.T / NOISE**2, variance.sqrt()
    weight = torch.cat([slope, torch.zeros_like(slope)])
    bias = torch.cat([shift * sd - slope @ b, inverse_softplus(scale * sd - 1e-9)])
    layers = vae.get_submodule("decoder.output"), vae.get_submodule("encoder.output")
    for layer, values in zip(layers, ((w, b), (weight, bias)), strict=True):
        layer.load_state_dict(dict(zip(("weight", "bias"), values, strict=True)))
    return vae, x, exact.log_prob(x), (x - b) @ slope.T, sd


def against_the_truth(title: str, found: LogLikelihood, truth: np.ndarray) -> None:
    def inside(level: float) -> float:
        low, high = found.interval(level)
        return float(((low < truth) & (truth < high)).mean())

    within = (np.abs(found.value - truth) <= 3 * found.mcse).mean()
    sd = np.median(found.mcse * np.sqrt(found.particles))
    print(
        f"{title:28} within 3 MCSE {within:6.1%}, 95 % interval {inside(0.95):6.1%}, "
        f"99.7 % interval {inside(0.9973):6.1%}, off by {np.mean(found.value - truth):+.4f} nats, "
        f"median sd(w)/E(w) {sd:.2f}"
    )


def linear_gaussian() -> None:
    vae, x, log_p, mean, sd = linear(1.3, 0.3)
    truth = log_p.numpy()
    exact, *_ = linear(1.0, 0.0)
    error = np.abs(log_likelihood(exact, x, particles=10).value - truth).max()
    print(f"exact guide, 10 particles: largest error {error:.1e} nats")
    against_the_truth("iwae, 5000 particles", log_likelihood(vae, x, particles=5000), truth)
    annealed = log_likelihood(vae, x, particles=64, method=AIS(temperatures=100))
    against_the_truth("ais, 64 chains, 100 temp.", annealed, truth)
    print(f"sandwich: {sandwich(vae, ROWS, method=AIS(temperatures=100))}")
    chains = posterior(vae, x, 500)
    off = ((chains.mean["z"] - mean) / sd).abs().max()
    print(f"{chains}; means at most {off:.3f} posterior sd off")
    guides = {"exact": (1, 0), "half the sd": (0.5, 0), "double": (2, 0), "moved": (1, 0.3)}
    for name, (scale, shift) in guides.items():
        found = calibrate(linear(scale, shift)[0], 500)
        print(f"calibration, {name}: smallest p {found.test.adjusted.min():.2g}")
    for lengths, scales in (((1.0,), (0.8, 0.5)), (LENGTHS, (0.8, 0.5))):
        for scale in scales:
            log_w = shrunk(len(lengths), scale)
            print(f"k-hat, {len(lengths)} dimensions, sd x {scale}: {np.median(log_w):.3f}")


def shrunk(dimensions: int, scale: float) -> np.ndarray:
    """The k-hat of 200 rows with 5,000 draws of N(0, scale^2 I) for N(0, I)."""
    from pyrovae.evaluate.weights import reduce

    with seeded(0):
        z = scale * torch.randn(5000, ROWS, dimensions, dtype=torch.float64)
    log_w = 0.5 * (z.square() * (scale**-2 - 1)).sum(-1) + dimensions * np.log(scale)
    return reduce(log_w.numpy())["khat"]


def on_images(folder: Path, rounds: int) -> None:
    run = open_run(folder)
    contenders: dict[str, Callable[[Any], LogLikelihood]] = {
        "iwae, 5000 particles": lambda x: log_likelihood(run.model, x, particles=5000),
        "ais, 16 chains, 1000 temp.": lambda x: log_likelihood(run.model, x, method="ais"),
    }
    x = data_of(run).test[:100]
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, contender in contenders.items():
            began = time.perf_counter()
            found = contender(x)
            seconds[name].append(time.perf_counter() - began)
            print(f"{name:28}{seconds[name][-1]:8.1f} s  {found}", flush=True)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    print(", ".join(f"{name}: {median:.1f} s" for name, median in medians.items()))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("run", nargs="?", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    print(f"{torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}")
    linear_gaussian()
    if arguments.run:
        on_images(arguments.run, arguments.rounds)


if __name__ == "__main__":
    main()
