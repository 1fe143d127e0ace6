"""The training protocols of tools/accuracy.py."""
