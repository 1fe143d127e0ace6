"""Compiled variants kept between runs: once Dynamo has taken its graph, nothing is compiled twice.

An entry of the cache (`sqcompile.runtime.cache`) is named by the traced call's fingerprint with
the recipe, the target and the call's key. It holds the signature and names the entry that has the
code.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict

from sqcompile.backends.targets import Target
from sqcompile.capture import Traced
from sqcompile.fingerprint import fingerprint
from sqcompile.recipe import Recipe
from sqcompile.runtime import cache
from sqcompile.runtime.executable import Binary
from sqcompile.runtime.signature import CallKey, Signature

_FILE = "variant.json"


def entry_of(
    traced: Traced, key: CallKey, target: Target, recipe: Recipe, check_finite: bool
) -> str | None:
    """The name of the entry for a traced call; None for one that is not kept: its text does not
    tell all, or kernels that are not this package's are registered."""
    text = fingerprint(traced)
    if text is None or not _own(target):
        return None
    options = {
        "key": asdict(key),
        "target": [target.name, target.builder.identity(target)],
        "recipe": recipe.to_json(),
        "check_finite": check_finite,
    }
    return cache.key_of(f"variant\n{json.dumps(options)}\n{text}")


def _own(target: Target) -> bool:
    """Whether all kernels are the package's, whose source is in every key."""
    names: Iterable[str] = target.kernels
    return all(
        getattr(target.kernels[name].generate, "__module__", "").startswith("sqcompile.")
        for name in names
    )


def load(entry: str | None) -> tuple[Signature, Binary] | None:
    """What an entry holds, with its code; None when there is none or its code is gone."""
    files = None if entry is None else cache.load_files(entry)
    if files is None:
        return None
    kept = json.loads(files[_FILE])
    binary = cache.load(kept["binary"])
    return None if binary is None else (Signature.from_json(kept["signature"]), binary)


def store(entry: str | None, signature: Signature, binary: str) -> None:
    """Keep a variant whose code is the entry `binary`, unless its output has no JSON form."""
    if entry is None:
        return
    try:
        kept = {"binary": binary, "signature": signature.to_json()}
    except TypeError:
        return
    cache.store_files(entry, {_FILE: json.dumps(kept).encode()})
