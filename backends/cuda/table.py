"""The GPU's kernel table; the modules of this folder fill it when the package is imported."""

from itertools import chain

from sqcompile.backends.cuda.grid import MOST_ELEMENTS, too_large
from sqcompile.backends.kernels import KernelSpec, KernelTable


def _uncounted(spec: KernelSpec) -> str:
    """Why threads cannot count the elements of a tensor, "" where they can."""
    every = chain((one for _, one in spec.tensors()), spec.outputs)
    largest = max(every, key=lambda one: one.size, default=None)
    if largest is None or largest.size <= MOST_ELEMENTS:
        return ""
    return too_large(str(largest), largest.size)


KERNELS = KernelTable("cuda", _uncounted)
