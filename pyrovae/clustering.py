r"""Clusters of latents: a mixture fitted to the aggregated posterior.

A guide takes each row to a distribution of z, and all rows together to the aggregated posterior

    q(z) = 1/N \sum_i q(z | x_i) .

Draws of z for every training row are a sample of it, to which EM fits a mixture as to any rows,

    q(z) ~ \sum_k \pi_k N(z; \mu_k, \Sigma_k),     c_ik = E_{q(z | x_i)}[p(k | z)],

and the responsibilities, averaged over what the guide says of a row, are its shares c_i in the
clusters (From Variational to Deterministic Autoencoders, Ghosh, Sajjadi, Vergari, Black &
Schölkopf, 2020, https://arxiv.org/abs/1903.12436, sample from such a mixture).

It is a mixture of z, not of x. Its density is of latents, on the scale that the encoder chose, and
can be compared with that of another mixture of the same z only: never with log p(x), and not
between two encoders. What can be compared with a mixture of x is the clusters themselves, here
by classes that are known for some rows:

    ARI    how many pairs of rows both put together or apart, 1 if all, and 0 in the mean over
           clusters of these sizes at random (Comparing Partitions, Hubert & Arabie, 1985)
    NMI    I(k; class) / ((H(k) + H(class)) / 2), from 0 to 1; it grows with many small clusters
"""

import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import pyro
import torch
from numpy.typing import NDArray
from pydantic import NonNegativeInt, PlainValidator, PositiveInt
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyrovae.batch import Batch, as_batch
from pyrovae.columns import array, coded, values
from pyrovae.data import Data
from pyrovae.errors import Error
from pyrovae.evaluate import select
from pyrovae.evaluate.weights import BLOCK
from pyrovae.families import Family
from pyrovae.fitting import fit
from pyrovae.models import Mixture, Model
from pyrovae.models.model import require_model
from pyrovae.part import unknown, validated
from pyrovae.place import destination, in_mode, seeded, unchecked
from pyrovae.report import Table
from pyrovae.stored import Raw


def _several(components: Any) -> tuple[int, ...]:
    """The numbers of components to choose from.

    Raises:
        Error: something else.
    """
    choices = tuple(components) if isinstance(components, Sequence) else (components,)
    if not choices or not all(type(k) is int and k > 0 for k in choices):
        raise Error(f"should be a whole number from 1, or a list of such, got {components!r}")
    return choices


Components = Annotated[int | Sequence[int], PlainValidator(_several)]


@dataclass(frozen=True, eq=False)
class Clusters:
    """Rows in clusters of their latents.

    Args:
        mixture: of z, not of x.
        site: the latent that z is.
        probabilities: the shares c_ik of each row in the clusters, shape `(rows, components)`.
        known: the class of each row, -1 where it is unknown, shape `(rows,)`.
        classes: the names of the classes 0, 1, ...
        tried: the mean log q(z) of validation rows for each number of components, where there was
            a choice.
    """

    mixture: Mixture
    site: str
    probabilities: NDArray[np.float64]
    known: NDArray[np.int64]
    classes: tuple[str, ...]
    tried: Mapping[int, float]

    @property
    def labels(self) -> NDArray[np.int64]:
        """The cluster in which each row has its largest share, shape `(rows,)`."""
        return self.probabilities.argmax(-1)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """How many rows each cluster has, shape `(components,)`."""
        return np.bincount(self.labels, minlength=self.mixture.components)

    @property
    def ari(self) -> float:
        """The adjusted Rand index of clusters and known classes, NaN where none is known."""
        from sklearn.metrics import adjusted_rand_score

        return self._agreement(adjusted_rand_score)

    @property
    def nmi(self) -> float:
        """The normalised mutual information, NaN where no class is known."""
        from sklearn.metrics import normalized_mutual_info_score

        return self._agreement(normalized_mutual_info_score)

    def _agreement(self, score: Callable[..., float]) -> float:
        rows = self.known >= 0
        return float(score(self.known[rows], self.labels[rows])) if rows.any() else float("nan")

    def summary(self) -> dict[str, Any]:
        """The figures, as they are written to results.json."""
        return {
            "mixture_of": self.site,
            "components": self.mixture.components,
            "family": self.mixture.family.spec(),
            "tried": {str(components): mean for components, mean in self.tried.items()},
            "rows": len(self.labels),
            "sizes": self.sizes.tolist(),
            "rows_of_known_class": int((self.known >= 0).sum()),
            "ari": self.ari,
            "nmi": self.nmi,
        }

    def table(self) -> Table:
        """One line a row, all digits."""
        cells = zip(self.labels.tolist(), self.probabilities.max(-1).tolist(), strict=True)
        return Table(
            ("row", "cluster", "probability"), [(row, *pair) for row, pair in enumerate(cells)]
        )

    def __str__(self) -> str:
        weights = self.mixture.logits.softmax(-1).tolist()
        lines = [self._line(k, weight) for k, weight in enumerate(weights)]
        table = str(Table(tuple(lines[0]), [tuple(line.values()) for line in lines]))
        width = max(80, *map(len, table.splitlines()))
        return "\n".join([table, "", *(textwrap.fill(note, width) for note in self._notes())])

    def _line(self, k: int, weight: float) -> dict[str, str]:
        mine = self.labels == k
        share = f"{self.probabilities[mine, k].mean():.2f}" if mine.any() else "-"
        cells = {
            f"cluster of {self.site}": str(k),
            "weight": f"{weight:.3f}",
            "rows": str(mine.sum()),
            "mean share": share,
        }
        return cells | ({"mostly": self._mostly(mine)} if self.classes else {})

    def _mostly(self, mine: NDArray[np.bool_]) -> str:
        counts = np.bincount(self.known[mine & (self.known >= 0)])
        if not len(counts):
            return "-"
        return f"{self.classes[counts.argmax()]} {counts.max() / counts.sum():.0%}"

    def _notes(self) -> Iterator[str]:
        """What has to be known to read the table, a sentence each."""
        z = self.site
        yield (
            f"A mixture of latents {z} ~ q({z} | x), not of rows x: its log-density is of {z} and "
            "is not comparable with log p(x)."
        )
        yield from (f"{remark}." for remark in self.mixture.remarks())
        if self.tried:
            means = ", ".join(f"{k}: {mean:.2f}" for k, mean in self.tried.items())
            yield (
                f"{self.mixture.components} components chosen by log q({z}) on the validation "
                f"rows ({means})."
            )
        if self.classes:
            yield (
                f"ARI {self.ari:.3f}, NMI {self.nmi:.3f} with the known classes of "
                f"{(self.known >= 0).sum()} of {len(self.known)} rows."
            )


@validated
def cluster_latents(
    model: Model,
    data: Any,
    *,
    components: Components = 10,
    family: Family | str | dict[str, Any] = "multivariate-normal",
    site: str | None = None,
    draws: PositiveInt = 10,
    restarts: PositiveInt = 5,
    labels: Any = None,
    seed: NonNegativeInt = 0,
) -> Clusters:
    """Clusters of the latents of rows: a mixture fitted to the aggregated posterior.

    It is a mixture of z and says nothing of log p(x); for clusters of the rows themselves fit a
    `Mixture` and call its `predict`.

    Args:
        model: fitted, with continuous latents; it is as it was, to the bit, afterwards.
        data: the `Data` that `load` gives, whose training rows the mixture is fitted to and whose
            test rows are assigned; or rows, shape `(rows, *x)`, raw, for both.
        components: how many clusters, or several numbers, of which log q(z) of the validation rows
            chooses one.
        family: p(z | k), a part, a kind or a table; z is a vector, whatever its event shape.
        site: the latent, of a model that has several.
        draws: of z for each row.
        restarts: EM starts this often, and the highest likelihood stays.
        labels: the class of each row that is assigned, whole numbers or words, missing where it is
            NaN, empty or -1; those of the data unless given.
        seed: of everything random.

    Raises:
        Error: a model without continuous latents, or with several of which none is named; a choice
            without validation rows; labels for another number of rows; what `fit` refuses.

    Example:
        >>> from pyrovae import VAE
        >>> vae = VAE(x=(2,), z=(1,), likelihood="normal")
        >>> clusters = cluster_latents(vae, torch.randn(50, 2), components=2)
        >>> clusters.probabilities.shape, int(clusters.sizes.sum())
        ((50, 2), 50)
    """
    require_model(model)
    train, validation, test = data, None, data
    classes: tuple[str, ...] = ()
    if isinstance(data, Data):
        train, validation, test = data.rows_of(model, "train", "validation", "test")
        classes = data.classes
    choices = _several(components)
    if len(choices) != 1 and validation is None:
        raise Error(
            "several are a choice on validation rows, and there are none: give one number",
            "components",
        )
    with seeded(seed):  # apart, since a pair runs once more when it sees its first rows
        site = _latent(model, as_batch(test), site)
    with seeded(seed):
        rows = as_batch(test)
        known, names = _known(class_names(rows, classes) if labels is None else labels, len(rows))
        z, z_of_rows = (_drawn(model, as_batch(part), site, draws) for part in (train, rows))
        mixtures = [
            Mixture(
                x=z.shape[2:], components=k, family=deepcopy(Family.from_spec(family, "family"))
            )
            for k in choices
        ]
        for mixture in mixtures:
            fit(mixture, z.flatten(0, 1), restarts=restarts, seed=seed, device=str(z.device))
        best, means = 0, list[float]()
        if len(mixtures) > 1:
            held_out = _drawn(model, as_batch(validation), site, draws)
            best, means = select(mixtures, held_out.flatten(0, 1))
    shares = [
        mixtures[best].predict_proba(part.flatten(0, 1)).reshape(*part.shape[:2], -1).mean(1)
        for part in z_of_rows.split(max(1, BLOCK // draws))
    ]
    tried = dict(zip(choices, means, strict=False))
    return Clusters(mixtures[best], site, np.concatenate(shares), known, names, tried)


def _latent(model: Model, rows: Batch, site: str | None) -> str:
    """The name of the latent to be clustered.

    Raises:
        Error: no latent of that name, or several and no name; a discrete one.
    """
    if any(isinstance(part, Mixture) for part in model.modules()):
        raise Error(
            "a mixture of rows has no continuous latents: its own predict(x) says the cluster of "
            "each row",
            "model",
        )
    model.check(first := rows[:1].to(*destination(model)))
    latents = {
        name: node["fn"]
        for name, node in _guided(model, first, 1).nodes.items()
        if node["type"] == "sample"
        and not (node["is_observed"] or node["infer"].get("is_auxiliary"))
        and not site_is_subsample(node)
    }
    if site is None and len(latents) != 1:
        names = ", ".join(latents) or "none"
        raise Error(f"name one of the latents of the model '{model.kind}': {names}", "site")
    site = site or next(iter(latents))
    if site not in latents:
        raise Error(unknown("latent", site, latents), "site")
    if latents[site].support.is_discrete:
        raise Error(
            f"'{site}' is discrete and its states are the clusters already: latents(model, rows) "
            "draws them",
            "site",
        )
    return site


def _drawn(model: Model, rows: Batch, site: str, draws: int) -> Tensor:
    """Draws of z ~ q(z | x) of each row, flat, shape `(rows, draws, entries)`."""
    batch = rows.to(*destination(model))
    model.check(batch)
    parts = []
    for part in batch.split(max(1, BLOCK // draws)):
        z = _guided(model, part, draws).nodes[site]["value"]
        if z.shape[:2] != (draws, len(part)):
            raise Error(f"'{site}' is not in a plate of the rows at dimension -1", "site")
        parts.append(z.reshape(draws, len(part), -1).transpose(0, 1))
    return torch.cat(parts)


def _guided(model: Model, batch: Batch, draws: int) -> poutine.Trace:
    """The guide's run in a plate of draws, in evaluation."""
    plate = pyro.plate("draws", draws, dim=-2)
    with torch.no_grad(), in_mode(model, False), model.scope(), unchecked(), plate:
        return poutine.trace(model.guide).get_trace(batch)


def class_names(rows: Batch | Raw, classes: Sequence[str]) -> list[str] | None:
    """The class of each row by name, empty where it is unknown, if rows have labels.

    Args:
        rows: with labels or without.
        classes: the names of the labels 0, 1, ...; the numbers themselves unless given.
    """
    if rows.labels is None:
        return None
    return ["" if k < 0 else classes[k] if classes else str(k) for k in rows.labels.tolist()]


def _known(labels: Any, rows: int) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """The class of each row, -1 where it is unknown, and the names of the classes."""
    if labels is None:
        return np.full(rows, -1), ()
    cells = array(labels)
    if cells.shape != (rows,):
        raise Error(
            f"should have the shape ({rows},), a class for each row that is assigned, got "
            f"{cells.shape}",
            "labels",
        )
    codes, names = coded([None if value == -1 else value for value in values(cells)])
    return np.nan_to_num(codes, nan=-1).astype(np.int64), names
