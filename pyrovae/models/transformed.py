r"""A model of y = T(x), as a model of x.

A density is always on the scale of the raw data, so a model of standardised columns carries the
log-Jacobian,

    log p(x) = log p_y(T(x)) + log |det dT/dx| .

A handler does it: at the observed site it puts the family's distribution through T's inverse and
observes x itself. What the model samples is x as well.
"""

import copy
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Literal

import pyro.distributions as dist
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from pyrovae.batch import Batch, as_batch
from pyrovae.errors import Error
from pyrovae.families import SharedNormal
from pyrovae.models import surface
from pyrovae.models.mixture import Mixture
from pyrovae.models.model import Model, Statistics, Tag
from pyrovae.models.vae import VAE
from pyrovae.transforms import Standardize, Transform


class Transformed(Model):
    """A model behind an invertible transform of the rows, with all numbers on the raw scale.

    Args:
        base: the model of the transformed rows, a density over the real numbers.
        transform: T.
    """

    base: Model
    transform: Transform

    predict_proba, predict = surface.predict_proba, surface.predict
    score_samples, bic, aic = surface.score_samples, surface.bic, surface.aic
    sample_with_labels = surface.sample_with_labels

    def setup(self) -> None:
        if not self.transform.invertible:
            raise Error(
                f"{self.transform.kind} cannot be inverted: apply it to the data", "transform"
            )
        self._refuse_probabilities()
        self.missing = self.base.missing
        self.transform.setup(self.base.event)

    def _refuse_probabilities(self) -> None:
        if "counting" in self.base.tag.measure:
            raise Error(f"{self.transform.kind} needs a density: {self.base.takes}")

    def inside(self, batch: Batch) -> Batch:
        """The batch with T(x) for x."""
        return as_batch(batch).transformed(self.transform)

    def model(self, batch: Batch) -> Tensor:
        batch = as_batch(batch)
        inside = self.inside(batch)
        with _Raw(self.transform, batch.x, inside.x):
            return self.base.model(inside)

    def guide(self, batch: Batch) -> Any:
        return self.base.guide(self.inside(batch))

    def scope(self) -> AbstractContextManager[None]:
        return self.base.scope()

    def blank(self, x: Tensor) -> Batch:
        return Batch(x)

    def check(self, batch: Batch) -> None:
        self.check_rows(batch)
        self.base.check(self.inside(batch))
        self._refuse_probabilities()

    def require(self, batch: Batch) -> None:
        self.base.require(batch)

    def refuse_training(self, method: str) -> None:
        self.base.refuse_training(method)

    def start(self, batch: Batch) -> None:
        self.transform.start(batch.filled().x)
        self.base.start(self.inside(batch))

    def log_prob(self, batch: Batch) -> Tensor:
        return self.base.log_prob(self.inside(batch)) + self.log_jacobian(batch.x)

    def expect(self, batch: Batch) -> Statistics:
        inside = self.base.expect(self.inside(batch))
        return replace(
            inside, log_prob=inside.log_prob + self.log_jacobian(batch.x).double().sum()
        )

    def maximize(self, statistics: Statistics) -> None:
        self.base.maximize(statistics)

    @property
    def exact_m_step(self) -> bool:
        return self.base.exact_m_step

    def log_prior(self, rows: Tensor) -> Tensor:
        return self.base.log_prior(rows)

    def repair(self, batch: Batch, statistics: Statistics) -> bool:
        return self.base.repair(self.inside(batch), statistics)

    def beside(self, runs: int) -> "Transformed":
        wide = copy.copy(self)
        wide._modules = self._modules | {"base": self.base.beside(runs)}
        return wide

    def choose(self, runs: Model, index: int) -> None:
        if isinstance(runs, Transformed):
            self.base.choose(runs.base, index)

    def remarks(self) -> tuple[str, ...]:
        return self.base.remarks()

    def joint(self, batch: Batch) -> Tensor:
        """Log p(x, k), shape `(rows, components)`, of a mixture."""
        return self.base.joint(self.inside(batch)) + self.log_jacobian(batch.x)[:, None]

    @property
    def freedom(self) -> int:
        """The number of free parameters; those of the transform are taken from the rows."""
        return self.base.freedom

    def log_jacobian(self, x: Tensor) -> Tensor:
        entries = self.transform.bijection().log_abs_det_jacobian(x, self.transform(x))
        return entries.flatten(1).sum(-1)

    @classmethod
    def examples(cls) -> Iterable["Transformed"]:
        bases = (VAE(x=(3,), z=(2,), likelihood=SharedNormal()), Mixture(x=(2,), components=2))
        return (cls(base=base, transform=Standardize()) for base in bases)

    @property
    def method(self) -> Literal["svi", "em"]:
        return self.base.method

    @property
    def enumerates(self) -> bool:
        return self.base.enumerates

    @property
    def exact(self) -> bool:
        return self.base.exact

    @property
    def event(self) -> tuple[int, ...]:
        return self.base.event

    @property
    def names(self) -> tuple[str, ...]:
        return self.base.names

    @property
    def tag(self) -> Tag:
        return self.base.tag

    @property
    def least_rows(self) -> int:
        return self.base.least_rows

    @property
    def support(self) -> Constraint:
        return constraints.real

    @property
    def takes(self) -> str:
        return "finite real numbers"


class _Raw(Messenger):
    """At the site that observes y = T(x): the distribution of x, and x."""

    def __init__(self, transform: Transform, x: Tensor, y: Tensor) -> None:
        super().__init__()
        self.inverse, self.x, self.y, self.met = transform.bijection().inv, x, y, 0

    def _pyro_sample(self, message: dict[str, Any]) -> None:
        if message["value"] is self.y:
            self.met += 1
            message["fn"] = dist.TransformedDistribution(message["fn"], [self.inverse])
            message["value"] = self.x

    def __exit__(self, kind: Any, value: Any, traceback: Any) -> None:
        super().__exit__(kind, value, traceback)
        if kind is None and self.met != 1:
            raise Error(
                f"{self.met} sites observe the rows as they are given; behind a transform one has "
                "to: write obs = x"
            )
