"""Log p(x) of images by importance sampling: images per second, and the matrix-multiply limit.

The model is a VAE 784-400-20 with a Bernoulli likelihood, of a run or as it is made; the rows are
MNIST's test images in black and white, or as many random ones where no folder is given. All
contenders draw as often from the same guide, in turn, in one process with the same threads. The
limit is what the products of the decoder take by themselves, for the rows and draws of a block, by
the faster of the two libraries that torch has for them. Recording and compiling are done before,
and given apart.

    python benchmarks/evaluate.py [FOLDER of MNIST's idx files] [--run FOLDER] [--rows 16]
        [--particles 5000] [--rounds 5] [--json FILE]
"""

import argparse
import json
import math
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import RenyiELBO
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from pyrovae import VAE, Batch, load, open_run
from pyrovae.evaluate.estimators.importance import BLOCK, IWAE
from pyrovae.evaluate.recorded import Recorded
from pyrovae.evaluate.weights import reduce, weigh
from pyrovae.graphs import How
from pyrovae.place import flushed, in_mode, seeded, unchecked

RENYI, EAGER = "Pyro's RenyiELBO, by image", "eager torch, 20 x 50"
PLAIN, REPLAYED, COMPILED = "pyrovae, plain", "pyrovae, replayed", "pyrovae, compiled"
IMAGES, DRAWS = 20, 50
WARM = 40
"""Blocks before the rounds, more than are plain Pyro before recording."""

Contender = Callable[[Tensor], np.ndarray]


def made() -> VAE:
    layers = {"kind": "mlp", "hidden": (400,)}
    with seeded(0):
        return VAE(x=(784,), z=(20,), encoder=layers, decoder=layers)


def images(folder: str | None, rows: int) -> Tensor:
    if folder is None:
        with seeded(0):
            return (torch.rand(rows, 784) < 0.13).float()
    return (load(name="mnist", path=folder, validation=0).test.x[:rows] > 0.5).float()


def guided(model: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    loc, raw = model.encoder(x).unbind(-2)
    return loc, model.posterior.smallest + softplus(raw)


def renyi(model: VAE, particles: int) -> Contender:
    """As a user of Pyro writes it; all particles of an image at once."""

    def programs(x: Tensor) -> Any:
        def joint() -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 20), 1.0).to_event(1))
                p = dist.Bernoulli(logits=model.decoder(z)).to_event(x.ndim - 1)
                pyro.sample("x", p, obs=x)

        def guide() -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(*guided(model, x)).to_event(1))

        return joint, guide

    bound = RenyiELBO(
        alpha=0, num_particles=particles, max_plate_nesting=1, vectorize_particles=True
    )
    return lambda x: np.array([-bound.loss(*programs(image)) for image in x.split(1)])


def eager(model: VAE, particles: int) -> Contender:
    """As one writes it by hand in torch: few images at a time, and of each few particles."""

    def log_weights(x: Tensor, loc: Tensor, scale: Tensor, draws: int) -> Tensor:
        noise = torch.randn(draws, *loc.shape)
        z = loc + scale * noise
        logits = model.decoder(z)
        cost = binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none")
        log_p_q = (0.5 * (noise.square() - z.square()) + scale.log()).sum(-1)
        return log_p_q - cost.flatten(2).sum(-1)

    def run(x: Tensor) -> np.ndarray:
        found = []
        for some in x.split(IMAGES):
            loc, scale = guided(model, some)
            total = torch.full((len(some),), -torch.inf, dtype=torch.float64)
            for draws in torch.arange(particles).split(DRAWS):
                log_w = log_weights(some, loc, scale, len(draws))
                total = torch.logaddexp(total, log_w.logsumexp(0).double())
            found.append(total - math.log(particles))
        return torch.cat(found).numpy()

    return run


def ours(model: VAE, particles: int, how: How) -> Contender:
    """What `log_likelihood` does, with what was recorded kept from round to round."""
    weights, estimator = Recorded(lambda *block: (weigh(model, *block),), model, how), IWAE()

    def run(x: Tensor) -> np.ndarray:
        with flushed():
            blocks = estimator._blocks(weights, Batch(x), np.arange(len(x)), particles)
            value = np.concatenate([reduce(log_w)["value"] for _, log_w in blocks])
        for kind in weights.kinds.values():
            kind.due = -1  # what is replayed stays replayed
        return value

    return run


def limit(model: VAE) -> float:
    """The least seconds of a draw that the products of the decoder take."""
    total = 0.0
    for layer in model.decoder.modules():
        if isinstance(layer, nn.Linear):
            a, b, bias = torch.rand(BLOCK, layer.in_features), layer.weight, layer.bias
            products: list[Callable[[], Tensor]] = [
                lambda a=a, b=b, c=bias: torch.addmm(c, a, b.T)
            ]
            if torch.backends.mkldnn.is_available():
                products.append(
                    lambda a=a, b=b, c=bias: torch.ops.mkldnn._linear_pointwise(
                        a, b, c, "none", [], ""
                    )
                )
            total += min(min(seconds(product) for _ in range(20)) for product in products)
    return total / BLOCK


def seconds(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def measure(model: VAE, x: Tensor, particles: int, rounds: int) -> dict[str, Any]:
    contenders = {
        RENYI: renyi(model, particles),
        EAGER: eager(model, particles),
        PLAIN: ours(model, particles, False),
        REPLAYED: ours(model, particles, "auto"),
        COMPILED: ours(model, particles, True),
    }
    warm = x[: max(1, -(-WARM * BLOCK // particles))]
    warm = warm.repeat(-(-WARM * BLOCK // (particles * len(warm))), *[1] * (x.ndim - 1))
    prepared = {name: seconds(lambda run=run: run(warm)) for name, run in contenders.items()}
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    limits, value = [], {}
    for _ in range(rounds):
        limits.append(limit(model) * particles * len(x))
        for name, run in contenders.items():
            began = time.perf_counter()
            value[name] = float(run(x).mean())
            taken[name].append(time.perf_counter() - began)

    def over_rounds(above: list[float], below: list[float]) -> float:
        return statistics.median(a / b for a, b in zip(above, below, strict=True))

    return {
        name: {
            "images_per_second": len(x) / statistics.median(times),
            "times_renyi": over_rounds(taken[RENYI], times),
            "times_eager": over_rounds(taken[EAGER], times),
            "share_of_limit": over_rounds(limits, times),
            "first_seconds": prepared[name],
            "log_p": value[name],
        }
        for name, times in taken.items()
    } | {"limit": {"images_per_second": len(x) / statistics.median(limits)}}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--run", type=Path)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--particles", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    model: Any = open_run(arguments.run).model if arguments.run else made()
    x = images(arguments.folder, arguments.rows).reshape(-1, *model.x)
    threads, load_average = torch.get_num_threads(), os.getloadavg()[0]
    print(f"{len(x)} images, {arguments.particles:,} particles, {threads} threads, load", end="")
    print(f" {load_average:.1f}\n{'':28}{'images/s':>9}{'x Renyi':>9}{'x eager':>9}", end="")
    print(f"{'of limit':>9}{'first s':>9}{'log p(x)':>11}")
    with in_mode(model, False), seeded(0), torch.no_grad(), unchecked():
        found = measure(model, x, arguments.particles, arguments.rounds)
    for name, result in found.items():
        print(f"{name:28}{result['images_per_second']:9.1f}", end="")
        if name != "limit":
            print(f"{result['times_renyi']:9.2f}{result['times_eager']:9.2f}", end="")
            print(f"{result['share_of_limit']:9.0%}{result['first_seconds']:9.1f}", end="")
            print(f"{result['log_p']:11.3f}", end="")
        print()
    if arguments.json:
        settings = vars(arguments) | {"threads": threads, "load": load_average}
        settings = {name: str(value) for name, value in settings.items() if name != "json"}
        text = json.dumps({"settings": settings, "contenders": found}, indent=2)
        arguments.json.write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
