"""The products of a bench multiply what they say, and peers of the same job give the same."""

import pytest
import torch

from sqcompile.bench.products import Form, _Conv, _Matmul, forms, measure


def ours(product):
    """What our kernel gives."""
    return torch.from_dlpack(product.ours()()[0])


def matmul(groups=1, first=(6, 20), second=(9, 20), out=(6, 9)):
    return Form("shift_matmul", (first, second, out), ("s4", "s4"), groups, ())


def test_the_largest_products_come_first_and_equal_ones_are_one():
    one = {
        "op": "sq.shift_matmul_dequantize",
        "shapes": [[2, 3], [4, 3], [2, 4]],
        "operands": ["u4", "s4"],
        "groups": 1,
        "window": [],
        "integer": True,
        "macs": 24,
    }
    large = {**one, "op": "sq.conv_fprop_sums", "window": [[1, 1], [1, 1], [1, 1], 1], "macs": 40}
    found = forms([one, one, large, {**one, "integer": False, "macs": 999}], 5)
    assert [(form.op, calls, macs) for form, calls, macs in found] == [
        ("shift_matmul", 2, 24),
        ("conv_fprop", 1, 40),
    ]
    assert len(forms([one, large], 1)) == 1


@pytest.mark.parametrize(
    ("first", "second"), [((6, 20), (9, 20)), ((6, 20), (20, 9)), ((20, 6), (20, 9))]
)
def test_all_who_multiply_integers_give_the_same(first, second):
    product = _Matmul(matmul(first=first, second=second))
    a, b = product._operands(lambda x: x)
    wanted = a.to(torch.int64) @ b.to(torch.int64)
    assert torch.equal(ours(product).to(torch.int64), wanted)
    for run in product._int_mm():
        assert torch.equal(run().to(torch.int64), wanted)


def test_onnxruntime_multiplies_and_convolves_the_same():
    pytest.importorskip("onnxruntime")
    product = _Matmul(matmul())
    run = product.peers(1)["onnxruntime"]()[0]
    assert torch.equal(torch.from_numpy(run().copy_outputs_to_cpu()[0]), ours(product))
    window = ((1, 1), (1, 1), (1, 1), 1)
    shapes = ((2, 5, 5, 3), (4, 3, 3, 3), (2, 5, 5, 4))
    conv = _Conv(Form("conv_fprop", shapes, ("u4", "s4"), 1, window))
    theirs = torch.from_numpy(conv._onnx(1)[0]().copy_outputs_to_cpu()[0])
    assert torch.equal(theirs.permute(0, 2, 3, 1), ours(conv))


def test_times_by_who_computes_and_reasons():
    found = measure(matmul(groups=3), threads=1, warmup=0, runs=3)
    assert {"sqcompile", "torch._int_mm", "fp32 PyTorch", "bf16 PyTorch"} <= set(found["rows"])
    assert all(times.median_ms > 0 and times.runs == 3 for times in found["rows"].values())
    batched = matmul(first=(2, 6, 20), second=(2, 9, 20), out=(2, 6, 9))
    found = measure(batched, threads=1, warmup=0, runs=3)
    assert "batches" in found["skipped"]["torch._int_mm"]
