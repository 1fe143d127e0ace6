"""sqcompile vta: run and read raw programs of the VTA accelerator."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from sqcompile.cli import options
from sqcompile.cli.output import Output
from sqcompile.errors import UsageError

if TYPE_CHECKING:
    from sqcompile.backends.vta import isa
    from sqcompile.backends.vta.assembler import Remarks
    from sqcompile.backends.vta.hardware import Hardware

_EXIT_CODES = (
    "Exit codes: 10 an illegal access, 11 no legal encoding or not portable, 12 a deadlock or "
    "tokens left."
)

_config = click.option(
    "--config",
    metavar="NAME|FILE.json",
    default="pynq",
    show_default=True,
    help="The accelerator: pynq, ultra96, zcu104, also with -int4, -out32; or upstream's JSON.",
)
_insns = click.option(
    "--insns", metavar="FILE", required=True, help="The program: 16 bytes an instruction."
)


@click.group(short_help="Run and read raw programs of the VTA accelerator.")
def command() -> None:
    """Raw programs of the VTA accelerator, in the binary form that its driver takes."""


@command.command("run", short_help="Execute a program on the simulator.", epilog=_EXIT_CODES)
@_config
@_insns
@click.option("--dram", metavar="FILE", required=True, help="DRAM before, from address 0.")
@click.option("--out", metavar="FILE", required=True, help="Where to write DRAM as it is after.")
@click.option(
    "--seed",
    type=click.IntRange(0),
    help="Let the modules run in a random order.  [default: as early as possible]",
)
@click.option(
    "--dram-latency",
    type=click.IntRange(0),
    help="Cycles until DRAM answers; a board has tens to 100.  [default: 3, as upstream's]",
)
@options.common
@click.pass_obj
def run(
    output: Output,
    config: str,
    insns: str,
    dram: str,
    out: str,
    seed: int | None,
    dram_latency: int | None,
) -> None:
    """Execute a program over an image of DRAM and count what it did.

    Values are exact. Cycles are a model of upstream's Chisel core that nothing was measured for.

    \b
      sqcompile vta run --config pynq --insns insns.bin --dram in.bin --out out.bin
    """
    from sqcompile.backends.vta.simulator import machine, timing

    hardware, program = _program(config, insns)
    outcome = machine.run(hardware, program, _read(dram), seed)
    latency = timing.DRAM_LATENCY if dram_latency is None else dram_latency
    taken = timing.cycles(hardware, program, latency)
    _write(out, outcome.dram)
    profile = outcome.profile.as_json()
    output.say(f"{len(program)} instructions on {hardware.name}, about {taken.total} cycles")
    for name, value in profile.items():
        output.say(f"  {name:<16} {value}")
    for name, value in taken.busy.items():
        output.say(f"  {name.lower() + ' busy':<16} {value / max(1, taken.total):.0%}")
    output.document(
        {
            "instructions": len(program),
            "profile": profile,
            "cycles": {**taken.as_json(), "dram_latency": latency},
            "hardware": hardware.parameters(),
        }
    )


@command.command("check", short_help="Prove that it ends and is portable.", epilog=_EXIT_CODES)
@_config
@_insns
@click.option("--dram", metavar="FILE", required=True, help="DRAM with the micro-ops.")
@options.common
@click.pass_obj
def check(output: Output, config: str, insns: str, dram: str) -> None:
    """Prove of a program, without running it, that no order of its modules gets stuck, and that
    upstream's simulator, HLS core and Chisel core take every instruction alike.

    \b
      sqcompile vta check --config pynq --insns insns.bin --dram in.bin
    """
    from sqcompile.backends.vta import portable, tokens

    hardware, program = _program(config, insns)
    graph = tokens.check(program)
    portable.check(hardware, program, _read(dram))
    portable.check_stores(hardware, program, graph)
    queues = ", ".join(f"{name} {most}" for name, most in graph.held.items())
    output.say(f"{len(program)} instructions, portable, every order ends; most tokens: {queues}")
    output.document({"instructions": len(program), "most_tokens": graph.held})


@command.command("disasm", short_help="Print a program as text.", epilog=_EXIT_CODES)
@_config
@_insns
@click.option("--dram", metavar="FILE", help="DRAM; shows the micro-ops that are loaded.")
@click.option("-o", "--out", metavar="FILE", help="Where to write the text.  [default: stdout]")
@options.common
@click.pass_obj
def disasm(output: Output, config: str, insns: str, dram: str | None, out: str | None) -> None:
    """Print a program as text, one instruction a line.

    \b
      sqcompile vta disasm --config pynq --insns insns.bin --dram in.bin
    """
    from sqcompile.backends.vta import assembler

    hardware, program = _program(config, insns)
    remarks = None if dram is None else _micro_ops(hardware, _read(dram))
    text = assembler.listing(hardware, program, remarks)
    if out is None:
        output.say(text.rstrip("\n"))
    else:
        _write(out, text.encode())
    output.document({"instructions": len(program), "listing": text})


@command.command("asm", short_help="Make a program of its text.", epilog=_EXIT_CODES)
@_config
@click.argument("listing", metavar="VTA.TXT")
@click.option("-o", "--out", metavar="FILE", required=True, help="Where to write the program.")
@options.common
@click.pass_obj
def asm(output: Output, config: str, listing: str, out: str) -> None:
    """Make the program that VTA.TXT, as `disasm` prints it, describes.

    \b
      sqcompile vta asm --config pynq vta.txt -o insns.bin
    """
    from sqcompile.backends.vta import assembler, hardware, isa

    program = assembler.parse(_read(listing).decode("utf-8", "replace"))
    _write(out, isa.encode_program(hardware.get(config), program))
    output.say(f"{len(program)} instructions in {out}")
    output.document({"instructions": len(program), "out": out})


def _program(config: str, insns: str) -> "tuple[Hardware, list[isa.Instruction]]":
    from sqcompile.backends.vta import hardware, isa

    chosen = hardware.get(config)
    return chosen, isa.decode_program(chosen, _read(insns))


def _micro_ops(hardware: "Hardware", dram: bytes) -> "Remarks":
    """Remarks below every load of micro-ops: what they are."""
    from sqcompile.backends.vta.uops import uops_of

    def remarks(instruction: "isa.Instruction") -> list[str]:
        return [
            f"uop {place}: dst {uop.dst} src {uop.src} wgt {uop.wgt}"
            for place, uop in uops_of(hardware, instruction, dram)
        ]

    return remarks


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from None


def _write(path: str, data: bytes) -> None:
    try:
        Path(path).write_bytes(data)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from None
