"""Whole steps in onnxruntime and in eager PyTorch, side by side."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node

from sqcompile import api
from sqcompile.onnx.export import build
from sqcompile.onnx.model import _input_name
from sqcompile.onnx.source import Source
from sqcompile.ops import OPS
from sqcompile.passes.editing import arguments
from sqcompile.recipe import Recipe

PRODUCTS = {
    "matmul": ("shift_matmul", 7),
    "fprop": ("conv_fprop", None),
    "dgrad": ("conv_dgrad", 10),
    "wgrad": ("conv_wgrad", 10),
}
