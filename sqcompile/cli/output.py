"""Where text goes: results to stdout, progress and errors to stderr, JSON alone on stdout."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from time import perf_counter
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

_WIDE = 10_000
"""Columns of an output that is no terminal: nothing is cut or wrapped in a file or a pipe."""


class Output:
    """One command's output; `as_json`, `quiet`, `verbose` and `debug` are set by its options.
    Colours follow NO_COLOR and whether there is a terminal."""

    def __init__(self) -> None:
        self.as_json = False
        self.quiet = False
        self.verbose = False
        self.debug = False
        self._documented = False

    @cached_property
    def _out(self) -> "Console":
        return _console(sys.stdout)

    @cached_property
    def _err(self) -> "Console":
        return _console(sys.stderr)

    def say(self, text: "str | Text" = "") -> None:
        """A line of the result, which is never wrapped; not printed with --json."""
        if not self.as_json:
            self._out.print(text, markup=False, highlight=False, soft_wrap=True)

    def show(self, renderable: "RenderableType") -> None:
        """A table of the result; not printed with --json."""
        if not self.as_json:
            self._out.print(renderable)

    def document(self, data: Any) -> None:
        """The result as the one JSON document; printed only with --json, and only the first."""
        if self.as_json and not self._documented:
            self._documented = True
            click.echo(json.dumps(data, indent=1))

    def note(self, text: str) -> None:
        """Progress or a remark, on stderr; not printed with --quiet."""
        if not self.quiet:
            self._err.print(text, style="dim", markup=False, highlight=False, soft_wrap=True)

    def detail(self, text: str) -> None:
        """What is done in between, on stderr; printed only with --verbose."""
        if self.verbose:
            self.note(text)

    def warn(self, text: str) -> None:
        """Something that the user should look at, on stderr."""
        self._print_labelled("warning:", "yellow bold", text)

    def fail(self, kind: str, text: str, exit_code: int) -> None:
        """The error that ends the command: on stderr, and with --json as the document unless the
        result was printed before (a failed verification)."""
        self._print_labelled("error:", "red bold", text)
        self.document({"error": {"kind": kind, "message": text, "exit_code": exit_code}})

    def _print_labelled(self, label: str, style: str, text: str) -> None:
        self._err.print(label, style=style, end=" ", highlight=False)
        self._err.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def status(self, text: str) -> Iterator[None]:
        """A spinner on a terminal, a line elsewhere, while something takes its time; how long it
        took with --verbose."""
        start = perf_counter()
        if self.quiet:
            yield
        elif self.verbose or not _animated(self._err):
            self.note(text)
            yield
        else:
            with self._err.status(text, spinner="dots" if _unicode(self._err) else "line"):
                yield
        self.detail(f"{text}: {perf_counter() - start:.2f} s")


def _console(file: Any) -> "Console":
    from rich.console import Console

    if not _encodes(file, "\u2026"):
        # What the terminal cannot show, a name or the dots of a cut cell, is no reason to fail.
        file.reconfigure(errors="replace")
    return Console(file=file, width=None if file.isatty() else _WIDE)


def _animated(console: "Console") -> bool:
    return console.is_terminal and not console.is_dumb_terminal


def _unicode(console: "Console") -> bool:
    return _encodes(console.file, "\u280b")


def _encodes(file: Any, text: str) -> bool:
    try:
        text.encode(getattr(file, "encoding", None) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
