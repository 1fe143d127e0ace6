"""The instructions that this machine shows, by the names of /proc/cpuinfo."""

from collections.abc import Iterable
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


def shown() -> set[str]:
    """The flags of the first processor, without underscores; none where there is no such file or
    the architecture lists them otherwise."""
    try:
        lines = CPUINFO.read_text().splitlines()
    except OSError:
        return set()
    flags = next((line for line in lines if line.startswith("flags")), "")
    return {flag.replace("_", "") for flag in flags.partition(":")[2].split()}


def missing(needed: Iterable[str]) -> list[str]:
    """Which of these this machine does not show; none where it shows nothing."""
    here = shown()
    return sorted(set(needed) - here) if here else []
