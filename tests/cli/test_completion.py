"""The shell completes commands, options and the names that they take."""

import os
import subprocess
import sys
from textwrap import dedent

import pytest

from sqcompile.backends.targets import TARGETS
from sqcompile.cli import COMMANDS, completing
from sqcompile.cli.completion import _VARIABLE
from sqcompile.recipe import RECIPES
from tests.cli.conftest import ROOT
from tests.cli.test_output import HEAVY


def asked(line, folder):
    """What the program answers for a line whose last word is being typed, and what it imported."""
    program = f"""
        import sys
        from sqcompile import cli
        try:
            cli.run()
        finally:
            print("heavy", sorted({HEAVY!r} & set(sys.modules)))
    """
    words = line.split(" ")
    result = subprocess.run(
        [sys.executable, "-c", dedent(program)],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(words) - 1),
            _VARIABLE: "bash_complete",
        },
        capture_output=True,
        text=True,
    )
    *answers, imported = filter(None, result.stdout.splitlines())
    assert imported == "heavy []", result.stderr
    return [answer.partition(",")[::2] for answer in answers]


@pytest.mark.parametrize(
    ("line", "answers"),
    [
        ("sqcompile ex", [("plain", "examine")]),
        ("sqcompile mod", [("file", "mod")]),
        (
            "sqcompile compile net.py --recipe w",
            [("plain", "w4a4g4"), ("plain", "w4a4g4-limited"), ("plain", "w6a6g6")],
        ),
        ("sqcompile net.py --target cu", [("plain", "cuda")]),
        ("sqcompile examine --hw ultra96-int4-", [("plain", "ultra96-int4-out32")]),
        ("sqcompile vta dis", [("plain", "disasm")]),
        ("sqcompile inspect ru", [("dir", "ru")]),
        ("sqcompile inspect run --stage fuse_q", [("plain", "fuse_quantizers")]),
        ("sqcompile inspect run --op sq.quant_", [("plain", "sq.quant_scale")]),
        ("sqcompile inspect run --diff --layer 2", [("plain", "2")]),
        ("sqcompile inspect run --variant ", [("plain", w) for w in ("0", "1", "train", "eval")]),
        ("sqcompile inspect nowhere --stage fuse_q", []),
        ("sqcompile bench run --thr", [("plain", "--threads")]),
    ],
)
def test_a_line_is_completed(compiled, line, answers):
    folder, _ = compiled
    found = asked(line, folder.parent)
    assert found[: len(answers)] == answers
    assert answers or not found


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_asks_the_program(call, shell):
    result = call("completion", shell)
    assert result.code == 0
    assert f"{_VARIABLE}={shell}_complete" in result.out


def test_bash_completes_with_the_script(call, compiled, tmp_path):
    """The script as a user loads it, in a bash of its own."""
    program = tmp_path / "bin" / "sqcompile"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m sqcompile "$@"\n')
    program.chmod(0o755)
    (tmp_path / "script").write_text(call("completion", "bash").out)
    typed = f"""
        source {tmp_path}/script
        COMP_WORDS=(sqcompile inspect {compiled[0]} --stage capt) COMP_CWORD=4
        _sqcompile_completion sqcompile
        echo "${{COMPREPLY[@]}}"
    """
    result = subprocess.run(
        ["bash", "-c", dedent(typed)],
        env={
            **os.environ,
            "PATH": f"{program.parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
        },
        capture_output=True,
        text=True,
    )
    assert result.stdout.strip() == "captured", result.stderr


def test_names_are_those_of_the_package():
    assert tuple(TARGETS) == completing.TARGETS
    assert "completion" in COMMANDS and "w4a4g4" in RECIPES
