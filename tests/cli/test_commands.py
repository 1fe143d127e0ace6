"""What every command does."""

import json
from pathlib import Path

from sqcompile.backends.targets import TARGETS
from tests.cli.conftest import FORWARD, SMALL


def test_a_run_folder_holds_everything(compiled):
    folder, _ = compiled
    names = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    expected = {"manifest.json", "report.json", "report.html", "weights.safetensors"}
    assert expected <= names
    assert {"00_captured.txt", "variant_0/vm.bin", "variant_1/vm.bin"} <= names


def test_json_is_one_document_on_stdout(compiled):
    folder, result = compiled
    data = json.loads(result.stdout)
    assert data["macs"]["integer_share"] == 1.0
    assert [check["equal"] for check in data["verification"]] == [True, True]
    assert data["saved"]["fp32_eager_bytes"] > 0
    written = json.loads((folder / "report.json").read_text())
    assert written == {key: value for key, value in data.items() if key != "folder"}
    assert "Traceback" not in result.stderr


def test_options_before_the_model_file(call, folder):
    result = call("--no-eval", "net.py", "-o", "here")
    assert result.code == 0, result.err
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
    assert text.startswith("def forward(") or text.startswith("def step(")
    assert "sq.shift_matmul" in text
    data = json.loads(call("inspect", folder, "--stage", "forward", "--json").out)
    assert data["text"].strip() == text.strip()
    wrong = call("inspect", folder, "--stage", "forwards")
    assert wrong.code == 2
    assert "did you mean 'forward'?" in wrong.err


def test_inspect_lists_what_is_saved_and_writes_the_page_again(call, compiled):
    folder, _ = compiled
    assert "packed from" in call("inspect", str(folder), "--saved").out
    before = (folder / "report.html").read_text()
    (folder / "report.html").unlink()
    assert call("inspect", str(folder), "--html").out.strip() == str(folder / "report.html")
    assert (folder / "report.html").read_text() == before


def test_bench_takes_turns_with_pytorch(call, compiled):
    folder, _ = compiled
    arguments = ("--runs", "3", "--warmup", "1", "--peers", "fp32", "--json")
    result = call("bench", str(folder), *arguments)
    assert result.code == 0, result.err
    (run,) = json.loads(result.out)["runs"]
    parts = ("forward", "backward", "step")
    names = [f"{who} {part}" for who in ("w4a4g4", "fp32 PyTorch") for part in parts]
    assert list(run["rows"]) == names
    assert all(row["p10_ms"] <= row["median_ms"] <= row["p90_ms"] for row in run["rows"].values())


def test_bench_times_every_kernel(call, compiled):
    folder, _ = compiled
    few = ("--runs", "3", "--warmup", "0", "--threads", "1", "--peers", "none")
    result = call("bench", str(folder), *few, "--json")
    (run,) = json.loads(result.out)["runs"]
    by_name = {(row["function"], row["kernel"]): row for row in run["kernels"]}
    assert {function for function, _ in by_name} == {"forward", "backward"}
    assert any(kernel.startswith("shift_quantize") for _, kernel in by_name)
    assert not any(kernel.startswith("vm.") for _, kernel in by_name)
    times = [row["milliseconds"] for row in run["kernels"]]
    assert times == sorted(times, reverse=True) and times[-1] > 0
    shown = call("bench", str(folder), *few, "--kernels", "2").out
    assert run["kernels"][0]["function"] in shown and "share" in shown


def test_bench_says_when_the_model_file_changed(call, folder):
    assert call("net.py", "--no-eval", "-o", "here").code == 0
    (folder / "net.py").write_text(SMALL + "\n# changed\n")
    result = call("bench", "here", "--runs", "3", "--threads", "1")
    assert result.code == 0
    assert "has changed since it was compiled: no comparison with PyTorch" in result.err
    assert "fp32 PyTorch" not in result.out


def test_train_beside_fp32(call, folder):
    result = call("train", "net.py", "--epochs", "2", "--compare-fp32", "-o", "here", "--json")
    assert result.code == 0, result.err
    training = json.loads(result.out)["training"]
    assert list(training["runs"]) == ["w4a4g4", "fp32"]
    assert all(len(run["epochs"]) == 2 for run in training["runs"].values())
    assert all(0 <= run["accuracy"] <= 1 for run in training["runs"].values())
    assert "epoch 2/2" in result.err
    assert "<h2>Training</h2>" in (folder / "here" / "report.html").read_text()


def test_train_needs_data_and_loss(call, folder):
    (folder / "bare.py").write_text(FORWARD.format(returns="self.first(x)"))
    result = call("train", "bare.py")
    assert result.code == 2
    assert "bare.py does not define data and loss, which training needs" in result.err


def test_examine_names_what_is_missing(call, folder):
    assert call("examine", "net.py").code == 0
    (folder / "bad.py").write_text(FORWARD.format(returns="torch.lgamma(self.first(x))"))
    result = call("examine", "bad.py")
    assert result.code == 4
    assert "bad.py:11  return torch.lgamma(self.first(x))" in result.out
    data = json.loads(call("examine", "bad.py", "--json").out)
    assert not data["supported"]
    assert "aten.lgamma" in [row["op"] for row in data["ops"] if not row["supported"]]


def test_doctor_compiles_a_small_step(call):
    result = call("doctor")
    assert result.code == 0
    assert "compiled and verified" in result.out
    for target in TARGETS.values():
        assert target.summary in result.out
    for name in ("cuda: nvrtc", "cuda: nvdisasm", "cuda: gpu", "cuda: c++ compiler"):
        assert name in result.out, name
