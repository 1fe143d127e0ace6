"""The clocks of what torch.compile compiles, found by the parameters that are trained.

Dynamo runs one compiled graph for every model of a class, and several graphs for one model, so
neither a graph nor a backend knows whose training step it is. The parameters do.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from torch.utils.weak import WeakIdKeyDictionary

from sqcompile.errors import UsageError
from sqcompile.runtime.clock import Clock

_by_parameter: Any = WeakIdKeyDictionary()
"""Parameter -> its clocks, by the seed that was given to torch.compile."""
_without_parameters: dict[int, Clock] = {}


def clock_of(parameters: Sequence[nn.Parameter], seed: int) -> Clock:
    """The clock of the training that these parameters take part in, made when there is none.

    Graphs that read no parameter share one clock for each seed.
    """
    if not parameters:
        return _without_parameters.setdefault(seed, Clock(seed))
    for parameter in parameters:
        clock: Clock | None = _by_parameter.get(parameter, {}).get(seed)
        if clock is not None:
            return clock
    clock = Clock(seed)
    _attach(clock, parameters)
    return clock


def _attach(clock: Clock, parameters: Sequence[nn.Parameter]) -> None:
    for parameter in parameters:
        _by_parameter.setdefault(parameter, {})[clock.seed] = clock


def training_state(model: nn.Module) -> dict[str, Any]:
    """Where the draws of a model under torch.compile(backend="sqcompile") are, as plain data.

    model: the compiled module or the one inside; see load_training_state.
    """
    named = _named(model)
    groups: dict[int, tuple[Clock, list[str]]] = {}
    for name, parameter in named.items():
        for clock in _by_parameter.get(parameter, {}).values():
            groups.setdefault(id(clock), (clock, []))[1].append(name)
    clocks = [
        {"parameters": names, **clock.state([named[name] for name in names])}
        for clock, names in groups.values()
    ]
    clocks += [{"parameters": [], **clock.state([])} for clock in _without_parameters.values()]
    return {"clocks": clocks}


def load_training_state(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Continue the draws from a training_state(), with the seed that it was taken under.

    Raises UsageError when it is none, or names a parameter that the model does not have.
    """
    named = _named(model)
    if set(state) != {"clocks"} or not isinstance(state["clocks"], list):
        raise UsageError(f"this is no state of sqcompile.training_state: {state!r}")
    for entry in state["clocks"]:
        fields = dict(entry)
        names = fields.pop("parameters", [])
        missing = [name for name in names if name not in named]
        if missing:
            raise UsageError(f"the training state is of another model: it has {missing[0]}")
        clock = Clock(0)
        clock.load(fields)
        if names:
            _attach(clock, [named[name] for name in names])
        else:
            _without_parameters[clock.seed] = clock


def _named(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters by their names in the model itself, whether it is compiled or not."""
    return {name.replace("_orig_mod.", ""): value for name, value in model.named_parameters()}
