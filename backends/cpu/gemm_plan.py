"""How the operands of a product are stored for the dot product, and where group shifts go.

A dot product of bytes multiplies an unsigned operand with a signed one. An operand that does not
fit its side is stored `bias` away from its value: sum (a + bias) * b = sum a * b + bias * sum b,
and the last term is known per column before the product starts. Only a, the operand whose values
are repeated, ever has a bias.

A group shift multiplies products by a power of two. It costs nothing where operands are packed
already, as long as shifted values fit: b takes what it has room for, a the rest. Where both
together have no room, the reduction is sorted by group and sums are doubled between groups
(`sorted`).
"""

from dataclasses import dataclass

Range = tuple[int, int]
INT32_LIMIT = 2**31


@dataclass(frozen=True)
class Form:
    """An operand is stored as (value << shift) + bias with at most `shift`."""

    unsigned: bool
    bias: int
    shift: int = 0


@dataclass(frozen=True)
class Plan:
    """The forms of a and b; whether the reduction is sorted by group; the largest magnitude that
    a partial sum of one step of k can have in an int32 accumulator."""

    a: Form
    b: Form
    sorted: bool
    step: int

    @property
    def corrected(self) -> bool:
        """Whether accumulators start from, or end with, -bias * sum of b."""
        return bool(self.a.bias)


_BYTES = (
    ((True, 0), (False, 0)),
    ((False, 0), (True, 0)),
    ((True, 128), (False, 0)),
    ((False, -128), (True, 0)),
)
"""(unsigned, bias) of a and b, the cheapest first."""
_WORDS = (((False, 0), (False, 0)),)


def plan(a: Range, b: Range, groups: int, bits: int) -> Plan:
    """The plan for operands in these ranges (before shifts) on a dot product of 8 or 16 bits.

    The pair of forms that leaves a without shift wins, so that a can be read where it is.
    """
    needed = groups - 1
    found: list[Plan] = []
    unshifted: Plan | None = None
    for form_a, form_b in _BYTES if bits == 8 else _WORDS:
        room_a, room_b = _room(a, *form_a, bits), _room(b, *form_b, bits)
        if room_a < 0 or room_b < 0:
            continue
        shift_b = min(needed, room_b)
        shift_a = needed - shift_b
        if shift_a <= room_a:
            first, second = Form(*form_a, shift_a), Form(*form_b, shift_b)
            found.append(Plan(first, second, False, _step(a, b, first, second)))
        if unshifted is None:
            first, second = Form(*form_a), Form(*form_b)
            unshifted = Plan(first, second, True, _sorted_step(a, b, first) << needed)
    if found:
        return min(found, key=lambda one: one.a.shift)
    assert unshifted is not None, "ranges of 8-bit integers fit some form"
    return unshifted


def _room(value: Range, unsigned: bool, bias: int, bits: int) -> int:
    """The largest shift after which a range, biased, fits; -1 when it does not fit at all."""
    low, high = (0, 2**bits - 1) if unsigned else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    shift = -1
    while shift < bits and all(low <= (v << (shift + 1)) + bias <= high for v in value):
        shift += 1
    return shift


def _largest(value: Range) -> int:
    return max(abs(value[0]), abs(value[1]), 1)


def _step(a: Range, b: Range, first: Form, second: Form) -> int:
    """Sums start at -bias * sum b: what is added of a is its value, what is left is its bias."""
    left = max(_largest(a) << first.shift, abs(first.bias))
    return left * (_largest(b) << second.shift)


def _sorted_step(a: Range, b: Range, first: Form) -> int:
    """Sums are corrected at the end: a counts as it is stored."""
    return max(abs(value + first.bias) for value in (*a, 0, 1)) * _largest(b)
