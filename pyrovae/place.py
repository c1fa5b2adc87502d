"""Where and how a model runs for a while: seed, mode, device and precision, each put back."""

import ctypes
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from itertools import chain

import pyro
import torch
from torch import nn
from torch.distributions import Distribution

from pyrovae.errors import Error

Place = tuple[torch.device, torch.dtype]
DTYPES = {"float32": torch.float32, "float64": torch.float64}
FLUSH = 0x8040
"""The bits by which a processor takes subnormal arguments for 0, and gives 0 for such results."""


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


@contextmanager
def flushed() -> Iterator[None]:
    """Subnormal numbers, below 1.2e-38 in float32, count as 0 on all threads of torch.

    A network that is sure of a pixel has gradients that small, and so have the means of Adam
    after it; products of them take up to two hundred times as long. Torch can have them flushed
    on the thread that asks for it, which leaves out those that it shares its work with. Where
    their environments cannot be set from here, nothing is changed: it is done on Linux with
    processors of the x86-64 family.
    """
    if (library := _openmp()) is None:
        yield
        return
    found = _Environment()
    library.fegetenv(ctypes.byref(found))
    wanted = _Environment.from_buffer_copy(found)
    wanted.control |= FLUSH
    library.GOMP_parallel(library.fesetenv, ctypes.byref(wanted), 0, 0)
    try:
        yield
    finally:
        library.GOMP_parallel(library.fesetenv, ctypes.byref(found), 0, 0)


class _Environment(ctypes.Structure):
    """How a thread computes, as the C library has it."""

    _fields_ = (("x87", ctypes.c_char * 28), ("control", ctypes.c_uint32))


@cache
def _openmp() -> ctypes.CDLL | None:
    """The C functions that set this environment and that have all threads call one."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return None
    library = ctypes.CDLL(None)
    names = ("fegetenv", "fesetenv", "GOMP_parallel")
    return library if all(hasattr(library, name) for name in names) else None
