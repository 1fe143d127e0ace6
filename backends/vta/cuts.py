"""How an axis is cut into spans of results and taps, and what the spans touch."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from sqcompile.backends.conv_geometry import Lines, Phase
from sqcompile.backends.vta.correlation import Correlation


@dataclass(frozen=True)
class Tiling:
    """Sizes of a block of results (output tiles, rows and columns of each phase) and of a chunk
    of the reduction (planes, taps); chunks take turns in `buffers` parts of INP and WGT, blocks in
    `acc_buffers` parts of ACC. The first and the last block are halved `halvings` times towards
    the program's ends."""

    outputs: int
    rows: int
    columns: int
    planes: int
    row_taps: int
    column_taps: int
    buffers: int
    acc_buffers: int
    halvings: int = 0


class Span(NamedTuple):
    """Part of an axis: results first..last of every phase, taps begin..end; both ends exclusive."""

    first: int
    last: int
    begin: int
    end: int


class Window(NamedTuple):
    """What a span of an axis touches: source lines, kernel lines, result lines."""

    source: int
    sources: int
    kernel: int
    kernels: int
    result: int
    results: int


def window(lines: Lines, span: Span) -> Window | None:
    """None when the span's taps meet nothing but padding, or nothing."""
    sources, kernels = [], []
    for phase in lines.phases:
        count, taps = counted(phase, span)
        if count and taps:
            low = phase.offset + span.first * lines.stride + span.begin * lines.spacing
            high = low + (count - 1) * lines.stride + (taps - 1) * lines.spacing
            sources += [low, high]
            line = phase.kernel + span.begin * lines.kernel_step
            kernels += [line, line + (taps - 1) * lines.kernel_step]
    if not sources or max(sources) < 0 or min(sources) >= lines.source:
        return None
    return Window(
        min(sources),
        max(sources) - min(sources) + 1,
        min(kernels),
        max(kernels) - min(kernels) + 1,
        span.first * lines.step,
        results_of(lines, (span.first, span.last)),
    )


def counted(phase: Phase, span: Span) -> tuple[int, int]:
    """Results and taps of a phase inside a span."""
    count = max(0, min(span.last, phase.count) - span.first)
    return count, max(0, min(span.end, phase.taps) - span.begin)


def clipped(seen: Window, length: int) -> tuple[int, int, int]:
    """Lines of zeros before, lines of a source of this length, lines of zeros after."""
    before = max(0, -seen.source)
    after = max(0, seen.source + seen.sources - length)
    return before, seen.sources - before - after, after


def parts(length: int, size: int) -> Iterator[tuple[int, int]]:
    """(begin, end) of pieces of `size`."""
    for begin in range(0, length, size):
        yield begin, min(begin + size, length)


def growing(part: tuple[int, int], halvings: int) -> list[tuple[int, int]]:
    """A part in pieces, the last one half of it, the one before that a quarter, and so on."""
    begin, end = part
    cuts = {begin + (end - begin >> number) for number in range(1, halvings + 1)}
    return list(pairwise(sorted({begin, *cuts, end})))


def shrinking(part: tuple[int, int], halvings: int) -> list[tuple[int, int]]:
    """The same from the other end: the first piece is half of it."""
    begin, end = part
    return [(begin + end - last, begin + end - first) for first, last in growing(part, halvings)][
        ::-1
    ]


def taps_of(lines: Lines) -> int:
    """The most taps of a phase."""
    return max(phase.taps for phase in lines.phases)


def results_of(lines: Lines, part: tuple[int, int]) -> int:
    """Result lines of a part of every phase."""
    return min(part[1] * lines.step, lines.results) - part[0] * lines.step


class Cut(NamedTuple):
    """An axis in blocks of `size` results and chunks of `taps`: how many there are of both, the
    most lines of one, and the lines of all (of sources: real ones and padding)."""

    blocks: int
    chunks: int
    sources: int
    kernels: int
    results: int
    all_real: int
    all_padding: int
    all_kernels: int


@lru_cache(maxsize=1 << 14)
def cut(lines: Lines, size: int, taps: int) -> Cut:
    """The cut of an axis."""
    blocks = list(parts(lines.count, size))
    chunks = list(parts(taps_of(lines), taps)) or [(0, 0)]
    seen = [window(lines, Span(*block, *chunk)) for block in blocks for chunk in chunks]
    there = [one for one in seen if one is not None]
    real = [clipped(one, lines.source) for one in there]
    return Cut(
        len(blocks),
        len(chunks),
        max((one.sources for one in there), default=1),
        max((one.kernels for one in there), default=1),
        max(results_of(lines, block) for block in blocks),
        sum(lines for _, lines, _ in real),
        sum(before + after for before, _, after in real),
        sum(one.kernels for one in there),
    )


class Sizes(NamedTuple):
    """The most tiles that a chunk or block takes in a scratchpad."""

    inp: int
    wgt: int
    acc: int


def sizes_of(of: Correlation, tiling: Tiling) -> Sizes:
    """Over all chunks and blocks."""
    down = cut(of.rows, tiling.rows, tiling.row_taps)
    across = cut(of.columns, tiling.columns, tiling.column_taps)
    return Sizes(
        tiling.planes * down.sources * across.sources,
        tiling.outputs * tiling.planes * down.kernels * across.kernels,
        tiling.outputs * down.results * across.results,
    )
