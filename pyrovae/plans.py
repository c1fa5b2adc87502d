"""Plans: one fit each, of one model of a spec with one seed.

A plan is looked at before anything is fitted: its candidates are built and shown the data, and
what cannot be fitted or compared is refused. It is then carried out in this process or in another
one, with the same result: it builds its candidates anew, from its own seed. The seed decides the
first weights and the noise of the training, never the split of the data or the draws of an
evaluation, so that the spread over seeds is that of fitting alone.

Where there is a choice all candidates are fitted, and log p(x) on the validation rows decides.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyrovae.batch import gathered
from pyrovae.checkpoints import UNFINISHED
from pyrovae.data import Data
from pyrovae.errors import Error, Interrupted
from pyrovae.evaluate import select
from pyrovae.evaluate.comparison import refuse_incomparable, refuse_shared
from pyrovae.fitting import ASIDE, fit
from pyrovae.history import FitError, History
from pyrovae.models import Model
from pyrovae.part import check, keywords
from pyrovae.place import destination, seeded
from pyrovae.ranks import ALONE, World
from pyrovae.refusals import check_rows, refuse
from pyrovae.runs import Run, begin, discard_unfinished, is_run, save
from pyrovae.specs import Spec, build
from pyrovae.variants import candidates

Candidates = list[tuple[str, Model]]


@dataclass(frozen=True, eq=False)
class Plan:
    """A fit.

    Args:
        title: the name of the model, with the seed where it is not the model's first.
        path: where in the spec the model's table stands.
        table: all that the fit depends on.
        folder: where the run is saved.
        data: to fit and to judge.
        modules: the folder in which modules that the spec imports may lie.
    """

    title: str
    path: str
    table: dict[str, Any]
    folder: Path
    data: Data
    modules: Path | None = None

    def built(self) -> Candidates:
        """The models that the table declares, each with what was decided for it."""
        models = []
        for label, table in candidates(self.table["model"], self.path):
            with seeded(self.table["train"].get("seed", 0)):
                models.append((label, build(table, self.data.declares, self.path)))
        return models

    def accepted(self, models: Candidates) -> Candidates:
        """The models on the raw scale, after all that could be refused has been looked at."""
        if len(models) > 1 and self.data.validation is None:
            raise Error("a choice is made on validation rows: data.validation is 0", self.path)
        return [(label, self._accepted(model)) for label, model in models]

    def _accepted(self, model: Model) -> Model:
        settings = check(keywords(fit), self.table["train"], "train")
        try:
            with seeded(settings["seed"]):
                destination(model, settings["device"])
                model, train = self.data.wrap(model), gathered(self.data.train)
                method = settings["method"] or model.method
                refuse(model, train, self.data.validation, method, settings)
                check_rows(model, self.data.test, "test")
        except Error as error:
            raise error.under(self.path) from None
        return model

    def fit(self, force: bool = False, world: World = ALONE) -> Run:
        """Fit all candidates, choose on the validation rows, save.

        What is unfinished in the folder is gone on with.

        Args:
            force: replace a run that is there.
            world: of the processes that fit together, of which the first writes.

        Raises:
            Interrupted: the fit was asked to stop; the folder holds a checkpoint.
            FitError: a fit failed; the last good weights are saved, with `failed` in results.json.
            Error: what is unfinished is a fit of something else.
        """
        labels, models = zip(*self.accepted(self.built()), strict=True)
        modules = str(self.modules.resolve()) if self.modules else None
        if world.first:
            asked = {"request": self.request(), "table": self.table, "modules": modules}
            begin(self.folder, asked)
        histories = []
        for index, model in enumerate(models):
            try:
                folder = self.folder / UNFINISHED / str(index) if index else self.folder
                train, validation = self.data.train, self.data.validation
                histories.append(fit(model, train, validation, folder, **self.table["train"]))
            except Interrupted as stop:
                how = f"go on with pyrovae fit --resume {self.folder}"
                raise Interrupted(f"{stop}: {how}", stop.code) from None
            except FitError as error:
                if not world.first:
                    raise
                if error.history.epochs and not is_run(self.folder):
                    self._save(model, error.history, {"failed": str(error)}, force)
                    message = f"{error}, saved in '{self.folder}'"
                    raise FitError(message, error.history) from None
                discard_unfinished(self.folder)
                raise
        best, tried = 0, []
        if len(models) > 1:
            options = {
                k: v
                for k, v in self.table["evaluate"].items()
                if k in ("particles", "method", "seed")
            }
            best, means = select(models, self.data.validation, **options)
            tried = [{"choice": c, "validation": v} for c, v in zip(labels, means, strict=True)]
        results = {
            "seconds": sum(history.seconds for history in histories),
            "chosen": labels[best],
            "tried": tried,
        }
        if not world.first:
            facts = {"stopped": histories[best].stopped, "epochs": len(histories[best].epochs)}
            return Run(self.folder, self.table, models[best], results | facts)
        return self._save(models[best], histories[best], results, force)

    def _save(self, model: Model, history: History, results: dict[str, Any], force: bool) -> Run:
        spec = {key: value for key, value in self.table.items() if key != "model"}
        whole = {
            "seed": self.table["train"].get("seed", 0),
            "request": self.request(),
            "fingerprint": self.data.fingerprint,
            "parameters": model.parameter_count,
            "remarks": model.remarks(),
            "epochs": len(history.epochs),
            "best": history.best,
            "stopped": history.stopped,
            "compiled": history.compiled,
        }
        return save(model, self.folder, history, spec, whole | results, force)

    def request(self) -> dict[str, Any]:
        """What the fit depends on: neither the evaluation nor what is kept on the way."""
        train = {k: v for k, v in self.table["train"].items() if k not in ASIDE}
        table = {key: value for key, value in self.table.items() if key != "evaluate"}
        return table | {"train": train}


def planned(spec: Spec, data: Data, folder: Path) -> dict[str, list[Plan]]:
    """The plans of a spec, which are looked at.

    Raises:
        Error: what `refuse_plans` refuses.
    """
    plans = plans_of(spec, data, folder)
    refuse_plans(plans)
    return plans


def plans_of(spec: Spec, data: Data, folder: Path) -> dict[str, list[Plan]]:
    """For each model of a spec its fits, the first seed first, in folders within a folder."""
    plans: dict[str, list[Plan]] = {name: [] for name in spec.models}
    for name, repeat, run in spec.runs():
        table = spec.table(name, repeat)
        title = f"{name}, seed {table['train']['seed']}" if repeat else name
        plans[name].append(Plan(title, spec.paths[name], table, folder / run, data, spec.folder))
    return plans


def refuse_plans(plans: Mapping[str, Sequence[Plan]]) -> None:
    """Build every model and show it the data; a second seed stands for all others.

    Raises:
        Error: a model that cannot be built, data that it cannot have generated, a choice without
            validation rows, models that cannot be compared, fits that train the same tensors.
    """
    built = {name: fits[0].built() for name, fits in plans.items()}
    refuse_incomparable(_named(built))
    ready = _named({name: plans[name][0].accepted(models) for name, models in built.items()})
    refuse_incomparable(ready)
    again = {plan.title: plan.built() for fits in plans.values() for plan in fits[1:2]}
    refuse_shared(ready | _named(again))


def _named(models: Mapping[str, Candidates]) -> dict[str, Model]:
    return {f"{name} {label}".strip(): m for name, list_ in models.items() for label, m in list_}
