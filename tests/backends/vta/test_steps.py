"""Whole training steps on the VTA target, in the simulator, to the CPU target's bits."""

import json
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sqcompile
from sqcompile.backends import targets
from sqcompile.backends.vta.hardware import PRESETS
from sqcompile.recipe import Recipe
from sqcompile.report import data
from sqcompile.runtime import vta
from tests.models import MODELS, Block, make

OTHER = "4 rows of 8, int4"
GEOMETRY = {"LOG_BATCH": 2, "LOG_BLOCK": 3, "LOG_ACC_BUFF_SIZE": 15, "LOG_WGT_BUFF_SIZE": 15}
"""Its tile, and scratchpads that small layers do not fit."""
STEPS = MODELS | {
    "linear": (
        lambda: nn.Sequential(
            *(nn.Linear(20, 24), nn.ReLU(), nn.Linear(24, 17), nn.ReLU(), nn.Linear(17, 10))
        ),
        lambda: (torch.randn(12, 20),),
    ),
    "residual block": (
        lambda: nn.Sequential(
            *(Block(3, 8, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
        ),
        lambda: (torch.randn(4, 3, 9, 9),),
    ),
}


def compiled(name, hw="pynq", **options):
    model, inputs = make(name, models=STEPS)
    return sqcompile.compile(model, inputs, target=targets.get("vta", hw=hw), **options), inputs


@pytest.mark.parametrize(
    ("name", "hw"),
    [("mlp", OTHER), ("residual block", "pynq"), ("odd", "pynq-int4"), ("gpt", "pynq")],
)
def test_every_bit_of_a_step_is_the_references(name, hw, tmp_path):
    if hw == OTHER:
        hw = str(tmp_path / "other.json")
        described = PRESETS["pynq-int4"].parameters() | GEOMETRY
        (tmp_path / "other.json").write_text(json.dumps(described))
    step, inputs = compiled(name, hw)
    before = vta.executed.total()
    result = sqcompile.verify(step, inputs)
    assert result.equal, [row for row in result.rows if not row.equal]
    report = data.report(step)
    programs = report["accelerator"]["programs"]
    assert vta.executed.total() - before == sum(len(row["programs"]) for row in programs)
    summed = [p for p in report["products"] if p["op"] == "sq.conv_fprop_sums"]
    assert len(programs) == len(report["products"]) + len(summed)
    assert report["macs"]["on_target"] == report["macs"]["total"] > 0


def test_sums_of_64_bits_are_the_references():
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    inputs = (torch.randn(9000, 3),)
    step = sqcompile.compile(net, inputs, target="vta", recipe=Recipe("deep", 8, 8, 8, groups=4))
    assert sqcompile.verify(step, inputs).equal
    report = data.report(step)
    assert report["macs"]["on_target_share"] == 1.0
    assert report["accelerator"]["name"] == "pynq"
    assert max(len(row["programs"]) for row in report["accelerator"]["programs"]) == 2


def test_steps_train_to_the_cpus_bits_in_every_interleaving():
    model, inputs = make("linear", models=STEPS)
    cpu = sqcompile.compile(deepcopy(model), inputs)
    accelerator = sqcompile.compile(model, inputs, target="vta")
    target = torch.arange(inputs[0].shape[0]) % 7
    optimizers = [torch.optim.SGD(one.parameters(), 0.1) for one in (cpu, accelerator)]
    for seed in range(16):
        for step, optimizer in zip((cpu, accelerator), optimizers, strict=True):
            optimizer.zero_grad()
            with vta.interleaving(seed):
                F.cross_entropy(step(*inputs), target).backward()
            optimizer.step()
        for ours, theirs in zip(accelerator.parameters(), cpu.parameters(), strict=True):
            assert torch.equal(ours, theirs) and torch.equal(ours.grad, theirs.grad)


def test_a_run_folder_holds_programs_as_data_and_runs(tmp_path):
    step, inputs = compiled("linear")
    step.save(str(tmp_path / "run"))
    index = json.loads((tmp_path / "run/variant_0/vta.json").read_text())
    for name in index["programs"]:
        assert (tmp_path / f"run/variant_0/{name}.program").is_file()
        assert "finish" in (tmp_path / f"run/variant_0/{name}.txt").read_text()
        assert '"vta.gemm"' in (tmp_path / f"run/variant_0/{name}.tir").read_text()
    loaded = sqcompile.load(tmp_path / "run")
    step.eval(), loaded.eval()
    step.train(), loaded.train()
    assert loaded.target == "vta"
    assert torch.equal(step(*inputs), loaded(*inputs))


def test_programs_of_another_format_are_refused():
    step, _ = compiled("linear")
    binary = step.variants[0].executable.binary
    other = json.dumps({**vta.index_of(binary), "format": 99}).encode()
    binary.images[vta.INDEX] = other
    with pytest.raises(sqcompile.errors.UsageError, match="format 99, this version reads 2"):
        vta.programs(binary)
