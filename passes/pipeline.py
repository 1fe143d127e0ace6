"""The passes, in order, and the runner that times, verifies and prints every stage."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from time import perf_counter

from torch.fx import GraphModule

from sqcompile.passes.assign_precision import assign_precision
from sqcompile.passes.bound_accumulators import bound_accumulators
from sqcompile.passes.canonicalize import canonicalize
from sqcompile.passes.channels_last import channels_last
from sqcompile.passes.collapse_layouts import collapse_layouts
from sqcompile.passes.draw_dropout import draw_dropout
from sqcompile.passes.entries import Entry, text
from sqcompile.passes.fold_constants import fold_constants
from sqcompile.passes.fold_weight_scales import fold_weight_scales
from sqcompile.passes.fuse_epilogues import fuse_epilogues
from sqcompile.passes.fuse_norm_gradients import fuse_norm_gradients
from sqcompile.passes.fuse_norms import fuse_norms
from sqcompile.passes.fuse_quantizers import fuse_quantizers
from sqcompile.passes.fuse_residuals import fuse_residuals
from sqcompile.passes.fuse_tails import fuse_tails
from sqcompile.passes.gather_sums import gather_sums
from sqcompile.passes.limit_activations import limit_activations
from sqcompile.passes.listing import listing
from sqcompile.passes.pack_saved import pack_saved
from sqcompile.passes.pair_quantizers import pair_quantizers
from sqcompile.passes.place_results import place_results
from sqcompile.passes.quantize_norms import quantize_norms
from sqcompile.passes.quantize_operands import quantize_operands
from sqcompile.passes.quantize_softmax import quantize_softmax
from sqcompile.passes.save_slopes import save_slopes
from sqcompile.passes.share_quantized import share_quantized
from sqcompile.passes.verifier import verify
from sqcompile.recipe import Recipe

PARTS = ("forward", "backward")
"""The last two stages: the graphs that are compiled, cut from the joint one."""


@dataclass(frozen=True)
class Pass:
    """A named step; `establishes` is the invariant that the verifier checks from here on."""

    name: str
    run: Callable[[GraphModule], GraphModule]
    establishes: str | None = None

    @property
    def about(self) -> str:
        """What the pass does: the first paragraph of its file's docstring."""
        function = self.run.func if isinstance(self.run, partial) else self.run
        text = sys.modules[function.__module__].__doc__ or ""
        return " ".join(text.partition("\n\n")[0].split())


@dataclass(frozen=True)
class Stage:
    """The graph after a pass as records of its nodes, with the time the pass took and what it is
    about."""

    name: str
    entries: list[Entry]
    milliseconds: float = 0.0
    about: str = ""

    @property
    def text(self) -> str:
        """The graph as Python."""
        return text(self.entries, self.name if self.name in PARTS else "step")

    @property
    def nodes(self) -> int:
        """How many nodes the graph has."""
        return len(self.entries)


def integer_training(recipe: Recipe) -> list[Pass]:
    """Every pass over the joint graph, in order (norms were swapped before autograd)."""
    return [
        # dropout draws from counters, and backward reads its packed mask
        Pass("draw_dropout", draw_dropout),
        # what depends on no input is a constant
        Pass("fold_constants", fold_constants),
        # every product is sq.matmul / conv / conv_input_grad / conv_weight_grad on roots
        Pass("canonicalize", canonicalize),
        # images stay channels last from one product to the next
        Pass("channels_last", channels_last),
        # a product reads and gives tensors through one layout, and numbers scale its result
        Pass("collapse_layouts", collapse_layouts),
        # what these three made of constants is constant
        Pass("fold_derived", fold_constants),
        # every operand of a product has bits, sign and scale axes in meta["sq"]
        Pass(
            "assign_precision",
            partial(assign_precision, recipe=recipe),
            "products have a precision",
        ),
        # an activation ends at a multiple of its mean magnitude, and so does its gradient
        Pass("limit_activations", limit_activations),
        # a softmax is integers with a scale a row, in its product and in its gradient
        Pass("quantize_softmax", partial(quantize_softmax, recipe=recipe)),
        # no scale lies on a reduced axis
        Pass("fold_weight_scales", fold_weight_scales),
        # every product reads integers
        Pass("quantize_operands", quantize_operands, "products read integers"),
        # every norm reads integers, batch norms the accumulators themselves
        Pass("quantize_norms", partial(quantize_norms, recipe=recipe), "norms read integers"),
        # a tensor quantised the same way twice is quantised once
        Pass("share_quantized", share_quantized, "no dangling quantiser"),
        # a gradient's ShiftQuant is one op, read as often as it must be
        Pass("fuse_quantizers", fuse_quantizers),
        # one op quantises a gradient for both of its products
        Pass("pair_quantizers", pair_quantizers),
        # what a smooth activation keeps for backward is its slope, in integers
        Pass("save_slopes", partial(save_slopes, recipe=recipe)),
        # what backward keeps is packed
        Pass("pack_saved", pack_saved),
        # a norm quantises and packs what it gives, and reads packed what it saved
        Pass("fuse_norms", fuse_norms),
        # a batch norm quantises its gradient for the product that it reads
        Pass("fuse_norm_gradients", fuse_norm_gradients),
        # a norm whose float result is kept adds the residual and takes the ReLU
        Pass("fuse_residuals", fuse_residuals),
        # a convolution gives the sums that its batch norm starts from
        Pass("gather_sums", gather_sums),
        # a product writes float32 itself where nothing else reads its accumulators
        Pass("fuse_epilogues", fuse_epilogues),
        # a product adds the residual, and takes a mask
        Pass("fuse_tails", fuse_tails),
        # a product writes its result in the order in which it is read
        Pass("place_results", place_results),
        # |partial sum| < 2^31 is proven, or the reduction is split
        Pass("bound_accumulators", bound_accumulators, "accumulators are bounded"),
    ]


def run(graph: GraphModule, passes: list[Pass]) -> tuple[GraphModule, list[Stage]]:
    """Run passes in order -> the last graph and a stage for the captured graph and each pass.

    Raises BrokenInvariant, naming the node, when a pass breaks what must hold.
    """
    about = "The step as PyTorch traced it: forward and backward in one graph."
    stages = [Stage("captured", listing(graph), about=about)]
    established: frozenset[str] = frozenset()
    for step in passes:
        start = perf_counter()
        graph = step.run(graph)
        milliseconds = (perf_counter() - start) * 1e3
        if step.establishes is not None:
            established |= {step.establishes}
        verify(graph, established)
        stages.append(Stage(step.name, listing(graph), milliseconds, step.about))
    return graph, stages
