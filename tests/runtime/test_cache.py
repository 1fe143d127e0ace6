"""The build cache: hits, damage, kills, races, full disks."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sqcompile.runtime import cache
from sqcompile.runtime.executable import Binary

ROOT = Path(__file__).parents[2]
SMALL = Binary(b"{}\nvm", [b"object 0", b"object 1"], {"kernels_0.ll": "; IR"})
WRITER = """
import sys, time
from sqcompile.runtime import cache
from sqcompile.runtime.executable import Binary
original = cache._write
def slow(place, files):
    original(place, files)
    (place / cache.MANIFEST).unlink()
    print("half", flush=True)
    time.sleep(60)
if sys.argv[1] == "slow":
    cache._write = slow
big = Binary(b"{}\\nvm", [bytes(1000000)], {})
for turn in range(1 if sys.argv[1] == "slow" else 20):
    name = f"entry {turn % 8}" if sys.argv[1] == "crowded" else "entry"
    cache.store(name, big)
    found = cache.load(name)
    assert found is None or found == big
print("done", flush=True)
"""


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(cache.DIRECTORY, str(tmp_path))
    return tmp_path / "builds"


def start(mode: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", WRITER, mode],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        text=True,
    )


def kept(text: str, build: Callable[[], Binary]) -> Binary:
    return cache.cached(cache.key_of(text), build)


class Builds:
    """A build that counts its calls."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> Binary:
        self.count += 1
        return SMALL


def test_a_second_build_of_the_same_text_is_read() -> None:
    build = Builds()
    assert kept("graph", build) == SMALL
    assert kept("graph", build) == SMALL
    assert build.count == 1
    kept("another graph", build)
    assert build.count == 2


def test_only_the_user_can_read_entries(own_cache: Path) -> None:
    kept("graph", Builds())
    assert own_cache.stat().st_mode & 0o077 == 0


def test_versions_and_the_package_source_are_part_of_the_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = cache.key_of("graph")
    monkeypatch.setattr(cache, "_source_hash", lambda: "edited")
    edited = cache.key_of("graph")
    monkeypatch.setattr(cache, "version", lambda package: "0")
    assert len({before, edited, cache.key_of("graph")}) == 3


@pytest.mark.parametrize("name", ["vm.bin", "kernels_1.o", "kernels_0.ll", cache.MANIFEST])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "empty"])
def test_a_damaged_entry_is_built_again(own_cache: Path, name: str, damage: str) -> None:
    build = Builds()
    kept("graph", build)
    path = own_cache / cache.key_of("graph") / name
    content = path.read_bytes()
    if damage == "remove":
        path.unlink()
    else:
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        path.write_bytes({"flip": flipped, "cut": content[:-1], "empty": b""}[damage])
    assert kept("graph", build) == SMALL
    assert build.count == 2
    assert kept("graph", build) == SMALL
    assert build.count == 2


def test_a_process_killed_while_writing_leaves_no_entry(own_cache: Path) -> None:
    writer = start("slow")
    assert writer.stdout is not None
    assert writer.stdout.readline() == "half\n"
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    assert cache.load("entry") is None
    (left,) = own_cache.glob(f"{cache._ASIDE}*")
    cache.store("entry", SMALL)
    assert cache.load("entry") == SMALL
    assert left.exists()  # it could belong to a live process
    long_ago = time.time() - 2 * cache._STALE_SECONDS
    os.utime(left, (long_ago, long_ago))
    cache.store("other", SMALL)
    assert not left.exists()


def test_two_processes_storing_and_reading_at_once_are_safe(own_cache: Path) -> None:
    writers = [start("fast") for _ in range(2)]
    for writer in writers:
        output, _ = writer.communicate(timeout=300)
        assert output == "done\n"
        assert writer.returncode == 0
    assert cache.load("entry") is not None
    assert not list(own_cache.glob(f"{cache._ASIDE}*"))


def full_disk(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_a_warning_and_the_build_is_used(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = Builds()
    with monkeypatch.context() as patch:
        original = Path.write_bytes

        def write(self: Path, content: bytes) -> int:
            if self.name == "kernels_1.o":
                original(self, content[:1])
                full_disk()
            return original(self, content)

        patch.setattr(Path, "write_bytes", write)
        with pytest.warns(cache.CacheWarning, match="No space left on device"):
            assert kept("graph", build) == SMALL
    assert list(own_cache.iterdir()) == []
    assert kept("graph", build) == SMALL
    assert build.count == 2


def test_a_folder_that_cannot_be_made_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(cache.DIRECTORY, str(tmp_path / "file"))
    with pytest.warns(cache.CacheWarning, match=cache.DIRECTORY):
        assert kept("graph", Builds()) == SMALL


def names(base: Path) -> set[str]:
    return {path.name for path in base.iterdir()}


def megabytes(count: int) -> dict[str, bytes]:
    return {"file": bytes(count * 1_000_000)}


def test_what_was_used_longest_ago_is_removed(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(cache.LIMIT, "8")
    for position, name in enumerate(("a", "b", "c")):
        cache.store_files(name, megabytes(2))
        os.utime(own_cache / name / cache.MANIFEST, (1000 + position,) * 2)
    assert cache.load_files("a") is not None
    cache.store_files("d", megabytes(3))
    assert names(own_cache) == {"a", "c", "d"}
    cache.store_files("large", megabytes(9))
    assert names(own_cache) == {"large"}, "the newest stays whatever its size"


def test_a_limit_that_is_no_number_is_a_warning(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(cache.LIMIT, "2 GB")
    with pytest.warns(cache.CacheWarning, match="2 GB"):
        cache.store_files("a", megabytes(1))
    assert names(own_cache) == {"a"}


def test_two_processes_that_remove_and_read_at_once_are_safe(own_cache: Path) -> None:
    writers = [start("crowded", **{cache.LIMIT: "5"}) for _ in range(2)]
    for writer in writers:
        output, _ = writer.communicate(timeout=300)
        assert output == "done\n"
        assert writer.returncode == 0
    assert sum(f.stat().st_size for f in own_cache.rglob("*")) < 6_000_000 + 100_000
    assert not list(own_cache.glob(f"{cache._ASIDE}*"))


def test_files_of_an_entry_may_be_in_folders() -> None:
    images = {"sm_80/add.cubin": b"\x7fELF", "device.json": b"{}"}
    binary = Binary(b"{}\nvm", [], {"sm_80/add.cu": "__global__"}, images)
    cache.store("entry", binary)
    assert cache.load("entry") == binary
