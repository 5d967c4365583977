"""`specpipe models`: fetch, list, show and prune models."""

from pathlib import Path

import click

from specpipe.cli.complete import model_name, one_of
from specpipe.cli.options import models_dir_option, option
from specpipe.models import prune as pruning
from specpipe.models import store
from specpipe.models.download import KNOWN_MODELS, KNOWN_PAIRS
from specpipe.models.summary import show as summarise


@click.group()
def models() -> None:
    """Fetch, list, show and prune models.

    Example: specpipe models list
    """


_KNOWN = one_of(*KNOWN_MODELS, *KNOWN_PAIRS)


@models.command(epilog=f"NAME is one of {', '.join([*KNOWN_MODELS, *KNOWN_PAIRS])}.")
@click.argument("name", shell_complete=_KNOWN)
@models_dir_option
def fetch(name: str, models_dir: Path | None) -> None:
    """Download the model NAME, or both of a pair, check it, and install it.

    Example: specpipe models fetch smollm2
    """
    for files in store.fetch_all(name, store.models_dir(models_dir), _say):
        click.echo(f"{files.name}: {files.weights}")


@models.command("list")
@models_dir_option
def list_(models_dir: Path | None) -> None:
    """List the models that are installed: name, size and file of each.

    Example: specpipe models list --models-dir saved_models
    """
    directory = store.models_dir(models_dir)
    found = store.list_models(directory)
    if not found:
        _say(f"no models in {directory}: get one with `specpipe models fetch smollm2`")
    width = max((len(files.name) for files in found), default=0)
    for files in found:
        click.echo(f"{files.name:<{width}}  {files.size / 1e6:7.1f} MB  {files.weights}")


@models.command()
@click.argument("name", shell_complete=model_name())
@models_dir_option
def show(name: str, models_dir: Path | None) -> None:
    """Tell what the model NAME is: its shape, size, licence and origin.

    Example: specpipe models show smollm2
    """
    summary = summarise(name, store.models_dir(models_dir))
    dtypes = ", ".join(
        f"{dtype} {count / summary.parameters:.0%}"
        for dtype, count in sorted(summary.dtypes.items(), key=lambda item: -item[1])
    )
    for label, value in (
        ("name", summary.name),
        ("architecture", summary.architecture),
        ("layers", summary.layers),
        ("parameters", f"{summary.parameters:,}"),
        ("size", f"{summary.size / 1e6:.1f} MB"),
        ("stored as", dtypes),
        ("context", summary.context_length),
        ("vocabulary", summary.vocab_size),
        ("licence", summary.licence),
        ("source", summary.source),
    ):
        click.echo(f"{label:<13} {'unknown' if value is None else value}")


@models.command()
@click.argument("target", shell_complete=model_name())
@option("--layers", required=True, help="Layers to keep, such as 0-11,18-29.")
@option("--out", required=True, help="Name of the new model.")
@models_dir_option
def prune(target: str, layers: str, out: str, models_dir: Path | None) -> None:
    """Make a draft from some of the layers of TARGET, without training.

    Example: specpipe models prune smollm2 --layers 0-11,18-29 --out smollm2-pruned
    """
    directory = store.models_dir(models_dir)
    files = store.resolve(target, directory)
    count = summarise(target, directory).layers or 0
    made = pruning.prune(files, pruning.parse_layers(layers, count), directory / out)
    click.echo(f"{made.name}: {made.weights}")


def _say(line: str) -> None:
    click.echo(line, err=True)
