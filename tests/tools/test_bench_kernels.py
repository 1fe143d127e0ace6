"""The kernel benchmark: which form of a peer counts, what a row says, and one real family."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from sqcompile.errors import UnsupportedOpError

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / "tools"


@pytest.fixture(autouse=True)
def tools_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TOOLS))


def test_a_peer_counts_in_its_fastest_form(monkeypatch: pytest.MonkeyPatch) -> None:
    import kernel_timing

    times = {"ours": 2.0, "bf16/eager": 9.0, "bf16/compiled": 6.0, "fp32/eager": 12.0}
    monkeypatch.setattr(kernel_timing, "best_times", lambda runs, rounds: times)
    monkeypatch.setattr(kernel_timing.threads, "set_num_threads", lambda count: None)

    def run() -> None:
        pass

    peers = {"bf16": {"eager": run, "compiled": run}, "fp32": {"eager": run}}
    comparison = kernel_timing.Comparison("gemm", "2x3x4", run, peers, 48.0)
    half, single = kernel_timing.measure(comparison, 1)
    assert (half.peer_name, half.peer_form, half.peer, half.ratio) == ("bf16", "compiled", 6.0, 3.0)
    assert (single.peer_name, single.ratio, single.ours) == ("fp32", 6.0, 2.0)


def test_the_best_of_several_rounds_counts() -> None:
    import kernel_timing

    calls = []
    times = kernel_timing.best_times({"one": lambda: calls.append(1)}, rounds=3, seconds=0.0)
    assert len(calls) == 3 + 3  # two to warm up, one to find the repeats, one a round
    assert times["one"] >= 0.0


def test_a_compiled_graph_gives_the_references_bits() -> None:
    import kernel_timing

    from sqcompile.ops.quantize import absmax, quantize

    def both(x: torch.Tensor) -> torch.Tensor:
        return quantize(x, absmax(x, None, [1]), 4, True)

    x = torch.randn(5, 33)
    graph = kernel_timing.traced(both, x)
    assert torch.equal(kernel_timing.compiled(graph)(x)[0], both(x))
    assert {record.op for record in kernel_timing.MADE.values()} >= {"sq::absmax", "sq::quantize"}


def test_an_op_without_a_kernel_is_an_error() -> None:
    import kernel_timing

    graph = kernel_timing.traced(lambda x: torch.fft.rfft(x).real, torch.randn(8))
    with pytest.raises(UnsupportedOpError, match="no kernel for target 'cpu'"):
        kernel_timing.compiled(graph)


@pytest.mark.slow
def test_rows_are_json_with_shapes_threads_and_ratios(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sys.modules.pop("bench_kernels", None)
    import bench_kernels

    monkeypatch.setattr(bench_kernels, "keep_memory", lambda: True)  # of this process, for good
    out = tmp_path / "rows.json"
    arguments = ["--only", "quantize", "--threads", "1", "--rounds", "1", "--json", str(out)]
    result = CliRunner().invoke(bench_kernels.main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    rows = json.loads(out.read_text())
    assert rows
    for row in rows:
        assert row["name"] == "quantize" and row["threads"] == 1 and row["shape"]
        assert row["ratio"] == pytest.approx(row["peer"] / row["ours"])
    assert "geometric mean" in result.output


def test_an_unknown_family_is_refused_with_the_known_ones() -> None:
    from bench_kernels import main

    result = CliRunner().invoke(main, ["--only", "gem"])
    assert result.exit_code == 2 and "there are gemm, shift_gemm" in result.output


Measured = dict[str, Any]


@dataclass(frozen=True)
class Bound:
    """The least geometric mean of a family's ratios over the shapes that `of` selects, with one
    thread, each against the fastest of `peers`."""

    family: str
    peers: tuple[str, ...]
    least: float
    of: Callable[[str], bool] = lambda shape: True


HALF = ("fp32", "bf16")
RESNET20 = ("128x32x32 16->16 3x3 4", "128x16x16 32->32 3x3 4", "128x8x8 64->64 3x3 4")
RESNET18 = tuple(
    f"16x{size}x{size} {channels}->{channels} 3x3 4"
    for size, channels in ((32, 64), (16, 128), (8, 256), (4, 512))
)
BOUNDS = (
    Bound("gemm", ("bf16",), 1.85),
    Bound("quantize_gemm", ("bf16",), 1.85, lambda shape: shape.startswith("dX")),
    Bound("quantize_gemm", ("bf16",), 1.5, lambda shape: shape.startswith("dW")),
    Bound("conv_fprop", HALF, 2.0, lambda shape: shape.startswith(RESNET20)),
    Bound("conv_dgrad", HALF, 2.0, lambda shape: shape.startswith(RESNET20)),
    Bound("conv_wgrad", HALF, 2.0, lambda shape: shape.startswith(RESNET20)),
    Bound("conv_fprop", HALF, 2.6, lambda shape: shape.startswith(RESNET18)),
    Bound("conv_dgrad", HALF, 2.6, lambda shape: shape.startswith(RESNET18)),
    Bound("conv_wgrad", HALF, 2.1, lambda shape: shape.startswith(RESNET18)),
    Bound("l1_batch_norm", ("BatchNorm2d",), 1.36),
    Bound("l1_layer_norm", ("LayerNorm",), 1.36),
)


@pytest.mark.claims
@pytest.mark.parametrize("bound", BOUNDS, ids=lambda b: f"{b.family}-{b.least}")
def test_kernels_reach_the_ratios_that_are_claimed(bound: Bound) -> None:
    rows: list[Measured] = json.loads((ROOT / "runs" / "claims" / "kernels.json").read_text())
    by_shape: dict[str, list[Measured]] = {}
    for row in rows:
        wanted = row["name"] == bound.family and row["peer_name"] in bound.peers
        if wanted and row["threads"] == 1 and bound.of(row["shape"]):
            by_shape.setdefault(row["shape"], []).append(row)
    assert by_shape
    least = [min(row["peer"] for row in found) / found[0]["ours"] for found in by_shape.values()]
    assert geometric_mean(least) >= bound.least
