"""The role of a model: p(x, z) and a guide q(z | x), two Pyro programs over one batch.

`model(batch)` and `guide(batch)` are plain Pyro: they work with `pyro.infer.SVI`, with any handler
and with `Predictive`. Latents live in a plate called "data" at dimension -1, particles at -2, so
log densities have the shape `(particles, rows)`. Fitting and evaluation know nothing else of a
model.
"""

from abc import abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import pyro
import torch
from pyro import poutine
from pyro.distributions import Unit
from torch import Tensor
from torch.distributions.constraints import Constraint
from torch.utils import _pytree as pytree

from pyrovae.batch import Batch
from pyrovae.errors import Error
from pyrovae.families import Family
from pyrovae.part import Part
from pyrovae.place import destination, in_mode, seeded, unchecked


@dataclass(frozen=True)
class Tag:
    """What kind of number log p is; only numbers with equal tags can be compared.

    Args:
        measure: `counting` for a probability, `lebesgue` for a density, `mixed (...)` with each
            column of a table that has both, `unknown` for a pair that has seen no data.
        given: what the number is conditioned on, empty for p(x).
    """

    measure: str
    given: str = ""

    def __str__(self) -> str:
        word = {
            "counting": "a probability (counting measure)",
            "lebesgue": "a density (Lebesgue measure)",
        }.get(self.measure, f"a density, {self.measure}")
        return f"{word} given {self.given}" if self.given else word


@dataclass(frozen=True, eq=False)
class Statistics:
    """What an E-step finds: sums over rows, so those of two sets of rows add up to those of both.

    Args:
        n: the rows of each component, N_k, shape `(*components)`.
        t: the family's sums for each component, such as sum_i r_ik T(x_i), `(*components, ...)`:
            a tensor, or tensors in tuples and lists.
        log_prob: the log-likelihood, sum_i log p(x_i), a scalar, or one for each of several fits.
    """

    n: Tensor
    t: Any
    log_prob: Tensor

    def __add__(self, other: "Statistics") -> "Statistics":
        return self._with(torch.add, other)

    def __mul__(self, rows: float) -> "Statistics":
        return self._with(lambda mine, _: mine * rows, self)

    def towards(self, other: "Statistics", step: float) -> "Statistics":
        """The statistics (1 - step) s + step s' of an online fit."""
        return self._with(lambda mine, its: mine.lerp(its, step), other)

    def _with(self, combine: Callable[..., Tensor], other: "Statistics") -> "Statistics":
        t = pytree.tree_map(combine, self.t, other.t)
        return Statistics(combine(self.n, other.n), t, combine(self.log_prob, other.log_prob))

    @property
    def finite(self) -> bool:
        """Whether no sum is NaN or infinite."""
        return all(bool(s.isfinite().all()) for s in pytree.tree_leaves((self.n, self.t)))


class Model(Part):
    """The role of a joint density with a guide. `VAE` is the member to read.

    A member whose `exact` is true gives log p(x) as `log_prob(batch)`, shape `(rows,)`; one that
    EM can fit has `expect` and `maximize`. What x is, a member says by `observation`, the family
    of its rows, or by `event`, `tag`, `support`, `takes` and `names` themselves.
    """

    missing: bool = False

    @property
    def observation(self) -> Family:
        """The family that the rows come from: the field `likelihood`, of a member that has one."""
        likelihood: Any = self.likelihood
        return likelihood

    @property
    def method(self) -> Literal["svi", "em"]:
        """How `fit` trains the model unless told otherwise."""
        return "svi"

    @property
    def exact(self) -> bool:
        """Whether log p(x) is known, or an integral that is estimated."""
        return False

    def __post_init__(self) -> None:
        self.setup()

    @abstractmethod
    def setup(self) -> None:
        """Assemble the parts; called once, when the fields are set."""

    @abstractmethod
    def model(self, batch: Batch) -> Tensor:
        """The Pyro program of p(x, z); returns x, shape `(..., rows, *x)`."""

    @abstractmethod
    def guide(self, batch: Batch) -> Any:
        """The Pyro program of q(z | x)."""

    @property
    def event(self) -> tuple[int, ...]:
        """The event shape of x."""
        return self.observation.event

    @property
    def tag(self) -> Tag:
        """What kind of number log p is."""
        return Tag(self.observation.measure, self.observation.conditions)

    @property
    def support(self) -> Constraint:
        """The values that an entry of x can take."""
        return self.observation.support

    @property
    def takes(self) -> str:
        """The support in words."""
        return f"{self.observation.kind} takes {self.observation.takes}"

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the columns of x, where the model knows them."""
        return self.observation.names

    @property
    def enumerates(self) -> bool:
        """Whether the guide's draws are few enough to sum over, which SVI then does."""
        return False

    def start(self, batch: Batch) -> None:
        """Begin at the data, before the first step: all training rows. Nothing by default."""

    def refuse_training(self, method: str) -> None:
        """Refuse what can be evaluated but not trained, or not so. Nothing by default."""

    def log_prob(self, batch: Batch) -> Tensor:
        """Log p(x) in closed form, shape `(rows,)`, of a model with `exact = True`."""
        raise Error(
            f"log p(x) of the model '{self.kind}' is an integral: estimate it with log_likelihood"
        )

    def joint(self, batch: Batch) -> Tensor:
        """Log p(x, k), shape `(rows, components)`, of a mixture."""
        raise Error(f"the model '{self.kind}' has no components")

    @property
    def freedom(self) -> int:
        """The number of free parameters, for information criteria, where log p(x) is known."""
        raise Error(f"log p(x) of the model '{self.kind}' is an integral: it has no BIC or AIC")

    def expect(self, batch: Batch) -> Statistics:
        """The E-step over all rows of the batch, of a model that EM can fit."""
        raise Error(f"EM cannot fit the model '{self.kind}': use method = 'svi'")

    def maximize(self, statistics: Statistics) -> None:
        """The M-step, of a model that EM can fit."""
        raise Error(f"EM cannot fit the model '{self.kind}': use method = 'svi'")

    @property
    def exact_m_step(self) -> bool:
        """Whether `maximize` never lowers the likelihood, or can take a step that is too long."""
        return True

    def log_prior(self, rows: Tensor) -> Tensor:
        """The log density of the parameters, up to a constant, which EM adds to the likelihood.

        Args:
            rows: how many the likelihood is of, a scalar, or one for each of several fits.
        """
        return torch.zeros(())

    def repair(self, batch: Batch, statistics: Statistics) -> bool:
        """Move what EM left without rows to where it raises the likelihood, if it does."""
        return False

    def beside(self, runs: int) -> "Model":
        """Copies that EM fits side by side from starts of their own, as one model.

        The model itself where every start is the same.
        """
        return self

    def choose(self, runs: "Model", index: int) -> None:
        """Take the weights of one of the copies."""

    def remarks(self) -> tuple[str, ...]:
        """What has to be known of the fitted model, a sentence each."""
        return ()

    def scope(self) -> AbstractContextManager[Any]:
        """Pyro's parameter store as this model sees it; outside, the store is as before."""
        return pyro.get_param_store().scope()

    @torch.no_grad()
    def sample(
        self, rows: int | Batch, seed: int | None = None, context: Tensor | None = None
    ) -> Tensor:
        """New rows x ~ p(x), shape `(rows, *x)`: the model itself, with nothing observed.

        Args:
            rows: how many; or a batch, for one new row in place of each of its own, given the
                same context, size factor and total.
            seed: of the draws; torch's own random numbers unless given.
            context: of the new rows, shape `(rows, *context)`, or `(1, *context)` for all of
                them, for a model that needs one.
        """
        return observed(self.draw(rows, seed, context))[-1]["value"]

    @torch.no_grad()
    def draw(
        self, rows: int | Batch, seed: int | None = None, context: Tensor | None = None
    ) -> poutine.Trace:
        """The trace of the model with nothing observed: latents and new rows, as for `sample`."""
        device, dtype = destination(self)
        if not isinstance(rows, Batch):
            require_positive(rows, "rows")
            rows = self.blank(torch.zeros(rows, *self.event, device=device, dtype=dtype))
        if context is not None:
            context = torch.as_tensor(context)
            if len(context) == 1:
                context = context.expand(len(rows), *context.shape[1:])
            rows = rows.replace(context=context)
        self.require(rows)
        random = nullcontext() if seed is None else seeded(seed)
        with self.scope(), in_mode(self, False), random, unchecked():
            free = poutine.uncondition(self.model)
            return poutine.trace(free).get_trace(rows.to(device, dtype))

    def blank(self, x: Tensor) -> Batch:
        """Rows to sample in place of, made from zeros `(rows, *x)`."""
        return Batch(self.observation.blank(x))

    def require(self, batch: Batch) -> None:
        """Refuse rows without the context that the model needs, or with one that it ignores."""
        if batch.context is not None:
            raise Error(
                f"the rows have a context, which the model '{self.kind}' ignores: leave it out"
            )

    def check(self, batch: Batch) -> None:
        """Refuse rows that the model cannot have generated.

        Raises:
            Error: what `check_rows` refuses; totals or size factors that the family cannot take.
        """
        self.check_rows(batch)
        self.observation.check(batch)

    def check_rows(self, batch: Batch) -> None:
        """Refuse rows by their entries alone.

        Raises:
            Error: rows of the wrong shape, not finite, incomplete where the model cannot skip
                entries, or outside the likelihood's support; what does not belong to rows.
        """
        x, event = batch.x, tuple(self.event)
        if tuple(x.shape[1:]) != event:
            raise Error(
                f"rows of the data have the shape {tuple(x.shape[1:])}, the model's x has {event}"
            )
        self.require(batch)
        batch.check()
        there = ~x.isnan()
        if len(bad := torch.nonzero(x.isinf().flatten(1).any(-1))):
            raise Error(f"{len(bad)} of {len(x)} rows hold infinite values, first {bad[0].item()}")
        if not self.missing and len(bad := torch.nonzero(~there.flatten(1).all(-1))):
            raise Error(
                f"{len(bad)} of {len(x)} rows hold NaN, missing entries, first {bad[0].item()}: "
                "set missing = true on a model that can skip them, as a VAE, or drop the rows"
            )
        inside = self.support.check(x)
        if inside.shape == x.shape:
            inside = inside | ~there
        if not inside.all():
            row, *entry = torch.nonzero(~inside)[0].tolist()
            outside = (~inside.reshape(len(x), -1).all(-1)).sum()
            column = f" in the column '{self.names[entry[-1]]}'" if self.names else ""
            raise Error(
                f"{outside} of {len(x)} rows are outside the support, such as row {row} with the "
                f"value {x[(row, *entry)].tolist()}{column}: {self.takes}; transform the data or "
                "choose another likelihood"
            )

    @property
    def least_rows(self) -> int:
        """How many training rows the model needs to start at."""
        return 1

    @property
    def parameter_count(self) -> int:
        """The number of parameters that are trained."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)


def require_model(value: Any) -> None:
    """Refuse what is no model."""
    if not isinstance(value, Model):
        raise Error(f"should be a model, such as VAE(...), got {value!r}", "model")


def require_positive(value: Any, name: str) -> None:
    """Refuse what is no number of rows, or of draws."""
    if not isinstance(value, int) or value < 1:
        got = value if isinstance(value, (int, float, str)) else type(value).__name__
        raise Error(f"should be a whole number from 1, got {got!r}", name)


def observed(trace: poutine.Trace) -> list[Any]:
    """The sites of a trace that hold data; deterministic sites and factors do not."""
    return [
        site
        for site in trace.nodes.values()
        if site["type"] == "sample"
        and (site["is_observed"] or site["infer"].get("was_observed"))
        and not site["infer"].get("_deterministic")
        and not isinstance(site["fn"], Unit)
    ]
