"""One optimiser for all parameters.

Adam scales each parameter's step by running means of its gradient and of its square (Adam: A
Method for Stochastic Optimization, Kingma & Ba, 2015, https://arxiv.org/abs/1412.6980). Nothing
in it needs one optimiser per parameter, which is what Pyro's own wrapper makes: stepping ten small
ones costs several times one step of a fused kernel over all.
"""

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from pyro.optim import PyroOptim
from torch import Tensor


class Optim(PyroOptim):
    """A `PyroOptim` that steps a single torch optimiser; parameters that appear later join it.

    Args:
        constructor: of a torch optimiser, such as `torch.optim.Adam`.
        options: its keyword arguments, such as `{"lr": 1e-3, "fused": True}`.
    """

    def __init__(
        self, constructor: Callable[..., torch.optim.Optimizer], options: dict[str, Any]
    ) -> None:
        super().__init__(constructor, options)
        self.optimizer: torch.optim.Optimizer | None = None
        self.known: set[Tensor] = set()

    def __call__(self, params: Iterable[Tensor], *args: Any, **kwargs: Any) -> None:
        """Step all parameters by the gradients that they hold."""
        new = [p for p in params if p not in self.known]
        if self.optimizer is None:
            self.optimizer = self.pt_optim_constructor(new, **self.pt_optim_args)
        elif new:
            self.optimizer.add_param_group({"params": new})
        self.known.update(new)
        self.optimizer.step()

    def get_state(self) -> dict[str, Any]:
        """A copy of the optimiser's state, empty before the first step."""
        return copy.deepcopy(self.optimizer.state_dict()) if self.optimizer else {}

    def set_state(self, state_dict: dict[str, Any]) -> None:
        """Go back to a state that `get_state` gave."""
        if state_dict and self.optimizer:
            self.optimizer.load_state_dict(state_dict)
        else:
            self.optimizer, self.known = None, set()
