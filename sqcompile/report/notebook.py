"""Small tables for a notebook (`_repr_html_`): no script, no network, everything escaped."""

from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

from sqcompile.report.format import big, share, size

if TYPE_CHECKING:
    from sqcompile.recipe import Recipe
    from sqcompile.runtime.step import CompiledStep
    from sqcompile.runtime.verify import VerifyResult

_TABLE = "border-collapse:collapse;font-size:90%"
_CELL = "text-align:left;vertical-align:top;padding:2px 12px 2px 0"
_RIGHT = "text-align:right;vertical-align:top;padding:2px 12px 2px 0"


def facts(title: str, rows: Iterable[tuple[str, object]]) -> str:
    """A title above rows of a name and what it is."""
    lines = "".join(
        f'<tr><th style="{_CELL};font-weight:normal;opacity:.7">{escape(name)}</th>'
        f'<td style="{_CELL}">{escape(str(value))}</td></tr>'
        for name, value in rows
    )
    return f'<strong>{escape(title)}</strong><table style="{_TABLE}"><tbody>{lines}</tbody></table>'


def table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], right: Sequence[str] = ()
) -> str:
    """Rows below the names of their columns; those in `right` hold numbers."""
    styles = [_RIGHT if name in right else _CELL for name in columns]
    head = "".join(
        f'<th style="{style}">{escape(name)}</th>'
        for style, name in zip(styles, columns, strict=True)
    )
    body = "".join(
        "<tr>"
        + "".join(
            f'<td style="{style}">{escape(str(cell))}</td>'
            for style, cell in zip(styles, row, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    return f'<table style="{_TABLE}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def folded(summary: str, content: str) -> str:
    """Content that a click opens."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def step_html(step: "CompiledStep") -> str:
    """What a compiled step is: target, recipe, what it was compiled for; of a training step whose
    graphs are at hand also how much is in integers, what backward keeps, and the products. Nothing
    is compiled or traced for it."""
    rows: list[tuple[str, object]] = [("target", step.target), ("recipe", step.recipe.name)]
    rows += [("parameters", big(sum(p.numel() for p in step.parameters())))]
    rows += [(f"compiled, {one.mode}", ", ".join(one.key.leaves)) for one in step.variants]
    main = next((one for one in step.variants if one.graphs_at_hand), None)
    if main is None or main.forward is None:
        return facts("sqcompile step", rows)
    from sqcompile.report.products import products
    from sqcompile.report.saved import saved_tensors

    found = products(main.forward, "forward")
    if main.backward is not None:
        found += products(main.backward, "backward")
        kept = sum(tensor.bytes for tensor in saved_tensors(main))
        rows.append(("kept for backward", size(kept)))
    total, integer = sum(p.macs for p in found), sum(p.macs for p in found if p.integer)
    inside = f"{big(total)} a step, {share(integer, total)} in integers"
    rows.append(("multiply-accumulates", inside))
    listed = table(
        ("module", "role", "op", "operands", "groups", "MACs"),
        [
            (p.module or "(model)", p.role, p.op, " x ".join(p.operands), p.groups, big(p.macs))
            for p in found
        ],
        right=("groups", "MACs"),
    )
    return facts("sqcompile step", rows) + folded(f"{len(found)} products", listed)


def recipe_html(recipe: "Recipe") -> str:
    """A recipe's numbers, those of its exceptions below."""
    data = recipe.to_json()
    rules = data.pop("rules")
    fields = sorted({name for rule in rules for name in rule if name != "path"})
    listed = table(
        ("path", *fields), [(r["path"], *(r.get(name, "") for name in fields)) for r in rules]
    )
    shown = facts(f"recipe {data.pop('name')}", data.items())
    return shown + (folded(f"{len(rules)} rules", listed) if rules else "")


def verification_html(result: "VerifyResult") -> str:
    """Whether all values are equal, and those that are not."""
    wrong = [row for row in result.rows if not row.equal]
    told = f"{len(result.rows)} values equal bit for bit"
    if not wrong:
        return facts(f"PASSED ({result.mode})", [("compared", told)])
    listed = table(
        ("kind", "name", "differing", "largest"),
        [(row.kind, row.name, row.differing, f"{row.largest:g}") for row in wrong],
        right=("differing", "largest"),
    )
    said = f"{len(wrong)} of {len(result.rows)} values differ"
    return facts(f"FAILED ({result.mode})", [("compared", said)]) + listed
