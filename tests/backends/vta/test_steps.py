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
from sqcompile.report import data, html
from sqcompile.runtime import vta
from tests.models import MODELS, Block, make

OTHER = "4 rows of 8, int4"
GEOMETRY = {"LOG_BATCH": 2, "LOG_BLOCK": 3, "LOG_ACC_BUFF_SIZE": 15, "LOG_WGT_BUFF_SIZE": 15}
"""Its tile, and scratchpads that small layers do not fit."""


class Rectified(nn.Module):
    """A ReLU of a product, and one of a product times a negative number."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Linear(*sizes, bias=False) for sizes in ((20, 24), (24, 10), (10, 6))
        )

    def forward(self, x):
        first, second, third = self.layers
        return third(torch.relu(-2 * second(torch.relu(first(x)))))


STEPS = MODELS | {
    "rectified": (Rectified, lambda: (torch.randn(16, 20),)),
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
    assert len(programs) == len(report["products"])
    summed = [p for p in report["products"] if p["op"] == "sq.conv_fprop_sums"]
    assert len(summed) == [row["with"] for row in programs].count("sums")
    norms = report["accelerator"]["norms"]
    assert norms["forward"]["values"]["accelerator"] == len(summed)
    assert report["macs"]["on_target"] == report["macs"]["total"] > 0


def test_a_relu_behind_a_product_without_bias_is_in_its_program():
    """The first one is, the second one's operand is -2 times a product."""
    step, inputs = compiled("rectified")
    assert sqcompile.verify(step, inputs).equal
    report = data.report(step)["accelerator"]
    assert [row["with"] for row in report["programs"]] == ["relu"] + 7 * [None]
    assert sum(count for op, count in report["host"].items() if "relu" in op) == 1


def test_sums_that_find_no_room_beside_a_block_are_a_program_of_their_own(tmp_path):
    (tmp_path / "small.json").write_text(
        json.dumps(PRESETS["pynq-out32"].parameters() | {"LOG_ACC_BUFF_SIZE": 8})
    )
    conv = nn.Sequential(nn.Conv2d(3, 4, 3, 2, bias=False), nn.BatchNorm2d(4))
    inputs = (torch.randn(2, 3, 7, 7),)
    target = targets.get("vta", hw=str(tmp_path / "small.json"))
    step = sqcompile.compile(conv, inputs, target=target)
    assert sqcompile.verify(step, inputs).equal
    rows = data.report(step)["accelerator"]["programs"]
    found = [(row["node"], row["with"]) for row in rows if row["node"].startswith("forward")]
    assert found == [("forward/conv_fprop_sums", None), ("forward/conv_fprop_sums_sums", None)]


def test_sums_of_64_bits_are_the_references():
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    inputs = (torch.randn(9000, 3),)
    step = sqcompile.compile(net, inputs, target="vta", recipe=Recipe("deep", 8, 8, 8, groups=4))
    assert sqcompile.verify(step, inputs).equal
    report = data.report(step)
    assert report["macs"]["on_target_share"] == 1.0
    assert report["accelerator"]["name"] == "pynq"
    most = max(report["accelerator"]["programs"], key=lambda row: len(row["programs"]))
    assert len(most["programs"]) == 2
    assert [one["way"] for one in most["shifts"]] == ["sorted"] * 2  # each for lengths of its own


def test_sums_of_64_bits_over_pixels_are_the_references():
    layers = (nn.Conv2d(1, 3, 1), nn.ReLU(), nn.Conv2d(3, 4, 2), nn.ReLU(), nn.Conv2d(4, 2, 1, 3))
    inputs = (torch.randn(10, 1, 31, 31),)
    recipe = Recipe("deep", 8, 8, 8, groups=4)
    step = sqcompile.compile(nn.Sequential(*layers), inputs, target="vta", recipe=recipe)
    before = vta.written_for.total()
    assert sqcompile.verify(step, inputs).equal
    rows = data.report(step)["accelerator"]["programs"]
    (shifts,) = (row["shifts"] for row in rows if "wgrad" in row["node"] and any(row["shifts"]))
    assert [one["way"] for one in shifts] == ["sorted"] * 2  # each for lengths of its own
    assert vta.written_for.total() - before >= 2


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


def shifting():
    """A model of which a dgrad and a wgrad sort groups, on int4 elements, and a fprop shifts."""
    layers = (nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 16, 1), nn.ReLU())
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(576, 5)), torch.randn(4, 3, 8, 8)


def ways(step):
    """(node, way) of every product with groups."""
    rows = data.report(step)["accelerator"]["programs"]
    return {row["node"]: one["way"] for row in rows for one in row["shifts"] if one}


def test_steps_that_write_their_programs_train_to_the_cpus_bits(tmp_path):
    torch.manual_seed(3)
    model, x = shifting()
    cpu = sqcompile.compile(deepcopy(model), (x,))
    target = targets.get("vta", hw="pynq-int4-out32")
    accelerator = sqcompile.compile(model, (x,), target=target)
    found = {
        node.rpartition("/")[2].partition("_")[0]: way for node, way in ways(accelerator).items()
    }
    assert found == {"fprop": "shifted", "dgrad": "sorted", "wgrad": "sorted"}
    optimizers = [torch.optim.SGD(one.parameters(), 0.1) for one in (cpu, accelerator)]
    vta.written_for.clear()
    for seed in range(6):
        x = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)) * torch.logspace(
            0, -3 * (seed % 2), 8
        )
        for step, optimizer in zip((cpu, accelerator), optimizers, strict=True):
            optimizer.zero_grad()
            with vta.interleaving(seed):
                F.cross_entropy(step(x), torch.arange(4)).backward()
            optimizer.step()
        for ours, theirs in zip(accelerator.parameters(), cpu.parameters(), strict=True):
            assert torch.equal(ours, theirs) and torch.equal(ours.grad, theirs.grad)
    written = [name for name, way in ways(accelerator).items() if way == "sorted"]
    assert vta.written_for.total() == 6 * len(written)
    assert len(vta.written_for) > len(written)  # not all steps had the same lengths
    accelerator.save(str(tmp_path / "run"))
    loaded = sqcompile.load(tmp_path / "run")
    before = vta.written_for.total()
    for step in (accelerator.train(), loaded.train()):
        step.zero_grad()
        F.cross_entropy(step(x), torch.arange(4)).backward()
    assert vta.written_for.total() == before + 2 * len(written)
    for ours, theirs in zip(loaded.parameters(), accelerator.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)


def test_sums_are_in_a_program_that_is_written_in_the_run():
    torch.manual_seed(4)
    layers: list[nn.Module] = []
    for channels in ((3, 48), (48, 16)):
        conv = nn.Conv2d(*channels, 3, bias=False)
        layers += [conv, nn.BatchNorm2d(channels[1]), nn.ReLU()]
    layers += [nn.Flatten(), nn.Linear(16 * 9, 4)]
    inputs = (torch.randn(2, 3, 7, 7),)
    target = targets.get("vta", hw="pynq-int4-out32")
    step = sqcompile.compile(nn.Sequential(*layers), inputs, target=target)
    rows = data.report(step)["accelerator"]["programs"]
    ways_of_sums = {
        one["way"] for row in rows if row["with"] == "sums" for one in row["shifts"] if one
    }
    assert ways_of_sums == {"sorted"}
    before = vta.written_for.total()
    assert sqcompile.verify(step, inputs).equal
    assert vta.written_for.total() > before


def test_a_run_folder_says_what_is_written_in_the_run(tmp_path):
    model, x = shifting()
    target = targets.get("vta", hw="pynq-int4-out32")
    step = sqcompile.compile(model, (x,), target=target)
    step.save(str(tmp_path / "run"))
    folder = tmp_path / "run/variant_0"
    index = json.loads((folder / "vta.json").read_text())
    assert index["written"]
    for name in index["written"]:
        room = index["shifts"][name]["most"]["counts"]
        assert json.loads((folder / f"{name}.product").read_text())["spec"]["counts"] is None
        first, *_, last = (folder / f"{name}.txt").read_text().splitlines()
        assert first == f"; with room for {', '.join(map(str, room))} values of each group"
        assert "finish" in last
    page = html.render(data.report(step), {})
    for one in index["shifts"].values():
        told = f"{one['one']['cycles']:,} one group" if one["one"] else one["reason"]
        assert f'<td>{one["way"]} <span class="soft">' in page and told in page
    binary = step.variants[0].executable.binary
    binary.images[f"{name}.product"] = b"{}"
    with pytest.raises(sqcompile.errors.UsageError, match=f"{name} describes no product"):
        vta.machine(binary, 0)


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
    with pytest.raises(sqcompile.errors.UsageError, match="format 99, this version reads 3"):
        vta.programs(binary)
