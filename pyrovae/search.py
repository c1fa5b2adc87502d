"""The search of a spec: points that Optuna proposes, judged by log p(x) on the validation rows.

The proposals are those of the tree-structured Parzen estimator: a density l is fitted to the best
tenth of the points so far, g to the others, and of some draws of l the one with the highest l / g
is next, where the expected improvement is greatest (Algorithms for Hyper-Parameter Optimization,
Bergstra et al., 2011). The first ten are drawn at random.

Trials are proposed a batch at a time, from the figures of the batches before. So the points follow
from the seed alone, however many fits there are at a time and whichever ends first; and a search
that was stopped is begun anew, proposes the same points, and finds their runs. A fit that fails is
the worst of all. Test rows are not looked at.
"""

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pyrovae.errors import Error
from pyrovae.fits import Say
from pyrovae.report import Table
from pyrovae.runs import Run
from pyrovae.spaces import Point, Range, Search, Space, point
from pyrovae.specs import Spec


@dataclass(frozen=True)
class Trial:
    """A point that was fitted.

    Args:
        name: of the model there.
        point: what was decided.
        validation: the mean log p(x) of the validation rows, minus infinity for a failure.
        failure: what went wrong, empty if nothing.
    """

    name: str
    point: Point
    validation: float
    failure: str = ""


Trials = Mapping[str, list[Trial]]


def searched(
    spec: Spec,
    fits: Callable[[Spec], Mapping[str, Run | Error]],
    judge: Callable[[Run], float],
    say: Say,
) -> Trials:
    """The trials of each model that is searched.

    Args:
        spec: with a search.
        fits: the run of each model of a spec, or what went wrong.
        judge: the figure of a run, which is to be high.
        say: told of each trial.

    Raises:
        Error: Optuna is not installed; all fits of a model failed.
    """
    search: Search = spec.search  # type: ignore[assignment]
    studies = {name: _Study(space, search.seed) for name, space in search.spaces.items()}
    trials: dict[str, list[Trial]] = {name: [] for name in studies}
    for first in range(0, search.trials, search.batch):
        count = min(search.batch, search.trials - first)
        points = {
            name: [point(asked, spec.models[name], study.space) for asked in study.ask(count)]
            for name, study in studies.items()
        }
        found = fits(spec.only(search.spaces).at(points))
        for name, study in studies.items():
            batch = []
            for chosen in points[name]:
                key, _ = spec.point(name, chosen)
                batch.append(trial := _judged(key, chosen, found[key], judge))
                number = f"trial {first + len(batch)} of {search.trials}"
                figure = trial.failure or f"{trial.validation:.2f} nats on the validation rows"
                say(f"{key}: {number}, {figure}")
            study.tell([trial.validation for trial in batch])
            trials[name] += batch
    for name, tried in trials.items():
        if all(trial.failure for trial in tried):
            raise Error(
                f"all {len(tried)} trials of '{name}' failed, the first: {tried[0].failure}"
            )
    return trials


def _judged(name: str, chosen: Point, run: Run | Error, judge: Callable[[Run], float]) -> Trial:
    try:
        if isinstance(run, Error):
            raise run
        figure = judge(run)
    except Error as error:
        return Trial(name, chosen, -math.inf, str(error))
    if math.isnan(figure):
        return Trial(name, chosen, -math.inf, "log p(x) is not a number")
    return Trial(name, chosen, figure)


def best(trials: list[Trial]) -> Trial:
    """The trial with the highest figure, of several the first."""
    return max(trials, key=lambda trial: trial.validation)


def verdict(trials: list[Trial]) -> str:
    """What was chosen, and of how many, in words."""
    failed = sum(1 for trial in trials if trial.failure)
    which = f", of which {failed} failed" if failed else ""
    return (
        f"the best of {len(trials)} trials by log p(x) on the validation rows, "
        f"{best(trials).validation:.2f}{which}"
    )


def table(trials: Trials) -> Table:
    """All trials, in the order of their proposal, all digits."""
    rows = [
        (name, number, trial.name, trial.validation, trial.failure)
        for name, tried in trials.items()
        for number, trial in enumerate(tried, 1)
    ]
    return Table(("searched", "trial", "model", "validation", "failed"), rows)


class _Study:
    """What Optuna knows of one model.

    Args:
        space: that is searched.
        seed: of the proposals.
    """

    def __init__(self, space: Space, seed: int) -> None:
        self.optuna, self.space = _optuna(), space
        said = self.optuna.logging.get_verbosity()
        self.optuna.logging.set_verbosity(self.optuna.logging.ERROR)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                sampler = self.optuna.samplers.TPESampler(seed=seed, constant_liar=True)
                self.study = self.optuna.create_study(sampler=sampler, direction="maximize")
        finally:
            self.optuna.logging.set_verbosity(said)
        self.distributions = {".".join(steps): self._of(v) for steps, v in space.items()}
        self.pending: list[Any] = []

    def ask(self, count: int) -> list[Point]:
        """So many points, none of which knows the figures of the others."""
        self.pending = [self.study.ask(self.distributions) for _ in range(count)]
        return [
            {
                steps: self._value(values, trial.params[".".join(steps)])
                for steps, values in self.space.items()
            }
            for trial in self.pending
        ]

    def tell(self, figures: list[float]) -> None:
        """The figures of the points that were asked for last."""
        for trial, figure in zip(self.pending, figures, strict=True):
            self.study.tell(trial, figure)

    def _of(self, values: list[Any] | Range) -> Any:
        known = self.optuna.distributions
        if isinstance(values, list):
            return known.CategoricalDistribution(range(len(values)))
        if values.whole:
            bounds = (int(values.low), int(values.high), values.log, int(values.step or 1))
            return known.IntDistribution(*bounds)
        return known.FloatDistribution(values.low, values.high, values.log, values.step)

    def _value(self, values: list[Any] | Range, found: Any) -> Any:
        return values[found] if isinstance(values, list) else values.rounded(found)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise Error("a search needs Optuna: pip install 'pyrovae[optuna]'") from None
    return optuna
