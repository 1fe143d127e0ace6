"""sqcompile completion: the script with which a shell completes the command line."""

import click
from click.shell_completion import get_completion_class

from sqcompile.cli import options
from sqcompile.cli.output import Output

_PROGRAM = "sqcompile"
_VARIABLE = "_SQCOMPILE_COMPLETE"


@click.command(short_help="Print the script with which a shell completes commands and names.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@options.common
@click.pass_obj
def command(output: Output, shell: str) -> None:
    """Print the script that completes commands, options, recipes, targets, and the stages, ops and
    layers of a run folder.

    bash 4.4 or newer: append the script to ~/.bashrc, or load it there with
    eval "$(sqcompile completion bash)". zsh: the same in ~/.zshrc, below compinit. fish: write it
    to ~/.config/fish/completions/sqcompile.fish. Then open a new shell.

    \b
      sqcompile completion bash
      sqcompile completion zsh
      sqcompile completion fish
    """
    root = click.get_current_context().find_root().command
    made = get_completion_class(shell)
    assert made is not None
    # The class asks bash for its version when it is told to complete; the text needs no shell.
    writer = made(root, {}, _PROGRAM, _VARIABLE)
    script = writer.source_template % writer.source_vars()
    output.say(script.strip("\n"))
    output.document({"shell": shell, "script": script})
