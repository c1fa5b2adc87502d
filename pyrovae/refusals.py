"""What a fit refuses, before anything is done: a mistake costs a sentence, not an hour."""

from collections.abc import Mapping
from typing import Any

from pyrovae.batch import Rows, in_blocks
from pyrovae.errors import Error
from pyrovae.models import Model
from pyrovae.optim import refuse_rates
from pyrovae.part import Part
from pyrovae.place import Place, destination
from pyrovae.ranks import refuse as refuse_processes
from pyrovae.schedules import Schedule
from pyrovae.stored import kept


def rows_on(data: Any, name: str, place: Place) -> Rows:
    """The rows at a place, with the name of the rows in the error."""
    try:
        return kept(data, place[0]).to(*place)
    except Error as error:
        raise error.under(name) from None


def refuse(
    model: Model,
    train: Rows,
    validation: Rows | None,
    method: str,
    settings: Mapping[str, Any],
    processes: int = 1,
) -> None:
    """Refuse what `fit` cannot do, before anything is done.

    Args:
        model: to be fitted.
        train: rows.
        validation: rows, if any.
        method: of the fit.
        settings: arguments of `fit`.
        processes: that fit together.

    Raises:
        Error: rows that the model cannot have generated, too few of them, a method that the model
            has not, what judges by validation rows without any.
    """
    batch_size = settings["batch_size"]
    if processes > 1:
        refuse_processes(processes, len(train), batch_size or 128)
        if method != "svi":
            raise Error(f"{method} runs in one process: leave processes out", "processes")
        if validation is not None and len(validation) < processes:
            raise Error(
                f"{processes} processes are more than the {len(validation)} validation rows: "
                "lower processes",
                "processes",
            )
    model.refuse_training(method)
    for name, rows in (("train", train), ("validation", validation)):
        if rows is not None:
            check_rows(model, rows, name)
    if method != "svi":
        model.expect(train[:1].to(*destination(model)))
    if method != "em" and batch_size and len(train) < batch_size:
        raise Error(
            f"{len(train)} training rows are fewer than a batch of {batch_size}: lower batch_size",
            "train",
        )
    if len(train) < model.least_rows:
        raise Error(
            f"{model.least_rows} components need at least as many rows, got {len(train)}",
            "train",
        )
    refuse_rates(settings.get("rates") or {}, dict(model.named_parameters()))
    if validation is None and (name := _judge(model, settings)):
        raise Error(
            f"{name} judges by validation rows: pass validation, or leave it out",
            "patience" if settings["patience"] else "",
        )


def _judge(model: Model, settings: Mapping[str, Any]) -> str:
    """What looks at bounds on validation rows, if anything does."""
    if settings["patience"]:
        return "early stopping"
    parts = (model, *settings.values())
    modules = (m for part in parts if isinstance(part, Part) for m in part.modules())
    return next((m.kind for m in modules if isinstance(m, Schedule) and m.judges), "")


def check_rows(model: Model, rows: Rows, name: str) -> None:
    """`model.check`, with the name of the rows in the error, and where the block begins."""
    first = 0
    for batch in in_blocks(rows):
        try:
            model.check(batch)
        except Error as error:
            block = "" if len(batch) == len(rows) else f"[{first}:{first + len(batch)}]"
            raise error.under(f"{name}{block}") from None
        first += len(batch)
