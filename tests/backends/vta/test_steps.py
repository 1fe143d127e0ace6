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
from tests.models import make

GEOMETRY = {"LOG_BATCH": 2, "LOG_BLOCK": 3, "LOG_ACC_BUFF_SIZE": 15, "LOG_WGT_BUFF_SIZE": 15}
"""Four rows a tile and eight channels, with scratchpads that small layers do not fit."""


def compiled(name, hw="pynq", **options):
    model, inputs = make(name)
    return sqcompile.compile(model, inputs, target=targets.get("vta", hw=hw), **options), inputs


@pytest.mark.parametrize(
    ("name", "hw"),
    [("mlp", "pynq-int4"), ("resnet", "pynq"), ("odd", "pynq-int4"), ("gpt", "pynq")],
)
def test_every_bit_of_a_step_is_the_references(name, hw):
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
    assert max(len(row["programs"]) for row in report["accelerator"]["programs"]) == 2


def test_another_geometry_gives_the_same_bits(tmp_path):
    file = tmp_path / "small.json"
    file.write_text(json.dumps(PRESETS["pynq"].parameters() | GEOMETRY))
    step, inputs = compiled("mlp", str(file))
    assert sqcompile.verify(step, inputs).equal


def test_steps_train_to_the_cpus_bits_in_every_interleaving():
    model, inputs = make("mlp")
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
    step, inputs = compiled("attention")
    step.save(str(tmp_path / "run"))
    index = json.loads((tmp_path / "run/variant_0/vta.json").read_text())
    for name in index["programs"]:
        assert (tmp_path / f"run/variant_0/{name}.program").is_file()
        assert "finish" in (tmp_path / f"run/variant_0/{name}.txt").read_text()
    loaded = sqcompile.load(tmp_path / "run")
    step.eval(), loaded.eval()
    step.train(), loaded.train()
    assert loaded.target == "vta"
    assert torch.equal(step(*inputs), loaded(*inputs))


def test_programs_of_another_format_are_refused():
    step, _ = compiled("mlp")
    binary = step.variants[0].executable.binary
    other = json.dumps({**vta.index_of(binary), "format": 99}).encode()
    binary.images[vta.INDEX] = other
    with pytest.raises(sqcompile.errors.UsageError, match="format 99, this version reads 1"):
        vta.programs(binary)
