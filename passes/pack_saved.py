"""Pack what forward keeps for backward: 4-bit integers by twos, masks by eights."""

from collections.abc import Callable
from math import prod

import torch
from torch.fx import GraphModule, Node

from sqcompile.ops import pack, pool
from sqcompile.passes.editing import Editor, arguments, copy_graph, finish, is_call, shape, tainted

PACKED_BITS = 4


def pack_saved(module: GraphModule) -> GraphModule:
    """After this pass a value of at most 4 bits that backward reads crosses from forward to
    backward packed, two to a byte, and a boolean mask eight to a byte; each is unpacked once,
    before its first reader in backward. Wider integers and floats cross as they are."""
    graph = copy_graph(module)
    editor = Editor(graph)
    backward = tainted(graph)
    for node in list(graph.graph.nodes):
        if node in backward or node.op != "call_function":
            continue
        readers = [user for user in node.users if user in backward]
        packer = _packer(node)
        if not readers or packer is None:
            continue
        with editor.after(node):
            packed = packer.pack(editor, node)
        order = {n: i for i, n in enumerate(graph.graph.nodes)}
        with editor.before(min(readers, key=order.__getitem__)):
            unpacked = packer.unpack(editor, packed, node)
        unpacked.meta["backward"] = True
        for reader in readers:
            reader.replace_input_with(node, unpacked)
    return finish(graph)


class _Packer:
    def __init__(
        self,
        pack: Callable[[Editor, Node], Node],
        unpack: Callable[[Editor, Node, Node], Node],
    ) -> None:
        self.pack = pack
        self.unpack = unpack


def _small_bits(node: Node) -> tuple[int, bool] | None:
    """(bits, signed) of an integer value, where they are known."""
    if "bits" in node.meta:
        return node.meta["bits"], node.meta["signed"]
    source = node.args[0] if node.args else None
    if is_call(source, pool.max_pool2d) and node.args[1] == 1:
        assert isinstance(source, Node)
        taps = prod(arguments(source)["kernel"])
        return (taps - 1).bit_length(), False
    return None


def _packer(node: Node) -> _Packer | None:
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return None
    if value.dtype == torch.bool:
        return _Packer(
            lambda editor, n: editor.call(
                pack.pack_mask, n, like=n, name=f"{n.name}_packed", saves=(n.name, 1)
            ),
            lambda editor, p, n: editor.call(pack.unpack_mask, p, shape(n), like=n),
        )
    known = _small_bits(node)
    if known is None or known[0] > PACKED_BITS:
        return None
    bits, signed = known
    return _Packer(
        lambda editor, n: editor.call(
            pack.pack_int4, n, like=n, name=f"{n.name}_packed", saves=(n.name, bits)
        ),
        lambda editor, p, n: editor.call(
            pack.unpack_int4, p, shape(n), signed, like=n, bits=bits, signed=signed
        ),
    )
