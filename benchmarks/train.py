"""Training against other packages: images per second, and the share of what the machine can do.

`--case mlp` trains one VAE, 784-400-20 on black and white MNIST images, with this package, with
torch and JAX by hand, in Pyro's tutorial loop, with pythae and with NumPyro, see `peers.py`.
`--case variety` trains other priors, likelihoods, guides, networks and objectives of this package
by its eager and compiled steps and by stock Pyro.

Each contender has a process of its own, of which one runs at a time, in turn, an epoch each. A
ratio is of two epochs of the same round; figures are medians over rounds. What comes before steps
at full speed, recording and compiling with an empty cache, is given apart. A round in which other
processes took more than 5 % of the processors is repeated, at most as often as there are rounds.

    python benchmarks/train.py [FOLDER of MNIST's idx files] [--case variety] [--rounds 5]
        [--batch 32 128 512 2048] [--network 400 500-500] [--only NAME ...] [--json FILE]
"""

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import count
from multiprocessing.connection import Connection
from operator import sub, truediv
from pathlib import Path
from typing import Any

import numpy as np
import peers
import pyro.infer
import pyro.optim
import torch
from peers import RATE, Turn, Turns, Work
from torch import Tensor

from pyrovae import VAE, fit, load, objectives
from pyrovae.batch import as_batch
from pyrovae.objectives import ELBO, Objective

QUIET, PAUSE = 0.05, 0.3
LIMIT, OURS = "matrix products", "pyrovae"
LATENTS = {"400": 20, "500-500": 50}
IMAGE = (1, 28, 28)


@dataclass(frozen=True)
class Variation:
    """What differs from the VAE of `--case mlp`."""

    parts: dict[str, Any] = field(default_factory=dict)
    rows: str = "binary"
    objective: Objective = ELBO()
    stock: Callable[[], pyro.infer.ELBO] = pyro.infer.Trace_ELBO


def five_particles() -> Variation:
    """IWAE, or five draws in the ELBO where the package does not have it."""
    together = {"num_particles": 5, "vectorize_particles": True, "max_plate_nesting": 1}
    if (iwae := getattr(objectives, "IWAE", None)) is None:
        stock = partial(pyro.infer.Trace_ELBO, **together)
        return Variation(objective=ELBO(particles=5), stock=stock)
    stock = partial(pyro.infer.RenyiELBO, alpha=0, **together)
    return Variation(objective=iwae(particles=5), stock=stock)


CONV = {"kind": "conv", "channels": (16, 32)}
VARIATIONS = {
    "mlp": Variation(),
    "gaussian-mixture": Variation({"prior": "gaussian-mixture"}),
    "vamp": Variation({"prior": "vamp"}),
    "normal": Variation({"likelihood": "normal"}, rows="grey"),
    "negative-binomial": Variation({"likelihood": "negative-binomial"}, rows="counts"),
    "flow guide": Variation({"posterior": {"kind": "flow", "flow": "maf"}}),
    "conv": Variation({"x": IMAGE, "encoder": CONV, "decoder": CONV}),
    "iwae": five_particles(),
}


def vae(work: Work, entries: int) -> VAE:
    network = {"kind": "mlp", "hidden": work.hidden, "activation": "softplus"}
    fields = {"x": (entries,), "z": (work.latent,), "likelihood": "bernoulli"}
    parts = VARIATIONS[work.case].parts
    return VAE(**(fields | {"encoder": network, "decoder": network} | parts))


def shaped(work: Work) -> Tensor:
    return work.x.unflatten(1, IMAGE) if work.case == "conv" else work.x


def ours(work: Work, compile: bool) -> Turns:  # noqa: A002
    """What `pyrovae.fit` says of its second epoch; a fit records and compiles in its first."""
    x = shaped(work)
    model = vae(work, work.x.shape[1])
    for turn in count():
        history = fit(
            model,
            x,
            method="svi",
            epochs=2,
            batch_size=work.batch,
            learning_rate=RATE,
            objective=VARIATIONS[work.case].objective,
            compile=compile,
            start=turn == 0,
            progress=False,
        )
        first, second = (epoch.seconds for epoch in history.epochs)
        said = " ".join((history.compiled, history.remark)).strip()
        yield Turn(second - first, max(0.0, history.seconds - 2 * (second - first)), said)


def stock_pyro(work: Work) -> Turns:
    """The package's model and guide in Pyro's own SVI, with Pyro's own optimiser."""
    x = shaped(work)
    model = vae(work, work.x.shape[1])
    model.start(as_batch(x))
    elbo, adam = VARIATIONS[work.case].stock(), pyro.optim.Adam({"lr": RATE})
    svi = pyro.infer.SVI(model.model, model.guide, adam, elbo)
    return peers.clocked(
        lambda: sum(svi.step(x[index]) for index in torch.randperm(len(x)).split(work.batch))
    )


PACKAGE = {"pyrovae eager": partial(ours, compile=False), OURS: partial(ours, compile=True)}
ALL = PACKAGE | {"stock pyro": stock_pyro} | peers.CONTENDERS
CONTENDERS = {
    "mlp": (*PACKAGE, *peers.CONTENDERS),
    "variety": (*PACKAGE, "stock pyro"),
}
REFERENCES = {"mlp": "torch eager", "variety": "stock pyro"}


def images(folder: str | None, rows: int) -> Tensor:
    """Grey levels from 0 to 1, or random ones where no folder is given."""
    if folder is None:
        return torch.rand(rows, 784)
    data = load(name="mnist", path=folder, validation=0)
    x = torch.cat([data.train[:].x, data.test.x]).flatten(1)[:rows].float()
    return x / x.max()


MADE: dict[str, Callable[[Tensor], Tensor]] = {
    "binary": torch.bernoulli,
    "grey": lambda grey: (255 * grey + torch.rand_like(grey)) / 256,
    "counts": lambda grey: torch.poisson(5 * grey * torch.empty_like(grey).exponential_()),
}


def serve(name: str, work: Work, pipe: Connection) -> None:
    """Give a turn each time that one is asked for, until nobody does."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        try:
            turns = ALL[name](work)
            while pipe.recv():
                pipe.send(next(turns))
        except EOFError:
            pass
        except Exception as error:
            pipe.send(f"{type(error).__name__}: {error}".splitlines()[0])


class Contender:
    """A process that takes turns."""

    def __init__(self, name: str, work: Work) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(name, work, theirs))
        self.process.start()
        theirs.close()

    def turn(self) -> Turn:
        time.sleep(PAUSE)  # threads of the one before spin for a moment
        self.pipe.send(True)
        answer = self.pipe.recv()
        if not isinstance(answer, Turn):
            raise RuntimeError(answer)
        return answer

    def end(self) -> None:
        self.pipe.close()
        self.process.join()


def ticks() -> np.ndarray:
    """Processor time so far: of all processes, and of this one with those below it."""
    try:
        user, nice, system, _, _, *rest = map(int, Path("/proc/stat").read_text().split()[1:9])
    except OSError:
        return np.zeros(2)
    parents, spent = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        pid = int(path.parent.name)
        parents[pid], spent[pid] = int(fields[1]), sum(map(int, fields[11:15]))
    ours = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in ours} - ours:
        ours |= more
    return np.array([user + nice + system + sum(rest), sum(spent[pid] for pid in ours)])


def taken_by_others(turn: Callable[[], Turn]) -> tuple[Turn, float]:
    """A turn, and the share of the processors that other processes took meanwhile."""
    began, before = time.perf_counter(), ticks()
    answer = turn()
    busy, own = ticks() - before
    available = (time.perf_counter() - began) * os.cpu_count() * os.sysconf("SC_CLK_TCK")
    return answer, (busy - own) / available


def measure(names: tuple[str, ...], work: Work, rounds: int) -> dict[str, Any]:
    """Seconds of each contender's epochs, round by round, and what they did before."""
    contenders: dict[str, Contender] = {}
    first: dict[str, Turn] = {}
    taken: list[tuple[float, dict[str, Turn]]] = []
    try:
        for name in names:
            contenders[name] = Contender(name, work)
            try:
                first[name] = contenders[name].turn()
            except (EOFError, RuntimeError) as error:
                print(f"{name} is left out: {error}", flush=True)
        while len(taken) < 2 * rounds and sum(share <= QUIET for share, _ in taken) < rounds:
            both = {name: taken_by_others(contenders[name].turn) for name in first}
            share = max(share for _, share in both.values())
            taken.append((share, {name: turn for name, (turn, _) in both.items()}))
    finally:
        for contender in contenders.values():
            contender.end()
    kept = sorted(taken, key=lambda pair: pair[0])[:rounds]
    return {
        "work": asdict(work),
        "rows": len(work.x),
        "others": [share for share, _ in kept],
        "contenders": {
            name: {
                "seconds": [turns[name].epoch for _, turns in kept],
                "setup": first[name].setup,
                "setup again": statistics.median(turns[name].setup for _, turns in kept),
                "remark": first[name].remark,
            }
            for name in first
        },
    }


def compared(found: dict[str, Any], reference: str) -> None:
    """Add the figures that contenders have together."""
    contenders, steps = found["contenders"], found["rows"] // found["work"]["batch"]

    def together(name: str, other: str, figure: Callable[[float, float], float]) -> float | None:
        if not {name, other} <= contenders.keys():
            return None
        pairs = zip(contenders[name]["seconds"], contenders[other]["seconds"], strict=True)
        return statistics.median(figure(*pair) for pair in pairs)

    for name, result in contenders.items():
        result["images"] = found["rows"] / statistics.median(result["seconds"])
        result["ratio"] = together(reference, name, truediv)
        result["ours"] = together(name, OURS, truediv)
        result["share"] = together(LIMIT, name, truediv)
    if (saved := together("pyrovae eager", OURS, sub) or 0) > 0:
        ours = contenders[OURS]
        found["break-even"] = [steps * ours[key] / saved for key in ("setup", "setup again")]


def show(found: dict[str, Any], reference: str) -> None:
    work, noise = found["work"], max(found["others"])
    network = "-".join(map(str, (*work["hidden"], work["latent"])))
    print(f"\n{work['case']}, {network}, batch {work['batch']}, {found['rows']:,} rows")
    if noise > QUIET:
        print(f"NOT QUIET: others took up to {noise:.0%} of the processors")
    columns = {
        "images": ("images/s", ",.0f"),
        "ratio": (f"x {reference}", ".2f"),
        "ours": (f"{OURS} x it", ".2f"),
        "share": ("of products", ".0%"),
        "setup": ("set-up, s", ".2f"),
        "setup again": ("with cache, s", ".2f"),
    }
    print(f"{'':16}" + "".join(f"{title:>15}" for title, _ in columns.values()))
    for name, result in found["contenders"].items():
        cells = (
            "-" if result[key] is None else format(result[key], form)
            for key, (_, form) in columns.items()
        )
        print(f"{name:16}" + "".join(f"{cell:>15}" for cell in cells) + f"  {result['remark']}")
    if "break-even" in found:
        empty, cached = found["break-even"]
        print(f"compiling pays from {empty:,.0f} steps on, {cached:,.0f} with a cache", flush=True)


def settings(arguments: argparse.Namespace, folder: Path) -> Iterator[Work]:
    """All that is to be trained; the rows lie in the folder."""
    variety = arguments.case == "variety"
    grey = images(arguments.folder, arguments.rows or (25_600 if variety else 60_000))
    cases = arguments.variation or list(VARIATIONS)[1:] if variety else ["mlp"]
    made = {kind: MADE[kind](grey) for kind in sorted({VARIATIONS[case].rows for case in cases})}
    for case in cases:
        kind = VARIATIONS[case].rows
        for network in arguments.network:
            hidden = tuple(map(int, network.split("-")))
            for batch in arguments.batch or ([128] if variety else [32, 128, 512, 2048]):
                whole = len(grey) // batch * batch
                path = folder / f"{kind}-{whole}.npy"
                np.save(path, made[kind][:whole].numpy())
                yield Work(str(path), batch, hidden, LATENTS[network], case)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--case", choices=CONTENDERS, default="mlp")
    parser.add_argument("--variation", nargs="+", choices=list(VARIATIONS)[1:])
    parser.add_argument("--batch", nargs="+", type=int)
    parser.add_argument("--network", nargs="+", choices=LATENTS, default=["400"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int)
    parser.add_argument("--only", nargs="+", choices=ALL)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    names = tuple(n for n in CONTENDERS[arguments.case] if n in (arguments.only or ALL))
    torch.manual_seed(0)
    threads, load_average = torch.get_num_threads(), os.getloadavg()[0]
    print(f"{threads} threads, load {load_average:.1f}")
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for work in settings(arguments, Path(folder)):
            results.append(measure(names, work, arguments.rounds))
            compared(results[-1], REFERENCES[arguments.case])
            show(results[-1], REFERENCES[arguments.case])
            if arguments.json:
                arguments.json.write_text(json.dumps(results, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
