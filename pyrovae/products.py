"""Products: large float32 matrix products by the faster of the libraries that torch has for them.

On a CPU torch's `mm` calls MKL, which on processors of other makers can run at half their speed.
oneDNN, which torch brings as well for its linear layers, computes the same product, in float32
throughout; sums are taken in another order, so the last digit can differ.

Which one is faster depends on processor and shape. On Intel's it is MKL, whose time is 0.6 to 1.0
times oneDNN's for layers of 400 units and 32 to 4,096 rows: there nothing is tried, so that runs
repeat to the bit. On others it is found by trying: once for each shape, in some hundredths of a
second; where it is not clearly oneDNN, nothing changes.
"""

import platform
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

WORK = 16_000_000
"""Operations from which on a product is worth a look."""
GAIN, SECONDS = 1.15, 0.05
aten = torch.ops.aten

_library = torch.library.Library("pyrovae", "DEF")
_library.define("product(Tensor a, Tensor b, Tensor? bias) -> Tensor")


@torch.library.impl(_library, "product", "CPU")
def _product(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    """A b + bias by oneDNN."""
    return torch.ops.mkldnn._linear_pointwise(a, b.mT, bias, "none", [], "")


torch.library.register_fake(
    "pyrovae::product", lambda a, b, _: a.new_empty(len(a), b.shape[1]), lib=_library
)


def routed(graph: fx.Graph) -> fx.Graph:
    """The graph, with those products by oneDNN that are faster so."""
    for node in graph.nodes:
        if node.target in (aten.mm.default, aten.addmm.default) and not node.kwargs:
            arguments: Any = node.args
            *bias, a, b = (source.meta["val"] for source in arguments)
            if _can(a, b, *bias) and _gains((a.shape, a.stride()), (b.shape, b.stride())):
                node.target = torch.ops.pyrovae.product.default
                node.args = (*arguments[-2:], arguments[0] if bias else None)
    return graph


def _can(a: Tensor, b: Tensor, bias: Tensor | None = None) -> bool:
    """Whether oneDNN takes this product, and it is large."""
    plain = all(t.dtype == torch.float32 and t.device.type == "cpu" for t in (a, b))
    return plain and 2 * len(a) * b.numel() >= WORK and (bias is None or bias.ndim == 1)


@cache
def _gains(*layouts: Any) -> bool:
    """Whether oneDNN is clearly faster for tensors of these shapes and strides."""
    if not torch.backends.mkldnn.is_available() or "GenuineIntel" in _processor():
        return False
    a, b = (torch.empty_strided(*layout).fill_(0.5) for layout in layouts)
    try:
        return _seconds(lambda: torch.mm(a, b)) > GAIN * _seconds(lambda: _product(a, b, None))
    except (AttributeError, RuntimeError):
        return False


def _processor() -> str:
    """What the system says of the processor, its maker among it."""
    try:
        return Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        return platform.processor()


def _seconds(call: Callable[[], Tensor]) -> float:
    """The shortest of the calls that fit into the time."""
    call()
    found: list[float] = []
    end = time.perf_counter() + SECONDS / 2
    while len(found) < 3 or time.perf_counter() < end:
        began = time.perf_counter()
        call()
        found.append(time.perf_counter() - began)
    return min(found)
