"""Compiled binaries kept between runs, by content.

An entry is a folder named by the hash of everything that its code depends on: what is compiled,
the versions of torch and TVM, and the package's own source. It is written aside and renamed, so
a reader sees all of it or nothing, whoever else is writing; a manifest with checksums is verified
at every read, and an entry that fails is thrown away and built again. The cache is a convenience:
when it cannot be written (full disk, no permission) a warning says so and the build goes on.

Folder: SQCOMPILE_CACHE_DIR, or the user's cache folder. Entries hold native code, so only the
user can read or write them.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import platformdirs

from sqcompile.runtime.executable import Binary

DIRECTORY = "SQCOMPILE_CACHE_DIR"
"""Environment variable: the folder of the cache."""
MANIFEST = "manifest.json"
_ASIDE = ".aside-"
_STALE_SECONDS = 24 * 3600
_PACKAGES = ("torch", "apache-tvm", "apache-tvm-ffi", "apache-tvm-ffi-orcjit")
_SOURCES = ("sqcompile", "sqcompile.passes", "sqcompile.backends")


class CacheWarning(UserWarning):
    """A build could not be kept."""


def folder() -> Path:
    """Where entries are."""
    given = os.environ.get(DIRECTORY)
    base = Path(given) if given else Path(platformdirs.user_cache_dir("sqcompile"))
    return base / "builds"


def key_of(text: str) -> str:
    """The name of the entry for `text`, which must hold all that decides the code (the target's
    CPU too): its hash with the versions and the package's source."""
    digest = hashlib.sha256(text.encode())
    for package in _PACKAGES:
        digest.update(f"{package}={version(package)}\n".encode())
    digest.update(_source_hash().encode())
    return digest.hexdigest()


@lru_cache(maxsize=1)
def _source_hash() -> str:
    """Hash of this package's own Python files."""
    digest = hashlib.sha256()
    for name in _SOURCES:
        place = import_module(name).__path__[0]
        for path in sorted(Path(place).rglob("*.py")):
            digest.update(f"{name}/{path.relative_to(place)}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def cached(text: str, build: Callable[[], Binary]) -> Binary:
    """The binary kept for `text`, or build() and keep it.

    Never fails because of the cache: an entry that is broken is built again, and one that cannot
    be written is a CacheWarning.
    """
    key = key_of(text)
    binary = load(key)
    if binary is None:
        binary = build()
        store(key, binary)
    return binary


def load(key: str) -> Binary | None:
    """The entry called `key`, None when there is none; a broken one is removed first."""
    place = folder() / key
    try:
        found = _read(place)
    except FileNotFoundError:
        if not place.is_dir():
            return None
        found = None
    except (OSError, ValueError, KeyError, TypeError):
        found = None
    if found is None:
        _discard(place)
    return found


def _read(place: Path) -> Binary:
    """Raises OSError, ValueError, KeyError or TypeError when the entry is not whole."""
    manifest = json.loads((place / MANIFEST).read_text())
    files: dict[str, bytes] = {}
    for name, checksum in manifest["files"].items():
        content = (place / name).read_bytes()
        if hashlib.sha256(content).hexdigest() != checksum:
            raise ValueError(f"{name} is damaged")
        files[name] = content
    if manifest["checksum"] != _checksum(manifest["files"]):
        raise ValueError("the manifest is damaged")
    objects = [files[f"kernels_{n}.o"] for n in range(manifest["objects"])]
    sources = {name: files[name].decode() for name in manifest["sources"]}
    return Binary(files["vm.bin"], objects, sources)


def _checksum(files: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def store(key: str, binary: Binary) -> None:
    """Keep `binary` as `key`; a CacheWarning when that fails. Another process that stores the
    same key at the same time wins or loses without harm."""
    base = folder()
    aside: Path | None = None
    try:
        base.mkdir(parents=True, exist_ok=True, mode=0o700)
        _remove_leftovers(base)
        aside = Path(tempfile.mkdtemp(prefix=_ASIDE, dir=base))
        _write(aside, binary)
        os.rename(aside, base / key)
    except OSError as error:
        if aside is not None:
            shutil.rmtree(aside, ignore_errors=True)
        if not (base / key / MANIFEST).is_file():
            warnings.warn(
                f"the build is not kept in {base}: {error.strerror or error}. It works, but will "
                f"be compiled again next time; {DIRECTORY} names another folder.",
                CacheWarning,
                stacklevel=2,
            )


def _write(place: Path, binary: Binary) -> None:
    files = {"vm.bin": binary.vm}
    files |= {f"kernels_{n}.o": code for n, code in enumerate(binary.objects)}
    files |= {name: text.encode() for name, text in binary.sources.items()}
    for name, content in files.items():
        (place / name).write_bytes(content)
    checksums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    manifest = {
        "objects": len(binary.objects),
        "sources": sorted(binary.sources),
        "files": checksums,
        "checksum": _checksum(checksums),
    }
    (place / MANIFEST).write_text(json.dumps(manifest))


def _discard(place: Path) -> None:
    """Take an entry away in one step, then delete it."""
    with contextlib.suppress(OSError):
        aside = Path(tempfile.mkdtemp(prefix=_ASIDE, dir=place.parent))
        os.rename(place, aside / "broken")
        shutil.rmtree(aside, ignore_errors=True)


def _remove_leftovers(base: Path) -> None:
    """Delete what killed processes left aside more than a day ago."""
    oldest = time.time() - _STALE_SECONDS
    for path in base.glob(f"{_ASIDE}*"):
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < oldest:
                shutil.rmtree(path, ignore_errors=True)
