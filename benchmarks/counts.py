"""Which family for which counts: the same VAE with several likelihoods, on held-out rows.

Three sets of counts:

* words: how often each of the 200 most frequent words occurs in a docstring of Python's standard
  library, of 30 words or more; once as log p(x), once given how many of these words it has.
* simulated: 20 Poisson rates that depend on two latents and are multiplied by Gamma noise of
  variance 1/2 for each entry, so that Var x = mu + mu^2 / 2.
* digits: the grey levels of scikit-learn's digits, whole numbers from 0 to 16.

Every model has the same latent, networks and training, and ends at its best epoch on validation
rows. Differences are paired by row; a standard error is over test rows, for one split and start.

    python benchmarks/counts.py
"""

import ast
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from pyrovae import VAE, Comparison, Data, compare, fit, load
from pyrovae.networks import MLP

SEEDS = (1, 2, 3)
COUNTS = {
    kind: kind
    for kind in (
        "poisson",
        "zero-inflated-poisson",
        "negative-binomial",
        "zero-inflated-negative-binomial",
    )
}
GIVEN_TOTALS = {
    "poisson": {"kind": "poisson", "exposure": "total"},
    "negative-binomial": {"kind": "negative-binomial", "exposure": "total"},
    "multinomial": "multinomial",
    "dirichlet-multinomial": "dirichlet-multinomial",
}
LEVELS = {
    "poisson": "poisson",
    "negative-binomial": "negative-binomial",
    "binomial": {"kind": "binomial", "total": 16},
    "beta-binomial": {"kind": "beta-binomial", "total": 16},
    "ordered-logistic": {"kind": "ordered-logistic", "classes": 17},
    "categorical": {"kind": "categorical", "classes": 17},
}


def words(vocabulary: int = 200, shortest: int = 30) -> Tensor:
    """The counts of frequent words in docstrings of Python's library, `(texts, vocabulary)`."""
    texts = chain(*(docstrings(path) for path in sorted(Path(ast.__file__).parent.glob("*.py"))))
    split = [re.findall(r"[a-z]+", text.lower()) for text in texts]
    known = [word for word, _ in Counter(chain(*split)).most_common(vocabulary)]
    rows = [Counter(text) for text in split if len(text) >= shortest]
    x = torch.tensor([[float(row[word]) for word in known] for row in rows])
    return x[x.sum(-1) > 0]


def docstrings(path: Path) -> Iterator[str]:
    """The docstrings of a file: its own, those of its classes and of its functions."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""


def simulated(rows: int = 1500, columns: int = 20, seed: int = 0) -> Tensor:
    """Counts with Var x = mu + mu^2 / 2, mu log-linear in two latents, `(rows, columns)`."""
    random = np.random.default_rng(seed)
    loadings = 0.5 * random.standard_normal((2, columns))
    mean = np.exp(1 + random.standard_normal((rows, 2)) @ loadings)
    return torch.tensor(random.poisson(mean * random.gamma(2, 1 / 2, mean.shape))).float()


def digits() -> Tensor:
    """The grey levels of scikit-learn's digits, `(1797, 64)`."""
    return torch.tensor(load_digits().data).float()


def fitted(data: Data, likelihood: Any, seed: int) -> tuple[VAE, float]:
    """The VAE with one likelihood, and the seconds that it took to fit."""
    torch.manual_seed(seed)
    encoder, decoder = MLP(hidden=(64,)), MLP(hidden=(64,))
    vae = VAE(x=data.event, z=(8,), likelihood=likelihood, encoder=encoder, decoder=decoder)
    options = {"epochs": 150, "patience": 15, "learning_rate": 2e-3, "progress": False}
    return vae, fit(vae, data, seed=seed, **options).seconds


def compared(x: Tensor, likelihoods: Mapping[str, Any], seed: int) -> Comparison:
    """The comparison of one VAE for each likelihood, on test rows that the seed chose."""
    data = load(x, test=0.3, seed=seed)
    done = {name: fitted(data, likelihood, seed) for name, likelihood in likelihoods.items()}
    models, seconds = ({name: entry[i] for name, entry in done.items()} for i in (0, 1))
    return compare(models, data, particles=100, seconds=seconds)


def report(title: str, x: Tensor, likelihoods: Mapping[str, Any]) -> None:
    """The comparison for one seed, and negative-binomial against poisson for three."""
    zeros = (x == 0).float().mean()
    print(f"\n{title}: {len(x)} rows of {x.shape[1]}, {zeros:.0%} zeros, mean {x.mean():.2f}\n")
    pair = {name: likelihoods[name] for name in ("negative-binomial", "poisson")}
    for seed in SEEDS:
        found = compared(x, likelihoods if seed == SEEDS[0] else pair, seed)
        if seed == SEEDS[0]:
            print(found)
        nb, poisson = (found[name].result.value for name in pair)
        d, error = (nb - poisson).mean(), (nb - poisson).std(ddof=1) / len(nb) ** 0.5
        print(
            f"seed {seed}: negative-binomial - poisson = {d:.2f} ± {error:.2f} nats a row, "
            f"{d / error:.1f} standard errors",
            flush=True,
        )


def main() -> None:
    """Print all tables."""
    texts = words()
    report("words", texts, COUNTS)
    report("words, given their number", texts, GIVEN_TOTALS)
    report("simulated", simulated(), COUNTS)
    report("digits", digits(), LEVELS)


if __name__ == "__main__":
    main()
