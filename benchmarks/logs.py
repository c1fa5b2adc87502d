"""What logging costs: rows per second of a fit with all logs on, relative to one without any.

    python benchmarks/logs.py [MNIST FOLDER]

The contenders take turns in one process: no logs, each log alone, all of them. Every fit has
validation rows, whose bound is taken apart whether there is a log or not. Without a folder the
rows are the digits that ship with scikit-learn, with epochs so short that a log of 20 ms shows.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import torch

from pyrovae import VAE, Error, fit, load
from pyrovae.data import Data
from pyrovae.logs import Log
from pyrovae.networks import MLP


def installed() -> list[str]:
    """The logs whose packages are there; the others are named and left out."""
    found = []
    for kind in sorted(Log.members):
        try:
            Log.from_spec(kind).require()
            found.append(kind)
        except Error as missing:
            print(missing)
    return found


def rows_per_second(data: Data, logs: tuple[str, ...], epochs: int, hidden: int) -> float:
    """The speed from the first epoch to the last: neither compiling nor opening a log counts."""
    torch.manual_seed(0)
    networks = {name: MLP(hidden=(hidden,)) for name in ("encoder", "decoder")}
    vae = VAE(x=data.event, z=(20,), likelihood="bernoulli", **networks)
    with tempfile.TemporaryDirectory() as folder:
        history = fit(vae, data, folder=folder, epochs=epochs, logs=logs, progress=False)
    first, *_, last = history.epochs
    return len(data.train) * (epochs - 1) / (last.seconds - first.seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, help="of MNIST's four idx files")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int)
    options = parser.parse_args()
    if options.folder:
        data = load(
            name="mnist", path=str(options.folder), transforms=["binarize"], validation=0.02
        )
    else:
        data = load(name="digits", transforms=["binarize"], validation=0.1)
    epochs = options.epochs or (4 if options.folder else 60)
    kinds = installed()
    contenders = {"none": ()} | {kind: (kind,) for kind in kinds} | {"all": tuple(kinds)}
    found = {name: [] for name in contenders}
    for _ in range(options.rounds):
        for name, logs in contenders.items():
            found[name].append(rows_per_second(data, logs, epochs, 400))
    print(f"{len(data.train)} rows, {epochs} epochs, {torch.get_num_threads()} threads")
    for name, speeds in found.items():
        ratios = [mine / bare for mine, bare in zip(speeds, found["none"], strict=True)]
        print(
            f"{name:12} {statistics.median(speeds):9,.0f} rows/s, "
            f"{statistics.median(ratios):.3f} of none"
        )


if __name__ == "__main__":
    main()
