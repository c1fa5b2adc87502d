r"""All that can be asked of a fitted model, as one report that a reviewer could read.

    likelihood    how large log p(x) is, and how sure that is
    annealing     whether annealing finds more than the draws of the guide did
    sandwich      whether annealing can be trusted: log p(x) of simulated rows between two bounds
    guide         whether the guide is good, and otherwise whether encoder or family limits it
    latent        whether and how the latent is used
    calibration   whether the guide is the posterior, on rows that the model simulates
    prediction    whether rows look like draws of the model, entry by entry
    samples       whether draws of the model look like rows, all entries at once

A question that a model cannot be asked is left out of the report with the reason. How much work
each of them is, is declared by a depth: `likelihood` asks the first alone, `quick` is for while
one works, `standard` for a result, `thorough` for a paper.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch

from pyrovae import plots
from pyrovae.batch import Batch, as_batch
from pyrovae.errors import Error
from pyrovae.evaluate import (
    LogLikelihood,
    calibrate,
    grade_guide,
    grade_samples,
    latent_use,
    log_likelihood,
    log_weights,
    predictive_check,
    sandwich,
)
from pyrovae.evaluate.estimators import AIS
from pyrovae.evaluate.paired import standard_error
from pyrovae.evaluate.samplers import HMC
from pyrovae.evaluate.weights import BLOCK
from pyrovae.files import write
from pyrovae.models import Model
from pyrovae.models.model import require_model
from pyrovae.part import unknown
from pyrovae.place import destination, in_mode, seeded
from pyrovae.progress import progress_bar
from pyrovae.report import png, uncertain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Depth = Literal["likelihood", "quick", "standard", "thorough"]


@dataclass(frozen=True)
class Effort:
    """How much work an assessment is.

    Args:
        annealed: rows whose latents are moved: by annealing, and by chains for the guide.
        temperatures: of annealing.
        draws: of each chain.
        particles: draws of the guide for each row that grades it.
        rows: rows for all other questions.
    """

    annealed: int
    temperatures: int
    draws: int
    particles: int
    rows: int


EFFORTS = {
    "quick": Effort(annealed=20, temperatures=100, draws=50, particles=200, rows=200),
    "standard": Effort(annealed=50, temperatures=400, draws=250, particles=1000, rows=500),
    "thorough": Effort(annealed=100, temperatures=1000, draws=1000, particles=5000, rows=2000),
}
CHAINS = 16
"""Chains of a row in annealing."""
SHARED = ("seed", "device", "dtype")
"""Settings of the evaluation that hold for all questions."""


@dataclass(frozen=True, eq=False)
class Annealed:
    """log p(x) by annealing beside the estimate by draws of the guide, for the same rows.

    Args:
        result: by annealing.
        value: the other estimate of log p(x) of these rows, `(rows,)`.
    """

    result: LogLikelihood
    value: Any

    @property
    def more(self) -> float:
        """How much more annealing finds, the mean over rows in nats."""
        return float((self.result.value - self.value).mean())

    @property
    def verdict(self) -> str:
        """Whether draws of the guide are enough, in a sentence."""
        se = standard_error(self.result.value - self.value)
        rows = f"the same {len(self.value)} rows"
        if self.more > max(0.1, 2 * self.result.mean_mcse):
            return (
                f"annealing finds {uncertain(self.more, se)} nats more for {rows}: the bound is "
                "too low by as much; take log p(x) by ais, or more particles"
            )
        if self.more < -max(0.1, 2 * self.result.mean_mcse):
            return (
                f"annealing finds {uncertain(-self.more, se)} nats less for {rows}: it has too "
                "few temperatures to tell more than draws of the guide"
            )
        return f"annealing finds the same for {rows}, a difference of {uncertain(self.more, se)}"

    def summary(self) -> dict[str, Any]:
        """The figures, as they are written to results.json."""
        return self.result.summary() | {"more": self.more, "verdict": self.verdict}

    def __str__(self) -> str:
        return f"{self.result}\n{self.verdict}"


@dataclass(frozen=True)
class Question:
    """One part of an assessment.

    Args:
        title: in words.
        ask: the function that answers.
        runs: how often the model is run on how many rows times particles; a gradient is counted
            as three runs.
    """

    title: str
    ask: Callable[[], Any]
    runs: tuple[tuple[float, float], ...]


@dataclass(frozen=True, eq=False)
class Assessment:
    """What was found, question by question.

    Args:
        title: what was assessed, in words.
        depth: how deeply.
        found: the answers by name, of which `likelihood` is always there.
        left_out: the reasons for questions without an answer, by name.
        titles: the questions in words, by name.
        tree: draws and figures of some rows for ArviZ, if there are any.
    """

    title: str
    depth: Depth
    found: Mapping[str, Any]
    left_out: Mapping[str, str]
    titles: Mapping[str, str]
    tree: Any = None

    @property
    def log_likelihood(self) -> LogLikelihood:
        """Log p(x) of the test rows."""
        found: LogLikelihood = self.found["likelihood"]
        return found

    def summary(self) -> dict[str, Any]:
        """The figures, as they are written to results.json."""
        found = {name: answer.summary() for name, answer in self.found.items()}
        reasons = {name: {"left_out": reason} for name, reason in self.left_out.items()}
        return {"depth": self.depth, **found, **reasons}

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        """The page, with the figure in its last line."""
        if self.depth != "likelihood":
            yield from _headed(f"{self.title}: {self.depth} evaluation", "=")
        for name, title in self.titles.items():
            if name in self.left_out:
                yield from (*_headed(title), f"left out: {self.left_out[name]}", "")
            elif name != "likelihood" and name in self.found:
                yield from (*_headed(title), str(self.found[name]), "")
        figure = self.log_likelihood
        if self.depth != "likelihood":
            yield from _headed(self.titles["likelihood"])
            bounds = (f"{bound:.2f} (K = {k})" for k, bound in figure.bounds.items())
            yield f"bounds: {', '.join(bounds)}; jackknife {figure.jackknife.mean():.2f} nats"
        elbo = figure.elbo.mean()
        yield f"{figure.bits_per_dim:.3f} bits for each of {figure.dimensions} dimensions" + (
            "" if math.isnan(elbo) else f", ELBO {elbo:.2f} nats"
        )
        yield str(figure)

    def write(self, folder: Path) -> None:
        """Write the page, the tree and the plots: evaluation.txt, results.nc, plots/*.png."""
        write(folder / "evaluation.txt", f"{self}\n")
        if self.tree is not None:
            self.tree.to_netcdf(folder / "results.nc", engine="h5netcdf")
        (folder / "plots").mkdir(exist_ok=True)
        for name, draw in PLOTS.items():
            if name in self.found and (figure := draw(self.found[name])):
                write(folder / "plots" / f"{name}.png", png(figure))


def _headed(title: str, rule: str = "-") -> tuple[str, ...]:
    return title, rule * len(title), ""


def assess(
    model: Model,
    test: Any,
    train: Any = None,
    *,
    depth: Depth = "quick",
    settings: Mapping[str, Any] | None = None,
    title: str = "",
    say: Callable[[str], None] = lambda _: None,
    progress: bool = True,
) -> Assessment:
    """All that can be asked of a fitted model.

    Args:
        model: a fitted model; it is as it was, to the bit, afterwards.
        test: rows that it was not fitted to, shape `(rows, *x)`, raw.
        train: the rows that it was fitted to, to look for copies of them among samples.
        depth: `likelihood`, `quick`, `standard` or `thorough`; see `pyrovae.assessment`.
        settings: keyword arguments of `log_likelihood`, of which seed, device and dtype are those
            of all questions.
        title: what is assessed, in words; the kind of the model unless given.
        say: told how long it will take.
        progress: whether a bar is shown, in a terminal.

    Raises:
        Error: rows that the model cannot have generated.
    """
    require_model(model)
    if depth not in get_args(Depth):
        raise Error(unknown("depth", depth, get_args(Depth)), "depth")
    settings, batch = dict(settings or {}), as_batch(test)
    model.check(batch.to(*destination(model)))
    questions = _questions(model, batch, train, depth, settings)
    seconds = _seconds(model, batch, questions)
    if depth != "likelihood":
        say(f"{depth} evaluation: about {_duration(sum(seconds.values()))}")
    found: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    with progress_bar("evaluation", progress and depth != "likelihood") as bar:
        bar.begin(max(1, round(sum(seconds.values()))))
        for name, question in questions.items():
            bar.name(question.title)
            try:
                found[name] = question.ask()
            except Error as error:
                if name == "likelihood":
                    raise
                left_out[name] = str(error)
            bar.advance(round(seconds[name]))
    tree = found.pop("tree", None)
    titles = {name: question.title for name, question in questions.items()}
    return Assessment(title or model.kind, depth, found, left_out, titles, tree)


def _questions(
    model: Model, batch: Batch, train: Any, depth: Depth, settings: Mapping[str, Any]
) -> dict[str, Question]:
    """The questions of a depth by name, in the order in which they are asked."""
    k = settings.get("particles") or 1000
    n = min(settings.get("rows") or len(batch), len(batch))

    def likelihood(rows: Batch = batch) -> LogLikelihood:
        return log_likelihood(model, rows, **settings)

    first = Question("How large is log p(x)?", likelihood, ((n * k / BLOCK, BLOCK),))
    if depth == "likelihood":
        return {"likelihood": first}
    effort = EFFORTS[depth]
    same: dict[str, Any] = {name: settings[name] for name in SHARED if name in settings}
    moved, many = batch[: effort.annealed], batch[: effort.rows]
    few = moved[: max(2, len(moved) // 2)]
    ais, chains = AIS(temperatures=effort.temperatures), HMC(warmup=max(100, effort.draws))

    def annealing() -> Annealed:
        _refuse_known(model)
        found = log_likelihood(model, moved, method=ais, particles=CHAINS, **same)
        return Annealed(found, likelihood(moved).value)

    def bounds() -> Any:
        _refuse_known(model)
        return sandwich(model, few, method=ais, particles=CHAINS, **same)

    def guide() -> Any:
        _refuse_known(model)
        options: dict[str, Any] = {"particles": effort.particles, "draws": effort.draws}
        return grade_guide(model, moved, sampler=chains, **options, **same)

    def tree() -> Any:
        from pyrovae.arviz import to_arviz

        return to_arviz(model, moved, particles=k, rows=None, **same)

    def samples() -> Any:
        return grade_samples(model, batch, train, rows=max(20, effort.rows), **same)

    moves = 3.6 * ais.leapfrogs * effort.temperatures
    steps = 3 * chains.leapfrogs * (chains.warmup + effort.draws)
    some = ((len(many) * 100 / BLOCK, BLOCK),)
    return {
        "likelihood": first,
        "annealing": Question(
            "Does annealing find more of it?", annealing, ((moves, CHAINS * len(moved)),)
        ),
        "sandwich": Question(
            "Can annealing be trusted?", bounds, ((2 * moves, CHAINS * len(few)),)
        ),
        "guide": Question(
            "Is the guide good?", guide, ((1000, 16 * len(moved)), (steps, 8 * len(moved)))
        ),
        "latent": Question(
            "Is the latent used?",
            lambda: latent_use(model, many, **same),
            (*some, (len(many) ** 2 / BLOCK, BLOCK)),
        ),
        "calibration": Question(
            "Is the guide the posterior?", lambda: calibrate(model, many, **same), some
        ),
        "prediction": Question(
            "Do rows look like draws, entry by entry?",
            lambda: predictive_check(model, many, **same),
            some,
        ),
        "samples": Question("Do draws look like rows, all entries at once?", samples, some),
        "tree": Question("Draws for ArviZ", tree, ((len(moved) * 8000 / BLOCK, BLOCK),)),
    }


def _refuse_known(model: Model) -> None:
    if model.exact:
        raise Error("log p(x) and p(z | x) of this model are known, nothing has to be estimated")


@torch.no_grad()
def _seconds(model: Model, batch: Batch, questions: Mapping[str, Question]) -> dict[str, float]:
    """About how long each question takes, from the time of one small and one large run."""
    if len(questions) == 1:
        return dict.fromkeys(questions, 1.0)
    with in_mode(model, False), seeded(0):
        small, large = (
            min(_timed(model, batch[:16], particles) for _ in range(3))
            for particles in (1, max(1, BLOCK // min(16, len(batch))))
        )
    each = max(large - small, 0.0) / BLOCK
    return {
        name: 0.5 + sum(runs * (small + each * size) for runs, size in question.runs)
        for name, question in questions.items()
    }


def _timed(model: Model, rows: Batch, particles: int) -> float:
    began = time.perf_counter()
    log_weights(model, rows, particles)
    return time.perf_counter() - began


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def _pit(check: Any) -> "Figure":
    from matplotlib import pyplot

    figure: Figure = plots.pit(check).viz["figure"].item()
    pyplot.close(figure)
    return figure


PLOTS: Mapping[str, Callable[[Any], Any]] = {
    "guide": lambda grade: plots.guide_grade(grade).figure,
    "latent": lambda use: plots.latent_use(use).figure,
    "calibration": _pit,
    "prediction": _pit,
    "samples": lambda grade: grade.memorisation and plots.memorisation(grade.memorisation).figure,
}
"""What is drawn of the answers."""
