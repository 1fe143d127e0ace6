"""Where a convolution reads and writes: axes, taps, phases.

fprop and dgrad are one correlation: result q of an axis adds the lines q * stride + offset,
... + spacing, ... of an image. A strided dgrad is `stride` such correlations, one for each
residue of the result's coordinate, so that no zero between two gradients is ever multiplied.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd

from sqcompile.backends.kernels import KernelSpec


@dataclass(frozen=True)
class Axis:
    """One spatial axis of a convolution; `size` of the input, `out` of the output."""

    size: int
    out: int
    kernel: int
    stride: int
    padding: int
    dilation: int


@dataclass(frozen=True)
class Geometry:
    """A convolution; channels are counted per group."""

    images: int
    groups: int
    inputs: int
    outputs: int
    rows: Axis
    columns: Axis

    @classmethod
    def of(
        cls, spec: KernelSpec, x: Sequence[int], w: Sequence[int], y: Sequence[int]
    ) -> "Geometry":
        """From the shapes of x (N, H, W, C), w (O, C / groups, KH, KW) and y (N, OH, OW, O)."""
        rows, columns = (
            Axis(
                x[1 + i],
                y[1 + i],
                w[2 + i],
                spec["stride"][i],
                spec["padding"][i],
                spec["dilation"][i],
            )
            for i in range(2)
        )
        groups = spec["groups"]
        return cls(x[0], groups, w[1], w[0] // groups, rows, columns)

    @property
    def taps(self) -> int:
        """Pixels of a kernel."""
        return self.rows.kernel * self.columns.kernel

    @property
    def depthwise(self) -> bool:
        """Whether every channel is a group of its own."""
        return self.inputs == self.outputs == 1


@dataclass(frozen=True)
class Phase:
    """Results first, first + step, ... of an axis, `count` of them.

    Result q reads the source's lines q * stride + offset + i * spacing, i < taps, with kernel
    line kernel + i * kernel_step.
    """

    first: int
    count: int
    offset: int
    taps: int
    kernel: int


@dataclass(frozen=True)
class Lines:
    """One axis of a correlation: its phases and what they share.

    The image holds every `pitch`-th line of the source from `origin` on: `stride` and `spacing`
    are counted in lines of the image.
    """

    source: int
    results: int
    step: int
    stride: int
    spacing: int
    kernel_step: int
    pitch: int
    phases: tuple[Phase, ...]

    @property
    def origin(self) -> int:
        """The source line that the image starts with."""
        return min((p.offset for p in self.phases if p.taps), default=0)

    @property
    def reach(self) -> int:
        """Lines of the image that one result of each phase reads, first to last."""
        ends = [self.start(p) + (p.taps - 1) * self.spacing for p in self.phases if p.taps]
        return max(ends, default=0) + 1

    @property
    def count(self) -> int:
        """The most results of a phase; others may have one less."""
        return max((p.count for p in self.phases), default=0)

    def start(self, phase: Phase) -> int:
        """The first image line that result 0 of a phase reads."""
        return (phase.offset - self.origin) // self.pitch if phase.taps else 0

    def lines(self, results: int) -> int:
        """Lines of the image that `results` results of each phase read."""
        return (results - 1) * self.stride + self.reach


def forward(axis: Axis, skip: bool) -> Lines:
    """The axis of fprop; `skip`: the image leaves out lines that no result reads."""
    pitch = 1
    if skip:
        pitch = axis.stride if axis.kernel == 1 else gcd(axis.stride, axis.dilation)
    phase = Phase(0, axis.out, -axis.padding, axis.kernel, 0)
    spacing = axis.dilation // pitch if axis.kernel > 1 else 1
    return Lines(axis.size, axis.out, 1, axis.stride // pitch, spacing, 1, pitch, (phase,))


def backward(axis: Axis) -> Lines:
    """The axis of dgrad: one phase for each residue modulo the stride.

    Result r + stride * q meets kernel line k when r + padding - k * dilation is a multiple of
    the stride, and reads gradient line q + (r + padding - k * dilation) / stride then.
    """
    shared = gcd(axis.stride, axis.dilation)
    phases = []
    for r in range(min(axis.stride, axis.size)):
        met = [
            k
            for k in range(axis.kernel)
            if (r + axis.padding - k * axis.dilation) % axis.stride == 0
        ]
        last = met[-1] if met else 0
        offset = (r + axis.padding - last * axis.dilation) // axis.stride
        count = -(-(axis.size - r) // axis.stride)
        phases.append(Phase(r, count, offset, len(met), last))
    spacing, between = axis.dilation // shared, axis.stride // shared
    return Lines(axis.out, axis.size, axis.stride, 1, spacing, -between, 1, tuple(phases))
