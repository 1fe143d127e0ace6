"""One graph of op-table calls, compiled for this CPU as a training step is."""

from collections.abc import Callable

from torch import Tensor, fx

from sqcompile.backends import targets
from sqcompile.backends.cpu.build import build
from sqcompile.backends.lower import KernelRecord, lower, unsupported
from sqcompile.errors import UnsupportedOpError
from sqcompile.runtime.executable import Executable

MADE: dict[str, KernelRecord] = {}
"""Every kernel that `compiled` has made in this process, once a spec."""


def compiled(graph: fx.GraphModule) -> Callable[..., list[Tensor]]:
    """Call it with tensors. Raises UnsupportedOpError when the target lacks a kernel."""
    return executable(graph).function("main")


def executable(graph: fx.GraphModule) -> Executable:
    """The code of a graph; `machine()["main"]` of it takes tensors unchecked."""
    target = targets.get("cpu")
    missing = unsupported(graph, target)
    if missing:
        raise UnsupportedOpError("; ".join(f"{one.op}: {one.reason}" for one in missing))
    lowered = lower({"main": graph}, target)
    for record in lowered.kernels:
        MADE.setdefault(f"{record.name} {record.spec.digest}", record)
    return Executable(build(lowered.module, target))


def traced(function: Callable[..., object], *examples: Tensor) -> fx.GraphModule:
    """The graph of a function of op-table calls, with the metadata that lowering reads."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(one) for one in examples]
        return make_fx(function, tracing_mode="fake")(*fakes)
