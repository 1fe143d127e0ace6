"""What the shell completes on the command line: file names, run folders, and the names that a run
folder, the recipes and the targets have. Imports nothing that takes time."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

TARGETS = ("cpu", "cuda", "vta")
"""The module that knows them imports torch; a test compares the two."""


def _names(known: Iterable[str], incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(name) for name in known if name.startswith(incomplete)]


def _file(incomplete: str, kind: str = "file") -> list[CompletionItem]:
    """The shell's own completion of a file or a folder."""
    return [CompletionItem(incomplete, type=kind)]


def file(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Files."""
    return _file(incomplete)


def folder(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Folders."""
    return _file(incomplete, "dir")


def target(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Targets."""
    return _names(TARGETS, incomplete)


def recipe(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Recipes by name, files where none begins so."""
    from sqcompile.recipe import RECIPES

    return _names(RECIPES, incomplete) or _file(incomplete)


def accelerator(
    ctx: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Accelerators by name, files where none begins so."""
    from sqcompile.backends.vta.hardware import PRESETS

    return _names(PRESETS, incomplete) or _file(incomplete)


def stage(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Stages of the run folder on the line."""
    return _names([*_stages(ctx), "all"], incomplete)


def op(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Ops of the run folder on the line."""
    return _names(sorted({str(node[1]) for node in _nodes(ctx)}), incomplete)


def layer(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Modules of the run folder on the line."""
    return _names(sorted({str(node[9]) for node in _nodes(ctx)} - {""}), incomplete)


def variant(
    ctx: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Numbers and modes of the variants of the run folder on the line."""
    entries = _read(ctx, "manifest.json").get("variants", [])
    modes = dict.fromkeys(str(entry["key"]["mode"]) for entry in entries)
    return _names([*map(str, range(len(entries))), *modes, "all"], incomplete)


def _stages(ctx: click.Context) -> list[str]:
    return [str(name) for name, _ in _read(ctx, "stages.json").get("stages", [])]


def _nodes(ctx: click.Context) -> list[list[object]]:
    found: list[list[object]] = _read(ctx, "stages.json").get("nodes", [])
    return found


def _read(ctx: click.Context, name: str) -> dict[str, Any]:
    """A file of the run folder that stands on the line; nothing where there is none: a completion
    has nobody to tell."""
    # Behind an option that has no value yet, click has not told the arguments apart.
    folder = ctx.params.get("folder") or next(iter(ctx.args), "")
    try:
        found: dict[str, Any] = json.loads((Path(str(folder)) / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found
