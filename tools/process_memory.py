"""What Linux says of this process's memory."""

import resource
from pathlib import Path


def resident() -> int:
    """Bytes in memory now (VmRSS)."""
    return _status("VmRSS")


def peak() -> int:
    """The most bytes in memory since the process started or `reset_peak` was called (VmHWM)."""
    return _status("VmHWM")


def reset_peak() -> None:
    """Let `peak` count from now on. Raises OSError where /proc/self/clear_refs is read only."""
    Path("/proc/self/clear_refs").write_text("5")


def page_faults() -> int:
    """How many pages the system has handed to the process so far (minor faults)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {name}")
