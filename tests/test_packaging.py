"""The package installs whole, and works from a wheel wherever it is called."""

import os
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDERS = {"sqcompile": "sqcompile", "passes": "sqcompile.passes", "backends": "sqcompile.backends"}
USES = """
import json, sys
import sqcompile
from sqcompile.backends import lower
from sqcompile.passes import pipeline
modules = (sqcompile, lower, pipeline)
print(json.dumps([module.__file__ for module in modules]))
"""


def packages():
    """The package of every folder that holds code."""
    found = set()
    for folder, package in FOLDERS.items():
        for file in (ROOT / folder).rglob("*.py"):
            parts = file.parent.relative_to(ROOT / folder).parts
            found.add(".".join([package, *parts]))
    return found


def test_every_folder_with_code_is_listed():
    assert packages() == set(PROJECT["tool"]["setuptools"]["packages"])


def test_the_version_is_the_packages():
    import sqcompile

    assert PROJECT["project"]["version"] == sqcompile.__version__


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy (setuptools leaves folders behind) without a network."""
    source = tmp_path_factory.mktemp("source")
    files = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    names = files.stdout.decode().split("\0") if files.returncode == 0 else _all_files()
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    out = tmp_path_factory.mktemp("wheel")
    run("-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source), cwd=source)
    (path,) = out.glob("*.whl")
    return path


def _all_files():
    """The project's files where it is no git checkout, for instance an unpacked archive."""
    wanted = [*FOLDERS, "pyproject.toml", "LICENSE", "README.md"]
    return [
        str(file.relative_to(ROOT))
        for name in wanted
        for file in ([ROOT / name] if (ROOT / name).is_file() else (ROOT / name).rglob("*"))
        if file.is_file() and "__pycache__" not in file.parts
    ]


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A folder with the installed wheel alone; its dependencies come from this environment."""
    target = tmp_path_factory.mktemp("installed")
    arguments = ["install", "--no-deps", "--no-index", "--target", str(target), str(wheel)]
    run("-m", "pip", *arguments, cwd=target)
    return target


def run(*arguments, cwd, path=(), check=True):
    """Run this Python somewhere else, with `path` first among the folders to import from."""
    environment = dict(os.environ)
    environment.pop("PYTHONSAFEPATH", None)
    environment["PYTHONPATH"] = os.pathsep.join(map(str, path))
    result = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert not check or result.returncode == 0, result.stdout + result.stderr
    return result


def test_the_wheel_holds_the_package_and_nothing_generic(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"sqcompile", f"sqcompile-{PROJECT['project']['version']}.dist-info"}
    runtime = ("ptx.h", "runtime.cpp")
    emulator = [f"backends/cuda/emulator/runtime/{name}" for name in runtime]
    for name in (
        "passes/pipeline.py",
        "backends/lower.py",
        "report/page/page.html.j2",
        "report/page/main.js",
        *emulator,
    ):
        assert f"sqcompile/{name}" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.mark.parametrize("where", ["elsewhere", "checkout"])
def test_the_wheel_works_from_any_folder(installed, tmp_path, where):
    """`python -c` puts the current folder first: in a checkout that finds ./sqcompile, whose
    passes and backends stand beside it."""
    cwd, package = {
        "elsewhere": (tmp_path, installed / "sqcompile"),
        "checkout": (ROOT, ROOT / "sqcompile"),
    }[where]
    front, lower, pipeline = json_of(run("-c", USES, cwd=cwd, path=[installed]))
    assert Path(front).parent == package
    beside = ROOT if where == "checkout" else package
    assert Path(lower) == beside / "backends" / "lower.py"
    assert Path(pipeline) == beside / "passes" / "pipeline.py"


def json_of(result):
    import json

    return json.loads(result.stdout)


@pytest.mark.parametrize("where", ["elsewhere", "checkout"])
def test_the_console_script_of_the_wheel(installed, tmp_path, where):
    """A script's own folder comes first, so that the wheel runs in a checkout too."""
    script = installed / "bin" / "sqcompile"
    if sysconfig.get_platform().startswith("win"):
        script = script.with_suffix(".exe")
    cwd = ROOT if where == "checkout" else tmp_path
    help_text = run(str(script), "--help", cwd=cwd, path=[installed]).stdout
    assert "Usage: sqcompile" in help_text
    version = run("-m", "sqcompile", "--version", cwd=cwd, path=[installed]).stdout
    assert version == f"sqcompile {PROJECT['project']['version']}\n"


def test_torch_finds_the_backend_of_the_wheel(installed, tmp_path):
    """With `import torch` alone."""
    code = "import torch; print(torch._dynamo.lookup_backend('sqcompile').__module__)"
    assert run("-c", code, cwd=tmp_path, path=[installed]).stdout == "sqcompile.dynamo\n"
