"""Measuring: a step and its products beside PyTorch and onnxruntime, saved, compared, and gated."""
