"""A module of one's own as a network: plain torch code, which knows nothing of this package.

    # my_nets.py
    class Encoder(nn.Module):
        def __init__(self, source, target, width=64): ...
        def forward(self, x): ...                        # (rows, *source) -> (rows, *target)

    encoder = { kind = "module", path = "my_nets:Encoder", options = { width = 128 } }

The run that is saved holds the import path and the weights, and no code: `my_nets` has to be
imported before the run is opened.
"""

import inspect
from math import prod
from typing import Annotated, Any

from pydantic import AfterValidator, Field, PlainValidator, WithJsonSchema
from torch import Tensor, nn

from pyrovae.errors import Error, brief
from pyrovae.named import Named, find
from pyrovae.networks.network import Network
from pyrovae.part import Part


def _module(value: Any) -> Named:
    """A class of modules, or the import path of one."""
    if isinstance(value, Named):
        return value
    path = value if isinstance(value, str) else None
    found = find(path) if path else value
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise Error(f"should be an nn.Module class or its 'module:name', got {value!r}")
    if issubclass(found, Part):
        raise Error(f"'{found.__name__}' is a part: name it by its kind")
    return Named(found, path)


def _storable(options: Any) -> Any:
    """Options as they are, if a spec file can hold them."""
    if isinstance(options, (dict, tuple)):
        for value in options.values() if isinstance(options, dict) else options:
            _storable(value)
    elif not isinstance(options, (bool, int, float, str)):
        raise Error(f"should hold numbers, strings, lists and tables only, got {options!r}")
    return options


class Module(Network):
    """A `torch.nn.Module` of one's own, with a row's output of the target's shape, or flat.

    It is made with the options, and with the shapes where it takes arguments that are called
    `source` and `target`. It is called with rows, `(rows, *source)`; no bias of it is started at
    the data.

    Args:
        path: the class, or in a spec its import path, `module:name`, in a module that has been
            imported.
        options: the arguments of the class.
    """

    path: Annotated[Any, PlainValidator(_module), WithJsonSchema({"type": "string"})]
    options: Annotated[dict[str, Any], AfterValidator(_storable)] = Field(default_factory=dict)

    def setup(self, source: tuple[int, ...], target: tuple[int, ...]) -> None:
        self.source, self.target = tuple(source), tuple(target)
        signature = inspect.signature(self.path.value)
        shapes = {"source": self.source, "target": self.target}
        options = {k: v for k, v in shapes.items() if k in signature.parameters} | self.options
        try:
            signature.bind(**options)
        except TypeError as failure:
            raise Error(f"{self.path} cannot be made with these options: {failure}") from None
        try:
            self.module = self.path.value(**options)
        except Exception as failure:
            raise Error(f"{self.path} cannot be made: {brief(failure)}") from failure

    def forward(self, a: Tensor) -> Tensor:
        leading = a.shape[: a.dim() - len(self.source)]
        rows = a.reshape(-1, *self.source)
        output = self.module(rows)
        got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        if got not in ((len(rows), *self.target), (len(rows), prod(self.target))):
            raise Error(
                f"{self.path} gives {got} for rows {tuple(rows.shape)}, not "
                f"{(len(rows), *self.target)}"
            )
        return output.reshape(*leading, *self.target)

    @classmethod
    def examples(cls) -> tuple["Module", ...]:
        return (cls(path=_Affine),)


class _Affine(nn.Module):
    """A module as a user may write one."""

    def __init__(self, source: tuple[int, ...], target: tuple[int, ...]) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(prod(source), prod(target)))

    def forward(self, a: Tensor) -> Tensor:
        return self.layers(a)
