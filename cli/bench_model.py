"""`specpipe bench model`: how fast are a model's passes here?"""

import json
from pathlib import Path
from typing import Any

import click

from specpipe.cli.complete import model_name, one_of
from specpipe.cli.options import json_option, models_dir_option, option
from specpipe.errors import UserError
from specpipe.machine import usable_cores
from specpipe.models import store
from specpipe.models.interface import DTYPES
from specpipe.new_file import new_file


@click.command()
@click.argument("name", shell_complete=model_name())
@option("--threads", "counts", help="Numbers of threads, such as 1,2.", usual="1")
@option("--device", help="cpu, or cuda:0.", usual="cpu")
@option(
    "--dtype",
    default="auto",
    show_default=True,
    help=f"How weights are kept: {', '.join(DTYPES)}.",
    shell_complete=one_of(*DTYPES),
)
@option("--out", help="Draw a roofline into this .png file.", usual="none")
@models_dir_option
@json_option
def model(name: str, models_dir: Path | None, **options: Any) -> None:
    """Time the passes of the model NAME, next to what the machine could do at best.

    A pass of m rows, as decoding (m = 1) and verification need it, behind 128, 1024 and 4096
    tokens; its floor is the time to read all that it needs, or to multiply, whichever is longer.
    Both rates are measured in the same run. Let the machine be idle: programs share its memory.

    Example: specpipe bench model smollm2 --threads 1,2 --out roofline.png
    """
    threads, dtype, out = _threads(options["counts"] or "1"), options["dtype"], options["out"]
    files = store.resolve(name, store.models_dir(models_dir))
    picture = new_file(out, "a picture") if out else None
    # Late, since they are slow to import.
    from specpipe.bench.model_report import draw, table  # noqa: PLC0415
    from specpipe.bench.passes import measure  # noqa: PLC0415
    from specpipe.models.loader import resolve_dtype, torch_device  # noqa: PLC0415

    device = str(torch_device(options["device"] or "cpu"))
    resolve_dtype(dtype, device, in_blocks=True)
    report = measure(
        files.name, files.weights, dtype=dtype, device=device, threads=threads, progress=_say
    )
    click.echo(table(report))
    if picture:
        draw(report, Path(picture))
    if options["as_json"]:
        click.echo(json.dumps(report.figures()))


def _threads(counts: str) -> tuple[int, ...]:
    """Read "1,2".

    Raises:
        UserError: if it isn't that, or asks for more threads than there are cores.
    """
    cores = len(usable_cores())
    parts = counts.split(",")
    if not all(part.isascii() and part.isdigit() and 1 <= int(part) <= cores for part in parts):
        raise UserError(f"--threads {counts}: give numbers from 1 to {cores}, such as 1,{cores}")
    return tuple(dict.fromkeys(map(int, parts)))


def _say(step: str) -> None:
    click.echo(step, err=True)
