"""sqcompile examine: which ops of a model a target runs, before anything is compiled."""

from dataclasses import asdict

import click

from sqcompile.cli import options
from sqcompile.cli.output import Output
from sqcompile.errors import UnsupportedOpError


@click.command(
    short_help="List supported and unsupported ops of a model.",
    epilog="Exit code 4 when an op is unsupported.",
)
@click.argument("model_file", metavar="MODEL.PY")
@options.dims
@options.target
@options.common
@click.pass_obj
def command(
    output: Output,
    model_file: str,
    dims: dict[str, int],
    target_name: str,
    mcpu: str | None,
    arch: str | None,
    int4: bool,
    hw: str | None,
) -> None:
    """Trace the model in MODEL.PY, run the passes and look every op up in the target's kernels.

    \b
      sqcompile examine model.py --target cpu
    """
    target = options.chosen_target(target_name, mcpu=mcpu, arch=arch, int4=int4, hw=hw)
    from sqcompile import api, modelfile
    from sqcompile.cli.compile import made
    from sqcompile.report.text import table

    model, inputs = made(modelfile.load(model_file, dims=dims), seed=0)
    with output.status(f"tracing {model_file}"):
        rows = api.examine(model, inputs, target=target)
    missing = [row for row in rows if not row.supported]
    shown = table("op", "count", "supported", "reason", right=("count",))
    for row in rows:
        style = None if row.supported else "red"
        shown.add_row(
            row.op, str(row.count), "yes" if row.supported else "no", row.reason, style=style
        )
    output.show(shown)
    for row in missing:
        output.say(f"\n{row.op}" + (f" in {', '.join(row.modules)}" if row.modules else ""))
        for line in row.lines:
            output.say(f"  {line}")
    output.say(f"\n{len(rows) - len(missing)} of {len(rows)} ops run on {target.name}")
    output.document(
        {
            "target": target.name,
            "supported": not missing,
            "ops": [asdict(row) for row in rows],
        }
    )
    if missing:
        click.get_current_context().exit(UnsupportedOpError.exit_code)
