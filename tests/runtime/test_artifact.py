"""Run folders: saved whole or not at all, loaded with no model, no tracing and no compiler."""

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

import sqcompile
from sqcompile.backends.cpu import build
from sqcompile.cli.compile import run_folder, write_run
from sqcompile.errors import InputError, SqError, TargetUnavailableError, UsageError
from sqcompile.report import data
from sqcompile.runtime import artifact, cpu_flags, graph_file
from tests.models import make

ROOT = Path(__file__).parents[2]


def _saved(folder, name="mlp"):
    model, inputs = make(name)
    step = sqcompile.compile(model, inputs)
    step.eval()
    with torch.no_grad():
        step.prepare(*inputs)
    step.train()
    step.save(str(folder))
    return step, inputs


def _train(step, inputs, steps=3):
    optimizer = torch.optim.SGD(step.parameters(), 0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(step(*inputs), torch.arange(inputs[0].shape[0]) % 7).backward()
        optimizer.step()
    return {name: value.clone() for name, value in step.state_dict().items()}


@pytest.mark.parametrize("name", ["mlp", "resnet"])
def test_a_loaded_step_trains_to_the_same_bits(tmp_path, name):
    step, inputs = _saved(tmp_path / "run", name)
    loaded = sqcompile.load(tmp_path / "run")
    assert list(loaded.state_dict()) == list(step.state_dict())
    first, second = _train(step, inputs), _train(loaded, inputs)
    assert all(torch.equal(first[key], second[key]) for key in first)
    step.eval(), loaded.eval()
    with torch.no_grad():
        assert torch.equal(step(*inputs), loaded(*inputs))


def test_loading_needs_no_compiler_and_no_tracing(tmp_path):
    _, inputs = _saved(tmp_path / "run")
    torch.save(inputs[0], tmp_path / "x.pt")
    program = f"""
        import sys, torch, sqcompile
        step = sqcompile.load({str(tmp_path / "run")!r})
        x = torch.load({str(tmp_path / "x.pt")!r}, weights_only=True)
        step(x).sum().backward()
        assert all(p.grad is not None for p in step.parameters())
        assert "torch._dynamo.symbolic_convert" not in sys.modules, "traced"
        assert "sqcompile.capture" not in sys.modules
    """
    environment = {**os.environ, "PATH": "/nonexistent", "SQCOMPILE_CACHE_DIR": str(tmp_path)}
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], check=True, cwd=ROOT, env=environment
    )


def test_another_shape_is_refused_with_what_there_is(tmp_path):
    _saved(tmp_path / "run")
    loaded = sqcompile.load(tmp_path / "run")
    with pytest.raises(
        InputError, match=r"no code for: train, inputs float32\[3, 20\](.|\n)*12, 20"
    ):
        loaded(torch.zeros(3, 20))


def test_tied_weights_stay_tied(tmp_path):
    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a = torch.nn.Linear(6, 6)
            self.b = self.a
            self.register_buffer("scratch", torch.ones(6), persistent=False)

        def forward(self, x):
            return self.b(F.relu(self.a(x))) * self.scratch

    step = sqcompile.compile(Tied(), (torch.randn(4, 6),))
    step.save(str(tmp_path / "run"))
    loaded = sqcompile.load(tmp_path / "run")
    assert loaded.model.a.weight is loaded.model.b.weight
    assert list(loaded.state_dict()) == ["a.weight", "a.bias", "b.weight", "b.bias"]
    x = torch.randn(4, 6)
    assert torch.equal(loaded(x), step(x))


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("years of work")
    step, _ = _saved(tmp_path / "other")
    with pytest.raises(UsageError, match="not an artifact"):
        step.save(str(tmp_path / "run"))
    assert (tmp_path / "run" / "thesis.txt").read_text() == "years of work"
    (tmp_path / "run" / "manifest.json").write_text('{"name": "a web app", "icons": []}')
    with pytest.raises(UsageError, match="not an artifact"):
        step.save(str(tmp_path / "run"))
    with pytest.raises(UsageError, match="no run folder"):
        run_folder(str(tmp_path / "run"), "model.py")
    assert (tmp_path / "run" / "thesis.txt").read_text() == "years of work"


def test_a_full_disk_leaves_the_old_artifact(tmp_path, monkeypatch):
    step, inputs = _saved(tmp_path / "run")
    before = sqcompile.load(tmp_path / "run")(*inputs)

    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(artifact, "_write_variant", full)
    with pytest.raises(SqError, match=r"No space left(.|\n)*unchanged"):
        step.save(str(tmp_path / "run"))
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert torch.equal(sqcompile.load(tmp_path / "run")(*inputs), before)


def test_a_report_that_cannot_be_written_leaves_the_old_run(tmp_path, monkeypatch):
    step, _ = _saved(tmp_path / "run")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()}

    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(data, "write_text", full)
    file = SimpleNamespace(path=Path(__file__))
    with pytest.raises(SqError, match=r"No space left(.|\n)*unchanged"):
        write_run(step, file, {}, tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()}
    assert after == before


def test_a_kill_while_saving_leaves_the_old_artifact(tmp_path):
    step, inputs = _saved(tmp_path / "run")
    expected = step(*inputs)
    program = f"""
        import time, sqcompile
        from sqcompile.runtime import artifact
        step = sqcompile.load({str(tmp_path / "run")!r})
        write = artifact._write_variant
        def slow(*args):
            print("writing", flush=True)
            time.sleep(60)
            return write(*args)
        artifact._write_variant = slow
        step.save({str(tmp_path / "run")!r})
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, cwd=ROOT
    )
    assert process.stdout.readline() == b"writing\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    loaded = sqcompile.load(tmp_path / "run")
    assert torch.equal(loaded(*inputs), expected)
    loaded.save(str(tmp_path / "run"))


def test_damage_is_found_before_code_runs(tmp_path):
    _saved(tmp_path / "run")
    code = tmp_path / "run" / "variant_0" / "kernels_0.o"
    data = code.read_bytes()
    code.write_bytes(data[:-1] + bytes([data[-1] ^ 0xFF]))
    with pytest.raises(UsageError, match=r"kernels_0\.o is missing or damaged"):
        sqcompile.load(tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "message"),
    [({"format": 99}, "format 99"), ({"versions": {"apache-tvm": "0.1"}}, "compiled with")],
)
def test_other_formats_and_versions_are_refused(tmp_path, change, message):
    _saved(tmp_path / "run")
    manifest = tmp_path / "run" / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), **change}))
    with pytest.raises(UsageError, match=message):
        sqcompile.load(tmp_path / "run")


def test_what_is_no_artifact_is_said(tmp_path):
    for other in (None, "[]", '{"format": 5}', "{"):
        if other is not None:
            (tmp_path / "manifest.json").write_text(other)
        with pytest.raises(UsageError, match="not an artifact"):
            sqcompile.load(tmp_path)


def test_the_folder_is_for_reading(tmp_path):
    _saved(tmp_path / "run")
    run = tmp_path / "run"
    assert {"kernels_0.ll", "kernels_0.s"} <= {path.name for path in (run / "variant_0").iterdir()}
    assert "def step(" in (run / "00_captured.txt").read_text()
    assert "sq.shift_matmul" in next(run.glob("*_bound_accumulators.txt")).read_text()
    assert list((run / "variant_1").glob("*_forward.txt"))


def test_assembly_is_generated_once(tmp_path, monkeypatch):
    monkeypatch.setenv("SQCOMPILE_CACHE_DIR", str(tmp_path / "cache"))
    step, _ = _saved(tmp_path / "run")
    monkeypatch.setattr(build, "assembly", None)
    step.save(str(tmp_path / "again"))
    for path in (tmp_path / "run" / "variant_0").glob("*.s"):
        assert path.read_text() == (tmp_path / "again" / "variant_0" / path.name).read_text() != ""


def test_evaluation_with_gradients_on_says_how_it_is_called(tmp_path):
    _, inputs = _saved(tmp_path / "run")
    loaded = sqcompile.load(tmp_path / "run").eval()
    with pytest.raises(InputError, match=r"call it under torch\.no_grad\(\)"):
        loaded(*inputs)
    with torch.no_grad():
        assert loaded(*inputs).shape[0] == inputs[0].shape[0]


def test_code_for_another_cpu_is_refused_before_it_runs(tmp_path, monkeypatch):
    _, inputs = _saved(tmp_path / "run")
    loaded = sqcompile.load(tmp_path / "run")
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("flags : sse4_2 popcnt\n")
    monkeypatch.setattr(cpu_flags, "CPUINFO", cpuinfo)
    with pytest.raises(TargetUnavailableError, match=r"(?s)for a CPU with .*avx.*--mcpu x86-64-v3"):
        loaded(*inputs)


def test_an_infinity_in_a_graph_is_json(tmp_path):
    class Masked(torch.nn.Module):
        def forward(self, x):
            return x.masked_fill(x > 0, float("-inf")).softmax(-1)

    step = sqcompile.compile(Masked(), (torch.randn(3, 8),))
    step.save(str(tmp_path / "run"))
    text = (tmp_path / "run" / "variant_0" / "graphs.json").read_text()
    assert "-inf" in text and "Infinity" not in text
    graph = graph_file.read(tmp_path / "run" / "variant_0")["forward"]
    assert any(float("-inf") in node.args for node in graph.graph.nodes)
