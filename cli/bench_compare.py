"""`specpipe bench compare`: what changed between two runs?"""

import json
from pathlib import Path

import click

from specpipe.cli.options import json_option

_FILE = click.Path(path_type=Path)


@click.command()
@click.argument("old", type=_FILE)
@click.argument("new", type=_FILE)
@json_option
def compare(old: Path, new: Path, as_json: bool) -> None:
    """Tell what changed from the run OLD to the run NEW, beyond noise.

    Each is a folder that `specpipe bench` wrote, or the results.json in it.

    Example: specpipe bench compare before after
    """
    from specpipe.bench import comparison  # noqa: PLC0415 (slow to import)

    runs = [comparison.read_results(path) for path in (old, new)]
    changes = comparison.compare(*runs)
    click.echo(comparison.table(changes))
    for remark in comparison.remarks(*runs):
        click.echo(remark, err=True)
    if as_json:
        click.echo(json.dumps([change.figures() for change in changes]))
