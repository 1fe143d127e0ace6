"""Expressions of TIR in integers: what depends on outer loops becomes one Python function, what
depends on inner loops becomes steps."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from tvm import sym, tirx

Expr = Any

_BINARY = {
    "Add": "({} + {})",
    "Sub": "({} - {})",
    "Mul": "({} * {})",
    "FloorDiv": "({} // {})",
    "Div": "int({} / {})",
    "FloorMod": "({} % {})",
    "Min": "min({}, {})",
    "Max": "max({}, {})",
    "And": "({} and {})",
    "LT": "({} < {})",
    "LE": "({} <= {})",
    "GT": "({} > {})",
    "GE": "({} >= {})",
    "EQ": "({} == {})",
}
"""Python's text of an expression with two operands."""

_SLACK: dict[str, Callable[[Expr, Expr], list[Expr]]] = {
    "LT": lambda a, b: [b - a - 1],
    "LE": lambda a, b: [b - a],
    "GT": lambda a, b: [a - b - 1],
    "GE": lambda a, b: [a - b],
    "EQ": lambda a, b: [a - b, b - a],
}
"""What is not negative where a comparison holds."""


class Affine(NamedTuple):
    """`base`, an expression of outer loops, and how much each inner loop adds."""

    base: Expr
    steps: tuple[int, ...]


def affine(expression: Expr, inner: Sequence[Any]) -> Affine:
    """An expression that is linear in inner loops."""
    found = list(sym.detect_linear_equation(expression, list(inner)))
    if not found or not all(isinstance(step, tirx.IntImm) for step in found[:-1]):
        raise RuntimeError(f"{expression} is not linear in {[var.name for var in inner]}")
    return Affine(found[-1], tuple(int(step.value) for step in found[:-1]))


def slacks(condition: Expr) -> list[Expr]:
    """Expressions that are all at least zero where a condition holds."""
    kind = type(condition).__name__
    if kind == "IntImm" and condition.value:
        return []
    if kind == "And":
        return slacks(condition.a) + slacks(condition.b)
    if kind not in _SLACK:
        raise RuntimeError(f"{condition} is no comparison")
    return _SLACK[kind](condition.a, condition.b)


def evaluated(
    expressions: Sequence[Expr], outer: Sequence[Any], memory: Mapping[str, Any]
) -> Callable[..., tuple[int, ...]]:
    """A function of the outer loops that gives what all expressions are. `memory`: values of the
    buffers they read."""
    names = {var: f"v{number}" for number, var in enumerate(outer)}
    texts = [_text(sym.Analyzer().simplify(one), names) for one in expressions]
    source = f"lambda {', '.join(names.values())}: ({''.join(f'{one}, ' for one in texts)})"
    found: Callable[..., tuple[int, ...]] = eval(source, dict(memory))
    return found


def _text(expression: Expr, names: Mapping[Any, str]) -> str:
    kind = type(expression).__name__
    if kind == "IntImm":
        return str(int(expression.value))
    if kind == "Var" and expression in names:
        return names[expression]
    if kind in _BINARY:
        return _BINARY[kind].format(_text(expression.a, names), _text(expression.b, names))
    if kind == "TensorLoad":
        indices = "".join(f"[{_text(index, names)}]" for index in expression.indices)
        return f"{expression.source.name}{indices}"
    raise RuntimeError(f"{expression} is no integer of outer loops")
