"""What the tests of torch.compile(backend="sqcompile") share: modules, and what they compare."""

import torch
import torch.nn.functional as F
from torch import nn

from sqcompile.dynamo import torch_backend
from sqcompile.recipe import Recipe

FLAT = Recipe("flat", rules=())
"""No rule for first and last products, which differ where a graph is broken in two."""


def compiled(model, **options):
    return torch.compile(model, backend="sqcompile", options=options)


def counting(graphs):
    """The backend, which also appends every graph that it compiles to `graphs`."""

    def backend(graph, inputs, **keywords):
        run = torch_backend(graph, inputs, **keywords)
        graphs.append(graph)
        return run

    return backend


def grads(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


class Whole(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x):
        return self.b(F.relu(self.a(x)))


class Broken(Whole):
    def forward(self, x):
        h = self.a(x)
        torch._dynamo.graph_break()
        return self.b(F.relu(h))


class BrokenInPlace(Whole):
    def forward(self, x):
        h = self.a(x)
        torch._dynamo.graph_break()
        return self.b(F.relu_(h))


def halves(kind=Whole):
    torch.manual_seed(0)
    return kind(), torch.randn(6, 8)
