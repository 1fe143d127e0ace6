"""Targets and their kernels: from fx graphs to something that runs."""

# Before anything here imports tvm: its pools read the environment that this module sets.
from sqcompile.runtime import threads as _threads  # noqa: F401
