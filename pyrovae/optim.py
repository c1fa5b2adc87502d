r"""One optimiser for all parameters.

Pyro's own wrapper makes one optimiser for each parameter, and stepping ten small ones costs
several times one step of a fused kernel over all. What is left then is Python around the kernel,
which takes as long again: so the step is recorded, as `graphs` says. Around the step itself

    g <- g min(1, clip / |g|)                       |g| over all parameters
    theta <- step(theta, g, rate * factor)          factors for parts of the model, by name
    a <- a + w_t (theta - a),    w_t = (1 - decay) / (1 - decay^t)

belong to it and to the record. The last line is the running mean of the weights, of which the
first step makes the weights themselves: nothing of where they began is in it (Acceleration of
Stochastic Approximation by Averaging, Polyak & Juditsky, 1992; with weights that decay as in
Adam, Kingma & Ba, 2015).

All that the next step depends on is tensors by the names of the parameters. Put into a new
optimiser of the same kind they give the same steps, to the bit.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from functools import partial
from itertools import accumulate, chain
from typing import Any

import pyro
import torch
from pyro.optim import PyroOptim
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from pyrovae.errors import Error
from pyrovae.graphs import PATIENCE, Graph, record
from pyrovae.optimizers import Optimizer

Names = Callable[[], Iterable[tuple[str, Tensor]]]
COUNTERS = ("step", "mu_product")
"""What torch keeps as numbers: in the processor's memory, unless the step is fused."""


def in_pyros_store() -> Iterable[tuple[str, Tensor]]:
    """The parameters that Pyro's store has at present, by their names there."""
    return pyro.get_param_store().named_parameters()


class Optim(PyroOptim):
    """A `PyroOptim` that steps a single torch optimiser; parameters that appear later join it.

    A parameter without a gradient is left as it is.

    Args:
        optimizer: the method; the step of a fused one is recorded.
        rate: the learning rate, or a tensor without dimensions that holds it: what is changed in
            place there holds from the next step on.
        names: gives the parameters by name; those it lacks have their names in Pyro's store.
        clip: the largest norm of the gradient.
        rates: factors on the learning rate, by the beginnings of dotted names; where several
            match, the longest.
        average: how much of the mean of the weights is kept at each step.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        rate: float | Tensor,
        *,
        names: Names = in_pyros_store,
        clip: float | None = None,
        rates: Mapping[str, float] | None = None,
        average: float | None = None,
    ) -> None:
        super().__init__(optimizer.build, {})
        self.rate, self.names, self.clip = rate, names, clip
        self.rates, self.average = rates or {}, average
        self.load({})

    def __call__(self, params: Iterable[Tensor], *args: Any, **kwargs: Any) -> None:
        """Step all parameters by the gradients that they hold."""
        if new := [p for p in params if p not in self.known]:
            self._join(new)
        kind = tuple([p.grad is None for p in self.known])
        stepped = [p for p in self.known if p.grad is not None]
        gradients: list[Any] = [p.grad for p in stepped]
        self.met[kind] += 1
        if graph := self.graphs.get(kind):
            graph(*gradients)
        elif self.fused and self.met[kind] > PATIENCE:
            self.graphs[kind] = record(partial(self._step, stepped), *gradients)
        else:
            self._step(stepped, *gradients)

    def averages(self) -> dict[str, Tensor]:
        """A copy of the mean of the weights, by name."""
        found = ((key.partition("/"), mean) for key, mean in self._held().items())
        return {name: mean.clone() for (kind, _, name), mean in found if kind == "average"}

    def state(self) -> dict[str, Tensor]:
        """A copy of all that the next step depends on, as `exp_avg/encoder.0.weight`."""
        return {key: tensor.clone() for key, tensor in self._held().items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go back to a state that `state` gave, here or in another optimiser of the same kind."""
        self.waiting = {key: tensor.clone() for key, tensor in state.items()}
        self.optimizer: torch.optim.Optimizer
        self.known: dict[Tensor, str] = {}
        self.means: dict[Tensor, Tensor] = {}
        self.averaged = torch.zeros((), dtype=torch.float64)
        self._forget()

    get_state, set_state = state, load  # as other PyroOptims have it

    def _forget(self) -> None:
        """Count and record anew: the tensors are others."""
        self.met: Counter[tuple[bool, ...]] = Counter()
        self.graphs: dict[tuple[bool, ...], Graph] = {}

    def _held(self) -> dict[str, Tensor]:
        """The state, and what was loaded for parameters that have not appeared yet."""
        held = {f"average/{self.known[p]}": mean for p, mean in self.means.items()}
        for p, values in self.optimizer.state.items() if self.known else ():
            held |= {f"{key}/{self.known[p]}": torch.as_tensor(v) for key, v in values.items()}
        return self.waiting | held | ({"averaged": self.averaged} if self.means else {})

    def _join(self, new: list[Tensor]) -> None:
        """Make the optimiser anew, of these parameters as well, in the order of names."""
        state = self._held()
        names = {p: name for name, p in chain(in_pyros_store(), self.names())}
        if unnamed := [p for p in new if p not in names]:
            raise Error(f"a parameter of the shape {tuple(unnamed[0].shape)} has no name")
        known = self.known | {p: names[p] for p in new}
        self.known = dict(sorted(known.items(), key=lambda item: item[1]))
        groups = defaultdict(list)
        for p, name in self.known.items():
            groups[_factor(self.rates, name)].append(p)
        self.factors = list(groups)
        self.optimizer = self.pt_optim_constructor(
            [{"params": ps, "lr": self._rate(factor, ps[0])} for factor, ps in groups.items()]
        )
        self.fused = all(group.get("fused") for group in self.optimizer.param_groups)
        self._take(state, self.optimizer)
        self._forget()

    def _take(self, state: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
        """Give every parameter its own of a state; the rest waits."""
        named = {name: p for p, name in self.known.items()}
        if self.average is not None:
            self.averaged = state.pop("averaged", self.averaged).to(next(iter(self.known)).device)
            self.means = {p: p.detach().clone() for p in self.known}
        self.waiting = {}
        for key, tensor in state.items():
            kind, _, name = key.partition("/")
            if name not in named or (kind == "average" and not self.means):
                self.waiting[key] = tensor
            elif kind == "average":
                self.means[named[name]] = tensor.to(named[name].device)
            else:
                optimizer.state[named[name]][kind] = self._placed(kind, tensor, named[name])

    def _placed(self, kind: str, tensor: Tensor, like: Tensor) -> Tensor | int:
        """A part of a parameter's state where torch has it; a whole number was none of torch's."""
        if not tensor.is_floating_point():
            return int(tensor)
        return tensor if kind in COUNTERS and not self.fused else tensor.to(like.device)

    def _rate(self, factor: float, like: Tensor) -> float | Tensor:
        """The learning rate of a group; a tensor of its own where a fused step can read one."""
        if not isinstance(self.rate, Tensor):
            return self.rate * factor
        precision = torch.float64 if like.device.type == "cpu" else torch.float32
        return (self.rate * factor).to(like.device, precision, copy=True)

    @torch.no_grad()
    def _step(self, stepped: list[Tensor], *gradients: Tensor) -> tuple[()]:
        """Clip, step and average; all of it is recorded."""
        for p, gradient in zip(stepped, gradients, strict=True):
            p.grad = gradient
        if self.clip is not None:
            clip_grad_norm_(stepped, self.clip)
        if isinstance(self.rate, Tensor):
            self._set_rates(self.rate)
        self.optimizer.step()
        if self.average is not None:
            self._follow(self.average)
        return ()

    def _set_rates(self, rate: Tensor) -> None:
        """Hand the present learning rate on to every group."""
        for group, factor in zip(self.optimizer.param_groups, self.factors, strict=True):
            if self.fused:
                group["lr"].copy_(rate * factor)
            else:
                group["lr"] = rate.item() * factor

    def _follow(self, decay: float) -> None:
        """Take the weights into their mean."""
        self.averaged.mul_(decay).add_(1 - decay)
        share = (1 - decay) / self.averaged
        for p, mean in self.means.items():
            mean.lerp_(p, share.to(mean.dtype))


def refuse_rates(rates: Mapping[str, float], names: Iterable[str]) -> None:
    """Refuse a factor on the learning rate of no parameter.

    Args:
        rates: factors, by the beginnings of dotted names.
        names: of all parameters.
    """
    known = {begin for name in names for begin in accumulate(name.split("."), "{}.{}".format)}
    for key in rates:
        if key not in known:
            near = get_close_matches(key, sorted(known), 1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            first = ", ".join(sorted(begin for begin in known if "." not in begin))
            raise Error(f"no parameter's name begins with '{key}'.{hint} Names: {first}.", "rates")


def _factor(rates: Mapping[str, float], name: str) -> float:
    """The factor on a parameter's learning rate: that of the longest beginning of its name."""
    fitting = (key for key in rates if f"{name}.".startswith(f"{key}."))
    return rates.get(max(fitting, key=len, default=""), 1.0)
