"""The run folder on disk: code, weights and manifest; saved whole or not at all.

An artifact holds native code: load only what you trust. Nothing is unpickled.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sqcompile import __version__
from sqcompile.backends.targets import TARGETS
from sqcompile.errors import SqError, UsageError
from sqcompile.recipe import Recipe
from sqcompile.runtime import graph_file, stages
from sqcompile.runtime.executable import Binary, Executable
from sqcompile.runtime.signature import CallKey, Signature
from sqcompile.runtime.step import CompiledStep
from sqcompile.runtime.variant import Variant

FORMAT = 5
MANIFEST = "manifest.json"
_PINNED = ("torch", "apache-tvm", "apache-tvm-ffi")


def save(
    step: CompiledStep,
    directory: str | Path,
    *,
    model_file: str | None = None,
    add: Callable[[Path], object] = lambda folder: None,
) -> None:
    """Write `step` with all its variants to `directory`, replacing an artifact that is there.

    Everything is written beside it and renamed at the end, so that a full disk or a kill leaves
    what was there; `add` writes what else belongs into the folder before that. Raises UsageError
    when the folder exists and is not an artifact, SqError when it cannot be written.
    """
    path = Path(directory).absolute()
    if path.exists() and any(path.iterdir()) and not is_artifact(path):
        raise UsageError(f"{directory} exists and is not an artifact; give another folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        _write(step, aside, model_file)
        add(aside)
        _put_in_place(aside, path)
    except OSError as error:
        raise SqError(
            f"cannot write {directory}: {error.strerror or error}\n  what was there is unchanged."
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def is_artifact(folder: Path) -> bool:
    """Whether `save` wrote this folder, with this version or another: other programs have a
    manifest.json too."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and {"format", "files", "variants"} <= manifest.keys()


def _put_in_place(aside: Path, path: Path) -> None:
    aside.chmod(0o755)
    if not path.exists():
        aside.rename(path)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
    path.rename(old / path.name)
    try:
        aside.rename(path)
    except OSError:
        (old / path.name).rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _write(step: CompiledStep, folder: Path, model_file: str | None) -> None:
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "sqcompile": __version__,
        "versions": {name: version(name) for name in _PINNED},
        "target": step.target,
        "recipe": step.recipe.to_json(),
        "training_state": step.training_state(),
        "model_file": _model_file(model_file),
        "module": _write_module(step, folder),
        "variants": [
            _write_variant(variant, folder, number) for number, variant in enumerate(step.variants)
        ],
    }
    manifest["files"] = {
        str(file.relative_to(folder)): _sha256(file)
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))


def _model_file(model_file: str | None) -> dict[str, str] | None:
    if model_file is None:
        return None
    path = Path(model_file).absolute()
    return {"path": str(path), "sha256": _sha256(path)}


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _write_module(step: CompiledStep, folder: Path) -> dict[str, Any]:
    """Weights as safetensors; tied tensors once, with the other names as aliases."""
    tensors: dict[str, Tensor] = {}
    first: dict[int, str] = {}
    aliases: dict[str, str] = {}
    parameters = dict(step.named_parameters(remove_duplicate=False))
    buffers = dict(step.named_buffers(remove_duplicate=False))
    for name, tensor in [*parameters.items(), *buffers.items()]:
        if id(tensor) in first:
            aliases[name] = first[id(tensor)]
            continue
        first[id(tensor)] = name
        tensors[name] = tensor.detach().contiguous().clone()
    save_file(tensors, folder / "weights.safetensors")
    persistent = set(step.state_dict(keep_vars=True))
    return {
        "parameters": {name: p.requires_grad for name, p in parameters.items()},
        "buffers": {name: name in persistent for name in buffers},
        "aliases": aliases,
        "modes": {name: m.training for name, m in step.model.named_modules(remove_duplicate=False)},
    }


def _write_variant(variant: Variant, run: Path, number: int) -> dict[str, Any]:
    """Code into a folder of its own; the graphs of the first variant, which is what people read,
    stand at the top of the run folder, those of the others beside their code."""
    folder = run / f"variant_{number}"
    folder.mkdir()
    texts = folder if number else run
    binary = variant.executable.binary
    files = binary.files()
    files |= {name: text.encode() for name, text in _listings(binary).items()}
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    if variant.forward is not None:
        parts = {"forward": variant.forward, "backward": variant.backward}
        graph_file.write({key: graph for key, graph in parts.items() if graph is not None}, folder)
    for position, stage in enumerate(variant.stages):
        (texts / f"{position:02d}_{stage.name}.txt").write_text(stage.text, encoding="utf-8")
    stages.write(texts, variant.stages)
    return {
        "folder": folder.name,
        "key": asdict(variant.key),
        "signature": storable(variant.signature),
        "objects": len(binary.objects),
        "sources": sorted(binary.sources),
        "images": sorted(binary.images),
    }


def storable(signature: Signature) -> dict[str, Any]:
    """A signature's JSON form; raises UsageError when the model's output has none."""
    try:
        return signature.to_json()
    except TypeError as error:
        raise UsageError(
            f"the model's output cannot be stored: {error}\n"
            "  return tensors in tuples, lists and dicts."
        ) from error


def _listings(binary: Binary) -> dict[str, str]:
    found: dict[str, str] = TARGETS[binary.target].builder.listings(binary)
    return found


def load(directory: str | Path) -> CompiledStep:
    """An artifact as a step that runs: no model file, no tracing, no compiler.

    It holds native code, which runs in this process: load only what you trust. Raises UsageError
    when the folder is no artifact, is damaged, or was made by other versions.
    """
    folder = Path(directory)
    manifest = read_manifest(folder)
    module = read_module(folder, manifest)
    step = CompiledStep(
        module,
        None,
        recipe=Recipe.from_json(manifest["recipe"]),
        target=manifest["target"],
    )
    step.load_training_state(manifest["training_state"])
    for entry in manifest["variants"]:
        step.add_variant(_read_variant(folder, entry))
    return step


def read_manifest(folder: Path) -> dict[str, Any]:
    """What a run folder says of itself. Raises UsageError when it is no artifact, is damaged or
    was made by other versions."""
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"{folder} is not an artifact of sqcompile: {error}") from error
    if not is_artifact(folder):
        raise UsageError(f"{folder} is not an artifact of sqcompile: its {MANIFEST} is another's")
    if manifest.get("format") != FORMAT:
        raise UsageError(f"{folder}: format {manifest.get('format')}, this version reads {FORMAT}")
    for name, made_with in manifest["versions"].items():
        if name != "torch" and made_with != version(name):
            raise UsageError(
                f"{folder} was compiled with {name} {made_with}, here is {version(name)}\n"
                "  install that version or compile the model again."
            )
    for name, digest in manifest["files"].items():
        file = folder / name
        if not file.is_file() or _sha256(file) != digest:
            raise UsageError(f"{file} is missing or damaged; compile the model again")
    return manifest


def _read_variant(folder: Path, entry: dict[str, Any]) -> Variant:
    place = folder / entry["folder"]
    binary = Binary(
        vm=(place / "vm.bin").read_bytes(),
        objects=[(place / f"kernels_{n}.o").read_bytes() for n in range(entry["objects"])],
        sources={name: (place / name).read_text() for name in entry["sources"]},
        images={name: (place / name).read_bytes() for name in entry["images"]},
    )
    key = entry["key"]
    call = CallKey(
        key["mode"],
        key["gradients"],
        tuple(key["leaves"]),
        key["structure"],
        tuple(key["frozen"]),
        tuple(key["switched"]),
        tuple(key["shared"]),
    )
    return Variant(call, Signature.from_json(entry["signature"]), Executable(binary))


def read_module(folder: Path, manifest: dict[str, Any]) -> nn.Module:
    """A bare tree of modules that holds the artifact's parameters and buffers by name."""
    tensors = load_file(folder / "weights.safetensors")
    described, root = manifest["module"], nn.Module()
    owned: dict[str, Tensor] = {}
    for name, requires_grad in described["parameters"].items():
        source = described["aliases"].get(name, name)
        if source not in owned:
            owned[source] = nn.Parameter(tensors[source], requires_grad)
        owner, leaf = _owner(root, name)
        owner.register_parameter(leaf, owned[source])  # type: ignore[arg-type]
    for name, persistent in described["buffers"].items():
        source = described["aliases"].get(name, name)
        owned.setdefault(source, tensors[source])
        owner, leaf = _owner(root, name)
        owner.register_buffer(leaf, owned[source], persistent=persistent)
    for name, training in described["modes"].items():
        module = _module(root, name.split(".") if name else [])
        module.training = training
    return root


def _owner(root: nn.Module, name: str) -> tuple[nn.Module, str]:
    *path, leaf = name.split(".")
    return _module(root, path), leaf


def _module(root: nn.Module, path: Sequence[str]) -> nn.Module:
    module = root
    for part in path:
        if part not in module._modules:
            module.add_module(part, nn.Module())
        module = module._modules[part]  # type: ignore[assignment]
    return module
