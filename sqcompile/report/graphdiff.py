"""What a pass changed: two listings of a graph compared by what they compute, not by their names.

Passes give new nodes new names and move nodes about. A line whose arguments are the same values
under other names is no change; nor is one that reads a new value where it read one that is gone,
when all who read the old value read the new one: the new line says in whose place it stands.
"""

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqcompile.passes.entries import OUTPUT, PLACEHOLDER, Entry, Ref

SAME, ADDED, REMOVED, CHANGED = "", "added", "removed", "changed"


@dataclass(frozen=True)
class Line:
    """A line of a comparison: `before` and `after`, one of them None where it is new or gone.

    stands_for: the values, by their names before, whose readers now read this one.
    """

    kind: str
    before: Entry | None
    after: Entry | None
    stands_for: tuple[str, ...] = ()

    @property
    def entry(self) -> Entry:
        """The node as it is, or was."""
        found = self.after or self.before
        assert found is not None
        return found


@dataclass(frozen=True)
class Difference:
    """lines: of both listings in one order; renamed: names before and after of what is the same;
    replaced: values that are gone and what is read in their place; moved: names of nodes that are
    computed earlier or later than before, in relation to the others."""

    lines: tuple[Line, ...]
    renamed: Mapping[str, str]
    replaced: Mapping[str, str]
    moved: tuple[str, ...]

    def count(self, kind: str) -> int:
        """How many lines are `kind`."""
        return sum(line.kind == kind for line in self.lines)

    @property
    def empty(self) -> bool:
        """Whether the two compute the same."""
        return all(line.kind == SAME for line in self.lines)


def difference(before: Sequence[Entry], after: Sequence[Entry]) -> Difference:
    """Compare two listings of a graph."""
    pairs = _paired(before, after)
    olds = {entry.name: entry for entry in before}
    replaced = _replaced(pairs, olds, after)
    image = {old: new for new, old in pairs.items()} | replaced
    lines: dict[str, Line] = {}
    replaced = {old: new for old, new in replaced.items() if old != new}
    stands = defaultdict(list)
    for gone, new in replaced.items():
        stands[new].append(gone)
    for entry in after:
        old = olds.get(pairs.get(entry.name, ""))
        kind = ADDED if old is None else SAME if _same(old, entry, image) else CHANGED
        lines[entry.name] = Line(kind, old, entry, tuple(stands.get(entry.name, ())))
    renamed = {old: new for new, old in pairs.items() if old != new}
    kept = _in_order(before, after, pairs)
    moved = tuple(name for name in pairs if name not in kept)
    return Difference(tuple(_merged(before, after, pairs, kept, lines)), renamed, replaced, moved)


def _paired(before: Sequence[Entry], after: Sequence[Entry]) -> dict[str, str]:
    """The node before, by the name after, of every node that is the same one: that computes the
    same from the same values, or has the same name and op or place."""
    waiting: dict[Any, dict[str, Entry]] = defaultdict(dict)
    olds = {entry.name: entry for entry in before}
    for entry in before:
        waiting[_kind(entry)][entry.name] = entry
    pairs: dict[str, str] = {}
    image: dict[str, str] = {}
    taken: set[str] = set()

    def pair(old: Entry, new: Entry) -> None:
        pairs[new.name], image[old.name] = old.name, new.name
        taken.add(old.name)
        waiting[_kind(old)].pop(old.name)

    for entry in after:
        candidates = waiting.get(_kind(entry), {})
        namesake = candidates.get(entry.name)
        if namesake is not None and _reads(namesake, image, entry):
            pair(namesake, entry)
            continue
        exact = next((old for old in candidates.values() if _reads(old, image, entry)), None)
        if exact is not None:
            pair(exact, entry)
            continue
        old = namesake or olds.get(entry.name)
        if old is not None and old.name not in taken and _related(old, entry):
            pair(old, entry)
    return pairs


def _kind(entry: Entry) -> Any:
    """All of an entry but its name, the names of what it reads, and the line it came from."""
    if entry.op in (PLACEHOLDER, OUTPUT):
        return entry.op, entry.name
    shape = tuple((name, _without_names(value)) for name, value in entry.args)
    known = entry.bits, entry.operands, entry.groups, entry.role, entry.module
    return entry.op, shape, entry.outputs, known


def _without_names(value: Any) -> Any:
    if isinstance(value, Ref):
        return Ref
    return tuple(map(_without_names, value)) if isinstance(value, tuple) else repr(value)


def _reads(old: Entry, image: Mapping[str, str], new: Entry) -> bool:
    """Whether two entries of one kind read the same values."""
    return [image.get(ref) for ref in old.refs] == list(new.refs)


def _related(old: Entry, new: Entry) -> bool:
    """Whether two nodes of one name are one node that was changed."""
    place = old.line, old.role, old.module
    return old.op == new.op or (bool(old.line) and place == (new.line, new.role, new.module))


def _replaced(
    pairs: Mapping[str, str], olds: Mapping[str, Entry], after: Sequence[Entry]
) -> dict[str, str]:
    """What is read now in place of each value that is gone, where its readers agree."""
    kept = set(pairs.values())
    votes: dict[str, Counter[str]] = defaultdict(Counter)
    for entry in after:
        old = olds.get(pairs.get(entry.name, ""))
        if old is None or len(old.refs) != len(entry.refs):
            continue
        for was, now in zip(old.refs, entry.refs, strict=True):
            if was not in kept:
                votes[was][now] += 1
    return {was: next(iter(count)) for was, count in votes.items() if len(count) == 1}


def _same(old: Entry, new: Entry, image: Mapping[str, str]) -> bool:
    return _kind(replace(old, name=new.name)) == _kind(new) and _reads(old, image, new)


def _in_order(
    before: Sequence[Entry], after: Sequence[Entry], pairs: Mapping[str, str]
) -> set[str]:
    """The longest run of paired nodes, by their names after, whose order is the same in both."""
    position = {entry.name: at for at, entry in enumerate(before)}
    names = [entry.name for entry in after if entry.name in pairs]
    ends: list[int] = []
    last: list[str] = []
    previous: dict[str, str | None] = {}
    for name in names:
        place = position[pairs[name]]
        length = bisect_left(ends, place)
        previous[name] = last[length - 1] if length else None
        ends[length:] = [place, *ends[length + 1 :]]
        last[length:] = [name, *last[length + 1 :]]
    kept: set[str] = set()
    name_or_none = last[-1] if last else None
    while name_or_none is not None:
        kept.add(name_or_none)
        name_or_none = previous[name_or_none]
    return kept


def _merged(
    before: Sequence[Entry],
    after: Sequence[Entry],
    pairs: Mapping[str, str],
    kept: set[str],
    lines: Mapping[str, Line],
) -> list[Line]:
    """The lines of both: in the order after, what is gone behind what stood before it."""
    names = {old: new for new, old in pairs.items()}
    gone: dict[str, list[Line]] = defaultdict(list)
    anchor = ""
    for entry in before:
        name = names.get(entry.name)
        if name is None:
            gone[anchor].append(Line(REMOVED, entry, None))
        elif name in kept:
            anchor = name
    merged = list(gone[""])
    for entry in after:
        merged.append(lines[entry.name])
        merged += gone[entry.name]
    return merged
