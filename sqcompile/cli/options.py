"""Options that several commands share."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from sqcompile.cli import completing
from sqcompile.cli.output import Output
from sqcompile.recipe import RECIPES

if TYPE_CHECKING:
    from sqcompile.backends.targets import Target

Command = Callable[..., Any]


def _set(name: str) -> Callable[[click.Context, click.Parameter, bool], None]:
    def callback(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
        if value:
            setattr(ctx.find_object(Output), name, True)

    return callback


_COMMON = (
    (("--debug",), "debug", "Show the traceback of a failure."),
    (("--json",), "as_json", "Print one JSON document on stdout instead of text."),
    (("-v", "--verbose"), "verbose", "Say on stderr what is done and how long it takes."),
    (("-q", "--quiet"), "quiet", "No progress and no remarks on stderr; warnings and errors stay."),
)
"""Flags of every command: their words, the attribute of Output that they set, their help."""


def common(function: Command) -> Command:
    """--json, --quiet, --verbose and --debug, kept in the Output."""
    for words, name, told in _COMMON:
        option = click.option(
            *words, is_flag=True, is_eager=True, expose_value=False, callback=_set(name), help=told
        )
        function = option(function)
    return function


def target(function: Command) -> Command:
    """--target and the options that belong to one target."""
    return _target(function, "cpu")


def target_or_all(function: Command) -> Command:
    """As `target`, but without --target all of them are meant."""
    return _target(function, None)


def _target(function: Command, default: str | None) -> Command:
    for option in (
        click.option(
            "--hw",
            metavar="NAME|FILE.json",
            shell_complete=completing.accelerator,
            help="vta: pynq, ultra96, zcu104, each also with -int4, -out32, or upstream's JSON.  "
            "[default: pynq]",
        ),
        click.option(
            "--int4",
            is_flag=True,
            help="cuda: multiply 4-bit integers as such on sm_75 to sm_89, not as bytes.",
        ),
        click.option(
            "--arch",
            metavar="sm_80,...",
            help="cuda: GPU architectures.  [default: sm_75,sm_80,sm_86,sm_89,sm_90]",
        ),
        click.option(
            "--mcpu",
            metavar="NAME",
            help="cpu, vta: LLVM's name of the CPU to compile for, e.g. x86-64-v3.  "
            "[default: this machine's]",
        ),
        click.option(
            "--target",
            "target_name",
            metavar="cpu|cuda|vta",
            default=default,
            show_default=default or "all of them",
            shell_complete=completing.target,
            help="Where the step runs. cuda needs sqcompile[cuda]; vta's products run in its "
            "simulator.",
        ),
    ):
        function = option(function)
    return function


def recipe(function: Command) -> Command:
    """--recipe, --seed and --check-finite."""
    for option in (
        click.option(
            "--check-finite",
            is_flag=True,
            help="Stop with the place in the graph where a NaN or an infinity first appears.",
        ),
        click.option(
            "--seed",
            type=click.IntRange(0),
            default=0,
            show_default=True,
            help="Of the initial weights and of stochastic rounding.",
        ),
        click.option(
            "--recipe",
            metavar="NAME|FILE.json",
            default="w4a4g4",
            show_default=True,
            shell_complete=completing.recipe,
            help=f"Bits of weights, activations and gradients: {', '.join(RECIPES)}, or a JSON "
            "file.",
        ),
    ):
        function = option(function)
    return function


def _sizes(
    ctx: click.Context, parameter: click.Parameter, given: tuple[str, ...]
) -> dict[str, int]:
    sizes = {}
    for text in given:
        name, _, size = text.rpartition("=")
        if not name or not size.isdigit() or int(size) < 1:
            raise click.BadParameter(f"'{text}' is not NAME=SIZE, like batch=8", ctx, parameter)
        sizes[name] = int(size)
    return sizes


dims = click.option(
    "--dim",
    "dims",
    metavar="NAME=SIZE",
    multiple=True,
    callback=_sizes,
    help="ONNX models: the size of a dynamic dimension, e.g. batch=8; once for each.",
)

threads = click.option(
    "--threads",
    type=click.IntRange(1),
    help="Threads of the kernels and of PyTorch.  [default: all cores]",
)


evaluation = click.option(
    "--eval/--no-eval",
    "with_eval",
    default=True,
    show_default=True,
    help="Also compile the forward of evaluation, so that the loaded folder does both.",
)

SMALL = 2 * 10**9
"""Multiply-accumulates of a step whose reference graph runs in seconds."""

stats = click.option(
    "--stats/--no-stats",
    default=None,
    help="Run the reference graph once, for the report's ranges, groups and errors of tensors.  "
    f"[default: up to {SMALL // 10**9} G multiply-accumulates a step]",
)


def chosen_target(name: str, **options: str | bool | None) -> "Target":
    """The target with those of `options` that were given.

    Raises UsageError for a name or option that does not exist.
    """
    from sqcompile.backends import targets

    given = {key: value for key, value in options.items() if value not in (None, False)}
    return targets.get(name, **given)


def chosen_targets(name: str | None, **options: str | bool | None) -> "list[Target]":
    """The target called `name`, or all; each with those of `options` that were given and that it
    has. Raises UsageError as `chosen_target`."""
    from sqcompile.backends import targets

    if name is not None:
        return [chosen_target(name, **options)]
    found = []
    for known in targets.TARGETS.values():
        own = {key: value for key, value in options.items() if key in known.options}
        found.append(chosen_target(known.name, **own))
    return found


def use_threads(count: int | None) -> int:
    """Set the number of threads, when one is given -> the number in use."""
    from sqcompile.runtime.threads import get_num_threads, set_num_threads

    if count is not None:
        set_num_threads(count)
    return get_num_threads()
