r"""A guide whose parameters are each row's own, and the best guide of its family for each row.

An encoder gives the parameters h of q(z | x). Here each row has an offset d of its own,

    q_d(z | x) = q(z; h + d),        d* = argmax_d E_{q_d}[log p(x, z) - log q_d(z | x)],

which Adam finds from reparameterised draws, all rows side by side: the offsets of other rows have
no part in a row's gradient. The guide's own weights stay as they are, and with them what its
family is; of a flow, say, the member that h chooses moves, not the networks of the flow.

Where q's parameters depend on another latent, as those of the lower layers of a hierarchy do, the
offset is one for all its values: that guide is *restricted*, the best of its family may be better.

A guide without an encoder, of a hand-written pair, has the offset on the parameters of each site's
distribution, such as loc and log scale.
"""

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import pyro
import torch
from pyro.distributions import Delta
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import Independent, transform_to

from pyrovae.batch import Batch
from pyrovae.errors import Error
from pyrovae.evaluate.weights import Array, log_weights, paired_traces
from pyrovae.families import Family
from pyrovae.models import Model
from pyrovae.networks import Network
from pyrovae.place import seeded

PARTICLES = 16
"""Draws that a step's gradient is averaged over."""
STEPS = 150
"""Steps of a round; the mean of its last third is what it finds."""
RATES = (0.1, 0.002)
"""The learning rate of the first and of the last step of a round."""
ROUNDS = 6
"""The most rounds."""
SETTLED = 0.01
"""The mean gain of a round, in nats, below which it is the last."""
JUDGES = 512
"""Draws, the same for both, by which a round's guide is compared with the best so far."""

Offsets = dict[str, Tensor]
"""By place in the guide, `(rows, *params)`, with the dimensions of enumeration before the rows."""
Found = dict[str, tuple[Tensor, int]]
"""By place the offset to start from, and how many dimensions come after that of the rows."""


class Freed:
    """The guide of a model with offsets for the rows of a batch.

    Args:
        model: in evaluation mode.
        batch: rows.

    Raises:
        Error: a guide whose parameters cannot be moved; why.
    """

    def __init__(self, model: Model, batch: Batch) -> None:
        self.model, self.batch = model, batch
        modules = dict(model.named_modules())
        encoders = {
            name: module
            for name, module in modules.items()
            if isinstance(_of(module, "encoder"), Network)
            and isinstance(_of(module, "posterior"), Family)
        }
        found: Found = {}
        noting = partial(_noting, encoders, found) if encoders else partial(_Sites, model, found)
        plate = pyro.plate("particles", 2, dim=-2)
        paired_traces(self._with(noting), batch, plate, model.enumerates)
        self.dims = {name: dims for name, (_, dims) in found.items()}
        self.start: Offsets = {}
        self.restricted = False
        for name, (start, dims) in found.items():
            axis = start.dim() - dims - 2
            depends = axis >= 0 and start.shape[axis] == 2
            self.start[name] = start.narrow(axis, 0, 1) if depends else start
            self.restricted |= depends
        owners = {name: owner for name, owner in encoders.items() if name in found}
        self.moving = partial(_moving, owners) if encoders else partial(_Sites, model, {})

    def at(self, offsets: Offsets) -> Model:
        """The model with the guide at these offsets; what it is made of is the model's own."""
        return self._with(partial(self.moving, offsets))

    def _with(self, around: Callable[[], Any]) -> Model:
        model, other = self.model, copy.copy(self.model)

        def guide(batch: Batch) -> None:
            with around():
                model.guide(batch)

        vars(other).update(guide=guide, require=model.require)
        return other

    def best(self) -> tuple[Offsets, Array]:
        """The best offsets that were found, and what the last round gained, `(rows,)` in nats.

        A round takes `STEPS` steps of Adam at a falling rate from the best offsets so far, and
        replaces those of the rows that gain by it. Rounds end when they gain less than `SETTLED`
        nats in the mean over rows.
        """
        best, gain = self.start, torch.zeros(len(self.batch))
        for _ in range(ROUNDS if best else 0):
            found = self._round(best)
            seed = int(torch.randint(2**31, ()))
            old, new = (self._bound(offsets, seed) for offsets in (best, found))
            gain = (new - old).nan_to_num(0.0, posinf=0.0, neginf=0.0).clamp(min=0).cpu().double()
            best = {name: self._chosen(name, new > old, found, best) for name in best}
            if gain.mean() < SETTLED:
                break
        return best, gain.numpy()

    def _round(self, offsets: Offsets) -> Offsets:
        """The offsets to which a round comes from these."""
        free = {name: offset.clone().requires_grad_() for name, offset in offsets.items()}
        adam = torch.optim.Adam(free.values(), lr=RATES[0])
        tail = {name: torch.zeros_like(offset) for name, offset in offsets.items()}
        model = self.at(free)
        for step in range(STEPS):
            adam.param_groups[0]["lr"] = RATES[0] * (RATES[1] / RATES[0]) ** (step / STEPS)
            with torch.enable_grad():
                bound = log_weights(model, self.batch, PARTICLES).mean(0).sum()
            if not bound.requires_grad:
                return offsets
            slopes = torch.autograd.grad(bound, list(free.values()), allow_unused=True)
            for offset, slope in zip(free.values(), slopes, strict=True):
                offset.grad = None if slope is None else -slope.nan_to_num(0, 0, 0)
            adam.step()
            if step >= 2 * STEPS // 3:
                for name, offset in free.items():
                    tail[name] += offset.detach() / (STEPS - 2 * STEPS // 3)
        return tail

    def _bound(self, offsets: Offsets, seed: int) -> Tensor:
        """Each row's ELBO from draws of a seed, `(rows,)`."""
        model = self.at(offsets)
        with seeded(seed):
            parts = [log_weights(model, self.batch, PARTICLES) for _ in range(JUDGES // PARTICLES)]
        return torch.cat(parts).mean(0)

    def _chosen(self, name: str, rows: Tensor, new: Offsets, old: Offsets) -> Tensor:
        """The new offsets where a row is chosen, the old ones elsewhere."""
        chosen = rows.view(-1, *[1] * self.dims[name])
        return torch.where(chosen, new[name], old[name])


def _of(module: Any, name: str) -> Any:
    return getattr(module, name, None)


@contextmanager
def _noting(owners: Mapping[str, Any], found: Found) -> Iterator[None]:
    """Note what takes each encoder's output to what the guide is made of: 0, or a refinement."""

    def note(name: str, module: Any, inputs: tuple[Tensor], h: Tensor) -> None:
        start = torch.zeros_like(h) if isinstance(module, Network) else h - inputs[0]
        found[name] = start.detach(), len(owners[name].posterior.params)

    with ExitStack() as stack:
        for name, owner in owners.items():
            last = _of(owner, "refine") or owner.encoder
            stack.callback(last.register_forward_hook(partial(note, name)).remove)
        yield


@contextmanager
def _moving(owners: Mapping[str, Any], offsets: Offsets) -> Iterator[None]:
    """Add the offsets to what encoders give, and leave out refinements."""

    def move(name: str, _: Any, __: Any, h: Tensor) -> Tensor:
        return h + offsets[name]

    with ExitStack() as stack:
        for name, owner in owners.items():
            stack.callback(owner.encoder.register_forward_hook(partial(move, name)).remove)
            if (refine := _of(owner, "refine")) is not None:
                stack.callback(owner._modules.update, refine=refine)
                owner._modules["refine"] = None
        yield


class _Sites(Messenger):
    """The offsets of the parameters of each site; noted where they are not yet there."""

    def __init__(self, model: Model, found: Found, offsets: Offsets | None = None) -> None:
        super().__init__()
        self.enumerates, self.found, self.offsets = model.enumerates, found, offsets

    def _pyro_sample(self, message: dict[str, Any]) -> None:
        if site_is_subsample(message) or message["is_observed"]:
            return
        if self.enumerates and message["infer"].get("enumerate"):
            return
        name, fn, events = message["name"], message["fn"], 0
        while isinstance(fn, Independent):
            fn, events = fn.base_dist, events + fn.reinterpreted_batch_ndims
        maps = _maps(name, fn)
        u = {key: of.inv(getattr(fn, key)) for key, of in maps.items()}
        if self.offsets is None:
            inner = len(fn.batch_shape) - events
            for key, value in u.items():
                self.found[f"{name}.{key}"] = torch.zeros_like(value), value.dim() - inner
        else:
            moved = {key: of(u[key] + self.offsets[f"{name}.{key}"]) for key, of in maps.items()}
            message["fn"] = type(fn)(**moved).to_event(events)


def _maps(name: str, fn: Any) -> dict[str, Any]:
    """From unconstrained numbers to each parameter of a site's distribution."""
    kind = type(fn)
    known = {key: p.default for key, p in inspect.signature(kind).parameters.items()}
    keys = [key for key in kind.arg_constraints if known.get(key) is not None]
    if "scale_tril" in kind.arg_constraints:
        keys.append("scale_tril")
    if not keys or not fn.has_rsample or isinstance(fn, Delta):
        raise Error(
            f"'{name}' is drawn from {kind.__name__}, whose parameters cannot be moved to be "
            "better for a row"
        )
    return {key: transform_to(kind.arg_constraints[key]) for key in keys}
