"""What the command line prints, and where."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from sqcompile import cli
from sqcompile.cli import COMMANDS
from sqcompile.recipe import RECIPES
from tests.cli.conftest import ROOT, started

HEAVY = {"torch", "tvm", "numpy", "jinja2", "rich", "sqcompile.api"}


def test_help_imports_nothing_that_takes_time(tmp_path):
    """`--help` answers within half a second because of it; loaded machines make times unsure."""
    program = f"""
        import sys
        from sqcompile.cli import COMMANDS, run
        for arguments in (["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)):
            assert run(arguments) == 0, arguments
        print(sorted({HEAVY!r} & set(sys.modules)), file=sys.stderr)
    """
    result = subprocess.run(
        [sys.executable, "-c", dedent(program)], cwd=ROOT, capture_output=True, text=True
    )
    assert result.stderr.strip() == "[]"


def test_help_teaches(call):
    result = call("--help")
    assert result.code == 0
    assert "sqcompile model.py --recipe w6a6g6 --verify -o runs/mine" in result.out
    assert "run only" in result.out and "what you trust" in result.out
    assert "5 missing toolchain or device, 6 verification mismatch" in result.out
    assert all(name in result.out for name in COMMANDS)


@pytest.mark.parametrize("command", ["compile", "train"])
def test_help_names_every_recipe(call, command):
    told = " ".join(call(command, "--help").out.split())
    assert f"gradients: {', '.join(RECIPES)}, or a JSON file." in told


def test_a_place_in_a_message_is_never_wrapped(folder):
    name = "a_model_file_with_a_name_that_is_longer_than_a_narrow_terminal.py"
    (folder / name).write_text("import no_such_module")
    result = started(name, cwd=folder, COLUMNS="30")
    assert result.returncode == 3
    assert f"error: {name}:1  import no_such_module" in result.stderr.splitlines()


def test_json_of_a_failure_is_a_document_too(call):
    result = call("nett.py", "--json")
    assert json.loads(result.out) == {
        "error": {
            "kind": "UsageError",
            "message": "there is no model file nett.py; did you mean net.py?",
            "exit_code": 2,
        }
    }
    assert "did you mean" in result.err


def test_no_color(folder):
    coloured = re.compile(r"\x1b\[[0-9;]*3[0-9]")
    with_colour = started("nett.py", cwd=folder, FORCE_COLOR="1")
    without = started("nett.py", cwd=folder, FORCE_COLOR="1", NO_COLOR="1")
    assert coloured.search(with_colour.stderr)
    assert not coloured.search(without.stderr)


def test_no_color_of_a_graph(compiled):
    folder, _ = compiled
    arguments = ("inspect", str(folder), "--stage", "quantize_operands", "--diff")
    with_colour = started(*arguments, cwd=folder, FORCE_COLOR="1", TERM="xterm")
    without = started(*arguments, cwd=folder, FORCE_COLOR="1", NO_COLOR="1", TERM="xterm")
    piped = started(*arguments, cwd=folder)
    assert "\x1b[32m+ " in with_colour.stdout
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", without.stdout)
    assert "\x1b" not in piped.stdout and "\n+ " in piped.stdout


def test_quiet_says_nothing_but_the_result(call):
    quiet, plain = call("net.py", "--no-eval", "-q"), call("net.py", "--no-eval")
    assert quiet.code == plain.code == 0
    assert quiet.err == "" and "compiling net.py" in plain.err
    assert quiet.out == plain.out != ""
    assert "did you mean net.py?" in call("nett.py", "--quiet").err


def test_verbose_says_how_long_it_takes(call):
    result = call("net.py", "--no-eval", "-v")
    assert re.search(r"compiling net.py with w4a4g4 for cpu: \d+\.\d\d s", result.err)


def test_a_terminal_without_unicode(folder):
    (folder / "größe.py").write_text("import no_such_module")
    result = started("größe.py", cwd=folder, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert result.returncode == 3
    assert "error: gr??e.py:1  import no_such_module" in result.stderr
    assert result.stderr.isascii()


def test_a_reader_that_leaves_is_no_error(compiled):
    folder, _ = compiled
    command = f"{sys.executable} -m sqcompile inspect {folder} -q --stage captured | head -1"
    result = subprocess.run(
        command,
        shell=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert result.stdout == "def step(\n"
    assert result.stderr == ""


def test_every_command_has_a_file():
    folder = Path(cli.__file__).parent
    assert all((folder / f"{name}.py").is_file() for name in COMMANDS)
