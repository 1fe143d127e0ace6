"""The saved integer of an xhat beside every threshold, where a product and a division part."""

import numpy as np
import pytest
import torch
import tvm

from sqcompile.backends import targets
from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.build import llvm_target
from sqcompile.backends.cpu.saved_xhat import exact_factors, saved
from sqcompile.backends.kernels import KernelSpec, TensorSpec
from sqcompile.ops.norm import _saved
from sqcompile.recipe import _SAVED_STEPS
from tests.backends.conftest import OLDER_CPUS


def beside_thresholds(bits: int, step: float) -> torch.Tensor:
    """The floats next to every multiple of step, zeros of both signs, tiny and huge numbers."""
    value = (np.arange(-(2 ** (bits - 1)) - 1, 2 ** (bits - 1) + 2) * step).astype(np.float32)
    found = [value, np.array([0.0, -0.0, 1e-45, -1e-45, -1e-38, 3e38, -3e38], dtype=np.float32)]
    for direction in (-np.inf, np.inf):
        near = value
        for _ in range(12):
            near = np.nextafter(near, np.float32(direction))
            found.append(near)
    return torch.from_numpy(np.concatenate(found))


@pytest.mark.parametrize("cpu", ["", *OLDER_CPUS])
@pytest.mark.parametrize(("bits", "step"), [*_SAVED_STEPS.items(), (4, 0.25), (4, 1.5)])
def test_saved_integers_are_those_of_the_division(bits: int, step: float, cpu: str) -> None:
    x = beside_thresholds(bits, step)
    size = (x.numel(),)
    spec = KernelSpec(
        "saved", (("x", TensorSpec(size, "float32")),), (), (TensorSpec(size, "int8"),)
    )
    target = targets.get("cpu", mcpu=cpu)
    with target.compiled_for(), nest.function(spec) as f:
        (k,) = f.outputs
        nest.vectors(
            x.numel(), lambda i: k.store(i, nest.cast(saved(f["x"][i], bits, step), "int8"))
        )
    kernel = f.result.with_attr("global_symbol", "saved")
    out = torch.empty(size, dtype=torch.int8)
    tvm.compile(kernel, target=llvm_target(target))["saved"](x, out)
    assert torch.equal(out, _saved(x, bits, step))


def test_the_default_of_four_bits_needs_no_division() -> None:
    assert len(exact_factors(4, _SAVED_STEPS[4])) == 2
    assert exact_factors(4, 0.25) == (4.0,)
    assert exact_factors(8, _SAVED_STEPS[8]) == ()
    assert exact_factors(4, 1.5) == ()
