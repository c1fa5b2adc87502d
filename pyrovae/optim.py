"""One optimiser for all parameters.

Adam scales each parameter's step by running means of its gradient and of its square (Adam: A
Method for Stochastic Optimization, Kingma & Ba, 2015, https://arxiv.org/abs/1412.6980). Nothing
in it needs one optimiser per parameter, which is what Pyro's own wrapper makes: stepping ten small
ones costs several times one step of a fused kernel over all. What is left then is Python around
the kernel, which takes as long again: so the step is recorded, as `graphs` says.
"""

import copy
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from pyro.optim import PyroOptim
from torch import Tensor

from pyrovae.graphs import PATIENCE, Graph, record


class Optim(PyroOptim):
    """A `PyroOptim` that steps a single torch optimiser; parameters that appear later join it.

    Args:
        constructor: of a torch optimiser, such as `torch.optim.Adam`.
        options: its keyword arguments, such as `{"lr": 1e-3, "fused": True}`; the step of a fused
            one is recorded.
    """

    def __init__(
        self, constructor: Callable[..., torch.optim.Optimizer], options: dict[str, Any]
    ) -> None:
        super().__init__(constructor, options)
        self.optimizer: torch.optim.Optimizer | None = None
        self.known: dict[Tensor, None] = {}
        self.graph: Graph | None = None
        self.settings: list[dict[str, Any]] = []
        self.same = 0

    def __call__(self, params: Iterable[Tensor], *args: Any, **kwargs: Any) -> None:
        """Step all parameters by the gradients that they hold."""
        optimizer = self._joined([p for p in params if p not in self.known])
        gradients = [gradient for p in self.known if (gradient := p.grad) is not None]
        if not self._settled(optimizer) or len(gradients) < len(self.known):
            optimizer.step()
        elif self.graph:
            self.graph(*gradients)
        else:
            self.graph = record(partial(_step, optimizer, list(self.known)), *gradients)

    def get_state(self) -> dict[str, Any]:
        """A copy of the optimiser's state, empty before the first step."""
        return copy.deepcopy(self.optimizer.state_dict()) if self.optimizer else {}

    def set_state(self, state_dict: dict[str, Any]) -> None:
        """Go back to a state that `get_state` gave."""
        if state_dict and self.optimizer:
            self.optimizer.load_state_dict(state_dict)
        else:
            self.optimizer, self.known = None, {}
        self.settings = []

    def _joined(self, new: list[Tensor]) -> torch.optim.Optimizer:
        """The optimiser, of these parameters as well."""
        if self.optimizer is None:
            self.optimizer = self.pt_optim_constructor(new, **self.pt_optim_args)
        elif new:
            self.optimizer.add_param_group({"params": new})
        self.known |= dict.fromkeys(new)
        return self.optimizer

    def _settled(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether the step can be recorded: it is fused, and has been the same for a while."""
        settings = [{**group, "params": len(group["params"])} for group in optimizer.param_groups]
        if settings != self.settings:
            self.settings, self.graph, self.same = settings, None, 0
        self.same += 1
        return self.same > PATIENCE and all(group.get("fused") for group in settings)


def _step(optimizer: torch.optim.Optimizer, params: list[Tensor], *gradients: Tensor) -> tuple[()]:
    for parameter, gradient in zip(params, gradients, strict=True):
        parameter.grad = gradient
    optimizer.step()
    return ()
