"""Looking into a compiled step: its values node by node, what quantising costs, which is at fault.

Everything runs in the reference graphs, which are what kernels compute, bit for bit.
"""
