"""What few-bit integers cost softmax and its gradient, against softmax in float64.

    python tools/softmax_error.py --rows 128 --causal

Scores are normal with some standard deviation, gradients normal around an offset. Squared errors
relative to the squared values: of the probabilities with one scale a head or one a row, and of
the gradient from integers with a scale a row, its mean by `sum(g y)` or by `sum(g q) / sum(q)`.
"""

import sys
from pathlib import Path

import click
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a checkout, not installed

from sqcompile.ops.quantize import absmax, quant_scale, quantize
from sqcompile.ops.softmax import softmax_quantize, softmax_quantized_backward

BITS, DEVIATIONS, OFFSETS = (4, 6, 8), (0.5, 1.0, 2.0, 3.0), (0.0, 3.0)
HEADS = 64


def errors(x: Tensor, g: Tensor, bits: int) -> tuple[float, float, float, float]:
    """x, g float32 (heads, rows, rows) -> errors of the probabilities, a scale a head and a row,
    mean over rows; of the gradient by the plain and by the normalised sum."""
    y = x.double().softmax(-1)
    wanted = y * (g - (g * y).sum(-1, keepdim=True))
    q, scale = softmax_quantize.reference(x, bits, False)
    near = q * scale.double()
    r = absmax.reference(y.float(), None, [1, 2])
    by_head = quantize.reference(y.float(), r, bits, False) * quant_scale.reference(
        r, bits, False, 1
    )
    plain = near * (g - (g * near).sum(-1, keepdim=True))
    normalised = softmax_quantized_backward.reference(g, q, scale)
    rows = [(one - y).square().sum(-1) / y.square().sum(-1) for one in (by_head, near)]
    all_ = [(one - wanted).square().sum() / wanted.square().sum() for one in (plain, normalised)]
    head, row, first, second = (float(one.mean()) for one in (*rows, *all_))
    return head, row, first, second


@click.command(help=__doc__)
@click.option("--rows", default=128, show_default=True, help="Queries and keys of a head.")
@click.option("--causal", is_flag=True, help="Mask what is after a query.")
def main(rows: int, causal: bool) -> None:
    """Print a line for every deviation, offset and number of bits."""
    torch.manual_seed(0)
    print("bits  deviation  offset   P by head   P by row   dx plain   dx normalised")
    later = torch.ones(rows, rows).triu(1).bool()
    for bits in BITS:
        for deviation in DEVIATIONS:
            for offset in OFFSETS:
                x = torch.randn(HEADS, rows, rows) * deviation
                if causal:
                    x = x.masked_fill(later, -torch.inf)
                found = errors(x, torch.randn(x.shape) + offset, bits)
                print(f"{bits:4}  {deviation:9}  {offset:6}  ", *(f"{one:9.1e}" for one in found))


if __name__ == "__main__":
    main()
