"""Graphs and what passes changed in them, for a terminal: colours where there are any."""

import re
from collections.abc import Iterator
from difflib import SequenceMatcher

from rich.syntax import Syntax
from rich.text import Text

from sqcompile.passes.entries import Entry, text
from sqcompile.report.graphdiff import ADDED, CHANGED, REMOVED, SAME, Difference, Line
from sqcompile.report.graphview import PARTS, View

_STYLES = {"-": "red", "+": "green"}
_WORDS = re.compile(r"(\W)")
_INDENT = "    "


def graph(view: View) -> Iterator[Text]:
    """A stage as Python; with a selection only its statements, below the user's lines."""
    if not view.selection:
        name = view.name if view.name in PARTS else "step"
        yield highlighted(text(view.entries, name).rstrip("\n"))
        return
    yield Text(f"# {view.name}: {len(view.shown)} of {len(view.entries)} nodes", style="bold")
    source = ""
    for entry in view.shown:
        if entry.line and entry.line != source:
            source = entry.line
            yield Text(f"# {source}", style="cyan")
        yield highlighted(entry.statement)


def highlighted(code: str) -> Text:
    """Python in the terminal's own colours."""
    found = Syntax("", "python", theme="ansi_dark").highlight(code)
    found.rstrip()
    return found


def changes(view: View, context: int = 0) -> Iterator[Text]:
    """What a stage changed: a heading, then lines with "-" and "+" below the user's lines, and
    `context` unchanged ones around them."""
    yield Text(f"# {headline(view)}", style="bold")
    lines = view.difference.lines
    wanted = {id(line) for line in view.changes}
    near = _near([id(line) in wanted for line in lines], context)
    source, last = "", None
    for at in near:
        line = lines[at]
        if last is not None and at != last + 1:
            yield Text("")
        last = at
        if line.entry.line and line.entry.line != source:
            source = line.entry.line
            yield Text(f"  # {source}", style="cyan")
        yield from _printed(line if id(line) in wanted else None, line, view.difference)


def headline(view: View) -> str:
    """`quantize_operands against fold_weight_scales: 272 added, 20 removed`."""
    if not view.against:
        return f"{view.name}: the first stage"
    found = view.difference
    counts = [(found.count(kind), kind) for kind in (ADDED, REMOVED, CHANGED)]
    parts = [f"{count} {kind}" for count, kind in counts if count]
    quiet = [(len(found.moved), "moved"), (len(found.renamed), "only renamed")]
    parts += [f"{count} {what}" for count, what in quiet if count]
    return f"{view.name} against {view.against}: {', '.join(parts) or 'nothing changed'}"


def _near(wanted: list[bool], context: int) -> list[int]:
    """The places at most `context` from a wanted one."""
    places = [at for at, is_wanted in enumerate(wanted) if is_wanted]
    found = {
        near
        for at in places
        for near in range(max(0, at - context), min(len(wanted), at + context + 1))
    }
    return sorted(found)


def _printed(changed: Line | None, line: Line, found: Difference) -> Iterator[Text]:
    if changed is None or line.kind == SAME:
        yield Text(f"  {line.entry.statement}", style="dim")
        return
    before, after = line.before, line.after
    if line.kind == CHANGED and before and after:
        yield from _pair(before, after, _remark(line, found))
        return
    sign = "-" if line.kind == REMOVED else "+"
    yield Text(f"{sign} {line.entry.statement}{_remark(line, found)}", style=_STYLES[sign])


def _remark(line: Line, found: Difference) -> str:
    """In whose place a new value is read, or what is read in the place of one that is gone."""
    if line.kind == REMOVED:
        now = found.replaced.get(line.entry.name)
        added = {one.entry.name for one in found.lines if one.kind == ADDED} if now else set()
        return f"  [{now} is read instead]" if now and now not in added else ""
    return f"  [in place of {', '.join(line.stands_for)}]" if line.stands_for else ""


def _pair(before: Entry, after: Entry, remark: str) -> Iterator[Text]:
    """A changed node, before and after, what differs in bold."""
    old, new = _WORDS.split(before.statement), _WORDS.split(after.statement)
    blocks = SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
    parts = {
        "-": [(kind, old[start:end]) for kind, start, end, _, _ in blocks],
        "+": [(kind, new[start:end]) for kind, _, _, start, end in blocks],
    }
    for sign, found in parts.items():
        line = Text(f"{sign} ", style=_STYLES[sign])
        for kind, words in found:
            line.append("".join(words), style="" if kind == "equal" else "bold reverse")
        yield line.append(remark) if sign == "+" else line
