"""A kernel as NVRTC compiles it: right as it stands, and every fault put into it is found."""

from pathlib import Path

import numpy as np
import pytest

from sqcompile.backends.cuda.emulator import ALL, emulate
from sqcompile.backends.cuda.emulator.faults import (
    Deadlock,
    Divergent,
    Misaligned,
    OutOfBounds,
    Race,
    Uninitialised,
)

TEXT = (Path(__file__).parent / "samples" / "gemm.ptx").read_text()


def multiply(text, m=37, n=21, k=96, rows=None, **options):
    """A (rows, k) @ B (n, k)ᵀ on `rows` of m rows, with the matrices."""
    rng = np.random.default_rng(m + n + k)
    a = rng.integers(-128, 128, (rows or m, k), dtype=np.int8)
    b = rng.integers(-128, 128, (n, k), dtype=np.int8)
    c = np.full((rows or m, n), 77, np.int32)
    grid = (-(-n // 16), -(-m // 32))
    emulate(text).launch("gemm", grid, 64, [a, b, c, m, n, k], **options)
    return c, a.astype(np.int32) @ b.astype(np.int32).T


@pytest.mark.parametrize("sizes", [(1, 1, 32), (32, 16, 64), (37, 21, 96), (65, 33, 128)])
def test_products_of_any_size(sizes):
    got, wanted = multiply(TEXT, *sizes, checks=ALL)
    assert np.array_equal(got, wanted)


@pytest.mark.parametrize("options", [{"checks": False}, {"workers": 2}])
def test_faster_ways_give_the_same(options):
    got, wanted = multiply(TEXT, **options)
    assert np.array_equal(got, wanted)


def without(text, line, which=0):
    """The text without one of the lines that hold something."""
    lines = text.splitlines()
    places = [number for number, one in enumerate(lines) if line in one]
    del lines[places[which]]
    return "\n".join(lines)


LANE_3 = """.reg .pred %q; .reg .u32 %lane;
    mov.u32 %lane, %laneid; setp.ne.u32 %q, %lane, 3;"""


@pytest.mark.parametrize(
    ("change", "errors"),
    [
        (lambda t: without(t, "bar.sync", 0), (Race, Uninitialised)),
        (lambda t: without(t, "bar.sync", 1), Race),
        (lambda t: without(t, "cp.async.wait_group 0"), Race),
        (lambda t: without(t, "cp.async.wait_group 1"), (Race, Uninitialised)),
        (lambda t: t.replace("wait_group 1", "wait_group 2"), (Race, Uninitialised)),
        (lambda t: without(t, "cp.async.commit_group", 0), (Race, Uninitialised)),
        (lambda t: t.replace("ldmatrix", f"{LANE_3} @%q ldmatrix", 1), (Divergent, Deadlock)),
        (lambda t: t.replace("bar.sync", "@%p2 bar.sync", 1), (Race, Deadlock)),
    ],
)
def test_faults_that_give_right_results_by_luck(change, errors):
    text = change(TEXT)
    assert text != TEXT
    with pytest.raises(errors):
        multiply(text)


def test_wrong_sizes():
    """One row too many is written, or read by the copies; rows that are no multiple of 16 bytes."""
    with pytest.raises(OutOfBounds, match="argument 0"):
        multiply(TEXT, m=38, rows=37)
    with pytest.raises(OutOfBounds, match="argument 2"):
        multiply(TEXT.replace("%r54;", "0;"), m=38, rows=37)
    with pytest.raises(Misaligned, match="argument 0"):
        multiply(TEXT, k=40)
