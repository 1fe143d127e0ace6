"""Raw programs with what upstream's simulator makes of them, byte for byte."""

import json
from pathlib import Path

import pytest

from sqcompile.backends.vta import assembler, hardware, isa
from sqcompile.backends.vta.simulator import machine
from sqcompile.cli import run

FOLDER = Path(__file__).resolve().parents[4] / "shared" / "vectors" / "vta"
VECTORS = sorted(FOLDER.glob("*/insns.bin"))

pytestmark = pytest.mark.skipif(
    not VECTORS, reason="the vectors of ../shared/vectors/vta are not here"
)


@pytest.mark.parametrize("insns", VECTORS or [None], ids=lambda path: path and path.parent.name)
def test_a_vector(insns, tmp_path, capsys):
    folder = insns.parent
    out = tmp_path / "out.bin"
    arguments = {"config": "config.json", "insns": "insns.bin", "dram": "dram_in.bin"}
    options = [x for name, file in arguments.items() for x in (f"--{name}", str(folder / file))]
    assert run(["vta", "run", *options, "--out", str(out), "--json"]) == 0
    assert out.read_bytes() == (folder / "dram_out.bin").read_bytes()
    counted = json.loads(capsys.readouterr().out)
    expected = json.loads((folder / "counters.json").read_text())
    assert counted["profile"] == expected["profile"]
    assert counted["instructions"] == expected["instructions"]

    described = hardware.get(str(folder / "config.json"))
    program = isa.decode_program(described, insns.read_bytes())
    assert assembler.parse(assembler.listing(described, program)) == program
    assert isa.encode_program(described, program) == insns.read_bytes()
    dram = (folder / "dram_in.bin").read_bytes()
    for order in range(5):
        assert machine.run(described, program, dram, order).dram == out.read_bytes()
