"""What counts as a change between two stages: what is computed, not what it is called."""

from sqcompile.passes.entries import Entry, Ref, Tensor, packed, text, to_json, unpacked
from sqcompile.report.graphdiff import ADDED, CHANGED, REMOVED, difference
from sqcompile.report.graphview import Selection, View, chosen, views

F32 = (Tensor("f32", (2, 3)),)


def node(name, op, *args, **known):
    """A node whose tensor arguments are given by name; other arguments are x0, x1, ..."""
    given = tuple((f"x{at}", value) for at, value in enumerate(args))
    return Entry(name, op, given, F32, **known)


def graph(*nodes):
    """x -> the nodes -> the last one."""
    out = Entry("output", "output", (("", (Ref(nodes[-1].name),)),))
    return [Entry("x", "placeholder", (), F32, part="forward"), *nodes, out]


def kinds(found):
    """What happened to which node, without what stayed."""
    return [(line.kind, line.entry.name) for line in found.lines if line.kind]


def test_a_renamed_chain_is_no_change():
    before = graph(node("a", "aten.relu", Ref("x")), node("b", "aten.exp", Ref("a")))
    after = graph(node("a_1", "aten.relu", Ref("x")), node("b_7", "aten.exp", Ref("a_1")))
    found = difference(before, after)
    assert found.empty
    assert found.renamed == {"a": "a_1", "b": "b_7"}


def test_readers_of_a_replaced_value_have_not_changed():
    before = graph(
        node("conv", "sq.conv", Ref("x"), 3),
        node("a", "aten.relu", Ref("conv")),
        node("b", "aten.exp", Ref("conv")),
        node("c", "aten.add", Ref("a"), Ref("b")),
    )
    after = graph(
        node("q", "sq.quantize", Ref("x"), 4),
        node("acc", "sq.conv_fprop", Ref("q"), 3),
        node("a", "aten.relu", Ref("acc")),
        node("b", "aten.exp", Ref("acc")),
        node("c", "aten.add", Ref("a"), Ref("b")),
    )
    found = difference(before, after)
    assert kinds(found) == [(REMOVED, "conv"), (ADDED, "q"), (ADDED, "acc")]
    assert found.replaced == {"conv": "acc"}
    assert next(line for line in found.lines if line.entry.name == "acc").stands_for == ("conv",)


def test_a_reader_that_takes_another_value_has_changed():
    """x stays, and one of its two readers reads something else now."""
    before = graph(node("a", "aten.relu", Ref("x")), node("b", "aten.exp", Ref("x")))
    after = graph(
        node("m", "aten.neg", Ref("x")),
        node("a", "aten.relu", Ref("x")),
        node("b", "aten.exp", Ref("m")),
    )
    found = difference(before, after)
    assert kinds(found) == [(ADDED, "m"), (CHANGED, "b")]


def test_readers_that_disagree_have_changed():
    before = graph(
        node("v", "aten.neg", Ref("x")),
        node("a", "aten.relu", Ref("v")),
        node("b", "aten.exp", Ref("v")),
    )
    after = graph(
        node("p", "aten.sin", Ref("x")),
        node("q", "aten.cos", Ref("x")),
        node("a", "aten.relu", Ref("p")),
        node("b", "aten.exp", Ref("q")),
    )
    found = difference(before, after)
    assert found.replaced == {}
    assert {kind for kind, name in kinds(found) if name in "ab"} == {CHANGED}


def test_another_number_or_precision_is_a_change():
    before = graph(node("a", "sq.quantize", Ref("x"), 4), node("b", "sq.conv", Ref("a")))
    after = graph(
        node("a", "sq.quantize", Ref("x"), 8),
        node("b", "sq.conv", Ref("a"), operands=("u4", "s4"), role="fprop", module="c"),
    )
    found = difference(before, after)
    assert kinds(found) == [(CHANGED, "a"), (CHANGED, "b")]


def test_a_moved_node_is_no_change():
    relu, exp = node("a", "aten.relu", Ref("x")), node("b", "aten.exp", Ref("x"))
    last = node("c", "aten.add", Ref("a"), Ref("b"))
    found = difference(graph(relu, exp, last), graph(exp, relu, last))
    assert found.empty and len(found.moved) == 1


def test_a_name_that_is_used_again_for_something_else():
    """fx gives names that are free to new nodes: those are not the old ones."""
    before = graph(
        node("mul", "aten.mul", Ref("x"), 2, line="m.py:1"),
        node("a", "aten.relu", Ref("mul"), line="m.py:1"),
    )
    after = graph(
        node("mul", "sq.absmax", Ref("x"), line="m.py:9"),
        node("a", "aten.relu", Ref("x"), line="m.py:1"),
    )
    found = difference(before, after)
    assert (ADDED, "mul") in kinds(found) and (REMOVED, "mul") in kinds(found)


def test_entries_survive_the_file():
    entry = Entry(
        "q",
        "sq.quantize",
        (("x", Ref("x")), ("scales", (Ref("a"), None)), ("bits", 4), ("text", "node")),
        (Tensor("i8", ()), Tensor("f32", (1, 2))),
        True,
        bits=4,
        groups=3,
        role="fprop",
        module="stem",
        line="m.py:1  y = x",
        part="forward",
    )
    assert unpacked(packed(entry)) == entry
    data = to_json(entry)
    assert data["args"][1] == {"name": "scales", "value": [{"node": "a"}, None]}
    assert data["shape"] is None and data["outputs"][1] == {"dtype": "f32", "shape": [1, 2]}


def test_statements_read_as_python():
    entry = Entry(
        "q",
        "sq.quantize",
        (("x", Ref("a")), ("r", Ref("b")), ("bits", 4), ("exponent", Ref("e"))),
        F32,
        bits=4,
        groups=3,
        role="fprop",
        module="stem",
    )
    assert entry.statement == (
        "q: f32[2, 3] = sq.quantize(a, b, bits=4, exponent=e)  # 4 bit, 3 groups, fprop stem"
    )
    shown = text(graph(node("a", "aten.add", Ref("x"), 1, line="m.py:3  x + 1")), "forward")
    assert shown == (
        "def forward(\n    x: f32[2, 3],\n):\n    # m.py:3  x + 1\n"
        "    a: f32[2, 3] = aten.add(x, 1)\n    return [a]\n"
    )


def test_a_selection_takes_a_module_with_what_is_in_it():
    inside = node("a", "sq.conv_fprop", Ref("x"), module="blocks.0.conv1", part="forward")
    assert inside in Selection(layers=("blocks.0",))
    assert inside in Selection(layers=("blocks.*.conv1",), ops=("conv_*",), part="forward")
    assert inside in Selection(ops=("sq.*",)) and inside not in Selection(ops=("aten.*",))
    assert inside not in Selection(layers=("blocks.01",))
    assert inside not in Selection(part="backward")


def test_the_compiled_graphs_are_compared_with_their_part_of_the_joint_one():
    forward = node("a", "aten.relu", Ref("x"), part="forward")
    backward = node("g", "aten.mul", Ref("a"), part="backward")
    joint = graph(forward, backward)
    stages = {"captured": joint, "forward": graph(forward), "backward": [backward]}
    view = next(views(stages, ["forward"], Selection()))
    assert isinstance(view, View) and view.against == "captured"
    assert view.changes == []
    assert chosen(stages, ["*ward"], "here") == ["forward", "backward"]
