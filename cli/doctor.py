"""`specpipe doctor`: what there is to work with, and does it work?"""

import json
import os
from dataclasses import asdict
from pathlib import Path

import click

from specpipe.cli.options import json_option, models_dir_option
from specpipe.doctor import Finding, examine, guarded
from specpipe.models import store

_MARKS = {
    "ok": click.style("✓", fg="green"),
    "remark": click.style("!", fg="yellow"),
    "failure": click.style("✗", fg="red"),
}
FAILED = 1


@click.command()
@models_dir_option
@json_option
def doctor(models_dir: Path | None, as_json: bool) -> int:
    """Say what there is to work with on this machine, and test it for about a second.

    Versions, cores, memory, GPUs, Ray, models; then a tiny random pair writes through the real
    coordinator and workers, and must write what its target writes alone. (The first time, kernels
    are compiled for ten seconds.) Exit code 1 if something fails; lines with a ! name what is
    missing and what to do.

    Example: specpipe doctor
    """
    findings = examine(store.models_dir(models_dir))
    findings += guarded("Ray", _ray)
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        click.echo(f"{_MARKS[finding.state]} {finding.name:<{width}}  {finding.told}")
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings]))
    return FAILED if any(finding.state == "failure" for finding in findings) else 0


def _ray() -> list[Finding]:
    from specpipe.actors.doctor import examine_ray  # noqa: PLC0415 (Ray, which help must not need)

    return [examine_ray(os.environ.get("RAY_ADDRESS"))]
