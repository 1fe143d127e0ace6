"""Every example in a command's --help runs as it stands there."""

import re
import shlex
import shutil

import click
import pytest

from sqcompile.backends.vta import assembler, isa
from sqcompile.cli import commands
from tests.backends.vta.programs import PYNQ, multiply_and_add
from tests.cli.conftest import SMALL

EXAMPLE = re.compile(r"^\s+(sqcompile (?!COMMAND).*?)(?:\s{2,}.*)?$", re.MULTILINE)
RUN_FOLDER = re.compile(r"^runs/[\w-]+$")


def every_command():
    """(name, command) of all commands and of those below them."""
    context = click.Context(commands, info_name="sqcompile")
    waiting = [("sqcompile", commands)]
    while waiting:
        name, command = waiting.pop()
        yield name, command
        if isinstance(command, click.Group):
            for below in command.list_commands(context):
                waiting.append((f"{name} {below}", command.get_command(context, below)))


IN_ORDER = ("sqcompile bench", "sqcompile compare")
"""Commands whose examples read what the ones before wrote: tests/cli/test_compare.py runs them."""
EXAMPLES = sorted(
    {
        line
        for name, command in every_command()
        if name not in IN_ORDER
        for line in EXAMPLE.findall(command.help)
    }
)


def test_every_command_has_an_example():
    silent = [
        name
        for name, command in every_command()
        if not isinstance(command, click.Group) and not EXAMPLE.search(command.help)
    ]
    assert silent == []


def before_pipe(example):
    """The arguments of an example, up to what it is piped into."""
    words = shlex.split(example)
    return words[1 : words.index("|")] if "|" in words else words[1:]


def _supply(folder, word, compiled):
    """Make the file or run folder that an example reads, where it is not there yet."""
    place = folder / word
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.exists():
        return
    program, dram = multiply_and_add(PYNQ)
    contents = {
        "insns.bin": isa.encode_program(PYNQ, program),
        "in.bin": dram,
        "vta.txt": assembler.listing(PYNQ, program).encode(),
    }
    if RUN_FOLDER.match(word):
        shutil.copytree(compiled, place)
    elif word.endswith(".py"):
        place.write_text(SMALL)
    elif word in contents:
        place.write_bytes(contents[word])


def named_as_the_example_needs(word):
    """The tests' model has no module `stem` and no convolution; any other will do."""
    return {"stem": "0", "conv_*": "shift_*"}.get(word, word)


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_runs(call, folder, compiled, example):
    words = list(map(named_as_the_example_needs, before_pipe(example)))
    for word in words:
        _supply(folder, word, compiled[0])
    if "--epochs" in words:
        words[words.index("--epochs") + 1] = "1"
    result = call(*words)
    assert result.code == 0, result.err
    assert result.out
