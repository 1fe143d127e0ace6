"""What a compiled step takes and gives, as data: all that running it needs besides the binary."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from sqcompile import _torch_compat as compat
from sqcompile._torch_compat import Port


@dataclass(frozen=True)
class CallKey:
    """What must be equal for two calls to run the same binary.

    mode: "train" or "eval"; gradients: whether backward can follow; leaves: one text a flattened
    argument ("float32[8, 3]", with "'" where it asks for a gradient, or repr of a constant);
    structure: the pytree of the arguments; frozen: names of parameters without a gradient;
    switched: names of modules in the other mode than the model; shared: "1 is 0" where an argument
    is the same tensor as an earlier one or as a parameter or buffer.
    """

    mode: str
    gradients: bool
    leaves: tuple[str, ...]
    structure: str
    frozen: tuple[str, ...]
    switched: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()

    def without_gradients(self) -> "CallKey":
        """The same call where no backward can follow."""
        leaves = tuple(leaf.removesuffix("'") for leaf in self.leaves)
        return replace(self, gradients=False, leaves=leaves, frozen=())

    def describe(self) -> str:
        """`train, inputs float32[8, 3]`: for messages."""
        told = f"{self.mode}{'' if self.gradients else ', no gradients'}, inputs "
        told += ", ".join(self.leaves) or "none"
        told += "".join(f", argument {same}" for same in self.shared)
        if self.switched:
            other = "eval" if self.mode == "train" else "train"
            told += f", in mode {other}: {', '.join(self.switched)}"
        return told


@dataclass(frozen=True)
class IndexLimit:
    """Numbers of a `unit`, "row" or "class", that lie in low .. rows - 1, but for `ignored`.

    source: whose they are, "input 0" or "buffer order", "" for what the graph computes; where,
    module: the user's line and the path of the module that reads by them.
    """

    source: str
    low: int
    rows: int
    unit: str
    ignored: int | None
    where: str
    module: str


@dataclass(frozen=True)
class Signature:
    """Places of every value of a step's forward and backward function.

    forward(*inputs, rng) -> outputs, saved values that are computed, exposed absmaxes, ranges of
    computed row numbers; backward(*saved, rng, *tangents) -> gradients, exposed absmaxes. A saved
    name "param:x" is an input that is passed on. `constants`: outputs that are plain Python
    values, by position; `passed`: those that are a parameter or an input of the call as it stands,
    by its kind and name. `exposed_*`: descriptions of the absmaxes that check_finite looks at.
    `index_limits`: what is looked at before every forward; `range_limits`: one for every range,
    looked at behind it.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    saved: tuple[str, ...]
    tangents: tuple[Port, ...]
    gradients: tuple[Port, ...]
    constants: dict[int, Any]
    out_spec: compat.TreeSpec
    exposed_forward: tuple[str, ...] = ()
    exposed_backward: tuple[str, ...] = ()
    index_limits: tuple[IndexLimit, ...] = ()
    range_limits: tuple[IndexLimit, ...] = ()
    passed: dict[int, tuple[str, str]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """A JSON-able form; raises TypeError when an output structure or constant has none."""
        data = {
            name: [asdict(port) for port in getattr(self, name)]
            for name in ("inputs", "outputs", "tangents", "gradients")
        }
        for value in self.constants.values():
            if not isinstance(value, (int, float, str, bool, type(None))):
                raise TypeError(f"an output of the model is a {type(value).__name__}")
        without_form = f"its structure has no JSON form: {' '.join(str(self.out_spec).split())}"
        try:
            out_spec = compat.treespec_to_json(self.out_spec)
        except (NotImplementedError, TypeError) as error:
            raise TypeError(without_form) from error
        if compat.treespec_from_json(out_spec) != self.out_spec:
            raise TypeError(without_form)  # a tuple as a key comes back as a list
        return {
            **data,
            "saved": list(self.saved),
            "constants": {str(key): value for key, value in self.constants.items()},
            "out_spec": out_spec,
            "exposed_forward": list(self.exposed_forward),
            "exposed_backward": list(self.exposed_backward),
            "index_limits": [asdict(limit) for limit in self.index_limits],
            "range_limits": [asdict(limit) for limit in self.range_limits],
            "passed": {str(key): list(source) for key, source in self.passed.items()},
        }

    @staticmethod
    def from_json(data: dict[str, Any]) -> "Signature":
        """The inverse of to_json."""

        def ports(name: str) -> tuple[Port, ...]:
            return tuple(Port(**port) for port in data[name])

        return Signature(
            ports("inputs"),
            ports("outputs"),
            tuple(data["saved"]),
            ports("tangents"),
            ports("gradients"),
            {int(key): value for key, value in data["constants"].items()},
            compat.treespec_from_json(data["out_spec"]),
            tuple(data["exposed_forward"]),
            tuple(data["exposed_backward"]),
            tuple(IndexLimit(**limit) for limit in data["index_limits"]),
            tuple(IndexLimit(**limit) for limit in data["range_limits"]),
            {int(key): (kind, name) for key, (kind, name) in data["passed"].items()},
        )


def leaf_text(leaf: object) -> str:
    """One flattened argument as it stands in a CallKey."""
    if isinstance(leaf, torch.Tensor):
        dtype = str(leaf.dtype).removeprefix("torch.")
        return f"{dtype}{list(leaf.shape)}" + ("'" if leaf.requires_grad else "")
    return repr(leaf)


def call_key(
    mode: str,
    gradients: bool,
    leaves: Sequence[object],
    spec: object,
    frozen: Sequence[str],
    switched: Sequence[str] = (),
    shared: Sequence[str] = (),
) -> CallKey:
    """The key of one call from its flattened arguments."""
    texts = tuple(leaf_text(leaf) for leaf in leaves)
    own = (tuple(frozen), tuple(switched), tuple(shared))
    key = CallKey(mode, gradients, texts, str(spec), *own)
    return key if gradients else key.without_gradients()
