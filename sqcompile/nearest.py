"""What a user can write in place of an op that no target runs. Tests run every one of these."""

from collections.abc import Callable

from torch.fx import Node

_RANDOM = "nn.Dropout, or random numbers as an input of the model"
_OUTSIDE = "the loss outside the compiled model, which PyTorch computes"
_INDEX = "x.index_select(dim, index), nn.Embedding, or a product with a mask"
_POWER = "x * x, torch.sqrt(x), or torch.exp(p * torch.log(x)) where x is positive"
_SPREAD = "((x - x.mean(dim, keepdim=True)) ** 2).sum(dim) / (n - 1), its torch.sqrt for std"
_FRAMES = "nn.MaxPool2d or nn.AvgPool2d of every frame: x.transpose(1, 2).flatten(0, 1)"
_FLOAT = (
    "float32 throughout: without .half(), .bfloat16(), .double(), .to(dtype) and torch.autocast; "
    "the recipe says in how many bits products are computed"
)
_OUTSIDE_INTEGERS = "integers as an input of the model, or float32 throughout"
_IMAGES = 'mode="bilinear" or "nearest", of images (N, C, H, W)'


def _convolution(node: Node) -> str:
    inputs = [one.meta["val"].dim() for one in node.all_input_nodes]
    transposed = any(argument is True for argument in node.args)
    if transposed:
        return "F.interpolate(x, scale_factor=2) and nn.Conv2d"
    if inputs and inputs[0] == 3:
        return "nn.Conv2d(..., (1, k)) of x.unsqueeze(2), and .squeeze(2)"
    return "nn.Conv2d of every frame: x.transpose(1, 2).flatten(0, 1)"


def _conversion(node: Node) -> str:
    return _FLOAT if node.meta["val"].is_floating_point() else _OUTSIDE_INTEGERS


_NEAREST: dict[str, str | Callable[[Node], str]] = {
    "convolution": _convolution,
    "mish": "nn.SiLU or nn.GELU",
    "softplus": "nn.ELU or nn.ReLU",
    "log_sigmoid_forward": "torch.log(torch.sigmoid(x))",
    "log_sigmoid": "torch.log(torch.sigmoid(x))",
    "glu": "a, b = x.chunk(2, dim), then a * torch.sigmoid(b)",
    "rrelu_with_noise_functional": "nn.LeakyReLU",
    "rrelu_with_noise": "nn.LeakyReLU",
    "threshold": "torch.where(x > threshold, x, value)",
    "new_empty": 'padding_mode="zeros"',
    "max_pool3d_with_indices": _FRAMES,
    "avg_pool3d": _FRAMES,
    "fractional_max_pool2d": "nn.MaxPool2d",
    "adaptive_max_pool2d": "nn.MaxPool2d with kernel_size and stride",
    "_unsafe_index": _IMAGES,
    "_unsafe_index_put": _IMAGES,
    "_upsample_bilinear2d_aa": "antialias=False",
    "im2col": "nn.Conv2d, which needs no patches written out",
    "col2im": "nn.Conv2d, which needs no patches written out",
    "rand": _RANDOM,
    "rand_like": _RANDOM,
    "randn": _RANDOM,
    "randn_like": _RANDOM,
    "bernoulli": _RANDOM,
    "log1p": "torch.log(1 + x)",
    "sin": "what does not depend on an input computed in __init__ and kept by register_buffer",
    "cos": "what does not depend on an input computed in __init__ and kept by register_buffer",
    "sinh": "(torch.exp(x) - torch.exp(-x)) / 2",
    "cosh": "(torch.exp(x) + torch.exp(-x)) / 2",
    "pow": _POWER,
    "maximum": "torch.where(a > b, a, b)",
    "minimum": "torch.where(a < b, a, b)",
    "max": "x.amax(dim), where the index is not needed",
    "min": "-(-x).amax(dim), where the index is not needed",
    "amin": "-(-x).amax(dim)",
    "std": _SPREAD,
    "var": _SPREAD,
    "linalg_vector_norm": "torch.sqrt((x * x).sum(dim))",
    "logsumexp": "m + torch.log(torch.exp(x - m).sum(dim)) with m = x.amax(dim, keepdim=True)",
    "tril": "a product with a mask that register_buffer keeps",
    "triu": "a product with a mask that register_buffer keeps",
    "gather": _INDEX,
    "binary_cross_entropy": _OUTSIDE,
    "binary_cross_entropy_with_logits": _OUTSIDE,
    "xlogy": _OUTSIDE,
    "_to_copy": _conversion,
    "embedding": "sparse=False and scale_grad_by_freq=False",
    "embedding_dense": "sparse=False and scale_grad_by_freq=False",
    "_embedding_bag": 'mode="mean" or mode="sum"',
    "_cdist_forward": "torch.sqrt((a * a).sum(-1, keepdim=True) + (b * b).sum(-1) - 2 * a @ b.T)",
    "_cdist": "torch.sqrt((a * a).sum(-1, keepdim=True) + (b * b).sum(-1) - 2 * a @ b.T)",
}
"""By ATen name; that of a gradient without "_backward" where it is not there itself."""


def nearest(node: Node, name: str) -> str:
    """What runs in place of a node whose op is called `name` ("aten.mish"), or ""."""
    short = name.partition(".")[2].removesuffix("_backward")
    known = _NEAREST.get(short, "") if name.startswith("aten.") else ""
    return known if isinstance(known, str) else known(node)
