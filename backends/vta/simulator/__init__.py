"""Runs raw VTA programs on a description of the hardware: what they compute, and about how long."""
