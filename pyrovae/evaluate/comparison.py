r"""Which model explains the test rows best: same rows, same units, a paired error.

Numbers are only put side by side when they are of one kind: a probability of zeros and ones and a
density of real numbers are not, and no constant turns one into the other. What there is to choose,
such as a mixture's K, is chosen on validation rows, before a test row is looked at.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

from pyrovae.data import Data
from pyrovae.errors import Error
from pyrovae.evaluate.estimators import Estimator
from pyrovae.evaluate.likelihood import LogLikelihood, log_likelihood
from pyrovae.evaluate.paired import Comparison, Entry, averaged, standard_error
from pyrovae.models import Model
from pyrovae.models.model import require_model
from pyrovae.part import validated

T = TypeVar("T", Model, LogLikelihood)


class Seeds(tuple[Model, ...]):
    """The same model fitted from several seeds, for `compare`, which averages them row by row.

    Example:
        >>> import torch
        >>> from pyrovae import Mixture
        >>> fits = Seeds([Mixture(x=(2,)), Mixture(x=(2,))])
        >>> comparison = compare({"mixture": fits}, torch.zeros(3, 2))
        >>> len(comparison["mixture"].results)
        2
    """


@validated
def select(
    candidates: Sequence[Model],
    validation: Any,
    *,
    particles: PositiveInt | None = None,
    method: Estimator | None = None,
    seed: NonNegativeInt = 0,
) -> tuple[int, list[float]]:
    """The candidate with the highest mean log p(x) on validation rows: its index, and all means.

    Args:
        candidates: fitted models.
        validation: rows, shape `(rows, *x)`, raw.
        particles: draws of z for each row; the estimator's own number unless given.
        method: the estimator, where log p(x) is not known.
        seed: of the draws.

    Raises:
        Error: no candidates, or no validation rows to choose on.
    """
    if not candidates:
        raise Error("there is no candidate to choose from")
    if validation is None:
        raise Error("a choice among candidates is made on validation rows: pass validation")
    refuse_incomparable({f"candidate {i + 1}": model for i, model in enumerate(candidates)})
    means = [
        _log_p(model, validation, particles=particles, method=method, seed=seed).mean
        for model in candidates
    ]
    return max(range(len(means)), key=means.__getitem__), means


@validated
def compare(
    models: Mapping[str, Model | Seeds | Sequence[Model]],
    test: Any,
    validation: Any = None,
    *,
    particles: PositiveInt | None = None,
    method: Estimator | None = None,
    seed: NonNegativeInt = 0,
    seconds: dict[str, float] | None = None,
) -> Comparison:
    """Compare fitted models on the same test rows.

    Args:
        models: name to model; a list of models is a choice, made on the validation rows, such as a
            mixture's K; `Seeds([...])` are fits of one model, whose results are averaged.
        test: rows, shape `(rows, *x)`, raw; or the `Data` that `load` gives, for its test rows
            and, unless `validation` is given, its validation rows.
        validation: rows on which choices are made; never the test rows.
        particles: draws of z for each row; the estimator's own number unless given.
        method: the estimator of `log_likelihood`, where log p(x) is not known.
        seed: of the draws.
        seconds: how long each took to fit, for the table.

    Raises:
        Error: no models; models whose numbers cannot be compared; test rows that a model cannot
            have generated.
    """
    if not isinstance(models, Mapping) or not models:
        raise Error("there is no model to compare: pass a dictionary, name to model", "models")
    if isinstance(test, Data) and validation is None:
        validation = test.validation
    chosen: dict[str, str] = {}
    options = {"particles": particles, "method": method, "seed": seed}
    fits = {
        name: _several(model)
        if isinstance(model, (Model, Seeds))
        else (_finalist(name, model, validation, chosen, options),)
        for name, model in models.items()
    }
    every = _every(fits)
    refuse_incomparable(every)
    refuse_shared(every)

    def result(model: Model) -> LogLikelihood:
        rows = test.rows_of(model, "test")[0] if isinstance(test, Data) else test
        return _log_p(model, rows, **options)

    results = {name: [result(model) for model in of_seeds] for name, of_seeds in fits.items()}
    refuse_incomparable(every)
    return ranked(fits, results, seconds or {}, chosen)


def ranked(
    models: Mapping[str, Model | Sequence[Model]],
    results: Mapping[str, LogLikelihood | Sequence[LogLikelihood]],
    seconds: Mapping[str, float],
    chosen: Mapping[str, str],
) -> Comparison:
    """The comparison of results on the same rows, the best first.

    Args:
        models: name to model, or to one for each seed.
        results: of each model, in the same order.
        seconds: to fit each, for one seed.
        chosen: name to what was tried and taken.
    """
    seeds = {name: _several(result) for name, result in results.items()}
    means = {name: averaged(of_seeds) for name, of_seeds in seeds.items()}
    order = sorted(means, key=lambda name: -means[name].mean)
    entries = []
    for name in order:
        d = means[name].value - means[order[0]].value
        fits, took = _several(models[name]), seconds.get(name, math.nan)
        entries.append(Entry(name, fits, seeds[name], float(d.mean()), standard_error(d), took))
    return Comparison(tuple(entries), chosen)


def _log_p(model: Model, rows: Any, **options: Any) -> LogLikelihood:
    """What `log_likelihood` gives, exact where that can be."""
    return log_likelihood(model, rows, **options | ({"method": None} if model.exact else {}))


def _several(value: T | Sequence[T]) -> tuple[T, ...]:
    """One for each seed, where a value stands for itself."""
    return tuple(value) if isinstance(value, Sequence) else (value,)


def _every(fits: Mapping[str, Sequence[Model]]) -> dict[str, Model]:
    """The model of every seed, by a name of its own."""
    every = {}
    for name, of_seeds in fits.items():
        if not of_seeds:
            raise Error(f"the seeds of '{name}' are none: give a model for each")
        for seed, model in enumerate(of_seeds):
            require_model(model)
            every[f"{name}, seed {seed + 1}" if len(of_seeds) > 1 else name] = model
    return every


def refuse_incomparable(models: Mapping[str, Model]) -> None:
    """Refuse models whose numbers are of different kinds, as far as the kinds are known.

    Raises:
        Error: naming two models and what each one's number is.
    """
    tags = {name: model.tag for name, model in models.items() if model.tag.measure != "unknown"}
    for (a, one), (b, other) in itertools.pairwise(tags.items()):
        if one != other:
            raise Error(
                f"'{a}' and '{b}' cannot be compared: "
                f"log p(x) of the one is {one}, of the other {other}"
            )


def refuse_shared(models: Mapping[str, Model]) -> None:
    """Refuse models that train the same tensors: they would be one model under several names.

    Raises:
        Error: naming two of them.
    """
    owner: dict[Tensor, str] = {}
    for name, model in models.items():
        for parameter in model.parameters():
            if owner.setdefault(parameter, name) != name:
                raise Error(
                    f"'{owner[parameter]}' and '{name}' share parameters: give each model, and "
                    "each pair of functions, a network of its own"
                )


def _finalist(
    name: str,
    candidates: Sequence[Model],
    validation: Any,
    chosen: dict[str, str],
    options: dict[str, Any],
) -> Model:
    index, means = select(candidates, validation, **options)
    tried = ", ".join(f"{mean:.2f}" for mean in means)
    chosen[name] = (
        f"candidate {index + 1} of {len(means)} chosen by log p(x) on the validation rows: {tried}"
    )
    return candidates[index]
