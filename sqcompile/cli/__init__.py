"""The command line. Commands are read when they are used, and import torch and TVM when they run,
so that help answers at once."""

import os
import sys
import traceback
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import NoReturn

import click
from click.shell_completion import CompletionItem

from sqcompile import __version__
from sqcompile.cli.output import Output
from sqcompile.errors import SqError

COMMANDS = (
    "compile",
    "train",
    "examine",
    "inspect",
    "bench",
    "compare",
    "export",
    "doctor",
    "completion",
    "vta",
)
_OWN_OPTIONS = ("--help", "-h", "--version")
_INTERRUPTED = 130

_HELP = """Compile a PyTorch model's training step to integers of 2 to 8 bits, through TVM.

\b
  sqcompile model.py                        compile the model in model.py for this CPU
  sqcompile model.py --recipe w6a6g6 --verify -o runs/mine
  sqcompile train model.py --epochs 10 --compare-fp32
  sqcompile examine model.py                is every op supported?
  sqcompile inspect runs/mine               what was rewritten
  sqcompile bench runs/mine --threads 1,2   how fast
  sqcompile doctor                          what works on this machine

A first argument that is no command is a model file to compile: Python code that defines
make_model() and example_inputs(), and data() and loss(output, target) for training.

A model file is executed code, and a run folder holds native code: run only what you trust.

\b
Exit codes: 0 ok, 1 internal error, 2 usage, 3 the model does not load or trace,
4 unsupported op, 5 missing toolchain or device, 6 verification mismatch,
7 bench --gate: slower than its bound,
10 to 12 a VTA program that is wrong (`sqcompile vta run --help`).

`sqcompile COMMAND --help` tells more."""


class Commands(click.Group):
    """The commands, `compile` where none is named."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Their names, in the order of help."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command called `cmd_name`, from the file of its name."""
        if cmd_name not in COMMANDS:
            return None
        command = import_module(f"sqcompile.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put `compile` before arguments that do not begin with a command."""
        if args and args[0] not in (*COMMANDS, *_OWN_OPTIONS):
            if not ctx.resilient_parsing:
                _refuse_misspelt(args[0])
            args = ["compile", *args]
        return super().parse_args(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Commands and options; a model file where no command begins so."""
        return super().shell_complete(ctx, incomplete) or [CompletionItem(incomplete, type="file")]


def _refuse_misspelt(word: str) -> None:
    close = get_close_matches(word, COMMANDS, n=1)
    if close and not os.path.exists(word):
        raise click.UsageError(
            f"there is no command and no model file '{word}'; did you mean '{close[0]}'?"
        )


@click.command(
    cls=Commands,
    help=_HELP,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, message="sqcompile %(version)s")
def commands() -> None:
    """What `sqcompile` runs."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and leave with its exit code."""
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line -> exit code: the one place where failures become one."""
    output = Output()
    try:
        result = commands.main(arguments, prog_name="sqcompile", standalone_mode=False, obj=output)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except SqError as error:
        output.fail(type(error).__name__, str(error), error.exit_code)
        return _told(output, error.exit_code)
    except click.Abort:
        output.note("interrupted")
        return _INTERRUPTED
    except click.ClickException as error:
        command = (
            error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else ""
        )
        hint = f"\n  `{command} --help` tells how." if command else ""
        output.fail("UsageError", f"{error.format_message()}{hint}", error.exit_code)
        return error.exit_code
    except BrokenPipeError:
        # The reader of stdout is gone; without this the interpreter complains once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        output.fail("OSError", f"{error.filename or 'a file'}: {error.strerror or error}", 1)
        return _told(output, 1)
    except Exception as error:
        output.fail(
            "InternalError",
            f"{type(error).__name__}: {error}\n"
            "  this is a bug in sqcompile; --debug shows the traceback to report.",
            1,
        )
        return _told(output, 1)


def _told(output: Output, code: int) -> int:
    if output.debug:
        traceback.print_exc()
    return code
