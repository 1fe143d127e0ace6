"""Descriptions of hardware: what follows from one, and which are refused."""

import json

import pytest

from sqcompile.backends.vta import hardware
from sqcompile.backends.vta.hardware import Memory
from sqcompile.errors import UsageError
from tests.backends.vta.programs import PYNQ

TILES = (Memory.UOP, Memory.WGT, Memory.INP, Memory.ACC, Memory.OUT)


def described(**changes):
    return json.dumps({"TARGET": "sim", "HW_VER": "0.0.2", **PYNQ.parameters(), **changes})


def test_sizes_follow():
    assert [PYNQ.element_bytes(memory) for memory in TILES] == [4, 256, 16, 64, 16]
    assert [PYNQ.depth(memory) for memory in TILES] == [8192, 1024, 2048, 2048, 2048]
    assert PYNQ.element_bytes(Memory.ACC_8BIT) == 16


def test_int4_halves_bytes_and_keeps_depths():
    for board in hardware.BOARDS:
        narrow, wide = hardware.get(f"{board}-int4"), hardware.get(board)
        assert [narrow.element_bytes(memory) for memory in TILES] == [4, 128, 8, 64, 8]
        assert [narrow.depth(m) for m in TILES] == [wide.depth(m) for m in TILES]
        assert narrow.mhz == wide.mhz


def test_boards_differ_in_speed():
    speeds = {name: (one.mhz, one.log_bus_width) for name, one in hardware.BOARDS.items()}
    assert speeds == {"pynq": (100, 6), "ultra96": (333, 7), "zcu104": (333, 7)}


def test_a_file_of_upstreams_keys(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(described(TARGET="ultra96", LOG_BATCH=1, LOG_OUT_WIDTH=5))
    found = hardware.get(str(path))
    assert (found.batch, found.block, found.width(Memory.OUT), found.mhz) == (2, 16, 32, 333)


def test_the_width_of_outputs_is_that_of_inputs_by_default():
    keys = json.loads(described(LOG_INP_WIDTH=2, LOG_INP_BUFF_SIZE=14))
    del keys["LOG_OUT_WIDTH"]
    assert hardware.from_json(json.dumps(keys), "x").log_out_width == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"LOG_INP_WIDTH": 4}, "LOG_INP_WIDTH is 4; .* from 1 to 3"),
        ({"LOG_ACC_WIDTH": 4}, "LOG_ACC_WIDTH is 4"),
        ({"LOG_BLOCK": 4.5}, "LOG_BLOCK is 4.5; .*power of two"),
        ({"LOG_BATCH": True}, "LOG_BATCH is True"),
        ({"LOG_BATCH": -1}, "LOG_BATCH is -1"),
        ({"LOG_BLOK": 4}, "there is no key 'LOG_BLOK'; did you mean LOG_BLOCK"),
        ({"LOG_BLOCK": None}, "missing LOG_BLOCK"),
        ({"LOG_UOP_BUFF_SIZE": 16}, "word 0 of GEMM and ALU take 65 bits"),
        ({"LOG_INP_BUFF_SIZE": 16}, "word 1 of GEMM take 66 bits"),
        ({"LOG_WGT_BUFF_SIZE": 19}, "word 1 of GEMM take 66 bits"),
        ({"LOG_INP_WIDTH": 2}, "take 66 bits"),
        (
            {"LOG_ACC_BUFF_SIZE": 18, "LOG_INP_BUFF_SIZE": 14, "LOG_WGT_BUFF_SIZE": 17},
            "word 1 of ALU take 68 bits",
        ),
        ({"LOG_WGT_BUFF_SIZE": 8}, "WGT buffer would hold 2\\^0 tiles"),
        ({"LOG_BLOCK": 1, "LOG_INP_WIDTH": 1}, "a tile of INP is less than a byte"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        hardware.from_json(described(**changes), "x.json")


def test_a_micro_op_must_fit_too():
    sizes = {"LOG_ACC_BUFF_SIZE": 17, "LOG_INP_BUFF_SIZE": 9, "LOG_WGT_BUFF_SIZE": 19}
    with pytest.raises(UsageError, match="a micro-op take 33 bits and there are 32"):
        hardware.from_json(described(**sizes), "x.json")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pynk", "no VTA called 'pynk' .*did you mean 'pynq'"),
        ("nowhere.json", "cannot read nowhere.json: No such file"),
    ],
)
def test_a_name_that_leads_nowhere(name, message):
    with pytest.raises(UsageError, match=message):
        hardware.get(name)


@pytest.mark.parametrize("text", ["{", "[]", '"pynq"'])
def test_a_text_that_is_no_description(text):
    with pytest.raises(UsageError, match="x.json is no JSON"):
        hardware.from_json(text, "x.json")
