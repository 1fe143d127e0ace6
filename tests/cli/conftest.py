"""A small model file, and the command line called in this process and in one of its own."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from sqcompile.cli import run

ROOT = Path(__file__).resolve().parents[2]
SMALL = """\
import torch
from torch import nn


def make_model():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def example_inputs():
    return (torch.randn(4, 6),)


def data():
    for _ in range(3):
        x = torch.randn(4, 6)
        yield x, x[:, :3].argmax(1)


def loss(output, target):
    return nn.functional.cross_entropy(output, target)
"""
FORWARD = """\
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 6)

    def forward(self, x):
        return {returns}


def make_model():
    return Net()


def example_inputs():
    return (torch.randn(4, 6),)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A current folder with the small model file in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "net.py").write_text(SMALL)
    return tmp_path


@pytest.fixture
def call(folder, capfd):
    """call(*arguments) -> code, out, err."""

    def call(*arguments):
        capfd.readouterr()
        code = run(arguments)
        out, err = capfd.readouterr()
        return SimpleNamespace(code=code, out=out, err=err)

    return call


@pytest.fixture(scope="session")
def compiled(tmp_path_factory):
    """The run folder of the small model, compiled once with --verify --json."""
    folder = tmp_path_factory.mktemp("compiled")
    (folder / "net.py").write_text(SMALL)
    result = started("net.py", "-o", "run", "--verify", "--json", cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder / "run", result


def started(*arguments, cwd, **environment):
    """The command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "sqcompile", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
    )
