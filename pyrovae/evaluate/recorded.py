r"""Evaluation recorded: what is done to one block of numbers is done to thousands.

An estimator calls one function, such as

    (x, noise) -> log p(x, z) - log q(z | x),

with blocks of the same shape, of a model that does not change. Plain Pyro passes its messages anew
for each of them. `Recorded` keeps the list of operations, see `graphs`, and has Inductor make one
pass through memory of many.

Both cost time that has to be won back, and how many blocks will come is not known to everyone who
asks. So a kind of block is recorded, and later compiled, when as much has been lost without as it
costs: then no evaluation takes more than about twice the least time. What has been lost is counted
in blocks and in numbers written, not by the clock: the same seed is to give the same numbers.
"""

import logging
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyrovae.errors import brief
from pyrovae.graphs import (
    PATIENCE,
    Graph,
    How,
    RecordingError,
    record,
    refuse_hooks,
    taken_apart,
)
from pyrovae.models import Model
from pyrovae.place import RandomState

LONG = 5 * 10**9
"""Numbers of a kind in whose writing Inductor would have saved the seconds that it takes."""
TOLERANCE = 1e-4
Function = Callable[..., tuple[Tensor, ...]]
logger = logging.getLogger("pyrovae")


@dataclass
class _Kind:
    """What became of blocks of one kind.

    Args:
        met: how many there were.
        graph: what is done to them, once that is recorded.
        tried: whether it was.
        due: at which of them it is compiled.
    """

    met: int = 0
    graph: Graph | None = None
    tried: bool = False
    due: int = -1


class Recorded:
    """A function that is recorded for each kind of its arguments; `backends` says what runs it.

    The recorded function draws the random numbers that the function draws, and gives the same
    numbers: to the bit before it is compiled, but for rounding afterwards. Both are compared when
    they are made. The model must not change from one call to the next.

    Args:
        function: of batches, tensors and numbers; gives tensors in a tuple.
        model: what it evaluates.
        how: compiled at once, for the first kind; not even recorded; or by what was lost.
    """

    def __init__(self, function: Function, model: Model, how: How = "auto") -> None:
        self.function, self.model, self.how = function, model, how
        self.kinds: dict[Any, _Kind] = defaultdict(_Kind)
        self.reason = ""

    def __call__(self, *arguments: Any) -> tuple[Tensor, ...]:
        if self.how is False:
            return self.function(*arguments)
        tensors, signature = taken_apart(arguments)
        kind = self.kinds[signature]
        kind.met += 1
        if not kind.tried and (self.how is True or kind.met > PATIENCE):
            kind.tried, kind.graph = True, self._recorded(arguments, tensors)
            if kind.graph:
                at_once = self.how is True and len(self.kinds) == 1
                kind.due = kind.met + (0 if at_once else LONG // kind.graph.written)
        if kind.graph and kind.met == kind.due:
            kind.graph = self._compiled(kind.graph, arguments, tensors)
        return tuple(kind.graph(*tensors)) if kind.graph else self.function(*arguments)

    def _recorded(self, arguments: tuple[Any, ...], tensors: list[Tensor]) -> Graph | None:
        """What is done to the arguments, if recording it gives the same numbers."""
        before = RandomState()
        try:
            refuse_hooks(self.model.modules())
            graph = record(lambda *_: self.function(*arguments), *tensors)
        except RecordingError as refused:
            self._say(logging.INFO, f"Evaluation runs as plain Pyro: {refused}.")
            return None
        finally:
            before.restore()
        if self._agrees(graph, arguments, tensors):
            return graph
        self._say(
            logging.WARNING,
            "Evaluation runs as plain Pyro: recorded, it gives other numbers. The model or guide "
            "reads what is no tensor and changes, such as a number.",
        )
        return None

    def _compiled(self, graph: Graph, arguments: tuple[Any, ...], tensors: list[Tensor]) -> Graph:
        """The graph compiled, or as it is where that fails."""
        try:
            compiled = graph.compiled(*tensors)
            if self._agrees(compiled, arguments, tensors):
                return compiled
            why = "compiled, it gives other numbers"
        except Exception as failure:
            why = brief(failure)
        self._say(logging.INFO, f"Evaluation is replayed, not compiled: {why}.")
        return graph

    def _agrees(self, graph: Graph, arguments: tuple[Any, ...], tensors: list[Tensor]) -> bool:
        """Whether the graph gives the function's numbers from the same random numbers."""
        before = RandomState()
        found = graph(*tensors)
        before.restore()
        wanted = self.function(*arguments)
        before.restore()
        return all(map(_close, found, wanted))

    def _say(self, level: int, sentence: str) -> None:
        """Say, once, why evaluation does not run faster."""
        if sentence != self.reason:
            logger.log(level, sentence)
        self.reason = sentence


def _close(found: Tensor, wanted: Tensor) -> bool:
    """Whether numbers are the same but for rounding, beside the largest, or all 1 at the least."""
    largest = wanted.nan_to_num(0, 0, 0).abs().amax().clamp(min=1).item()
    return torch.allclose(found, wanted, rtol=0, atol=TOLERANCE * largest, equal_nan=True)
