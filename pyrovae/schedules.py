"""Schedules: numbers that change while a model is fitted.

The weight of the KL, the learning rate, free bits: each is a number, or a schedule that gives
the number at every moment of a fit. Time is counted in epochs, with the share of the present one
that is done, so that a schedule means the same for any batch size,

    t = epoch + step / steps of an epoch .

A schedule has no state. What depends on how the fit went, such as a learning rate that falls when
the bound stands still, is a function of all bounds on the validation rows so far: so a fit that is
taken up again goes on with the same numbers.

What is recorded once and run again, see `graphs`, reads tensors, not numbers. `Dials` holds each
scheduled number in a tensor without dimensions, and turns them all before a step. The number of a
part of the model is a buffer of that part: it is saved with the weights, and evaluation reads
what it was last.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, ClassVar

import torch
from pydantic import (
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
)
from pydantic_core import core_schema
from torch import Tensor, nn

from pyrovae.errors import Error
from pyrovae.part import Part


@dataclass(frozen=True)
class Now:
    """A moment of a fit.

    Args:
        epoch: since the beginning, fractions included.
        validation: the mean bounds on the validation rows after each epoch that is over.
    """

    epoch: float = 0.0
    validation: tuple[float, ...] = ()


class Schedule(Part):
    """The role of a number that changes. `Linear` is the member to read.

    A member has `forward(now)`, the number at a moment, which depends on nothing else.
    """

    judges: ClassVar[bool] = False
    """Whether it looks at bounds on validation rows, which a fit then needs."""

    def setup(self) -> None:
        """Nothing to make: a schedule has no tensors."""

    @abstractmethod
    def forward(self, now: Now) -> float:
        """The number at a moment."""

    @property
    def least(self) -> float:
        """The smallest number that it ever is, 0 where that is not known."""
        return 0.0

    def _refuse_end_before_begin(self, begin: float, end: float) -> None:
        if end <= begin:
            raise Error(f"ends at epoch {end:g}, before it begins at epoch {begin:g}", "end")


class Constant(Schedule):
    """The same number at all times.

    Args:
        value: the number.
    """

    value: NonNegativeFloat = 1.0

    def forward(self, now: Now) -> float:
        return self.value

    @property
    def least(self) -> float:
        return self.value


class Linear(Schedule):
    """A straight line from one number to another, constant before and after it.

    As a weight of the KL the warm-up of Ladder Variational Autoencoders (Sønderby et al., 2016,
    https://arxiv.org/abs/1602.02282).

    Args:
        initial: the number up to `begin`.
        final: the number from `end` on.
        begin: in epochs.
        end: in epochs.
    """

    initial: NonNegativeFloat = 0.0
    final: NonNegativeFloat = 1.0
    begin: NonNegativeFloat = 0.0
    end: PositiveFloat = 10.0

    def __post_init__(self) -> None:
        self._refuse_end_before_begin(self.begin, self.end)

    def forward(self, now: Now) -> float:
        done = _share(now.epoch, self.begin, self.end)
        return self.initial + (self.final - self.initial) * done

    @property
    def least(self) -> float:
        return min(self.initial, self.final)


class Cosine(Schedule):
    """Half a wave of the cosine from one number to another, constant before and after it.

    SGDR: Stochastic Gradient Descent with Warm Restarts (Loshchilov & Hutter, 2017,
    https://arxiv.org/abs/1608.03983).

    Args:
        initial: the number up to `begin`.
        final: the number from `end` on.
        begin: in epochs.
        end: in epochs.
    """

    initial: NonNegativeFloat = 0.0
    final: NonNegativeFloat = 1.0
    begin: NonNegativeFloat = 0.0
    end: PositiveFloat = 10.0

    def __post_init__(self) -> None:
        self._refuse_end_before_begin(self.begin, self.end)

    def forward(self, now: Now) -> float:
        done = 0.5 - 0.5 * math.cos(math.pi * _share(now.epoch, self.begin, self.end))
        return self.initial + (self.final - self.initial) * done

    @property
    def least(self) -> float:
        return min(self.initial, self.final)


class Cyclical(Schedule):
    """A line from one number to another and a rest there, over and over.

    Cyclical Annealing Schedule: A Simple Approach to Mitigating KL Vanishing (Fu et al., 2019,
    https://arxiv.org/abs/1903.10145).

    Args:
        initial: the number at the beginning of a cycle.
        final: the number at its end.
        period: of a cycle, in epochs.
        share: of a cycle that the line takes.
        end: the epoch from which on the number is `final`, never unless given.
    """

    initial: NonNegativeFloat = 0.0
    final: NonNegativeFloat = 1.0
    period: PositiveFloat = 10.0
    share: Annotated[float, Field(gt=0, le=1)] = 0.5
    end: PositiveFloat | None = None

    def forward(self, now: Now) -> float:
        if self.end is not None and now.epoch >= self.end:
            return self.final
        done = min(now.epoch % self.period / (self.share * self.period), 1.0)
        return self.initial + (self.final - self.initial) * done

    @property
    def least(self) -> float:
        return min(self.initial, self.final)


class Steps(Schedule):
    """A list of numbers, each from an epoch on.

    Args:
        values: the numbers.
        epochs: from which on the second, the third, ... hold: one fewer than there are numbers.
    """

    values: Annotated[tuple[NonNegativeFloat, ...], Field(min_length=1)]
    epochs: tuple[PositiveFloat, ...]

    def __post_init__(self) -> None:
        if len(self.epochs) != len(self.values) - 1:
            raise Error(
                f"{len(self.values)} values change at {len(self.values) - 1} epochs, "
                f"got {len(self.epochs)}",
                "epochs",
            )
        if any(later <= earlier for earlier, later in pairwise(self.epochs)):
            raise Error(f"should rise, got {list(self.epochs)}", "epochs")

    def forward(self, now: Now) -> float:
        return self.values[sum(now.epoch >= epoch for epoch in self.epochs)]

    @property
    def least(self) -> float:
        return min(self.values)

    @classmethod
    def examples(cls) -> Iterable["Steps"]:
        return (cls(values=(1e-2, 1e-3), epochs=(5.0,)),)


class Plateau(Schedule):
    """A number that is reduced when the bound on the validation rows stands still.

    Args:
        initial: the number at the beginning.
        factor: it is multiplied with.
        patience: epochs without a higher bound, after which that happens.
        lowest: the number is never below.
    """

    judges = True

    initial: PositiveFloat = 1e-3
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.5
    patience: PositiveInt = 10
    lowest: NonNegativeFloat = 0.0

    def __post_init__(self) -> None:
        if self.lowest > self.initial:
            raise Error(f"{self.lowest:g} is above initial, {self.initial:g}", "lowest")

    def forward(self, now: Now) -> float:
        value, best, since = self.initial, -math.inf, 0
        for bound in now.validation:
            best, since = (bound, 0) if bound > best else (best, since + 1)
            if since == self.patience:
                value, since = max(value * self.factor, self.lowest), 0
        return value

    @property
    def least(self) -> float:
        return self.lowest


def _share(epoch: float, begin: float, end: float) -> float:
    """How much of the time between two epochs is over, from 0 to 1."""
    return min(max((epoch - begin) / (end - begin), 0.0), 1.0)


class _OrSchedule:
    """Makes pydantic take a schedule, by name, table or object, in place of a number."""

    def __init__(self, number: Any) -> None:
        self.number = number

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        def validate(value: Any, number: Callable[[Any], Any]) -> Any:
            return number(value) if isinstance(value, int | float) else Schedule.from_spec(value)

        of_number = handler.generate_schema(self.number)
        return core_schema.no_info_wrap_validator_function(validate, of_number)

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"anyOf": [handler(schema), {"role": "Schedule"}]}


Quantity = Annotated[float | Schedule, _OrSchedule(NonNegativeFloat)]
"""A number from 0 on, or a schedule."""
Rate = Annotated[float | Schedule, _OrSchedule(PositiveFloat)]
"""A number above 0, or a schedule."""


def held(quantity: float | Schedule, name: str) -> nn.Buffer:
    """The buffer of a part that holds a number above 0, which `Dials.join` finds.

    The part has it as `temperature_now`, if the field is called `temperature`.

    Raises:
        Error: a schedule that comes to 0.
    """
    if isinstance(quantity, Schedule):
        if quantity.least <= 0:
            raise Error("should stay above 0: give the schedule numbers above 0 only", name)
        quantity = quantity(Now())
    return nn.Buffer(torch.tensor(quantity))


class Dials:
    """The scheduled numbers of a fit, in tensors that graphs read and that are changed in place.

    Args:
        device: of the tensors.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = device
        self.held: dict[str, tuple[Schedule, Tensor]] = {}

    def __call__(self, name: str, quantity: float | Schedule) -> float | Tensor:
        """A number as it is, or the tensor that holds what a schedule says.

        Args:
            name: for the log.
            quantity: the number or the schedule.
        """
        if not isinstance(quantity, Schedule):
            return quantity
        value = torch.tensor(quantity(Now()), dtype=torch.float64, device=self.device)
        self.held[name] = quantity, value
        return value

    def join(self, model: nn.Module) -> None:
        """Turn the scheduled numbers of a model's parts as well.

        Args:
            model: on the device and in the precision that it is trained in.
        """
        for path, part in model.named_modules():
            for name in type(part).fields.model_fields if isinstance(part, Part) else ():
                quantity, value = getattr(part, name), getattr(part, f"{name}_now", None)
                if isinstance(quantity, Schedule) and isinstance(value, Tensor):
                    self.held[f"{path}.{name}".lstrip(".")] = quantity, value

    def turn(self, now: Now) -> None:
        """Set every tensor to the number of a moment."""
        for schedule, value in self.held.values():
            value.fill_(schedule(now))

    def read(self) -> dict[str, float]:
        """The numbers by name."""
        return {name: value.item() for name, (_, value) in self.held.items()}
