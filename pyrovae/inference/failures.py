"""Why a fit failed: the first step whose result is not finite, and the first part at fault."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pyro import poutine
from torch import Tensor

from pyrovae.batch import Batch, Rows
from pyrovae.errors import brief

if TYPE_CHECKING:
    from pyrovae.inference.course import Course


def finite(*tensors: Tensor) -> bool:
    """Whether no entry is NaN or infinite."""
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def culprit(course: "Course", rows: Rows) -> str:
    """Take an epoch's steps again, up to the first that fails: its index, and what failed."""
    for batch in course.batches(rows):
        step, before = course.step, course.state()
        try:
            if not finite(course.take(batch, rows), *course.model.parameters()):
                course.load(before)
                return f"step {step}: {_blame(course, batch)}"
        except (RuntimeError, ValueError) as failure:
            return f"step {step}: {brief(failure)}"
    return "in a step that cannot be repeated, as its random numbers are not torch's"


def _blame(course: "Course", batch: Batch) -> str:
    """The first part whose output is not finite, else the first such gradient."""
    model = course.model
    found: list[str] = []

    def watch(name: str) -> Callable[[Any, Any, Any], None]:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and not finite(output):
                found.append(f"'{name}' returned NaN or infinite values")

        return hook

    hooks = [
        module.register_forward_hook(watch(name)) for name, module in model.named_modules() if name
    ]
    guide = poutine.trace(model.guide).get_trace(batch)
    joint = poutine.trace(poutine.replay(model.model, trace=guide)).get_trace(batch)
    for hook in hooks:
        hook.remove()
    for word, trace in (("guide", guide), ("model", joint)):
        for name, site in trace.nodes.items():
            if site["type"] == "sample" and not finite(site["fn"].log_prob(site["value"])):
                found.append(f"the log density of '{name}' in the {word} became NaN or infinite")
    if found:
        return found[0]
    course.engine.elbo.differentiable_loss(model.model, model.guide, batch).backward()
    bad = [
        name for name, p in model.named_parameters() if p.grad is not None and not finite(p.grad)
    ]
    model.zero_grad()
    return (
        f"the gradient of '{bad[0]}' became NaN or infinite"
        if bad
        else "the step itself overflowed: lower the learning rate"
    )
