"""What can be wrong with PTX and with what it does."""

from sqcompile.errors import SqError, UsageError


class PtxError(SqError):
    """PTX that the emulator does not take: its form, or instructions without an entry."""


class LaunchError(UsageError):
    """A launch or a use of memory that does not fit the module: names, sizes, arguments."""


class Fault(SqError):
    """Something a kernel did that is wrong or that PTX leaves undefined.

    kernel, block and thread say who, line and source which instruction of the PTX text.
    """

    def __init__(
        self,
        what: str,
        kernel: str = "",
        block: tuple[int, int, int] = (0, 0, 0),
        thread: tuple[int, int, int] = (0, 0, 0),
        line: int = 0,
        source: str = "",
        hint: str = "",
    ) -> None:
        self.kernel, self.block, self.thread = kernel, block, thread
        self.line, self.source = line, source
        lines = [f"{kernel}: {what}", f"  block {block}, thread {thread}"]
        if line:
            lines.append(f"  PTX line {line}: {source}")
        if hint:
            lines.append(f"  {hint}")
        super().__init__("\n".join(lines))


class OutOfBounds(Fault):
    """An access outside of the memory it belongs to."""


class Misaligned(Fault):
    """An address that is no multiple of the bytes accessed."""


class Uninitialised(Fault):
    """A read of memory that nobody has written."""


class Race(Fault):
    """Two accesses of one byte of shared memory by two threads, one of them a write, with no
    barrier between them; or data of a cp.async used before it was waited for."""


class BlockRace(Fault):
    """Two blocks access one byte of global memory, one of them writes, and not both atomically."""


class Deadlock(Fault):
    """Threads wait for each other forever: a barrier or *.sync that not all of them reach."""


class Divergent(Fault):
    """Threads that must execute one instruction together do not, or one that is not in its own
    mask."""


class Undefined(Fault):
    """An operation whose result PTX does not define: a division by 0, a read of a lane that takes
    no part."""


class Trap(Fault):
    """The kernel executed trap, which an assertion that failed does."""


class Runaway(Fault):
    """A thread that has branched backwards too often: most probably it never ends."""


KINDS: tuple[type[Fault], ...] = (
    OutOfBounds,
    Misaligned,
    Uninitialised,
    Race,
    BlockRace,
    Deadlock,
    Divergent,
    Undefined,
    Trap,
    Runaway,
)
"""By number, from 1, as the runtime names them (enum FaultKind in ptx.h)."""
