r"""Optimisers: how a gradient g becomes a step of the parameters theta, as declared parts.

    SGD       b <- momentum b + g,                          theta <- theta - rate b
    Adam      m <- mean of g,  v <- mean of g^2,            theta <- theta - rate m / (v^1/2 + eps)

where a mean is a running one, m <- beta m + (1 - beta) g, divided by 1 - beta^t at step t, which
takes out that it began at zero. The others are relatives of Adam. They differ in what the step is
divided by, in how the first steps are held back while v is a mean of few, and in the way that
weights decay.

A part has the options of the method. The learning rate is not one of them: it belongs to the fit,
which schedules it and scales it for parts of the model.
"""

from abc import abstractmethod
from typing import Annotated, Any

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat
from pyro.optim.clipped_adam import ClippedAdam as PyrosClippedAdam

from pyrovae.errors import Error
from pyrovae.part import Part

Decay = Annotated[float, Field(ge=0, lt=1)]
Betas = tuple[Decay, Decay]
Groups = list[dict[str, Any]]


class Optimizer(Part):
    """The role of a rule by which parameters are stepped. `Adam` is the shortest member."""

    def setup(self) -> None:
        """Nothing to make: what a method remembers belongs to the fit."""

    @abstractmethod
    def build(self, groups: Groups) -> torch.optim.Optimizer:
        """The optimiser of torch, fused where torch has a kernel for it.

        Args:
            groups: parameters with the same learning rate, `params` and `lr` each.
        """

    @property
    def options(self) -> dict[str, Any]:
        """The fields by name, which are the options of torch's class."""
        return {name: getattr(self, name) for name in type(self).fields.model_fields}


class Adam(Optimizer):
    """Steps of about the learning rate in each direction, m / (v^1/2 + eps).

    Adam: A Method for Stochastic Optimization (Kingma & Ba, 2015,
    https://arxiv.org/abs/1412.6980). With `amsgrad` by the largest v so far. On the Convergence of
    Adam and Beyond (Reddi, Kale & Kumar, 2018, https://arxiv.org/abs/1904.09237).

    Args:
        betas: how much of the running means of g and of g^2 is kept at each step.
        eps: added to v^1/2.
        weight_decay: of theta, added to g.
        amsgrad: whether v never falls.
    """

    betas: Betas = (0.9, 0.999)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.0
    amsgrad: bool = False

    def build(self, groups: Groups) -> torch.optim.Optimizer:
        return torch.optim.Adam(groups, **self.options, fused=True)


class AdamW(Optimizer):
    """Adam with weights that decay by themselves, theta <- (1 - rate weight_decay) theta.

    Decoupled Weight Decay Regularization (Loshchilov & Hutter, 2019,
    https://arxiv.org/abs/1711.05101).

    Args:
        betas: how much of the running means of g and of g^2 is kept at each step.
        eps: added to v^1/2.
        weight_decay: of theta, as a multiple of the learning rate.
        amsgrad: whether v never falls.
    """

    betas: Betas = (0.9, 0.999)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 1e-2
    amsgrad: bool = False

    def build(self, groups: Groups) -> torch.optim.Optimizer:
        return torch.optim.AdamW(groups, **self.options, fused=True)


class RAdam(Optimizer):
    """Adam whose first steps are without v, and then as long as v can be trusted.

    On the Variance of the Adaptive Learning Rate and Beyond (Liu et al., 2020,
    https://arxiv.org/abs/1908.03265).

    Args:
        betas: how much of the running means of g and of g^2 is kept at each step.
        eps: added to v^1/2.
        weight_decay: of theta, added to g.
        decoupled_weight_decay: whether weights decay as in `adam-w` instead.
    """

    betas: Betas = (0.9, 0.999)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.0
    decoupled_weight_decay: bool = False

    def build(self, groups: Groups) -> torch.optim.Optimizer:
        return torch.optim.RAdam(groups, **self.options)


class NAdam(Optimizer):
    """Adam that looks one step ahead, as Nesterov's momentum does.

    Incorporating Nesterov Momentum into Adam (Dozat, 2016).

    Args:
        betas: how much of the running means of g and of g^2 is kept at each step.
        eps: added to v^1/2.
        weight_decay: of theta, added to g.
        momentum_decay: how fast the first of `betas` is reached.
        decoupled_weight_decay: whether weights decay as in `adam-w` instead.
    """

    betas: Betas = (0.9, 0.999)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.0
    momentum_decay: NonNegativeFloat = 4e-3
    decoupled_weight_decay: bool = False

    def build(self, groups: Groups) -> torch.optim.Optimizer:
        return torch.optim.NAdam(groups, **self.options)


class Adamax(Optimizer):
    """Adam with the largest |g| of late in place of v^1/2.

    Adam: A Method for Stochastic Optimization (Kingma & Ba, 2015,
    https://arxiv.org/abs/1412.6980).

    Args:
        betas: how much of the running mean of g and of the largest |g| is kept at each step.
        eps: added to |g|.
        weight_decay: of theta, added to g.
    """

    betas: Betas = (0.9, 0.999)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.0

    def build(self, groups: Groups) -> torch.optim.Optimizer:
        return torch.optim.Adamax(groups, **self.options)


class RMSprop(Optimizer):
    """Steps of g / (v^1/2 + eps), v a running mean of g^2 that began at zero.

    Generating Sequences With Recurrent Neural Networks (Graves, 2013,
    https://arxiv.org/abs/1308.0850).

    Args:
        alpha: how much of v is kept at each step.
        eps: added to v^1/2.
        weight_decay: of theta, added to g.
        momentum: how much of a step is taken again in the next.
        centered: whether v is the variance of g.
    """

    alpha: Decay = 0.99
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.0
    momentum: Decay = 0.0
    centered: bool = False

    def build(self, groups: Groups) -> torch.optim.Optimizer:
        return torch.optim.RMSprop(groups, **self.options)


class SGD(Optimizer):
    """Stochastic gradient descent, theta <- theta - rate b, b <- momentum b + g.

    On the importance of initialization and momentum in deep learning (Sutskever, Martens, Dahl &
    Hinton, 2013).

    Args:
        momentum: how much of b is kept at each step.
        nesterov: whether g is met as if the step had been taken.
        weight_decay: of theta, added to g.
    """

    momentum: Decay = 0.0
    nesterov: bool = False
    weight_decay: NonNegativeFloat = 0.0

    def __post_init__(self) -> None:
        if self.nesterov and not self.momentum:
            raise Error("needs a momentum above 0", "nesterov")

    def build(self, groups: Groups) -> torch.optim.Optimizer:
        optimizer = torch.optim.SGD(groups, **self.options, fused=True)
        for group in groups if self.momentum else ():
            for parameter in group["params"]:  # torch wants those of all, or of none
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return optimizer


class ClippedAdam(Optimizer):
    """Adam with each entry of g between -clip_norm and clip_norm: Pyro's own.

    Args:
        betas: how much of the running means of g and of g^2 is kept at each step.
        eps: added to v^1/2.
        weight_decay: of theta, added to g.
        clip_norm: the largest |g| of an entry.
        centered_variance: whether v is a mean of (g - m)^2.
    """

    betas: Betas = (0.9, 0.999)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.0
    clip_norm: PositiveFloat = 10.0
    centered_variance: bool = False

    def build(self, groups: Groups) -> torch.optim.Optimizer:
        return PyrosClippedAdam(groups, **self.options)
