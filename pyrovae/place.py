"""Where and how a model runs for a while: seed, mode, device and precision, each put back."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import pyro
import torch
from torch import nn
from torch.distributions import Distribution

from pyrovae.errors import Error

Place = tuple[torch.device, torch.dtype]
DTYPES = {"float32": torch.float32, "float64": torch.float64}


def destination(model: nn.Module, device: str | None = None, dtype: str | None = None) -> Place:
    """The device and the precision that are asked for, and otherwise the model's own.

    Raises:
        Error: a device that this machine does not have.
    """
    first = next(chain(model.parameters(), model.buffers()), torch.zeros(()))
    if device is None:
        return first.device, DTYPES[dtype] if dtype else first.dtype
    try:
        torch.zeros((), device=device)
    except (RuntimeError, AssertionError) as failure:
        reason = str(failure).splitlines()[0]
        raise Error(f"the device '{device}' cannot be used here: {reason}", "device") from None
    return torch.device(device), DTYPES[dtype] if dtype else first.dtype


@contextmanager
def placed(
    model: nn.Module, device: str | None = None, dtype: str | None = None
) -> Iterator[Place]:
    """The model on a device in a precision; afterwards its tensors are the ones that they were."""
    place = destination(model, device, dtype)
    data = [(p, p.data, p.grad) for p in model.parameters()]
    buffers = [(module, dict(module._buffers)) for module in model.modules()]
    for parameter, _, _ in data:
        parameter.grad = None
    try:
        model.to(*place)
        yield place
    finally:
        for parameter, tensor, gradient in data:
            parameter.data, parameter.grad = tensor, gradient
        for module, own in buffers:
            module._buffers.update(own)


@contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Every submodule in training or evaluation mode; afterwards each in its own again."""
    modes = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Random numbers from this seed; afterwards the generators go on as if none had been drawn."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        if devices:
            torch.cuda.manual_seed_all(seed)
        yield


class RandomState:
    """The state of torch's generators at one moment, to go back to.

    Args:
        tensors: the states by name; those of now unless given.
    """

    def __init__(self, tensors: dict[str, torch.Tensor] | None = None) -> None:
        if tensors is None:
            cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
            tensors = {"cpu": torch.get_rng_state()}
            tensors |= {f"cuda:{index}": state for index, state in enumerate(cuda)}
        self.tensors = tensors

    def restore(self) -> None:
        """Go back."""
        for device, state in self.tensors.items():
            if device == "cpu":
                torch.set_rng_state(state)
            else:
                torch.cuda.set_rng_state(state, device)


@contextmanager
def unchecked() -> Iterator[None]:
    """Without the checks of Pyro and torch's distributions, for speed and for examining NaN."""
    checks = Distribution._validate_args
    try:
        with pyro.validation_enabled(False):
            yield
    finally:
        Distribution.set_default_validate_args(checks)
