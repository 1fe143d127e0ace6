"""Names that the parts of this package share: scopes, blocks, attributes."""

INP, WGT, ACC = "local.inp_buffer", "local.wgt_buffer", "local.acc_buffer"
"""Storage scopes of the scratchpads."""

PADDED, SUMS = "padded", "acc"
"""Buffers of the function in scratchpads: an input with zeros around it, accumulators."""

PAD, PRODUCT, STORE = "pad", "product", "store"
"""Blocks of the function: of a padded input, of the sums of products, of the results."""

CLEARED, MULTIPLIED, FETCHED = f"{PRODUCT}_init", f"{PRODUCT}_update", f"wgt_{WGT}"
"""Blocks that a schedule makes: of cleared accumulators, of products, of copied weights; the last
is its buffer's name, too."""

LEAVES = (PAD, FETCHED, CLEARED, MULTIPLIED, STORE)
"""What becomes instructions."""

TURN, CHUNK = "vta.turn", "vta.chunk"
"""Attributes of a leaf: which turn it is of, and which chunk of its block."""

TILE_AXES = 2
"""Axes of a buffer that lie inside a tile: its last."""
