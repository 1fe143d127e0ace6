"""What a kernel's programs are, and how often they are written."""

from collections import Counter

import pytest

from sqcompile.backends.kernels import KernelSpec, TensorSpec
from sqcompile.backends.vta import program, written
from sqcompile.backends.vta.graph import offload, table
from sqcompile.backends.vta.graph.fused import fused
from sqcompile.backends.vta.hardware import PRESETS
from sqcompile.backends.vta.program import Program, product_program


def convolution(groups):
    """3x3, with exponents of channels where there are groups, and its sums."""
    operands = {"x": (2, 6, 6, 20), "w": (18, 20, 3, 3)}
    operands |= {"exponent": (1, 1, 1, 20)} if groups > 1 else {}
    inputs = [(name, TensorSpec(shape, "int8")) for name, shape in operands.items()]
    inputs += [] if groups > 1 else [("exponent", None)]
    attributes = dict.fromkeys(("stride", "padding", "dilation"), (1, 1))
    attributes |= {"shift_groups": groups, "groups": 1, "k_chunk": 0}
    attributes |= {"ranges": ((-7, 7), (-7, 7))}
    accumulators = TensorSpec((2, 6, 6, 18), "int32")
    product = KernelSpec(
        "sq::conv_fprop", tuple(inputs), tuple(attributes.items()), (accumulators,)
    )
    reader = KernelSpec(
        table.SUM, (("self", accumulators),), (("dim", (0, 1, 2)),), (TensorSpec((18,), "int64"),)
    )
    return product, reader


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("chip", ["pynq", "pynq-int4"])
def test_a_program_is_written_and_proven_once(monkeypatch, groups, chip):
    """However often it is asked for: for support, for the module, to compare cycles."""
    asked, proofs = Counter(), Counter()
    write, check = program._program, Program.check

    def counted(hardware, spec, overlap):
        asked[spec] += 1
        return write(hardware, spec, overlap)

    def proven(self):
        proofs[self.spec] += 1
        return check(self)

    monkeypatch.setattr(program, "_program", counted)
    monkeypatch.setattr(Program, "check", proven)
    written.proven.cache_clear()
    product, reader = convolution(groups)
    made = [offload.offload(product, PRESETS[chip]) for _ in range(2)]
    both = [fused(product, reader, PRESETS[chip]) for _ in range(2)]
    assert made[0] == made[1] and both[0] == both[1]
    assert offload.product_spec(product) in asked
    assert any(getattr(spec, "sums", False) for spec in asked)
    assert set(asked.values()) == {1} and proofs == asked


def test_a_fixed_program_is_the_one_that_its_product_asks_for():
    product, _ = convolution(4)
    (made,) = offload.offload(product, PRESETS["pynq"])
    whole = product_program(PRESETS["pynq"], offload.product_spec(product))
    assert made.data == whole.to_bytes() and not made.written_for
