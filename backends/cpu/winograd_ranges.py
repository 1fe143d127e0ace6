"""Which integers Winograd's F(2x2, 3x3) meets, and whether bytes hold them.

y = A^T [(2G w 2G^T) * (B^T x B)] A / 4 over 4x4 tiles of x. Doubling G keeps every number an
integer; the division is exact because the sums are 4 times the convolution. The last row of G
and the last of A^T are negated, so that the last row and column of products are added: a kernel
goes on summing where it has combined the first ones.

Weights of 4 bits become at most 63, unsigned activations of 4 bits -30..60, signed 28: vpdpbusd
takes unsigned times signed bytes, so that inputs are stored with a bias of their position.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

Range = tuple[int, int]
Rows = tuple[tuple[int, ...], ...]

INPUT: Rows = ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1))
"""B^T."""
WEIGHT: Rows = ((2, 0, 0), (1, 1, 1), (1, -1, 1), (0, 0, -2))
"""2G, the last row negated."""
OUTPUT: Rows = ((1, 1, 1, 0), (0, 1, -1, 1))
"""A^T, the last column negated with G."""
SIDE = 4
POSITIONS = tuple(product(range(SIDE), range(SIDE)))
TAPS = tuple(product(range(3), range(3)))


def padded(size: int, multiple: int) -> int:
    """The next multiple of `multiple`."""
    return -(-size // multiple) * multiple


def combined(rows: Sequence[int], columns: Sequence[int], values: Range) -> Range:
    """The range of sum rows[i] * columns[j] * v[i][j] over v in `values`."""
    factors = [a * b for a in rows for b in columns]
    up, down = sum(f for f in factors if f > 0), -sum(f for f in factors if f < 0)
    low, high = values
    return up * low - down * high, up * high - down * low


@dataclass(frozen=True)
class Split:
    """Where the shifts of a product go, and what is added to inputs.

    The shift s of a reduced channel goes to the inputs as min(s, input_bits), the rest to the
    weights. biases: for each of POSITIONS, what makes its transformed inputs unsigned.
    """

    input_bits: int
    weight_bits: int
    biases: tuple[int, ...]

    def correction(self, row: int, column: int) -> tuple[int, ...]:
        """For each of TAPS, the factor of the sum of its weights that takes the biases out of
        four times the result (row, column) of a tile."""
        return tuple(
            -sum(
                bias * OUTPUT[row][i] * OUTPUT[column][j] * WEIGHT[i][a] * WEIGHT[j][b]
                for (i, j), bias in zip(POSITIONS, self.biases, strict=True)
            )
            for a, b in TAPS
        )


def split(inputs: Range, weights: Range, groups: int, depth: int) -> Split | None:
    """The split with the fewest bits on the weights whose bytes hold every integer and whose
    int32 sums over `depth` channels hold every sum; None when there is none.

    groups - 1 is the largest shift. Signed 4-bit operands leave two bits on the inputs
    (28 << 2 = 112) and one on the weights (63 << 1 = 126): four groups.
    """
    for weight_bits in range(groups):
        input_bits = groups - 1 - weight_bits
        scaled = (inputs[0] << input_bits, inputs[1] << input_bits)
        heavy = (weights[0] << weight_bits, weights[1] << weight_bits)
        found = [combined(INPUT[i], INPUT[j], scaled) for i, j in POSITIONS]
        factors = [combined(WEIGHT[i], WEIGHT[j], heavy) for i, j in POSITIONS]
        largest = [max(-low, high) for low, high in factors]
        stored = [high - min(low, 0) for low, high in found]
        total = sum(a * b for a, b in zip(stored, largest, strict=True))
        if max(stored) <= 255 and max(largest) <= 127 and 2 * total * depth < 2**31:
            return Split(input_bits, weight_bits, tuple(-min(low, 0) for low, _ in found))
    return None
