"""One run folder that the tests of this folder export, and a step of a transformer."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NET = """\
import torch
import torch.nn.functional as F
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(8)
        self.third = nn.Conv2d(8, 12, 3, 2, 1, groups=2)
        self.head = nn.Linear(12, 3)

    def forward(self, x):
        h = F.relu(self.norm(self.conv(x)))
        h = F.relu(self.norm2(self.second(h)) + h)
        return self.head(F.relu(self.third(h)).mean((2, 3)))


def make_model():
    return Net()


def example_inputs():
    return (torch.randn(4, 1, 6, 7),)
"""


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory):
    """The run folder of a residual network with batch norms, channel groups and a stride."""
    folder = tmp_path_factory.mktemp("onnx")
    (folder / "net.py").write_text(NET)
    result = subprocess.run(
        [sys.executable, "-m", "sqcompile", "net.py", "-o", "run"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return folder / "run"
