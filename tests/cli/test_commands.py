"""What every command does."""

import json
import re
import shutil
import tomllib
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.fx import Node
from torch.utils import _pytree as pytree

import sqcompile
from sqcompile.backends.targets import TARGETS
from sqcompile.runtime import graph_file, stages
from tests.cli.conftest import FORWARD, ROOT, SMALL


def test_a_run_folder_holds_everything(compiled):
    folder, _ = compiled
    names = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    expected = {"manifest.json", "report.json", "report.html", "weights.safetensors"}
    assert expected <= names
    assert {"00_captured.txt", "variant_0/vm.bin", "variant_1/vm.bin"} <= names


def test_the_records_and_the_programs_are_of_one_graph(compiled):
    """stages.json is what people read, graphs.json what torch runs: the same nodes, in order."""
    folder, _ = compiled
    records = stages.read(folder)
    programs = graph_file.read(folder / "variant_0")
    assert list(programs) == ["forward", "backward"]
    for part, program in programs.items():
        nodes = {node.name: node for node in program.graph.nodes}
        assert list(nodes) == [entry.name for entry in records[part]]
        for entry in records[part]:
            node = nodes[entry.name]
            assert list(entry.refs) == [str(one) for one in used(node.args, node.kwargs)]
            if node.op != "output":
                values = node.meta["val"]
                several = values if isinstance(values, tuple) else (values,)
                assert [one.shape for one in entry.outputs] == [tuple(v.shape) for v in several]


def used(*arguments):
    """The nodes among arguments, in order, as often as they stand there."""
    return [leaf for leaf in pytree.tree_leaves(arguments) if isinstance(leaf, Node)]


def test_json_is_one_document_on_stdout(compiled):
    folder, result = compiled
    data = json.loads(result.stdout)
    assert data["macs"]["integer_share"] == 1.0
    assert [check["equal"] for check in data["verification"]] == [True, True]
    assert data["saved"]["fp32_eager_bytes"] > 0
    assert {one["kind"] for one in data["tensors"]} >= {"weight", "activation", "gradient"}
    written = json.loads((folder / "report.json").read_text())
    assert written == {key: value for key, value in data.items() if key != "folder"}
    assert "Traceback" not in result.stderr


def test_options_before_the_model_file(call, folder):
    result = call("--no-eval", "--bench", "--no-stats", "net.py", "-o", "here")
    assert result.code == 0, result.err
    report = json.loads((folder / "here" / "report.json").read_text())
    assert report["tensors"] is None and report["timing"]["roofs"]["macs_per_s"] > 0
    assert {row["kernel"] for row in report["timing"]["runs"][0]["kernels"]} == set(report["calls"])
    assert "100 % in integers" in result.out
    assert result.out.rstrip().endswith(str(Path("here/report.html")))
    assert "compiling net.py" in result.err and "compiling" not in result.out
    assert (folder / "here" / "manifest.json").exists()


def test_the_default_folder_is_named_after_the_model(call, folder):
    assert call("net.py", "--no-eval", "--recipe", "w8a8g8").code == 0
    assert (folder / "runs" / "net" / "report.json").exists()


def test_a_rule_that_matches_nothing_is_a_warning(call, folder):
    rules = [{"path": "head", "weight_bits": 8}]
    (folder / "mine.json").write_text(json.dumps({"rules": rules}))
    result = call("net.py", "--no-eval", "--recipe", "mine.json", "-o", "here")
    assert result.code == 0
    assert "warning: the recipe's rule 'head' matches no product of the model" in result.err


def test_inspect_prints_stages_and_products(call, compiled):
    result = call("inspect", str(compiled[0]))
    assert result.code == 0
    assert "quantize_operands" in result.out
    assert "sq.shift_matmul_dequantize" in result.out
    assert "PASSED (train)" in result.out


def test_inspect_prints_one_stage(call, compiled):
    folder = str(compiled[0])
    text = call("inspect", folder, "--stage", "forward").out
    assert text.startswith("def forward(") and "sq.shift_matmul" in text
    (written,) = Path(folder).glob("*_forward.txt")
    assert text == written.read_text()
    wrong = call("inspect", folder, "--stage", "forwards")
    assert wrong.code == 2
    assert "did you mean 'forward'?" in wrong.err


def test_inspect_gives_nodes_as_json(call, compiled):
    result = call("inspect", str(compiled[0]), "--stage", "forward", "--op", "quantize", "--json")
    train, evaluation = json.loads(result.out)["variants"]
    assert (train["mode"], evaluation["mode"]) == ("train", "eval")
    (stage,) = train["stages"]
    node = stage["nodes"][0]
    assert node["op"] == "sq.quantize" and node["bits"] == 8 and node["pass"] == "forward"
    assert node["args"][0]["name"] == "x" and list(node["args"][0]["value"]) == ["node"]
    assert (node["shape"], node["dtype"], node["role"]) == ([4, 6], "i8", "fprop")
    assert node["module"] == "0" and "net.py" not in node["line"]


def test_inspect_shows_every_variant(call, compiled):
    """The training step unless another is asked for, with a line that tells of the others."""
    folder = str(compiled[0])
    plain = call("inspect", folder)
    assert "variants   0 (train); --variant shows 1 (eval), or all" in plain.out
    assert "dgrad" in plain.out
    evaluation = call("inspect", folder, "--variant", "eval")
    assert "sq.shift_matmul" in evaluation.out and "dgrad" not in evaluation.out
    both = call("inspect", folder, "--variant", "all").out
    assert all(f"\nvariant {one}, float32[4, 6]\n" in both for one in ("0: train", "1: eval"))
    data = json.loads(call("inspect", folder, "--json").out)["variants"]
    assert [len(one["products"]) for one in data] == [5, 2]
    assert all(stage["nodes"] and "added" in stage for stage in data[1]["stages"][1:])
    kept = call("inspect", folder, "--variant", "1", "--saved")
    assert kept.out.endswith("eval keeps nothing for backward\n")


def test_inspect_shows_graphs_of_a_variant(call, compiled):
    folder = compiled[0]
    result = call("inspect", str(folder), "--variant", "1", "--stage", "forward")
    (written,) = (folder / "variant_1").glob("*_forward.txt")
    assert result.out == written.read_text() and not result.err
    first = call("inspect", str(folder), "--stage", "forward")
    assert "this is variant 0 (train); --variant shows 1 (eval), or all" in first.err
    both = call("inspect", str(folder), "--variant", "all", "--stage", "forward").out
    assert both.count("def forward(") == 2 and "## variant 1: eval, float32[4, 6]\n" in both
    for wrong, hint in (("evl", "did you mean 'eval'?"), ("2", "1: eval, float32[4, 6]")):
        result = call("inspect", str(folder), "--variant", wrong)
        assert result.code == 2 and hint in result.err
    missing = call("inspect", str(folder), "--variant", "1", "--stage", "backward")
    assert missing.code == 2 and "has no stage 'backward'" in missing.err


def test_inspect_filters_what_it_prints(call, compiled):
    folder = str(compiled[0])
    result = call("inspect", folder, "--layer", "2", "--pass", "backward", "--op", "shift_*")
    heading, *lines = result.out.splitlines()
    assert heading.startswith("# backward: ") and heading.endswith(" nodes")
    statements = [line for line in lines if not line.startswith("#")]
    assert statements and all(line.endswith(" 2") and "sq.shift_" in line for line in statements)
    for wrong, hint in (("--layer", "no node of the run is in the layer"), ("--op", "has the op")):
        result = call("inspect", folder, wrong, "quantise")
        assert result.code == 2 and hint in result.err
    assert "did you mean 'quantize'?" in result.err


def test_inspect_shows_what_a_pass_changed(call, compiled):
    folder = str(compiled[0])
    result = call("inspect", folder, "--stage", "quantize_operands", "--diff")
    heading, *lines = result.out.splitlines()
    assert heading.startswith("# quantize_operands against fold_weight_scales: ")
    assert {line[:2] for line in lines if line} == {"- ", "+ "}
    assert any(line.startswith("+ ") and "sq.quantize(" in line for line in lines)
    data = json.loads(call("inspect", folder, "--diff", "--json").out)
    by_name = {stage["stage"]: stage for stage in data["variants"][0]["stages"]}
    stage = by_name["quantize_operands"]
    assert {node["change"] for node in stage["nodes"]} == {"added"}
    assert {node["op"] for node in stage["removed"]} == {"sq.matmul"}
    assert by_name["captured"]["against"] == "" and by_name["captured"]["nodes"] == []
    everything = call("inspect", folder, "--diff").out
    assert heading in everything and "# captured" not in everything


def test_inspect_lists_what_is_saved_and_writes_the_page_again(call, compiled):
    folder, _ = compiled
    assert "packed from" in call("inspect", str(folder), "--saved").out
    before = (folder / "report.html").read_text()
    (folder / "report.html").unlink()
    assert call("inspect", str(folder), "--html").out.strip() == str(folder / "report.html")
    assert (folder / "report.html").read_text() == before


def test_bench_takes_turns_with_pytorch(call, compiled):
    folder, _ = compiled
    arguments = ("--runs", "3", "--warmup", "1", "--peers", "fp32", "--no-report", "--json")
    before = (folder / "report.json").read_bytes()
    result = call("bench", str(folder), *arguments)
    assert result.code == 0, result.err
    (run,) = json.loads(result.out)["runs"]
    parts = ("forward", "backward", "step")
    names = [f"{who} {part}" for who in ("w4a4g4", "fp32 PyTorch") for part in parts]
    assert list(run["rows"]) == names
    assert all(row["p10_ms"] <= row["median_ms"] <= row["p90_ms"] for row in run["rows"].values())
    assert (folder / "report.json").read_bytes() == before


def test_bench_times_every_kernel_and_puts_it_into_the_report(call, compiled, folder):
    shutil.copytree(compiled[0], folder / "run")
    few = ("--runs", "3", "--warmup", "0", "--threads", "1", "--peers", "none")
    result = call("bench", "run", *few, "--json")
    timing = json.loads(result.out)
    (run,) = timing["runs"]
    by_name = {(row["function"], row["kernel"]): row for row in run["kernels"]}
    assert {function for function, _ in by_name} == {"forward", "backward"}
    assert any(kernel.startswith("shift_quantize") for _, kernel in by_name)
    assert not any(kernel.startswith("vm.") for _, kernel in by_name)
    times = [row["milliseconds"] for row in run["kernels"]]
    assert times == sorted(times, reverse=True) and times[-1] > 0
    report = json.loads((folder / "run/report.json").read_text())
    kept = ("device", "environment", "runs", "roofs")
    assert report["timing"] == {name: timing[name] for name in kept}
    assert {kernel for _, kernel in by_name} == set(report["calls"])
    page = (folder / "run/report.html").read_text()
    assert f"On {timing['environment']['cpu']}, " in page and 'id="blob-plotly"' in page
    assert 'id="time"' not in (compiled[0] / "report.html").read_text()


def test_bench_of_a_folder_without_a_report_says_so(call, compiled, folder):
    shutil.copytree(compiled[0], folder / "run")
    (folder / "run/report.json").unlink()
    few = ("--runs", "3", "--warmup", "0", "--threads", "1", "--peers", "none")
    result = call("bench", "run", *few, "--kernels", "2")
    assert result.code == 0 and "share" in result.out
    assert "the report does not have these times: cannot read" in result.err
    assert not (folder / "run/report.json").exists()


def test_bench_says_when_the_model_file_changed(call, folder):
    assert call("net.py", "--no-eval", "-o", "here").code == 0
    (folder / "net.py").write_text(SMALL + "\n# changed\n")
    result = call("bench", "here", "--runs", "3", "--threads", "1")
    assert result.code == 0
    assert "has changed since it was compiled: no comparison with PyTorch" in result.err
    assert "fp32 PyTorch" not in result.out


def test_train_beside_fp32(call, folder):
    result = call(
        "train", "net.py", "--epochs", "2", "--compare-fp32", "-o", "here", "--no-stats", "--json"
    )
    assert result.code == 0, result.err
    assert json.loads(result.out)["tensors"] is None
    training = json.loads(result.out)["training"]
    assert list(training["runs"]) == ["w4a4g4", "fp32"]
    assert all(len(run["epochs"]) == 2 for run in training["runs"].values())
    assert all(0 <= run["accuracy"] <= 1 for run in training["runs"].values())
    assert "epoch 2/2" in result.err
    assert 'id="training"' in (folder / "here" / "report.html").read_text()


def test_train_measures_the_trained_step(call, folder):
    """Its weights as training left them, and gradients of the loss: at most 1/4 in a mean over four
    rows, which normal draws pass."""
    result = call("train", "net.py", "--epochs", "1", "-o", "here", "--json")
    assert result.code == 0, result.err
    rows = json.loads(result.out)["tensors"]
    kinds = {(row["kind"], row["module"], row["pass"]): row for row in rows}
    weights = load_file(folder / "here/weights.safetensors")
    weight = kinds["weight", "2", "forward"]
    assert weight["absmax"] == float(f"{float(weights['2.weight'].abs().max()):.4g}")
    assert 0 < kinds["gradient", "2", "backward"]["absmax"] <= 0.25
    assert 'id="tensors"' in (folder / "here/report.html").read_text()


def test_a_trained_folder_evaluates_and_is_exported(call, folder):
    """Without eval_data(), too; and compiling its evaluation changes nothing in training."""
    with_eval = call("train", "net.py", "--epochs", "1", "-o", "both", "--no-stats", "--json")
    assert with_eval.code == 0, with_eval.err
    without = call(
        "train", "net.py", "--epochs", "1", "-o", "alone", "--no-stats", "--no-eval", "--json"
    )
    losses, modes = [], []
    for result in (with_eval, without):
        report = json.loads(result.out)
        losses.append([one["loss"] for one in report["training"]["runs"]["w4a4g4"]["epochs"]])
        modes.append([one["mode"] for one in report["variants"]])
    assert losses[0] == losses[1]
    assert modes == [["train", "eval"], ["train"]]
    weights, others = (
        load_file(folder / name / "weights.safetensors") for name in ("both", "alone")
    )
    assert all(torch.equal(weights[name], others[name]) for name in weights)

    loaded = sqcompile.load(folder / "both").eval()
    with torch.no_grad():
        assert loaded(torch.randn(4, 6)).shape == (4, 3)
    assert call("inspect", "both", "--variant", "eval").code == 0
    exported = call("export", "both", "--onnx")
    assert exported.code == 0, exported.err


def test_a_folder_without_evaluation_says_how_to_get_it(call, folder):
    """Of a trained one: without the loss of its weights."""
    assert call("train", "net.py", "--epochs", "1", "-o", "trained", "--no-eval").code == 0
    assert call("net.py", "-o", "compiled", "--no-eval").code == 0
    trained, compiled = (call("export", name, "--onnx") for name in ("trained", "compiled"))
    assert trained.code == compiled.code == 2
    assert "compiled has no graph 'eval': it holds no variant of mode eval" in compiled.err
    assert "compile one, without --no-eval" in compiled.err
    assert "step.eval(), then step.prepare(*inputs), before step.save()" in compiled.err
    kept = "load_state_dict(sqcompile.load('trained').state_dict())"
    assert kept in trained.err and "load_state_dict" not in compiled.err


def test_train_needs_data_and_loss(call, folder):
    (folder / "bare.py").write_text(FORWARD.format(returns="self.first(x)"))
    result = call("train", "bare.py")
    assert result.code == 2
    assert "bare.py does not define data and loss, which training needs" in result.err


def test_train_refuses_a_frozen_model_before_it_compiles(call, folder, monkeypatch):
    monkeypatch.setattr("sqcompile.api.compile", None)
    (folder / "frozen.py").write_text(
        SMALL.replace("nn.Linear(8, 3))", "nn.Linear(8, 3)).requires_grad_(False)")
    )
    result = call("train", "frozen.py")
    assert result.code == 2
    assert "frozen.py: all 4 parameters of the model are frozen" in result.err


def test_examine_names_what_is_missing(call, folder):
    called = "nn.functional.mish(self.first(x)).lgamma()"
    (folder / "bad.py").write_text(FORWARD.format(returns=called))
    result = call("examine", "bad.py")
    assert result.code == 4
    (table,) = [line.split() for line in result.out.splitlines() if line.startswith("nn.Linear")]
    assert table == ["nn.Linear", "1", "yes", "yes", "yes"]
    assert "  aten.mish, aten.mish_backward: no kernel (cpu, cuda, vta)" in result.out
    assert "  nearest supported: nn.SiLU or nn.GELU" in result.out
    assert f"  bad.py:11  return {called}" in result.out
    assert "cpu: 1 of 3 kinds of ops run" in result.out


def test_examine_of_one_target_as_json(call):
    result = call("examine", "net.py", "--target", "vta", "--json")
    assert result.code == 0
    data = json.loads(result.out)
    assert data["targets"] == ["vta"] and data["supported"]
    by_name = {row["op"]: row for row in data["ops"]}
    assert by_name["nn.Linear"]["count"] == 2
    assert by_name["nn.Linear"]["targets"]["vta"]["runs_on"] == "vta"
    assert by_name["nn.Linear"]["places"][0]["module"] == "0"
    assert by_name["nn.ReLU"]["targets"]["vta"]["runs_on"] == "cpu"


def test_doctor_tries_every_target(call, monkeypatch):
    from sqcompile.cli import doctor

    tried = []

    def step(target, remedy, *, needed=False, **chosen):
        tried.append(target)
        return doctor.Line(f"target {target}", doctor.OK, "compiled", needed=needed)

    monkeypatch.setattr(doctor, "_step", step)
    monkeypatch.setitem(doctor.EXTRAS, "onnx", ("onnx", "no-such-package"))
    result = call("doctor")
    assert result.code == 0, result.out
    assert sorted(tried) == sorted(TARGETS)
    lines = result.out.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("extra [onnx]"))
    assert lines[at].split()[2] == "missing" and "no-such-package" in lines[at]
    assert lines[at + 1].strip() == f"-> {doctor.install('onnx')}"
    assert "not: " in lines[-1] and "extra [onnx]" in lines[-1]


def test_doctor_compiles_a_step_and_fails_without_the_cpu_target(call, monkeypatch):
    from sqcompile import api
    from sqcompile.cli import doctor
    from sqcompile.errors import TargetUnavailableError

    line = doctor._step("cpu", "", needed=True)
    assert line.state == "ok" and line.detail.endswith("run by cpu")

    def absent(*arguments, **options):
        raise TargetUnavailableError("no linker\n  install one")

    monkeypatch.setattr(api, "compile", absent)
    result = call("doctor", "--json")
    assert result.code == 5
    checks = {check["name"]: check for check in json.loads(result.out)["checks"]}
    assert checks["target cpu"]["state"] == "missing"
    assert checks["target cpu"]["detail"] == "no linker"


def test_doctor_knows_the_extras():
    from sqcompile.cli import doctor

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    name = re.compile(r"[\w-]+")
    extras = {
        extra: {name.match(package)[0] for package in packages}
        for extra, packages in project["optional-dependencies"].items()
    }
    assert {key: set(names) for key, names in doctor.EXTRAS.items()} == {
        key: extras[key] for key in doctor.EXTRAS
    }
    assert set(extras) == {*doctor.EXTRAS, "fpga", "dev"}
    needed = {name.match(package)[0] for package in project["dependencies"]}
    assert needed >= set(doctor.NEEDED)
