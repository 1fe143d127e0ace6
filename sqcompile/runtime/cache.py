"""What compiling makes, kept between runs by content.

An entry is a folder of named files, called after the hash of everything that they depend on: what
is compiled, the versions of torch and TVM, and the package's own source. It is written aside and
renamed, so a reader sees all of it or nothing, whoever else is writing; a manifest with checksums
is verified at every read, and an entry that fails is thrown away and made again. The cache is a
convenience: when it cannot be written (full disk, no permission) a warning says so and the build
goes on.

Above SQCOMPILE_CACHE_MB the entries that were read longest ago are removed, each in one rename: a
process that reads one at that moment misses it and compiles.

Folder: SQCOMPILE_CACHE_DIR, or the user's cache folder. Entries hold native code, so only the
user can read or write them. Nothing is unpickled.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import platformdirs

from sqcompile.runtime.executable import Binary

DIRECTORY = "SQCOMPILE_CACHE_DIR"
"""Environment variable: the folder of the cache."""
LIMIT = "SQCOMPILE_CACHE_MB"
"""Environment variable: how many megabytes the cache may hold."""
DEFAULT_MEGABYTES = 2000
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


def cached(key: str, build: Callable[[], Binary]) -> Binary:
    """The binary kept as `key` (see key_of), or build() and keep it.

    Never fails because of the cache: an entry that is broken is built again, and one that cannot
    be written is a CacheWarning.
    """
    binary = load(key)
    if binary is None:
        binary = build()
        store(key, binary)
    return binary


def load(key: str) -> Binary | None:
    """The binary called `key`, None when there is none; a broken one is removed first."""
    files = load_files(key)
    return None if files is None else Binary.from_files(files)


def store(key: str, binary: Binary) -> None:
    """Keep `binary` as `key`; see store_files."""
    store_files(key, binary.files())


def load_files(key: str) -> dict[str, bytes] | None:
    """The entry called `key`, None when there is none; a broken one is removed first."""
    place = folder() / key
    try:
        return _read(place)
    except FileNotFoundError:
        if not place.is_dir():
            return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    _discard(place)
    return None


def _read(place: Path) -> dict[str, bytes]:
    """Raises one of the errors above when the entry is not whole. Its last use is the time of its
    manifest."""
    manifest = json.loads((place / MANIFEST).read_text())
    if manifest["checksum"] != _checksum(manifest["files"]):
        raise ValueError("the manifest is damaged")
    files: dict[str, bytes] = {}
    for name, checksum in manifest["files"].items():
        content = (place / name).read_bytes()
        if hashlib.sha256(content).hexdigest() != checksum:
            raise ValueError(f"{name} is damaged")
        files[name] = content
    with contextlib.suppress(OSError):
        os.utime(place / MANIFEST)
    return files


def _checksum(files: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def store_files(key: str, files: Mapping[str, bytes]) -> None:
    """Keep `files` as the entry `key`, and remove others when the cache is full; a CacheWarning
    when that fails. Another process that stores the same key at the same time wins or loses
    without harm."""
    base = folder()
    aside: Path | None = None
    try:
        base.mkdir(parents=True, exist_ok=True, mode=0o700)
        _remove_leftovers(base)
        aside = Path(tempfile.mkdtemp(prefix=_ASIDE, dir=base))
        _write(aside, files)
        os.rename(aside, base / key)
        _remove_oldest(base, key)
    except OSError as error:
        if aside is not None:
            shutil.rmtree(aside, ignore_errors=True)
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            _warn(
                f"the build is not kept in {base}: {error.strerror or error}. It works, but will "
                f"be compiled again next time; {DIRECTORY} names another folder."
            )


def _warn(message: str) -> None:
    warnings.warn(message, CacheWarning, stacklevel=3)


def _write(place: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_bytes(content)
    checksums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    manifest = {"files": checksums, "checksum": _checksum(checksums)}
    (place / MANIFEST).write_text(json.dumps(manifest))


def _limit() -> int:
    """Bytes that entries may take; DEFAULT_MEGABYTES when the variable holds no number."""
    given = os.environ.get(LIMIT, "")
    if given and not given.isdecimal():
        _warn(f"{LIMIT} is {given!r}, not a number of megabytes; {DEFAULT_MEGABYTES} holds")
        given = ""
    return int(given or DEFAULT_MEGABYTES) * 1_000_000


def _remove_oldest(base: Path, newest: str) -> None:
    """Remove the entries that were used longest ago until the others fit the limit. The newest
    stays whatever its size."""
    entries = []
    for place in base.iterdir():
        if place.name.startswith(_ASIDE):
            continue
        with contextlib.suppress(OSError):  # another process may be removing it
            used = (place / MANIFEST).stat().st_mtime_ns
            entries.append((used, sum(file.stat().st_size for file in place.rglob("*")), place))
    excess = sum(size for _, size, _ in entries) - _limit()
    for _, size, place in sorted(entries):
        if excess > 0 and place.name != newest:
            _discard(place)
            excess -= size


def _discard(place: Path) -> None:
    """Take an entry away in one step, then delete it; another process may have done so."""
    with contextlib.suppress(OSError):
        aside = Path(tempfile.mkdtemp(prefix=_ASIDE, dir=place.parent))
        try:
            os.rename(place, aside / "discarded")
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def _remove_leftovers(base: Path) -> None:
    """Delete what killed processes left aside more than a day ago."""
    oldest = time.time() - _STALE_SECONDS
    for path in base.glob(f"{_ASIDE}*"):
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < oldest:
                shutil.rmtree(path, ignore_errors=True)
