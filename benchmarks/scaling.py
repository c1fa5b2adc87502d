"""How time and memory grow with rows N, entries D, latents J, particles K, batch and components.

One quantity at a time is doubled, the others stay. Training is by `fit`, seconds are those of an
epoch (of a step, for the batch), without the first. Evaluation is by `log_likelihood`. Each size
is measured in a fresh process, after a small run of its kind; memory is what the process had at
most, beyond what it had when rows and model stood ready.

With y ~ size^a, the exponent a is the slope of log y over log size, by least squares over all
sizes and between the two largest: small sizes are mostly overhead. Linear is 1, constant is 0.

    python benchmarks/scaling.py [--quick] [--only NAME ...] [--compile auto|true|false]
        [--json FILE]
"""

import argparse
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyrovae import VAE, fit, log_likelihood
from pyrovae.objectives import ELBO

EPOCHS, REPEATS = 4, 3


@dataclass(frozen=True)
class Size:
    """What can grow; `components` are those of a mixture prior, without one where it is 0."""

    rows: int = 12_800
    entries: int = 784
    latent: int = 20
    particles: int = 1
    batch: int = 128
    components: int = 0
    compile: Any = "auto"

    def model(self) -> VAE:
        mixture = {"kind": "gaussian-mixture", "components": self.components}
        network = {"kind": "mlp", "hidden": (400,)}
        return VAE(
            x=(self.entries,),
            z=(self.latent,),
            prior=mixture if self.components else "standard-normal",
            encoder=network,
            decoder=network,
        )

    def x(self) -> torch.Tensor:
        return torch.randint(2, (self.rows, self.entries)).float()


def training(size: Size, model: VAE, x: torch.Tensor) -> float:
    """Seconds of an epoch."""
    history = fit(
        model,
        x,
        epochs=EPOCHS,
        batch_size=size.batch,
        objective=ELBO(particles=size.particles),
        compile=size.compile,
        progress=False,
    )
    ends = (epoch.seconds for epoch in history.epochs)
    return statistics.median(after - before for before, after in pairwise(ends))


def step(size: Size, model: VAE, x: torch.Tensor) -> float:
    """Seconds of a gradient step."""
    return training(size, model, x) * size.batch / size.rows


def evaluation(size: Size, model: VAE, x: torch.Tensor) -> float:
    """Seconds of log p(x) for all rows."""
    taken = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        log_likelihood(model, x, particles=size.particles)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


@dataclass(frozen=True)
class Sweep:
    """A task, the quantity that grows, and its values."""

    task: Callable[[Size, VAE, torch.Tensor], float]
    quantity: str
    values: tuple[int, ...]
    others: Size = Size()

    def size(self, value: int) -> Size:
        size = replace(self.others, **{self.quantity: value})
        return replace(size, rows=100 * value) if self.quantity == "batch" else size


FEW = Size(rows=64, particles=500)
SWEEPS = {
    "training, rows N": Sweep(training, "rows", (6_400, 12_800, 25_600, 51_200)),
    "training, entries D": Sweep(training, "entries", (256, 512, 1024, 2048, 4096)),
    "training, latents J": Sweep(training, "latent", (8, 16, 32, 64, 128, 256)),
    "training, particles K": Sweep(training, "particles", (1, 2, 4, 8, 16), Size(rows=6_400)),
    "training, batch": Sweep(step, "batch", (32, 64, 128, 256, 512, 1024, 2048)),
    "training, components": Sweep(training, "components", (8, 16, 32, 64, 128, 256, 512)),
    "evaluation, rows N": Sweep(evaluation, "rows", (64, 128, 256, 512, 1024), FEW),
    "evaluation, particles K": Sweep(evaluation, "particles", (500, 1000, 2000, 4000, 8000), FEW),
}


def memory(field: str) -> float:
    """Megabytes: now (VmRSS), or at most since the last reset (VmHWM)."""
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith(field)).split()[1]) / 1024


def measured(name: str, value: int, compile: Any) -> dict[str, float]:  # noqa: A002
    """Seconds and megabytes of one size."""
    sweep = SWEEPS[name]
    size = replace(sweep.size(value), compile=compile)
    small = replace(size, rows=64, batch=16, particles=1, components=min(size.components, 8))
    torch.manual_seed(0)
    model, x = size.model(), size.x()
    sweep.task(small, small.model(), small.x())
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    seconds = sweep.task(size, model, x)
    return {"value": value, "seconds": seconds, "megabytes": memory("VmHWM") - before}


def exponents(found: list[dict[str, float]], key: str) -> tuple[float, float]:
    """The slope of the logarithms over all sizes, and between the two largest."""
    x, y = (np.log([max(row[name], 1e-9) for row in found]) for name in ("value", key))
    return float(np.polyfit(x, y, 1)[0]), float((y[-1] - y[-2]) / (x[-1] - x[-2]))


def swept(name: str, values: tuple[int, ...], compile: Any) -> dict[str, Any]:  # noqa: A002
    """All sizes of a sweep, each in a process of its own."""
    context = multiprocessing.get_context("spawn")
    found = []
    for value in values:
        with context.Pool(1) as pool:
            found.append(pool.apply(measured, (name, value, compile)))
    grown = {key: exponents(found, key) for key in ("seconds", "megabytes")}
    return {"sizes": found, "exponents": grown}


def show(name: str, result: dict[str, Any]) -> None:
    print(f"\n{name}")
    for key, form in (("value", ",.0f"), ("seconds", ".4g"), ("megabytes", ".1f")):
        cells = "".join(f"{format(row[key], form):>10}" for row in result["sizes"])
        ends = result["exponents"].get(key)
        growth = f"   exponent {ends[0]:.2f}, at the end {ends[1]:.2f}" if ends else ""
        print(f"{key if key != 'value' else '':10}{cells}{growth}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="the three smallest sizes")
    parser.add_argument("--only", nargs="+", choices=SWEEPS, default=list(SWEEPS))
    parser.add_argument("--compile", choices=("auto", "true", "false"), default="auto")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    how = {"true": True, "false": False}.get(arguments.compile, "auto")
    print(f"{torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}")
    results = {}
    for name in arguments.only:
        values = SWEEPS[name].values[: 3 if arguments.quick else None]
        results[name] = swept(name, values, how)
        show(name, results[name])
        if arguments.json:
            arguments.json.write_text(json.dumps(results, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
