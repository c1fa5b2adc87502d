"""What happened in a fit, and the weights that it ends at.

The bound on rows that were not trained on estimates how good the model is for new ones; it rises,
and falls again once the model learns its training rows by heart, so a fit by SVI ends at the
weights where it was highest. A running mean of the weights over the steps lies closer to the
optimum than the last step does; a fit that has one judges it, and ends at it.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from pyrovae.batch import Rows
from pyrovae.errors import Error
from pyrovae.evaluate.parts import parts
from pyrovae.inference import Epoch, State, weights
from pyrovae.models import Model
from pyrovae.progress import Bar
from pyrovae.ranks import ALONE, World

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class History:
    """What happened in a fit.

    Args:
        epochs: in order; of several restarts, with the best one's figures at each.
        best: the index of the epoch whose weights the model has.
        stopped: why the fit ended: `finished`, `converged`, `early stopping` or `failed`.
        seconds: of the whole fit, restarts included.
        compiled: what ran the steps of SVI: `inductor`, `replay` for recorded ones, or `no`.
        remark: why they did not run faster, where something stood in the way.
    """

    epochs: tuple[Epoch, ...]
    best: int
    stopped: str
    seconds: float
    compiled: Literal["no", "replay", "inductor"] = "no"
    remark: str = ""

    def __str__(self) -> str:
        if not self.epochs:
            return "failed in the first epoch"
        kept = self.epochs[self.best]
        judged = (
            "" if math.isnan(kept.validation) else f", {kept.validation:.2f} on validation rows"
        )
        return (
            f"{self.stopped} after {len(self.epochs)} epochs in {self.seconds:.1f} s, "
            f"bound {-kept.loss:.2f} nats on training rows{judged} (epoch {self.best + 1})"
        )

    def plot(self) -> "Axes":
        """The bound on training and validation rows against the epoch."""
        from pyrovae.plots import history

        return history(self)


class FitError(Error):
    """A fit that failed; the model has the last good weights.

    Args:
        history: up to the failure.
    """

    def __init__(self, message: str, history: History) -> None:
        super().__init__(message)
        self.history = history


class Watch:
    """Judges the epochs of a fit, and keeps the weights that it is to end at.

    Args:
        model: that is fitted.
        held_out: validation rows.
        bar: to be shown the loss.
        patience: the fit stops after so many epochs without a higher bound.
        selects: whether it ends at the weights of the best epoch, not of the last.
        averaged: a context in which the model has the weights to be judged, if not its own.
        sample: training rows whose bound is taken apart where there are no validation rows.
        pace: that is done after every so many epochs.
        world: of the processes that fit together.
    """

    def __init__(
        self,
        model: Model,
        held_out: Rows | None,
        bar: Bar,
        *,
        patience: int | None = None,
        selects: bool = True,
        averaged: Callable[[], AbstractContextManager[Any]] | None = None,
        sample: Rows | None = None,
        pace: int = 1,
        world: World = ALONE,
    ) -> None:
        self.model, self.held_out, self.bar, self.patience = model, held_out, bar, patience
        self.selects, self.averaged = selects and held_out is not None, averaged
        self.sample, self.pace, self.world = sample, pace, world
        self.seen: list[Epoch] = []
        self.best, self.kept = 0, dict[str, Tensor]()

    def follow(
        self, passes: Iterator[Epoch], heard: Callable[[Epoch], None] | None = None
    ) -> History:
        """Run the epochs, and end at the weights to be kept.

        Args:
            passes: the epochs.
            heard: told each, judged.

        Raises:
            FitError: with what went wrong in them.
        """
        stopped = "finished"
        try:
            for epoch in passes:
                judged = self._judged(epoch)
                if heard:
                    heard(judged)
                if self.patience and judged.index - self.best >= self.patience:
                    stopped = "early stopping"
                    break
        except Error as error:
            raise FitError(str(error), self._history("failed")) from None
        finally:
            if self.kept:
                self.model.load_state_dict(self.kept)
        return self._history(stopped)

    def _judged(self, epoch: Epoch) -> Epoch:
        """The epoch with the bound on validation rows, and its parts."""
        with self.averaged() if self.averaged else nullcontext():
            if self.held_out is not None:
                figures = parts(self.model, self.held_out, world=self.world)
                epoch = _with(replace(epoch, validation=figures.pop("bound")), figures)
            elif self.sample is not None and epoch.index % self.pace == 0:
                epoch = self._taken_apart(epoch, self.sample)
            self._see(epoch)
            if self.best == epoch.index and (self.selects or self.averaged):
                self.kept = weights(self.model)
        self.bar.show(epoch.loss)
        return epoch

    def _taken_apart(self, epoch: Epoch, sample: Rows) -> Epoch:
        """The epoch with the parts of the bound on training rows, of a model that has them."""
        try:
            figures = parts(self.model, sample, world=self.world)
        except Error:  # a latent of all rows at once, which has no part in one of them
            self.sample = None
            return epoch
        return _with(epoch, {name: f for name, f in figures.items() if name != "bound"})

    def _see(self, epoch: Epoch) -> None:
        self.seen.append(epoch)
        if not self.selects or _rank(epoch) > _rank(self.seen[self.best]):
            self.best = epoch.index

    def _history(self, stopped: str) -> History:
        return History(tuple(self.seen), self.best, stopped, 0.0)

    def state(self) -> State:
        """What was seen and kept, for a checkpoint."""
        tensors = {f"kept/{name}": tensor for name, tensor in self.kept.items()}
        return State(tensors, {"seen": [asdict(epoch) for epoch in self.seen]})

    def load(self, state: State) -> None:
        """Go on from a state."""
        self.kept = state.below("kept")
        for epoch in state.values["seen"]:
            self._see(Epoch(**epoch))


def _with(epoch: Epoch, figures: Mapping[str, float]) -> Epoch:
    return replace(epoch, figures={**epoch.figures, **figures})


def _rank(epoch: Epoch) -> tuple[float, int]:
    """What makes one epoch better than another: a higher validation bound, else being later."""
    value = epoch.validation
    return (-math.inf, epoch.index) if math.isnan(value) else (value, -epoch.index)
