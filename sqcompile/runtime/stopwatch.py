"""What measures time on a device: marks among its work, and the seconds between two of them."""

from time import perf_counter
from typing import Any, Protocol


class Stopwatch(Protocol):
    """Marks that are set where work is called, and read when it is done."""

    def mark(self) -> Any:
        """After the work that was called so far, before what is called next."""
        ...

    def seconds(self, start: Any, end: Any) -> float:
        """From one mark to a later one, once the device has come there."""
        ...


class HostStopwatch:
    """The CPU: a call returns when its work is done."""

    def mark(self) -> float:
        """Now."""
        return perf_counter()

    def seconds(self, start: float, end: float) -> float:
        """Their difference."""
        return end - start
