"""Integer products of onnxruntime: MatMulInteger and ConvInteger, as models of one node."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from sqcompile.errors import TargetUnavailableError


def matmul(a: Tensor, b: Tensor, threads: int) -> Callable[[], object]:
    """a, b int8 or uint8 (..., m, k), (..., k, n) -> a run that gives int32 (..., m, n). Both are
    inputs, since a training step's weights change; they lie as onnxruntime reads them."""
    return _run("MatMulInteger", {"a": a, "b": b}, threads)


def conv(x: Tensor, w: Tensor, window: tuple[Any, ...], threads: int) -> Callable[[], object]:
    """x int8 or uint8 (N, C, H, W), w int8 (O, C / groups, KH, KW) -> a run that gives int32
    (N, O, OH, OW)."""
    stride, padding, dilation, groups = window
    attributes = {
        "strides": list(stride),
        "pads": [*padding, *padding],
        "dilations": list(dilation),
        "group": groups,
    }
    return _run("ConvInteger", {"x": x, "w": w}, threads, **attributes)


def _run(
    op: str, given: dict[str, Tensor], threads: int, **attributes: Any
) -> Callable[[], object]:
    try:
        import onnxruntime
        from onnx import TensorProto, helper
    except ImportError as error:
        raise TargetUnavailableError(
            "onnxruntime is not installed: pip install 'sqcompile[onnx]'"
        ) from error
    types = {"torch.int8": TensorProto.INT8, "torch.uint8": TensorProto.UINT8}
    arrays = {name: value.contiguous().numpy() for name, value in given.items()}
    inputs = [
        helper.make_tensor_value_info(name, types[str(value.dtype)], list(value.shape))
        for name, value in given.items()
    ]
    output = helper.make_tensor_value_info("y", TensorProto.INT32, None)
    node = helper.make_node(op, list(given), ["y"], **attributes)
    graph = helper.make_graph([node], op, inputs, [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    binding = session.io_binding()
    for name, array in arrays.items():
        binding.bind_cpu_input(name, array)
    binding.bind_output("y", "cpu")

    def run() -> object:
        session.run_with_iobinding(binding)
        return binding

    return run
