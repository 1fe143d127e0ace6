"""How each kind of fault is told, and what to look at first."""

from dataclasses import dataclass

from sqcompile.backends.cuda.emulator import faults
from sqcompile.backends.cuda.emulator.faults import Fault


@dataclass(frozen=True)
class Hint:
    """`what` is filled with the place, the runtime's own text and the number of bytes."""

    what: str
    look_at: str


HINTS: dict[type[Fault], Hint] = {
    faults.OutOfBounds: Hint(
        "{bytes} bytes are accessed at {where}",
        "Look at the index and at the guard of tails.",
    ),
    faults.Misaligned: Hint(
        "{bytes} bytes are accessed at {where}, no multiple of {bytes}",
        "Look at offsets and strides that a vector access or ldmatrix runs over.",
    ),
    faults.Uninitialised: Hint(
        "{bytes} bytes are read at {where}, and not all of them have been written",
        "Look at which threads fill this memory, at tails, and for a missing barrier before this.",
    ),
    faults.Race: Hint(
        "{bytes} bytes at {where}: the thread {text}, and no barrier is between",
        "Look for a missing __syncthreads, __syncwarp or wait for cp.async.",
    ),
    faults.BlockRace: Hint(
        "{bytes} bytes at {where} are also used by {text}, and one of both writes",
        "Blocks of a launch have no order: look at which block owns what.",
    ),
    faults.Deadlock: Hint(
        "threads wait forever:{text}",
        "Look for a barrier or a *.sync in a branch that not all of these threads take.",
    ),
    faults.Divergent: Hint(
        "lanes do not execute this together: {text}",
        "Look at the mask, and at branches around this line.",
    ),
    faults.Undefined: Hint(
        "PTX does not define this result: {text}",
        "Look for a division by 0 or an overflowing one, a lane that takes no part, a wrong size.",
    ),
    faults.Trap: Hint("trap was executed", "An assertion of the kernel has failed."),
    faults.Runaway: Hint(
        "the thread branched backwards {bytes} times",
        "Look at the loop's end; or it waits for another block, which nothing guarantees to run.",
    ),
}
