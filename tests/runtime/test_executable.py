"""What a compiled function does with tensors that it did not expect."""

import os
import subprocess
import sys
from pathlib import Path
from threading import Thread

import pytest
import torch

from sqcompile.backends import targets
from sqcompile.backends.cpu.build import build
from sqcompile.backends.lower import lower
from sqcompile.errors import InputError
from sqcompile.runtime.executable import Binary, Executable, Function, aligned
from tests.backends.graphs import Writer

LOAD = """
import sys, pathlib, torch
from sqcompile.runtime.executable import Binary, Executable
folder = pathlib.Path(sys.argv[1])
binary = Binary((folder / "vm").read_bytes(), [(folder / "k.o").read_bytes()])
print(Executable(binary).function("forward")(torch.ones(3, 5))[0].sum().item())
"""


@pytest.fixture(scope="module")
def binary() -> Binary:
    w, cpu = Writer(), targets.get("cpu")
    graph = w.module(w.call(torch.ops.aten.mul.Tensor, w.input("x", torch.ones(3, 5)), 3.0))
    return build(lower({"forward": graph}, cpu).module, cpu)


def test_one_thread_at_a_time_runs_a_virtual_machine(binary: Binary) -> None:
    """It has one stack of frames: two threads end the process."""
    executable = Executable(binary)
    found: list[torch.Tensor] = []
    run = executable.function("forward")
    other = Thread(target=lambda: found.extend(run(torch.ones(3, 5))))
    with executable.running:
        other.start()
        other.join(0.2)
        assert other.is_alive() and not found
        assert run(torch.ones(3, 5))[0].sum() == 45  # the thread that holds it
    other.join()
    assert found[0].sum() == 45


@pytest.fixture(scope="module")
def triple(binary: Binary) -> Function:
    return Executable(binary).function("forward")


def test_misaligned_and_non_contiguous_tensors_are_taken(triple: Function) -> None:
    for offset in range(1, 16):
        x = torch.randn(15 + offset)[offset:].view(3, 5)
        assert x.data_ptr() % 64
        assert torch.equal(triple(x)[0], x * 3)
    for x in (torch.randn(5, 3).t(), torch.randn(3, 10)[:, ::2], torch.randn(1).expand(3, 5)):
        assert torch.equal(triple(x)[0], x * 3)


def test_a_tensor_that_begins_inside_of_a_vector_is_copied_for_a_gpu() -> None:
    whole = torch.arange(9.0)
    inside = whole[1:]
    assert aligned(inside, "cpu") is inside
    assert aligned(whole, "cuda") is whole
    copy = aligned(inside, "cuda")
    assert copy.data_ptr() % 16 == 0
    assert torch.equal(copy, inside)


@pytest.mark.parametrize(
    "wrong",
    [
        (),
        (torch.ones(3, 5), torch.ones(3, 5)),
        (torch.ones(5, 3),),
        (torch.ones(15),),
        (torch.ones(0, 5),),
        (torch.ones(3, 5, dtype=torch.float64),),
        (torch.ones(3, 5, dtype=torch.int32),),
        (torch.ones(3, 5).to_sparse(),),
        (torch.empty(3, 5, device="meta"),),
        (3.0,),
        (None,),
    ],
    ids=lambda wrong: "-".join(str(getattr(w, "dtype", w)) for w in wrong) or "none",
)
def test_wrong_arguments_are_input_errors(triple: Function, wrong: tuple[object, ...]) -> None:
    with pytest.raises(InputError, match="forward"):
        triple(*wrong)  # type: ignore[arg-type]


def test_results_are_fresh_and_outside_autograd(triple: Function) -> None:
    x = torch.randn(3, 5, requires_grad=True)
    first, second = triple(x)[0], triple(x)[0]
    first.zero_()
    assert torch.equal(second, x.detach() * 3)
    assert not second.requires_grad


def test_nan_and_infinity_pass_through(triple: Function) -> None:
    x = torch.full((3, 5), float("nan"))
    x[0, 0] = float("inf")
    assert torch.equal(triple(x)[0].isnan(), x.isnan())


def test_a_fresh_process_without_a_compiler_runs_it(binary: Binary, tmp_path: Path) -> None:
    (tmp_path / "vm").write_bytes(binary.vm)
    (tmp_path / "k.o").write_bytes(binary.objects[0])
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PATH": "/nonexistent", "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["45.0"]


def test_llvm_ir_is_kept_for_readers(binary: Binary) -> None:
    assert "define" in binary.sources["kernels_0.ll"]
