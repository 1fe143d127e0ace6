"""Element types of torch beside those of ONNX."""

import torch
from onnx import TensorProto

ONNX_TYPES: dict[torch.dtype, int] = {
    torch.float32: TensorProto.FLOAT,
    torch.float64: TensorProto.DOUBLE,
    torch.int8: TensorProto.INT8,
    torch.uint8: TensorProto.UINT8,
    torch.int16: TensorProto.INT16,
    torch.uint16: TensorProto.UINT16,
    torch.int32: TensorProto.INT32,
    torch.uint32: TensorProto.UINT32,
    torch.int64: TensorProto.INT64,
    torch.uint64: TensorProto.UINT64,
    torch.bool: TensorProto.BOOL,
}

TORCH_TYPES: dict[int, torch.dtype] = {code: dtype for dtype, code in ONNX_TYPES.items()}
