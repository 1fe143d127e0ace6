"""The pictures of docs/how-it-works.md: graphs of the model of docs/getting-started.md.

    python tools/graph_pictures.py

runs the passes on that model and writes docs/graphs/*.svg. A picture has what holds at least a
hundred numbers: scales are left out, and so are views and tuples. Its digest is of what it shows,
so that a test finds a picture that is no longer true wherever boxes come to stand.
"""

import hashlib
import re
import runpy
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise
from math import prod
from pathlib import Path
from typing import Any

import igraph
import jinja2
import torch
from torch.fx import GraphModule, Node

from sqcompile import api
from sqcompile._torch_compat import Port
from sqcompile.api import Rewritten
from sqcompile.passes.printing import dtype_name, op_name
from sqcompile.recipe import Recipe

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "graphs"
PAGE = ROOT / "docs" / "getting-started.md"
TEMPLATE = Path(__file__).with_name("graph_picture.svg.j2")
MODEL = re.compile(r'^```python title="model.py"\n(.*?)^```$', re.MULTILINE | re.DOTALL)
DIGEST = re.compile(r"with digest (\w+)")

LEAST = 100
"""Elements from which on a value is shown."""
_LAYOUTS = ("view", "permute", "expand", "unsqueeze", "clone", "detach", "t")
SEEN_THROUGH = {"getitem", *(f"aten.{name}" for name in _LAYOUTS)}
FLOAT_PRODUCTS = ("aten.convolution", "aten.convolution_backward", "aten.mm", "aten.addmm")
TITLES = {
    "captured": "One training step as PyTorch has it, in float32",
    "forward": "The forward graph in integers",
    "backward": "The backward graph in integers",
}
LEGEND = {
    "product": "product of integers",
    "multiplied": "product in float32",
    "integer": "makes integers",
    "floating": "float32",
    "given": "given or returned",
    "kept": "kept for backward",
}
LAYER, GAP, PADDING, TOP, BEND = 92, 18, 24, 46, 12.0


@dataclass
class Box:
    """A node of a picture; place and size are in pixels, of its middle."""

    kind: str
    name: str
    notes: list[str]
    x: float = 0
    y: float = 0
    width: int = 0
    height: int = 0

    def __post_init__(self) -> None:
        longest = max(len(self.name) * 8.2, *(len(note) * 6.4 for note in self.notes))
        self.width, self.height = int(longest) + 20, 24 + 15 * len(self.notes)


@dataclass
class Picture:
    """Boxes, and flows between them by number."""

    boxes: list[Box] = field(default_factory=list)
    flows: list[tuple[int, int]] = field(default_factory=list)

    def add(self, box: Box) -> int:
        """A box -> its number."""
        self.boxes.append(box)
        return len(self.boxes) - 1

    @property
    def digest(self) -> str:
        """Of what is shown, wherever it stands."""
        told = repr([(box.kind, box.name, box.notes) for box in self.boxes]) + repr(self.flows)
        return hashlib.sha256(told.encode()).hexdigest()[:16]


def rewritten() -> Rewritten:
    """The step of the page's model, as captured and after all passes."""
    found = MODEL.search(PAGE.read_text(encoding="utf-8"))
    assert found is not None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "model.py")
        file.write_text(found[1], encoding="utf-8")
        model = runpy.run_path(str(file))
        torch.manual_seed(0)
        return api.rewrite(
            model["make_model"](), model["example_inputs"](), {}, Recipe.load("w4a4g4")
        )


def pictures(step: Rewritten) -> dict[str, Picture]:
    """The three pictures of a step by name."""
    captured, parts = step.captured, step.parts
    assert parts.backward is not None
    kept = set(parts.saved)
    outputs = [*map(_told, parts.outputs), *["kept"] * len(parts.saved)]
    return {
        "captured": drawn(captured.graph, set(), [*map(_told, captured.outputs)]),
        "forward": drawn(parts.forward, set(), outputs),
        "backward": drawn(parts.backward, kept, [*map(_told, parts.gradients)]),
    }


def _told(port: Port) -> str:
    return f"gradient of {port.name}" if port.kind == "grad" else f"{port.kind} {port.name}"


def drawn(module: GraphModule, kept: set[str], results: Sequence[str]) -> Picture:
    """A graph without what is small; `kept` are placeholders that forward keeps, `results` what
    the values that it returns are."""
    picture, numbers = Picture(), {}
    for node in module.graph.nodes:
        if node.op == "output":
            _returned(picture, node, results, numbers)
        elif _shown(node):
            numbers[node] = picture.add(_box(node, kept))
            for source in dict.fromkeys(_sources(node)):
                picture.flows.append((numbers[source], numbers[node]))
    return _without_unused(picture)


def _shown(node: Node) -> bool:
    return node.op in ("placeholder", "call_function") and (
        op_name(node) not in SEEN_THROUGH and _size(node) >= LEAST
    )


def _size(node: Node) -> int:
    value = node.meta.get("val")
    values = value if isinstance(value, (tuple, list)) else (value,)
    return max((prod(one.shape) for one in values if isinstance(one, torch.Tensor)), default=0)


def _sources(node: Node) -> Iterator[Node]:
    """The boxes that a node's large operands come from."""
    for argument in node.all_input_nodes:
        if _size(argument) < LEAST:
            continue
        if _shown(argument):
            yield argument
        else:
            yield from _sources(argument)


def _box(node: Node, kept: set[str]) -> Box:
    if node.op == "placeholder":
        kind = "kept" if node.name in kept else "given"
        return Box(kind, _plain(node.name), [_type(_largest(node))])
    value = _largest(node)
    parts = [one for one in node.users if op_name(one) == "getitem"]
    bits = sorted({one.meta["bits"] for one in (node, *parts) if "bits" in one.meta})
    spec = node.meta.get("sq")
    if spec is not None:
        notes = [f"{' x '.join(_integers(one) for one in spec.operands)} bit"]
        notes += [f"{spec.role} {spec.module}"]
        return Box("product", _short(node), notes)
    if op_name(node) in FLOAT_PRODUCTS:
        return Box("multiplied", _short(node), [_type(value)])
    kind = "integer" if value.dtype in (torch.int8, torch.uint8, torch.bool) else "floating"
    place = " ".join(filter(None, (node.meta.get("role", ""), node.meta.get("module", ""))))
    notes = [_type(value) + (f", {bits[0]} bit" if bits else "")]
    return Box(kind, _short(node), [*notes, *([place] if place else [])])


def _integers(operand: Any) -> str:
    return f"{'s' if operand.signed else 'u'}{operand.bits}"


def _largest(node: Node) -> torch.Tensor:
    value = node.meta["val"]
    values = value if isinstance(value, (tuple, list)) else (value,)
    tensors = [one for one in values if isinstance(one, torch.Tensor)]
    return max(tensors, key=lambda one: (prod(one.shape), one.dtype != torch.float32))


def _type(value: torch.Tensor) -> str:
    return f"{dtype_name(value.dtype)}[{', '.join(map(str, value.shape))}]"


def _short(node: Node) -> str:
    return op_name(node).partition(".")[2]


def _plain(name: str) -> str:
    """A placeholder's name as a user knows it."""
    return {"x_0": "input", "g_0": "gradient of the output"}.get(name, name.removeprefix("p_"))


def _returned(
    picture: Picture, output: Node, results: Sequence[str], numbers: Mapping[Node, int]
) -> None:
    """A box for every large value that a graph returns."""
    for at, value in enumerate(output.args[0]):  # type: ignore[arg-type,union-attr,call-overload]
        if not isinstance(value, Node) or _size(value) < LEAST:
            continue
        kind = "kept" if results[at] == "kept" else "given"
        name = value.name if kind == "kept" else results[at]
        number = picture.add(Box(kind, _plain(name), [_type(_largest(value))]))
        for source in [value] if _shown(value) else list(_sources(value)):
            picture.flows.append((numbers[source], number))


def _without_unused(picture: Picture) -> Picture:
    """A picture without boxes that nothing flows to or from."""
    used = sorted({at for flow in picture.flows for at in flow})
    numbers = {at: number for number, at in enumerate(used)}
    flows = [(numbers[a], numbers[b]) for a, b in picture.flows]
    return Picture([picture.boxes[at] for at in used], flows)


def svg(picture: Picture, title: str) -> str:
    """A picture laid out in layers, from top to bottom."""
    paths, right = _laid_out(picture)
    kinds = {box.kind for box in picture.boxes}
    legend, x = [], PADDING
    for kind, told in LEGEND.items():
        if kind in kinds:
            legend.append((kind, told, x))
            x += 44 + 7 * len(told)
    environment = jinja2.Environment(trim_blocks=True, autoescape=False)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        boxes=picture.boxes,
        flows=paths,
        legend=legend,
        title=title,
        digest=picture.digest,
        width=int(max(x, right, *(box.x + box.width / 2 for box in picture.boxes))) + PADDING,
        height=int(max(box.y + box.height / 2 for box in picture.boxes)) + PADDING,
    )


def _laid_out(picture: Picture) -> tuple[list[str], float]:
    """Place boxes in layers by Sugiyama's method -> the flows as paths around them, and the last
    column."""
    graph = igraph.Graph(len(picture.boxes), picture.flows, directed=True)
    layout = graph.layout_sugiyama(layers=_layers(graph), hgap=1, vgap=1)
    taken = {(round(x, 3), round(y)) for x, y in layout.coords}
    routes = [_beside(route, taken) for route in layout.edge_routing]
    bends = list(chain.from_iterable(routes))
    widths = [float(box.width) for box in picture.boxes] + [BEND] * len(bends)
    columns = _columns([*layout.coords, *bends], widths)

    def pixels(place: Sequence[float]) -> tuple[float, float]:
        return columns[round(place[0], 3)], TOP + 40 + place[1] * LAYER

    for box, place in zip(picture.boxes, layout.coords, strict=True):
        box.x, box.y = pixels(place)
    paths = [
        _path(picture.boxes[a], [pixels(one) for one in route], picture.boxes[b])
        for (a, b), route in zip(picture.flows, routes, strict=True)
    ]
    return paths, max(columns.values())


def _beside(route: Sequence[Sequence[float]], taken: set[tuple[float, int]]) -> list[list[float]]:
    """A flow's bends where no box stands: igraph puts some of them on boxes."""
    for aside in (0, 0.5, -0.5, 1, -1, 1.5, -1.5):
        moved = [[x + aside, y] for x, y in route]
        if not taken & {(round(x, 3), round(y)) for x, y in moved}:
            return moved
    return [list(place) for place in route]


def _layers(graph: igraph.Graph) -> list[int]:
    """The longest way to every box; what comes from nowhere stands above its first reader."""
    layers = [0] * graph.vcount()
    order = graph.topological_sorting()
    for at in order:
        for reader in graph.successors(at):
            layers[reader] = max(layers[reader], layers[at] + 1)
    for at in order:
        if not graph.predecessors(at):
            layers[at] = min(layers[reader] for reader in graph.successors(at)) - 1
    return layers


def _columns(places: Sequence[Sequence[float]], widths: Sequence[float]) -> dict[float, float]:
    """Pixels of every column: as close to those on its left as boxes in one layer allow."""
    columns: dict[float, float] = {}
    ends: dict[int, float] = defaultdict(lambda: float(PADDING))
    for x in sorted({round(x, 3) for x, _ in places}):
        inside = [
            (round(y), width)
            for (at, y), width in zip(places, widths, strict=True)
            if round(at, 3) == x
        ]
        columns[x] = max(ends[y] + width / 2 for y, width in inside)
        for y, width in inside:
            ends[y] = columns[x] + width / 2 + GAP
    return columns


def _path(above: Box, bends: Sequence[tuple[float, float]], below: Box) -> str:
    """A curve from box to box, downwards through the bends."""
    places = [(above.x, above.y + above.height / 2), *bends, (below.x, below.y - below.height / 2)]
    path = f"M{places[0][0]:.0f} {places[0][1]:.0f}"
    for (x0, y0), (x1, y1) in pairwise(places):
        middle = (y0 + y1) / 2
        path += f"C{x0:.0f} {middle:.0f} {x1:.0f} {middle:.0f} {x1:.0f} {y1:.0f}"
    return path


def main() -> None:
    """Write all pictures."""
    FOLDER.mkdir(exist_ok=True)
    for name, picture in pictures(rewritten()).items():
        (FOLDER / f"{name}.svg").write_text(svg(picture, TITLES[name]), encoding="utf-8")


if __name__ == "__main__":
    main()
