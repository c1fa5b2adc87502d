"""EM per iteration against scikit-learn: wall and CPU seconds, and the same answer.

The rows are MNIST's training images in 50 principal components (60,000 x 50), or as many of 50
normal components where no folder is given. All contenders begin at the same components and take as
many iterations; they run in turn, in one process with the same threads. Seconds are those of
`long` iterations less those of `short` ones, so that starting and finishing are not in them.

    python benchmarks/mixture.py [FOLDER of MNIST's idx files] [--rounds 5] [--json FILE]
"""

import argparse
import json
import os
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import Tensor

from pyrovae import Batch, Mixture, load
from pyrovae.inference import em
from pyrovae.place import seeded

CASES = (("full", 10), ("full", 50), ("diag", 100))
FAMILIES = {"full": "multivariate-normal", "diag": "normal"}
SHORT, LONG = 2, 6
PRECISIONS = {"float64": torch.float64, "float32": torch.float32}

Contender = Callable[[int], Any]


def rows(folder: str | None) -> Tensor:
    if folder is None:
        with seeded(0):
            centres = 2 * torch.randn(50, 50, dtype=torch.float64)
            return centres[torch.randint(50, (60_000,))] + torch.randn(60_000, 50).double()
    data = load(name="mnist", path=folder, validation=0)
    x = torch.cat([data.train[:].x, data.test.x]).flatten(1)[:60_000].double().numpy()
    return torch.as_tensor(np.ascontiguousarray(PCA(50, random_state=0).fit_transform(x)))


def started(x: Tensor, kind: str, components: int) -> Mixture:
    """A mixture at the start that all contenders have."""
    family = {"kind": FAMILIES[kind], "floor": 1e-6}
    model = Mixture(x=(x.shape[1],), components=components, family=family).double()
    with seeded(0):
        model.start(Batch(x))
    return model


def theirs(x: Tensor, kind: str, start: Mixture) -> Contender:
    p = start.family(start.h)
    precision = p.precision_matrix if kind == "full" else p.variance.reciprocal()

    def run(iterations: int) -> GaussianMixture:
        reference = GaussianMixture(
            start.components,
            covariance_type=kind,
            tol=0,
            reg_covar=0,
            max_iter=iterations,
            init_params="random_from_data",
            weights_init=start.logits.softmax(-1).detach().numpy(),
            means_init=p.mean.detach().numpy(),
            precisions_init=precision.detach().numpy(),
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # it is told to stop early
            return reference.fit(x.numpy())

    return run


def ours(x: Tensor, start: Mixture, dtype: torch.dtype) -> Contender:
    batch = Batch(x.to(dtype))

    def run(iterations: int) -> Mixture:
        model = Mixture.from_spec(start.spec())
        model.load_state_dict(start.state_dict())
        model.to(dtype)
        for _ in em(model, batch, epochs=iterations, tolerance=0):
            pass
        return model

    return run


def clocked(run: Contender, iterations: int) -> np.ndarray:
    """Wall and CPU seconds."""
    began = time.perf_counter(), time.process_time()
    run(iterations)
    return np.array([time.perf_counter() - began[0], time.process_time() - began[1]])


def measure(x: Tensor, kind: str, components: int, rounds: int) -> dict[str, Any]:
    start = started(x, kind, components)
    contenders = {"scikit-learn": theirs(x, kind, start)} | {
        f"pyrovae {name}": ours(x, start, dtype) for name, dtype in PRECISIONS.items()
    }
    taken: dict[str, list[np.ndarray]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            taken[name].append((clocked(run, LONG) - clocked(run, SHORT)) / (LONG - SHORT))
    results: dict[str, Any] = {}
    for name, run in contenders.items():
        fitted = run(LONG)
        value = (
            fitted.score(x.numpy())
            if name == "scikit-learn"
            else fitted.double().log_prob(Batch(x)).mean().item()
        )
        wall, cpu = (statistics.median(column) for column in zip(*taken[name], strict=True))
        results[name] = {"wall": wall, "cpu": cpu, "log_prob": value}
    reference = results["scikit-learn"]
    for result in results.values():
        result["ratio"] = reference["wall"] / result["wall"]
        result["difference"] = result["log_prob"] - reference["log_prob"]
    return results


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    x = rows(arguments.folder)
    threads, load_average = torch.get_num_threads(), os.getloadavg()[0]
    print(f"{len(x):,} x {x.shape[1]}, {threads} threads, load {load_average:.1f}")
    print(f"{'':24}{'ms':>8}{'CPU ms':>8}{'times':>7}{'log p(x)':>12}{'difference':>12}")
    found = {}
    for kind, components in CASES:
        found[f"{kind} {components}"] = results = measure(x, kind, components, arguments.rounds)
        for name, result in results.items():
            print(
                f"{kind:5}{components:4} {name:14}{1e3 * result['wall']:8.0f}"
                f"{1e3 * result['cpu']:8.0f}{result['ratio']:7.1f}{result['log_prob']:12.4f}"
                f"{result['difference']:12.1e}",
                flush=True,
            )
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
