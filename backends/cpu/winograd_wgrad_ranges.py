"""Which integers Winograd's F(3x3, 2x2) of a weight's gradient meets, and whether bytes hold them.

dW = 2A^T [sum over tiles of (G g G^T) * (B^T x B)] 2A / 4 over 2x2 tiles of the gradient g and the
4x4 tiles of x under them, with B^T of F(2x2, 3x3). The halves of G stand in A, so that transformed
gradients stay small: one value at the corners of the 16 positions, the sum of two at the edges and
of four in the centre. Four groups of 4 bits make them 56, 112 and 224; a centre that no byte holds
is two operands, v = 2 h + l with l = -1 or 0: 20 products a tile instead of 36.
"""

from dataclasses import dataclass

from sqcompile.backends.cpu.winograd_ranges import INPUT, POSITIONS, Range, Rows, combined

GRADIENT: Rows = ((1, 0), (1, 1), (1, -1), (0, 1))
"""G."""
OUTPUT: Rows = ((2, 1, 1, 0), (0, 1, -1, 0), (0, 1, 1, -2))
"""2A^T, the last column negated with B^T."""
CENTRE = (1, 2)
"""Rows (and columns) of the positions where gradients are sums of two."""
LIMIT = 2**31


@dataclass(frozen=True)
class Form:
    """biases: for each of POSITIONS, what makes transformed inputs unsigned; halved: whether
    gradients of the centre are two operands."""

    biases: tuple[int, ...]
    halved: bool

    @property
    def planes(self) -> int:
        """Operands that a tile of the gradient becomes."""
        return len(POSITIONS) + (len(CENTRE) ** 2 if self.halved else 0)


def form(given: Range, seen: Range, groups: int, tiles: int) -> Form | None:
    """The form whose bytes hold gradients in `given`, shifted by up to groups - 1, and inputs in
    `seen`, and whose int32 sums hold every sum over `tiles` tiles; None when there is none."""
    given, seen = ((min(low, 0), max(high, 0)) for low, high in (given, seen))
    given = (given[0] << groups - 1, given[1] << groups - 1)
    found = [combined(INPUT[i], INPUT[j], seen) for i, j in POSITIONS]
    factors = [combined(GRADIENT[i], GRADIENT[j], given) for i, j in POSITIONS]
    stored = [high - low for low, high in found]
    largest = [max(-low, high) for low, high in factors]
    outer = max(v for v, p in zip(largest, POSITIONS, strict=True) if not _central(p))
    if max(stored) > 255 or outer > 127 or max(largest) > 254:
        return None
    halved = max(largest) > 127
    largest = [v + halved * _central(p) for v, p in zip(largest, POSITIONS, strict=True)]
    single = max(2 * a * b for a, b in zip(stored, largest, strict=True))
    sizes = [max(-low, high) * b for (low, high), b in zip(found, largest, strict=True)]
    if tiles * max(single, *(_total(a, b, sizes) for a in OUTPUT for b in OUTPUT)) >= LIMIT:
        return None
    return Form(tuple(-low for low, _ in found), halved)


def _central(position: tuple[int, int]) -> bool:
    return all(one in CENTRE for one in position)


def _total(row: tuple[int, ...], column: tuple[int, ...], sizes: list[int]) -> int:
    """What one result may be, four times."""
    return sum(
        abs(row[i] * column[j]) * size for (i, j), size in zip(POSITIONS, sizes, strict=True)
    )
