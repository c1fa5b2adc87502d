r"""Graphs: a function of tensors, run once and kept as the flat list of its operations.

A Pyro program is Python: handlers pass messages, distributions are made and asked for densities,
autograd walks back through all of it, at every step anew and to the same end. What touches numbers
is a list of some hundred tensor operations,

    (loss, *gradients) = f(parameters, batch, whatever else is read) .

`record` runs a function under torch's tracer of operations and keeps that list. The graph reads
and updates the very tensors that the function did (the running statistics of a batch norm, a
weight in a 0-d tensor), and draws new random numbers at each call from the same generator in the
same order: called in the same state it gives the same bits.

A list is the whole truth only where the values of tensors do not decide what is done. So a number
taken out of a tensor stays a tensor here, and where Python needs it after all, for a branch or a
shape, recording is refused.
"""

import copy
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import BuiltinFunctionType, MethodDescriptorType
from typing import Any, Literal

import pyro.util
import torch
from pyro.infer.util import Dice
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode

from pyrovae.batch import Batch
from pyrovae.errors import brief
from pyrovae.formulas import FORMULAS
from pyrovae.products import routed

TORCH = Path(torch.__file__).parent
ISNAN = pyro.util.torch_isnan
aten = torch.ops.aten
How = Literal["auto", True, False]
"""Whether a graph is compiled: where that pays, at any price, or not even recorded."""
PATIENCE = 30
"""About as many steps as recording costs: what is over before has lost nothing."""


class RecordingError(Exception):
    """What cannot be recorded: the reason, as the end of a sentence."""


@dataclass(frozen=True, eq=False)
class Graph:
    """A recorded function.

    Args:
        call: a function of the arguments and then of what is read.
        read: the tensors that it reads besides its arguments, and changes in place if it does.
        operations: the list itself.
    """

    call: Callable[..., Sequence[Any]]
    read: tuple[Tensor, ...]
    operations: fx.Graph

    @torch.no_grad()
    def __call__(self, *arguments: Tensor) -> Sequence[Any]:
        return self.call(*arguments, *self.read)

    @property
    def written(self) -> int:
        """The numbers that the operations write, one after the other."""
        made = (
            node.meta.get("val")
            for node in self.operations.nodes
            if node.op == "call_function" and not getattr(node.target, "is_view", True)
        )
        return sum(value.numel() for value in made if isinstance(value, Tensor))

    @torch.no_grad()
    def compiled(self, *arguments: Tensor) -> "Graph":
        """The graph compiled by Inductor, with torch's random numbers in place of Inductor's."""
        with warnings.catch_warnings(action="ignore"):
            from torch._inductor.compile_fx import compile_fx  # takes as long as torch itself
            from torch._inductor.decomposition import select_decomp_table

            call: Any = compile_fx(
                fx.GraphModule({}, routed(_for_inductor(copy.deepcopy(self.operations)))),
                [*arguments, *self.read],
                config_patches={"fallback_random": True},
                decompositions=select_decomp_table() | ({} if arguments[0].is_cuda else FORMULAS),
            )
        return replace(self, call=call)

    @torch.no_grad()
    def captured(self, *arguments: Tensor) -> "Graph":
        """The graph as one launch on a CUDA device, where launching each kernel takes longest.

        Arguments that are parameters are read where they are, others are copied to a place of
        their own. Results are overwritten by the next call, but for the first, which is copied.
        """
        held = [a if a.requires_grad else a.clone() for a in arguments]
        side = torch.cuda.Stream(held[0].device)
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self(*held)
        torch.cuda.current_stream().wait_stream(side)
        launch = torch.cuda.CUDAGraph()
        with torch.cuda.graph(launch):
            first, *others = self(*held)

        def call(*tensors: Tensor) -> Sequence[Any]:
            for place, tensor in zip(held, tensors, strict=False):
                if place is not tensor:
                    place.copy_(tensor, non_blocking=True)
            launch.replay()
            return first.clone(), *others

        return replace(self, call=call)


def taken_apart(arguments: Iterable[Any]) -> tuple[list[Tensor], Any]:
    """The tensors in arguments, batches among them, and what else a graph of them depends on."""
    entries = [
        entry
        for value in arguments
        for entry in (value.parts if isinstance(value, Batch) else (value,))
    ]
    return [entry for entry in entries if isinstance(entry, Tensor)], tuple(
        (entry.shape, entry.stride(), entry.dtype, entry.device)
        if isinstance(entry, Tensor)
        else entry
        for entry in entries
    )


def refuse_hooks(modules: Iterable[nn.Module]) -> None:
    """Refuse modules with hooks, which are Python that a graph would not call."""
    if any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in modules):
        raise RecordingError("modules have hooks, which a recording would not call")


def record(function: Callable[..., Any], *arguments: Tensor) -> Graph:
    """Run a function once, and keep its operations.

    Args:
        function: of these arguments; returns tensors in a tuple.
        arguments: tensors whose values the graph will be called with.

    Raises:
        RecordingError: the values of tensors decide what is done.
    """

    def seen(*arguments: Tensor) -> Any:
        with _Tensors():
            return function(*arguments)

    try:
        with _without_warnings_of_nan():
            module = make_fx(seen)(*arguments)
    except Exception as failure:
        raise RecordingError(_reason(failure)) from failure
    _refuse_shapes_from_values(module.graph)
    read = _placeholders_of_constants(module)
    _drop_what_is_no_number(module.graph)
    module.graph.eliminate_dead_code()
    return Graph(_python(module.graph), read, module.graph)


def _python(graph: fx.Graph) -> Callable[..., Sequence[Any]]:
    """The graph as Python code, by torch's own functions: they are called in half the time."""
    graph = copy.deepcopy(graph)
    for node in graph.nodes:
        gaps = any(isinstance(entry, list) and None in entry for entry in node.args)
        if getattr(node.target, "namespace", "") == "aten" and not gaps:
            name = node.target._opname
            known = getattr(torch, name, getattr(Tensor, name, None))
            if isinstance(known, BuiltinFunctionType | MethodDescriptorType):
                node.target = known
    return fx.GraphModule({}, graph).forward


def _for_inductor(graph: fx.Graph) -> fx.Graph:
    """The graph in the form that Inductor makes the best of."""
    return _with_biases_apart(_with_coins_of_torch(graph))


def _with_biases_apart(graph: fx.Graph) -> fx.Graph:
    """The graph with the bias of a layer over particles added by the pass that comes next.

    A product with a bias begins as a copy of the bias for every row of the result.
    """
    for node in graph.find_nodes(op="call_function", target=aten.addmm.default):
        bias, *factors = node.args
        user, *others = node.users
        width = node.meta["val"].shape[1:]
        apart = user.target is aten.view.default and user.meta["val"].shape[-1:] == width
        if apart and not (others or node.kwargs) and bias.meta["val"].shape == width:
            node.target, node.args = aten.mm.default, tuple(factors)
            with graph.inserting_after(user):
                whole = graph.call_function(aten.add.Tensor, (user, bias))
            user.replace_all_uses_with(whole, lambda other, whole=whole: other is not whole)
    return graph


def _with_coins_of_torch(graph: fx.Graph) -> fx.Graph:
    """The graph with coins thrown in place, which Inductor leaves to torch, with its stream."""
    for node in graph.find_nodes(op="call_function", target=aten.bernoulli.default):
        with graph.inserting_before(node):
            coins = graph.call_function(aten.empty_like.default, node.args)
        node.target, node.args = aten.bernoulli_.Tensor, (coins, *node.args)
    return graph


class _Tensors(TorchFunctionMode):
    """Numbers that are taken out of tensors stay tensors: in float64, as Python's are.

    Where Pyro sums over states it drops those of probability 0, if there are any; here they are
    put to 0, which is the same sum.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is Tensor.item:
            value = args[0].detach()
            return value.double() if value.is_floating_point() else value
        if func in (Tensor.numpy, Tensor.__array__, Tensor.tolist):
            raise RecordingError("numpy or a list takes the values of a tensor")
        if func in (Tensor.__bool__, Tensor.masked_select) and _called_by(Dice):
            return func is Tensor.masked_select and torch.where(args[1], args[0], 0.0)
        return func(*args, **(kwargs or {}))


def _called_by(owner: Any) -> bool:
    """Whether the function of tensors that is looked at was called by Pyro's sum over states."""
    return sys._getframe(2).f_code is owner.compute_expectation.__code__


@contextmanager
def _without_warnings_of_nan() -> Iterator[None]:
    """Without Pyro's look at each loss for NaN, which is a branch on its value."""
    pyro.util.torch_isnan = lambda _: False
    try:
        yield
    finally:
        pyro.util.torch_isnan = ISNAN


def _reason(failure: Exception) -> str:
    """Why a function was not recorded, and where in it."""
    where = ""
    for frame in traceback.extract_tb(failure.__traceback__):
        path = Path(frame.filename)
        within = not path.is_relative_to(TORCH) or "distributions" in path.parts
        if within and path != Path(__file__):
            where = f" (in {frame.name}, {path.name}:{frame.lineno})"
    if "tracing tensor" in str(failure):
        return f"Python decides by the value of a tensor{where}"
    return f"{failure if isinstance(failure, RecordingError) else brief(failure)}{where}"


def _refuse_shapes_from_values(graph: fx.Graph) -> None:
    """Refuse results that have as many entries as the values of arguments or noise say."""
    varying: set[fx.Node] = set()
    for node in graph.nodes:
        tags = getattr(node.target, "tags", ())
        if torch.Tag.dynamic_output_shape in tags and not varying.isdisjoint(_sizing(node)):
            raise RecordingError(
                f"the values of tensors decide a shape, that of {node.target._opname}"
            )
        random = node.op == "placeholder" or torch.Tag.nondeterministic_seeded in tags
        if random or not varying.isdisjoint(node.all_input_nodes):
            varying.add(node)


def _sizing(node: fx.Node) -> Sequence[fx.Node]:
    """The tensors whose values decide the shape of what an operation gives."""
    arguments: Any = node.args
    if node.target is aten.index.Tensor:
        masks = (index for index in arguments[1] if index is not None)
        return [mask for mask in masks if mask.meta["val"].dtype in (torch.bool, torch.uint8)]
    if node.target is aten.masked_select.default:
        return arguments[1:]
    return node.all_input_nodes


def _placeholders_of_constants(module: fx.GraphModule) -> tuple[Tensor, ...]:
    """Make the tensors that a graph holds its last inputs; returns them."""
    graph, held = module.graph, dict[str, fx.Node]()
    *_, last = graph.find_nodes(op="placeholder")
    for node in graph.find_nodes(op="get_attr"):
        if node.target not in held:
            with graph.inserting_after(last):
                last = held[node.target] = graph.placeholder(f"read_{len(held)}")
                last.meta = dict(node.meta)
        node.replace_all_uses_with(held[node.target])
        graph.erase_node(node)
    return tuple(getattr(module, name) for name in held)


def _drop_what_is_no_number(graph: fx.Graph) -> None:
    """Leave out what autograd or a profiler alone needs."""
    for node in reversed(graph.nodes):
        if node.target is aten.detach.default:
            node.replace_all_uses_with(node.args[0])
        if node.target is aten.detach.default or "profiler" in str(node.target):
            graph.erase_node(node)
