"""Targets and their kernels: from fx graphs to something that runs."""
