"""sqcompile vta: files in and out, and the exit codes."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from sqcompile.backends.vta import isa
from sqcompile.backends.vta.simulator import machine, timing
from sqcompile.cli import run
from tests.backends.vta.programs import PYNQ, TILES, multiply_and_add

WGT, GEMM = 3, 4


@pytest.fixture
def call(tmp_path, monkeypatch, capfd):
    """call(command, ...) in a folder with program.bin, dram.bin -> code, out, err."""
    monkeypatch.chdir(tmp_path)
    program, dram = multiply_and_add(PYNQ)
    (tmp_path / "program.bin").write_bytes(isa.encode_program(PYNQ, program))
    (tmp_path / "dram.bin").write_bytes(dram)

    def call(command, *arguments):
        capfd.readouterr()
        code = run(["vta", command, *arguments])
        out, err = capfd.readouterr()
        return SimpleNamespace(code=code, out=out, err=err)

    return call


RUN = ("run", "--insns", "program.bin", "--dram", "dram.bin", "--out", "after.bin")


def test_run_writes_dram_and_counts(call, tmp_path):
    result = call(*RUN, "--json", "--seed", "3", "--dram-latency", "50")
    assert result.code == 0, result.err
    program, dram = multiply_and_add(PYNQ)
    expected = machine.run(PYNQ, program, dram)
    assert (tmp_path / "after.bin").read_bytes() == expected.dram != dram
    data = json.loads(result.out)
    assert data["instructions"] == 8
    assert data["profile"] == expected.profile.as_json()
    assert data["cycles"]["total"] == timing.cycles(PYNQ, program, 50).total
    assert data["cycles"]["dram_latency"] == 50
    assert data["hardware"]["LOG_BLOCK"] == 4


def test_run_says_what_it_counted(call):
    result = call(*RUN)
    assert result.out.startswith("8 instructions on pynq, about ")
    assert f"gemm_counter     {TILES}\n" in result.out


@pytest.mark.parametrize(
    ("change", "code", "kind"),
    [
        (lambda p: replace(p[GEMM], src_in=500), 10, "IllegalAccessError"),
        (lambda p: replace(p[GEMM], iter_in=TILES + 1), 10, "IllegalAccessError"),
        (lambda p: replace(p[GEMM], pop_next=True), 12, "TokenError"),
    ],
)
def test_wrong_programs_have_exit_codes_of_their_own(call, tmp_path, change, code, kind):
    program, _ = multiply_and_add(PYNQ)
    program[GEMM] = change(program)
    (tmp_path / "program.bin").write_bytes(isa.encode_program(PYNQ, program))
    result = call(*RUN, "--json")
    assert result.code == code
    error = json.loads(result.out)["error"]
    assert (error["kind"], error["exit_code"]) == (kind, code)
    assert "instruction 4 (GEMM)" in error["message"]
    assert not (tmp_path / "after.bin").exists()


def test_left_tokens_are_12(call, tmp_path):
    program, _ = multiply_and_add(PYNQ)
    program[GEMM] = replace(program[GEMM], push_prev=True)
    (tmp_path / "program.bin").write_bytes(isa.encode_program(PYNQ, program))
    assert call(*RUN).code == 12


@pytest.mark.parametrize("command", [RUN, ("disasm", "--insns", "program.bin")])
@pytest.mark.parametrize("data", [bytes(15), b"\x07" + bytes(15), b"\x03" + b"\xff" * 15])
def test_what_does_not_decode_is_11(call, tmp_path, command, data):
    (tmp_path / "program.bin").write_bytes(data)
    assert call(*command).code == 11


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--config", "pink"), "no VTA called 'pink'"),
        (("--insns", "nowhere.bin"), "cannot read nowhere.bin"),
        (("--dram", "nowhere.bin"), "cannot read nowhere.bin"),
        (("--out", "nowhere/out.bin"), "cannot write nowhere/out.bin"),
        (("--seed", "-1"), "--seed"),
    ],
)
def test_usage_is_2(call, options, message):
    result = call(*RUN, *options)
    assert result.code == 2
    assert message in result.err and "Traceback" not in result.err


def test_disasm_and_asm_are_inverse(call, tmp_path):
    text = call("disasm", "--insns", "program.bin", "--dram", "dram.bin").out
    assert "4: gemm        uop 0..1 loop 1x12" in text
    assert ";   uop 0: dst 0 src 0 wgt 0\n" in text
    assert call("disasm", "--insns", "program.bin", "-o", "vta.txt").out == ""
    (tmp_path / "shown.txt").write_text(text)
    for name in ("vta.txt", "shown.txt"):
        assert call("asm", name, "-o", "again.bin").code == 0
        assert (tmp_path / "again.bin").read_bytes() == (tmp_path / "program.bin").read_bytes()


def test_asm_refuses_what_does_not_fit(call, tmp_path):
    (tmp_path / "vta.txt").write_text("gemm uop 0..1 loop 1x1 dst 2048,0 src 0,0 wgt 0,0\n")
    result = call("asm", "vta.txt", "-o", "again.bin")
    assert result.code == 11
    assert "GEMM dst_out = 2048 is not in 0..2047 on pynq" in result.err


def test_check_proves_without_running(call, tmp_path):
    result = call("check", "--insns", "program.bin", "--dram", "dram.bin", "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out) == {
        "instructions": 8,
        "most_tokens": {"l2g": 1, "s2g": 1, "g2l": 0, "g2s": 1},
    }


@pytest.mark.parametrize(
    ("number", "change", "code", "kind"),
    [
        (WGT, {"y_pad_0": 1}, 11, "PortabilityError"),
        (WGT, {"push_next": False}, 12, "TokenError"),
    ],
)
def test_check_tells_what_is_wrong(call, tmp_path, number, change, code, kind):
    program, _ = multiply_and_add(PYNQ)
    program[number] = replace(program[number], **change)
    (tmp_path / "program.bin").write_bytes(isa.encode_program(PYNQ, program))
    result = call("check", "--insns", "program.bin", "--dram", "dram.bin", "--json")
    assert result.code == code
    assert json.loads(result.out)["error"]["kind"] == kind
