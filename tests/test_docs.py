"""What the documentation shows works as it stands there: Python, commands, links.

A fence ```python runnable is run, in order, in one process a page. A fence with a title is the
file of that name beside it. Commands are looked up: `sqcompile`'s by click, `make`'s in the
Makefile, a script's options in its source.
"""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from sqcompile.cli import commands
from sqcompile.passes.pipeline import PARTS, integer_training
from sqcompile.recipe import Recipe

ROOT = Path(__file__).resolve().parent.parent
WRITTEN = sorted(
    str(path.relative_to(ROOT)) for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
)
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
RUNNABLE = "python runnable"
FILE = re.compile(r'\w+ title="([^"]+)"')
LINK = re.compile(r"\]\((?![a-z]+:)([^)#\s]*)(?:#([^)\s]*))?\)")
OPTION = re.compile(r"--?[a-z][a-z0-9-]*")


def text_of(page: str) -> str:
    """A page of the repository."""
    return (ROOT / page).read_text(encoding="utf-8")


PAGES = [page for page in WRITTEN if f"```{RUNNABLE}\n" in text_of(page)]


def program(page: str) -> str:
    """The runnable blocks of a page, in order, each at the line where it stands there."""
    text = text_of(page)
    lines: list[str] = []
    for block in FENCE.finditer(text):
        if block[1] == RUNNABLE:
            lines += [""] * (text.count("\n", 0, block.start(2)) - len(lines))
            lines += block[2].splitlines()
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("page", PAGES)
def test_the_python_of_a_page_runs(page: str, tmp_path: Path) -> None:
    # In a process of its own: the pages add ops, kernels and targets to the tables.
    for kind, content in FENCE.findall(text_of(page)):
        if named := FILE.fullmatch(kind):
            file = tmp_path / named[1]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content, encoding="utf-8")
    script = tmp_path / f"page_{Path(page).stem}.py"
    script.write_text(program(page), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("page", WRITTEN)
def test_links_of_a_page_lead_somewhere(page: str) -> None:
    for target, anchor in LINK.findall(FENCE.sub("", text_of(page))):
        place = (ROOT / page).parent / target if target else ROOT / page
        assert place.exists(), f"{page} links to {target}"
        assert not anchor or anchor in anchors(place), f"{page} links to {target}#{anchor}"


def anchors(page: Path) -> set[str]:
    """The anchors that a page's headings get."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


CODE = re.compile(r"`([^`]+)`")
COMMAND = re.compile(r"^\s*(?:\S*/)?(sqcompile|make|python) ([^#]*?)(?: *#.*|   *\S.*)?$")
"""A command, which ends where a comment, or an explanation behind two spaces, begins."""


def shown_commands(page: str) -> Iterator[tuple[str, list[str]]]:
    """The name and the words of every command in a page's plain fences and between backticks."""
    text = text_of(page)
    lines = [span.replace("\n", " ") for span in CODE.findall(FENCE.sub("", text))]
    for kind, block in FENCE.findall(text):
        lines += re.sub(r"\\\n *", "", block).splitlines() if kind in ("", "sh") else []
    for line in lines:
        if command := COMMAND.match(line):
            yield command[1], shlex.split(command[2])


@pytest.mark.parametrize("page", WRITTEN)
def test_commands_of_a_page_exist(page: str) -> None:
    for name, words in shown_commands(page):
        CHECKS[name](words, f"{page}: {name} {shlex.join(words)}")


def _sqcompile(words: list[str], told: str) -> None:
    """The command and every option of it are there."""
    context = click.Context(commands)
    command: click.Command | None = commands.get_command(context, words[0])
    rest = words[1:]
    if command is None:
        assert not words[0].isidentifier() or words[0].isupper(), told
        command, rest = commands.get_command(context, "compile"), words
    while isinstance(command, click.Group) and rest:
        command, rest = command.get_command(context, rest[0]), rest[1:]
    assert command is not None, told
    known = {option for one in command.params for option in (*one.opts, *one.secondary_opts)}
    _all_known(rest, known | {"--help"}, told)


def _make(words: list[str], told: str) -> None:
    targets = re.findall(r"^(\w+):", text_of("Makefile"), re.MULTILINE)
    assert [word for word in words if "=" not in word and word not in targets] == [], told


def _python(words: list[str], told: str) -> None:
    if words and words[0].endswith(".py"):
        source = text_of(words[0])
        _all_known(words[1:], {*re.findall(r'"(--?[a-z][a-z0-9-]*)[/"]', source), "--help"}, told)


def _all_known(words: list[str], known: set[str], told: str) -> None:
    given = [word for word in words if OPTION.fullmatch(word.partition("=")[0])]
    assert [one for one in given if one.partition("=")[0] not in known] == [], told


CHECKS = {"sqcompile": _sqcompile, "make": _make, "python": _python}


def test_the_page_of_examples_has_all_of_them() -> None:
    listed = set(re.findall(r"\.\./examples/(\w+\.py)", text_of("docs/examples.md")))
    assert listed == {path.name for path in ROOT.glob("examples/*.py")}


def test_stages_have_the_numbers_that_pages_give_them() -> None:
    passes = [one.name for one in integer_training(Recipe())]
    names = ["captured", *passes, *PARTS]
    pages = [*ROOT.glob("docs/*.md"), ROOT / "README.md"]
    named = {
        (int(number), name)
        for page in pages
        for number, name in re.findall(r"`(\d\d)_(\w+)\.txt`", page.read_text())
    }
    assert named and named <= set(enumerate(names))
    assert f">{len(passes)} passes<" in (ROOT / "docs/pipeline.svg").read_text()
    design = (ROOT / "docs/design.md").read_text()
    assert re.findall(r"^\| `(\w+)` \|", design, re.M)[: len(passes)] == passes
