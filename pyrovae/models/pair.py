"""A hand-written Pyro model and guide, as they are.

Plain `pyro.param` statements live in Pyro's global store. Here each pair keeps a store of its own,
and every call runs inside it: two pairs never meet, and nothing is lost when a call ends. After
`start` the store's unconstrained tensors are also the pair's `torch.nn` parameters, so that it is
saved, moved and counted like every other model.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import pyro
import pyro.distributions as dist
import torch
from pydantic import PlainValidator, WithJsonSchema
from pyro import poutine
from pyro.params.param_store import StateDict
from torch import Tensor, nn
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from pyrovae.batch import ENTRIES, Batch, as_batch
from pyrovae.errors import Error
from pyrovae.models.model import Model, Tag, observed
from pyrovae.named import Named, find
from pyrovae.part import Shape
from pyrovae.place import destination, seeded, unchecked


class Program(Named):
    """A function of plain tensors as a function of a batch, called with the entries it has.

    The function takes x, then context, labels and offset where they are given.
    """

    def __call__(self, batch: Batch) -> Any:
        return self.value(*as_batch(batch).entries)

    def require(self, batch: Batch) -> None:
        """Refuse rows whose entries the function does not take."""
        try:
            inspect.signature(self.value).bind(*batch.entries)
        except TypeError:
            there = (name for name in ENTRIES if getattr(batch, name) is not None)
            raise Error(
                f"'{self}' takes {inspect.signature(self.value)}, the rows have "
                f"{', '.join(there)}: it should take these, in this order"
            ) from None

    @classmethod
    def parse(cls, value: Any) -> "Program":
        """The program of a function, or of the import path of one in an imported module."""
        if isinstance(value, Program):
            return value
        path = value if isinstance(value, str) else None
        function = find(path) if path else value
        if not callable(function):
            raise Error(f"should be a function or 'module:name', got {value!r}")
        return cls(function, path)


Function = Annotated[
    Callable[..., Any], PlainValidator(Program.parse), WithJsonSchema({"type": "string"})
]


class Pair(Model):
    """A plain Pyro model and guide, with local latents in a plate at dimension -1.

    Modules that the functions refer to directly are part of the pair: two pairs of the same
    functions train the same modules, and opening a saved pair fills them with the saved weights.
    The plate has the size of the rows it is given: `fit` makes the mini-batches.

    Args:
        model: p(x, z); takes the rows x, `(rows, *x)`, and observes them.
        guide: q(z | x); takes the same arguments.
        x: the event shape of the data; without it, that of the first rows seen.
        context: the event shape of what the rows are conditioned on, if anything; likewise.
    """

    model: Function
    guide: Function
    x: Shape | None = None
    context: Shape | None = None

    def setup(self) -> None:
        self.state: StateDict = {"params": {}, "constraints": {}}
        self.observed: Constraint | None = None
        for program in (self.model, self.guide):
            for name, module in _modules(program):
                self.add_module(f"module:{name}", module)

    def start(self, batch: Batch) -> None:
        """Run both programs once, so that every parameter and the observed site are known.

        They run as they would without this package, where and in the precision that their modules
        are; the parameters then move to where the batch is.
        """
        if self.observed is not None:
            return
        self.require(batch)
        self.x = self.x or tuple(batch.x.shape[1:])
        self.context = None if batch.context is None else tuple(batch.context.shape[1:])
        plain = batch.to(*destination(self))
        with self.scope(), unchecked():
            guide = poutine.trace(self.guide).get_trace(plain)
            trace = poutine.trace(poutine.replay(self.model, trace=guide)).get_trace(plain)
        sites = observed(trace)
        if not sites:
            raise Error("the model observes nothing: give its data to a sample statement as obs")
        if any(isinstance(site["scale"], Tensor) or site["scale"] != 1 for site in sites):
            raise Error("the density of the rows is scaled: give the plate the size len(x)")
        support = sites[-1]["fn"].support
        self.observed = _of_every_row(getattr(support, "base_constraint", support))
        self.to(batch.x.device, batch.x.dtype)

    def require(self, batch: Batch) -> None:
        for program in (self.model, self.guide):
            program.require(batch)  # type: ignore[attr-defined]

    def blank(self, x: Tensor) -> Batch:
        return Batch(x)

    def check(self, batch: Batch) -> None:
        self.start(batch)
        self.check_rows(batch)

    @contextmanager
    def scope(self) -> Iterator[None]:
        try:
            with pyro.get_param_store().scope(self.state):
                yield
        finally:
            self._adopt()

    def _adopt(self) -> None:
        """Make the tensors of the store parameters of this module as well."""
        mine = set(self.parameters())
        for name, tensor in self.state["params"].items():
            if tensor not in mine:
                if not isinstance(tensor, nn.Parameter):
                    tensor = nn.Parameter(tensor.detach().clone())
                self.state["params"][name] = tensor
                self.register_parameter(f"param:{name}".replace(".", "/"), tensor)

    def _load_from_state_dict(self, state: Any, prefix: str, *args: Any) -> None:
        """Take saved weights; a new pair first runs on a blank row, to know its parameters."""
        if self.observed is None:
            with seeded(0):
                dtype = next(
                    tensor.dtype for name, tensor in state.items() if name.startswith(prefix)
                )
                context = torch.zeros(1, *self.context, dtype=dtype) if self.context else None
                self.start(Batch(torch.zeros(1, *self.event, dtype=dtype), context))
        super()._load_from_state_dict(state, prefix, *args)

    @classmethod
    def examples(cls) -> Iterable["Pair"]:
        return (cls(model=_factors, guide=_factors_guide, x=(3,)),)

    @property
    def event(self) -> tuple[int, ...]:
        if self.x is None:
            raise Error("the pair has seen no data yet: give it x, the shape of a row, or fit it")
        return self.x

    @property
    def names(self) -> tuple[str, ...]:
        return ()

    @property
    def tag(self) -> Tag:
        if self.observed is None:
            return Tag("unknown")
        measure = "counting" if self.support.is_discrete else "lebesgue"
        return Tag(measure, "the context" if self.context else "")

    @property
    def support(self) -> Constraint:
        if self.observed is None:
            raise Error("the pair has seen no data yet: fit it, or call start with some rows")
        return self.observed


def _modules(program: Any) -> Iterator[tuple[str, nn.Module]]:
    """The modules that a program is a method of, or refers to by a name of its own or a global."""
    function = program.value
    owner = getattr(function, "__self__", function)
    if isinstance(owner, nn.Module):
        yield type(owner).__name__, owner
    if inspect.isfunction(function):
        seen = inspect.getclosurevars(function)
        for name, value in (*seen.nonlocals.items(), *seen.globals.items()):
            if isinstance(value, nn.Module):
                yield name, value


def _of_every_row(support: Constraint) -> Constraint:
    """The support, where it is the same for all rows; otherwise it is not checked."""
    bounds = (value for value in vars(support).values() if isinstance(value, Tensor))
    if all(value.ndim == 0 for value in bounds):
        return support
    return constraints.nonnegative_integer if support.is_discrete else constraints.real


def _factors(x: Tensor) -> Tensor:
    """Factor analysis with two factors, as one would write it in plain Pyro."""
    loading = pyro.param("loading", lambda: torch.randn(2, 3))
    scale = pyro.param("scale", torch.ones(3), constraint=constraints.positive)
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        return pyro.sample("x", dist.Normal(z @ loading, scale).to_event(1), obs=x)


def _factors_guide(x: Tensor) -> None:
    weight = pyro.param("weight", lambda: 0.1 * torch.randn(3, 2))
    scale = pyro.param("guide_scale", torch.ones(2), constraint=constraints.positive)
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(x @ weight, scale).to_event(1))
