"""Values in memory: two's complement of a power-of-two width, the first in the lowest bits."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

_SIGNED: dict[int, np.dtype[Any]] = {8: np.dtype("<i1"), 16: np.dtype("<i2"), 32: np.dtype("<i4")}


def unpacked(data: NDArray[np.uint8], width: int) -> NDArray[np.int32]:
    """(..., n) bytes -> (..., n * 8 / width) int32, sign-extended."""
    if width in _SIGNED:
        return np.ascontiguousarray(data).view(_SIGNED[width]).astype(np.int32)
    places = np.arange(0, 8, width)
    values = (data[..., None].astype(np.int32) >> places) & ((1 << width) - 1)
    sign = 1 << (width - 1)
    return ((values ^ sign) - sign).reshape(*data.shape[:-1], -1).astype(np.int32)


def packed(values: NDArray[np.int32], width: int) -> NDArray[np.uint8]:
    """(..., n) int32 -> (..., n * width / 8) bytes of their lowest `width` bits."""
    if width in _SIGNED:
        return np.ascontiguousarray(values.astype(_SIGNED[width])).view(np.uint8)
    places = np.arange(0, 8, width)
    grouped = values.reshape(*values.shape[:-1], -1, len(places)) & ((1 << width) - 1)
    return (grouped << places).sum(-1).astype(np.uint8)
