"""What a schedule's leaves say, against the correlation counted out."""

from collections import Counter
from itertools import product
from random import Random

import pytest

from sqcompile.backends.vta.cuts import sizes_of, taps_of
from sqcompile.backends.vta.program import form_of
from sqcompile.backends.vta.tir.leaves import Leaves
from sqcompile.backends.vta.tir.names import MULTIPLIED
from sqcompile.backends.vta.tir.schedule import scheduled
from sqcompile.backends.vta.tir.walk import steps
from tests.backends.vta.programs import PYNQ
from tests.backends.vta.test_any_product import some_hardware, some_product
from tests.backends.vta.test_conv_program import S4, U4, conv_spec


def products(chunk):
    """(tile of acc, tile of inp in DRAM, tile of wgt in DRAM) of every product of a chunk."""
    for lengths, acc, *others in chunk.products:
        for at in product(*map(range, lengths)):
            result = moved(acc, at)
            read = [
                moved(one, at, [b - a for a, b in zip(copy.scratch[0], copy.dram[0], strict=True)])
                for one, copy in zip(others, (chunk.inp, chunk.wgt), strict=True)
            ]
            yield result, *read


def moved(access, at, by=None):
    by = by or [0] * len(access.starts)
    return tuple(
        start + extra + sum(step[axis] * n for step, n in zip(access.steps, at, strict=True))
        for axis, (start, extra) in enumerate(zip(access.starts, by, strict=True))
    )


def taps(lines):
    """(result, source line, kernel line) of every tap of an axis."""
    for phase in lines.phases:
        for q, tap in product(range(phase.count), range(phase.taps)):
            source = q * lines.stride + phase.offset + tap * lines.spacing
            yield phase.first + q * lines.step, source, phase.kernel + tap * lines.kernel_step


def counted(of):
    """Every product of tiles that the correlation asks for, by place of the result, source, weight.
    Its segments' weights are left out."""
    runs = [run for segment in of.segments for run in segment.runs]
    planes = [(run.inp + p, run.wgt + p) for run in runs for p in range(run.planes)]
    found = Counter()
    places = product(range(of.groups), range(of.images), range(of.outputs), planes)
    for (g, i, o, (p, w)), (y, down, r), (x, across, s) in product(
        places, taps(of.rows), taps(of.columns)
    ):
        inside = 0 <= down < of.rows.source and 0 <= across < of.columns.source
        if inside:
            found[(g, i, o, y, x), (g, i, p, down, across), (g, o, w, r, s)] += 1
    return found


@pytest.mark.parametrize("seed", [2, 3, 5, 7, 14, 35, 43, 84, 90])
def test_chunks_multiply_every_pair_of_tiles_once(seed):
    random = Random(seed)
    spec, *_ = some_product(random)
    form = form_of(some_hardware(random), spec)
    of = form.correlation
    made = scheduled(form.hardware, of, form.tiling())
    leaves, found = Leaves(made, of.inp_shape), Counter()
    for step in steps(made):
        chunk = leaves.chunk(step.turn, step.chunk) if step.leaf == MULTIPLIED else None
        if chunk is None:
            continue
        stored = leaves.stored(step.turn)
        by = [b - a for a, b in zip(stored.scratch[0], stored.dram[0], strict=True)]
        for result, source, weight in products(chunk):
            place = tuple(a + b for a, b in zip(result, by, strict=True))
            lines = zip(source[3:], (of.rows.source, of.columns.source), strict=True)
            if all(0 <= line < length for line, length in lines):
                found[place, source, weight] += 1
    assert found == counted(of)


def test_a_copy_is_no_larger_than_what_is_read_and_fits_its_part():
    spec = conv_spec("dgrad", (2, 9, 8, 20), 18, (3, 3), ((2, 2), (1, 1), (1, 1), 1), S4, S4)
    form = form_of(PYNQ, spec)
    of, tiling = form.correlation, form.tiling()
    made = scheduled(PYNQ, of, tiling)
    leaves, sizes = Leaves(made, of.inp_shape), sizes_of(of, tiling)
    chunks = [leaves.chunk(one.turn, one.chunk) for one in steps(made) if one.leaf == MULTIPLIED]
    assert any(chunks) and taps_of(of.rows) > 1
    for chunk in filter(None, chunks):
        read = [set(one) for one in list(zip(*products(chunk), strict=True))[1:]]
        for copy, tiles, most in zip(
            (chunk.inp, chunk.wgt), read, (sizes.inp, sizes.wgt), strict=True
        ):
            assert copy.dram.tiles <= most
            for axis, (start, size) in enumerate(zip(*copy.dram, strict=True)):
                lines = {tile[axis] for tile in tiles}
                assert (min(lines), max(lines)) == (start, start + size - 1)


def test_turns_store_every_result_once():
    spec = conv_spec("fprop", (6, 9, 9, 20), 18, (3, 3), ((1, 1), (1, 1), (1, 1), 1), U4, S4)
    form = form_of(PYNQ, spec)
    made = scheduled(PYNQ, form.correlation, form.tiling())
    leaves = Leaves(made, form.correlation.inp_shape)
    assert made.turns is not None and len(made.turns) == made.total
    assert len({turn.block for turn in made.turns}) < made.total  # some come in pieces
    stored = Counter(
        tile
        for turn in range(made.total)
        for tile in product(
            *(range(a, a + n) for a, n in zip(*leaves.stored(turn).dram, strict=True))
        )
    )
    assert stored == Counter(product(*map(range, form.result_shape)))
