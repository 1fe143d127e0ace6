"""report.json: everything that is known of a compiled step, as plain data."""

import json
import os
import platform
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqcompile import __version__
from sqcompile.backends.targets import TARGETS
from sqcompile.errors import UsageError
from sqcompile.recipe import FIRST, LAST, Recipe
from sqcompile.report.products import Product, products
from sqcompile.report.saved import layers, saved_tensors
from sqcompile.runtime import machines

if TYPE_CHECKING:
    from sqcompile.runtime.step import CompiledStep
    from sqcompile.runtime.variant import Variant
    from sqcompile.runtime.verify import VerifyResult

FORMAT = 7
REPORT = "report.json"
NOT_EXECUTED = "nothing"
LEAST_ON_TARGET = 0.95
"""The share of a step's multiply-accumulates that an accelerator must run."""
_VERSIONS = ("torch", "apache-tvm", "apache-tvm-ffi", "numpy")


def report(
    step: "CompiledStep",
    *,
    eager_layers: Mapping[str, int] | None = None,
    verification: "Sequence[VerifyResult]" = (),
    training: dict[str, Any] | None = None,
    timing: dict[str, Any] | None = None,
    tensors: list[dict[str, Any]] | None = None,
    executed_by: str | None = None,
) -> dict[str, Any]:
    """The content of report.json for a step that was compiled here.

    executed_by: what ran the step's code ("cuda", an emulator), where the target does not tell;
    tensors: statistics of what the step quantises (`sqcompile.debug.statistics`), None where they
    were not collected.

    eager_layers: what fp32 PyTorch keeps for backward, by module (see `saved_by_layer`). `macs`
    are those of one training step: forward and backward of the first variant that has a backward.
    `macs.on_target` counts what the target's kernels run, `macs.integer` what multiplies integers.
    Raises UsageError for a loaded step, whose graphs are not there: read its report.json.
    """
    variants = step.variants
    if not variants or any(variant.forward is None for variant in variants):
        raise UsageError("a loaded artifact has no graphs; its report is in report.json")
    main = next((v for v in variants if v.backward is not None), variants[0])
    found = _products(main)
    accelerator = _accelerator(main, found)
    left = _left(accelerator)
    return {
        "format": FORMAT,
        "sqcompile": __version__,
        "versions": {name: version(name) for name in _VERSIONS},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "target": step.target,
        "executed_by": executed_by or machines.executor(step.target) or NOT_EXECUTED,
        "recipe": step.recipe.to_json(),
        "unused_rules": unused_rules(step.recipe, found),
        "seed": step.training_state()["seed"],
        "inputs": list(main.key.leaves),
        "macs": macs(found, left),
        "products": _product_rows(found, left),
        "accelerator": accelerator,
        "saved": _saved(main, eager_layers),
        "stages": _stages(main),
        "calls": {kernel.name: list(kernel.nodes) for kernel in variants[0].kernels},
        "kernels": [row for variant in variants for row in _kernels(variant)],
        "variants": [_variant(one, eager_layers if one is main else None) for one in variants],
        "verification": [_verification(result) for result in verification],
        "training": training,
        "timing": timing,
        "tensors": tensors,
    }


def macs(found: Sequence[Product], left: Mapping[str, str]) -> dict[str, Any]:
    """Sums over products: total, integer, on_target (all but those in `left`), and the shares of
    both (1.0 without products)."""
    total = sum(product.macs for product in found)
    integer = sum(product.macs for product in found if product.integer)
    on_target = sum(product.macs for product in found if _place(product) not in left)
    return {
        "total": total,
        "integer": integer,
        "on_target": on_target,
        "integer_share": integer / total if total else 1.0,
        "on_target_share": on_target / total if total else 1.0,
    }


def _place(product: Product) -> str:
    """A product's node as kernels' records name it: "forward/mm_1"."""
    return f"{product.pass_}/{product.node}"


def _left(accelerator: Mapping[str, Any] | None) -> Mapping[str, str]:
    """Why the CPU computes a product, by its place, for those that the target does not run."""
    left: Mapping[str, str] = accelerator["left"] if accelerator else {}
    return left


def _product_rows(found: Sequence[Product], left: Mapping[str, str]) -> list[dict[str, Any]]:
    return [{**one.to_json(), "left": left.get(_place(one), "")} for one in found]


def _stages(variant: "Variant") -> list[dict[str, Any]]:
    return [
        {
            "name": stage.name,
            "about": stage.about,
            "milliseconds": stage.milliseconds,
            "nodes": stage.nodes,
        }
        for stage in variant.stages
    ]


def _accelerator(variant: "Variant", found: Sequence[Product]) -> dict[str, Any] | None:
    """What is known of a variant's programs; None for a target that runs every product."""
    binary = variant.executable.binary
    macs = {_place(one): one.macs for one in found}
    builder = TARGETS[binary.target].builder
    known: dict[str, Any] | None = builder.accelerator(binary, variant.kernels, macs)
    return None if known is None else {**known, **_by_module(known["programs"], found)}


def _by_module(
    rows: Sequence[Mapping[str, Any]], found: Sequence[Product]
) -> dict[str, list[dict[str, Any]]]:
    """An accelerator's `programs` with their modules, and `layers`, the sums of each module."""
    modules = {_place(one): one.module for one in found}
    programs = [{**row, "module": modules[row["product"]]} for row in rows]
    layers: dict[str, dict[str, Any]] = {}
    for row in programs:
        layer = layers.setdefault(row["module"], {"macs": 0, "cycles": 0})
        for name in layer:
            layer[name] += row[name]
    listed = [{"module": module, **sums} for module, sums in layers.items()]
    return {"programs": programs, "layers": listed}


def unused_rules(recipe: Recipe, found: Sequence[Product]) -> list[str]:
    """Paths of the recipe's rules that no product matches: most often a misspelt module."""
    modules = {product.module for product in found}
    return [
        rule.path
        for rule in recipe.rules
        if rule.path not in (FIRST, LAST)
        and not any(rule.matches(module, False, False) for module in modules)
    ]


def not_integer(data: dict[str, Any]) -> list[str]:
    """One line for every product of a report that multiplies floats."""
    return [
        f"{p['line'] or p['node']}  {p['op']} ({p['module']}) reads {' and '.join(p['operands'])}"
        for p in data["products"]
        if not p["integer"]
    ]


def off_target(data: Mapping[str, Any]) -> list[str]:
    """One line for every product that the target leaves to the CPU, the largest first, where those
    are more than a target may leave; none else."""
    if data["macs"]["on_target_share"] >= LEAST_ON_TARGET:
        return []
    left = sorted((p for p in data["products"] if p["left"]), key=lambda p: -p["macs"])
    return [
        f"{p['line'] or p['node']}\n      {p['op']} ({p['module']}, {p['role']}): {p['left']}"
        for p in left
    ]


def _products(variant: "Variant") -> list[Product]:
    assert variant.forward is not None
    found = products(variant.forward, "forward")
    return found + (products(variant.backward, "backward") if variant.backward else [])


def _kernels(variant: "Variant") -> list[dict[str, Any]]:
    """What the target knows of the variant's kernels without running them."""
    binary = variant.executable.binary
    macs = {_place(one): one.macs for one in _products(variant)}
    rows = TARGETS[binary.target].builder.kernel_rows(binary, variant.kernels, macs)
    return [{"mode": variant.mode, **row} for row in rows]


def kernel_faults(data: Mapping[str, Any]) -> list[str]:
    """One line for everything of a report's kernels that no kernel may have: spills, products
    outside the tensor cores, float operations that are not rounded one by one."""
    return [
        f"{row['kernel']} for {row['architecture']}: {fault}"
        for row in data["kernels"]
        for fault in row["faults"]
    ]


def _saved(variant: "Variant", eager: Mapping[str, int] | None) -> dict[str, Any]:
    tensors = saved_tensors(variant) if variant.backward is not None else []
    return {
        "tensors": [tensor.to_json() for tensor in tensors],
        "layers": layers(tensors, eager),
        "bytes": sum(tensor.bytes for tensor in tensors),
        "fp32_eager_bytes": None if eager is None else sum(eager.values()),
    }


def _variant(variant: "Variant", eager: Mapping[str, int] | None) -> dict[str, Any]:
    binary = variant.executable.binary
    found = _products(variant)
    left = _left(_accelerator(variant, found))
    return {
        "mode": variant.mode,
        "gradients": variant.key.gradients,
        "inputs": list(variant.key.leaves),
        "macs": macs(found, left),
        "stages": _stages(variant),
        "products": _product_rows(found, left),
        "saved": _saved(variant, eager),
        "kernels": len(variant.kernels),
        "code_bytes": len(binary.vm)
        + sum(len(code) for code in (*binary.objects, *binary.images.values())),
    }


def _verification(result: "VerifyResult") -> dict[str, Any]:
    return {
        "mode": result.mode,
        "equal": result.equal,
        "values": len(result.rows),
        "different": [asdict(row) for row in result.rows if not row.equal],
    }


def write(data: dict[str, Any], folder: str | Path) -> Path:
    """Write report.json into a run folder, whole or not at all; returns its path."""
    return write_text(Path(folder) / REPORT, json.dumps(data, indent=1) + "\n")


def write_text(path: Path, text: str) -> Path:
    """Write a file beside its place and rename it: a reader never sees half of it."""
    handle, aside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(aside, 0o644)
        os.replace(aside, path)
    except OSError:
        os.unlink(aside)
        raise
    return path


def read(folder: str | Path) -> dict[str, Any]:
    """report.json of a run folder; raises UsageError when there is none that can be read."""
    path = Path(folder) / REPORT
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            f"cannot read {path}: {error.strerror}\n"
            f"  a run folder is what `sqcompile model.py -o {folder}` writes."
        ) from error
    except ValueError as error:
        raise UsageError(f"{path} is damaged: {error}; compile the model again") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise UsageError(f"{path} is not a report of this version; compile the model again")
    return data
